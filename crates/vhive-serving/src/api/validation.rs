//! What becomes of fields that nobody knows: refused, or left out with or without a word.
//!
//! # Source
//! Kubernetes API concepts, "Field validation"; RFC 7234, section 5.5, `Warning`.

use http::HeaderValue;
use serde_json::Value;

use crate::admission::{Problem, ProblemKind, UNKNOWN_FIELD};
use crate::services::ChangeError;

/// Warnings in one reply.
const MOST_WARNINGS: usize = 50;

/// Bytes of a warning.
const LONGEST_WARNING: usize = 512;

/// What a client wants to become of unknown fields. Fields that Knative knows and this node does not
/// honour are refused whatever it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Validation {
    /// They are refused. Kubernetes' own default is to warn.
    #[default]
    Strict,
    Warn,
    Ignore,
}

/// The unknown fields that have been left out of a request's document.
#[derive(Debug)]
pub(super) struct LeftOut {
    validation: Validation,
    paths: Vec<String>,
}

impl LeftOut {
    pub(super) fn new(validation: Validation) -> Self {
        Self { validation, paths: Vec::new() }
    }

    /// Takes the unknown fields out that a document was refused for; says whether there were any
    /// and the client wants it so, in which case the document may be accepted now.
    pub(super) fn leave_out(&mut self, refused: &ChangeError, document: &mut Value) -> bool {
        let problems: &[Problem] = match refused {
            ChangeError::Invalid(invalid) => &invalid.problems,
            ChangeError::Unfit { problems, .. } => problems,
            _ => return false,
        };
        if self.validation == Validation::Strict {
            return false;
        }
        let mut any = false;
        for problem in problems.iter().filter(|one| is_unknown(one)) {
            if take(document, &problem.path) {
                self.paths.push(problem.path.clone());
                any = true;
            }
        }
        any
    }

    /// What the client is to be told of it.
    pub(super) fn warnings(&self) -> Vec<HeaderValue> {
        if self.validation != Validation::Warn {
            return Vec::new();
        }
        let each = self.paths.iter().take(MOST_WARNINGS).filter_map(|path| {
            let plain = |letter: char| if matches!(letter, ' '..='~') { letter } else { '?' };
            let path: String = path.chars().take(LONGEST_WARNING).map(plain).collect();
            let path = path.replace(['\\', '"'], "?");
            HeaderValue::from_str(&format!(r#"299 - "unknown field \"{path}\"""#)).ok()
        });
        each.collect()
    }
}

fn is_unknown(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Unknown && problem.reason == UNKNOWN_FIELD
}

/// Takes the field at a path out, as complaints name it. A name that has dots itself goes before
/// what could be several names: no field that is known has any.
fn take(value: &mut Value, path: &str) -> bool {
    if let Some(rest) = path.strip_prefix('[') {
        let Some((at, rest)) = rest.split_once(']') else { return false };
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        let inner = match value {
            Value::Array(list) => at.parse().ok().and_then(|at: usize| list.get_mut(at)),
            Value::Object(map) => map.get_mut(at),
            _ => None,
        };
        return !rest.is_empty() && inner.is_some_and(|inner| take(inner, rest));
    }
    let Some(map) = value.as_object_mut() else { return false };
    if map.remove(path).is_some() {
        return true;
    }
    let mut names: Vec<String> = map
        .keys()
        .filter(|name| path.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with(['.', '['])))
        .cloned()
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.iter().any(|name| {
        let rest = &path[name.len()..];
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        map.get_mut(name).is_some_and(|inner| take(inner, rest))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn refused(paths: &[&str]) -> ChangeError {
        let problem = |path: &&str| Problem {
            path: (*path).to_owned(),
            kind: ProblemKind::Unknown,
            reason: UNKNOWN_FIELD.to_owned(),
        };
        let problems = paths.iter().map(problem).collect();
        ChangeError::Unfit { kind: crate::kind::Kind::Route, name: "a".to_owned(), problems }
    }

    #[test]
    fn unknown_fields_are_left_out_wherever_they_are() {
        let mut document = json!({
            "colour": 1,
            "spec": {"list": [{"x": 1, "y": 2}, {"x": 3}], "a.b": 1, "a": {"b": 2, "c": 3}},
        });
        let paths = ["colour", "spec.list[0].y", "spec.a.b", "spec.none", "spec.list[7].x"];
        let mut left_out = LeftOut::new(Validation::Warn);
        assert!(left_out.leave_out(&refused(&paths), &mut document));
        assert_eq!(
            document,
            json!({"spec": {"list": [{"x": 1}, {"x": 3}], "a": {"b": 2, "c": 3}}})
        );
        let warnings = left_out.warnings();
        assert_eq!(warnings.len(), 3);
        assert_eq!(warnings[0], r#"299 - "unknown field \"colour\"""#);
        assert!(!left_out.leave_out(&refused(&["colour"]), &mut document), "it is gone already");
    }

    #[test]
    fn what_is_wrong_otherwise_stays_and_so_does_all_under_strict() {
        let document = json!({"colour": 1});
        let mut same = document.clone();
        let mut strict = LeftOut::new(Validation::Strict);
        assert!(!strict.leave_out(&refused(&["colour"]), &mut same));
        let mut ignore = LeftOut::new(Validation::Ignore);
        let problem = Problem {
            path: "colour".to_owned(),
            kind: ProblemKind::Unsupported,
            reason: "not supported: there is none".to_owned(),
        };
        let kind = crate::kind::Kind::Route;
        let unfit = ChangeError::Unfit { kind, name: "a".to_owned(), problems: vec![problem] };
        assert!(!ignore.leave_out(&unfit, &mut same));
        assert_eq!(same, document);
        assert!(ignore.leave_out(&refused(&["colour"]), &mut same));
        assert_eq!((same, ignore.warnings()), (json!({}), Vec::new()));
    }

    proptest! {
        #[test]
        fn any_path_is_survived(path in ".{0,20}", odd in "[\\[\\].a0]{0,12}") {
            let mut document = json!({"a": [{"a": 0}, {"0": [1]}], "0": {"a.a": 1}});
            take(&mut document, &path);
            take(&mut document, &odd);
            let mut left_out = LeftOut::new(Validation::Warn);
            left_out.paths.push(path);
            prop_assert_eq!(left_out.warnings().len(), 1);
        }
    }
}

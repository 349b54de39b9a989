//! What may follow the `?` of a request for objects.
//!
//! # Source
//! Kubernetes API concepts; label selectors as in "Labels and Selectors".

use serde::Deserialize;
use serde_json::Value;

use super::status::Problem;
use super::validation::Validation;

/// The parameters that mean something here; others are let pass, as Kubernetes does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Query {
    pub(super) label_selector: String,
    pub(super) field_selector: String,
    pub(super) resource_version: String,
    watch: String,
    allow_watch_bookmarks: String,
    send_initial_events: String,
    pub(super) timeout_seconds: Option<u64>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    resume: String,
    dry_run: String,
    pub(super) field_manager: String,
    force: String,
    pub(super) include_object: String,
    field_validation: String,
    pub(super) propagation_policy: String,
    keep_snapshots: String,
}

impl Query {
    pub(super) fn watch(&self) -> bool {
        is_true(&self.watch)
    }

    pub(super) fn bookmarks(&self) -> bool {
        is_true(&self.allow_watch_bookmarks)
    }

    /// Whether a watch begins with what there is.
    pub(super) fn initial_events(&self) -> bool {
        is_true(&self.send_initial_events)
    }

    /// Whether a deletion leaves the snapshots for whoever makes the same again. Our own.
    ///
    /// # Errors
    /// Neither yes nor no: what is lost by a slip of the pen does not come back.
    pub(super) fn keep_snapshots(&self) -> Result<bool, Problem> {
        match self.keep_snapshots.as_str() {
            "" | "0" | "f" => Ok(false),
            text if is_true(text) => Ok(true),
            text if text.eq_ignore_ascii_case("false") => Ok(false),
            other => Err(Problem::bad_request(format!(
                "keepSnapshots is {other:?}, it can be `true` or `false`"
            ))),
        }
    }

    pub(super) fn force(&self) -> bool {
        is_true(&self.force)
    }

    /// Most objects in one reply.
    pub(super) fn limit(&self) -> usize {
        self.limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX)
    }

    /// Whether nothing is to be changed.
    ///
    /// # Errors
    /// Another word than `All`.
    pub(super) fn dry_run(&self) -> Result<bool, Problem> {
        match self.dry_run.as_str() {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Problem::bad_request(format!("dryRun is {other:?}, it can be `All`"))),
        }
    }

    /// What is to become of unknown fields.
    ///
    /// # Errors
    /// Another word than Kubernetes has for it.
    pub(super) fn validation(&self) -> Result<Validation, Problem> {
        match self.field_validation.as_str() {
            "" | "Strict" => Ok(Validation::Strict),
            "Warn" => Ok(Validation::Warn),
            "Ignore" => Ok(Validation::Ignore),
            other => Err(Problem::bad_request(format!(
                "fieldValidation is {other:?}, it can be `Strict`, `Warn` or `Ignore`"
            ))),
        }
    }

    /// The version that a watch goes on from; none to begin with what there is.
    ///
    /// # Errors
    /// It is no number.
    pub(super) fn since(&self) -> Result<Option<u64>, Problem> {
        match self.resource_version.as_str() {
            "" | "0" => Ok(None),
            text => {
                let wrong =
                    || Problem::bad_request(format!("resourceVersion {text:?} is not ours"));
                text.parse().map(Some).map_err(|_| wrong())
            }
        }
    }

    /// Where a list goes on.
    ///
    /// # Errors
    /// A token that is none of ours.
    pub(super) fn after(&self) -> Result<Option<After>, Problem> {
        if self.resume.is_empty() {
            return Ok(None);
        }
        let wrong = || Problem::bad_request(format!("continue {:?} is not ours", self.resume));
        After::read(&self.resume).map(Some).ok_or_else(wrong)
    }

    /// # Errors
    /// A selector that cannot be read.
    pub(super) fn selector(&self) -> Result<Selector, Problem> {
        let labels = requirements(&self.label_selector, true)?;
        let fields = requirements(&self.field_selector, false)?;
        Ok(Selector { labels, fields })
    }
}

/// Where the next page of a list begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct After {
    /// The version of the first page, which all have; none if what has changed since cannot be told
    /// any more, and the client takes the rest as it is now.
    pub(super) version: Option<u64>,
    /// Namespace and name of the last object that the client has.
    pub(super) last: (String, String),
}

impl After {
    pub(super) fn of_now(last: &(String, String)) -> Self {
        Self { version: None, last: last.clone() }
    }

    /// As clients bring it back.
    pub(super) fn token(&self) -> String {
        let version = self.version.map(|version| version.to_string()).unwrap_or_default();
        format!("{version}:{}/{}", self.last.0, self.last.1)
    }

    fn read(token: &str) -> Option<Self> {
        let (version, last) = token.split_once(':')?;
        let version = if version.is_empty() { None } else { Some(version.parse().ok()?) };
        let (namespace, name) = last.split_once('/')?;
        Some(Self { version, last: (namespace.to_owned(), name.to_owned()) })
    }
}

/// Whether a parameter is set. Python writes `True`.
pub(super) fn is_true(text: &str) -> bool {
    text == "1" || text == "t" || text.eq_ignore_ascii_case("true")
}

/// Which objects are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among =
            |list: &[String]| value.is_some_and(|value| list.iter().any(|one| one == value));
        match &self.test {
            Test::In(list) => among(list),
            Test::NotIn(list) => !among(list),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

impl Selector {
    /// Whether an object is wanted.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.labels.iter().all(|one| one.holds(labels.and_then(|all| all.get(&one.key)?.as_str())))
            && self.fields.iter().all(|one| {
                let path = one.key.split('.').try_fold(object, |at, part| at.get(part));
                one.holds(Some(path.and_then(Value::as_str).unwrap_or_default()))
            })
    }

    /// Whether an object that matches may cease to, or the other way round.
    pub(super) fn may_change(&self) -> bool {
        let fixed =
            |one: &Requirement| matches!(one.key.as_str(), "metadata.name" | "metadata.namespace");
        !self.labels.is_empty() || !self.fields.iter().all(fixed)
    }
}

/// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`; fields know only the first two forms.
fn requirements(text: &str, labels: bool) -> Result<Vec<Requirement>, Problem> {
    let mut found = Vec::new();
    for part in split(text) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        let wrong = || Problem::bad_request(format!("unable to parse requirement: {part:?}"));
        let equal = part.split_once("==").or_else(|| part.split_once('='));
        let (key, test) = if let Some((key, value)) = part.split_once("!=") {
            (key, Test::NotIn(vec![value.trim().to_owned()]))
        } else if let Some((key, value)) = equal {
            (key, Test::In(vec![value.trim().to_owned()]))
        } else if !labels {
            return Err(wrong());
        } else if let Some((key, list)) = part.split_once(" notin ") {
            (key, Test::NotIn(set(list).ok_or_else(wrong)?))
        } else if let Some((key, list)) = part.split_once(" in ") {
            (key, Test::In(set(list).ok_or_else(wrong)?))
        } else if let Some(key) = part.strip_prefix('!') {
            (key, Test::Absent)
        } else {
            (part, Test::Exists)
        };
        let key = key.trim();
        if key.is_empty() || key.contains([' ', '(', ')', '!']) {
            return Err(wrong());
        }
        found.push(Requirement { key: key.to_owned(), test });
    }
    Ok(found)
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut inside) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => inside = true,
            b')' => inside = false,
            b',' if !inside => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn set(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|one| one.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, fields: &str) -> bool {
        let object = json!({
            "metadata": {"name": "hello", "labels": {"app": "web", "tier": "front"}},
            "spec": {"kind": {"word": "x"}},
        });
        let query = Query {
            label_selector: labels.to_owned(),
            field_selector: fields.to_owned(),
            ..Query::default()
        };
        query.selector().expect("can be read").matches(&object)
    }

    #[test]
    fn selectors_of_labels() {
        for (text, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("none!=web", true),
            ("app in (web, api),tier", true),
            ("app notin (web)", false),
            ("!app", false),
            ("!none", true),
            ("none", false),
        ] {
            assert_eq!(matches(text, ""), wanted, "{text}");
        }
    }

    #[test]
    fn selectors_of_fields() {
        for (text, wanted) in [
            ("metadata.name=hello", true),
            ("metadata.name=other", false),
            ("metadata.name!=other,spec.kind.word=x", true),
            ("spec.none=", true),
        ] {
            assert_eq!(matches("", text), wanted, "{text}");
        }
        let only = |text: &str| Query { field_selector: text.to_owned(), ..Query::default() };
        assert!(only("metadata").selector().is_err());
        assert!(!only("metadata.name=a").selector().unwrap().may_change());
        assert!(only("status.phase=a").selector().unwrap().may_change());
    }

    #[test]
    fn tokens_of_pages_come_back() {
        let last = ("default".to_owned(), "a.b".to_owned());
        for after in [After { version: Some(7), last: last.clone() }, After::of_now(&last)] {
            assert_eq!(After::read(&after.token()), Some(after));
        }
        for wrong in ["", "default/a", "x:default/a", "7:a"] {
            assert_eq!(After::read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let query = Query { label_selector: text.clone(), field_selector: text, ..Query::default() };
            if let Ok(selector) = query.selector() {
                selector.matches(&json!({"metadata": {"labels": {"a": "b"}}}));
            }
        }
    }
}

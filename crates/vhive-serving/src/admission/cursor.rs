//! Walking an untyped document while remembering where one is, so that every complaint names its
//! field and all of them are reported at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, e.g. `spec.template.spec.containers[0].image`.
    pub path: String,
    /// Which sort of problem.
    pub kind: ProblemKind,
    /// What is wrong, in words; for an unsupported field, why it is.
    pub reason: String,
}

/// The sorts of problems, which become the `reason` of a cause in a Kubernetes `Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// No such field exists in Knative.
    Unknown,
    /// The field exists in Knative and cannot be honoured here.
    Unsupported,
    /// The value has the wrong type or is out of range.
    Invalid,
    /// A field that must be there is not.
    Missing,
}

impl ProblemKind {
    /// The word that Kubernetes uses in `details.causes[].reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "FieldValueUnknown",
            Self::Unsupported => "FieldValueNotSupported",
            Self::Invalid => "FieldValueInvalid",
            Self::Missing => "FieldValueRequired",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// What is said of fields that nobody knows.
pub(crate) const UNKNOWN_FIELD: &str = "unknown field";

/// Paths at which nothing is wrong, whatever is there.
pub(crate) type Passed = BTreeSet<String>;

/// Collects problems during one walk.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: RefCell<Vec<Problem>>,
    passed: Passed,
}

impl Problems {
    /// Those of a walk that complains of none of these paths.
    pub(super) fn except(passed: &Passed) -> Self {
        Self { passed: passed.clone(), ..Self::default() }
    }

    pub(super) fn add(&self, path: &str, kind: ProblemKind, reason: impl Into<String>) {
        if self.passed.contains(path) {
            return;
        }
        let problem = Problem { path: path.to_owned(), kind, reason: reason.into() };
        self.found.borrow_mut().push(problem);
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.found.into_inner()
    }
}

/// One place in the document. Absent and `null` fields have no cursor.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    value: &'a Value,
    path: String,
    problems: &'a Problems,
}

/// The fields that an object may have: supported ones, and known ones that are refused, with why.
pub(super) struct Fields {
    pub(super) known: &'static [&'static str],
    pub(super) refused: &'static [(&'static str, &'static str)],
}

impl<'a> Cursor<'a> {
    pub(super) fn root(value: &'a Value, problems: &'a Problems) -> Self {
        Self { value, path: String::new(), problems }
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn invalid(&self, reason: impl Into<String>) {
        self.problems.add(&self.path, ProblemKind::Invalid, reason);
    }

    pub(super) fn unsupported(&self, reason: impl Into<String>) {
        self.problems.add(&self.path, ProblemKind::Unsupported, reason);
    }

    pub(super) fn unknown(&self, reason: impl Into<String>) {
        self.problems.add(&self.path, ProblemKind::Unknown, reason);
    }

    pub(super) fn missing(&self, field: &str) {
        self.problems.add(&self.below(field), ProblemKind::Missing, "required");
    }

    /// Refuses every field that is not in the table. Empty values of refused fields mean nothing
    /// and pass.
    pub(super) fn expect_fields(&self, fields: &Fields) {
        let Some(object) = self.object() else { return };
        for (name, value) in object {
            if fields.known.contains(&name.as_str()) || is_empty(value) {
                continue;
            }
            let path = self.below(name);
            match fields.refused.iter().find(|(refused, _)| refused == name) {
                Some((_, why)) => {
                    let reason = format!("not supported: {why}");
                    self.problems.add(&path, ProblemKind::Unsupported, reason);
                }
                None => self.problems.add(&path, ProblemKind::Unknown, UNKNOWN_FIELD),
            }
        }
    }

    /// The cursor of a field, if it is there and not null.
    pub(super) fn get(&self, field: &str) -> Option<Self> {
        let value = self.value.as_object()?.get(field).filter(|value| !value.is_null())?;
        Some(Self { value, path: self.below(field), problems: self.problems })
    }

    /// The elements of a list; reports another type.
    pub(super) fn items(&self) -> Vec<Self> {
        let Some(list) = self.value.as_array() else {
            self.invalid(format!("must be a list, not {}", kind(self.value)));
            return Vec::new();
        };
        let each = list.iter().enumerate().map(|(at, value)| Self {
            value,
            path: format!("{}[{at}]", self.path),
            problems: self.problems,
        });
        each.collect()
    }

    /// The entries of a map, with paths in brackets as Kubernetes writes them.
    pub(super) fn entries(&self) -> Vec<(&'a str, Self)> {
        let Some(object) = self.object() else { return Vec::new() };
        let each = object.iter().map(|(name, value)| {
            let path = format!("{}[{name}]", self.path);
            (name.as_str(), Self { value, path, problems: self.problems })
        });
        each.collect()
    }

    pub(super) fn object(&self) -> Option<&'a Map<String, Value>> {
        let object = self.value.as_object();
        if object.is_none() {
            self.invalid(format!("must be an object, not {}", kind(self.value)));
        }
        object
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.invalid(format!("must be a string, not {}", kind(self.value)));
        }
        text
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let boolean = self.value.as_bool();
        if boolean.is_none() {
            self.invalid(format!("must be true or false, not {}", kind(self.value)));
        }
        boolean
    }

    /// A whole number within `range`.
    pub(super) fn whole(&self, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let number = self.value.as_u64().and_then(|n| u32::try_from(n).ok());
        let number = number.filter(|n| range.contains(n));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.invalid(format!("must be a whole number from {low} to {high}"));
        }
        number
    }

    fn below(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

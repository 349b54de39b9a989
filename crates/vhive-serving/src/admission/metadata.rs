//! What every object has: `apiVersion`, `kind` and `metadata`.
//!
//! # Source
//! Kubernetes API conventions; "Labels and Selectors" and "Annotations", syntax and character set.

use std::collections::BTreeMap;

use serde_json::Value;

use super::DEEPEST;
use super::cursor::{Cursor, Fields, Passed, Problem, Problems};
use crate::kind::Kind;

/// Longest name behind a prefix, and longest value of a label.
const LONGEST: usize = 63;

/// Longest prefix of a key.
const LONGEST_PREFIX: usize = 253;

/// Bytes that all annotations of an object may take, their keys included.
const MOST_ANNOTATIONS: usize = 256 << 10;

const METADATA: Fields = Fields {
    known: &[
        "name",
        "namespace",
        "labels",
        "annotations",
        // Set by the server; ignored when a client sends back what it has read.
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "selfLink",
    ],
    refused: &[
        ("finalizers", "a deletion is complete at once"),
        ("ownerReferences", "nothing is removed because its owner is"),
    ],
};

/// Which object a document means, and what is noted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Namespace; `default` if the document named none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The version of the object that the client believes to replace.
    pub resource_version: Option<String>,
}

/// Walks a document unless it is too deep; what it is, if nothing at all is wrong with it.
///
/// # Errors
/// Every problem found.
pub(super) fn walk<T>(
    document: &Value,
    read: impl FnOnce(&Cursor<'_>) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    walk_except(&Passed::new(), document, read)
}

/// Likewise, and complains of nothing at these paths.
pub(super) fn walk_except<T>(
    passed: &Passed,
    document: &Value,
    read: impl FnOnce(&Cursor<'_>) -> Option<T>,
) -> Result<T, Vec<Problem>> {
    let problems = Problems::except(passed);
    let root = Cursor::root(document, &problems);
    let found = if is_deeper(document, DEEPEST) {
        root.invalid(format!("must not be nested deeper than {DEEPEST} levels"));
        None
    } else {
        read(&root)
    };
    let problems = problems.into_inner();
    found.filter(|_| problems.is_empty()).ok_or(problems)
}

/// The name in a document that may be any, for messages.
pub(crate) fn name_in(document: &Value) -> String {
    let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?");
    name.chars().take(80).collect()
}

/// Reads what every object has; `fields` are those of the whole document. Names that are wrong have
/// been told, and are empty. None if it is no use to read on.
pub(super) fn head(
    root: &Cursor<'_>,
    kind: Kind,
    fields: &Fields,
    read_name: impl FnOnce(&Cursor<'_>) -> Option<String>,
) -> Option<Head> {
    if !root.value().is_object() {
        root.invalid("a document must be an object with `apiVersion`, `kind` and `metadata`");
        return None;
    }
    for (field, want) in [("apiVersion", kind.api_version()), ("kind", kind.as_str())] {
        match root.get(field) {
            Some(found) if found.text() == Some(want) => {}
            Some(found) => {
                found.unsupported(format!("only {want:?} is supported here"));
                return None;
            }
            None => root.missing(field),
        }
    }
    root.expect_fields(fields);
    let Some(metadata) = root.get("metadata") else {
        root.missing("metadata");
        return None;
    };
    metadata.expect_fields(&METADATA);
    let name = match metadata.get("name") {
        Some(_) => read_name(&metadata),
        None => {
            metadata.missing("name");
            None
        }
    };
    let namespace = match metadata.get("namespace") {
        Some(_) => label(&metadata, "namespace", LONGEST),
        None => Some("default".to_owned()),
    };
    let version = metadata.get("resourceVersion").and_then(|version| version.text());
    Some(Head {
        namespace: namespace.unwrap_or_default(),
        name: name.unwrap_or_default(),
        labels: metadata.get("labels").map(|map| labels(&map)).unwrap_or_default(),
        annotations: metadata.get("annotations").map(|map| annotations(&map)).unwrap_or_default(),
        resource_version: version.filter(|text| !text.is_empty()).map(str::to_owned),
    })
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(list) => list.iter().any(|one| is_deeper(one, levels - 1)),
        Value::Object(map) => map.values().any(|one| is_deeper(one, levels - 1)),
        _ => false,
    }
}

pub(super) fn strings(map: &Cursor<'_>) -> BTreeMap<String, String> {
    let each = map.entries().into_iter();
    each.filter_map(|(name, entry)| Some((name.to_owned(), entry.text()?.to_owned()))).collect()
}

/// A field that is a label of a host name.
pub(super) fn label(cursor: &Cursor<'_>, field: &str, longest: usize) -> Option<String> {
    let found = cursor.get(field)?;
    let text = found.text()?;
    if is_label(text) && text.len() <= longest {
        return Some(text.to_owned());
    }
    found.invalid(format!(
        "must be 1 to {longest} lower-case letters, digits or `-`, not beginning or ending with `-`"
    ));
    None
}

/// Whether a text is a label of a host name.
///
/// # Source
/// RFC 1123 as Kubernetes reads it: lower case only, 63 characters at most.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    bytes.len() <= LONGEST
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// An object's labels.
pub(super) fn labels(map: &Cursor<'_>) -> BTreeMap<String, String> {
    for (key, entry) in map.entries() {
        check_key(&entry, key);
        if let Some(value) = entry.text()
            && !(value.is_empty() || is_name(value))
        {
            entry.invalid(format!(
                "must be empty or at most {LONGEST} letters, digits, `-`, `_` or `.`, with a letter \
                 or digit at either end"
            ));
        }
    }
    strings(map)
}

/// An object's annotations.
fn annotations(map: &Cursor<'_>) -> BTreeMap<String, String> {
    for (key, entry) in map.entries() {
        check_key(&entry, key);
    }
    let all = strings(map);
    let size: usize = all.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MOST_ANNOTATIONS {
        map.invalid(format!("take {size} bytes, more than {MOST_ANNOTATIONS}"));
    }
    all
}

fn check_key(entry: &Cursor<'_>, key: &str) {
    let (prefix, name) =
        key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_host = |prefix: &str| prefix.len() <= LONGEST_PREFIX && prefix.split('.').all(is_label);
    if !is_name(name) || prefix.is_some_and(|prefix| !is_host(&prefix.to_ascii_lowercase())) {
        entry.invalid(format!(
            "its key must be a name, or a host name, `/` and a name; a name is at most {LONGEST} \
             letters, digits, `-`, `_` or `.`, with a letter or digit at either end"
        ));
    }
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= LONGEST
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_in_kubernetes() {
        for good in ["a", "A", "1", "a-b", "a_b", "a.b", "MyName", &"x".repeat(63)] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in ["", "-a", "a-", ".a", "a.", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}

//! Labels and annotations.
//!
//! # Source
//! Kubernetes, "Labels and Selectors" and "Annotations", syntax and character set.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::service::{is_label, strings};

/// Longest name behind a prefix, and longest value of a label.
const LONGEST: usize = 63;

/// Longest prefix of a key.
const LONGEST_PREFIX: usize = 253;

/// Bytes that all annotations of an object may take, their keys included.
const MOST_ANNOTATIONS: usize = 256 << 10;

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
pub(super) fn annotations(map: &Cursor<'_>) -> BTreeMap<String, String> {
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

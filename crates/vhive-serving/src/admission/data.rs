//! The fields of a config map and of a secret. No complaint quotes a value.
//!
//! # Source
//! Kubernetes API reference, ConfigMap and Secret (`core/v1`), and its `pkg/apis/core/validation`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use vhive_api::guest::Content;

use super::cursor::{Cursor, Fields, Problem};
use super::metadata::{Head, head, walk};
use crate::inputs::DataKind;
use crate::kind::Kind;

/// Most bytes that all values of an object have together.
const MOST: usize = 1 << 20;

const CONFIG_MAP: Fields = Fields {
    known: &["apiVersion", "kind", "metadata", "data", "binaryData", "immutable"],
    refused: &[],
};

const SECRET: Fields = Fields {
    known: &["apiVersion", "kind", "metadata", "data", "stringData", "type", "immutable"],
    refused: &[],
};

/// A config map or secret that passed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdmittedData {
    pub(crate) kind: DataKind,
    pub(crate) head: Head,
    /// A secret's type.
    pub(crate) class: Option<String>,
    pub(crate) immutable: Option<bool>,
    pub(crate) data: BTreeMap<String, Content>,
    pub(crate) binary: BTreeMap<String, Content>,
}

/// Checks one document.
///
/// # Errors
/// Every problem found.
pub(crate) fn admit_data(document: &Value, kind: DataKind) -> Result<AdmittedData, Vec<Problem>> {
    walk(document, |root| read(root, kind))
}

fn read(root: &Cursor<'_>, kind: DataKind) -> Option<AdmittedData> {
    let fields = if kind == DataKind::Secret { &SECRET } else { &CONFIG_MAP };
    let head = head(root, Kind::from(kind), fields, |metadata| {
        let name = metadata.get("name")?;
        let text = name.text()?;
        if is_subdomain(text) {
            return Some(text.to_owned());
        }
        let reason = "must be labels of a host name with dots between them, 253 characters at most";
        name.invalid(reason);
        None
    })?;
    let immutable = root.get("immutable").and_then(|flag| flag.boolean());
    let (mut data, mut binary, mut class) = (BTreeMap::new(), BTreeMap::new(), None);
    match kind {
        DataKind::ConfigMap => {
            values(root, "data", false, &mut data);
            values(root, "binaryData", true, &mut binary);
            for key in data.keys().filter(|key| binary.contains_key(*key)) {
                if let Some(field) = root.get("binaryData") {
                    field.invalid(format!("key {key:?} is in data, too"));
                }
            }
        }
        DataKind::Secret => {
            values(root, "data", true, &mut data);
            values(root, "stringData", false, &mut data);
            let given = root.get("type").and_then(|given| given.text());
            class = Some(given.filter(|text| !text.is_empty()).unwrap_or("Opaque").to_owned());
        }
    }
    let size = |values: &BTreeMap<String, Content>| -> usize {
        let each = values
            .iter()
            .map(|(key, value)| key.len() + value.bytes().map_or(0, |bytes| bytes.len()));
        each.sum()
    };
    if size(&data) + size(&binary) > MOST {
        let at = root.get("data").or_else(|| root.get("binaryData"));
        let at = at.or_else(|| root.get("stringData"));
        at.unwrap_or_else(|| root.clone())
            .invalid(format!("must have at most {MOST} bytes in all keys and values together"));
    }
    Some(AdmittedData { kind, head, class, immutable, data, binary })
}

/// Reads a map of values into those that are there already.
fn values(root: &Cursor<'_>, field: &str, base64: bool, into: &mut BTreeMap<String, Content>) {
    let Some(map) = root.get(field) else { return };
    for (key, value) in map.entries() {
        if !is_key(key) {
            value.invalid(
                "its name must be 1 to 253 letters, digits, `-`, `_` or `.`, not beginning with `..`",
            );
            continue;
        }
        let text = if value.value().is_null() { Some("") } else { value.text() };
        let Some(text) = text else { continue };
        let content = if base64 {
            // As Go reads it: line breaks mean nothing.
            let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            match STANDARD.decode(text) {
                Ok(bytes) => Content::of(bytes),
                Err(_) => {
                    value.invalid("must be base64 (of RFC 4648, with padding)");
                    continue;
                }
            }
        } else {
            Content::Text(text.to_owned())
        };
        into.insert(key.to_owned(), content);
    }
}

/// Whether a text may be a key, and so a file's name.
pub(super) fn is_key(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    plain && (1..=253).contains(&text.len()) && text != "." && !text.starts_with("..")
}

/// Whether a text may be the name of a config map or secret.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(super::is_label)
}

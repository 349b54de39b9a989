//! The object in a request's body.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use super::protobuf;
use super::status::Problem;
use crate::admission::documents;

/// Letters of a made-up name's end, without those that could be mistaken for one another.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The media type of a body, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.split(';').next()).unwrap_or_default().trim()
}

/// The one JSON, YAML or protobuf document of a body.
///
/// # Errors
/// There is none, or more than one, or it cannot be read.
pub(super) fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Value, Problem> {
    if media_type(headers) == "application/vnd.kubernetes.protobuf" {
        let read = protobuf::read(body);
        return read.map_err(|why| Problem::bad_request(format!("body is not understood: {why}")));
    }
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("body is not UTF-8"))?;
    if media_type(headers).ends_with("json") {
        let parsed = serde_json::from_str(text);
        return parsed.map_err(|error| Problem::bad_request(format!("body is not JSON: {error}")));
    }
    let mut all = documents(text)?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(Problem::bad_request("a request holds one document")),
    }
}

/// Fills the path's namespace in, if it has one, and a name if the client wants one made up; path and document must
/// agree.
///
/// # Errors
/// They do not.
pub(super) fn place(
    document: &mut Value,
    namespace: &str,
    name: Option<&str>,
) -> Result<(), Problem> {
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    match metadata.get("namespace") {
        // In none itself: anything else is refused by its field.
        _ if namespace.is_empty() => {}
        None | Some(Value::Null) => {
            metadata.insert("namespace".to_owned(), Value::from(namespace));
        }
        Some(given) if given == namespace => {}
        Some(given) => {
            let message = format!("metadata.namespace is {given}, the path says {namespace:?}");
            return Err(Problem::bad_request(message));
        }
    }
    let given = metadata.get("name").filter(|given| !given.is_null() && *given != "");
    match (name, given) {
        (Some(name), Some(given)) if given != name => {
            let message = format!("metadata.name is {given}, the path says {name:?}");
            return Err(Problem::bad_request(message));
        }
        (Some(name), None) => _ = metadata.insert("name".to_owned(), Value::from(name)),
        (None, None) => {
            if let Some(prefix) = metadata.get("generateName").and_then(Value::as_str) {
                let made = format!("{prefix}{}", ending());
                metadata.insert("name".to_owned(), Value::from(made));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Five random letters.
fn ending() -> String {
    let mut bytes = [0; 5];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers after boot");
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

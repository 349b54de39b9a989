//! Text → documents: YAML with several documents, JSON, and `kind: List`.

use serde_json::Value;

/// Why a text is not a list of documents.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not YAML (which includes JSON); the text says where.
    #[error("not YAML: {0}")]
    Yaml(String),
    /// A `List` without `items`.
    #[error("document {0}: kind List needs `items`, a list")]
    List(usize),
    /// There is nothing in it.
    #[error("no document found; a Service begins with `apiVersion: serving.knative.dev/v1`")]
    Empty,
}

/// Splits a text into documents. Empty documents are dropped, lists are replaced by their items.
///
/// # Errors
/// [`DocumentError`].
pub fn documents(text: &str) -> Result<Vec<Value>, DocumentError> {
    let parsed: Result<Vec<Value>, _> = serde_saphyr::from_multiple(text);
    let parsed = parsed.map_err(|error| DocumentError::Yaml(error.to_string()))?;
    let mut found = Vec::with_capacity(parsed.len());
    for (at, document) in parsed.into_iter().enumerate() {
        match document {
            Value::Null => {}
            Value::Object(mut object) if object.get("kind").is_some_and(|k| k == "List") => {
                match object.remove("items") {
                    Some(Value::Array(items)) => found.extend(items),
                    _ => return Err(DocumentError::List(at + 1)),
                }
            }
            other => found.push(other),
        }
    }
    if found.is_empty() { Err(DocumentError::Empty) } else { Ok(found) }
}

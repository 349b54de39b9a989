//! `serving.knative.dev/v1` Services: list, read, create, replace, delete.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::BytesRejection;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::State;
use super::objects;
use super::status::Problem;
use crate::admission::documents;
use crate::services::Mode;

type Named = Path<(String, String)>;

/// `GET …/services` of all namespaces.
pub(super) async fn list_all(shared: State) -> Json<Value> {
    list_of(&shared, None)
}

/// `GET …/services` of one namespace.
pub(super) async fn list(shared: State, Path(namespace): Path<String>) -> Json<Value> {
    list_of(&shared, Some(&namespace))
}

fn list_of(shared: &State, namespace: Option<&str>) -> Json<Value> {
    let entries = shared.services.catalog.list(namespace);
    let newest = entries.iter().map(|entry| entry.stored.resource_version).max().unwrap_or(0);
    let items: Vec<Value> =
        entries.iter().map(|entry| objects::service(&shared.services, entry)).collect();
    Json(json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "ServiceList",
        "metadata": {"resourceVersion": newest.to_string()},
        "items": items,
    }))
}

/// `GET …/services/{name}`.
pub(super) async fn read(
    shared: State,
    Path((namespace, name)): Named,
) -> Result<Json<Value>, Problem> {
    let entry = shared.services.catalog.get(&namespace, &name);
    let entry = entry.ok_or_else(|| Problem::not_found(&name))?;
    Ok(Json(objects::service(&shared.services, &entry)))
}

/// `POST …/services`.
pub(super) async fn create(
    shared: State,
    Path(namespace): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let document = read_document(&headers, &body?, &namespace, None)?;
    let (entry, _) = shared.services.put(&document, Mode::Create).await?;
    Ok((StatusCode::CREATED, Json(objects::service(&shared.services, &entry))))
}

/// `PUT …/services/{name}`.
pub(super) async fn replace(
    shared: State,
    Path((namespace, name)): Named,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let document = read_document(&headers, &body?, &namespace, Some(&name))?;
    let (entry, _) = shared.services.put(&document, Mode::Replace).await?;
    Ok(Json(objects::service(&shared.services, &entry)))
}

/// `DELETE …/services/{name}`.
pub(super) async fn remove(
    shared: State,
    Path((namespace, name)): Named,
) -> Result<Json<Value>, Problem> {
    let entry = shared.services.remove(&namespace, &name).await?;
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "group": "serving.knative.dev",
            "kind": "services",
            "name": name,
            "uid": entry.stored.uid,
        },
    })))
}

/// The one document of a body, with the path's namespace filled in; path and document must agree.
fn read_document(
    headers: &HeaderMap,
    body: &[u8],
    namespace: &str,
    name: Option<&str>,
) -> Result<Value, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("body is not UTF-8"))?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut document = if kind.is_some_and(|kind| kind.starts_with("application/json")) {
        let parsed = serde_json::from_str(text);
        parsed.map_err(|error| Problem::bad_request(format!("body is not JSON: {error}")))?
    } else {
        let mut all = documents(text)?;
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => one,
            _ => return Err(Problem::bad_request("a request holds one document")),
        }
    };
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Ok(document);
    };
    match metadata.get("namespace") {
        None | Some(Value::Null) => {
            metadata.insert("namespace".to_owned(), Value::from(namespace));
        }
        Some(given) if given == namespace => {}
        Some(given) => {
            let message = format!("metadata.namespace is {given}, the path says {namespace:?}");
            return Err(Problem::bad_request(message));
        }
    }
    if let (Some(name), Some(given)) = (name, metadata.get("name"))
        && given != name
    {
        let message = format!("metadata.name is {given}, the path says {name:?}");
        return Err(Problem::bad_request(message));
    }
    Ok(document)
}

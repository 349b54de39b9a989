//! Deleting objects: one, or all of a collection that a selector names.
//!
//! # Source
//! Kubernetes API reference, `DeleteOptions`.

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::document::parse;
use super::resources::{all, find, key};
use super::shape::Shape;
use super::status::Problem;
use super::write::{Body, Named, Placed, Request, markable};
use super::{Shared, State};
use crate::data::DataKey;
use crate::inputs::DataKind;
use crate::kind::Kind;
use crate::services::{ChangeError, Removal, Seen};

/// `DELETE` of one object.
pub(super) async fn one(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = markable(&plural, &call.uri)?;
    let (namespace, name) = (namespace.as_str(), name.as_str());
    delete(&Request { shared: &shared, kind, namespace, name, call: &call }, &body?).await
}

/// `DELETE` of one namespace, with all that is in it.
pub(super) async fn namespace(
    shared: State,
    Path(name): Path<String>,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let (kind, name) = (Kind::Namespace, name.as_str());
    delete(&Request { shared: &shared, kind, namespace: "", name, call: &call }, &body?).await
}

/// `DELETE` of a collection: every object that the selectors name, one after another. What it has
/// come to when one cannot be deleted is deleted.
pub(super) async fn collection(
    shared: State,
    Path((namespace, plural)): Placed,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = markable(&plural, &call.uri)?;
    let selector = call.query.selector()?;
    let namespace = namespace.as_str();
    let mut request = Request { shared: &shared, kind, namespace, name: "", call: &call };
    let options = options(&request, &body?)?;
    let keep_snapshots = keeps_snapshots(kind, &call)?;
    let removal =
        Removal { dry_run: is_dry(&request, &options)?, keep_snapshots, ..Removal::default() };
    expect_cascade(kind, &options, &call)?;
    shared.services.settle().await;
    let mut items = all(&shared, kind, Some(namespace));
    items.retain(|object| selector.matches(object));
    // Parts of a service go with it, and not without it.
    items.retain(|object| shared.services.expect_free(kind, namespace, key(object).1).is_ok());
    for object in &items {
        request.name = key(object).1;
        match remove(&request, removal.clone()).await {
            // Somebody was quicker.
            Ok(()) | Err(ChangeError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let version = shared.services.changes.version().to_string();
    let (shape, metadata) = (Shape::wanted(&call.headers), json!({"resourceVersion": version}));
    Ok(Json(shape.list(kind, items, &metadata, &call.query.include_object)).into_response())
}

async fn delete(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let Request { shared, kind, namespace, name, call } = *request;
    let options = options(request, body)?;
    let text = |pointer| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let seen =
        Seen { version: text("/preconditions/resourceVersion"), uid: text("/preconditions/uid") };
    let keep_snapshots = keeps_snapshots(kind, call)?;
    let removal = Removal { seen, dry_run: is_dry(request, &options)?, keep_snapshots };
    expect_cascade(kind, &options, call)?;
    shared.services.settle().await;
    let found = find(shared, kind, namespace, name);
    let found = found.ok_or_else(|| Problem::not_found(kind, name))?;
    request.expect_free()?;
    remove(request, removal).await?;
    Ok(Json(json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {
            "group": kind.group(),
            "kind": kind.plural(),
            "name": name,
            "uid": found.pointer("/metadata/uid"),
        },
    }))
    .into_response())
}

async fn remove(request: &Request<'_>, removal: Removal) -> Result<(), ChangeError> {
    let Request { shared, kind, namespace, name, .. } = *request;
    let Shared { services, .. } = shared;
    if let Some(data) = DataKind::of(kind) {
        return services.remove_data(DataKey::new(data, namespace, name), removal).await;
    }
    match kind {
        Kind::Namespace => services.remove_namespace(name, removal).await,
        Kind::Revision => services.remove_revision((namespace, name), removal).await,
        Kind::Broker | Kind::Trigger | Kind::Route => {
            services.remove_object(kind, (namespace, name), removal).await
        }
        _ => services.remove(kind, (namespace, name), removal).await,
    }
}

/// kubectl says JSON, client-go may say nothing.
fn options(request: &Request<'_>, body: &Bytes) -> Result<Value, Problem> {
    if body.is_empty() { Ok(Value::Null) } else { parse(&request.call.headers, body) }
}

/// Whether nothing is to be changed, as the body or the query says.
fn is_dry(request: &Request<'_>, options: &Value) -> Result<bool, Problem> {
    let asked = request.call.query.dry_run()?;
    match options.get("dryRun") {
        None | Some(Value::Null) => Ok(asked),
        Some(Value::Array(list)) if list.iter().all(|one| one == "All") => {
            Ok(asked || !list.is_empty())
        }
        Some(other) => Err(Problem::bad_request(format!("dryRun is {other}, it can be [\"All\"]"))),
    }
}

/// Whether snapshots outlive what is deleted. It means nothing to most kinds.
fn keeps_snapshots(kind: Kind, call: &Call) -> Result<bool, Problem> {
    let keeps = call.query.keep_snapshots()?;
    if keeps && kind == Kind::Revision {
        return Err(Problem::bad_request(
            "keepSnapshots is for a Service, a Configuration or a Namespace; a revision's snapshots go with it"
                .to_owned(),
        ));
    }
    Ok(keeps)
}

/// Whether what an object has made may go with it, as it always does here.
fn expect_cascade(kind: Kind, options: &Value, call: &Call) -> Result<(), Problem> {
    let refused =
        |message: String| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    let policy = options.get("propagationPolicy").and_then(Value::as_str);
    let policy = policy.unwrap_or(&call.query.propagation_policy);
    let orphan = options.get("orphanDependents") == Some(&Value::Bool(true));
    let makes = matches!(kind, Kind::Service | Kind::Configuration | Kind::Namespace);
    match policy {
        "Orphan" | "" if makes && (orphan || policy == "Orphan") => refused(format!(
            "propagationPolicy: Orphan is not supported for {}: what it has made goes with it",
            kind.plural()
        )),
        "" | "Background" | "Foreground" | "Orphan" => Ok(()),
        other => refused(format!(
            "propagationPolicy: {other:?} is not supported, it can be Background or Foreground"
        )),
    }
}

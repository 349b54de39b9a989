//! Changing objects: create, replace, patch, delete.
//!
//! Clients make services, configurations, routes, brokers, triggers, config maps and secrets;
//! revisions come of configurations, and configurations and routes also of services.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::apply::{self, Conflicts};
use super::call::Call;
use super::document::{media_type, parse, place};
use super::resources::{find, kind_of_path};
use super::shape::Shape;
use super::status::Problem;
use super::{Shared, State};
use crate::data::DataKey;
use crate::document::Document;
use crate::inputs::DataKind;
use crate::kind::Kind;
use crate::objects;
use crate::services::{ChangeError, Mode, Seen, Wish};

/// How often a patch is tried again on what another client has made of the object.
const TRIES: usize = 5;

/// Operations in a JSON patch.
const MOST_OPERATIONS: usize = 1000;

/// Values in an object that copies have been made in.
const MOST_VALUES: usize = 20_000;

/// Bytes of text in such an object.
const MOST_BYTES: usize = 8 << 20;

type Body = Result<Bytes, BytesRejection>;
type Placed = Path<(String, String)>;
type Named = Path<(String, String, String)>;

/// What is asked of one object.
struct Request<'a> {
    shared: &'a Shared,
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
    call: &'a Call,
}

impl Request<'_> {
    fn reply(&self, status: StatusCode, object: Value) -> Response {
        let shape = Shape::wanted(&self.call.headers);
        let shown = shape.one(self.kind, object, &self.call.query.include_object);
        (status, Json(shown)).into_response()
    }

    /// Puts a document; says what the object is then, and whether there was none.
    async fn put(&self, document: &Value, wish: Wish) -> Result<(Value, bool), ChangeError> {
        let services = &self.shared.services;
        if let Some(kind) = DataKind::of(self.kind) {
            let (object, new) = services.put_data(kind, document, wish).await?;
            return Ok((objects::data(&object), new));
        }
        if !matches!(self.kind, Kind::Service | Kind::Configuration) {
            return services.put_object(self.kind, document, wish).await;
        }
        let (entry, new) = services.put(self.kind, document, wish).await?;
        let object = objects::of_service(self.kind, &services.catalog, &entry);
        Ok((object.unwrap_or_default(), new))
    }

    /// Whether it is no service's.
    fn expect_free(&self) -> Result<(), ChangeError> {
        self.shared.services.expect_free(self.kind, self.namespace, self.name)
    }

    /// How a document is to be put in the place of an object: the fields that it changes become
    /// the client's.
    fn wish(&self, live: Option<&Value>, document: &Value) -> Result<Wish, Problem> {
        tellable(document)?;
        let now = objects::seconds(Timestamp::now());
        let managed = apply::update(live, document, &self.call.manager()?, &now);
        Ok(Wish {
            mode: if live.is_some() { Mode::Replace } else { Mode::Create },
            dry_run: self.call.query.dry_run()?,
            managed: Document::of(&keep_times(live, managed)),
        })
    }
}

/// Refuses a document before its fields are told apart, if that would take too much.
fn tellable(document: &Value) -> Result<(), Problem> {
    if apply::is_tellable(document) {
        return Ok(());
    }
    let message = "the document is too deep, or has too many fields with too long names";
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message))
}

/// The kind of a path, if clients may write it.
fn writable(plural: &str, uri: &Uri) -> Result<Kind, Problem> {
    let kind = kind_of_path(plural, uri)?;
    let message = match kind {
        Kind::Service
        | Kind::Configuration
        | Kind::Route
        | Kind::Broker
        | Kind::Trigger
        | Kind::ConfigMap
        | Kind::Secret => return Ok(kind),
        Kind::Revision => {
            "revisions are made by configurations; change the Service or the Configuration instead"
                .to_owned()
        }
        Kind::Pod | Kind::Namespace | Kind::Event => {
            format!("{} are the node's own and cannot be changed by clients", kind.plural())
        }
    };
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message))
}

/// `POST` of one of Knative's kinds.
pub(super) async fn create(
    shared: State,
    Path((namespace, plural)): Placed,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = writable(&plural, &call.uri)?;
    let request = Request { shared: &shared, kind, namespace: &namespace, name: "", call: &call };
    let mut document = parse(&call.headers, &body?)?;
    place(&mut document, &namespace, None)?;
    let (object, _) = request.put(&document, request.wish(None, &document)?).await?;
    Ok(request.reply(StatusCode::CREATED, object))
}

/// `PUT` of one of Knative's kinds.
pub(super) async fn replace(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = writable(&plural, &call.uri)?;
    let (namespace, name) = (namespace.as_str(), name.as_str());
    let request = Request { shared: &shared, kind, namespace, name, call: &call };
    let document = parse(&call.headers, &body?)?;
    edit(&request, |object| {
        let version = object.pointer("/metadata/resourceVersion").cloned();
        *object = document.clone();
        let given = object.pointer("/metadata/resourceVersion");
        let has_version = given.is_some_and(|given| !given.is_null() && given != "");
        if let Some(metadata) = object.get_mut("metadata").filter(|found| found.is_object())
            && let Some(version) = version.filter(|_| !has_version)
        {
            // What it is compared with is what it replaces.
            metadata["resourceVersion"] = version;
        }
        Ok(has_version)
    })
    .await
}

/// `PATCH` of one of Knative's kinds.
pub(super) async fn patch(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = writable(&plural, &call.uri)?;
    let (namespace, name) = (namespace.as_str(), name.as_str());
    apply_patch(&Request { shared: &shared, kind, namespace, name, call: &call }, &body?).await
}

/// A merge patch, a strategic one (which is the same where there are no lists), a JSON patch, or
/// server-side apply.
async fn apply_patch(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let headers = &request.call.headers;
    match media_type(headers) {
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            server_side_apply(request, body).await
        }
        "application/strategic-merge-patch+json" if DataKind::of(request.kind).is_some() => {
            let patch = parse(headers, body)?;
            if has_directive(&patch) {
                let message = "directives of a strategic merge patch ($patch, $retainKeys …) are \
                               not supported; use a merge patch";
                return Err(Problem::bad_request(message));
            }
            merge(request, &patch).await
        }
        "application/merge-patch+json" => merge(request, &parse(headers, body)?).await,
        "application/json-patch+json" => {
            let unreadable =
                |error| Problem::bad_request(format!("body is no JSON patch: {error}"));
            let patch: json_patch::Patch = serde_json::from_slice(body).map_err(unreadable)?;
            if patch.0.len() > MOST_OPERATIONS {
                let message = format!("the patch has more than {MOST_OPERATIONS} operations");
                return Err(Problem::bad_request(message));
            }
            edit(request, |object| {
                let unfit = |error: &dyn std::fmt::Display| {
                    let message = format!("the patch cannot be applied: {error}");
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
                };
                for operation in &patch.0 {
                    let applied = json_patch::patch(object, std::slice::from_ref(operation));
                    applied.map_err(|error| unfit(&error))?;
                    // A copy may double what there is, in number and in depth; whatever is put
                    // below something else is deeper than it was.
                    let fits = match operation {
                        json_patch::PatchOperation::Copy(_) => is_moderate(object, 0),
                        json_patch::PatchOperation::Test(_)
                        | json_patch::PatchOperation::Remove(_) => true,
                        other => {
                            let path = other.path();
                            let put = object.pointer(path.as_str()).unwrap_or(object);
                            is_moderate(put, path.count())
                        }
                    };
                    if !fits {
                        return Err(unfit(&"it makes the object too large or too deep"));
                    }
                }
                Ok(false)
            })
            .await
        }
        other => {
            let message = format!(
                "the body of the request was in an unknown format - {other:?}: accepted media \
                 types include application/json-patch+json, application/merge-patch+json, \
                 application/apply-patch+yaml"
            );
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(Problem::new(status, "UnsupportedMediaType", message))
        }
    }
}

async fn merge(request: &Request<'_>, patch: &Value) -> Result<Response, Problem> {
    edit(request, |object| {
        json_patch::merge(object, patch);
        Ok(patch.pointer("/metadata/resourceVersion").is_some())
    })
    .await
}

/// Whether a strategic merge patch says more than a merge patch could.
fn has_directive(patch: &Value) -> bool {
    patch.as_object().is_some_and(|object| {
        object.iter().any(|(name, value)| name.starts_with('$') || has_directive(value))
    })
}

/// Whether what is so deep in an object is no larger and no deeper than any that is meant.
fn is_moderate(object: &Value, depth: usize) -> bool {
    let (mut left, mut seen, mut bytes) = (vec![(object, depth)], 0, 0);
    while let Some((value, depth)) = left.pop() {
        seen += 1;
        if seen > MOST_VALUES || bytes > MOST_BYTES || depth > crate::admission::DEEPEST {
            return false;
        }
        match value {
            Value::Array(list) => left.extend(list.iter().map(|one| (one, depth + 1))),
            Value::Object(map) => {
                bytes += map.keys().map(String::len).sum::<usize>();
                left.extend(map.values().map(|one| (one, depth + 1)));
            }
            Value::String(text) => bytes += text.len(),
            _ => {}
        }
    }
    true
}

/// Reads the object, changes it, and puts it back, again if another client was quicker, unless the
/// change itself names a version.
async fn edit(
    request: &Request<'_>,
    change: impl Fn(&mut Value) -> Result<bool, Problem>,
) -> Result<Response, Problem> {
    let mut tries = 0;
    loop {
        tries += 1;
        request.shared.services.settle().await;
        let found = find(request.shared, request.kind, request.namespace, request.name);
        let found = found.ok_or_else(|| Problem::not_found(request.kind, request.name))?;
        request.expect_free()?;
        let mut object = found.clone();
        let has_version = change(&mut object)?;
        place(&mut object, request.namespace, Some(request.name))?;
        let wish = request.wish(Some(&found), &object)?;
        match request.put(&object, wish).await {
            Ok((object, _)) => return Ok(request.reply(StatusCode::OK, object)),
            Err(ChangeError::Conflict { .. }) if !has_version && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn server_side_apply(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    if request.call.query.field_manager.is_empty() {
        return Err(Problem::bad_request("fieldManager is required for apply"));
    }
    let manager = request.call.manager()?;
    let mut wanted = parse(&request.call.headers, body)?;
    tellable(&wanted)?;
    place(&mut wanted, request.namespace, Some(request.name))?;
    let has_version = wanted.pointer("/metadata/resourceVersion").is_some();
    let mut tries = 0;
    loop {
        tries += 1;
        request.shared.services.settle().await;
        let live = find(request.shared, request.kind, request.namespace, request.name);
        request.expect_free()?;
        let now = objects::seconds(Timestamp::now());
        let applied =
            apply::apply(live.as_ref(), &wanted, &manager, request.call.query.force(), &now);
        let (object, managed) = applied.map_err(|conflicts| conflicting(request, &conflicts))?;
        let wish = Wish {
            mode: if live.is_some() { Mode::Replace } else { Mode::Create },
            dry_run: request.call.query.dry_run()?,
            managed: Document::of(&keep_times(live.as_ref(), managed)),
        };
        match request.put(&object, wish).await {
            Ok((object, new)) => {
                let status = if new { StatusCode::CREATED } else { StatusCode::OK };
                return Ok(request.reply(status, object));
            }
            Err(ChangeError::Conflict { .. } | ChangeError::Exists { .. })
                if !has_version && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// An entry whose fields are what they were keeps its time, so that nothing has changed.
fn keep_times(live: Option<&Value>, mut managed: Value) -> Value {
    let before = live.and_then(|live| live.pointer("/metadata/managedFields"));
    let before = before.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for entry in managed.as_array_mut().into_iter().flatten() {
        let same = before.iter().find(|old| {
            ["manager", "operation", "fieldsV1"].iter().all(|field| old[field] == entry[field])
        });
        if let Some(time) = same.and_then(|old| old.get("time")) {
            entry["time"] = time.clone();
        }
    }
    managed
}

fn conflicting(request: &Request<'_>, conflicts: &Conflicts) -> Problem {
    let causes = conflicts.0.iter().map(|(manager, field)| {
        json!({
            "reason": "FieldManagerConflict",
            "message": format!("conflict with {manager:?}"),
            "field": format!(".{field}"),
        })
    });
    let causes: Vec<Value> = causes.collect();
    let fields: Vec<String> =
        conflicts.0.iter().map(|(manager, field)| format!(".{field} ({manager})")).collect();
    let message = format!(
        "Apply failed with {} conflict(s): {}; use force to take the fields over",
        fields.len(),
        fields.join(", ")
    );
    Problem::new(StatusCode::CONFLICT, "Conflict", message)
        .about(request.kind, request.name)
        .with_causes(causes)
}

/// `DELETE` of one of Knative's kinds.
pub(super) async fn remove(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = kind_of_path(&plural, &call.uri)?;
    if kind != Kind::Revision {
        writable(&plural, &call.uri)?;
    }
    let (namespace, name) = (namespace.as_str(), name.as_str());
    delete(&Request { shared: &shared, kind, namespace, name, call: &call }, &body?).await
}

async fn delete(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let Request { shared, kind, namespace, name, call } = *request;
    // kubectl says JSON, client-go may say nothing.
    let options = if body.is_empty() { Value::Null } else { parse(&call.headers, body)? };
    let text = |pointer| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let seen =
        Seen { version: text("/preconditions/resourceVersion"), uid: text("/preconditions/uid") };
    let services = &shared.services;
    services.settle().await;
    let found = find(shared, kind, namespace, name);
    let found = found.ok_or_else(|| Problem::not_found(kind, name))?;
    request.expect_free()?;
    if options.pointer("/dryRun/0").is_none() && !call.query.dry_run()? {
        match DataKind::of(kind) {
            Some(data) => {
                services.remove_data(DataKey::new(data, namespace, name), seen).await?;
            }
            None if kind == Kind::Revision => services.remove_revision(namespace, name).await?,
            None if matches!(kind, Kind::Broker | Kind::Trigger | Kind::Route) => {
                services.remove_object(kind, (namespace, name), seen).await?;
            }
            None => _ = services.remove(kind, (namespace, name), seen).await?,
        }
    }
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

/// Any change of `…/status`, which is the node's to say.
pub(super) async fn status_is_ours(uri: Uri) -> Problem {
    let message =
        format!("{}: status is what the node has found, not what clients say", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

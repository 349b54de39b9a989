//! Reading objects of any kind: get, list, watch.

use axum::Json;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use http::Uri;
use serde_json::{Value, json};

use super::call::Call;
use super::query::After;
use super::shape::Shape;
use super::status::Problem;
use super::{Shared, State, watch};
use crate::data::DataKey;
use crate::inputs::{DataKind, Lookup as _};
use crate::kind::Kind;
use crate::objects;

/// The kind of a path.
///
/// # Errors
/// There is none of that name.
pub(super) fn kind(group: &str, plural: &str, uri: &Uri) -> Result<Kind, Problem> {
    let mut all = Kind::ALL.into_iter();
    let found = all.find(|kind| kind.group() == group && kind.plural() == plural);
    found.ok_or_else(|| Problem::no_such_path(uri))
}

const SERVING: &str = "serving.knative.dev";
const EVENTING: &str = "eventing.knative.dev";

/// The kind of a path below `/apis/<group>/`.
///
/// # Errors
/// There is none of that name.
pub(super) fn kind_of_path(plural: &str, uri: &Uri) -> Result<Kind, Problem> {
    let below = uri.path().strip_prefix("/apis/");
    let group = below.and_then(|path| path.split('/').next()).unwrap_or_default();
    kind(group, plural, uri)
}

/// `GET` of one of Knative's kinds in all namespaces.
pub(super) async fn serving_in_all(
    shared: State,
    Path(plural): Path<String>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, (SERVING, &plural), None, call).await
}

/// `GET` of one of the eventing kinds in all namespaces.
pub(super) async fn eventing_in_all(
    shared: State,
    Path(plural): Path<String>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, (EVENTING, &plural), None, call).await
}

/// `GET` of one of the core's kinds in all namespaces.
pub(super) async fn core_in_all(
    shared: State,
    Path(plural): Path<String>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, ("", &plural), None, call).await
}

/// `GET` of one of Knative's kinds in one namespace.
pub(super) async fn serving_in_one(
    shared: State,
    Path((namespace, plural)): Path<(String, String)>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, (SERVING, &plural), Some(namespace), call).await
}

/// `GET` of one of the eventing kinds in one namespace.
pub(super) async fn eventing_in_one(
    shared: State,
    Path((namespace, plural)): Path<(String, String)>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, (EVENTING, &plural), Some(namespace), call).await
}

/// `GET` of one of the core's kinds in one namespace.
pub(super) async fn core_in_one(
    shared: State,
    Path((namespace, plural)): Path<(String, String)>,
    call: Call,
) -> Result<Response, Problem> {
    list(&shared, ("", &plural), Some(namespace), call).await
}

/// `GET` of one object of Knative's kinds, of serving or of eventing.
pub(super) async fn one_of_serving(
    shared: State,
    Path((namespace, plural, name)): Path<(String, String, String)>,
    call: Call,
) -> Result<Response, Problem> {
    let kind = kind_of_path(&plural, &call.uri)?;
    one(&shared, kind, &namespace, &name, &call).await
}

/// `GET` of one object of the core's kinds.
pub(super) async fn one_of_core(
    shared: State,
    Path((namespace, plural, name)): Path<(String, String, String)>,
    call: Call,
) -> Result<Response, Problem> {
    let kind = kind("", &plural, &call.uri)?;
    one(&shared, kind, &namespace, &name, &call).await
}

/// `GET` of all namespaces.
pub(super) async fn namespaces(shared: State, call: Call) -> Result<Response, Problem> {
    list(&shared, ("", Kind::Namespace.plural()), None, call).await
}

/// `GET` of one namespace.
pub(super) async fn namespace(
    shared: State,
    Path(name): Path<String>,
    call: Call,
) -> Result<Response, Problem> {
    one(&shared, Kind::Namespace, "", &name, &call).await
}

async fn one(
    shared: &Shared,
    kind: Kind,
    namespace: &str,
    name: &str,
    call: &Call,
) -> Result<Response, Problem> {
    shared.services.settle().await;
    let object = find(shared, kind, namespace, name);
    let object = object.ok_or_else(|| Problem::not_found(kind, name))?;
    let shape = Shape::wanted(&call.headers);
    Ok(Json(shape.one(kind, object, &call.query.include_object)).into_response())
}

/// One object as it is now.
pub(super) fn find(shared: &Shared, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
    let services = &shared.services;
    let catalog = &services.catalog;
    match kind {
        Kind::Service | Kind::Configuration | Kind::Route => {
            let entry = catalog.get(namespace, name);
            let made = entry.and_then(|entry| objects::of_service(kind, catalog, &entry));
            made.or_else(|| plain(shared, kind, namespace, name))
        }
        Kind::ConfigMap | Kind::Secret => {
            let key = DataKey::new(DataKind::of(kind)?, namespace, name);
            Some(objects::data(services.data.find(&key)?.as_ref()))
        }
        Kind::Broker | Kind::Trigger | Kind::Namespace => plain(shared, kind, namespace, name),
        Kind::Revision | Kind::Pod | Kind::Event => {
            let mut all = all(shared, kind, Some(namespace)).into_iter();
            all.find(|object| object.pointer("/metadata/name").is_some_and(|found| found == name))
        }
    }
}

fn plain(shared: &Shared, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
    let catalog = &shared.services.catalog;
    let object = catalog.objects.get(kind, namespace, name)?;
    Some(objects::plain(catalog, &object))
}

/// Every object of a kind, in the order of namespaces and names.
pub(super) fn all(shared: &Shared, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
    let services = &shared.services;
    let catalog = &services.catalog;
    match kind {
        Kind::Service | Kind::Configuration | Kind::Route => {
            let entries = catalog.list(namespace);
            let made = entries.iter().filter_map(|entry| objects::of_service(kind, catalog, entry));
            let alone = catalog.objects.list(kind, namespace);
            if alone.is_empty() {
                return made.collect();
            }
            let alone = alone.iter().map(|object| objects::plain(catalog, object));
            sorted(made.chain(alone).collect())
        }
        Kind::Revision => {
            let entries = catalog.list(namespace);
            let each = entries.iter().flat_map(|entry| {
                let each = entry.revisions();
                each.map(|(one, standing)| objects::revision(entry, one, standing))
            });
            sorted(each.collect())
        }
        Kind::Pod => sorted(services.pods(namespace)),
        Kind::Event => sorted(services.events(namespace)),
        Kind::ConfigMap | Kind::Secret => {
            let of_kind = DataKind::of(kind).map(|kind| services.data.list(kind, namespace));
            of_kind.unwrap_or_default().iter().map(|one| objects::data(one)).collect()
        }
        Kind::Broker | Kind::Trigger | Kind::Namespace => {
            let objects = catalog.objects.list(kind, namespace);
            objects.iter().map(|object| objects::plain(catalog, object)).collect()
        }
    }
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by(|one, two| key(one).cmp(&key(two)));
    objects
}

/// Namespace and name.
pub(super) fn key(object: &Value) -> (&str, &str) {
    let text = |field| object.pointer(field).and_then(Value::as_str).unwrap_or_default();
    (text("/metadata/namespace"), text("/metadata/name"))
}

/// A list, or from it on a watch.
async fn list(
    shared: &State,
    (group, plural): (&str, &str),
    namespace: Option<String>,
    call: Call,
) -> Result<Response, Problem> {
    let kind = kind(group, plural, &call.uri)?;
    let query = &call.query;
    let shape = Shape::wanted(&call.headers);
    let selector = query.selector()?;
    let namespace = namespace.filter(|_| kind.is_namespaced());
    if query.watch() {
        let scope = watch::Scope { kind, namespace, selector, shape };
        return watch::stream(shared, scope, query).await;
    }
    shared.services.settle().await;
    let after = query.after()?;
    // Read first: what changes meanwhile will be seen twice by one who watches, not missed.
    let mut version = shared.services.changes.version();
    if let Some(After { version: Some(begun), last }) = &after {
        // A watch from the last page on must tell what has changed of the first one.
        let known = shared.services.changes.expect_known(kind, *begun);
        known.map_err(|expired| Problem::expired(&expired, &After::of_now(last).token()))?;
        version = *begun;
    }
    let mut items = all(shared, kind, namespace.as_deref());
    items.retain(|object| selector.matches(object));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(After { last: (namespace, name), .. }) = &after {
        items.retain(|object| key(object) > (namespace, name));
    }
    if items.len() > query.limit() {
        let left = items.len() - query.limit();
        items.truncate(query.limit());
        let (namespace, name) = items.last().map(key).unwrap_or_default();
        let last = (namespace.to_owned(), name.to_owned());
        metadata["continue"] = Value::from(After { version: Some(version), last }.token());
        metadata["remainingItemCount"] = Value::from(left);
    }
    Ok(Json(shape.list(kind, items, &metadata, &query.include_object)).into_response())
}

/// Every object of a scope.
pub(super) fn matching(shared: &Shared, scope: &watch::Scope) -> Vec<Value> {
    let mut items = all(shared, scope.kind, scope.namespace.as_deref());
    items.retain(|object| scope.selector.matches(object));
    items
}

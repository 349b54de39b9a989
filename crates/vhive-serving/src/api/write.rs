//! Changing objects: create, replace, patch.
//!
//! Clients make services, configurations, routes, brokers, triggers, config maps, secrets and
//! namespaces; revisions come of configurations, and configurations and routes also of services: only
//! their labels and annotations can be changed.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{StatusCode, Uri, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::apply::{self, Conflicts};
use super::call::Call;
use super::document::{parse, place};
use super::patch::apply_patch;
use super::resources::{find, kind_of_path};
use super::shape::Shape;
use super::status::Problem;
use super::validation::LeftOut;
use super::{Shared, State};
use crate::document::Document;
use crate::inputs::DataKind;
use crate::kind::Kind;
use crate::objects;
use crate::services::{ChangeError, Mode, Wish};

/// How often a patch is tried again on what another client has made of the object.
const TRIES: usize = 5;

pub(super) type Body = Result<Bytes, BytesRejection>;
pub(super) type Placed = Path<(String, String)>;
pub(super) type Named = Path<(String, String, String)>;

/// What is asked of one object.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) shared: &'a Shared,
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) call: &'a Call,
}

impl Request<'_> {
    fn reply(&self, status: StatusCode, object: Value, left_out: &LeftOut) -> Response {
        let shape = Shape::wanted(&self.call.headers);
        let shown = shape.one(self.kind, object, &self.call.query.include_object);
        let mut response = (status, Json(shown)).into_response();
        for warning in left_out.warnings() {
            response.headers_mut().append(header::WARNING, warning);
        }
        response
    }

    /// The document of a body. Of the core's kinds it need not say of which it is, as in Kubernetes.
    fn read(&self, body: &Bytes) -> Result<Value, Problem> {
        let mut document = parse(&self.call.headers, body)?;
        if self.kind.group().is_empty()
            && let Some(object) = document.as_object_mut()
        {
            for (field, value) in
                [("apiVersion", self.kind.api_version()), ("kind", self.kind.as_str())]
            {
                if object.get(field).is_none_or(|given| given.is_null() || given == "") {
                    object.insert(field.to_owned(), Value::from(value));
                }
            }
        }
        Ok(document)
    }

    fn left_out(&self) -> Result<LeftOut, Problem> {
        Ok(LeftOut::new(self.call.query.validation()?))
    }

    /// Puts a document; says what the object is then, and whether there was none.
    async fn put(&self, document: &Value, wish: Wish) -> Result<(Value, bool), ChangeError> {
        let services = &self.shared.services;
        if self.kind == Kind::Revision || self.expect_free().is_err() {
            return services.put_marks(self.kind, document, wish).await;
        }
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

    /// Puts a document in the place of what there is, without its unknown fields if the client wants
    /// it so.
    async fn put_known(
        &self,
        live: Option<&Value>,
        mut document: Value,
        left_out: &mut LeftOut,
    ) -> Result<Result<(Value, bool), ChangeError>, Problem> {
        loop {
            let wish = self.wish(live, &document)?;
            match self.put(&document, wish).await {
                Err(error) if left_out.leave_out(&error, &mut document) => {}
                done => return Ok(done),
            }
        }
    }

    /// Whether it is no service's.
    pub(super) fn expect_free(&self) -> Result<(), ChangeError> {
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
            "revisions are made by configurations; make a Service or a Configuration instead"
                .to_owned()
        }
        Kind::Namespace => return Err(Problem::no_such_path(uri)),
        Kind::Pod | Kind::Event => {
            format!("{} are the node's own and cannot be changed by clients", kind.plural())
        }
    };
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message))
}

/// `POST` of an object.
pub(super) async fn create(
    shared: State,
    Path((namespace, plural)): Placed,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let (kind, namespace) = (writable(&plural, &call.uri)?, namespace.as_str());
    make(&Request { shared: &shared, kind, namespace, name: "", call: &call }, &body?).await
}

/// `POST` of a namespace.
pub(super) async fn create_namespace(
    shared: State,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = Kind::Namespace;
    make(&Request { shared: &shared, kind, namespace: "", name: "", call: &call }, &body?).await
}

async fn make(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let mut left_out = request.left_out()?;
    let mut document = request.read(body)?;
    place(&mut document, request.namespace, None)?;
    let (object, _) = request.put_known(None, document, &mut left_out).await??;
    Ok(request.reply(StatusCode::CREATED, object, &left_out))
}

/// The kind of a path, if clients may change its objects' metadata and delete them at least.
pub(super) fn markable(plural: &str, uri: &Uri) -> Result<Kind, Problem> {
    match kind_of_path(plural, uri)? {
        Kind::Revision => Ok(Kind::Revision),
        _ => writable(plural, uri),
    }
}

/// `PUT` of an object.
pub(super) async fn replace(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = markable(&plural, &call.uri)?;
    let (namespace, name) = (namespace.as_str(), name.as_str());
    exchange(&Request { shared: &shared, kind, namespace, name, call: &call }, &body?).await
}

/// `PUT` of a namespace.
pub(super) async fn replace_namespace(
    shared: State,
    Path(name): Path<String>,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let (kind, name) = (Kind::Namespace, name.as_str());
    exchange(&Request { shared: &shared, kind, namespace: "", name, call: &call }, &body?).await
}

async fn exchange(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let document = request.read(body)?;
    edit(request, |object| {
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

/// `PATCH` of an object.
pub(super) async fn patch(
    shared: State,
    Path((namespace, plural, name)): Named,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let kind = markable(&plural, &call.uri)?;
    let (namespace, name) = (namespace.as_str(), name.as_str());
    apply_patch(&Request { shared: &shared, kind, namespace, name, call: &call }, &body?).await
}

/// `PATCH` of a namespace.
pub(super) async fn patch_namespace(
    shared: State,
    Path(name): Path<String>,
    call: Call,
    body: Body,
) -> Result<Response, Problem> {
    let (kind, name) = (Kind::Namespace, name.as_str());
    apply_patch(&Request { shared: &shared, kind, namespace: "", name, call: &call }, &body?).await
}

/// Reads the object, changes it, and puts it back, again if another client was quicker, unless the
/// change itself names a version.
pub(super) async fn edit(
    request: &Request<'_>,
    change: impl Fn(&mut Value) -> Result<bool, Problem>,
) -> Result<Response, Problem> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut left_out = request.left_out()?;
        request.shared.services.settle().await;
        let found = find(request.shared, request.kind, request.namespace, request.name);
        let found = found.ok_or_else(|| Problem::not_found(request.kind, request.name))?;
        let mut object = found.clone();
        let has_version = change(&mut object)?;
        place(&mut object, request.namespace, Some(request.name))?;
        match request.put_known(Some(&found), object, &mut left_out).await? {
            Ok((object, _)) => return Ok(request.reply(StatusCode::OK, object, &left_out)),
            Err(ChangeError::Conflict { .. }) if !has_version && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Applies the fields of the body as their manager's.
pub(super) async fn server_side_apply(
    request: &Request<'_>,
    body: &Bytes,
) -> Result<Response, Problem> {
    if request.call.query.field_manager.is_empty() {
        return Err(Problem::bad_request("fieldManager is required for apply"));
    }
    let manager = request.call.manager()?;
    let mut left_out = request.left_out()?;
    let mut wanted = request.read(body)?;
    tellable(&wanted)?;
    place(&mut wanted, request.namespace, Some(request.name))?;
    let has_version = wanted.pointer("/metadata/resourceVersion").is_some();
    let mut tries = 0;
    loop {
        tries += 1;
        request.shared.services.settle().await;
        let live = find(request.shared, request.kind, request.namespace, request.name);
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
                return Ok(request.reply(status, object, &left_out));
            }
            Err(ChangeError::Conflict { .. } | ChangeError::Exists { .. })
                if !has_version && tries < TRIES => {}
            // What is left out is nobody's: the fields are told apart again.
            Err(error) if left_out.leave_out(&error, &mut wanted) => {}
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

/// Any change of `…/status`, which is the node's to say.
pub(super) async fn status_is_ours(uri: Uri) -> Problem {
    let message =
        format!("{}: status is what the node has found, not what clients say", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

//! Errors of the API as Kubernetes tells them: `kind: Status` with reason, code and details.
//!
//! # Source
//! Kubernetes API conventions, "Response Status Kind".

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri, header};
use serde_json::{Value, json};

use crate::admission::{self, DocumentError, Invalid};
use crate::changes::Expired;
use crate::kind::Kind;
use crate::services::ChangeError;
use crate::status::chain;
use crate::store::StoreError;

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
    /// Where a list can go on all the same.
    resume: Option<String>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, reason, message: message.into(), details: Value::Null, resume: None }
    }

    /// It is not the client's fault.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// No or a wrong token.
    pub(super) fn unauthorized() -> Self {
        let message = "missing or wrong bearer token; it is in `api.token` of the node's state \
                       directory";
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// There is no such object.
    pub(super) fn not_found(kind: Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.qualified());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, name)
    }

    /// There is no such service.
    pub(super) fn no_service(name: &str) -> Self {
        Self::not_found(Kind::Service, name)
    }

    /// There is nothing at a path.
    pub(super) fn no_such_path(uri: &Uri) -> Self {
        let message = format!("the server could not find the requested resource: {}", uri.path());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// The pages of a list have become too old; `resume` goes on with what there is now.
    pub(super) fn expired(why: &Expired, resume: &str) -> Self {
        let message = format!(
            "{why}: the list has changed too much since it was begun; list again from the beginning, \
             or use the new continue token to get the rest as it is now"
        );
        let resume = Some(resume.to_owned());
        Self { resume, ..Self::new(StatusCode::GONE, "Expired", message) }
    }

    /// Names the object that it is about.
    pub(super) fn about(mut self, kind: Kind, name: &str) -> Self {
        self.details = json!({"group": kind.group(), "kind": kind.plural(), "name": name});
        self
    }

    /// Adds what led to it, in the form of `details.causes`.
    pub(super) fn with_causes(mut self, causes: Vec<Value>) -> Self {
        self.details["causes"] = Value::from(causes);
        self
    }

    /// The request makes no sense.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let metadata = match self.resume {
            Some(resume) => json!({"continue": resume}),
            None => json!({}),
        };
        let body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.status.as_u16(),
        });
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let message = chain(&error);
        let conflict = StatusCode::CONFLICT;
        match &error {
            ChangeError::Invalid(invalid) => Self::from(invalid.clone()),
            ChangeError::Unfit { kind, name, problems } => {
                let mut told = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
                // By its kind, where other reasons name the resource.
                told.details = json!({"group": kind.group(), "kind": kind.as_str(), "name": name});
                told.with_causes(causes(problems))
            }
            ChangeError::Exists { kind, name } => {
                Self::new(conflict, "AlreadyExists", message).about(*kind, name)
            }
            ChangeError::Taken { kind, name, .. } => {
                Self::new(conflict, "AlreadyExists", message).about(*kind, name)
            }
            ChangeError::Owned { kind, name } => {
                Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
                    .about(*kind, name)
            }
            ChangeError::NotFound { kind, name } => Self::not_found(*kind, name),
            ChangeError::Conflict { kind, name, .. } => {
                Self::new(conflict, "Conflict", message).about(*kind, name)
            }
            ChangeError::Kept { kind, name } => {
                Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(*kind, name)
            }
            ChangeError::InUse(name, _) => {
                Self::new(conflict, "Conflict", message).about(Kind::Revision, name)
            }
            ChangeError::Image { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            }
            ChangeError::Store(
                StoreError::InUse(_)
                | StoreError::Damaged { .. }
                | StoreError::Format { .. }
                | StoreError::Io { .. },
            )
            | ChangeError::Unmarked { .. } => Self::internal(message),
            ChangeError::ShutDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            }
        }
    }
}

fn causes(problems: &[admission::Problem]) -> Vec<Value> {
    let each = problems.iter().map(|problem| {
        json!({
            "reason": problem.kind.as_str(),
            "message": problem.reason,
            "field": problem.path,
        })
    });
    each.collect()
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let details = json!({
            "group": invalid.kind.group(),
            "kind": invalid.kind.as_str(),
            "name": invalid.name,
            "causes": causes(&invalid.problems),
        });
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { details, ..Self::new(status, "Invalid", invalid.to_string()) }
    }
}

impl From<DocumentError> for Problem {
    fn from(error: DocumentError) -> Self {
        Self::bad_request(chain(&error))
    }
}

impl From<BytesRejection> for Problem {
    fn from(error: BytesRejection) -> Self {
        let status = error.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            let message = "the request's body is too long (serving.api.max_body)";
            return Self::new(status, "RequestEntityTooLarge", message);
        }
        Self::bad_request(error.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(error: QueryRejection) -> Self {
        Self::bad_request(error.body_text())
    }
}

/// Any other path.
pub(super) async fn no_such_path(uri: Uri) -> Problem {
    Problem::no_such_path(&uri)
}

/// Another method on a known path.
pub(super) async fn no_such_method(method: http::Method, uri: Uri) -> Problem {
    let message = format!("{method} is not supported on {}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

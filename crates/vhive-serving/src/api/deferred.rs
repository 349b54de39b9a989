//! Asynchronous invocations: how far they have come, and their replies.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::State;
use super::status::Problem;
use crate::deferred::{Deferred, Stage, Told};
use crate::store::StoreError;

/// `GET /vhive/v1/async/{id}`.
pub(super) async fn state(shared: State, Path(id): Path<String>) -> Result<Json<Told>, Problem> {
    let key = id.clone();
    let told = ask(&shared, move |deferred| deferred.told(&key)).await?;
    told.map(Json).ok_or_else(|| unknown(&id))
}

/// `GET …/reply`: as the function gave it; 202 while there is none.
pub(super) async fn reply(shared: State, Path(id): Path<String>) -> Result<Response, Problem> {
    let key = id.clone();
    let kept = ask(&shared, move |deferred| Ok((deferred.reply(&key)?, deferred.told(&key)?)));
    let (head, body) = match kept.await? {
        (Some(kept), _) => kept,
        (None, Some(told)) => {
            let wait = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
            return Ok((StatusCode::ACCEPTED, wait, Json(told)).into_response());
        }
        (None, None) => return Err(unknown(&id)),
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in head.fields {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            response.headers_mut().append(name, value);
        }
    }
    let state = if head.stage == Stage::Done { "done" } else { "failed" };
    response.headers_mut().insert("x-vhive-async", HeaderValue::from_static(state));
    Ok(response)
}

/// `DELETE /vhive/v1/async/{id}`: forgets the reply.
pub(super) async fn forget(shared: State, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let key = id.clone();
    match ask(&shared, move |deferred| deferred.forget(&key)).await? {
        true => Ok(Json(json!({"forgotten": id}))),
        false => Err(unknown(&id)),
    }
}

/// Asks on a thread that may block.
async fn ask<T: Send + 'static>(
    shared: &State,
    question: impl FnOnce(&Deferred) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Problem> {
    let deferred = Arc::clone(&shared.gateway.deferred);
    let answer = tokio::task::spawn_blocking(move || question(&deferred)).await;
    let answer = answer.map_err(|_| Problem::internal("the node is shutting down"))?;
    answer.map_err(|error| Problem::internal(crate::status::chain(&error)))
}

fn unknown(id: &str) -> Problem {
    let message = format!("no asynchronous invocation {id:?} has ended here and been kept");
    Problem::new(StatusCode::NOT_FOUND, "NotFound", message)
}

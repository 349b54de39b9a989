//! `Prefer: respond-async`: the request is kept, and the client told where its reply will be.
//!
//! # Source
//! RFC 7240 §2 and §4.1.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use vhive_api::InvocationId;

use super::field::{Field, lists};
use super::flight::Client;
use super::reply::ReplyBody;
use super::{head, host_of, refusal};
use crate::deferred::{AcceptError, Pending};
use crate::status::GatewayError;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Whether a client wants no answer now.
pub(super) fn is_wanted(parts: &Parts) -> bool {
    let mut all = parts.headers.get_all(PREFER).iter();
    all.any(|value| lists(value.as_bytes(), b"respond-async"))
}

/// Keeps the request in its function's lane; 202 once it is on disk.
pub(super) async fn accept(
    client: &Arc<Client>,
    lane: String,
    (parts, body): (Parts, Incoming),
) -> Response<ReplyBody> {
    let deferred = &client.gateway.deferred;
    let number = client.gateway.next_id();
    let id = InvocationId::from_bits(number);
    let limit = client.gateway.config.head_timeout.0;
    let _busy = client.busy(number, Instant::now() + limit);
    let body = {
        let _turn = match deferred.turn_to_read() {
            Ok(turn) => turn,
            Err(full) => return refusal(&GatewayError::AsyncFull(full.to_string())),
        };
        match tokio::time::timeout(limit, read(body, deferred.config.max_body.0)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return refusal(&error),
            Err(_) => return refusal(&GatewayError::ClientGone),
        }
    };
    let host = host_of(&parts).ok().flatten().unwrap_or_default().to_owned();
    let mut headers = parts.headers;
    head::strip_hop_fields(&mut headers);
    let fields = headers.iter().filter(|(name, _)| {
        let own = [PREFER, header::HOST, header::CONTENT_LENGTH, header::EXPECT];
        !own.contains(name) && Field::of(name.as_str().as_bytes()) != Field::RequestId
    });
    let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let mut fields: Vec<(String, Vec<u8>)> = fields.collect();
    // The gateway will see this node as the client.
    fields.push(("x-forwarded-for".to_owned(), client.address.as_bytes().to_vec()));
    if !fields.iter().any(|(name, _)| name == "x-forwarded-proto") {
        let scheme: &[u8] = if client.secure { b"https" } else { b"http" };
        fields.push(("x-forwarded-proto".to_owned(), scheme.to_vec()));
    }
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let pending = Pending {
        id: id.as_str().to_owned(),
        accepted: Timestamp::now(),
        host,
        method: parts.method.to_string(),
        target: target.to_owned(),
        fields,
        body,
        lane: Some(lane),
        event: None,
    };
    match deferred.accept(vec![pending]).await {
        Ok(()) => accepted(&id),
        Err(full @ AcceptError::Full { .. }) => {
            refusal(&GatewayError::AsyncFull(format!("{full}; serving.async allows no more")))
        }
        Err(error) => refusal(&GatewayError::AsyncStore(crate::status::chain(&error))),
    }
}

fn accepted(id: &InvocationId) -> Response<ReplyBody> {
    let place = format!("/vhive/v1/async/{}", id.as_str());
    let text = json!({"id": id.as_str(), "state": "pending", "result": place}).to_string();
    let mut response = Response::new(ReplyBody::Text(Bytes::from(text + "\n")));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(APPLIED, HeaderValue::from_static("respond-async"));
    if let Ok(place) = HeaderValue::from_str(&place) {
        headers.insert(header::LOCATION, place);
    }
    head::tell_id(headers, id);
    response
}

pub(super) async fn read(mut body: Incoming, most: u64) -> Result<Bytes, GatewayError> {
    let too_large = || GatewayError::BodyTooLarge(vhive_api::Bytes(most));
    if body.size_hint().lower() > most {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| GatewayError::ClientGone)?;
        let Ok(data) = frame.into_data() else { continue };
        if (all.len() + data.len()) as u64 > most {
            return Err(too_large());
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

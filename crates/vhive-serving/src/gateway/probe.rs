//! Probes of the network: the gateway answers them for the functions that it stands before, so that
//! none is started, counted or kept awake by one. A host that nobody answers to stays unknown.
//!
//! # Source
//! Knative Serving, `pkg/queue/health` and `pkg/activator/handler/probe_handler.go`; Knative
//! Networking, `pkg/http/header` and `pkg/http/probe`.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::reply::ReplyBody;

/// Who sends it says with it which part of Knative it wants to hear.
const PROBE: HeaderName = HeaderName::from_static("k-network-probe");

/// What an ingress wants to have back.
const HASH: HeaderName = HeaderName::from_static("k-network-hash");

/// Says that a kubelet sends it, where the `User-Agent` is somebody else's.
const KUBELET: HeaderName = HeaderName::from_static("k-kubelet-probe");

/// How the `User-Agent` of a kubelet's probes begins.
const AGENT: &[u8] = b"kube-probe/";

/// Whether a `User-Agent` is that of a kubelet's probes.
pub(super) fn is_kubelet(agent: &[u8]) -> bool {
    agent.starts_with(AGENT)
}

/// The answer to a probe whose host is known; none if it is a request for the function.
pub(super) fn answer(headers: &HeaderMap) -> Option<Response<ReplyBody>> {
    let agent = headers.get(header::USER_AGENT).is_some_and(|agent| is_kubelet(agent.as_bytes()));
    let (status, text) = match headers.get(PROBE).map(HeaderValue::as_bytes) {
        // The gateway is both.
        Some(b"queue") => (StatusCode::OK, "queue".to_owned()),
        Some(b"activator") => (StatusCode::OK, "activator".to_owned()),
        // An ingress asks whether its last rules are in force; here they always are.
        Some(b"probe") => (StatusCode::OK, String::new()),
        Some(other) if !other.is_empty() => {
            let other = String::from_utf8_lossy(&other[..other.len().min(80)]);
            (StatusCode::BAD_REQUEST, format!("unexpected probe header value: {other}\n"))
        }
        _ if agent || headers.get(KUBELET).is_some_and(|value| !value.is_empty()) => {
            (StatusCode::OK, String::new())
        }
        _ => return None,
    };
    let mut response = Response::new(ReplyBody::Text(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    if let Some(hash) = headers.get(HASH) {
        response.headers_mut().insert(HASH, hash.clone());
    }
    Some(response)
}

//! The gRPC health check, as one unary call on a connection of its own.
//!
//! # Source
//! gRPC, "GRPC Health Checking Protocol" (`grpc.health.v1`) and "gRPC over HTTP2"; Protocol Buffers,
//! "Encoding".

use std::net::SocketAddr;

use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use vhive_sandbox::Deadline;

/// Longest reply that is read, in bytes.
const MOST: usize = 16 << 10;

/// `ServingStatus` in words.
const STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks whether a service serves; the error is what it answered instead.
pub(super) fn check(endpoint: SocketAddr, service: &str, limit: Deadline) -> Result<(), String> {
    let Ok(handle) = Handle::try_current() else { return Err("no runtime to ask in".to_owned()) };
    handle.block_on(async {
        match tokio::time::timeout(limit.left(), ask(endpoint, service)).await {
            Ok(answer) => answer,
            Err(_) => Err("nothing in time".to_owned()),
        }
    })
}

async fn ask(endpoint: SocketAddr, service: &str) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| crate::snapshots::chain(error);
    let stream = TcpStream::connect(endpoint).await.map_err(|error| told(&error))?;
    let shaken = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let shaken = shaken.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{endpoint}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "vhive-probe")
        .body(Full::new(Bytes::from(message(service))));
    let request = request.map_err(|error| told(&error))?;
    let answer = async {
        let reply = sender.send_request(request).await.map_err(|error| told(&error))?;
        let (head, body) = reply.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(format!("HTTP status {}", head.status.as_u16()));
        }
        let body = Limited::new(body, MOST).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let field = |name| {
            let value = trailers.get(name).or_else(|| head.headers.get(name));
            value.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        match field("grpc-status").as_deref() {
            Some("0") => serving(&body.to_bytes()),
            Some(code) => {
                let words = field("grpc-message").unwrap_or_default();
                Err(format!("gRPC status {code} {words}").trim_end().to_owned())
            }
            None => Err("a reply without gRPC status".to_owned()),
        }
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// The request, `HealthCheckRequest { service }`, in its frame.
fn message(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 16);
    if !service.is_empty() {
        message.push(0x0A);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7F).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// Whether a reply, `HealthCheckResponse { status }` in its frame, says `SERVING`.
fn serving(frame: &[u8]) -> Result<(), String> {
    let status = match frame {
        [0, 0, 0, 0, 0] => 0,
        [0, 0, 0, 0, 2, 0x08, status] => usize::from(*status),
        _ => return Err("no HealthCheckResponse".to_owned()),
    };
    match STATUS.get(status) {
        Some(&"SERVING") => Ok(()),
        Some(other) => Err((*other).to_owned()),
        None => Err(format!("status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab"), [0, 0, 0, 0, 4, 0x0A, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 0x2F, 0x0A, 0xAC, 0x02]);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        for (frame, told) in [
            (&[0, 0, 0, 0, 0][..], "UNKNOWN"),
            (&[0, 0, 0, 0, 2, 8, 2], "NOT_SERVING"),
            (&[0, 0, 0, 0, 2, 8, 9], "status 9"),
            (&[1, 0, 0, 0, 2, 8, 1], "no HealthCheckResponse"),
            (&[], "no HealthCheckResponse"),
        ] {
            assert_eq!(serving(frame), Err(told.to_owned()));
        }
    }
}

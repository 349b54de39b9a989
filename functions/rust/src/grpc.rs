//! `helloworld.Greeter/SayHello` and `faas.Executor/Execute`: framing and messages.
//!
//! # Source
//! gRPC over HTTP/2, `PROTOCOL-HTTP2.md`; `helloworld.proto` of the gRPC examples; invitro's `faas.proto`.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use prost::Message as _;

use crate::Function;
use crate::serve::Body;

/// What an invocation of a trace shall do: invitro's `FaasRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Work {
    /// Not looked at.
    #[prost(string, tag = "1")]
    pub message: String,
    /// CPU time to use up, in ms.
    #[prost(uint32, tag = "2")]
    pub runtime_in_milli_sec: u32,
    /// Memory to touch, in MiB.
    #[prost(uint32, tag = "3")]
    pub memory_in_mebi_bytes: u32,
}

/// What it has done: invitro's `FaasReply`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {
    /// Who it was.
    #[prost(string, tag = "1")]
    pub message: String,
    /// From the work's beginning to its end, in µs.
    #[prost(uint32, tag = "2")]
    pub duration_in_micro_sec: u32,
    /// Memory touched, in KiB.
    #[prost(uint32, tag = "3")]
    pub memory_usage_in_kb: u32,
}

/// Codes of the gRPC specification that are used here.
#[derive(Clone, Copy)]
pub(crate) enum Code {
    InvalidArgument = 3,
    ResourceExhausted = 8,
    Unimplemented = 12,
}

/// A failed call.
pub(crate) struct Status(pub(crate) Code, pub(crate) String);

/// Whether the request is a gRPC call.
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Answers one call whose request stream was `frame`.
pub(crate) async fn reply<F: Function>(function: &F, path: &str, frame: Bytes) -> Response<Body> {
    let answer = match path {
        "/faas.Executor/Execute" => execute(function, frame).await,
        _ => say_hello(function, path, frame),
    };
    match answer {
        Ok(message) => {
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let body = Full::new(message).with_trailers(async { Some(Ok(trailers)) });
            with_type(BoxBody::new(body))
        }
        Err(status) => failure(&status),
    }
}

/// A reply that consists of the status alone.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let mut response = with_type(BoxBody::new(Empty::new()));
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(status.0 as u16));
    headers.insert("grpc-message", percent_encoded(&status.1));
    response
}

async fn execute<F: Function>(function: &F, frame: Bytes) -> Result<Bytes, Status> {
    let work = Work::decode(unframed(frame)?)
        .map_err(|error| Status(Code::InvalidArgument, format!("not a FaasRequest: {error}")))?;
    match function.execute(work).await {
        Some(Ok(done)) => Ok(framed(&done)),
        Some(Err(reason)) => Err(Status(Code::InvalidArgument, reason)),
        None => Err(Status(Code::Unimplemented, format!("{} executes no work", F::NAME))),
    }
}

fn say_hello<F: Function>(function: &F, path: &str, frame: Bytes) -> Result<Bytes, Status> {
    let unimplemented = || Status(Code::Unimplemented, format!("{} has no {path}", F::NAME));
    if path != "/helloworld.Greeter/SayHello" {
        return Err(unimplemented());
    }
    let message = unframed(frame)?;
    // HelloRequest and HelloReply are `{ string … = 1 }`, as google.protobuf.StringValue is, which
    // prost maps to String. Unknown fields (vSwarm's metadata) are skipped.
    let name = String::decode(message)
        .map_err(|error| Status(Code::InvalidArgument, format!("not a HelloRequest: {error}")))?;
    let greeting = function.greet(&name).ok_or_else(unimplemented)?;
    Ok(framed(&greeting))
}

fn unframed(mut frame: Bytes) -> Result<Bytes, Status> {
    let invalid = |text: &str| Status(Code::InvalidArgument, text.to_owned());
    let Some((&[compressed, a, b, c, d], _)) = frame.split_first_chunk::<5>() else {
        return Err(invalid("the request has no complete message"));
    };
    if compressed != 0 {
        return Err(Status(Code::Unimplemented, "compression is not supported".to_owned()));
    }
    let message = frame.split_off(5);
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(invalid("the request is not exactly one message"));
    }
    Ok(message)
}

fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("replies are shorter than the body limit"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

fn with_type(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..b' ' | b'\x7f'.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    HeaderValue::from_str(&encoded).expect("only printable ASCII is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_and_written() {
        let frame = framed(&"hi".to_owned());
        assert_eq!(&frame[..], b"\0\0\0\0\x04\x0a\x02hi");
        let message = unframed(frame).ok().expect("it is a frame");
        assert_eq!(String::decode(message).expect("it is a HelloReply"), "hi");
    }

    #[test]
    fn bad_frames_are_refused() {
        for bad in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x01", b"\0\0\0\0\0x", b"\x01\0\0\0\0"] {
            assert!(unframed(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("a%b\né"), "a%25b%0A%C3%A9");
    }
}

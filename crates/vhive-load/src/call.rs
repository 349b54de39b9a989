//! What is sent to whom, and how a reply's body is understood.

use std::str::FromStr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::grpc::GrpcCall;

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// gRPC over it: `helloworld.Greeter/SayHello` or a [`GrpcCall`], or `faas.Executor/Execute` for
    /// work.
    Grpc,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "http1" => Ok(Self::Http1),
            "h2c" | "http2" => Ok(Self::H2c),
            "grpc" => Ok(Self::Grpc),
            _ => Err("known are `http1`, `h2c` and `grpc`".to_owned()),
        }
    }
}

/// Where requests of one kind go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Shown in rows, and the `Host` of its requests.
    pub hostname: String,
    /// Where to connect, `host:port`.
    pub address: String,
    /// What it speaks.
    pub protocol: Protocol,
}

/// What is sent where no work is asked for.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Method of HTTP requests.
    pub method: Method,
    /// Path and query likewise.
    pub path: String,
    /// More fields likewise.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body likewise; of a greeting, the name.
    pub body: Bytes,
    /// Of gRPC, a call other than a greeting.
    pub call: Option<GrpcCall>,
}

impl Default for Plain {
    fn default() -> Self {
        let (method, path) = (Method::GET, "/".to_owned());
        Self { method, path, headers: Vec::new(), body: Bytes::new(), call: None }
    }
}

/// What a function shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// CPU time, in milliseconds.
    pub runtime_ms: u32,
    /// Memory, in mebibytes.
    pub memory_mib: u32,
}

/// What a function says that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Did {
    /// How long it took there, in microseconds.
    pub duration_us: Option<u64>,
    /// Memory that it used, in KiB.
    pub memory_kib: Option<u64>,
    /// How much longer than asked for its work took, in per cent of CPU time.
    pub drift_percent: Option<f64>,
}

/// # Source
/// invitro `faas.proto`, vSwarm `helloworld.proto`.
pub(crate) mod message {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct HelloRequest {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct HelloReply {
        #[prost(string, tag = "1")]
        pub(crate) message: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct FaasRequest {
        #[prost(string, tag = "1")]
        pub(crate) message: String,
        #[prost(uint32, tag = "2")]
        pub(crate) runtime_in_milli_sec: u32,
        #[prost(uint32, tag = "3")]
        pub(crate) memory_in_mebi_bytes: u32,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct FaasReply {
        #[prost(string, tag = "1")]
        pub(crate) message: String,
        #[prost(uint32, tag = "2")]
        pub(crate) duration_in_micro_sec: u32,
        #[prost(uint32, tag = "3")]
        pub(crate) memory_usage_in_kb: u32,
    }
}

/// A message in gRPC's framing.
///
/// # Source
/// gRPC over HTTP/2, `PROTOCOL-HTTP2.md`.
pub(crate) fn frame(message: &impl prost::Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(5 + encoded.len());
    frame.push(0);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&encoded);
    frame.into()
}

fn unframed<M: prost::Message + Default>(frame: &[u8]) -> Option<M> {
    let (0, rest) = frame.split_first().map(|(flag, rest)| (*flag, rest))? else { return None };
    M::decode(rest.get(4..)?).ok()
}

/// The path and body of a gRPC call.
pub(crate) fn grpc_call(plain: &Plain, work: Option<Work>) -> (&str, Bytes) {
    match (work, &plain.call) {
        (None, Some(call)) => (&call.path, call.body.clone()),
        (None, None) => {
            let name = String::from_utf8_lossy(&plain.body).into_owned();
            let name = if name.is_empty() { "world".to_owned() } else { name };
            ("/helloworld.Greeter/SayHello", frame(&message::HelloRequest { name }))
        }
        (Some(work), _) => {
            let request = message::FaasRequest {
                message: String::new(),
                runtime_in_milli_sec: work.runtime_ms,
                memory_in_mebi_bytes: work.memory_mib,
            };
            ("/faas.Executor/Execute", frame(&request))
        }
    }
}

/// The body that asks for work over HTTP, as `functions/sleep` takes it.
pub(crate) fn work_json(work: Work) -> Bytes {
    let Work { runtime_ms, memory_mib } = work;
    format!("{{\"cpu_ms\":{runtime_ms},\"memory_mib\":{memory_mib}}}").into()
}

/// Reads from a reply what the function says of its work; what it does not say stays absent.
pub(crate) fn did(protocol: Protocol, has_work: bool, body: &[u8]) -> Did {
    match (protocol, has_work) {
        (Protocol::Grpc, true) => {
            unframed::<message::FaasReply>(body).map_or_else(Did::default, |reply| Did {
                duration_us: Some(reply.duration_in_micro_sec.into()),
                memory_kib: Some(reply.memory_usage_in_kb.into()),
                drift_percent: drift(&reply.message),
            })
        }
        (Protocol::Grpc, false) => {
            let text = unframed::<message::HelloReply>(body).unwrap_or_default().message;
            Did { duration_us: last_number(&text), ..Did::default() }
        }
        (_, true) => {
            #[derive(Default, Deserialize)]
            #[serde(default)]
            struct Slept {
                measured_wall_ms: Option<f64>,
                touched_bytes: Option<u64>,
                drift_percent: Option<f64>,
            }
            let slept: Slept = serde_json::from_slice(body).unwrap_or_default();
            let whole = |ms: f64| crate::arrivals::whole_nanos(ms * 1e6) / 1000;
            Did {
                duration_us: slept.measured_wall_ms.map(whole),
                memory_kib: slept.touched_bytes.map(|bytes| bytes >> 10),
                drift_percent: slept.drift_percent,
            }
        }
        (_, false) => {
            Did { duration_us: last_number(&String::from_utf8_lossy(body)), ..Did::default() }
        }
    }
}

/// The drift that `functions/trace-func` puts into the words of its reply: `… - drift +1.25 %`.
fn drift(text: &str) -> Option<f64> {
    let number = text.rsplit_once("drift ")?.1.strip_suffix('%')?.trim();
    number.parse().ok().filter(|drift: &f64| drift.is_finite())
}

/// The microseconds that vSwarm's relay appends to a reply, after `|` or white space.
///
/// # Source
/// vSwarm `tools/relay` (appends `|<us>`), `tools/invoker` (reads the last word).
fn last_number(text: &str) -> Option<u64> {
    let words = text.trim_end().rsplit(|c: char| c == '|' || c.is_whitespace());
    words.take(1).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_functions_say_of_themselves_is_read() {
        let hello = |text: &str| frame(&message::HelloReply { message: text.to_owned() });
        for (text, us) in [("Hello|1234", Some(1234)), ("Hello 55\n", Some(55)), ("Hello", None)] {
            assert_eq!(did(Protocol::Grpc, false, &hello(text)).duration_us, us, "{text}");
            assert_eq!(did(Protocol::Http1, false, text.as_bytes()).duration_us, us, "{text}");
        }
        let reply = message::FaasReply {
            message: "x".to_owned(),
            duration_in_micro_sec: 7,
            memory_usage_in_kb: 8,
        };
        let said = did(Protocol::Grpc, true, &frame(&reply));
        assert_eq!((said.duration_us, said.memory_kib), (Some(7), Some(8)));
        let slept = br#"{"measured_wall_ms":50.25,"touched_bytes":2048,"cpu_ms":50}"#;
        let said = did(Protocol::H2c, true, slept);
        assert_eq!((said.duration_us, said.memory_kib), (Some(50_250), Some(2)));
        for broken in [&b""[..], b"\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x04\x0a\xff"] {
            for (protocol, work) in [(Protocol::Grpc, true), (Protocol::Grpc, false)] {
                assert_eq!(did(protocol, work, broken), Did::default());
            }
            assert_eq!(did(Protocol::Http1, true, broken), Did::default());
        }
    }

    #[test]
    fn how_far_off_a_functions_work_was_is_read() {
        let reply =
            |text: &str| message::FaasReply { message: text.to_owned(), ..Default::default() };
        for (text, wanted) in [
            ("OK - trace-func - drift +1.25 %", Some(1.25)),
            ("OK - trace-func - drift -12.50 %", Some(-12.5)),
            ("OK - trace-func", None),
            ("drift %", None),
            ("drift inf %", None),
        ] {
            let said = did(Protocol::Grpc, true, &frame(&reply(text)));
            assert_eq!(said.drift_percent, wanted, "{text}");
        }
        let said = did(Protocol::Http1, true, br#"{"measured_wall_ms":5,"drift_percent":-2.5}"#);
        assert_eq!(said.drift_percent, Some(-2.5));
        assert_eq!(did(Protocol::Http1, true, br#"{"measured_wall_ms":5}"#).drift_percent, None);
    }

    #[test]
    fn a_greeting_has_its_frame() {
        let plain = Plain::default();
        let (path, body) = grpc_call(&plain, None);
        assert_eq!(path, "/helloworld.Greeter/SayHello");
        assert_eq!(&body[..], b"\0\0\0\0\x07\x0a\x05world");
    }
}

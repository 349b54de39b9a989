//! Any gRPC method, with a body in JSON: its messages are known from a descriptor set, or from the
//! server itself.
//!
//! # Source
//! gRPC Server Reflection Protocol, `grpc/reflection/v1/reflection.proto`; `google.protobuf`'s JSON
//! mapping.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::call::frame;

/// Largest reply of a server about itself.
const MAX_REPLY: usize = 16 << 20;
/// The most files that a server is asked for.
const MAX_FILES: usize = 1000;
/// The two names that the protocol has had.
const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// A call that is the same each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcCall {
    /// `/package.Service/Method`.
    pub path: String,
    /// One frame per message.
    pub body: Bytes,
}

/// Why a method cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The name is none.
    #[error("{0:?} is no method: give package.Service/Method")]
    Name(String),
    /// The descriptor set is none.
    #[error("no descriptor set (protoc --include_imports --descriptor_set_out): {0}")]
    Set(String),
    /// Nobody knows it.
    #[error("there is no method {0}")]
    Unknown(String),
    /// The server does not tell.
    #[error("{address} does not describe {symbol} (gRPC reflection): {why}; give a descriptor set")]
    Reflection {
        /// The server.
        address: String,
        /// What was asked for.
        symbol: String,
        /// What it said instead.
        why: String,
    },
    /// The body does not fit.
    #[error("the body is no {message}: {why}")]
    Body {
        /// The message's type.
        message: String,
        /// Where and why.
        why: String,
    },
}

/// The service and the method of `package.Service/Method`, perhaps with a slash before.
fn split(name: &str) -> Result<(&str, &str), GrpcError> {
    let parts = name.trim_start_matches('/').split_once('/');
    let fits = |part: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        !part.is_empty() && part.chars().all(fits)
    };
    parts
        .filter(|(service, method)| fits(service) && fits(method) && !method.contains('.'))
        .ok_or_else(|| GrpcError::Name(name.to_owned()))
}

fn find(pool: &DescriptorPool, name: &str) -> Result<MethodDescriptor, GrpcError> {
    let (service, method) = split(name)?;
    let service = pool.get_service_by_name(service);
    let method = service.and_then(|service| service.methods().find(|one| one.name() == method));
    method.ok_or_else(|| GrpcError::Unknown(name.to_owned()))
}

/// Finds a method in a set of descriptors.
///
/// # Errors
/// When it is none, or does not have the method.
pub fn from_set(set: &[u8], name: &str) -> Result<MethodDescriptor, GrpcError> {
    let pool = DescriptorPool::decode(set).map_err(|error| GrpcError::Set(error.to_string()))?;
    find(&pool, name)
}

/// Asks the server for the method and everything that its messages need. `authority` is the name
/// that it is asked by.
///
/// # Errors
/// When it does not tell, or does not have the method.
pub async fn by_reflection(
    address: &str,
    authority: &str,
    name: &str,
    patience: Duration,
) -> Result<MethodDescriptor, GrpcError> {
    let (symbol, _) = split(name)?;
    let asked = tokio::time::timeout(patience, files(address, authority, symbol)).await;
    let failed = |why: String| GrpcError::Reflection {
        address: address.to_owned(),
        symbol: symbol.to_owned(),
        why,
    };
    let files = match asked {
        Ok(files) => files.map_err(failed)?,
        Err(_) => return Err(failed(format!("no answer within {patience:?}"))),
    };
    let mut pool = DescriptorPool::new();
    let added = pool.add_file_descriptor_protos(files);
    added.map_err(|error| failed(error.to_string()))?;
    find(&pool, name)
}

/// The call with this body: an object is one message, a list the messages of a stream; nothing is an
/// empty message.
///
/// # Errors
/// When it does not fit the method's messages.
pub fn call(method: &MethodDescriptor, json: &[u8]) -> Result<GrpcCall, GrpcError> {
    let input = method.input();
    let refuse = |why: String| GrpcError::Body { message: input.full_name().to_owned(), why };
    let json: &[u8] = if json.trim_ascii().is_empty() { b"{}" } else { json };
    let value: Value = serde_json::from_slice(json).map_err(|error| refuse(error.to_string()))?;
    let messages = match value {
        Value::Array(all) if method.is_client_streaming() => all,
        Value::Array(_) => {
            return Err(refuse("a list, but the method takes one message".to_owned()));
        }
        one => vec![one],
    };
    let mut body = Vec::new();
    for (index, one) in messages.into_iter().enumerate() {
        let message = DynamicMessage::deserialize(input.clone(), one)
            .map_err(|error| refuse(format!("message {}: {error}", index + 1)))?;
        body.extend_from_slice(&frame(&message));
    }
    let service = method.parent_service();
    let path = format!("/{}/{}", service.full_name(), method.name());
    Ok(GrpcCall { path, body: body.into() })
}

/// `ServerReflectionRequest` and its reply, as far as they are needed.
mod message {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Request {
        #[prost(string, optional, tag = "3")]
        pub(super) file_by_filename: Option<String>,
        #[prost(string, optional, tag = "4")]
        pub(super) file_containing_symbol: Option<String>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Reply {
        #[prost(message, optional, tag = "4")]
        pub(super) files: Option<Files>,
        #[prost(message, optional, tag = "7")]
        pub(super) error: Option<Failed>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Files {
        #[prost(bytes = "vec", repeated, tag = "1")]
        pub(super) files: Vec<Vec<u8>>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Failed {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(string, tag = "2")]
        pub(super) text: String,
    }
}

type File = prost_reflect::prost_types::FileDescriptorProto;

/// The file that describes a symbol, and all that it imports.
async fn files(address: &str, authority: &str, symbol: &str) -> Result<Vec<File>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, driver) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Its error is also that of each of its requests.
    let driver = tokio::spawn(async move { drop(driver.await) });
    let mut first = Err(String::new());
    for service in SERVICES {
        let request = message::Request {
            file_containing_symbol: Some(symbol.to_owned()),
            ..message::Request::default()
        };
        first =
            ask(&mut sender, (authority, service), &request).await.map(|files| (service, files));
        if first.is_ok() {
            break;
        }
    }
    let (service, mut all) = first?;
    loop {
        let have: BTreeSet<&str> = all.iter().map(File::name).collect();
        let needs = all.iter().flat_map(|file| &file.dependency);
        let Some(missing) = needs.into_iter().find(|name| !have.contains(name.as_str())) else {
            break;
        };
        if all.len() > MAX_FILES {
            return Err(format!("more than {MAX_FILES} files"));
        }
        let missing = missing.clone();
        let request = message::Request {
            file_by_filename: Some(missing.clone()),
            ..message::Request::default()
        };
        let more = ask(&mut sender, (authority, service), &request).await?;
        if !more.iter().any(|file| file.name() == missing) {
            return Err(format!("{missing} is imported, but not there"));
        }
        let new: Vec<File> = more
            .into_iter()
            .filter(|file| all.iter().all(|old| old.name() != file.name()))
            .collect();
        all.extend(new);
    }
    driver.abort();
    Ok(all)
}

async fn ask(
    sender: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    (authority, service): (&str, &str),
    request: &message::Request,
) -> Result<Vec<File>, String> {
    let request = Request::post(format!("http://{authority}/{service}/ServerReflectionInfo"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(frame(request)))
        .map_err(|error| error.to_string())?;
    let reply = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = |headers: &http::HeaderMap| {
        let code = headers.get("grpc-status")?.to_str().ok()?.to_owned();
        let text = headers.get("grpc-message").and_then(|text| text.to_str().ok());
        (code != "0").then(|| format!("grpc-status {code} {}", text.unwrap_or_default()))
    };
    let (head, body) = reply.into_parts();
    if let Some(failed) = status(&head.headers) {
        return Err(failed);
    }
    if !head.status.is_success() {
        return Err(format!("status {}", head.status));
    }
    let body = Limited::new(body, MAX_REPLY).collect().await.map_err(|error| error.to_string())?;
    if let Some(failed) = body.trailers().and_then(status) {
        return Err(failed);
    }
    let bytes = body.to_bytes();
    let message = bytes.get(5..).ok_or("an empty reply")?;
    let reply = message::Reply::decode(message).map_err(|error| error.to_string())?;
    if let Some(message::Failed { code, text }) = reply.error {
        return Err(format!("{text} ({code})"));
    }
    let files = reply.files.ok_or("no files in the reply")?.files;
    let decode =
        |bytes: &Vec<u8>| File::decode(bytes.as_slice()).map_err(|error| error.to_string());
    files.iter().map(decode).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
        ServiceDescriptorProto,
    };

    use super::*;

    /// `shop.Till` in a file that imports another one, with the messages.
    pub(crate) fn files() -> [File; 2] {
        let field = |name: &str, number, kind: Type| FieldDescriptorProto {
            name: Some(name.to_owned()),
            number: Some(number),
            label: Some(Label::Optional as i32),
            r#type: Some(kind as i32),
            json_name: Some(name.to_owned()),
            ..FieldDescriptorProto::default()
        };
        let item = DescriptorProto {
            name: Some("Item".to_owned()),
            field: vec![field("name", 1, Type::String), field("count", 2, Type::Int32)],
            ..DescriptorProto::default()
        };
        let method = |name: &str, streams| MethodDescriptorProto {
            name: Some(name.to_owned()),
            input_type: Some(".shop.Item".to_owned()),
            output_type: Some(".shop.Item".to_owned()),
            client_streaming: Some(streams),
            ..MethodDescriptorProto::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("Till".to_owned()),
            method: vec![method("Ring", false), method("RingAll", true)],
            ..ServiceDescriptorProto::default()
        };
        let file = |name: &str| File {
            name: Some(name.to_owned()),
            package: Some("shop".to_owned()),
            syntax: Some("proto3".to_owned()),
            ..File::default()
        };
        let messages = File { message_type: vec![item], ..file("item.proto") };
        let dependency = vec!["item.proto".to_owned()];
        [messages, File { service: vec![service], dependency, ..file("till.proto") }]
    }

    fn set() -> Vec<u8> {
        FileDescriptorSet { file: files().to_vec() }.encode_to_vec()
    }

    #[test]
    fn a_body_in_json_becomes_messages() {
        let ring = from_set(&set(), "shop.Till/Ring").unwrap();
        let one = call(&ring, br#"{"name":"tea","count":3}"#).unwrap();
        assert_eq!(one.path, "/shop.Till/Ring");
        assert_eq!(&one.body[..], b"\0\0\0\0\x07\x0a\x03tea\x10\x03");
        assert_eq!(&call(&ring, b" ").unwrap().body[..], b"\0\0\0\0\0");
        let all = from_set(&set(), "/shop.Till/RingAll").unwrap();
        let many = call(&all, br#"[{"count":1},{"count":2}]"#).unwrap();
        assert_eq!(&many.body[..], b"\0\0\0\0\x02\x10\x01\0\0\0\0\x02\x10\x02");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let ring = from_set(&set(), "shop.Till/Ring").unwrap();
        for (body, said) in [
            ("{", "EOF"),
            (r#"{"nmae":"tea"}"#, "nmae"),
            (r#"{"count":"many"}"#, "shop.Item"),
            ("[{}]", "takes one message"),
        ] {
            let error = call(&ring, body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{error} for {said}");
        }
        for name in ["shop.Till/Ringg", "shop.Tille/Ring"] {
            assert!(matches!(from_set(&set(), name), Err(GrpcError::Unknown(_))), "{name}");
        }
        for name in ["", "shop.Till", "/", "shop.Till/Ring/x", "shop till/x", "a/b.c"] {
            assert!(matches!(from_set(&set(), name), Err(GrpcError::Name(_))), "{name}");
        }
        assert!(matches!(from_set(b"\xff\xff", "a/b"), Err(GrpcError::Set(_))));
    }
}

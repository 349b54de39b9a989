//! gRPC methods that the generator knows only from the server's own description.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use vhive_load::{Outcome, Protocol, grpc};

use crate::peer::{listen, load, on_one_thread, run, shots};

/// `item.proto` with `shop.Item`, and `till.proto` with `shop.Till` that imports it; as `protoc` encodes them.
const ITEM: &[u8] = b"\x0a\x0aitem.proto\x12\x04shop\x22\x15\x0a\x04Item\x12\x0d\x0a\x05count\x18\x01\x20\x01\x28\x05b\x06proto3";
const TILL: &[u8] = b"\x0a\x0atill.proto\x12\x04shop\x1a\x0aitem.proto\x32\x26\x0a\x04Till\x12\x1e\x0a\x04Ring\x12\x0a.shop.Item\x1a\x0a.shop.Itemb\x06proto3";

/// Length and bytes, as field `number` of a message; all here are shorter than 128 bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    [&[number << 3 | 2, length], bytes].concat()
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// Describes itself by the protocol's old name only, one file at a time, and rings for three.
async fn till() -> String {
    listen(|_, stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let asks = |text: &[u8]| body.windows(text.len()).any(|part| part == text);
            let (reply, status) = match path.as_str() {
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
                    let file = if asks(b"item.proto") { ITEM } else { TILL };
                    (framed(&field(4, &field(1, file))), "0")
                }
                "/shop.Till/Ring" if body == framed(b"\x08\x03") => (framed(b"\x08\x03"), "0"),
                "/shop.Till/Ring" => (Bytes::new(), "3"),
                _ => (Bytes::new(), "12"),
            };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().expect("a value"));
            let frames = [Ok::<_, Infallible>(Frame::data(reply)), Ok(Frame::trailers(trailers))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            Ok::<_, Infallible>(Response::new(body))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    })
    .await
}

/// A method of each kind in a set of descriptors.
fn set() -> Vec<u8> {
    use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
    use prost_reflect::prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
        MethodDescriptorProto, ServiceDescriptorProto,
    };
    let count = FieldDescriptorProto {
        name: Some("count".to_owned()),
        number: Some(1),
        label: Some(Label::Optional as i32),
        r#type: Some(Type::Int32 as i32),
        ..FieldDescriptorProto::default()
    };
    let item = DescriptorProto {
        name: Some("Item".to_owned()),
        field: vec![count],
        ..DescriptorProto::default()
    };
    let method = |name: &str, client, server| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(".shop.Item".to_owned()),
        output_type: Some(".shop.Item".to_owned()),
        client_streaming: Some(client),
        server_streaming: Some(server),
        ..MethodDescriptorProto::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("Till".to_owned()),
        method: vec![
            method("RingAll", true, false),
            method("List", false, true),
            method("Chat", true, true),
        ],
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("shop.proto".to_owned()),
        package: Some("shop".to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![item],
        service: vec![service],
        ..FileDescriptorProto::default()
    };
    prost::Message::encode_to_vec(&FileDescriptorSet { file: vec![file] })
}

/// A frame with the message `{"count": n}`.
fn item(n: u8) -> Bytes {
    framed(&[8, n])
}

/// `RingAll` sums, `List` counts up to the number, `Chat` gives back each message once it has come; only
/// for who has the key.
async fn shop() -> String {
    listen(|_, stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let path = request.uri().path().to_owned();
            let knows = request.headers().get("x-key").is_some_and(|key| key == "k-1");
            let mut body = request.into_body();
            let (frames, replies) = tokio::sync::mpsc::channel(8);
            tokio::spawn(async move {
                let (mut seen, mut told) = (Vec::new(), 0);
                while let Some(Ok(frame)) = body.frame().await {
                    seen.extend_from_slice(frame.data_ref().expect("no trailers"));
                    // A message is seven bytes.
                    while path == "/shop.Till/Chat" && seen.len() >= told + 7 {
                        let message = Bytes::copy_from_slice(&seen[told..told + 7]);
                        told += 7;
                        frames.send(Frame::data(message)).await.expect("heard");
                    }
                }
                let numbers = || seen.chunks(7).map(|message| message[6]);
                let whole = seen.chunks(7).all(|message| message.starts_with(b"\0\0\0\0\x02\x08"));
                let replies = match path.as_str() {
                    "/shop.Till/RingAll" => vec![item(numbers().sum())],
                    "/shop.Till/List" => numbers().flat_map(|most| 1..=most).map(item).collect(),
                    _ => Vec::new(),
                };
                for reply in replies {
                    frames.send(Frame::data(reply)).await.expect("heard");
                }
                let status = if !knows {
                    "16"
                } else if whole {
                    "0"
                } else {
                    "3"
                };
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.parse().expect("a value"));
                frames.send(Frame::trailers(trailers)).await.expect("heard");
            });
            let next = async move |mut replies: tokio::sync::mpsc::Receiver<_>| {
                replies.recv().await.map(|frame| (Ok::<_, Infallible>(frame), replies))
            };
            let body = StreamBody::new(futures_util::stream::unfold(replies, next));
            Ok::<_, Infallible>(Response::new(body))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    })
    .await
}

#[test]
fn streams_of_messages_go_each_way_and_metadata_with_them() {
    on_one_thread(async {
        let address = shop().await;
        let mut load = load(&address, Protocol::Grpc);
        let key =
            |text: &str| vec![("x-key".parse().expect("a name"), text.parse().expect("a value"))];
        // Seven bytes for each message that is to come back.
        for (method, body, bytes) in [
            ("RingAll", r#"[{"count":1},{"count":2},{"count":3}]"#, 7),
            ("RingAll", "[]", 7),
            ("List", r#"{"count":5}"#, 35),
            ("Chat", r#"[{"count":9},{"count":8}]"#, 14),
        ] {
            let method = grpc::from_set(&set(), &format!("shop.Till/{method}")).expect("known");
            load.plain.call = Some(grpc::call(&method, body.as_bytes()).expect("fits"));
            load.plain.headers = key("k-1");
            let rows = run(&load, shots(4, 2)).await;
            let told = |row: &vhive_load::Row| (row.outcome, row.grpc_status, row.body_bytes);
            assert!(rows.iter().all(|row| told(row) == (Outcome::Ok, Some(0), bytes)), "{rows:?}");
            load.plain.headers = key("another");
            let rows = run(&load, shots(2, 2)).await;
            assert!(rows.iter().all(|row| row.grpc_status == Some(16)), "{rows:?}");
        }
    });
}

#[test]
fn a_method_is_learnt_from_the_server_and_called_with_json() {
    on_one_thread(async {
        let address = till().await;
        let patience = Duration::from_secs(5);
        let method = grpc::by_reflection(&address, "shop", "shop.Till/Ring", patience).await;
        let method = method.expect("described");
        let mut load = load(&address, Protocol::Grpc);
        load.reads_replies = true;
        load.plain.call = Some(grpc::call(&method, br#"{"count":3}"#).expect("fits"));
        let rows = run(&load, shots(5, 1)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert!(rows.iter().all(|row| (row.body_bytes, row.function_us) == (7, None)), "{rows:?}");
        load.plain.call = Some(grpc::call(&method, br#"{"count":4}"#).expect("fits"));
        let rows = run(&load, shots(2, 1)).await;
        assert!(rows.iter().all(|row| row.grpc_status == Some(3)), "{rows:?}");

        let unknown = grpc::by_reflection(&address, "shop", "shop.Till/Sing", patience).await;
        assert!(unknown.expect_err("none").to_string().contains("no method shop.Till/Sing"));
        let greeter = crate::peer::h2().await;
        let silent = grpc::by_reflection(&greeter, "shop", "shop.Till/Ring", patience).await;
        let silent = silent.expect_err("no description").to_string();
        assert!(silent.contains("does not describe shop.Till"), "{silent}");
        let nobody = grpc::by_reflection("127.0.0.1:1", "shop", "shop.Till/Ring", patience).await;
        assert!(nobody.is_err());
    });
}

/// Answers with the deadline that a request came with, as `grpc-message`; the deadline `1S` has passed.
async fn deadlines() -> String {
    listen(|_, stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let told = request.headers().get_all("grpc-timeout").iter().cloned();
            let all: Vec<_> = told.collect();
            let status = if all == ["1S"] { "4" } else { "9" };
            let head = Response::builder().header("grpc-status", status);
            let head = all.into_iter().fold(head, |head, one| head.header("grpc-message", one));
            head.body(http_body_util::Empty::<Bytes>::new())
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    })
    .await
}

#[test]
fn a_server_knows_how_long_its_caller_waits_and_may_say_that_it_is_over() {
    on_one_thread(async {
        let address = deadlines().await;
        let mut load = load(&address, Protocol::Grpc);
        let outcome = async |load: &vhive_load::Load| {
            let rows = run(load, shots(1, 1)).await;
            (rows[0].outcome, rows[0].error.as_deref().unwrap_or_default().to_owned())
        };
        assert_eq!(outcome(&load).await, (Outcome::Error, "grpc-status 9: 5S".to_owned()));
        load.plain.headers =
            vec![("grpc-timeout".parse().expect("a name"), "1S".parse().expect("a value"))];
        assert_eq!(outcome(&load).await, (Outcome::Timeout, "grpc-status 4: 1S".to_owned()));
        load.targets[0].protocol = Protocol::H2c;
        load.plain.headers.clear();
        assert_eq!(outcome(&load).await, (Outcome::Ok, String::new()), "no gRPC, no deadline");
    });
}

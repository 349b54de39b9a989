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

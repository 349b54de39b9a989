//! Collectors of traces on loopback, which decode with OpenTelemetry's own types.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;
use tokio::net::TcpListener;

/// How a collector takes what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Takes,
    /// Accepts and never answers.
    Hangs,
    Fails,
    /// Says that it has not taken one of the spans.
    Rejects,
}

#[derive(Debug, Default)]
struct Received {
    otlp: Vec<ExportTraceServiceRequest>,
    zipkin: Vec<Value>,
}

/// A collector.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    pub(crate) manner: Arc<Mutex<Manner>>,
    received: Arc<Mutex<Received>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

impl Collector {
    pub(crate) async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Received>>::default();
        let manner = Arc::new(Mutex::new(manner));
        let (kept, how) = (Arc::clone(&received), Arc::clone(&manner));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, how) = (Arc::clone(&kept), Arc::clone(&how));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let how = *how.lock().unwrap();
                        take(request, how, Arc::clone(&kept))
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, manner, received, task }
    }

    pub(crate) fn url(&self) -> Option<String> {
        Some(format!("http://{}", self.address))
    }

    /// The spans that came by OTLP.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let resources = received.otlp.iter().flat_map(|request| &request.resource_spans);
        let mut spans = Vec::new();
        for resource in resources {
            let told = attributes(&resource.resource.as_ref().unwrap().attributes);
            assert_eq!(told["service.name"], Any::StringValue("vhive".to_owned()));
            for scope in &resource.scope_spans {
                assert_eq!(scope.scope.as_ref().unwrap().name, "vhive.gateway");
                spans.extend(scope.spans.iter().cloned());
            }
        }
        spans
    }

    /// The spans that came in Zipkin's JSON.
    pub(crate) fn zipkin(&self) -> Vec<Value> {
        let received = self.received.lock().unwrap();
        received.zipkin.iter().flat_map(|list| list.as_array().unwrap().clone()).collect()
    }
}

pub(crate) fn attributes(list: &[KeyValue]) -> HashMap<&str, Any> {
    let value = |pair: &KeyValue| pair.value.clone().unwrap().value.unwrap();
    list.iter().map(|pair| (pair.key.as_str(), value(pair))).collect()
}

async fn take(
    request: Request<Incoming>,
    manner: Manner,
    received: Arc<Mutex<Received>>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut response = Response::new(full(Bytes::new()));
    match manner {
        Manner::Hangs => std::future::pending::<()>().await,
        Manner::Fails => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(response);
        }
        Manner::Takes | Manner::Rejects => {}
    }
    let partial_success = (manner == Manner::Rejects).then(|| ExportTracePartialSuccess {
        rejected_spans: 1,
        error_message: "too long".to_owned(),
    });
    let said = ExportTraceServiceResponse { partial_success }.encode_to_vec();
    let kind = parts.headers["content-type"].to_str().unwrap();
    let mut received = received.lock().unwrap();
    match (parts.uri.path(), kind) {
        ("/v1/traces", "application/x-protobuf") => {
            received.otlp.push(ExportTraceServiceRequest::decode(body).unwrap());
            *response.body_mut() = full(said.into());
        }
        ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", "application/grpc") => {
            assert_eq!(
                (parts.version, &parts.headers["te"]),
                (http::Version::HTTP_2, &"trailers".parse().unwrap())
            );
            let length = u32::from_be_bytes(body[1..5].try_into().unwrap());
            assert_eq!((body[0], length as usize), (0, body.len() - 5), "one whole message");
            received.otlp.push(ExportTraceServiceRequest::decode(&body[5..]).unwrap());
            let mut framed = vec![0; 5];
            framed[4] = u8::try_from(said.len()).unwrap();
            framed.extend(said);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))];
            let stream = futures_util::stream::iter(frames);
            *response.body_mut() = http_body_util::StreamBody::new(stream).boxed();
        }
        ("/api/v2/spans", "application/json") => {
            received.zipkin.push(serde_json::from_slice(&body).unwrap());
            *response.status_mut() = StatusCode::ACCEPTED;
        }
        other => panic!("not a collector's: {other:?}"),
    }
    Ok(response)
}

fn full(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).boxed()
}

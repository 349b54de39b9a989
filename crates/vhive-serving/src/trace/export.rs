//! One task per collector: takes finished requests from its queue, sends them in batches. A
//! collector that is slow or away costs the requests in its queue, and nobody else anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Counts, Finished, otlp, zipkin};
use crate::config::{OtlpProtocol, TracingConfig};

type Queue = (mpsc::Sender<Arc<Finished>>, Arc<Counts>);

/// The tasks that send. Dropping it ends them at once.
#[derive(Debug)]
pub(crate) struct Exporters {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Exporters {
    /// Sends what the queues hold, for at most so long, and ends.
    pub(crate) async fn close(mut self, limit: Duration) {
        self.stop.cancel();
        let all = async {
            for task in &mut self.tasks {
                // A task that has panicked has been told of by the runtime.
                drop(task.await);
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("traces were left unsent: a collector does not answer");
        }
    }
}

impl Drop for Exporters {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// In whose words, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    OtlpHttp,
    OtlpGrpc,
    Zipkin,
}

/// Starts a task per collector of a configuration that has been validated.
pub(super) fn start(config: &TracingConfig, counts: &[Arc<Counts>; 2]) -> (Vec<Queue>, Exporters) {
    let stop = CancellationToken::new();
    let otlp = config.otlp.as_deref().and_then(|address| match config.otlp_protocol {
        OtlpProtocol::Http => Some((Words::OtlpHttp, endpoint(address, OTLP_PATH)?)),
        OtlpProtocol::Grpc => Some((Words::OtlpGrpc, at_path(address, GRPC_PATH)?)),
    });
    let zipkin = config.zipkin.as_deref();
    let zipkin = zipkin.and_then(|address| Some((Words::Zipkin, endpoint(address, ZIPKIN_PATH)?)));
    let (mut queues, mut tasks) = (Vec::new(), Vec::new());
    for (target, counts) in [otlp, zipkin].into_iter().zip(counts) {
        let Some((words, uri)) = target else { continue };
        let (sender, receiver) = mpsc::channel(config.queue);
        let mut client = Client::builder(TokioExecutor::new());
        client.http2_only(words == Words::OtlpGrpc).pool_max_idle_per_host(1);
        let exporter = Exporter {
            words,
            uri,
            client: client.build(HttpConnector::new()),
            counts: Arc::clone(counts),
            config: config.clone(),
            is_down: false,
        };
        tasks.push(tokio::spawn(exporter.run(receiver, stop.clone())));
        queues.push((sender, Arc::clone(counts)));
    }
    (queues, Exporters { stop, tasks })
}

const OTLP_PATH: &str = "/v1/traces";
const ZIPKIN_PATH: &str = "/api/v2/spans";
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The address with this path, unless it has one.
fn endpoint(address: &str, path: &str) -> Option<Uri> {
    let uri: Uri = address.parse().ok()?;
    if uri.path() == "/" { at_path(address, path) } else { Some(uri) }
}

fn at_path(address: &str, path: &str) -> Option<Uri> {
    let mut parts = address.parse::<Uri>().ok()?.into_parts();
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).ok()
}

/// Why an address is none of a collector's.
pub(crate) fn check_address(address: &str) -> Result<(), &'static str> {
    let uri: Uri = address.parse().map_err(|_| "must be an address like http://127.0.0.1:4318")?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(_)) => Ok(()),
        (Some("https"), _) => Err("https is not spoken; name an agent on this host or network"),
        _ => Err("must be an address like http://127.0.0.1:4318"),
    }
}

/// Most bytes of a collector's answer that are read.
const MOST_ANSWER: usize = 64 << 10;

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("not reached: {0}")]
    Unreachable(String),
    #[error("its answer broke off: {0}")]
    BrokeOff(String),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it answered with gRPC status {0}")]
    Grpc(String),
    #[error("{0}")]
    Rejected(String),
}

struct Exporter {
    words: Words,
    uri: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    counts: Arc<Counts>,
    config: TracingConfig,
    /// The last batch was not taken: said once, not for every batch.
    is_down: bool,
}

impl Exporter {
    async fn run(mut self, mut queue: mpsc::Receiver<Arc<Finished>>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(self.config.batch);
        loop {
            let first = tokio::select! {
                first = queue.recv() => first,
                () = stop.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            let Some(first) = first else { return };
            batch.push(first);
            let most = self.config.batch;
            let fill = async {
                while batch.len() < most
                    && let Some(next) = queue.recv().await
                {
                    batch.push(next);
                }
            };
            tokio::select! {
                // Full, or time.
                _ = tokio::time::timeout(self.config.interval.0, fill) => {}
                () = stop.cancelled() => {
                    queue.close();
                    while batch.len() < most && let Ok(next) = queue.try_recv() {
                        batch.push(next);
                    }
                }
            }
            self.deliver(&batch).await;
            batch.clear();
        }
    }

    async fn deliver(&mut self, batch: &[Arc<Finished>]) {
        let limit = self.config.timeout.0;
        let sent = tokio::time::timeout(limit, self.send(batch)).await;
        let sent = sent.unwrap_or(Err(ExportError::Late(limit)));
        let (counter, exporter) = (batch.len() as u64, self.counts.exporter);
        match sent {
            Ok(()) => {
                self.counts.exported.fetch_add(counter, Ordering::Relaxed);
                if std::mem::take(&mut self.is_down) {
                    tracing::info!(exporter, collector = %self.uri, "traces are taken again");
                }
            }
            Err(error) => {
                self.counts.failed.fetch_add(counter, Ordering::Relaxed);
                if !std::mem::replace(&mut self.is_down, true) {
                    tracing::warn!(exporter, collector = %self.uri, %error, "traces not taken");
                }
            }
        }
    }

    async fn send(&self, batch: &[Arc<Finished>]) -> Result<(), ExportError> {
        let service = &self.config.service_name;
        let (kind, body) = match self.words {
            Words::OtlpHttp => ("application/x-protobuf", otlp::encode(batch, service)),
            Words::OtlpGrpc => ("application/grpc", otlp::frame(&otlp::encode(batch, service))),
            Words::Zipkin => ("application/json", zipkin::encode(batch, service)),
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("vhive"));
        if self.words == Words::OtlpGrpc {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let answer = self.client.request(request).await;
        let answer =
            answer.map_err(|error| ExportError::Unreachable(crate::status::chain(&error)))?;
        let (parts, body) = answer.into_parts();
        let read = Limited::new(body, MOST_ANSWER).collect().await;
        let read = read.map_err(|error| ExportError::BrokeOff(error.to_string()))?;
        if !parts.status.is_success() {
            return Err(ExportError::Status(parts.status));
        }
        let trailers = read.trailers().cloned().unwrap_or_default();
        let said = read.to_bytes();
        let message = match self.words {
            Words::Zipkin => return Ok(()),
            Words::OtlpHttp => &said[..],
            Words::OtlpGrpc => {
                check_grpc(&[&parts.headers, &trailers])?;
                said.get(5..).unwrap_or_default()
            }
        };
        otlp::rejected(message).map_or(Ok(()), |said| Err(ExportError::Rejected(said)))
    }
}

/// Whether gRPC's status, which may stand before or behind the message, is OK.
fn check_grpc(places: &[&HeaderMap]) -> Result<(), ExportError> {
    let status = places.iter().find_map(|fields| fields.get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(other) => Err(ExportError::Grpc(String::from_utf8_lossy(other).into_owned())),
        None => Err(ExportError::Grpc("none".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_path_unless_it_has_one() {
        let of = |address| endpoint(address, OTLP_PATH).map(|uri| uri.to_string());
        assert_eq!(of("http://a:4318").as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(of("http://a:4318/").as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(of("http://a/own/v1/traces").as_deref(), Some("http://a/own/v1/traces"));
        let grpc = at_path("http://a:4317", GRPC_PATH).map(|uri| uri.path().to_owned());
        assert_eq!(grpc.as_deref(), Some(GRPC_PATH));
        for bad in ["", "a:4318", "127.0.0.1:4318", "/v1/traces", "ftp://a", "https://a", "http://"]
        {
            assert!(check_address(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_address("http://collector:4318"), Ok(()));
    }
}

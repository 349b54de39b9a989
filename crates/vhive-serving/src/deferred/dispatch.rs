//! Sends what waits through the gateway, as a client would, so that each has its record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use vhive_api::Bytes as Size;

use super::store::Kept;
use super::{Deferred, KeptReply, News, Pending, Stage};

/// First pause before another try; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Where the gateway says that a reply is its own.
const ERROR: HeaderName = HeaderName::from_static("x-vhive-error");

/// Takes news until there is nobody to bring any; dropping it leaves what is under way to the next
/// node.
pub(crate) async fn run(deferred: Arc<Deferred>, mut news: News, gateway: SocketAddr) {
    let turns = Arc::new(Semaphore::new(deferred.config.concurrency));
    let tasks = TaskTracker::new();
    let _abort = AbortAll(tokio_util::sync::CancellationToken::new());
    let end = _abort.0.clone();
    while let Some(pending) = news.recv().await {
        let one = One { deferred: Arc::clone(&deferred), turns: Arc::clone(&turns), gateway };
        let end = end.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = one.carry_out(&pending) => {}
                () = end.cancelled() => {}
            }
        });
    }
}

/// Ends every task when the dispatcher goes.
struct AbortAll(tokio_util::sync::CancellationToken);

impl Drop for AbortAll {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

struct One {
    deferred: Arc<Deferred>,
    turns: Arc<Semaphore>,
    gateway: SocketAddr,
}

impl One {
    async fn carry_out(&self, pending: &Pending) {
        let (deferred, most) = (&self.deferred, self.deferred.config.attempts);
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let Ok(turn) = self.turns.acquire().await else { return };
            if deferred.stopped.is_cancelled() {
                return;
            }
            deferred.turn(&pending.id, Stage::Running, attempt);
            let limit = deferred.config.max_reply;
            let got = send(pending, self.gateway, limit).await;
            drop(turn);
            // A gateway that is being closed says nothing about the function.
            let unreachable = matches!(got, Err(SendError::Connect(_)));
            let (again, reply) = judge(pending, got, attempt);
            if !unreachable && (!again || attempt >= most) {
                deferred.end(&pending.id, reply).await;
                return;
            }
            deferred.retried.fetch_add(1, Ordering::Relaxed);
            deferred.turn(&pending.id, Stage::Pending, attempt);
            attempt += u32::from(!unreachable);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = deferred.stopped.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A reply as it came.
struct Got {
    parts: http::response::Parts,
    body: Bytes,
}

/// Why none came.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the gateway cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the exchange broke off: {0}")]
    Broke(#[from] hyper::Error),
    #[error("the kept request makes no sense: {0}")]
    Request(#[from] http::Error),
    #[error("the reply is longer than {0} (serving.async.max_reply)")]
    TooLong(Size),
}

async fn send(pending: &Pending, gateway: SocketAddr, limit: Size) -> Result<Got, SendError> {
    let mut request = Request::builder()
        .method(pending.method.as_str())
        .uri(pending.target.as_str())
        .header(header::HOST, pending.host.as_str())
        .header("x-request-id", pending.id.as_str());
    for (name, value) in &pending.fields {
        request = request.header(name.as_str(), value.as_slice());
    }
    let request = request.body(Full::new(pending.body.clone()))?;
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let exchange = async {
        let (parts, mut incoming) = sender.send_request(request).await?.into_parts();
        let mut body = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if (body.len() + data.len()) as u64 > limit.0 {
                return Err(SendError::TooLong(limit));
            }
            body.extend_from_slice(&data);
        }
        Ok(Got { parts, body: body.freeze() })
    };
    let got = exchange.await;
    connection.abort();
    got
}

/// Whether to try again, and what is kept if not: what the gateway could not do may be possible
/// later, what a function says is said.
fn judge(pending: &Pending, got: Result<Got, SendError>, attempts: u32) -> (bool, KeptReply) {
    let head = |stage, status, fields, error| Kept {
        stage,
        host: pending.host.clone(),
        accepted: pending.accepted,
        ended: Timestamp::now(),
        attempts,
        status,
        fields,
        error,
    };
    match got {
        Ok(Got { parts, body }) => {
            let own = parts.headers.get(ERROR).map(HeaderValue::as_bytes);
            let again = own.is_some() && parts.status.is_server_error();
            let stage = if own.is_some() { Stage::Failed } else { Stage::Done };
            let error = own.map(|code| String::from_utf8_lossy(code).into_owned());
            let framing = [header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::CONNECTION];
            let fields = parts.headers.iter().filter(|(name, _)| !framing.contains(name));
            let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
            let head = head(stage, parts.status.as_u16(), fields.collect(), error);
            (again, KeptReply { head, body })
        }
        Err(error) => {
            let again = !matches!(error, SendError::TooLong(_) | SendError::Request(_));
            let head = head(Stage::Failed, 502, Vec::new(), Some(error.to_string()));
            (again, KeptReply { head, body: Bytes::new() })
        }
    }
}

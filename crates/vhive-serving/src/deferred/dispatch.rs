//! Sends what waits through the gateway, as a client would, so that each has its record.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio_util::task::TaskTracker;
use vhive_api::Bytes as Size;

use super::errand::{Errand, Sending, Verdict};
use super::{AcceptError, Deferred, News, Pending, Stage};

/// First pause before another try; doubles.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Lanes before those that are not in use are forgotten.
const LANES: usize = 256;

/// Where the gateway says that a reply is its own.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("x-vhive-error");

/// Takes news until there is nobody to bring any; dropping it leaves what is under way to the next
/// node.
pub(crate) async fn run(
    deferred: Arc<Deferred>,
    mut news: News,
    gateway: SocketAddr,
    errand: Arc<dyn Errand>,
) {
    let turns = Arc::new(Semaphore::new(deferred.config.concurrency));
    let tasks = TaskTracker::new();
    let _abort = AbortAll(tokio_util::sync::CancellationToken::new());
    let end = _abort.0.clone();
    let mut lanes = Lanes::default();
    while let Some(pending) = news.recv().await {
        let lane = errand.lane(&pending).map(|(name, most)| lanes.get(name, most));
        let (deferred, turns) = (Arc::clone(&deferred), Arc::clone(&turns));
        let one = One { deferred, lane, turns, gateway, errand: Arc::clone(&errand) };
        let end = end.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = one.carry_out(&pending) => {}
                () = end.cancelled() => {}
            }
        });
    }
}

/// Lanes that are in use.
#[derive(Default)]
struct Lanes(HashMap<String, Weak<Semaphore>>);

impl Lanes {
    fn get(&mut self, name: String, most: usize) -> Arc<Semaphore> {
        if let Some(lane) = self.0.get(&name).and_then(Weak::upgrade) {
            return lane;
        }
        if self.0.len() >= LANES {
            self.0.retain(|_, lane| lane.strong_count() > 0);
        }
        let lane = Arc::new(Semaphore::new(most));
        self.0.insert(name, Arc::downgrade(&lane));
        lane
    }
}

/// Ends every task when the dispatcher goes.
struct AbortAll(tokio_util::sync::CancellationToken);

impl Drop for AbortAll {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

type Turn<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

struct One {
    deferred: Arc<Deferred>,
    lane: Option<Arc<Semaphore>>,
    turns: Arc<Semaphore>,
    gateway: SocketAddr,
    errand: Arc<dyn Errand>,
}

impl One {
    async fn carry_out(&self, pending: &Pending) {
        let deferred = &self.deferred;
        let mut unheard = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let Ok(turn) = self.turn().await else { return };
            if deferred.stopped.is_cancelled() {
                return;
            }
            let sending = self.errand.prepare(pending);
            let sent = sending.is_some();
            let verdict = match sending {
                None => Some(self.errand.unwanted(pending)),
                Some(sending) => {
                    deferred.turn(&pending.id, Stage::Running, attempt);
                    let began = Instant::now();
                    let limit = deferred.config.max_reply;
                    let got = send(pending, sending, self.gateway, limit).await;
                    // A gateway that is being closed says nothing about the function.
                    let heard = !got.as_ref().map_or_else(SendError::is_ours, Got::is_closing);
                    heard.then(|| self.errand.judge(pending, got, attempt, began.elapsed()))
                }
            };
            let pause = match verdict {
                None => {
                    let pause = unheard;
                    unheard = (unheard * 2).min(LONGEST_PAUSE);
                    pause
                }
                Some(verdict) => {
                    let Some(pause) = self.follow(pending, verdict, attempt).await else { return };
                    attempt += u32::from(sent);
                    pause
                }
            };
            // Not before: a reply that cannot be kept yet bounds how many more there are.
            drop(turn);
            deferred.retried.fetch_add(1, Ordering::Relaxed);
            deferred.turn(&pending.id, Stage::Pending, attempt);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = deferred.stopped.cancelled() => return,
            }
        }
    }

    /// A turn of the lane's, and then one of all.
    async fn turn(&self) -> Result<Turn<'_>, AcquireError> {
        let of_lane = match &self.lane {
            Some(lane) => Some(lane.acquire().await?),
            None => None,
        };
        Ok((of_lane, self.turns.acquire().await?))
    }

    /// Does what came of a try; the pause before another one, if there shall be one.
    async fn follow(&self, pending: &Pending, verdict: Verdict, attempt: u32) -> Option<Duration> {
        let mut verdict = verdict;
        let mut pause = FIRST_PAUSE;
        loop {
            match verdict {
                Verdict::Again(pause) => return Some(pause),
                Verdict::Keep(reply) => match self.deferred.end(&pending.id, &reply).await {
                    Ok(()) => return None,
                    Err(error) => {
                        // It has been done: only the disk is asked again.
                        tracing::error!(%error, id = pending.id, "a reply cannot be kept yet");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        verdict = Verdict::Keep(reply);
                    }
                },
                Verdict::Next(next, end) => {
                    match self.deferred.replace(&pending.id, next.clone()).await {
                        Ok(()) => {
                            self.errand.ended(pending, end);
                            return None;
                        }
                        Err(full @ AcceptError::Full { .. }) => {
                            let got = Err(SendError::NoRoom(full.to_string()));
                            verdict = self.errand.judge(pending, got, attempt, Duration::ZERO);
                            if matches!(verdict, Verdict::Next(..)) {
                                // Others have to make room first.
                                tokio::time::sleep(pause).await;
                                pause = (pause * 2).min(LONGEST_PAUSE);
                            }
                        }
                        Err(AcceptError::ShutDown) => return None,
                        Err(AcceptError::Store(error)) => {
                            // It has been done: only the disk is asked again.
                            tracing::error!(%error, id = pending.id, "cannot be noted as done yet");
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(LONGEST_PAUSE);
                            verdict = Verdict::Next(next, end);
                        }
                    }
                }
            }
        }
    }
}

/// A reply as it came.
pub(crate) struct Got {
    pub(crate) parts: http::response::Parts,
    pub(crate) body: Bytes,
}

impl Got {
    /// What the gateway says by itself, if it does.
    pub(crate) fn own_error(&self) -> Option<&[u8]> {
        self.parts.headers.get(ERROR).map(HeaderValue::as_bytes)
    }

    fn is_closing(&self) -> bool {
        self.own_error() == Some(b"shutting-down")
            && self.parts.status == StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Why none came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the gateway cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the exchange broke off: {0}")]
    Broke(#[from] hyper::Error),
    #[error("the kept request makes no sense: {0}")]
    Request(#[from] http::Error),
    #[error("the reply is longer than {0}")]
    TooLong(Size),
    #[error("no reply within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// There was a reply, and no room for what it leads to.
    #[error("no room for the reply: {0}")]
    NoRoom(String),
}

impl SendError {
    fn is_ours(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

async fn send(
    pending: &Pending,
    sending: Sending,
    gateway: SocketAddr,
    limit: Size,
) -> Result<Got, SendError> {
    let mut request = Request::builder()
        .method(pending.method.as_str())
        .uri(sending.target.as_str())
        .header(header::HOST, sending.host.as_str())
        .header("x-request-id", pending.id.as_str());
    for (name, value) in &pending.fields {
        request = request.header(name.as_str(), value.as_slice());
    }
    for (name, value) in sending.fields {
        request = request.header(name, value);
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
    let got = match sending.timeout {
        None => exchange.await,
        Some(limit) => match tokio::time::timeout(limit, exchange).await {
            Ok(got) => got,
            Err(_) => Err(SendError::TimedOut(limit)),
        },
    };
    connection.abort();
    got
}

#[cfg(test)]
mod tests;

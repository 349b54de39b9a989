//! HTTP/1.1 to a node: its API by unix socket or by loopback and token, and its gateway.

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::deadline::Deadline;

/// Largest reply that is read whole.
const MOST_REPLY: usize = 64 << 20;

/// Where a node's API is.
#[derive(Clone, Debug)]
pub enum Door {
    /// Its unix socket.
    Socket(PathBuf),
    /// Its port, with the bearer token.
    Port {
        /// `host:port`.
        address: String,
        /// Content of `api.token`.
        token: String,
    },
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nothing listens.
    #[error("no node answers at {at}")]
    NoNode {
        /// Where.
        at: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The node's own words.
        message: String,
    },
    /// The connection broke.
    #[error("the connection to {at} broke")]
    Broken {
        /// Where.
        at: String,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("no answer from {at} in time")]
    Late {
        /// Where.
        at: String,
    },
    /// The reply is not what the API promises.
    #[error("{at} answered something else than expected: {what}")]
    Strange {
        /// Where.
        at: String,
        /// What.
        what: String,
    },
}

impl ApiError {
    /// Whether the node knows no such thing, or no such path.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// A whole reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From sending the head on an open connection to the last byte, in microseconds.
    pub took_us: u64,
}

impl Door {
    fn shown(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Port { address, .. } => address.clone(),
        }
    }

    /// Sends a request to the API and reads a JSON reply.
    ///
    /// # Errors
    /// Any [`ApiError`]; an error status is [`ApiError::Refused`].
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Deadline,
    ) -> Result<Value, ApiError> {
        let at = self.shown();
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("content-type", "application/json");
        if let Self::Port { token, .. } = self {
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let request = request.body(Full::new(Bytes::from(bytes))).map_err(|e| broken(&at, e))?;
        let no_node = |source| ApiError::NoNode { at: at.clone(), source };
        let reply = match self {
            Self::Socket(path) => {
                let stream = in_time(&at, deadline, UnixStream::connect(path)).await?;
                send(&at, stream.map_err(no_node)?, request, deadline).await?
            }
            Self::Port { address, .. } => {
                let stream = in_time(&at, deadline, TcpStream::connect(address)).await?;
                send(&at, stream.map_err(no_node)?, request, deadline).await?
            }
        };
        let value: Option<Value> = serde_json::from_slice(&reply.body).ok();
        if reply.status.is_success() {
            let what = || String::from_utf8_lossy(&reply.body).chars().take(200).collect();
            return value.ok_or_else(|| ApiError::Strange { at, what: what() });
        }
        let message = value.as_ref().and_then(|v| v.get("message")).and_then(Value::as_str);
        let message = message.map_or_else(
            || format!("{}: {}", reply.status, String::from_utf8_lossy(&reply.body).trim()),
            str::to_owned,
        );
        Err(ApiError::Refused { status: reply.status, message })
    }
}

/// Sends a request to a gateway over a connection of its own, made before the clock starts.
///
/// # Errors
/// Any [`ApiError`] but [`ApiError::Refused`]: every status is a reply.
pub async fn invoke(
    gateway: &str,
    request: Request<Full<Bytes>>,
    deadline: Deadline,
) -> Result<Reply, ApiError> {
    let stream = in_time(gateway, deadline, TcpStream::connect(gateway)).await?;
    let stream = stream.map_err(|source| ApiError::NoNode { at: gateway.to_owned(), source })?;
    drop(stream.set_nodelay(true));
    send(gateway, stream, request, deadline).await
}

/// A connection to a gateway that is kept open between requests.
#[derive(Debug)]
pub struct Client {
    at: String,
    sender: SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<Result<(), hyper::Error>>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ApiError::NoNode`], [`ApiError::Broken`] or [`ApiError::Late`].
    pub async fn open(gateway: &str, deadline: Deadline) -> Result<Self, ApiError> {
        let at = gateway.to_owned();
        let stream = in_time(&at, deadline, TcpStream::connect(gateway)).await?;
        let stream = stream.map_err(|source| ApiError::NoNode { at: at.clone(), source })?;
        drop(stream.set_nodelay(true));
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|e| broken(&at, e))?;
        Ok(Self { at, sender, driver: tokio::spawn(connection) })
    }

    /// Sends a request and reads the whole reply.
    ///
    /// # Errors
    /// As [`invoke`]; the connection is of no more use then.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        deadline: Deadline,
    ) -> Result<Reply, ApiError> {
        let (at, sender) = (&self.at, &mut self.sender);
        let exchange = async {
            let begun = Instant::now();
            sender.ready().await.map_err(|e| broken(at, e))?;
            let reply = sender.send_request(request).await.map_err(|e| broken(at, e))?;
            let (head, body) = reply.into_parts();
            let body = Limited::new(body, MOST_REPLY).collect().await;
            let body = body.map_err(|source| ApiError::Broken { at: at.clone(), source })?;
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let (status, headers) = (head.status, head.headers);
            Ok(Reply { status, headers, body: body.to_bytes(), took_us })
        };
        in_time(&self.at, deadline, exchange).await?
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn send(
    at: &str,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    deadline: Deadline,
) -> Result<Reply, ApiError> {
    let exchange = async {
        let io = TokioIo::new(stream);
        let shaken = hyper::client::conn::http1::handshake(io).await;
        let (mut sender, connection) = shaken.map_err(|e| broken(at, e))?;
        let driver = tokio::spawn(connection);
        let begun = Instant::now();
        let reply = sender.send_request(request).await.map_err(|e| broken(at, e))?;
        let (head, body) = reply.into_parts();
        let body = Limited::new(body, MOST_REPLY).collect().await;
        let body = body.map_err(|source| ApiError::Broken { at: at.to_owned(), source })?;
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        driver.abort();
        let (status, headers) = (head.status, head.headers);
        Ok(Reply { status, headers, body: body.to_bytes(), took_us })
    };
    in_time(at, deadline, exchange).await?
}

fn broken(at: &str, source: impl std::error::Error + Send + Sync + 'static) -> ApiError {
    ApiError::Broken { at: at.to_owned(), source: Box::new(source) }
}

async fn in_time<T>(
    at: &str,
    deadline: Deadline,
    work: impl Future<Output = T>,
) -> Result<T, ApiError> {
    let done = timeout_at(deadline.at(), work).await;
    done.map_err(|_| ApiError::Late { at: at.to_owned() })
}

//! A client of a running node's API, over its unix socket.

use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::exit::Exit;

/// Largest reply that is read whole.
const MAX_REPLY: usize = 64 << 20;

/// Talks to one node.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the node behind this socket; connects per request.
    pub(crate) fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Sends a request and returns the reply's head and streamed body, whatever its status.
    ///
    /// # Errors
    /// [`Exit::NoNode`] when nothing listens; otherwise what broke.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response<Incoming>> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
        self.send_body(method, path, "application/json", body).await
    }

    /// Likewise with any body.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn send_body(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: UnsyncBoxBody<Bytes, io::Error>,
    ) -> anyhow::Result<Response<Incoming>> {
        let no_node = |_| Exit::NoNode(self.socket.display().to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(no_node)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("content-type", kind)
            .body(body)
            .context("the request's path is not a URI")?;
        sender.send_request(request).await.context("the node hung up")
    }

    /// Sends a request and reads a JSON reply; an error status becomes an error with the node's
    /// own words.
    ///
    /// # Errors
    /// [`Exit::NoNode`], [`Exit::NotFound`], or the node's message.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        let reply = self.send(method, path, body).await?;
        if !reply.status().is_success() {
            return Err(refused(reply).await);
        }
        let bytes = read_whole(reply.into_body()).await?;
        serde_json::from_slice(&bytes).context("the node's reply is not understood")
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// As [`Client::json`].
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(Method::GET, path, None).await
    }
}

/// An error status as an error with the node's own words.
pub(crate) async fn refused(reply: Response<Incoming>) -> anyhow::Error {
    let status = reply.status();
    let bytes = match read_whole(reply.into_body()).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    let message = value.as_ref().and_then(|v| v.get("message")).and_then(Value::as_str);
    let message = message.map_or_else(
        || format!("{status}: {}", String::from_utf8_lossy(&bytes).trim()),
        str::to_owned,
    );
    match status {
        http::StatusCode::NOT_FOUND => Exit::NotFound(message).into(),
        _ => anyhow!(message),
    }
}

/// A file as a request's body, read as it is sent. Reading blocks, which a command may.
pub(crate) struct FileBody(Box<dyn Read + Send>);

impl FileBody {
    pub(crate) fn new(file: Box<dyn Read + Send>) -> Self {
        Self(file)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut piece = vec![0; 256 << 10];
        Poll::Ready(match self.0.read(&mut piece) {
            Ok(0) => None,
            Ok(n) => {
                piece.truncate(n);
                Some(Ok(Frame::data(Bytes::from(piece))))
            }
            Err(error) => Some(Err(error)),
        })
    }
}

/// Reads a body of at most 64 MiB.
///
/// # Errors
/// When it is larger or breaks off.
pub(crate) async fn read_whole(body: Incoming) -> anyhow::Result<Bytes> {
    let limited = http_body_util::Limited::new(body, MAX_REPLY);
    let read = limited.collect().await;
    Ok(read.map_err(|e| anyhow::anyhow!(e)).context("the reply broke off")?.to_bytes())
}

//! A client of a running node's API, over its unix socket.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
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
        let no_node = |_| Exit::NoNode(self.socket.display().to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(no_node)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))
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
        let status = reply.status();
        let bytes = read_whole(reply.into_body()).await?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).context("the node's reply is not understood");
        }
        let value: Option<Value> = serde_json::from_slice(&bytes).ok();
        let message = value.as_ref().and_then(|v| v.get("message")).and_then(Value::as_str);
        let message = message.map_or_else(
            || format!("{status}: {}", String::from_utf8_lossy(&bytes).trim()),
            str::to_owned,
        );
        if status == http::StatusCode::NOT_FOUND {
            return Err(Exit::NotFound(message).into());
        }
        bail!(message)
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// As [`Client::json`].
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(Method::GET, path, None).await
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

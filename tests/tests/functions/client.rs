//! Clients: a well-behaved one for HTTP/1.1 and HTTP/2, and one that sends raw bytes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    /// `grpc-status`, from the headers or the trailers.
    grpc: Option<u16>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The status of a failed call; for connections that break, 14 (unavailable).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) u16);

impl Client {
    pub(crate) async fn http1(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("nothing is sent yet");
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub(crate) async fn http2(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("nothing is sent yet");
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        self.request(Method::GET, path, "text/plain", Bytes::new()).await.expect("it replies")
    }

    pub(crate) async fn post(&mut self, path: &str, content_type: &str, body: &[u8]) -> Reply {
        let body = Bytes::copy_from_slice(body);
        self.request(Method::POST, path, content_type, body).await.expect("it replies")
    }

    /// Calls `SayHello` with a name.
    pub(crate) async fn say_hello(&mut self, name: &str) -> Result<String, Failed> {
        let length = u8::try_from(name.len()).expect("test names are short");
        let message = [&[10, length], name.as_bytes()].concat();
        let frame = [&[0, 0, 0, 0, length + 2], message.as_slice()].concat();
        let reply = self.call("/helloworld.Greeter/SayHello", &frame).await?;
        let (&[10, length], text) = reply.split_first_chunk::<2>().expect("a HelloReply") else {
            panic!("not a HelloReply: {reply:?}");
        };
        assert_eq!(usize::from(length), text.len());
        Ok(String::from_utf8(text.to_vec()).expect("greetings are text"))
    }

    /// Sends one gRPC frame and returns the message that comes back.
    pub(crate) async fn call(&mut self, path: &str, frame: &[u8]) -> Result<Vec<u8>, Failed> {
        let body = Bytes::copy_from_slice(frame);
        let reply = self.request(Method::POST, path, "application/grpc", body).await;
        let reply = reply.map_err(|_| Failed(14))?;
        assert_eq!(reply.status, 200, "gRPC replies have HTTP status 200");
        match reply.grpc {
            Some(0) => {}
            Some(code) => return Err(Failed(code)),
            None => panic!("a gRPC reply without grpc-status"),
        }
        let (head, message) = reply.body.split_first_chunk::<5>().expect("a message came back");
        let length = u32::try_from(message.len()).expect("greetings are short");
        assert_eq!((head[0], &head[1..]), (0, &length.to_be_bytes()[..]));
        Ok(message.to_vec())
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> hyper::Result<Reply> {
        let (version, uri) = match self {
            Self::Http1(_) => (Version::HTTP_11, path.to_owned()),
            Self::Http2(_) => (Version::HTTP_2, format!("http://function{path}")),
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .version(version)
            .header("host", "function")
            .header("content-type", content_type)
            .header("te", "trailers")
            .body(Full::new(body))
            .expect("tests write valid requests");
        let exchange = async {
            let response = match self {
                Self::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Self::Http2(sender) => sender.send_request(request).await?,
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?;
            let trailers = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
            let grpc = trailers.or_else(|| head.headers.get("grpc-status"));
            let grpc = grpc.and_then(|value| value.to_str().ok()?.parse().ok());
            Ok(Reply { status: head.status.as_u16(), grpc, body: body.to_bytes() })
        };
        timeout(PATIENCE, exchange).await.expect("it replies in time")
    }
}

/// A connection for bytes that no client would send.
#[derive(Debug)]
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.expect("it listens"))
    }

    /// Sends what the other side still takes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(PATIENCE, self.0.write_all(bytes)).await;
        // It may well have closed the connection already.
        let _ = sent.expect("it reads or closes");
    }

    /// Status of the next reply; `None` if the connection is closed without one.
    pub(crate) async fn status(&mut self) -> Option<u16> {
        let mut head = [0; 12];
        let read =
            timeout(PATIENCE, self.0.read_exact(&mut head)).await.expect("it replies or closes");
        read.ok()?;
        std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
    }

    /// Everything until the connection is closed.
    pub(crate) async fn rest(&mut self) -> String {
        let mut all = BytesMut::new();
        let read = async { while self.0.read_buf(&mut all).await.is_ok_and(|bytes| bytes > 0) {} };
        timeout(PATIENCE, read).await.expect("it closes");
        String::from_utf8_lossy(&all).into_owned()
    }
}

//! A bare hyper hop: hyper's server, hyper's client, connections kept, nothing else.
#![expect(clippy::print_stdout, reason = "it tells its parent where it listens")]

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

type Idle = Arc<Mutex<Vec<SendRequest<Incoming>>>>;

/// Forwards to the upstream until killed.
pub(crate) fn run(upstream: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let upstream: Arc<str> = upstream.into();
    let idle = Idle::default();
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (upstream, idle) = (Arc::clone(&upstream), Arc::clone(&idle));
            let service = service_fn(move |request| {
                forward(request, Arc::clone(&upstream), Arc::clone(&idle))
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http1::Builder::new();
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    })
}

async fn forward(
    request: Request<Incoming>,
    upstream: Arc<str>,
    idle: Idle,
) -> anyhow::Result<hyper::Response<Incoming>> {
    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut sender = match kept {
        Some(sender) if !sender.is_closed() => sender,
        _ => {
            let stream = TcpStream::connect(&*upstream).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    sender.ready().await?;
    let reply = sender.send_request(request).await?;
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    Ok(reply)
}

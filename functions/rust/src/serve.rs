//! The server: one thread, one port, HTTP/1.1 and h2c told apart by the first bytes.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::listener::Listener;
use crate::{Function, Reply, Request, grpc};

/// The body of every reply.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// Connections at a time; further clients wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// How long running requests may take to end once the function is told to stop, and how long
/// clients may then take to read the replies.
const GRACE: Duration = Duration::from_secs(10);
const FLUSH: Duration = Duration::from_millis(500);

pub(crate) fn serve<F: Function>(function: F) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(accept(Arc::new(function)));
    runtime.shutdown_background();
    result
}

async fn accept<F: Function>(function: Arc<F>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen().await?;
    writeln!(io::stdout(), "{} listening on {}", F::NAME, listener.local_addr()?)?;
    let server = auto::Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    let running = Arc::new(watch::Sender::new(0));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = next => {
                // An error concerns one connection: descriptors are left, as there is a place.
                let Ok(stream) = accepted else { continue };
                let function = Arc::clone(&function);
                let running = Arc::clone(&running);
                let service = service_fn(move |request| {
                    let (function, running) = (Arc::clone(&function), Arc::clone(&running));
                    async move { Ok::<_, Infallible>(answer(&*function, request, &running).await) }
                });
                let _ = stream.set_nodelay(true);
                let connection = server.serve_connection(TokioIo::new(stream), service);
                let connection = graceful.watch(connection.into_owned());
                tokio::spawn(async move {
                    let _place = place;
                    connection.await
                });
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    let last_call = async {
        let _ =
            tokio::time::timeout(GRACE, running.subscribe().wait_for(|calls| *calls == 0)).await;
        // What is still open now is idle, or its client does not go on.
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = last_call => {}
    }
    Ok(())
}

/// One running call; counted until it is dropped.
struct Call(Arc<watch::Sender<usize>>);

impl Call {
    fn new(running: &Arc<watch::Sender<usize>>) -> Self {
        running.send_modify(|calls| *calls += 1);
        Self(Arc::clone(running))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

async fn listen() -> io::Result<Listener> {
    let host = std::env::var("HOST").unwrap_or_else(|_| "0.0.0.0".to_owned());
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let address = format!("{host}:{port}");
    let listener = TcpListener::bind(&address).await.and_then(Listener::new);
    listener.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

async fn answer<F: Function>(
    function: &F,
    request: HttpRequest<Incoming>,
    running: &Arc<watch::Sender<usize>>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let is_call = grpc::is_call(&head.headers);
    let too_long = format!("the body is longer than {} bytes", F::MAX_BODY);
    let stated = body.size_hint().lower();
    let body = match stated > F::MAX_BODY as u64 {
        true => None,
        false => Limited::new(body, F::MAX_BODY).collect().await.ok(),
    };
    let Some(body) = body else {
        return match is_call {
            true => grpc::failure(&grpc::Status(grpc::Code::ResourceExhausted, too_long)),
            false => plain(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, &too_long)),
        };
    };
    let _call = Call::new(running);
    let body = body.to_bytes();
    let path = head.uri.path();
    if is_call {
        return grpc::reply(function, path, body).await;
    }
    let query = head.uri.query().unwrap_or_default().to_owned();
    let reply = match (head.method, path) {
        (Method::GET | Method::HEAD, "/") if query.is_empty() => Reply::text(F::HELP),
        (Method::GET | Method::POST, "/") => {
            function.call(Request { path: path.to_owned(), query, body }).await
        }
        (_, "/") => Reply::error(StatusCode::METHOD_NOT_ALLOWED, &"use POST or GET"),
        _ => Reply::error(StatusCode::NOT_FOUND, &"the only path is /"),
    };
    plain(reply)
}

fn plain(reply: Reply) -> Response<Body> {
    let mut response = Response::new(BoxBody::new(Full::new(reply.body)));
    *response.status_mut() = reply.status;
    response.headers_mut().insert("content-type", HeaderValue::from_static(reply.content_type));
    response
}

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
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Function, Reply, Request, grpc};

/// The body of every reply.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// How long running requests may take to end once the function is told to stop.
const GRACE: Duration = Duration::from_secs(10);

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
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Errors here concern one connection, or a lack of descriptors that ends with others.
                let Ok((stream, _)) = accepted else { continue };
                connect(&server, &graceful, stream, Arc::clone(&function));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    Ok(())
}

async fn listen() -> io::Result<TcpListener> {
    let host = std::env::var("HOST").unwrap_or_else(|_| "0.0.0.0".to_owned());
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".to_owned());
    let address = format!("{host}:{port}");
    TcpListener::bind(&address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

fn connect<F: Function>(
    server: &auto::Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    stream: TcpStream,
    function: Arc<F>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let function = Arc::clone(&function);
        async move { Ok::<_, Infallible>(answer(&*function, request).await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
    tokio::spawn(graceful.watch(connection));
}

async fn answer<F: Function>(function: &F, request: HttpRequest<Incoming>) -> Response<Body> {
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
    let body = body.to_bytes();
    let path = head.uri.path();
    if is_call {
        return grpc::reply(function, path, body);
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

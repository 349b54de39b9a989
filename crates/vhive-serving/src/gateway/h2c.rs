//! The exchange with an instance that speaks HTTP/2: one connection per instance, a stream per
//! request, trailers in both directions.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::LAST_WORDS;
use super::flight::Flight;
use super::head::{self, Origin};
use super::pool::Shared;
use super::timer::Lost;
use super::upload::RequestBody;
use super::upstream::{adopt, connect};
use crate::status::{GatewayError, chain};

/// How much of a reply may be on its way, per stream and per connection, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Sends the request over HTTP/2 and waits for the reply's head.
pub(super) async fn exchange(
    flight: &mut Flight,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response<Incoming>, GatewayError> {
    let host = super::host_of(&parts)?.unwrap_or_default().to_owned();
    let id = flight.id();
    let client = flight.client();
    let (secure, id) = (client.secure, id.as_str());
    let trace = flight.trace.as_deref();
    let origin = Origin { client: &client.address, secure, host: &host, id, trace };
    head::adapt_for_h2(&mut parts.headers, &origin);
    parts.uri = absolute(&parts.uri, &host)?;
    parts.version = Version::HTTP_2;
    parts.extensions = http::Extensions::default();
    let mut request = Request::from_parts(parts, body);

    let mut retried = false;
    loop {
        let (mut sender, reused) = sender(flight).await?;
        let sent = {
            let mut sending = pin!(sender.try_send_request(request));
            let sent = poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(Ok(sent)),
                Poll::Pending => flight.poll_lost(cx).map(Err),
            })
            .await;
            match sent {
                // The news of its end may have overtaken what it had said before.
                Err(Lost::Ended) => {
                    let heard = tokio::time::timeout(LAST_WORDS, sending).await;
                    heard.map_err(|_| Lost::Ended)
                }
                sent => sent,
            }
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(lost) => return Err(super::lose(flight, lost)),
        };
        match sent {
            Ok(response) => return Ok(response),
            Err(mut error) => match error.take_message() {
                // The connection had been closed: this request never left.
                Some(unsent) if reused && !retried => {
                    retried = true;
                    request = unsent;
                }
                _ => return Err(failed(flight, error.error())),
            },
        }
    }
}

fn failed(flight: &mut Flight, error: &hyper::Error) -> GatewayError {
    if error.is_user() {
        return match super::upload_error(error) {
            Some(super::UploadError::TooLarge) => flight.client().gateway.too_large(),
            _ => GatewayError::ClientGone,
        };
    }
    super::broke(flight, chain(error))
}

/// The instance's connection; the boolean says that it is not new.
async fn sender(flight: &mut Flight) -> Result<(SendRequest<RequestBody>, bool), GatewayError> {
    let Some(lease) = &flight.lease else { unreachable!("an exchange runs under a lease") };
    if let Some(sender) = flight.route.upstreams.shared(lease.sandbox()) {
        return Ok((sender, true));
    }
    let limit = flight.client().gateway.config.connect_timeout.0;
    let first = lease.connection().and_then(adopt);
    let reused = first.is_some();
    let opening = open(lease.endpoint(), first);
    let reason = match tokio::time::timeout(limit, opening).await {
        Ok(Ok(connection)) => {
            let sender = connection.sender.clone();
            flight.route.upstreams.share(lease.sandbox(), connection);
            return Ok((sender, reused));
        }
        Ok(Err(reason)) => reason,
        Err(_) => format!("not within {} ms", limit.as_millis()),
    };
    let reason = lease.ended().map_or(reason, |end| end.to_string());
    let error = GatewayError::Unreachable { sandbox: lease.sandbox().clone(), reason };
    if let Some(lease) = flight.lease.take() {
        lease.failed();
    }
    Err(error)
}

async fn open(endpoint: std::net::SocketAddr, first: Option<TcpStream>) -> Result<Shared, String> {
    let io = match first {
        Some(io) => io,
        None => connect(endpoint).await.map_err(|error| error.to_string())?,
    };
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await.map_err(|error| chain(&error))?;
    let carrier = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an instance ended");
        }
    });
    Ok(Shared { sender, carrier })
}

fn absolute(uri: &Uri, host: &str) -> Result<Uri, GatewayError> {
    let bad = GatewayError::BadRequest("its Host is not a host");
    let Ok(authority) = Authority::try_from(host) else { return Err(bad) };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    let root = || PathAndQuery::from_static("/");
    parts.path_and_query = Some(uri.path_and_query().cloned().unwrap_or_else(root));
    Uri::from_parts(parts).map_err(|_| bad)
}

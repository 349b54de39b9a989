//! Where brokers take events: `POST /<namespace>/<broker>` at their host.
//!
//! # Source
//! Knative Eventing, `pkg/broker/ingress/ingress_handler.go`; its data plane contract.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::flight::Client;
use super::reply::ReplyBody;
use super::respond_async::read;
use super::{host_of, refusal, without_port};
use crate::admission::broker_of;
use crate::eventing::{Event, PublishError};
use crate::status::GatewayError;

/// What is asked of a sender that asks first.
const ALLOWED: HeaderValue = HeaderValue::from_static("POST, OPTIONS");
const ORIGIN: HeaderName = HeaderName::from_static("webhook-allowed-origin");
const RATE: HeaderName = HeaderName::from_static("webhook-allowed-rate");

/// Whether a request that no service answers to is for the brokers.
pub(super) fn is_wanted(client: &Client, parts: &Parts) -> bool {
    let host = host_of(parts).ok().flatten();
    host.is_some_and(|host| client.gateway.eventing.is_ingress(without_port(host)))
}

/// Takes an event; 202 once it is on disk for everyone who wants it.
pub(super) async fn accept(
    client: &Arc<Client>,
    parts: &Parts,
    body: Incoming,
) -> Response<ReplyBody> {
    if parts.method == Method::OPTIONS {
        let mut response = said(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, ALLOWED);
        headers.insert(ORIGIN, HeaderValue::from_static("*"));
        headers.insert(RATE, HeaderValue::from_static("*"));
        return response;
    }
    if parts.method != Method::POST {
        let mut response = refusal(&GatewayError::NoPost);
        response.headers_mut().insert(header::ALLOW, ALLOWED);
        return response;
    }
    match publish(client, parts, body).await {
        Ok(()) => said(StatusCode::ACCEPTED),
        Err(error) => refusal(&error),
    }
}

fn said(status: StatusCode) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Text(Bytes::new()));
    *response.status_mut() = status;
    response
}

async fn publish(client: &Arc<Client>, parts: &Parts, body: Incoming) -> Result<(), GatewayError> {
    let gateway = &client.gateway;
    let eventing = &gateway.eventing;
    let Some((namespace, broker)) = broker_of(parts.uri.path()) else {
        let path = parts.uri.path().chars().take(200).collect();
        return Err(GatewayError::NoBrokerPath(path));
    };
    if gateway.catalog.objects.broker(namespace, broker).is_none() {
        let unknown = PublishError::NoBroker(namespace.to_owned(), broker.to_owned());
        return Err(unknown.into());
    }
    let limit = gateway.config.head_timeout.0;
    let _busy = client.busy(gateway.next_id(), Instant::now() + limit);
    let most = eventing.config.max_event;
    let body = {
        let _turn = eventing.queue.turn_to_read().map_err(PublishError::Queue)?;
        match tokio::time::timeout(limit, read(body, most.0)).await {
            Ok(Ok(body)) => body,
            Ok(Err(GatewayError::BodyTooLarge(_))) => {
                return Err(GatewayError::EventTooLarge(most));
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(GatewayError::ClientGone),
        }
    };
    let event = Event::read(&parts.headers, body, eventing.max_attributes)?;
    let context = crate::eventing::trace_context(&parts.headers);
    Ok(eventing.publish((namespace, broker), event, context).await?)
}

//! CloudEvents: brokers take them, triggers say who gets which, and what a function replies is an
//! event again.
//!
//! ```text
//!   client ──► gateway ──► Eventing::publish ──► filters ──► events.redb           202
//!                 ▲                ▲                             │ one entry per trigger
//!                 │                └── the reply, if it is one ◄─┤
//!                 └──── POST to the subscriber, again on failure ┴──► dead letter sink
//! ```
//!
//! At least once: an entry goes when the subscriber has said 2xx, and in the same step on disk the
//! entries of its reply come. Delivery is the queue of asynchronous invocations with an errand of
//! its own, so that each try is an invocation like any other.
//!
//! # Source
//! Knative Eventing, data plane contract; CloudEvents 1.0.2.

mod deliver;
mod event;
mod filter;
mod losses;
mod metrics;
mod spec;
mod structured;

use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use jiff::Timestamp;
use vhive_api::InvocationId;

pub(crate) use self::deliver::Delivery;
pub(crate) use self::event::{Event, Malformed};
pub(crate) use self::filter::Filter;
pub(crate) use self::losses::{Cause, Loss, Losses};
pub(crate) use self::metrics::{Figures, register};
pub(crate) use self::spec::{
    Backoff, BrokerSpec, DeliverySpec, INGRESS, LONGEST_PAUSE, Sink, To, TriggerSpec,
};
use crate::catalog::Catalog;
use crate::config::{Config, EventingConfig};
use crate::deferred::{AcceptError, Deferred, News, Pending};
use crate::kind::Kind;
use crate::registry::Spec;
use crate::store::StoreError;

/// How often the event may still come to a broker, in an attribute of Knative's name.
const TTL: &str = "knativebrokerttl";

/// When the broker took it.
const ARRIVAL: &str = "knativearrivaltime";

/// Header fields.
type Fields = Vec<(String, Vec<u8>)>;

/// Fields that say which trace a request belongs to: what an event leads to belongs to it as well.
const CONTEXT: [&str; 3] = ["traceparent", "tracestate", "b3"];

/// The fields of a request that say which trace it belongs to.
pub(crate) fn trace_context(headers: &HeaderMap) -> Fields {
    let each = CONTEXT.into_iter().filter_map(|name| {
        let value = headers.get(name)?;
        Some((name.to_owned(), value.as_bytes().to_vec()))
    });
    each.collect()
}

/// The same of what waits.
fn kept_context(fields: &[(String, Vec<u8>)]) -> impl Iterator<Item = (String, Vec<u8>)> {
    fields.iter().filter(|(name, _)| CONTEXT.contains(&name.as_str())).cloned()
}

/// Why a broker does not take an event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// There is no such broker.
    #[error("there is no broker {1:?} in namespace {0:?}")]
    NoBroker(String, String),
    /// It has come to brokers too often.
    #[error("its `{TTL}` is used up or is no number: it has led to too many replies")]
    Loop,
    /// It cannot be kept.
    #[error(transparent)]
    Queue(#[from] AcceptError),
}

/// The brokers' side of a node.
#[derive(Debug)]
pub(crate) struct Eventing {
    pub(crate) config: EventingConfig,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) queue: Arc<Deferred>,
    /// Bytes that attributes may take as header fields.
    pub(crate) max_attributes: usize,
}

impl Eventing {
    /// Opens the queue of deliveries; what is pending in it is news. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(
        path: &Path,
        config: &Config,
        catalog: Arc<Catalog>,
    ) -> Result<(Arc<Self>, News), StoreError> {
        let (queue, news) = Deferred::open(path, config.eventing.queue())?;
        // The other half is for the fields that the gateway and HTTP add.
        let half = config.gateway.max_head.0 / 2;
        let max_attributes = usize::try_from(half).unwrap_or(usize::MAX);
        let eventing = Self { config: config.eventing.clone(), catalog, queue, max_attributes };
        Ok((Arc::new(eventing), news))
    }

    /// Whether a host, without its port, is that of the brokers.
    pub(crate) fn is_ingress(&self, host: &str) -> bool {
        self.catalog.is_below(host, INGRESS)
    }

    /// Takes an event for a broker; it is on disk for every trigger that wants it when this returns.
    ///
    /// # Errors
    /// [`PublishError`]; then nobody gets it.
    pub(crate) async fn publish(
        &self,
        (namespace, broker): (&str, &str),
        mut event: Event,
        context: Fields,
    ) -> Result<(), PublishError> {
        let unknown = || PublishError::NoBroker(namespace.to_owned(), broker.to_owned());
        let found = self.catalog.objects.broker(namespace, broker).ok_or_else(unknown)?;
        let hops = match event.take(TTL) {
            None => self.config.hops,
            Some(text) => match text.parse::<u32>() {
                Ok(left) if left > 1 => (left - 1).min(self.config.hops),
                _ => {
                    found.figures.looped();
                    let message = format!("an event was not taken: {}", PublishError::Loop);
                    self.lost((Kind::Broker, namespace, broker), Cause::Looped, message);
                    return Err(PublishError::Loop);
                }
            },
        };
        let deliveries = self.deliveries((namespace, broker), event, context, hops);
        let accepted = self.queue.accept(deliveries).await;
        found.figures.taken(accepted.is_ok());
        Ok(accepted?)
    }

    /// Has it told of an object that one of its events went nowhere.
    fn lost(&self, (kind, namespace, name): (Kind, &str, &str), cause: Cause, message: String) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.catalog.losses.add(Loss { kind, namespace, name, cause, message });
    }

    /// One entry for each trigger that wants an event.
    fn deliveries(
        &self,
        (namespace, broker): (&str, &str),
        mut event: Event,
        context: Fields,
        hops: u32,
    ) -> Vec<Pending> {
        let now = Timestamp::now();
        event.set(ARRIVAL, now.to_string());
        let triggers = self.catalog.objects.triggers_of(namespace, broker);
        let wanting = triggers.iter().filter(|trigger| match &trigger.spec {
            Ok(Spec::Trigger(spec)) => spec.filters.iter().all(|filter| filter.matches(&event)),
            _ => false,
        });
        let mut fields = event.fields();
        fields.extend(context);
        let each = wanting.map(|trigger| {
            let delivery = Delivery {
                namespace: namespace.to_owned(),
                broker: broker.to_owned(),
                trigger: trigger.stored.name.clone(),
                uid: trigger.stored.uid.clone(),
                hops,
                dead_letter: None,
            };
            pending(delivery, fields.clone(), event.data.clone(), now)
        });
        each.collect()
    }
}

/// An entry of the queue. Where it goes is found out when it goes.
fn pending(delivery: Delivery, fields: Fields, body: bytes::Bytes, now: Timestamp) -> Pending {
    let id = getrandom::u64().expect("the kernel's random source answers after boot");
    Pending {
        id: InvocationId::from_bits(id).as_str().to_owned(),
        accepted: now,
        host: String::new(),
        method: "POST".to_owned(),
        target: String::new(),
        fields,
        body,
        lane: None,
        event: Some(Box::new(delivery)),
    }
}

//! One event on its way to one subscriber, or to a dead letter sink.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::Event;
use super::spec::{DeliverySpec, Sink, To, TriggerSpec, is_retried};
use super::{Cause, Eventing, TTL, kept_context, pending};
use crate::deferred::{End, Errand, Got, Pending, SendError, Sending, Verdict};
use crate::kind::Kind;
use crate::registry::Spec;

/// Longest `knativeerrordata`, as in Knative.
const LONGEST_DATA: usize = 1024;

/// How often one is looked at again whose trigger is not understood.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whom an entry of the queue is for. What the trigger says is looked up at each try, so that a
/// corrected one is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delivery {
    pub(crate) namespace: String,
    pub(crate) broker: String,
    pub(crate) trigger: String,
    /// The trigger's: another one of the same name gets nothing.
    pub(crate) uid: String,
    /// How often what it leads to may still come to a broker.
    pub(crate) hops: u32,
    /// It has failed, and goes there instead of to the subscriber.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dead_letter: Option<Sink>,
}

/// Why a try has failed.
struct Failure {
    status: StatusCode,
    /// What the subscriber said, or why it said nothing.
    said: Bytes,
    retried: bool,
}

impl Eventing {
    fn trigger(&self, delivery: &Delivery) -> Option<TriggerSpec> {
        let found = self.catalog.objects.trigger(&delivery.namespace, &delivery.trigger)?;
        match &found.spec {
            Ok(Spec::Trigger(spec)) if found.stored.uid == delivery.uid => Some(spec.clone()),
            _ => None,
        }
    }

    /// How hard a delivery is tried: as its trigger says, or its broker.
    fn policy(&self, delivery: &Delivery, trigger: Option<&TriggerSpec>) -> DeliverySpec {
        let of_trigger = trigger.and_then(|trigger| trigger.delivery.clone());
        let broker = self.catalog.objects.broker(&delivery.namespace, &delivery.broker);
        let of_broker = broker.and_then(|broker| match &broker.spec {
            Ok(Spec::Broker(spec)) => Some(spec.delivery.clone()),
            _ => None,
        });
        let mut policy = of_trigger.or_else(|| of_broker.clone()).unwrap_or_default();
        let sink = of_broker.and_then(|broker| broker.dead_letter);
        policy.dead_letter = policy.dead_letter.or(sink);
        policy
    }

    fn failed(&self, entry: &Pending, delivery: &Delivery, why: &Failure, tries: u32) -> Verdict {
        let trigger = self.trigger(delivery);
        let policy = self.policy(delivery, trigger.as_ref());
        if why.retried
            && let Some(pause) = policy.pause(tries)
        {
            return Verdict::Again(pause);
        }
        // A dead letter that cannot be delivered has nowhere to go.
        let sink = policy.dead_letter.filter(|_| delivery.dead_letter.is_none());
        let subscriber = trigger.map(|trigger| trigger.subscriber);
        match (sink, subscriber) {
            (Some(sink), Some(subscriber)) => {
                let letter = self.dead_letter(entry, delivery, why, (sink, &subscriber));
                Verdict::Next(letter.into_iter().collect(), End::DeadLettered)
            }
            (_, subscriber) => {
                self.dropped(delivery, subscriber.as_ref(), why.status);
                Verdict::Next(Vec::new(), End::Dropped)
            }
        }
    }

    fn dropped(&self, delivery: &Delivery, subscriber: Option<&Sink>, status: StatusCode) {
        let (cause, sink) = match &delivery.dead_letter {
            Some(sink) => (Cause::DeadLetterUndelivered, Some(sink)),
            None => (Cause::Undelivered, subscriber),
        };
        let Some(sink) = sink else { return };
        let what = if cause == Cause::Undelivered { "an event" } else { "a dead letter" };
        let uri = sink.uri(self.catalog.domain());
        let message = format!("{what} was not delivered to {uri}, which answers {status}");
        let of = (Kind::Trigger, delivery.namespace.as_str(), delivery.trigger.as_str());
        self.lost(of, cause, message);
    }

    fn dead_letter(
        &self,
        entry: &Pending,
        delivery: &Delivery,
        why: &Failure,
        (sink, subscriber): (Sink, &Sink),
    ) -> Option<Pending> {
        let mut event = Event::of_fields(&entry.fields, entry.body.clone()).ok()?;
        let mut data = STANDARD.encode(&why.said);
        data.truncate(LONGEST_DATA);
        event.set("knativeerrordest", subscriber.uri(self.catalog.domain()));
        event.set("knativeerrorcode", why.status.as_u16().to_string());
        event.set("knativeerrordata", data);
        let delivery = Delivery { dead_letter: Some(sink), ..delivery.clone() };
        let mut fields = event.fields();
        fields.extend(kept_context(&entry.fields));
        Some(pending(delivery, fields, event.data, Timestamp::now()))
    }

    /// What a subscriber's 2xx leads to.
    fn replied(
        &self,
        entry: &Pending,
        delivery: &Delivery,
        got: &Got,
    ) -> Result<Vec<Pending>, Failure> {
        // 202 says that it has been taken and nothing else, whatever comes with it.
        let silent = got.parts.status == StatusCode::ACCEPTED || delivery.dead_letter.is_some();
        if silent || !Event::is_claimed(&got.parts.headers) {
            return Ok(Vec::new());
        }
        let read = Event::read(&got.parts.headers, got.body.clone(), self.max_attributes);
        let mut event = read.map_err(|error| Failure {
            status: StatusCode::BAD_GATEWAY,
            said: format!("the reply is no event: {error}").into(),
            retried: true,
        })?;
        event.take(TTL);
        let (namespace, name) = (&delivery.namespace, &delivery.broker);
        let Some(broker) = self.catalog.objects.broker(namespace, name) else {
            return Ok(Vec::new());
        };
        if delivery.hops <= 1 {
            broker.figures.looped();
            tracing::warn!(
                %namespace, broker = %name, trigger = %delivery.trigger,
                "a reply is dropped: the event has led to too many"
            );
            let message = "a reply was dropped: the event has led to too many of them";
            let of = (Kind::Trigger, namespace.as_str(), delivery.trigger.as_str());
            self.lost(of, Cause::Looped, message.to_owned());
            return Ok(Vec::new());
        }
        let context = kept_context(&entry.fields).collect();
        Ok(self.deliveries((namespace, name), event, context, delivery.hops - 1))
    }
}

impl Errand for Eventing {
    fn prepare(&self, entry: &Pending) -> Option<Sending> {
        let delivery = entry.event.as_deref()?;
        let trigger = self.trigger(delivery);
        let timeout = self.policy(delivery, trigger.as_ref()).timeout;
        let sink = match &delivery.dead_letter {
            Some(sink) => sink.clone(),
            None => trigger?.subscriber,
        };
        let mut fields = Vec::new();
        if delivery.dead_letter.is_none() {
            fields.push(("prefer", "reply".to_owned()));
        }
        let host = match sink.to {
            To::Broker => sink.host(self.catalog.domain()),
            To::Service | To::Host => self.catalog.host_inside(&sink.name, &sink.namespace),
        };
        let target = sink.path();
        if delivery.dead_letter.is_some() || self.is_ingress(&host) {
            // A circle of brokers ends as well.
            fields.push(("ce-knativebrokerttl", delivery.hops.to_string()));
        }
        Some(Sending { host, target, fields, timeout })
    }

    fn lane(&self, entry: &Pending) -> Option<(String, usize)> {
        Some((entry.lane().to_owned(), self.config.per_trigger))
    }

    fn judge(
        &self,
        entry: &Pending,
        got: Result<Got, SendError>,
        attempt: u32,
        took: Duration,
    ) -> Verdict {
        let Some(delivery) = entry.event.as_deref() else {
            return Verdict::Next(Vec::new(), End::Dropped);
        };
        let arrived = got.as_ref().is_ok_and(|got| got.parts.status.is_success());
        if let Some(trigger) = self.catalog.objects.trigger(&delivery.namespace, &delivery.trigger)
            && !matches!(got, Err(SendError::NoRoom(_)))
        {
            trigger.figures.tried(arrived, took);
        }
        let failure = match got {
            Ok(got) if got.parts.status.is_success() => match self.replied(entry, delivery, &got) {
                Ok(next) => return Verdict::Next(next, End::Delivered),
                Err(failure) => failure,
            },
            Ok(got) => {
                let status = got.parts.status;
                Failure { status, said: got.body, retried: is_retried(status) }
            }
            Err(error) => {
                let status = match error {
                    SendError::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
                    SendError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let retried = !matches!(error, SendError::Request(_));
                Failure { status, said: format!("dispatch error: {error}").into(), retried }
            }
        };
        self.failed(entry, delivery, &failure, attempt)
    }

    fn unwanted(&self, entry: &Pending) -> Verdict {
        let misunderstood = entry.event.as_deref().is_some_and(|delivery| {
            let found = self.catalog.objects.trigger(&delivery.namespace, &delivery.trigger);
            found.is_some_and(|found| found.stored.uid == delivery.uid && found.spec.is_err())
        });
        if misunderstood {
            // It is still somebody's: of another domain, say, until that is set right.
            return Verdict::Again(LONGEST_PAUSE);
        }
        Verdict::Next(Vec::new(), End::Unwanted)
    }

    fn ended(&self, entry: &Pending, end: End) {
        let Some(delivery) = entry.event.as_deref() else { return };
        let Delivery { namespace, broker, trigger, .. } = delivery;
        if matches!(end, End::Dropped | End::Unwanted) {
            tracing::warn!(
                %namespace, %broker, %trigger, id = entry.id, ?end,
                "an event is not delivered"
            );
        }
        if let Some(found) = self.catalog.objects.trigger(namespace, trigger) {
            found.figures.ended(end, delivery.dead_letter.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::spec::To;
    use super::*;
    use crate::admission::Head;
    use crate::catalog::Catalog;
    use crate::config::Config;
    use crate::kind::Kind;
    use crate::registry::Object;
    use crate::store::StoredObject;

    /// A node's brokers with one trigger of this meaning, and an entry for it.
    fn scene(spec: Result<Spec, String>) -> (tempfile::TempDir, Arc<Eventing>, Pending) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Arc::new(Catalog::new("example.com", 1));
        let path = dir.path().join("events.redb");
        let (eventing, _news) = Eventing::open(&path, &Config::default(), catalog).unwrap();
        let (namespace, name) = ("default".to_owned(), "t".to_owned());
        let head = Head { namespace, name, ..Head::default() };
        let stored = StoredObject::new(&head, &json!({}), Timestamp::UNIX_EPOCH);
        let delivery = Delivery {
            namespace: "default".to_owned(),
            broker: "default".to_owned(),
            trigger: "t".to_owned(),
            uid: stored.uid.clone(),
            hops: 7,
            dead_letter: None,
        };
        eventing.catalog.objects.put(Arc::new(Object {
            kind: Kind::Trigger,
            stored: Arc::new(stored),
            spec,
            needs: Vec::new(),
            version: 1,
            changed: Timestamp::UNIX_EPOCH,
            figures: Arc::default(),
        }));
        let entry = pending(delivery, Vec::new(), Bytes::new(), Timestamp::UNIX_EPOCH);
        (dir, eventing, entry)
    }

    fn to(to: To, namespace: &str, name: &str) -> Sink {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Sink { to, namespace, name, target: "/default/other".to_owned() }
    }

    #[test]
    fn whatever_leads_to_a_broker_carries_its_hops() {
        let hops = |to: Sink| {
            let subscriber = to;
            let broker = "default".to_owned();
            let spec = TriggerSpec { broker, filters: Vec::new(), subscriber, delivery: None };
            let (_dir, eventing, entry) = scene(Ok(Spec::Trigger(spec)));
            let sending = eventing.prepare(&entry).expect("wanted");
            let found = sending.fields.into_iter().find(|(name, _)| *name == "ce-knativebrokerttl");
            found.map(|(_, value)| value)
        };
        assert_eq!(hops(to(To::Service, "default", "hello")), None);
        // As a broker, and by its host, as earlier versions kept it; also as a tag of a service.
        for sink in [
            to(To::Broker, "default", "other"),
            to(To::Host, "knative-eventing", "broker-ingress"),
            to(To::Service, "knative-eventing", "broker-ingress"),
        ] {
            assert_eq!(hops(sink.clone()).as_deref(), Some("7"), "{sink:?}");
        }
    }

    #[test]
    fn what_is_for_a_trigger_that_is_not_understood_stays() {
        let (_dir, eventing, mut entry) = scene(Err("of a later version".to_owned()));
        assert!(eventing.prepare(&entry).is_none(), "nobody knows where it goes");
        let verdict = eventing.unwanted(&entry);
        assert!(matches!(verdict, Verdict::Again(LONGEST_PAUSE)), "{verdict:?}");
        // Another trigger of the same name is another one.
        entry.event.as_mut().unwrap().uid = "another".to_owned();
        let verdict = eventing.unwanted(&entry);
        assert!(matches!(&verdict, Verdict::Next(next, End::Unwanted) if next.is_empty()));
    }
}

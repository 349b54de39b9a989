//! What has happened to services, for `kubectl describe` and `kubectl get events`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Services;
use crate::changes::{Change, What};
use crate::kind::Kind;
use crate::objects;

/// Events kept.
const KEPT: usize = 1000;

/// Events of one object for one reason that are kept with their own words; the next takes the place
/// of the oldest of them and counts on.
const ALIKE: usize = 10;

/// Least time between two reports of lost events.
const BREATH: Duration = Duration::from_secs(1);

/// The last events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events(Mutex<VecDeque<Value>>);

/// Whether an event is one to worry about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Normal,
    Warning,
}

impl Services {
    /// The last events, or those of one namespace, oldest first.
    pub(crate) fn events(&self, namespace: Option<&str>) -> Vec<Value> {
        let events = self.events.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = events.iter().filter(|event| {
            namespace.is_none_or(|namespace| event["metadata"]["namespace"] == namespace)
        });
        wanted.cloned().collect()
    }

    /// Tells of events that brokers and triggers have lost, until the task is aborted.
    pub(crate) async fn follow_losses(self: Arc<Self>) {
        loop {
            let losses = self.catalog.losses.next().await;
            let changing = self.changing.lock().await;
            for (loss, count) in &losses {
                let found = self.catalog.objects.get(loss.kind, &loss.namespace, &loss.name);
                let Some(object) = found else { continue };
                let about = objects::plain(&self.catalog, &object);
                let told = (loss.cause.as_str(), loss.message.as_str());
                self.note_often((loss.kind, &about), Tone::Warning, told, *count);
            }
            drop(changing);
            tokio::time::sleep(BREATH).await;
        }
    }

    /// Keeps an event of an object and tells who watches. The lock for changes is held.
    pub(super) fn note(&self, kind: Kind, about: &Value, tone: Tone, told: (&str, &str)) {
        self.note_often((kind, about), tone, told, 1);
    }

    /// Likewise of something that has happened several times. What has been told of the object in
    /// the same words is counted on, and so is what has been told for the same reason in too many
    /// others: no object's events push those of all the others out.
    fn note_often(
        &self,
        (kind, about): (Kind, &Value),
        tone: Tone,
        told: (&str, &str),
        count: u32,
    ) {
        let (version, now) = (self.next_version(), objects::seconds(Timestamp::now()));
        let (reason, message) = told;
        let of = |field: &str| about["metadata"][field].clone();
        let uid = of("uid");
        let mut events = self.events.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = events.iter().enumerate().filter(|(_, event)| {
            event["involvedObject"]["uid"] == uid && event["reason"] == reason
        });
        let alike: Vec<(usize, &Value)> = alike.collect();
        let same = alike.iter().rfind(|(_, event)| event["message"] == message);
        let place = same.or_else(|| alike.first().filter(|_| alike.len() >= ALIKE));
        let place = place.map(|(at, _)| *at);
        let known = place.and_then(|at| events.remove(at));
        let what = if known.is_some() { What::Modified } else { What::Added };
        let mut event = known.unwrap_or_else(|| {
            let name = of("name");
            json!({
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": format!("{}.{version:x}", name.as_str().unwrap_or_default()),
                    "namespace": of("namespace"),
                    "uid": crate::store::uid_of("event", &version.to_string()),
                    "creationTimestamp": now,
                },
                "involvedObject": {
                    "apiVersion": kind.api_version(),
                    "kind": kind.as_str(),
                    "name": name,
                    "namespace": of("namespace"),
                    "uid": of("uid"),
                    "resourceVersion": of("resourceVersion"),
                },
                "type": if tone == Tone::Normal { "Normal" } else { "Warning" },
                "reason": reason,
                "message": message,
                "source": {"component": "vhive"},
                "firstTimestamp": now,
                "count": 0,
            })
        });
        event["message"] = Value::from(message);
        let before = event["count"].as_u64().unwrap_or(0);
        event["count"] = Value::from(before.saturating_add(u64::from(count)));
        event["lastTimestamp"] = Value::from(now);
        event["metadata"]["resourceVersion"] = Value::from(version.to_string());
        let change = Change::new(version, Kind::Event, what, &event);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.changes.publish([change]);
    }
}

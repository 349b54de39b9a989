//! What has happened to services, for `kubectl describe` and `kubectl get events`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Services;
use crate::changes::{Change, What};
use crate::kind::Kind;
use crate::objects;

/// Events kept.
const KEPT: usize = 1000;

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

    /// Keeps an event of an object and tells who watches. The lock for changes is held.
    pub(super) fn note(&self, kind: Kind, about: &Value, tone: Tone, told: (&str, &str)) {
        let (version, now) = (self.next_version(), objects::seconds(Timestamp::now()));
        let (reason, message) = told;
        let of = |field: &str| about["metadata"][field].clone();
        let name = of("name");
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": format!("{}.{version:x}", name.as_str().unwrap_or_default()),
                "namespace": of("namespace"),
                "uid": crate::store::uid_of("event", &version.to_string()),
                "resourceVersion": version.to_string(),
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
            "lastTimestamp": now,
            "count": 1,
        });
        let change = Change::new(version, Kind::Event, What::Added, &event);
        let mut events = self.events.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.changes.publish([change]);
    }
}

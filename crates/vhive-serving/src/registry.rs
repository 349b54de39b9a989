//! The objects without revisions, by name: brokers, triggers, routes that no service makes, and
//! namespaces.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;

use crate::eventing::{BrokerSpec, DeliverySpec, Figures, Sink, To, TriggerSpec};
use crate::kind::Kind;
use crate::store::StoredObject;
use crate::traffic::{Held, Target};

/// Namespace and name.
type Key = (String, String);

/// What an object asks for, once its document is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    Broker(BrokerSpec),
    Trigger(TriggerSpec),
    Route(Vec<Target>),
    Namespace,
}

/// An object as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) stored: Arc<StoredObject>,
    /// What its `spec` means, or why it means nothing any more.
    pub(crate) spec: Result<Spec, String>,
    /// What it needs, in the order of the conditions' names.
    pub(crate) needs: Vec<(&'static str, Option<Unmet>)>,
    /// Its version as an object.
    pub(crate) version: u64,
    /// When its conditions changed last.
    pub(crate) changed: Timestamp,
    pub(crate) figures: Arc<Figures>,
}

/// What an object needs and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unmet {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Whether it may still come by itself.
    pub(crate) pending: bool,
}

impl Unmet {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message, pending: false }
    }
}

impl From<Held> for Unmet {
    /// # Source
    /// Knative Serving, `pkg/apis/serving/v1/route_lifecycle.go`.
    fn from(held: Held) -> Self {
        let reason = match &held {
            Held::NoConfiguration(_) => "ConfigurationMissing",
            Held::Missing(_) | Held::NotReady(_) | Held::NoneReady | Held::NotConfigured(_) => {
                "RevisionMissing"
            }
        };
        let pending = !matches!(held, Held::Missing(_) | Held::NoConfiguration(_));
        Self { reason, message: held.to_string(), pending }
    }
}

impl Object {
    /// What keeps it from being ready.
    pub(crate) fn unmet(&self) -> Option<&Unmet> {
        self.needs.iter().find_map(|(_, unmet)| unmet.as_ref())
    }

    /// The dead letter sink that it names itself.
    pub(crate) fn dead_letter(&self) -> Option<&Sink> {
        match self.spec.as_ref().ok()? {
            Spec::Broker(spec) => spec.delivery.dead_letter.as_ref(),
            Spec::Trigger(spec) => {
                spec.delivery.as_ref().and_then(|delivery| delivery.dead_letter.as_ref())
            }
            Spec::Route(_) | Spec::Namespace => None,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    brokers: Table,
    triggers: Table,
    routes: Table,
    /// In no namespace themselves, which is the empty one.
    namespaces: Table,
}

type Table = RwLock<BTreeMap<Key, Arc<Object>>>;

impl Registry {
    fn table(&self, kind: Kind) -> Option<&Table> {
        match kind {
            Kind::Broker => Some(&self.brokers),
            Kind::Trigger => Some(&self.triggers),
            Kind::Route => Some(&self.routes),
            Kind::Namespace => Some(&self.namespaces),
            _ => None,
        }
    }

    /// One object.
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.table(kind)?.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// A broker.
    pub(crate) fn broker(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.get(Kind::Broker, namespace, name)
    }

    /// A trigger.
    pub(crate) fn trigger(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.get(Kind::Trigger, namespace, name)
    }

    /// Every object of a kind, or those of one namespace, by name.
    pub(crate) fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let Some(table) = self.table(kind) else { return Vec::new() };
        let table = table.read().unwrap_or_else(PoisonError::into_inner);
        match namespace {
            None => table.values().cloned().collect(),
            Some(namespace) => {
                let from = (namespace.to_owned(), String::new());
                let of_it = table.range(from..).take_while(|((of, _), _)| of == namespace);
                of_it.map(|(_, object)| Arc::clone(object)).collect()
            }
        }
    }

    /// The triggers of a broker.
    pub(crate) fn triggers_of(&self, namespace: &str, broker: &str) -> Vec<Arc<Object>> {
        let mut all = self.list(Kind::Trigger, Some(namespace));
        all.retain(|trigger| match &trigger.spec {
            Ok(Spec::Trigger(spec)) => spec.broker == broker,
            _ => false,
        });
        all
    }

    /// Puts an object in place.
    pub(crate) fn put(&self, object: Arc<Object>) {
        let key = (object.stored.namespace.clone(), object.stored.name.clone());
        if let Some(table) = self.table(object.kind) {
            table.write().unwrap_or_else(PoisonError::into_inner).insert(key, object);
        }
    }

    /// Takes an object out.
    pub(crate) fn remove(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.table(kind)?.write().unwrap_or_else(PoisonError::into_inner).remove(&key)
    }

    /// What a broker or trigger needs to be ready, given which services there are.
    pub(crate) fn needs(
        &self,
        namespace: &str,
        spec: &Result<Spec, String>,
        has_service: impl Fn(&str, &str) -> bool,
    ) -> Vec<(&'static str, Option<Unmet>)> {
        let resolve = |sink: Option<&Sink>, reason| {
            let sink = sink?;
            let (namespace, name) = (&sink.namespace, &sink.name);
            let (there, what) = match sink.to {
                To::Service => (has_service(namespace, name), "service"),
                To::Broker => (self.broker(namespace, name).is_some(), "broker"),
                To::Host => (true, "host"),
            };
            let message = format!("there is no {what} {name:?} in namespace {namespace:?}");
            (!there).then(|| Unmet::new(reason, message))
        };
        let dead = |delivery: Option<&DeliverySpec>| {
            let sink = delivery.and_then(|delivery| delivery.dead_letter.as_ref());
            resolve(sink, "DeadLetterSinkNotFound")
        };
        match spec {
            Err(why) => {
                let unmet = Unmet::new("SpecNotUnderstood", why.clone());
                vec![("SpecUnderstood", Some(unmet))]
            }
            // Those of a route are known to who leads its requests; a namespace needs nothing.
            Ok(Spec::Route(_) | Spec::Namespace) => Vec::new(),
            Ok(Spec::Broker(spec)) => vec![
                ("Addressable", None),
                ("DeadLetterSinkResolved", dead(Some(&spec.delivery))),
                ("FilterReady", None),
                ("IngressReady", None),
            ],
            Ok(Spec::Trigger(spec)) => {
                let broker = self.broker(namespace, &spec.broker);
                let message = || format!("Broker {:?} does not exist", spec.broker);
                let absent = broker.is_none().then(|| Unmet::new("BrokerDoesNotExist", message()));
                let subscriber = resolve(Some(&spec.subscriber), "SubscriberNotFound");
                vec![
                    ("BrokerReady", absent),
                    ("DeadLetterSinkResolved", dead(spec.delivery.as_ref())),
                    ("DependencyReady", None),
                    ("SubscriberResolved", subscriber.clone()),
                    ("SubscriptionReady", subscriber),
                ]
            }
        }
    }
}

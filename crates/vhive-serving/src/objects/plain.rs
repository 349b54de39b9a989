//! Objects without revisions: brokers, triggers, routes that no service makes, and namespaces.
//!
//! # Source
//! Knative Eventing, `pkg/apis/eventing/v1`, and Serving, `pkg/apis/serving/v1`, lifecycles and
//! statuses.

use serde_json::{Value, json};

use super::conditions::Condition;
use super::namespace::namespace;
use super::{addresses, metadata};
use crate::catalog::Catalog;
use crate::eventing::{Sink, To};
use crate::kind::Kind;
use crate::registry::{Object, Spec, Unmet};

/// The label that Knative gives a trigger.
pub(crate) const BROKER_LABEL: &str = "eventing.knative.dev/broker";

/// An object with its status.
pub(crate) fn plain(catalog: &Catalog, object: &Object) -> Value {
    let stored = &object.stored;
    if object.kind == Kind::Namespace {
        return namespace(stored, object.version);
    }
    let mut metadata = metadata(stored, object.version);
    let domain = catalog.domain();
    let mut status = json!({
        "observedGeneration": stored.generation,
        "conditions": conditions(object),
    });
    match &object.spec {
        Ok(Spec::Broker(_)) => {
            let (to, target) = (To::Broker, "/".to_owned());
            let (namespace, name) = (stored.namespace.clone(), stored.name.clone());
            let url = Sink { to, namespace, name, target }.uri(domain);
            status["address"] = json!({"name": "http", "url": url});
        }
        Ok(Spec::Trigger(spec)) => {
            metadata["labels"][BROKER_LABEL] = Value::from(spec.broker.as_str());
            let resolved =
                |kind| object.needs.iter().any(|(need, unmet)| *need == kind && unmet.is_none());
            if resolved("SubscriberResolved") {
                status["subscriberUri"] = Value::from(spec.subscriber.uri(domain));
            }
        }
        Ok(Spec::Route(_)) => {
            let found = addresses(catalog, stored);
            for field in ["url", "address", "traffic"] {
                status[field] = found[field].clone();
            }
        }
        Ok(Spec::Namespace) | Err(_) => {}
    }
    let of_broker = match &object.spec {
        Ok(Spec::Trigger(spec)) => catalog.objects.broker(&stored.namespace, &spec.broker),
        _ => None,
    };
    let inherited = of_broker.as_ref().and_then(|broker| broker.dead_letter());
    if let Some(sink) = object.dead_letter().or(inherited) {
        status["deadLetterSinkUri"] = Value::from(sink.uri(domain));
    }
    json!({
        "apiVersion": object.kind.api_version(),
        "kind": object.kind.as_str(),
        "metadata": metadata,
        "spec": stored.spec.value(),
        "status": status,
    })
}

fn conditions(object: &Object) -> Vec<Value> {
    let ready = ("Ready", object.unmet().cloned());
    let mut all: Vec<&(&str, Option<Unmet>)> = object.needs.iter().collect();
    all.push(&ready);
    all.sort_by_key(|(kind, _)| *kind);
    let each = all.into_iter().map(|(kind, unmet)| {
        let condition = match unmet {
            None => Condition::holds(),
            Some(unmet) if unmet.pending => Condition::unknown(unmet.reason, unmet.message.clone()),
            Some(unmet) => Condition::fails(unmet.reason, unmet.message.clone()),
        };
        condition.show(kind, object.changed)
    });
    each.collect()
}

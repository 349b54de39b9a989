//! The fields of the `spec` of Knative's `Broker` and `Trigger`.
//!
//! # Source
//! Knative Eventing, `pkg/apis/eventing/v1` and `pkg/apis/duck/v1/delivery_types.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Uri;

use super::cursor::{Cursor, Fields};
use super::metadata::{label, strings};
use crate::eventing::{
    Backoff, BrokerSpec, DeliverySpec, Filter, INGRESS, LONGEST_PAUSE, Sink, To, TriggerSpec,
};
use crate::kind::{EVENTING, SERVING};

const BROKER: Fields = Fields { known: &["config", "delivery"], refused: &[] };

const TRIGGER: Fields =
    Fields { known: &["broker", "filter", "filters", "subscriber", "delivery"], refused: &[] };

const CONFIG: Fields = Fields { known: &["apiVersion", "kind", "name", "namespace"], refused: &[] };

const DELIVERY: Fields = Fields {
    known: &["deadLetterSink", "retry", "backoffPolicy", "backoffDelay", "timeout", "format"],
    refused: &[("retryAfterMax", "pauses are those of backoffPolicy and backoffDelay")],
};

const DESTINATION: Fields = Fields {
    known: &["ref", "uri"],
    refused: &[("CACerts", "events stay on this node"), ("audience", "events stay on this node")],
};

/// Longest URI of a sink.
const LONGEST_URI: usize = 1024;

const REFERENCE: Fields = Fields {
    known: &["apiVersion", "kind", "name", "namespace"],
    refused: &[("group", "say apiVersion"), ("address", "a sink has one address")],
};

const DIALECTS: Fields = Fields {
    known: &["exact", "prefix", "suffix", "all", "any", "not"],
    refused: &[(
        "cesql",
        "expressions are not evaluated; use exact, prefix, suffix, all, any, not",
    )],
};

/// Where hosts of a cluster itself end.
const CLUSTER: &str = "svc.cluster.local";

/// Levels of `filters`.
const DEEPEST_FILTER: usize = 16;

/// Where an object is.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) domain: &'a str,
}

pub(super) fn read_broker(spec: &Cursor<'_>, place: &Place<'_>) -> Option<BrokerSpec> {
    spec.expect_fields(&BROKER);
    if let Some(config) = spec.get("config") {
        // What installations of Knative name by default, and many manifests repeat.
        config.expect_fields(&CONFIG);
        let is_default = ["config-br-default-channel", "imc-channel"];
        if let Some(name) = config.get("name")
            && !is_default.iter().any(|default| name.value() == *default)
        {
            name.unsupported("not supported: there are no channels to configure");
        }
    }
    let delivery = match spec.get("delivery") {
        Some(delivery) => read_delivery(&delivery, place)?,
        None => DeliverySpec::default(),
    };
    Some(BrokerSpec { delivery })
}

pub(super) fn read_trigger(spec: &Cursor<'_>, place: &Place<'_>) -> Option<TriggerSpec> {
    spec.expect_fields(&TRIGGER);
    let broker = label(spec, "broker", 63);
    if spec.get("broker").is_none() {
        spec.missing("broker");
    }
    let old = spec.get("filter").map(|filter| read_attributes(&filter));
    let new = spec.get("filters").map(|filters| read_filters(&filters, DEEPEST_FILTER));
    // Knative looks at the former only if there are none of the latter.
    let filters = match (new, old) {
        (Some(new), _) if !new.is_empty() => new,
        (_, old) => old.flatten().into_iter().collect(),
    };
    let subscriber = match spec.get("subscriber") {
        Some(subscriber) => read_sink(&subscriber, place),
        None => {
            spec.missing("subscriber");
            None
        }
    };
    let delivery = match spec.get("delivery") {
        Some(delivery) => Some(read_delivery(&delivery, place)?),
        None => None,
    };
    Some(TriggerSpec { broker: broker?, filters, subscriber: subscriber?, delivery })
}

fn read_attributes(filter: &Cursor<'_>) -> Option<Filter> {
    filter.expect_fields(&Fields { known: &["attributes"], refused: &[] });
    let attributes = read_pairs(&filter.get("attributes")?, true);
    (!attributes.is_empty()).then_some(Filter::Attributes(attributes))
}

/// Attributes with the values that they are compared with.
fn read_pairs(pairs: &Cursor<'_>, with_any: bool) -> BTreeMap<String, String> {
    for (name, entry) in pairs.entries() {
        let mut bytes = name.bytes();
        let begins = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        if !begins || !bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            entry.invalid("is not the name of an attribute: lower-case letters, then also digits");
        }
        if !with_any && entry.value() == "" {
            entry.invalid("must not be empty");
        }
    }
    strings(pairs)
}

fn read_filters(list: &Cursor<'_>, levels: usize) -> Vec<Filter> {
    list.items().iter().filter_map(|filter| read_filter(filter, levels)).collect()
}

fn read_filter(filter: &Cursor<'_>, levels: usize) -> Option<Filter> {
    filter.expect_fields(&DIALECTS);
    if levels == 0 {
        filter.invalid(format!("must not be nested deeper than {DEEPEST_FILTER} levels"));
        return None;
    }
    let object = filter.object()?;
    let mut given = object.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name);
    let (Some(dialect), None) = (given.next(), given.next()) else {
        filter.invalid("must have exactly one of exact, prefix, suffix, all, any, not");
        return None;
    };
    let inner = filter.get(dialect)?;
    let pairs = |make: fn(BTreeMap<String, String>) -> Filter| {
        let pairs = read_pairs(&inner, false);
        if pairs.is_empty() {
            inner.invalid("must name an attribute");
        }
        Some(make(pairs))
    };
    let list = |make: fn(Vec<Filter>) -> Filter| {
        let filters = read_filters(&inner, levels - 1);
        if filters.is_empty() {
            inner.invalid("must have at least one filter");
        }
        Some(make(filters))
    };
    match dialect.as_str() {
        "exact" => pairs(Filter::Exact),
        "prefix" => pairs(Filter::Prefix),
        "suffix" => pairs(Filter::Suffix),
        "all" => list(Filter::All),
        "any" => list(Filter::Any),
        "not" => Some(Filter::Not(Box::new(read_filter(&inner, levels - 1)?))),
        _ => None,
    }
}

fn read_delivery(delivery: &Cursor<'_>, place: &Place<'_>) -> Option<DeliverySpec> {
    delivery.expect_fields(&DELIVERY);
    // A delivery that is there says everything; Knative fills defaults in for whole ones only.
    let most = u32::try_from(i32::MAX).unwrap_or(u32::MAX);
    let retry = delivery.get("retry").map_or(Some(0), |retry| retry.whole(0..=most));
    let backoff = match delivery.get("backoffPolicy") {
        None => Some(Backoff::Exponential),
        Some(policy) => match policy.text() {
            Some("linear") => Some(Backoff::Linear),
            Some("exponential") => Some(Backoff::Exponential),
            Some(_) => {
                policy.invalid("must be `linear` or `exponential`");
                None
            }
            None => None,
        },
    };
    let delay = delivery.get("backoffDelay").map(|delay| read_period(&delay, LONGEST_PAUSE));
    let timeout = delivery.get("timeout").map(|timeout| {
        let period = read_period(&timeout, LONGEST_PAUSE);
        if period == Some(Duration::ZERO) {
            timeout.invalid("must be more than nothing");
        }
        period
    });
    if let Some(format) = delivery.get("format")
        && format.text().is_some_and(|format| format != "binary")
    {
        format.unsupported("not supported: events are delivered in binary mode");
    }
    let dead_letter = match delivery.get("deadLetterSink") {
        Some(sink) => Some(read_sink(&sink, place)?),
        None => None,
    };
    Some(DeliverySpec {
        dead_letter,
        retry: retry?,
        backoff: backoff?,
        delay: delay.unwrap_or(Some(DeliverySpec::default().delay))?,
        timeout: match timeout {
            Some(timeout) => Some(timeout?),
            None => None,
        },
    })
}

/// A time as in ISO 8601, of hours, minutes and seconds.
fn read_period(cursor: &Cursor<'_>, longest: Duration) -> Option<Duration> {
    let text = cursor.text()?;
    let period: Option<jiff::SignedDuration> =
        text.starts_with('P').then(|| text.parse().ok()).flatten();
    let period = period.and_then(|period| Duration::try_from(period).ok());
    let period = period.filter(|period| *period <= longest);
    if period.is_none() {
        let hours = longest.as_secs() / 3600;
        cursor.invalid(format!("must be a time as in ISO 8601 like `PT0.2S`, at most PT{hours}H"));
    }
    period
}

fn read_sink(sink: &Cursor<'_>, place: &Place<'_>) -> Option<Sink> {
    sink.expect_fields(&DESTINATION);
    let (reference, uri) = (sink.get("ref"), sink.get("uri"));
    match (reference, uri) {
        (Some(reference), uri) => {
            let mut found = read_reference(&reference, place)?;
            if let Some(uri) = uri {
                found.target = read_target(&uri, found.to)?;
            }
            Some(found)
        }
        (None, Some(uri)) => read_uri(&uri, place),
        (None, None) => {
            sink.invalid("must have `ref` or `uri`");
            None
        }
    }
}

fn read_reference(reference: &Cursor<'_>, place: &Place<'_>) -> Option<Sink> {
    reference.expect_fields(&REFERENCE);
    let text = |field| reference.get(field).and_then(|found| found.text());
    for field in ["apiVersion", "kind", "name"] {
        if reference.get(field).is_none() {
            reference.missing(field);
        }
    }
    let to = match (text("apiVersion")?, text("kind")?) {
        (SERVING, "Service") => To::Service,
        (EVENTING, "Broker") => To::Broker,
        (version, kind) => {
            let reason = format!(
                "not supported: a sink is a Service of {SERVING} or a Broker of {EVENTING}, not a \
                 {kind} of {version}"
            );
            reference.get("kind")?.unsupported(reason);
            return None;
        }
    };
    let namespace = match reference.get("namespace") {
        Some(_) => label(reference, "namespace", 63)?,
        None => place.namespace.to_owned(),
    };
    if namespace != place.namespace {
        let reason = format!("must be this object's, {:?}", place.namespace);
        reference.get("namespace")?.invalid(reason);
        return None;
    }
    let name = label(reference, "name", 63)?;
    if to == To::Service && format!("{name}.{namespace}") == INGRESS {
        reference.get("name")?.invalid("is the brokers' own: name the Broker");
        return None;
    }
    Some(Sink { to, namespace, name, target: "/".to_owned() })
}

/// The text of a URI: what a dead letter says of it must fit beside the event.
fn short<'a>(uri: &Cursor<'a>) -> Option<&'a str> {
    let text = uri.text()?;
    if text.len() > LONGEST_URI {
        uri.invalid(format!("must have at most {LONGEST_URI} characters"));
        return None;
    }
    Some(text)
}

/// The path that a `uri` beside a `ref` is.
fn read_target(uri: &Cursor<'_>, to: To) -> Option<String> {
    let text = short(uri)?;
    let parsed: Option<Uri> = text.parse().ok();
    let path = parsed.filter(|uri| {
        text.starts_with('/') && !text.starts_with("//") && uri.authority().is_none()
    });
    let Some(path) = path.as_ref().and_then(Uri::path_and_query) else {
        uri.invalid("beside `ref` it must be a path, beginning with a slash");
        return None;
    };
    if to == To::Broker {
        uri.invalid("a broker has no paths");
        return None;
    }
    Some(path.as_str().to_owned())
}

/// A sink by its address, for something in a namespace; problems are told by the cursor.
pub(super) fn read_sink_uri(uri: &Cursor<'_>, namespace: &str, domain: &str) -> Option<Sink> {
    read_uri(uri, &Place { namespace, domain })
}

/// A sink by its address. Only what this node's gateway serves: else the node would send requests to
/// wherever a client of its API says, from inside its network.
fn read_uri(uri: &Cursor<'_>, place: &Place<'_>) -> Option<Sink> {
    let text = short(uri)?;
    let refuse = |why: &str| {
        let domain = place.domain;
        uri.unsupported(format!(
            "not supported: {why}; a sink is a function of this node, \
             `http://<name>.<namespace>.{domain}/<path>` or `….{CLUSTER}`"
        ));
        None
    };
    let Ok(parsed) = text.parse::<Uri>() else { return refuse("it is no URI") };
    if parsed.scheme_str() != Some("http") {
        return refuse("its scheme is not http");
    }
    let Some(authority) = parsed.authority() else { return refuse("it has no host") };
    if authority.as_str().contains('@') || authority.port_u16().is_some_and(|port| port != 80) {
        return refuse("it has a user or a port");
    }
    let host = authority.host().to_ascii_lowercase();
    let below = |domain: &str| {
        let (name, namespace) = host.strip_suffix(domain)?.strip_suffix('.')?.split_once('.')?;
        let labels = super::is_label(name) && super::is_label(namespace);
        labels.then(|| (name.to_owned(), namespace.to_owned()))
    };
    let Some((name, namespace)) = below(place.domain).or_else(|| below(CLUSTER)) else {
        return refuse("its host is not one of this node's");
    };
    let target = parsed.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    if format!("{name}.{namespace}") != INGRESS {
        return Some(Sink { to: To::Host, namespace, name, target });
    }
    match broker_of(parsed.path()) {
        Some((namespace, name)) if parsed.query().is_none() => Some(Sink {
            to: To::Broker,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            target: "/".to_owned(),
        }),
        _ => refuse("it is no broker's: the path is `/<namespace>/<broker>`"),
    }
}

/// Namespace and name of the broker that a path means.
pub(crate) fn broker_of(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix('/')?;
    let (namespace, name) = path.strip_suffix('/').unwrap_or(path).split_once('/')?;
    (super::is_label(namespace) && super::is_label(name)).then_some((namespace, name))
}

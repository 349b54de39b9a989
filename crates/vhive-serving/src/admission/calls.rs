//! What a function calls through its node's gateway: the annotations `sink` and `calls`.
//!
//! # Source
//! Knative Eventing, `SinkBinding`: `K_SINK` is the sink's URL inside the cluster.

use vhive_api::Calls;

use super::cursor::Cursor;
use super::eventing::read_sink_uri;
use super::is_label;
use crate::eventing::{INGRESS, Sink, To};

/// Where hosts of a cluster itself end.
const CLUSTER: &str = "svc.cluster.local";

/// Services that one function may name.
const MOST: usize = 100;

/// Where a template is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    /// What the gateway's hosts end in.
    pub(super) domain: &'a str,
}

/// Reads `sink`: `broker/NAME` or `service/NAME` in the same namespace, or the URL of one of this
/// node's hosts.
pub(super) fn sink(entry: &Cursor<'_>, text: &str, place: Place<'_>, calls: &mut Calls) {
    let namespace = place.namespace;
    let named = |name: &str| {
        if !is_label(name) {
            entry.invalid("must be `broker/NAME`, `service/NAME` or a URL");
        }
        is_label(name).then(|| name.to_owned())
    };
    let (host, path) = if let Some(name) = text.strip_prefix("broker/") {
        let Some(name) = named(name) else { return };
        (host(INGRESS), format!("/{namespace}/{name}"))
    } else if let Some(name) = text.strip_prefix("service/") {
        let Some(name) = named(name) else { return };
        (host(&format!("{name}.{namespace}")), String::new())
    } else {
        let Some(Sink { to, namespace, name, target }) =
            read_sink_uri(entry, namespace, place.domain)
        else {
            return;
        };
        match to {
            To::Broker => (host(INGRESS), format!("/{namespace}/{name}")),
            To::Service | To::Host => (host(&format!("{name}.{namespace}")), target),
        }
    };
    calls.sink = Some(format!("http://{host}{path}"));
    add(calls, host);
}

/// Reads `calls`: `NAME` or `NAME.NAMESPACE`, with commas between them.
pub(super) fn calls(entry: &Cursor<'_>, text: &str, place: Place<'_>, calls: &mut Calls) {
    let mut given = 0;
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        given += 1;
        let (name, namespace) = word.split_once('.').unwrap_or((word, place.namespace));
        if !is_label(name) || !is_label(namespace) {
            let word: String = word.chars().take(80).collect();
            entry.invalid(format!(
                "must be services, `NAME` or `NAME.NAMESPACE`, with commas between them, not {word:?}"
            ));
            return;
        }
        if given > MOST {
            entry.invalid(format!("must name at most {MOST} services"));
            return;
        }
        add(calls, host(&format!("{name}.{namespace}")));
    }
    if given == 0 {
        entry.invalid("must name a service");
    }
}

fn host(name: &str) -> String {
    format!("{name}.{CLUSTER}")
}

fn add(calls: &mut Calls, host: String) {
    if !calls.names.contains(&host) {
        calls.names.push(host);
    }
}

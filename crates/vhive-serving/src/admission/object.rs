//! Objects without revisions: brokers, triggers, routes and namespaces.

use serde_json::Value;

use super::Invalid;
use super::cursor::{Cursor, Fields, Passed, Problems};
use super::eventing::{Place, read_broker, read_trigger};
use super::marks;
use super::metadata::{Head, head, label, name_in, walk, walk_except};
use super::traffic::{IN_ROUTE, read_traffic};
use crate::eventing::BrokerSpec;
use crate::kind::Kind;
use crate::registry::Spec;
use crate::traffic::Target;

const DOCUMENT: Fields =
    Fields { known: &["apiVersion", "kind", "metadata", "spec", "status"], refused: &[] };

const ROUTE: Fields = Fields { known: &["traffic"], refused: &[] };

/// What a namespace says has no effect: its deletion is complete at once.
const NAMESPACE: Fields = Fields { known: &["finalizers"], refused: &[] };

/// Where a broker says whose it is.
const CLASS: &str = "eventing.knative.dev/broker.class";

/// The only class, which Knative takes by default too.
const OURS: &str = "MTChannelBasedBroker";

/// An object that passed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdmittedObject {
    pub(crate) head: Head,
    /// As written.
    pub(crate) document: Value,
    /// What it means.
    pub(crate) spec: Spec,
}

/// Checks a broker, trigger, route or namespace, except at these paths. Hosts end in `domain`.
///
/// # Errors
/// [`Invalid`] with every problem found.
pub(crate) fn admit_object(
    kind: Kind,
    document: &Value,
    domain: &str,
    passed: &Passed,
) -> Result<AdmittedObject, Invalid> {
    let read = |root: &Cursor<'_>| read_document(kind, root, domain);
    walk_except(passed, document, read).map_err(|problems| Invalid {
        kind,
        name: name_in(document),
        problems,
    })
}

/// Checks what every object has, of one whose other fields clients cannot change.
///
/// # Errors
/// [`Invalid`] with every problem found.
pub(crate) fn admit_head(kind: Kind, document: &Value) -> Result<Head, Invalid> {
    let read = |root: &Cursor<'_>| head(root, kind, &DOCUMENT, |at| label(at, "name", 63));
    walk(document, read).map_err(|problems| Invalid { kind, name: name_in(document), problems })
}

/// Reads a `spec` that has been accepted before, perhaps under another domain.
///
/// # Errors
/// [`Invalid`].
pub(crate) fn read_spec(
    kind: Kind,
    namespace: &str,
    spec: &Value,
    domain: &str,
) -> Result<Spec, Invalid> {
    let problems = Problems::default();
    let document = serde_json::json!({ "spec": spec });
    let root = Cursor::root(&document, &problems);
    let read = root.get("spec").and_then(|spec| read_one(kind, &spec, namespace, domain));
    let found = problems.into_inner();
    match read {
        Some(spec) if found.is_empty() => Ok(spec),
        _ => Err(Invalid { kind, name: String::new(), problems: found }),
    }
}

fn read_document(kind: Kind, root: &Cursor<'_>, domain: &str) -> Option<AdmittedObject> {
    let mut head = head(root, kind, &DOCUMENT, |metadata| label(metadata, "name", 63))?;
    if kind == Kind::Namespace {
        let inside = root.get("metadata").and_then(|metadata| metadata.get("namespace"));
        if let Some(inside) = inside {
            inside.invalid("a namespace is in none");
        }
        if let Some(spec) = root.get("spec") {
            spec.expect_fields(&NAMESPACE);
        }
        head.namespace = String::new();
        let document = Value::Object(serde_json::Map::new());
        return Some(AdmittedObject { head, document, spec: Spec::Namespace });
    }
    if kind == Kind::Route {
        marks::of_owner(root, kind);
    }
    let annotations = root.get("metadata").and_then(|metadata| metadata.get("annotations"));
    if let Some(class) = annotations.as_ref().and_then(|all| all.get(CLASS))
        && kind == Kind::Broker
        && class.value() != OURS
    {
        class.unsupported(format!("not supported: only {OURS:?}, which is also the default"));
    }
    let (document, spec) = match root.get("spec") {
        Some(spec) => (spec.value().clone(), read_one(kind, &spec, &head.namespace, domain)?),
        None if kind == Kind::Broker => {
            (Value::Object(serde_json::Map::new()), Spec::Broker(BrokerSpec::default()))
        }
        None => {
            root.missing("spec");
            return None;
        }
    };
    Some(AdmittedObject { head, document, spec })
}

fn read_one(kind: Kind, spec: &Cursor<'_>, namespace: &str, domain: &str) -> Option<Spec> {
    let place = Place { namespace, domain };
    match kind {
        Kind::Broker => read_broker(spec, &place).map(Spec::Broker),
        Kind::Route => read_route(spec).map(Spec::Route),
        Kind::Namespace => Some(Spec::Namespace),
        _ => read_trigger(spec, &place).map(Spec::Trigger),
    }
}

fn read_route(spec: &Cursor<'_>) -> Option<Vec<Target>> {
    spec.expect_fields(&ROUTE);
    let Some(traffic) = spec.get("traffic") else {
        spec.missing("traffic");
        return None;
    };
    let targets = read_traffic(&traffic, &IN_ROUTE);
    if targets.is_empty() {
        traffic.invalid("must have a target");
    }
    Some(targets)
}

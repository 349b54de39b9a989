//! Objects without revisions: brokers, triggers and routes.

use serde_json::Value;

use super::Invalid;
use super::cursor::{Cursor, Fields, Problems};
use super::eventing::{Place, read_broker, read_trigger};
use super::marks;
use super::metadata::{Head, head, label, name_in, walk};
use super::traffic::{IN_ROUTE, read_traffic};
use crate::eventing::BrokerSpec;
use crate::kind::Kind;
use crate::registry::Spec;
use crate::traffic::Target;

const DOCUMENT: Fields =
    Fields { known: &["apiVersion", "kind", "metadata", "spec", "status"], refused: &[] };

const ROUTE: Fields = Fields { known: &["traffic"], refused: &[] };

/// Where a broker says whose it is.
const CLASS: &str = "eventing.knative.dev/broker.class";

/// The only class, which Knative takes by default too.
const OURS: &str = "MTChannelBasedBroker";

/// A broker, trigger or route that passed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdmittedObject {
    pub(crate) head: Head,
    /// As written.
    pub(crate) document: Value,
    /// What it means.
    pub(crate) spec: Spec,
}

/// Checks a broker, trigger or route. Hosts end in `domain`.
///
/// # Errors
/// [`Invalid`] with every problem found.
pub(crate) fn admit_object(
    kind: Kind,
    document: &Value,
    domain: &str,
) -> Result<AdmittedObject, Invalid> {
    walk(document, |root| read_document(kind, root, domain)).map_err(|problems| Invalid {
        kind,
        name: name_in(document),
        problems,
    })
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
    let head = head(root, kind, &DOCUMENT, |metadata| label(metadata, "name", 63))?;
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

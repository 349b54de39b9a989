//! Brokers and triggers.

use std::time::Duration;

use serde_json::{Value, json};

use super::set;
use crate::admission::{AdmittedObject, Invalid, Passed, admit_object, broker_of};
use crate::eventing::{Backoff, BrokerSpec, DeliverySpec, Filter, Sink, To, TriggerSpec};
use crate::kind::Kind;
use crate::registry::Spec;

fn broker() -> Value {
    json!({
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Broker",
        "metadata": {"name": "default"},
        "spec": {},
    })
}

fn trigger() -> Value {
    json!({
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "t", "namespace": "n"},
        "spec": {
            "broker": "default",
            "subscriber": {"ref": {
                "apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "consumer",
            }},
        },
    })
}

fn check(kind: Kind, document: &Value) -> Result<AdmittedObject, Invalid> {
    admit_object(kind, document, "example.com", &Passed::new())
}

fn read(path: &str, value: Value) -> TriggerSpec {
    let mut document = trigger();
    set(&mut document, path, value);
    match check(Kind::Trigger, &document).unwrap().spec {
        Spec::Trigger(spec) => spec,
        Spec::Broker(_) | Spec::Route(_) | Spec::Namespace => panic!("a trigger"),
    }
}

/// The paths that are complained about.
fn refused(kind: Kind, path: &str, value: Value) -> Vec<String> {
    let mut document = if kind == Kind::Broker { broker() } else { trigger() };
    set(&mut document, path, value);
    let invalid = check(kind, &document).unwrap_err();
    invalid.problems.into_iter().map(|problem| problem.path).collect()
}

#[test]
fn what_is_not_said_has_knatives_defaults() {
    let admitted = check(Kind::Broker, &broker()).unwrap();
    assert_eq!(
        (admitted.head.namespace.as_str(), admitted.head.name.as_str()),
        ("default", "default")
    );
    assert_eq!(admitted.spec, Spec::Broker(BrokerSpec::default()));
    let mut bare = broker();
    bare.as_object_mut().unwrap().remove("spec");
    assert!(check(Kind::Broker, &bare).is_ok());
    let spec = read("spec/delivery", Value::Null);
    let subscriber = Sink {
        to: To::Service,
        namespace: "n".to_owned(),
        name: "consumer".to_owned(),
        target: "/".to_owned(),
    };
    let filters = Vec::new();
    let wanted = TriggerSpec { broker: "default".to_owned(), filters, subscriber, delivery: None };
    assert_eq!(spec, wanted);
}

#[test]
fn deliveries_are_read() {
    let sink =
        json!({"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": "b"}});
    let delivery = json!({
        "retry": 3, "backoffPolicy": "linear", "backoffDelay": "PT1M0.5S", "timeout": "PT2S",
        "deadLetterSink": sink, "format": "binary",
    });
    let read = read("spec/delivery", delivery).delivery.unwrap();
    let dead_letter = Some(Sink {
        to: To::Broker,
        namespace: "n".to_owned(),
        name: "b".to_owned(),
        target: "/".to_owned(),
    });
    let wanted = DeliverySpec {
        dead_letter,
        retry: 3,
        backoff: Backoff::Linear,
        delay: Duration::from_millis(60_500),
        timeout: Some(Duration::from_secs(2)),
    };
    assert_eq!(read, wanted);
    for (path, value) in [
        ("retry", json!(-1)),
        ("retry", json!(3_000_000_000_u32)),
        ("backoffPolicy", json!("quadratic")),
        ("backoffDelay", json!("5s")),
        ("backoffDelay", json!("-PT5S")),
        ("backoffDelay", json!("PT2H")),
        ("timeout", json!("PT0S")),
        ("retryAfterMax", json!("PT1S")),
        ("format", json!("json")),
        ("deadLetterSink", json!({})),
        ("retries", json!(1)),
    ] {
        let at = format!("spec.delivery.{path}");
        let said = refused(Kind::Broker, "spec/delivery", json!({path: value}));
        assert_eq!(said, [at], "{path}: {value}");
    }
}

#[test]
fn filters_are_read_and_refused_by_path() {
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let filter = json!({"attributes": {"type": "greeting", "source": ""}});
    let attributes = Filter::Attributes(pairs(&[("type", "greeting"), ("source", "")]));
    assert_eq!(read("spec/filter", filter.clone()).filters, [attributes]);
    assert_eq!(read("spec/filter", json!({})).filters, []);
    let list = json!([{"exact": {"type": "a"}}, {"not": {"any": [{"prefix": {"source": "/x"}}, {"all": [{"suffix": {"id": "1"}}]}]}}]);
    let inner = vec![
        Filter::Prefix(pairs(&[("source", "/x")])),
        Filter::All(vec![Filter::Suffix(pairs(&[("id", "1")]))]),
    ];
    let wanted =
        [Filter::Exact(pairs(&[("type", "a")])), Filter::Not(Box::new(Filter::Any(inner)))];
    assert_eq!(read("spec/filters", list).filters, wanted);

    let mut deep = json!({"exact": {"type": "a"}});
    for _ in 0..20 {
        deep = json!({"not": deep});
    }
    assert_eq!(refused(Kind::Trigger, "spec/filters", json!([deep])).len(), 1);
    for (field, value, at) in [
        ("filter", json!({"attributes": {"Type": "a"}}), "spec.filter.attributes[Type]"),
        ("filter", json!({"attributes": {"type": 1}}), "spec.filter.attributes[type]"),
        ("filter", json!({"sourceAndType": {"type": "a"}}), "spec.filter.sourceAndType"),
        ("filters", json!([{"cesql": "type = 'a'"}]), "spec.filters[0].cesql"),
        ("filters", json!([{"exact": {"type": ""}}]), "spec.filters[0].exact[type]"),
        ("filters", json!([{"exact": {}}]), "spec.filters[0].exact"),
        ("filters", json!([{"any": []}]), "spec.filters[0].any"),
        ("filters", json!([{"exact": {"a": "b"}, "prefix": {"a": "b"}}]), "spec.filters[0]"),
        ("filters", json!([{"all": [{"like": {"a": "b"}}]}]), "spec.filters[0].all[0].like"),
        ("filters", json!({}), "spec.filters"),
    ] {
        let said = refused(Kind::Trigger, &format!("spec/{field}"), value.clone());
        assert_eq!(said.first().map(String::as_str), Some(at), "{value}: {said:?}");
    }
}

#[test]
fn events_go_to_this_node_only() {
    let uri = |text: &str| read("spec/subscriber", json!({"uri": text})).subscriber;
    let host = |name: &str, namespace: &str, target: &str| Sink {
        to: To::Host,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        target: target.to_owned(),
    };
    assert_eq!(uri("http://a.b.example.com"), host("a", "b", "/"));
    assert_eq!(uri("http://Tag-a.b.svc.cluster.local:80/p/q?r=s"), host("tag-a", "b", "/p/q?r=s"));
    let broker = uri("http://broker-ingress.knative-eventing.svc.cluster.local/b/c");
    assert_eq!(
        (broker.to, broker.namespace.as_str(), broker.name.as_str()),
        (To::Broker, "b", "c")
    );
    for text in [
        "https://a.b.example.com",
        "http://127.0.0.1",
        "http://127.0.0.1:8080/",
        "http://localhost",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://example.com",
        "http://b.example.com",
        "http://a.b.c.example.com",
        "http://a.b.example.com.evil.org",
        "http://a.b.example.com@evil.org",
        "http://a.b.example.com:9090",
        "http://evil.org#.a.b.example.com",
        "http://.b.example.com",
        "http://a.b.example.com\r\nHost: evil",
        "//a.b.example.com",
        "a.b.example.com",
        "unix:///run/x.sock",
        "file:///etc/passwd",
        "http://broker-ingress.knative-eventing.example.com/",
        "http://broker-ingress.knative-eventing.example.com/a/b/c",
        "",
    ] {
        let said = refused(Kind::Trigger, "spec/subscriber", json!({"uri": text}));
        assert_eq!(said, ["spec.subscriber.uri"], "{text}");
    }
    let with_path = |path: &str| {
        let mut subscriber = trigger()["spec"]["subscriber"].clone();
        subscriber["uri"] = Value::from(path);
        subscriber
    };
    assert_eq!(read("spec/subscriber", with_path("/p?q")).subscriber.target, "/p?q");
    for path in ["http://evil.org/", "//evil.org/", "p"] {
        let said = refused(Kind::Trigger, "spec/subscriber", with_path(path));
        assert_eq!(said, ["spec.subscriber.uri"], "{path}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_path() {
    for (path, value, at) in [
        ("spec/broker", Value::Null, "spec.broker"),
        ("spec/broker", json!("No Broker"), "spec.broker"),
        ("spec/subscriber", Value::Null, "spec.subscriber"),
        (
            "spec/subscriber",
            json!({"ref": {"apiVersion": "v1", "kind": "Service", "name": "a"}}),
            "spec.subscriber.ref.kind",
        ),
        ("spec/subscriber/ref/namespace", json!("other"), "spec.subscriber.ref.namespace"),
        ("spec/subscriber/ref/name", json!(""), "spec.subscriber.ref.name"),
        ("spec/subscriber/CACerts", json!("x"), "spec.subscriber.CACerts"),
        ("spec/more", json!(1), "spec.more"),
        ("metadata/name", Value::Null, "metadata.name"),
        ("kind", json!("Broker"), "kind"),
        ("apiVersion", json!("eventing.knative.dev/v1beta1"), "apiVersion"),
    ] {
        let said = refused(Kind::Trigger, path, value);
        assert_eq!(said.first().map(String::as_str), Some(at), "{said:?}");
    }
    let class = json!({"eventing.knative.dev/broker.class": "Kafka"});
    let said = refused(Kind::Broker, "metadata/annotations", class);
    assert_eq!(said, ["metadata.annotations.eventing.knative.dev/broker.class"]);
    let config = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name});
    assert_eq!(refused(Kind::Broker, "spec/config", config("kafka")), ["spec.config.name"]);
    let mut document = broker();
    set(&mut document, "spec/config", config("config-br-default-channel"));
    assert!(check(Kind::Broker, &document).is_ok());
}

#[test]
fn a_path_names_a_broker() {
    assert_eq!(broker_of("/a/b"), Some(("a", "b")));
    assert_eq!(broker_of("/a/b/"), Some(("a", "b")));
    for path in ["", "/", "/a", "/a/", "//b", "/a/b/c", "/A/b", "/a/b%20", "a/b", "/a/b//"] {
        assert_eq!(broker_of(path), None, "{path}");
    }
}

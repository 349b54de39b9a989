//! The annotations `sink` and `calls`.

use vhive_api::Calls;

use super::*;

fn calls(annotations: Value) -> Result<Calls, Vec<String>> {
    let mut document = with("spec/template/metadata/annotations", annotations);
    document["metadata"]["namespace"] = json!("shop");
    match check(&document) {
        Ok(admitted) => Ok(admitted.template.calls),
        Err(invalid) => Err(invalid.problems.into_iter().map(|problem| problem.path).collect()),
    }
}

#[test]
fn a_sink_is_a_url_inside_and_its_host_a_name() {
    let nothing = calls(json!({})).unwrap();
    assert!(nothing.is_empty(), "closed by default");
    let brokers = "broker-ingress.knative-eventing.svc.cluster.local";
    let table = [
        ("broker/default", brokers, "/shop/default"),
        ("service/next", "next.shop.svc.cluster.local", ""),
        ("http://next.other.svc.cluster.local/a?b=c", "next.other.svc.cluster.local", "/a?b=c"),
        // As `kubectl get broker` and `kubectl get ksvc` show them.
        ("http://broker-ingress.knative-eventing.example.com/other/b", brokers, "/other/b"),
        ("http://next.other.example.com", "next.other.svc.cluster.local", "/"),
    ];
    for (text, host, path) in table {
        let calls = calls(json!({"vhive.dev/sink": text})).unwrap();
        assert_eq!(calls.sink, Some(format!("http://{host}{path}")), "{text}");
        assert_eq!(calls.names, [host], "{text}");
    }
}

#[test]
fn services_that_are_called_are_names() {
    let both = json!({"vhive.dev/calls": "a, b.other,a", "vhive.dev/sink": "service/a"});
    let calls = calls(both).unwrap();
    let mut names = calls.names;
    names.sort();
    assert_eq!(names, ["a.shop.svc.cluster.local", "b.other.svc.cluster.local"]);
}

#[test]
fn what_is_no_sink_and_no_service_is_refused() {
    let many = vec!["a"; 101].join(",");
    for (name, text) in [
        ("sink", ""),
        ("sink", "broker/"),
        ("sink", "broker/A"),
        ("sink", "broker/a/b"),
        ("sink", "service/a.b"),
        ("sink", "default"),
        ("sink", "http://example.org/"),
        ("sink", "http://a.b.example.com:8081/"),
        ("sink", "https://a.b.example.com/"),
        ("sink", "http://127.0.0.1/"),
        ("calls", ""),
        ("calls", ","),
        ("calls", "a b"),
        ("calls", "a.b.c"),
        ("calls", "http://a.b"),
        // Would be a line of its own in `/etc/hosts`.
        ("calls", "a\n127.0.0.1"),
        ("calls", many.as_str()),
    ] {
        let name = format!("vhive.dev/{name}");
        let problems = calls(json!({ &name: text })).unwrap_err();
        let path = format!("spec.template.metadata.annotations[{name}]");
        assert_eq!(problems, [path], "{text}");
    }
}

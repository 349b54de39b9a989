//! Namespaces: made, kept, and deleted with what is in them.

use std::sync::Arc;

use serde_json::{Value, json};
use vhive_node::Runtimes;
use vhive_sandbox::sim::{Sim, SimConfig};

use crate::kubernetes::{Watch, ask};
use crate::support::{Setup, World, service};

const NAMESPACES: &str = "/api/v1/namespaces";

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn listed(world: &World, path: &str) -> usize {
    let (status, list) = world.api("GET", path, None).await;
    assert_eq!(status, 200, "{list}");
    names(&list).len()
}

#[tokio::test]
async fn namespaces_are_made_changed_and_watched() {
    let world = World::new().await;
    let (_, list) = world.api("GET", NAMESPACES, None).await;
    assert_eq!(names(&list), ["default"]);
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let watched = format!("{NAMESPACES}?watch=true&resourceVersion={from}");
    let mut watch = Watch::begin(&world, &watched).await;
    assert_eq!(world.api("GET", &format!("{NAMESPACES}/team"), None).await.0, 404);

    let dry = format!("{NAMESPACES}?dryRun=All");
    assert_eq!(world.api("POST", &dry, Some(&namespace("team"))).await.0, 201);
    let (status, made) = world.api("POST", NAMESPACES, Some(&namespace("team"))).await;
    assert_eq!((status, &made["status"]["phase"]), (201, &json!("Active")), "{made}");
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "team");
    assert_eq!(made["metadata"].get("namespace"), None);
    watch.expect("ADDED", "team").await;
    let (status, told) = world.api("POST", NAMESPACES, Some(&namespace("team"))).await;
    assert_eq!((status, &told["reason"]), (409, &json!("AlreadyExists")));

    // As kubectl applies it: it knows this kind by itself.
    let strategic = "Content-Type: application/strategic-merge-patch+json\r\n";
    let path = format!("{NAMESPACES}/team");
    let patch = json!({"metadata": {"labels": {"cost": "low"}, "annotations": {"a": "b"}}});
    let (status, patched) = ask(&world, "PATCH", &path, strategic, &patch).await;
    assert_eq!((status, &patched["metadata"]["labels"]["cost"]), (200, &json!("low")));
    watch.expect("MODIFIED", "team").await;
    let (status, same) = world.api("PUT", &path, Some(&patched)).await;
    assert_eq!((status, &same["metadata"]["labels"]), (200, &patched["metadata"]["labels"]));
    let (_, list) = world.api("GET", &format!("{NAMESPACES}?labelSelector=cost"), None).await;
    assert_eq!(names(&list), ["team"]);
    let mut inside = namespace("inner");
    inside["metadata"]["namespace"] = json!("team");
    let (status, told) = world.api("POST", NAMESPACES, Some(&inside)).await;
    assert_eq!(
        (status, &told["details"]["causes"][0]["field"]),
        (422, &json!("metadata.namespace"))
    );
    // Clients with types of their own need not say which it is.
    let bare = json!({"metadata": {"name": "bare"}});
    let (status, made) = world.api("POST", NAMESPACES, Some(&bare)).await;
    assert_eq!((status, &made["kind"]), (201, &json!("Namespace")), "{made}");
    let apply = "Content-Type: application/apply-patch+yaml\r\n";
    let applied = format!("{NAMESPACES}/applied?fieldManager=me");
    assert_eq!(ask(&world, "PATCH", &applied, apply, &namespace("applied")).await.0, 201);
    world.stop().await;
}

#[tokio::test]
async fn the_first_object_makes_its_namespace_which_survives_a_restart() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = || {
        let sim = Sim::new(SimConfig::default());
        Setup::again(Runtimes::new().with(sim), Arc::clone(&dir))
    };
    let world = setup().start().await;
    let mut watch =
        Watch::begin(&world, &format!("{NAMESPACES}?watch=true&sendInitialEvents=false")).await;
    watch.expect("ADDED", "default").await;
    let services = "/apis/serving.knative.dev/v1/namespaces/fresh/services";
    let dry = format!("{services}?dryRun=All");
    assert_eq!(world.api("POST", &dry, Some(&service("hello"))).await.0, 201);
    assert_eq!(world.api("POST", services, Some(&service("hello"))).await.0, 201);
    // The dry one has made none.
    watch.expect("ADDED", "fresh").await;
    let maps = format!("{NAMESPACES}/data/configmaps");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    assert_eq!(world.api("POST", &maps, Some(&map)).await.0, 201);
    let brokers = "/apis/eventing.knative.dev/v1/namespaces/events/brokers";
    let broker = json!({
        "apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "b"},
    });
    assert_eq!(world.api("POST", brokers, Some(&broker)).await.0, 201);
    let all = world.api("GET", NAMESPACES, None).await.1;
    assert_eq!(names(&all), ["data", "default", "events", "fresh"]);
    world.stop().await;
    let world = setup().start().await;
    let again = world.api("GET", NAMESPACES, None).await.1;
    assert_eq!(again["items"], all["items"]);
    world.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_with_everything_in_it() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = || {
        let sim = Sim::new(SimConfig::default());
        Setup::again(Runtimes::new().with(sim), Arc::clone(&dir))
    };
    let world = setup().start().await;
    let serving = "/apis/serving.knative.dev/v1/namespaces/doomed";
    let eventing = "/apis/eventing.knative.dev/v1/namespaces/doomed";
    let core = format!("{NAMESPACES}/doomed");
    let latest = json!([{"configurationName": "alone", "percent": 100}]);
    let of = |group: &str, kind: &str, name: &str, spec: Value| json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let template = service("x")["spec"].clone();
    let subscriber = json!({"ref": {
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello",
    }});
    let trigger = json!({"broker": "b", "subscriber": subscriber});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let (knative, events) = ("serving.knative.dev/v1", "eventing.knative.dev/v1");
    let all = [
        (format!("{serving}/services"), service("hello")),
        (format!("{serving}/configurations"), of(knative, "Configuration", "alone", template)),
        (format!("{serving}/routes"), of(knative, "Route", "way", json!({"traffic": latest}))),
        (format!("{eventing}/brokers"), of(events, "Broker", "b", json!({}))),
        (format!("{eventing}/triggers"), of(events, "Trigger", "t", trigger)),
        (format!("{core}/configmaps"), map),
        (format!("{core}/secrets"), secret),
    ];
    for (path, document) in &all {
        let (status, told) = world.api("POST", path, Some(document)).await;
        assert_eq!(status, 201, "{path}: {told}");
    }
    // What only begins like it is another one.
    let beside = "/apis/serving.knative.dev/v1/namespaces/doomed-not/services";
    assert_eq!(world.api("POST", beside, Some(&service("hello"))).await.0, 201);
    for host in ["hello", "way"] {
        let reply = world.request("GET", &format!("{host}.doomed.example.com"), "", b"").await;
        assert_eq!(reply.status, 200, "{host}: {}", reply.text());
    }
    let mut watch =
        Watch::begin(&world, &format!("{serving}/services?watch=true&resourceVersion=0")).await;
    watch.expect("ADDED", "hello").await;

    let made = world.api("GET", &core, None).await.1;
    let stale = json!({"preconditions": {"uid": "another"}});
    assert_eq!(world.api("DELETE", &core, Some(&stale)).await.0, 409);
    assert_eq!(world.api("DELETE", &format!("{core}?dryRun=All"), None).await.0, 200);
    let (status, told) = world.api("DELETE", &core, None).await;
    assert_eq!((status, &told["details"]["uid"]), (200, &made["metadata"]["uid"]), "{told}");
    watch.expect("DELETED", "hello").await;
    assert_eq!(world.api("GET", &core, None).await.0, 404);
    let world = {
        for (path, _) in &all {
            assert_eq!(listed(&world, path).await, 0, "{path}");
        }
        world.stop().await;
        setup().start().await
    };
    for (path, _) in &all {
        assert_eq!(listed(&world, path).await, 0, "{path} after a restart");
    }
    assert_eq!(world.api("GET", &core, None).await.0, 404);
    assert_eq!(listed(&world, beside).await, 1);
    for host in ["hello", "way"] {
        let reply = world.request("GET", &format!("{host}.doomed.example.com"), "", b"").await;
        assert_eq!(reply.status, 404, "{host}: {}", reply.text());
    }
    let (status, told) = world.api("DELETE", &format!("{NAMESPACES}/default"), None).await;
    assert_eq!((status, &told["reason"]), (403, &json!("Forbidden")), "{told}");
    world.stop().await;
}

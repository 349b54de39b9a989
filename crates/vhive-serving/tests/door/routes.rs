//! Configurations and routes that no service makes.

use std::sync::Arc;

use serde_json::{Value, json};
use vhive_node::Runtimes;
use vhive_sandbox::sim::{Sim, SimConfig};

use crate::kubernetes::Watch;
use crate::support::{Setup, World, annotate, eventually, service};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";

fn configuration(name: &str, variant: &str) -> Value {
    let mut document = service(name);
    document["kind"] = json!("Configuration");
    document["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "VARIANT", "value": variant}]);
    document
}

fn route(name: &str, traffic: &Value) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Route",
        "metadata": {"name": name},
        "spec": {"traffic": traffic},
    })
}

/// All requests to the latest revision of a configuration.
fn latest(configuration: &str) -> Value {
    json!([{"configurationName": configuration, "latestRevision": true, "percent": 100}])
}

async fn put(world: &World, plural: &str, document: &Value) -> Value {
    let name = document["metadata"]["name"].as_str().unwrap();
    let path = format!("{SERVING}/{plural}");
    let (status, told) = world.api("PUT", &format!("{path}/{name}"), Some(document)).await;
    if status == 200 {
        return told;
    }
    assert_eq!(status, 404, "{told}");
    let (status, told) = world.api("POST", &path, Some(document)).await;
    assert_eq!(status, 201, "{told}");
    told
}

async fn get(world: &World, path: &str) -> Value {
    let (status, object) = world.api("GET", &format!("{SERVING}/{path}"), None).await;
    assert_eq!(status, 200, "{object}");
    object
}

fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let mut all = object["status"]["conditions"].as_array().unwrap().iter();
    let one = all.find(|one| one["type"] == kind).unwrap();
    (one["status"].as_str().unwrap(), one["reason"].as_str().unwrap_or_default())
}

/// The revision that a request to a host gets to, which is the `number`th of all.
async fn asked(world: &World, host: &str, number: usize) -> String {
    let reply = world.request("GET", &format!("{host}.default.example.com"), "", b"").await;
    assert_eq!(reply.status, 200, "{host}: {}", reply.text());
    let records = world.records(|all| all.len() >= number).await;
    records[number - 1].revision.clone()
}

#[tokio::test]
async fn a_route_follows_the_configurations_that_it_names() {
    let world = World::new().await;
    let made = put(&world, "configurations", &configuration("c", "1")).await;
    assert_eq!(made["status"]["latestReadyRevisionName"], "c-00001");
    assert_eq!((condition(&made, "Ready").0, &made["metadata"]["generation"]), ("True", &json!(1)));
    let labels = get(&world, "revisions/c-00001").await["metadata"]["labels"].clone();
    assert_eq!(labels["serving.knative.dev/configuration"], "c");
    assert_eq!(labels["serving.knative.dev/service"], Value::Null);

    let mut watch = Watch::begin(&world, &format!("{SERVING}/routes?watch=true")).await;
    let led = put(&world, "routes", &route("r", &latest("c"))).await;
    assert_eq!(led["status"]["url"], "http://r.default.example.com");
    assert_eq!(led["status"]["traffic"][0]["revisionName"], "c-00001");
    assert_eq!(condition(&led, "Ready").0, "True");
    assert_eq!(asked(&world, "r", 1).await, "c-00001");
    let none = world.request("GET", "c.default.example.com", "", b"").await;
    assert_eq!(none.status, 404, "a configuration has no host");
    watch.expect("ADDED", "r").await;

    let next = put(&world, "configurations", &configuration("c", "2")).await;
    assert_eq!(next["status"]["latestCreatedRevisionName"], "c-00002");
    let moved = watch.expect("MODIFIED", "r").await;
    assert_eq!(moved["status"]["traffic"][0]["revisionName"], "c-00002");
    assert_eq!(asked(&world, "r", 2).await, "c-00002");
    let annotations = get(&world, "revisions/c-00002").await["metadata"]["annotations"].clone();
    assert_eq!(annotations["serving.knative.dev/routes"], "r");

    // Revisions of several configurations, also of a service's, old ones too.
    world.apply("s", |_| {}).await;
    let split = json!([
        {"revisionName": "c-00001", "percent": 0, "tag": "old"},
        {"configurationName": "s", "percent": 100, "tag": "new"},
    ]);
    put(&world, "routes", &route("r", &split)).await;
    for (at, (host, revision)) in
        [("r", "s-00001"), ("old-r", "c-00001"), ("new-r", "s-00001")].into_iter().enumerate()
    {
        assert_eq!(asked(&world, host, 3 + at).await, revision, "{host}");
    }
    let (status, told) = world.api("DELETE", &format!("{SERVING}/revisions/c-00001"), None).await;
    assert_eq!(status, 409, "{told}");
    let (_, table) = world.api("GET", &format!("{SERVING}/routes"), None).await;
    let names: Vec<&Value> =
        table["items"].as_array().unwrap().iter().map(|one| &one["metadata"]["name"]).collect();
    assert_eq!(names, ["r", "s"]);

    let (status, _) = world.api("DELETE", &format!("{SERVING}/routes/r"), None).await;
    assert_eq!(status, 200);
    for host in ["r", "old-r", "new-r"] {
        let gone = world.request("GET", &format!("{host}.default.example.com"), "", b"").await;
        assert_eq!(gone.status, 404, "{host}");
    }
    let labels = get(&world, "revisions/c-00001").await["metadata"]["labels"].clone();
    assert_eq!(labels["serving.knative.dev/routingState"], "reserve");
    world.stop().await;
}

#[tokio::test]
async fn a_revision_that_a_route_names_is_never_collected() {
    let mut setup = Setup::new();
    setup.serving.retention.max_idle = 1;
    let world = setup.start().await;
    for variant in ["1", "2"] {
        put(&world, "configurations", &configuration("c", variant)).await;
    }
    // Idle before it is named.
    let named = json!([
        {"revisionName": "c-00001", "percent": 0, "tag": "old"},
        {"configurationName": "c", "percent": 100},
    ]);
    put(&world, "routes", &route("r", &named)).await;
    for variant in ["3", "4", "5"] {
        put(&world, "configurations", &configuration("c", variant)).await;
    }
    let names = async || -> Vec<String> {
        let list = get(&world, "revisions").await;
        let items = list["items"].as_array().unwrap().iter();
        items.map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    // The last but one was led to when the last one was made: it counts from the next change on.
    assert_eq!(names().await, ["c-00001", "c-00003", "c-00004", "c-00005"]);
    assert_eq!(asked(&world, "old-r", 1).await, "c-00001");
    // No longer named, it goes in its turn.
    put(&world, "routes", &route("r", &latest("c"))).await;
    for variant in ["6", "7", "8"] {
        put(&world, "configurations", &configuration("c", variant)).await;
    }
    assert_eq!(names().await, ["c-00006", "c-00007", "c-00008"]);
    world.stop().await;
}

#[tokio::test]
async fn a_route_says_what_it_lacks() {
    let world = World::new().await;
    let led = put(&world, "routes", &route("r", &latest("c"))).await;
    assert_eq!(condition(&led, "Ready"), ("False", "ConfigurationMissing"));
    let named = json!([{"revisionName": "c-00007", "percent": 100}]);
    let led = put(&world, "routes", &route("r", &named)).await;
    assert_eq!(condition(&led, "AllTrafficAssigned"), ("False", "RevisionMissing"));
    put(&world, "routes", &route("r", &latest("c"))).await;
    let refused = world.request("GET", "r.default.example.com", "", b"").await;
    assert_eq!(refused.status, 404);

    put(&world, "configurations", &configuration("c", "1")).await;
    assert_eq!(condition(&get(&world, "routes/r").await, "Ready").0, "True");
    assert_eq!(asked(&world, "r", 1).await, "c-00001");

    let (status, _) = world.api("DELETE", &format!("{SERVING}/configurations/c"), None).await;
    assert_eq!(status, 200);
    assert_eq!(get(&world, "revisions").await["items"], json!([]));
    let led = get(&world, "routes/r").await;
    assert_eq!(condition(&led, "Ready"), ("False", "ConfigurationMissing"));
    let refused = world.request("GET", "r.default.example.com", "", b"").await;
    assert_eq!(refused.status, 404, "{}", refused.text());

    // Another one of the same name, whose revisions have the same names.
    put(&world, "configurations", &configuration("c", "2")).await;
    assert_eq!(asked(&world, "r", 2).await, "c-00001");
    world.stop().await;
}

#[tokio::test]
async fn what_is_gone_gets_no_requests_under_its_old_name() {
    let world = World::new().await;
    for name in ["c", "d"] {
        put(&world, "configurations", &configuration(name, "1")).await;
    }
    let split = json!([
        {"configurationName": "c", "percent": 40}, {"configurationName": "d", "percent": 60},
    ]);
    put(&world, "routes", &route("r", &split)).await;
    put(&world, "routes", &route("one", &latest("c"))).await;
    let led = |object: &Value| -> Vec<String> {
        let all = object["status"]["traffic"].as_array().unwrap().iter();
        all.map(|one| one["revisionName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(led(&get(&world, "routes/r").await), ["c-00001", "d-00001"]);
    let (status, _) = world.api("DELETE", &format!("{SERVING}/configurations/c"), None).await;
    assert_eq!(status, 200);
    assert_eq!(led(&get(&world, "routes/r").await), ["d-00001"]);
    assert_eq!(asked(&world, "r", 1).await, "d-00001");
    assert_eq!(led(&get(&world, "routes/one").await), Vec::<String>::new());

    // Another one of the same name, whose first revision never gets ready.
    let mut broken = configuration("c", "2");
    annotate(&mut broken, "autoscaling.knative.dev/initial-scale", "1");
    broken["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:init"}]);
    put(&world, "configurations", &broken).await;
    for name in ["r", "one"] {
        let led_now = get(&world, &format!("routes/{name}")).await;
        assert_eq!(condition(&led_now, "Ready").1, "RevisionMissing", "{led_now}");
        assert!(!led(&led_now).contains(&"c-00001".to_owned()), "{led_now}");
    }
    let refused = world.request("GET", "one.default.example.com", "", b"").await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    // Once a later one is ready, all is as it should be.
    put(&world, "configurations", &configuration("c", "3")).await;
    assert_eq!(led(&get(&world, "routes/r").await), ["c-00002", "d-00001"]);
    assert_eq!(asked(&world, "one", 2).await, "c-00002");
    world.stop().await;
}

#[tokio::test]
async fn what_one_target_of_several_had_goes_to_the_others() {
    let world = World::new().await;
    for name in ["c", "d", "e"] {
        put(&world, "configurations", &configuration(name, "1")).await;
    }
    let split = json!([
        {"configurationName": "c", "percent": 80}, {"configurationName": "d", "percent": 10},
        {"configurationName": "e", "percent": 10},
    ]);
    put(&world, "routes", &route("r", &split)).await;
    let (status, _) = world.api("DELETE", &format!("{SERVING}/configurations/c"), None).await;
    assert_eq!(status, 200);
    let mut seen = std::collections::BTreeSet::new();
    for number in 1..=20 {
        seen.insert(asked(&world, "r", number).await);
    }
    // One in a million leaves one of the two out.
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, ["d-00001", "e-00001"]);
    let led = get(&world, "routes/r").await;
    assert_eq!(condition(&led, "Ready"), ("False", "ConfigurationMissing"));
    world.stop().await;
}

#[tokio::test]
async fn traffic_moves_once_the_next_revision_is_ready() {
    let world = World::new().await;
    put(&world, "configurations", &configuration("c", "1")).await;
    put(&world, "routes", &route("r", &latest("c"))).await;
    let mut next = configuration("c", "2");
    annotate(&mut next, "autoscaling.knative.dev/initial-scale", "1");
    put(&world, "configurations", &next).await;
    let mut number = 0;
    loop {
        number += 1;
        let revision = asked(&world, "r", number).await;
        let ready =
            get(&world, "configurations/c").await["status"]["latestReadyRevisionName"].clone();
        if revision == "c-00002" {
            break;
        }
        assert!(number < 10_000, "{ready} is ready");
    }
    let led = get(&world, "routes/r").await;
    assert_eq!(led["status"]["traffic"][0]["revisionName"], "c-00002");
    // The one before is let go.
    let key = vhive_api::RevisionKey::new("default", "c-00001");
    eventually(|| world.node.standing(&key).is_none().then_some(())).await;
    world.stop().await;
}

#[tokio::test]
async fn names_belong_to_one_maker() {
    let world = World::new().await;
    world.apply("s", |_| {}).await;
    let named = json!([{"revisionName": "s-00001", "percent": 100}]);
    let documents = [("configurations", configuration("s", "1")), ("routes", route("s", &named))];
    for (plural, document) in &documents {
        let path = format!("{SERVING}/{plural}");
        let (status, told) = world.api("POST", &path, Some(document)).await;
        let said = told["message"].as_str().unwrap().to_owned();
        assert!(status == 409 && said.contains("Service of that name"), "{told}");
        for method in ["PUT", "DELETE"] {
            let path = format!("{path}/s");
            let (status, told) = world.api(method, &path, Some(document)).await;
            let said = told["message"].as_str().unwrap().to_owned();
            assert!(status == 405 && said.contains("made by the Service"), "{method}: {told}");
        }
    }
    put(&world, "configurations", &configuration("c", "1")).await;
    put(&world, "routes", &route("c", &latest("c"))).await;
    put(&world, "routes", &route("r", &latest("c"))).await;
    for (name, holder) in [("c", "Configuration"), ("r", "Route")] {
        let (status, told) = world.apply(name, |_| {}).await;
        let said = told["message"].as_str().unwrap();
        assert!(status == 409 && said.contains(&format!("a {holder} of that name")), "{told}");
    }
    let (status, told) = world.api("DELETE", &format!("{SERVING}/services/c"), None).await;
    assert_eq!(status, 404, "{told}");
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_led_is_refused_by_its_path() {
    let world = World::new().await;
    let refused = [
        (json!([]), "spec.traffic"),
        (json!([{"percent": 100}]), "spec.traffic[0]"),
        (json!([{"configurationName": "c", "percent": 50}]), "spec.traffic"),
        (
            json!([{"configurationName": "c", "revisionName": "c-00001", "percent": 100}]),
            "spec.traffic[0]",
        ),
        (
            json!([{"configurationName": "c", "latestRevision": false, "percent": 100}]),
            "spec.traffic[0].revisionName",
        ),
    ];
    for (traffic, path) in refused {
        let path_to = format!("{SERVING}/routes");
        let (status, told) = world.api("POST", &path_to, Some(&route("r", &traffic))).await;
        assert_eq!(status, 422, "{traffic}: {told}");
        assert_eq!(told["details"]["kind"], "Route");
        let causes = told["details"]["causes"].as_array().unwrap();
        assert!(causes.iter().any(|cause| cause["field"] == path), "{told}");
    }
    let mut with_traffic = configuration("c", "1");
    with_traffic["spec"]["traffic"] = latest("c");
    let path = format!("{SERVING}/configurations");
    let (status, told) = world.api("POST", &path, Some(&with_traffic)).await;
    assert_eq!((status, &told["details"]["kind"]), (422, &json!("Configuration")), "{told}");
    world.stop().await;
}

#[tokio::test]
async fn a_restart_leads_where_it_led() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = || {
        let runtimes = Runtimes::new().with(Sim::new(SimConfig::default()));
        Setup::again(runtimes, Arc::clone(&dir))
    };
    let world = setup().start().await;
    put(&world, "configurations", &configuration("c", "1")).await;
    put(&world, "configurations", &configuration("c", "2")).await;
    let split = json!([
        {"revisionName": "c-00001", "percent": 100},
        {"configurationName": "c", "percent": 0, "tag": "next"},
    ]);
    let before = put(&world, "routes", &route("r", &split)).await;
    world.stop().await;

    let world = setup().start().await;
    let after = get(&world, "routes/r").await;
    for field in ["traffic", "url"] {
        assert_eq!(after["status"][field], before["status"][field]);
    }
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(asked(&world, "r", 1).await, "c-00001");
    assert_eq!(asked(&world, "next-r", 2).await, "c-00002");
    put(&world, "configurations", &configuration("c", "3")).await;
    assert_eq!(asked(&world, "next-r", 3).await, "c-00003");
    let (status, told) = world.api("DELETE", &format!("{SERVING}/revisions/c-00001"), None).await;
    assert_eq!(status, 409, "{told}");
    world.stop().await;
}

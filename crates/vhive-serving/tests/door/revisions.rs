//! Revisions and the traffic between them.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{InProcess, Setup, World, annotate, eventually, read_head, service};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";

/// Sets a variable, so that the template is another one.
fn variant(document: &mut Value, value: &str) {
    document["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "VARIANT", "value": value}]);
}

async fn revisions(world: &World) -> Vec<String> {
    let (_, list) = world.api("GET", &format!("{SERVING}/revisions"), None).await;
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// How many of the last requests each revision has answered, once there are `total` records.
async fn shares(world: &World, total: usize, last: usize) -> Vec<(String, usize)> {
    let records = world.records(|all| all.len() >= total).await;
    let mut counts = std::collections::BTreeMap::new();
    for record in &records[records.len() - last..] {
        *counts.entry(record.revision.clone()).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[tokio::test]
async fn traffic_is_split_tagged_and_rolled_back() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    world.apply("hello", |document| variant(document, "two")).await;
    let split = json!([
        {"revisionName": "hello-00001", "percent": 25, "tag": "old"},
        {"latestRevision": true, "percent": 75},
    ]);
    let (status, object) = world
        .apply("hello", |document| {
            variant(document, "two");
            document["spec"]["traffic"] = split.clone();
        })
        .await;
    assert_eq!(status, 200, "{object}");
    assert_eq!(object["status"]["traffic"][0]["url"], "http://old-hello.default.example.com");
    assert_eq!(object["status"]["latestCreatedRevisionName"], "hello-00002", "no new template");

    for _ in 0..200 {
        assert_eq!(world.get("hello").await.status, 200);
    }
    let counts = shares(&world, 200, 200).await;
    let [(one, first), (two, second)] = counts.as_slice() else { panic!("both: {counts:?}") };
    assert_eq!((one.as_str(), two.as_str()), ("hello-00001", "hello-00002"));
    // Six standard deviations around 50 of 200.
    assert!((14..=86).contains(first) && first + second == 200, "{counts:?}");

    // A tag has a host of its own, and a header.
    for _ in 0..3 {
        let old = world.request("GET", "old-hello.default.example.com", "", b"").await;
        assert_eq!(old.status, 200);
        let tagged = "Knative-Serving-Tag: old\r\n";
        let host = crate::support::host("hello");
        assert_eq!(world.request("GET", &host, tagged, b"").await.status, 200);
    }
    assert_eq!(shares(&world, 206, 6).await, [("hello-00001".to_owned(), 6)]);
    let local = world.request("GET", "hello.default.svc.cluster.local", "", b"").await;
    assert_eq!(local.status, 200);

    // All the way back.
    world
        .apply("hello", |document| {
            variant(document, "two");
            document["spec"]["traffic"] = json!([{"revisionName": "hello-00001", "percent": 100}]);
        })
        .await;
    for _ in 0..10 {
        assert_eq!(world.get("hello").await.status, 200);
    }
    assert_eq!(shares(&world, 217, 10).await, [("hello-00001".to_owned(), 10)]);
    let gone = world.request("GET", "old-hello.default.example.com", "", b"").await;
    assert_eq!(gone.status, 404, "the tag is gone");
    world.stop().await;
}

#[tokio::test]
async fn a_revision_that_never_gets_ready_gets_no_traffic() {
    let world = World::new().await;
    let scale = |document: &mut Value| annotate(document, "autoscaling.knative.dev/min-scale", "1");
    world.apply("hello", scale).await;
    let path = format!("{SERVING}/services/hello");
    wait(&world, &path, "Ready", "True").await;
    world
        .apply("hello", |document| {
            scale(document);
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:boot"}]);
        })
        .await;
    let object = wait(&world, &path, "ConfigurationsReady", "False").await;
    assert_eq!(object["status"]["latestReadyRevisionName"], "hello-00001");
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00001");
    let message = object["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("sim fails at boot as told"), "{message}");
    for _ in 0..5 {
        assert_eq!(world.get("hello").await.status, 200, "the old one serves on");
    }
    let (_, events) = world.api("GET", "/api/v1/namespaces/default/events", None).await;
    assert!(events.to_string().contains("\"reason\":\"StartFailed\""), "{events}");

    // The third is sound again and takes over once it is ready.
    world
        .apply("hello", |document| {
            scale(document);
            variant(document, "three");
        })
        .await;
    let object = wait(&world, &path, "Ready", "True").await;
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00003", "{object}");
    world.stop().await;
}

#[tokio::test]
async fn a_revision_that_is_named_before_it_is_ready_gets_ready_and_then_its_requests() {
    let world = World::new().await;
    let slow = |document: &mut Value| {
        annotate(document, "autoscaling.knative.dev/initial-scale", "1");
        document["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "VHIVE_SIM_BOOT_MS", "value": "400"}]);
    };
    world.apply("hello", |_| {}).await;
    world.apply("hello", slow).await;
    // The third comes before the second is ready, and traffic names the second.
    let (status, object) = world
        .apply("hello", |document| {
            variant(document, "three");
            document["spec"]["traffic"] = json!([{"revisionName": "hello-00002", "percent": 100}]);
        })
        .await;
    assert_eq!(status, 200, "{object}");
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00001", "{object}");
    assert_eq!(world.get("hello").await.status, 200, "requests go where they went");
    let object = wait(&world, &format!("{SERVING}/services/hello"), "RoutesReady", "True").await;
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00002", "{object}");
    world.stop().await;
}

/// Waits until a condition has a status.
async fn wait(world: &World, path: &str, kind: &str, status: &str) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let (_, object) = world.api("GET", path, None).await;
        let conditions = object["status"]["conditions"].as_array().unwrap();
        if conditions.iter().any(|one| one["type"] == kind && one["status"] == status) {
            return object;
        }
        assert!(begun.elapsed() < crate::support::PATIENCE, "{object}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn names_are_kept_and_unknown_revisions_refused() {
    let world = World::new().await;
    let named = |name: &'static str, value: &'static str| {
        move |document: &mut Value| {
            variant(document, value);
            document["spec"]["template"]["metadata"]["name"] = json!(name);
        }
    };
    world.apply("hello", named("hello-blue", "1")).await;
    let (status, same) = world.apply("hello", named("hello-blue", "1")).await;
    assert_eq!((status, &same["metadata"]["generation"]), (200, &json!(1)));
    let (status, told) = world.apply("hello", named("hello-blue", "2")).await;
    let field = &told["details"]["causes"][0]["field"];
    assert_eq!((status, field), (422, &json!("spec.template.metadata.name")), "{told}");
    let (status, _) = world.apply("hello", named("hello-green", "2")).await;
    assert_eq!(
        (status, revisions(&world).await),
        (200, vec!["hello-blue".into(), "hello-green".into()])
    );
    let (status, told) = world
        .apply("hello", |document| {
            document["spec"]["traffic"] = json!([
                {"latestRevision": true, "percent": 50}, {"revisionName": "hello-red", "percent": 50},
            ]);
        })
        .await;
    let field = &told["details"]["causes"][0]["field"];
    assert_eq!((status, field), (422, &json!("spec.traffic[1].revisionName")), "{told}");
    world.stop().await;
}

#[tokio::test]
async fn revisions_out_of_reach_run_nothing_and_can_be_deleted() {
    let world = World::new().await;
    let scale = |document: &mut Value| annotate(document, "autoscaling.knative.dev/min-scale", "2");
    world.apply("hello", scale).await;
    let old = vhive_api::RevisionKey::new("default", "hello-00001");
    eventually(|| world.node.counts(&old).filter(|counts| counts.ready == 2)).await;
    world
        .apply("hello", |document| {
            scale(document);
            variant(document, "two");
        })
        .await;
    eventually(|| world.node.counts(&old).is_none().then_some(())).await;
    let path = format!("{SERVING}/revisions/hello-00001");
    let (_, object) = world.api("GET", &path, None).await;
    assert_eq!(object["metadata"]["labels"]["serving.knative.dev/routingState"], "reserve");
    assert_eq!(object["status"]["actualReplicas"], 0, "{object}");
    let latest = format!("{SERVING}/revisions/hello-00002");
    assert_eq!(world.api("DELETE", &latest, None).await.0, 409);
    assert_eq!(world.api("DELETE", &path, None).await.0, 200);
    assert_eq!(revisions(&world).await, ["hello-00002"]);
    assert_eq!(world.api("DELETE", &path, None).await.0, 404);
    world.stop().await;
}

#[tokio::test]
async fn old_revisions_are_collected_and_a_restart_routes_as_before() {
    let mut setup = Setup::new();
    setup.serving.retention.max_idle = 2;
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    for value in ["2", "3", "4", "5"] {
        world.apply("hello", |document| variant(document, value)).await;
    }
    assert_eq!(revisions(&world).await, ["hello-00003", "hello-00004", "hello-00005"]);
    let split = json!([
        {"revisionName": "hello-00004", "percent": 100, "tag": "four"},
        {"latestRevision": true, "percent": 0, "tag": "now"},
    ]);
    let traffic = |document: &mut Value| {
        variant(document, "5");
        document["spec"]["traffic"] = split.clone();
    };
    let (_, before) = world.apply("hello", traffic).await;
    let dir = world.dir.clone();
    world.stop().await;
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let world = Setup::again(vhive_node::Runtimes::new().with(sim), dir).start().await;
    let (_, after) = world.api("GET", &format!("{SERVING}/services/hello"), None).await;
    assert_eq!(after["status"]["traffic"], before["status"]["traffic"]);
    assert_eq!(world.get("hello").await.status, 200);
    assert_eq!(world.request("GET", "now-hello.default.example.com", "", b"").await.status, 200);
    let counts = shares(&world, 2, 2).await;
    assert_eq!(counts, [("hello-00004".to_owned(), 1), ("hello-00005".to_owned(), 1)]);
    // Made again under another name, all of it is new.
    assert_eq!(
        world.api("POST", &format!("{SERVING}/services"), Some(&service("other"))).await.0,
        201
    );
    world.stop().await;
}

#[tokio::test]
async fn two_services_cannot_have_one_revision() {
    let world = World::new().await;
    world
        .apply("web", |document| {
            document["spec"]["template"]["metadata"]["name"] = json!("web-api-00001");
        })
        .await;
    let (status, told) = world.apply("web-api", |_| {}).await;
    assert_eq!(status, 422, "{told}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("belongs to service \"web\""), "{message}");
    assert_eq!(world.get("web").await.status, 200);
    let (status, _) = world
        .apply("web-api", |document| {
            document["spec"]["template"]["metadata"]["name"] = json!("web-api-first");
        })
        .await;
    assert_eq!(status, 201);
    world.stop().await;
}

#[tokio::test]
async fn a_first_instance_that_found_no_room_comes_when_there_is_some() {
    let mut setup = Setup::new();
    setup.node.max_instances = 1;
    setup.serving.autoscale.stable_window = vhive_api::Span(std::time::Duration::from_secs(6));
    let world = setup.start().await;
    let first = |document: &mut Value| {
        annotate(document, "autoscaling.knative.dev/initial-scale", "1");
    };
    world.apply("takes", |_| {}).await;
    assert_eq!(world.get("takes").await.status, 200);
    world.apply("waits", first).await;
    // Longer than it takes to see that nothing is asked of it.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let path = format!("{SERVING}/services/waits");
    let (_, object) = world.api("GET", &path, None).await;
    assert_eq!(object["status"]["conditions"][1]["status"], "Unknown", "{object}");
    world.api("DELETE", &format!("{SERVING}/services/takes"), None).await;
    wait(&world, &path, "Ready", "True").await;
    world.stop().await;
}

#[tokio::test]
async fn a_revision_that_says_so_is_never_collected() {
    let mut setup = Setup::new();
    setup.serving.retention.max_idle = 1;
    let world = setup.start().await;
    world.apply("hello", |document| annotate(document, "serving.knative.dev/no-gc", "true")).await;
    for value in ["2", "3", "4"] {
        world.apply("hello", |document| variant(document, value)).await;
    }
    assert_eq!(revisions(&world).await, ["hello-00001", "hello-00003", "hello-00004"]);
    world.stop().await;
}

#[tokio::test]
async fn a_revision_whose_time_is_over_goes_although_nothing_changes() {
    let mut setup = Setup::new();
    let moment = vhive_api::Span(std::time::Duration::from_millis(1500));
    setup.serving.retention.since_created = moment;
    setup.serving.retention.since_routed = moment;
    setup.serving.retention.min_idle = 1;
    let world = setup.start().await;
    let path = format!("{SERVING}/revisions?watch=true");
    let mut watch = crate::kubernetes::Watch::begin(&world, &path).await;
    world.apply("hello", |_| {}).await;
    for value in ["2", "3"] {
        world.apply("hello", |document| variant(document, value)).await;
    }
    let mut told = std::collections::BTreeSet::new();
    let gone = loop {
        let (what, object) = watch.next().await;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        match what.as_str() {
            "ADDED" => _ = told.insert(name),
            "DELETED" => break name,
            _ => {}
        }
    };
    assert_eq!((told.len(), gone.as_str()), (3, "hello-00001"), "{told:?}");
    assert_eq!(revisions(&world).await, ["hello-00002", "hello-00003"], "one idle one is kept");
    assert_eq!(world.get("hello").await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_start_takes_no_longer_than_its_progress_deadline() {
    let setup = Setup::with_functions(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let reply = b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(reply).await.is_err() {
                return;
            }
        }
    });
    assert!(setup.node.start_deadline.0 > crate::support::PATIENCE);
    let world = setup.start().await;
    world
        .apply("never", |document| {
            annotate(document, "serving.knative.dev/progress-deadline", "1s");
            document["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"path": "/"}});
        })
        .await;
    let reply = world.get("never").await;
    assert_eq!((reply.status, reply.header("x-vhive-error")), (502, Some("start-failed")));
    world.stop().await;
}

#[tokio::test]
async fn what_is_local_to_the_cluster_has_no_other_host() {
    let world = World::new().await;
    let visible = |document: &mut Value| {
        document["metadata"]["labels"] =
            json!({"networking.knative.dev/visibility": "cluster-local"});
        document["spec"]["traffic"] =
            json!([{"latestRevision": true, "percent": 100, "tag": "now"}]);
    };
    let hosts = ["hello", "now-hello"];
    let statuses = async |end: &str| {
        let mut all = Vec::new();
        for host in hosts {
            all.push(world.request("GET", &format!("{host}.default.{end}"), "", b"").await.status);
        }
        all
    };
    let (status, object) = world.apply("hello", visible).await;
    assert_eq!(status, 201, "{object}");
    let url = &object["status"]["url"];
    assert_eq!(url, "http://hello.default.svc.cluster.local", "{object}");
    let tagged = &object["status"]["traffic"][0]["url"];
    assert_eq!(tagged, "http://now-hello.default.svc.cluster.local", "{object}");
    assert_eq!(statuses("example.com").await, [404, 404]);
    assert_eq!(statuses("SVC.cluster.local").await, [200, 200]);
    // It becomes public, and local again.
    let (status, object) = world
        .apply("hello", |document| {
            visible(document);
            document["metadata"]["labels"] = json!({});
        })
        .await;
    assert_eq!(
        (status, &object["status"]["url"]),
        (200, &json!("http://hello.default.example.com"))
    );
    assert_eq!(statuses("example.com").await, [200, 200]);
    assert_eq!(statuses("svc.cluster.local").await, [200, 200]);
    world.apply("hello", visible).await;
    assert_eq!(statuses("example.com").await, [404, 404]);
    assert_eq!(statuses("svc.cluster.local").await, [200, 200]);
    world.api("DELETE", &format!("{SERVING}/services/hello"), None).await;
    assert_eq!(statuses("svc.cluster.local").await, [404, 404]);
    world.stop().await;
}

#[tokio::test]
async fn a_manifest_of_the_original_for_microvms_is_deployed_as_it_stands() {
    let runtime = InProcess::new(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(reply).await.is_err() {
                return;
            }
        }
    });
    let processes = std::sync::Arc::clone(&runtime.processes);
    let world = Setup::of(vhive_node::Runtimes::new().with(runtime)).start().await;
    // As in the original's `configs/knative_workloads`, with a placeholder image beside.
    let (status, made) = world
        .apply("helloworld", |document| {
            document["spec"]["template"]["spec"]["containers"] = json!([{
                "image": "crccheck/hello-world:latest",
                "ports": [{"name": "http1", "containerPort": 50051}],
                "env": [
                    {"name": "GUEST_PORT", "value": "50052"},
                    {"name": "GUEST_IMAGE", "value": "ghcr.io/ease-lab/helloworld:var_workload"},
                ],
            }]);
        })
        .await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(world.get("helloworld").await.text(), "ok");
    let process = processes.lock().unwrap()[0].clone();
    assert!(process.env.contains(&"PORT=50052".to_owned()), "{:?}", process.env);
    assert!(!process.env.iter().any(|one| one.starts_with("GUEST_")), "{:?}", process.env);
    let (_, revision) =
        world.api("GET", &format!("{SERVING}/revisions/helloworld-00001"), None).await;
    let image = revision["status"]["containerStatuses"][0]["imageDigest"].as_str().unwrap();
    assert!(image.starts_with("ghcr.io/ease-lab/helloworld@sha256:"), "{image}");
    world.stop().await;
}

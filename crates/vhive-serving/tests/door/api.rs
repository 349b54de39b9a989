//! The API: objects, errors, who may use it, what survives a restart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_node::Runtimes;
use vhive_sandbox::sim::{Sim, SimConfig};

use crate::support::{PATIENCE, Reply, Setup, World, annotate, mode_of, service, within};

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

#[tokio::test]
async fn a_service_is_made_read_replaced_listed_and_removed() {
    let world = World::new().await;
    let (status, made) = world.api("POST", SERVICES, Some(&service("hello"))).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["status"]["latestReadyRevisionName"], "hello-00001");
    assert_eq!(made["status"]["url"], "http://hello.default.example.com");
    assert_eq!(made["status"]["conditions"][1]["status"], "True");

    let (status, again) = world.api("POST", SERVICES, Some(&service("hello"))).await;
    assert_eq!((status, &again["reason"]), (409, &Value::from("AlreadyExists")));

    let path = format!("{SERVICES}/hello");
    let (status, same) = world.api("PUT", &path, Some(&made)).await;
    assert_eq!((status, &same), (200, &made), "what was read can be written back");

    let mut changed = made.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "A", "value": "b"}]);
    let (status, changed) = world.api("PUT", &path, Some(&changed)).await;
    assert_eq!((status, &changed["metadata"]["generation"]), (200, &Value::from(2)));
    assert_eq!(changed["status"]["latestCreatedRevisionName"], "hello-00002");
    assert_eq!(changed["metadata"]["uid"], made["metadata"]["uid"]);

    let (status, stale) = world.api("PUT", &path, Some(&made)).await;
    assert_eq!((status, &stale["reason"]), (409, &Value::from("Conflict")), "{stale}");

    let (_, list) = world.api("GET", "/apis/serving.knative.dev/v1/services", None).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0], changed);

    let (status, removed) = world.api("DELETE", &path, None).await;
    assert_eq!((status, &removed["status"]), (200, &Value::from("Success")));
    let (status, gone) = world.api("GET", &path, None).await;
    assert_eq!((status, &gone["reason"]), (404, &Value::from("NotFound")));
    assert_eq!(gone["details"]["name"], "hello");
    world.stop().await;
}

#[tokio::test]
async fn refusals_name_every_field() {
    let world = World::new().await;
    let mut bad = service("hello");
    bad["spec"]["template"]["spec"]["containers"][0]["foo"] = json!(1);
    bad["spec"]["template"]["spec"]["nodeSelector"] = json!({"x": "y"});
    let (status, told) = world.api("POST", SERVICES, Some(&bad)).await;
    assert_eq!(
        (status, &told["kind"], &told["reason"]),
        (422, &json!("Status"), &json!("Invalid"))
    );
    let fields: Vec<&str> = told["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["spec.template.spec.nodeSelector", "spec.template.spec.containers[0].foo"],
        "{told}"
    );

    let mut missing = service("hello");
    missing["spec"]["template"]["spec"]["runtimeClassName"] = json!("firecracker");
    let (status, told) = world.api("POST", SERVICES, Some(&missing)).await;
    assert_eq!(status, 422);
    assert!(told["message"].as_str().unwrap().contains("not offered by this node (sim)"), "{told}");

    let mut elsewhere = service("hello");
    elsewhere["metadata"]["namespace"] = json!("other");
    let (status, told) = world.api("POST", SERVICES, Some(&elsewhere)).await;
    assert_eq!((status, &told["reason"]), (400, &json!("BadRequest")));

    let (status, told) = world.api("PATCH", SERVICES, None).await;
    assert_eq!((status, &told["reason"]), (405, &json!("MethodNotAllowed")));
    let (status, told) = world.api("GET", "/apis/apps/v1/deployments", None).await;
    assert_eq!((status, &told["kind"]), (404, &json!("Status")));
    world.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let mut setup = Setup::new();
    setup.serving.api.max_body = vhive_api::Bytes(1000);
    let world = setup.start().await;
    let mut large = service("hello");
    annotate(&mut large, "note", &"x".repeat(2000));
    let (status, told) = world.api("POST", SERVICES, Some(&large)).await;
    assert_eq!((status, &told["reason"]), (413, &json!("RequestEntityTooLarge")), "{told}");
    world.stop().await;
}

async fn over_tcp(world: &World, extra: &str, path: &str) -> Reply {
    let mut stream = TcpStream::connect(world.serving.addresses().api).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{extra}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    Reply::parse(&reply)
}

#[tokio::test]
async fn loopback_needs_the_token_and_the_socket_the_group() {
    let world = World::new().await;
    let addresses = world.serving.addresses().clone();
    assert_eq!(mode_of(&addresses.socket), 0o660);
    assert_eq!(mode_of(&addresses.token), 0o600);
    assert!(addresses.api.ip().is_loopback() && addresses.gateway.ip().is_loopback());

    let without = over_tcp(&world, "", "/vhive/v1/node").await;
    assert_eq!(without.status, 401);
    assert_eq!(without.header("www-authenticate"), Some("Bearer"));
    assert!(without.text().contains("\"reason\":\"Unauthorized\""), "{}", without.text());
    let wrong = over_tcp(&world, "Authorization: Bearer nonsense\r\n", "/vhive/v1/node").await;
    assert_eq!(wrong.status, 401);
    assert_eq!(over_tcp(&world, "", "/healthz").await.status, 200);

    let token = std::fs::read_to_string(&addresses.token).unwrap();
    let with = format!("Authorization: Bearer {token}\r\n");
    let node = over_tcp(&world, &with, "/vhive/v1/node").await;
    assert_eq!(node.status, 200);
    let node: Value = serde_json::from_slice(&node.body).unwrap();
    assert_eq!(node["gateway"], addresses.gateway.to_string());
    world.stop().await;
    assert!(!addresses.socket.exists());
}

#[tokio::test]
async fn a_restart_serves_the_same_services() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    world.apply("other", |_| {}).await;
    world.apply("hello", |document| annotate(document, "vhive.dev/queue-depth", "7")).await;
    let (_, before) = world.api("GET", SERVICES, None).await;
    let dir = world.dir.clone();
    world.stop().await;

    let runtimes = Runtimes::new().with(Sim::new(SimConfig::default()));
    let world = Setup::again(runtimes, dir).start().await;
    let (_, after) = world.api("GET", SERVICES, None).await;
    assert_eq!(before["items"], after["items"]);
    assert_eq!(world.get("hello").await.status, 200);
    let (_, told) =
        world.api("GET", "/vhive/v1/namespaces/default/services/hello/describe", None).await;
    assert_eq!(told["queue_depth"], 7);
    assert_eq!(told["revision"]["key"]["name"], "hello-00002");
    world.stop().await;
}

#[tokio::test]
async fn a_damaged_store_is_named() {
    let setup = Setup::new();
    std::fs::create_dir_all(&setup.node.state_dir).unwrap();
    let path = setup.node.state_dir.join("state.redb");
    std::fs::write(&path, b"this is no database, whatever its name says").unwrap();
    let images = vhive_image::ImageStore::open(setup.dir.path().join("images")).unwrap();
    let node = vhive_node::Node::open(setup.node, setup.runtimes, images, None).await.unwrap();
    let error = vhive_serving::Serving::run(setup.serving, node).await.expect_err("damaged");
    let source = std::error::Error::source(&error).expect("has a cause").to_string();
    assert!(source.contains(path.to_str().unwrap()) && source.contains("damaged"), "{source}");
}

#[tokio::test]
async fn views_tell_starts_failures_logs_and_metrics() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    world
        .apply("broken", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:boot"}]);
        })
        .await;
    assert_eq!(world.get("hello").await.status, 200);
    let failed = world.get("broken").await;
    assert_eq!((failed.status, failed.header("x-vhive-error")), (502, Some("start-failed")));
    assert!(failed.text().contains("sim fails at boot as told"), "{}", failed.text());

    let view = |name: &str| format!("/vhive/v1/namespaces/default/services/{name}/describe");
    let (_, hello) = world.api("GET", &view("hello"), None).await;
    assert_eq!(hello["ready"], 1, "{hello}");
    assert_eq!(hello["last_start"]["kind"], "boot");
    assert_eq!(hello["last_start"]["phases"][0]["phase"], "start");
    assert_eq!(hello["instances"][0]["state"], "ready");
    let (_, footprint) = world.api("GET", &(view("hello") + "?footprint=true"), None).await;
    let (one, same) = (&footprint["instances"][0], &hello["instances"][0]["sandbox"]);
    assert_eq!(one["sandbox"], *same);
    assert_eq!(one.get("pss_bytes"), Some(&Value::Null), "`sim` has no processes: {one}");
    let (_, counted) = world.api("GET", &(view("hello") + "?counters=all"), None).await;
    assert_eq!(counted["instances"][0]["counters"], json!({}), "absent, not zero: {counted}");
    assert_eq!(hello["instances"][0]["counters"], Value::Null, "nobody asked");
    for query in ["?colour=red", "?counters=some"] {
        assert_eq!(world.api("GET", &(view("hello") + query), None).await.0, 400, "{query}");
    }
    let (_, node) = world.api("GET", "/vhive/v1/node", None).await;
    assert_eq!(node["accelerators"], json!({}), "`sim` has no guests");
    assert!(node["counters"]["hardware"].is_string() && node["cpus"].is_null(), "{node}");
    let (_, broken) = world.api("GET", &view("broken"), None).await;
    assert!(broken["last_failure"]["console"].to_string().contains("as told"), "{broken}");
    let (_, object) = world.api("GET", &format!("{SERVICES}/broken"), None).await;
    assert_eq!(object["status"]["conditions"][1]["reason"], "RevisionFailed", "{object}");

    let (status, records) = world.api("GET", "/vhive/v1/records?service=hello&limit=5", None).await;
    assert_eq!((status, records.as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(records[0]["start"], "boot");
    let (status, _) = world.api("GET", "/vhive/v1/records?colour=red", None).await;
    assert_eq!(status, 400);

    let text = metrics(&world).await;
    for line in [
        "vhive_gateway_requests_total{namespace=\"default\",service=\"hello\",revision=\"hello-00001\",outcome=\"replied\",status=\"2xx\"} 1",
        "vhive_gateway_requests_total{namespace=\"default\",service=\"broken\",revision=\"broken-00001\",outcome=\"start-failed\",status=\"5xx\"} 1",
        "vhive_gateway_requests_in_flight{",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    world.stop().await;
}

#[tokio::test]
async fn logs_are_lines_and_can_be_followed() {
    let world = World::new().await;
    world
        .apply("talks", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:init"}]);
        })
        .await;
    let path = "/vhive/v1/namespaces/default/services/talks/logs";
    let mut stream =
        tokio::net::UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    let request = format!("GET {path}?follow=true HTTP/1.1\r\nHost: node\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(world.get("talks").await.status, 502);
    let mut wire = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&wire).contains("as told\"}\n") {
            assert_ne!(stream.read_buf(&mut wire).await.unwrap(), 0, "followed logs do not end");
        }
    })
    .await;
    let (_, line) = world.api("GET", path, None).await;
    assert_eq!(line["text"], "sim fails at init as told");
    assert_eq!(line["stream"], "console");
    let (status, _) =
        world.api("GET", "/vhive/v1/namespaces/default/services/none/logs", None).await;
    assert_eq!(status, 404);
    world.stop().await;
}

pub(crate) async fn metrics(world: &World) -> String {
    let socket = &world.serving.addresses().socket;
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut wire = Vec::new();
    within(stream.read_to_end(&mut wire)).await.unwrap();
    Reply::parse(&wire).text()
}

#[tokio::test]
async fn metrics_equal_the_table_of_the_page() {
    use std::collections::BTreeSet;
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    let text = metrics(&world).await;
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/design/records-and-metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let of_requests = ["kn_serving_", "kn_revision_request_"];
    for (title, marks, others) in [
        ("the gateway", ["vhive_gateway_"].as_slice(), [].as_slice()),
        ("requests", &of_requests, &[]),
        ("the autoscaler", &["kn_revision_"], &of_requests),
        ("eventing", &["_eventing_"], &[]),
    ] {
        let has = |name: &str, marks: &[&str]| marks.iter().any(|mark| name.contains(mark));
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let told: BTreeSet<String> = types
            .filter(|(name, _)| has(name, marks) && !has(name, others))
            .map(
                |(name, kind)| {
                    if kind == "counter" { format!("{name}_total") } else { name.into() }
                },
            )
            .collect();
        let section = page.split(&format!("\n## Metrics of {title}")).nth(1).expect("the section");
        let rows = section.split("\n## ").next().unwrap_or_default().lines();
        let listed: BTreeSet<String> = rows
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(told, listed);
    }
    world.stop().await;
}

#[tokio::test]
async fn requests_are_counted_under_knatives_names() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    for _ in 0..3 {
        assert_eq!(world.get("hello").await.status, 200);
    }
    world.records(|records| records.len() == 3).await;
    let text = metrics(&world).await;
    let of = "k8s_namespace_name=\"default\",kn_service_name=\"hello\",\
              kn_configuration_name=\"hello\",kn_revision_name=\"hello-00001\"";
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap()
    };
    let class = "http_response_status_code=\"2xx\"";
    let name = "kn_serving_invocation_duration_seconds";
    let ended = value(&format!("{name}_count{{{class},{of}}}"));
    assert_eq!(value(&format!("{name}_bucket{{le=\"+Inf\",{class},{of}}}")), ended);
    assert!(value(&format!("{name}_sum{{{class},{of}}}")) > 0.0);
    assert_eq!(ended, 3.0);
    for name in ["kn_serving_queue_depth", "kn_revision_request_queued"] {
        assert_eq!(value(&format!("{name}{{{of}}}")), 0.0);
    }
    for name in ["kn_revision_request_concurrency", "kn_revision_request_active"] {
        assert_eq!(value(&format!("{name}{{{of}}}")), 0.0);
    }
    world.stop().await;
}

#[tokio::test]
async fn the_autoscalers_decision_is_among_the_metrics() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    let labels = "{k8s_namespace_name=\"default\",kn_service_name=\"hello\",\
                  kn_configuration_name=\"hello\",kn_revision_name=\"hello-00001\"}";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = metrics(&world).await;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
            line.map(|value| value.parse::<f64>().unwrap())
        };
        if value("kn_revision_pods_count") == Some(1.0) {
            assert_eq!(value("kn_revision_pods_requested"), Some(1.0));
            assert_eq!(value("kn_revision_pods_pending_count"), Some(0.0));
            assert_eq!(value("kn_revision_pods_terminating_count"), Some(0.0));
            assert_eq!(value("kn_revision_pods_desired"), Some(1.0));
            assert_eq!(value("kn_revision_panic_mode"), Some(0.0));
            assert_eq!(value("kn_revision_concurrency_target"), Some(70.0));
            assert_eq!(value("kn_revision_rps_target"), None, "it scales by concurrency");
            // 1·100 − 211, less the panic average, which is below 1: −111 or −112.
            let excess = value("kn_revision_capacity_excess").unwrap();
            assert!((-112.0..=-111.0).contains(&excess), "{excess}");
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stop().await;
}

//! The dashboard: its page, who may read what, and the view that it polls.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Reply, Setup, World, annotate, service, within};

const OVERVIEW: &str = "/vhive/v1/overview";

/// A request to the API's port, with a token or without.
async fn on_port(world: &World, path: &str, token: Option<&str>) -> Reply {
    let shown = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{}\r\n",
        shown.unwrap_or_default()
    );
    let mut stream = TcpStream::connect(world.serving.addresses().api).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    Reply::parse(&reply)
}

fn token(world: &World) -> String {
    std::fs::read_to_string(&world.serving.addresses().token).unwrap().trim().to_owned()
}

async fn overview(world: &World, query: &str) -> Value {
    let (status, view) = world.api("GET", &format!("{OVERVIEW}{query}"), None).await;
    assert_eq!(status, 200, "{view}");
    view
}

fn boots(document: &mut Value) {
    document["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "VHIVE_SIM_BOOT_MS", "value": "5"}]);
}

#[tokio::test]
async fn the_page_is_for_everyone_and_its_data_for_those_with_the_token() {
    let world = World::new().await;
    let files = [
        ("/dashboard", "text/html; charset=utf-8"),
        ("/dashboard/page.css", "text/css; charset=utf-8"),
        ("/dashboard/page.js", "text/javascript; charset=utf-8"),
        ("/dashboard/sections.js", "text/javascript; charset=utf-8"),
        ("/dashboard/draw.js", "text/javascript; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ];
    for (path, kind) in files {
        let reply = on_port(&world, path, None).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{path}");
        assert!(!reply.body.is_empty());
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        let policy = reply.header("content-security-policy").unwrap();
        let rules: Vec<&str> = policy.split("; ").collect();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(rules.contains(&rule), "{path}: no {rule} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    for path in [OVERVIEW, "/dashboard/", "/dashboard/page.html", "/dashboard/../metrics"] {
        assert_eq!(on_port(&world, path, None).await.status, 401, "{path}");
        assert_eq!(on_port(&world, path, Some("wrong")).await.status, 401, "{path}");
    }
    let token = token(&world);
    let reply = on_port(&world, OVERVIEW, Some(&token)).await;
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(on_port(&world, "/dashboard/nothing", Some(&token)).await.status, 404);
    let question = format!("{OVERVIEW}?histroy=true");
    assert_eq!(on_port(&world, &question, Some(&token)).await.status, 400);
    world.stop().await;
}

#[tokio::test]
async fn scripts_write_text_only_and_load_nothing_from_elsewhere() {
    let world = World::new().await;
    for path in ["/dashboard", "/dashboard/page.js", "/dashboard/sections.js", "/dashboard/draw.js"]
    {
        let text = on_port(&world, path, None).await.text();
        for bad in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(bad), "{path} has {bad}");
        }
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "").replace("`curl", "");
        assert!(!elsewhere.contains("https://"), "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn an_empty_node_has_an_overview() {
    let world = World::new().await;
    let view = overview(&world, "?history=true").await;
    for list in ["services", "instances", "starts", "snapshots"] {
        assert_eq!(view[list], json!([]), "{list}");
    }
    assert_eq!(view["history"]["seconds"], json!([]));
    assert_eq!(view["requests"]["minute"], json!({"requests": 0, "p50_us": null, "p99_us": null}));
    assert_eq!(view["node"]["memory_bytes"], 0);
    assert!(view["node"]["max_memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!(view["node"]["runtimes"], json!([{"name": "sim", "accelerator": null}]));
    world.stop().await;
}

#[tokio::test]
async fn the_overview_tells_services_instances_starts_and_requests() {
    let mut setup = Setup::new();
    // Warm requests push the cold start out of the records at once.
    setup.node.records.recent = 3;
    let world = setup.start().await;
    let labelled = |document: &mut Value| {
        boots(document);
        document["metadata"]["labels"] = json!({"team": "one"});
        annotate(document, "vhive.dev/snapshot-policy", "off");
    };
    assert_eq!(world.apply("one", labelled).await.0, 201);
    for _ in 0..5 {
        assert_eq!(world.get("one").await.status, 200);
    }
    let view = overview(&world, "").await;
    assert!(view.get("history").is_none());
    assert_eq!(view["services_total"], 1);
    let one = &view["services"][0];
    assert_eq!((&one["name"], &one["namespace"]), (&json!("one"), &json!("default")));
    assert_eq!(one["url"], "http://one.default.example.com");
    assert_eq!(one["labels"], json!({"team": "one"}));
    assert_eq!((&one["instances_ready"], &one["instances_starting"]), (&json!(1), &json!(0)));
    assert_eq!((&one["ended"], &one["failed"]), (&json!(5), &json!(0)));
    assert_eq!((&one["in_flight"], &one["queued"]), (&json!(0), &json!(0)));
    assert_eq!(one["latency"]["requests"], 3);
    assert!(one["latency"]["p50_us"].as_u64() <= one["latency"]["p99_us"].as_u64());
    assert_eq!(one["traffic"][0]["revision"], "one-00001");
    assert_eq!(one["traffic"][0]["percent"], 100);
    assert_eq!(view["requests"]["ended"], 5);

    let instances = view["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0]["state"], "ready");
    let room = world.node.room();
    assert_eq!(view["node"]["instances"], 1);
    assert_eq!(view["node"]["memory_bytes"], room.memory.0);
    assert!(room.memory.0 > 0 && room.memory.0 <= room.max_memory.0);

    let starts = view["starts"].as_array().unwrap();
    assert_eq!(starts.len(), 1, "{starts:?}");
    assert_eq!((&starts[0]["kind"], &starts[0]["status"]), (&json!("boot"), &json!(200)));
    assert_eq!(starts[0]["sandbox"], instances[0]["sandbox"]);
    let phases = starts[0]["phases"].as_array().unwrap();
    let boot = phases.iter().find(|span| span["phase"] == "kernel_boot").unwrap();
    assert!(boot["length_us"].as_u64().unwrap() >= 5_000);
    world.stop().await;
}

#[tokio::test]
async fn the_overview_tells_failures_and_starts_that_nobody_waited_for() {
    let world = World::new().await;
    let fails = |document: &mut Value| {
        document["spec"]["template"]["spec"]["containers"][0]["env"] =
            json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:boot"}]);
    };
    assert_eq!(world.apply("bad", fails).await.0, 201);
    assert_eq!(world.get("bad").await.status, 502);
    let kept = |document: &mut Value| {
        annotate(document, "autoscaling.knative.dev/min-scale", "1");
    };
    assert_eq!(world.apply("kept", kept).await.0, 201);
    let path = "/vhive/v1/namespaces/default/services/kept/describe";
    let begun = std::time::Instant::now();
    while world.api("GET", path, None).await.1["ready"] != 1 {
        assert!(begun.elapsed() < crate::support::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let view = overview(&world, "?history=true").await;
    let (bad, kept) = (&view["services"][0], &view["services"][1]);
    assert!(bad["failure"].as_str().unwrap().contains("sim fails at boot"), "{bad}");
    assert_eq!((&bad["failed"], &bad["ended"]), (&json!(1), &json!(1)));
    assert_eq!((&kept["failure"], &kept["ended"]), (&Value::Null, &json!(0)));
    let starts = view["starts"].as_array().unwrap();
    assert_eq!(starts.len(), 1, "{starts:?}");
    assert_eq!((&starts[0]["service"], &starts[0]["status"]), (&json!("kept"), &Value::Null));
    world.stop().await;
}

#[tokio::test]
async fn of_many_services_the_liveliest_are_shown() {
    let world = World::new().await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/services";
    for n in 0..205 {
        let (status, told) = world.api("POST", path, Some(&service(&format!("s{n:03}")))).await;
        assert_eq!(status, 201, "{told}");
    }
    assert_eq!(world.get("s204").await.status, 200);
    let view = overview(&world, "").await;
    assert_eq!(view["services_total"], 205);
    let names: Vec<&str> = view["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 200);
    assert_eq!(names.last(), Some(&"s204"));
    assert!(names.is_sorted());
    world.stop().await;
}

//! Snapshots through the door: annotations, records, connections, and the API.

use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use vhive_api::{MemoryMode, StartKind};
use vhive_node::Runtimes;
use vhive_sandbox::snapshot::VM_STATE;

use crate::support::{InProcess, Reply, Setup, World, annotate, within};

const SNAPSHOTS: &str = "/vhive/v1/snapshots";

fn reap(document: &mut Value) {
    annotate(document, "vhive.dev/snapshot-policy", "reap");
    document["spec"]["template"]["spec"]["containerConcurrency"] = Value::from(1);
}

async fn evict(world: &World, name: &str) -> u64 {
    let path = format!("/vhive/v1/namespaces/default/services/{name}/evict");
    let (status, told) = within(world.api("POST", &path, None)).await;
    assert_eq!(status, 200, "{told}");
    told["evicted"].as_u64().unwrap()
}

async fn only(world: &World) -> Value {
    let (status, all) = world.api("GET", SNAPSHOTS, None).await;
    assert_eq!((status, all.as_array().map(Vec::len)), (200, Some(1)), "{all}");
    all[0].clone()
}

#[tokio::test]
async fn records_tell_boot_record_and_reap_apart_with_their_memory() {
    let world = World::new().await;
    assert_eq!(world.apply("one", reap).await.0, 201);
    for _ in 0..3 {
        assert_eq!(world.get("one").await.status, 200);
        assert_eq!(evict(&world, "one").await, 1);
    }
    let records = world.records(|records| records.len() == 3).await;
    let kinds: Vec<_> = records.iter().map(|record| record.start.unwrap()).collect();
    assert_eq!(kinds, [StartKind::Boot, StartKind::Record, StartKind::Reap]);
    let modes: Vec<_> = records.iter().map(|record| Some(record.memory.as_ref()?.mode)).collect();
    assert_eq!(modes, [None, Some(MemoryMode::Record), Some(MemoryMode::Prefetch)]);
    assert!(
        records
            .iter()
            .all(|record| record.version == vhive_api::RECORD_VERSION && record.fallback.is_none())
    );
    let last = records[2].memory.unwrap();
    assert_eq!((last.prefetched_pages, last.faults), (64, Some(0)));
    let (_, metrics) = world.api("GET", "/metrics", None).await;
    assert_eq!(metrics, Value::Null, "text, not JSON");
    world.stop().await;
}

#[tokio::test]
async fn timelines_of_faults_are_listed_only_when_asked_for() {
    let world = World::new().await;
    assert_eq!(world.apply("one", |_| {}).await.0, 201);
    for _ in 0..2 {
        assert_eq!(world.get("one").await.status, 200);
    }
    let records = world.records(|records| records.len() == 2).await;
    // `sim` has no pager: a record as one would have made it.
    let mut record = vhive_api::InvocationRecord::clone(&records[0]);
    record.id = vhive_api::InvocationId::from_bits(7);
    record.fault_timeline = Some(Arc::new(vhive_api::FaultTimeline {
        attached_us: 300,
        every: 1,
        residual: vec![vhive_api::FaultAt(20, 4)],
        awaited: Vec::new(),
    }));
    let id = record.id;
    world.node.records().push(record);
    let (status, all) = world.api("GET", "/vhive/v1/records", None).await;
    assert_eq!((status, all.as_array().map(Vec::len)), (200, Some(3)));
    assert!(all.as_array().unwrap().iter().all(|one| one.get("fault_timeline").is_none()));
    let path = format!("/vhive/v1/records?id={id}&faults=true");
    let (status, one) = world.api("GET", &path, None).await;
    assert_eq!((status, one.as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(one[0]["fault_timeline"]["residual"], serde_json::json!([[20, 4]]));
    world.stop().await;
}

#[tokio::test]
async fn a_fallback_is_in_the_record_and_the_request_is_answered() {
    let world = World::new().await;
    let fails = |document: &mut Value| {
        reap(document);
        let container = &mut document["spec"]["template"]["spec"]["containers"][0];
        container["env"] = serde_json::json!([
            {"name": "VHIVE_SIM_FAULT", "value": "refuse-state"}
        ]);
    };
    assert_eq!(world.apply("one", fails).await.0, 201);
    for _ in 0..2 {
        assert_eq!(world.get("one").await.status, 200);
        evict(&world, "one").await;
    }
    let records = world.records(|records| records.len() == 2).await;
    assert_eq!(records[1].start, Some(StartKind::Boot));
    let why = records[1].fallback.as_deref().expect("it says why");
    assert!(why.contains("does not take the saved state"), "{why}");
    world.stop().await;
}

#[tokio::test]
async fn no_connection_of_the_gateways_is_in_a_snapshot() {
    let world = World::new().await;
    assert_eq!(world.apply("one", reap).await.0, 201);
    // The client's connection stays, and with it, until then, the gateway's to the instance.
    let mut stream = world.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: one.default.example.com\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    within(stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    evict(&world, "one").await;
    let info = only(&world).await;
    let state = std::path::Path::new(info["path"].as_str().unwrap()).join(VM_STATE);
    let state = std::fs::read_to_string(state).unwrap();
    assert!(state.ends_with(", 0 connections open\n"), "{state}");
    world.stop().await;
}

#[tokio::test]
async fn unknown_policies_are_refused_by_field() {
    let world = World::new().await;
    let bad = [
        ("vhive.dev/snapshot-policy", "on", "unknown snapshot policy"),
        ("vhive.dev/prefetch-policy", "fast", "unknown prefetch policy"),
        ("vhive.dev/snapshot-at", "never", "unknown moment"),
        ("vhive.dev/before-snapshot", "no-slash", "must be a path"),
        ("vhive.dev/after-restore", "exec: ", "must be a path"),
    ];
    for (name, value, reason) in bad {
        let (status, told) = world.apply("bad", |document| annotate(document, name, value)).await;
        assert_eq!(status, 422, "{told}");
        let cause = &told["details"]["causes"][0];
        assert!(cause["field"].as_str().unwrap().contains(name), "{cause}");
        assert!(cause["message"].as_str().unwrap().contains(reason), "{cause}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_api_makes_lists_carries_and_removes_snapshots() {
    let (world, other) = (World::new().await, World::new().await);
    assert_eq!(world.apply("one", reap).await.0, 201);
    let create = "/vhive/v1/namespaces/default/services/one/snapshot";
    let (status, made) = within(world.api("POST", create, None)).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(within(world.api("POST", create, None)).await.0, 200, "it is there already");
    let digest = made["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = format!("{SNAPSHOTS}/{digest}/sim");
    assert_eq!(world.api("GET", &path, None).await.1["revision"], only(&world).await["revision"]);

    let archive = raw(&world, &format!("GET {path}/archive"), b"").await;
    assert_eq!((archive.status, archive.header("content-type")), (200, Some("application/x-tar")));
    let archive = unchunk(&archive.body);
    let import = format!("POST {SNAPSHOTS}/import");
    let taken = raw(&other, &import, &archive).await;
    assert_eq!(taken.status, 201, "{}", taken.text());
    assert_eq!(only(&other).await["digest"], made["digest"]);
    assert_eq!(raw(&other, &import, &archive).await.status, 409);
    assert_eq!(raw(&other, &import, b"nonsense").await.status, 400);
    assert_eq!(other.apply("one", reap).await.0, 201);
    assert_eq!(other.get("one").await.status, 200);
    let records = other.records(|records| records.len() == 1).await;
    assert_eq!(records[0].start, Some(StartKind::Record), "from another node's snapshot");

    let (status, done) = world.api("POST", &format!("{SNAPSHOTS}/gc"), None).await;
    assert_eq!((status, &done["removed"]), (200, &Value::from(0)));
    assert_eq!(world.api("DELETE", &path, None).await.0, 200);
    assert_eq!(world.api("DELETE", &path, None).await.0, 404);
    assert_eq!(world.api("GET", &format!("{SNAPSHOTS}/nonsense/sim"), None).await.0, 400);
    world.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn each_revision_that_requests_come_to_is_snapshotted_by_its_name() {
    let world = World::new().await;
    world.apply("one", reap).await;
    let (status, told) = world
        .apply("one", |document| {
            reap(document);
            let container = &mut document["spec"]["template"]["spec"]["containers"][0];
            container["env"] = serde_json::json!([{"name": "VARIANT", "value": "two"}]);
            document["spec"]["traffic"] = serde_json::json!([
                {"revisionName": "one-00001", "percent": 90},
                {"latestRevision": true, "percent": 10},
            ]);
        })
        .await;
    assert_eq!(status, 200, "{told}");
    let names = [("one-00001", "one-00001"), ("one", "one-00002"), ("one-00002", "one-00002")];
    for ((name, revision), new) in names.into_iter().zip([true, true, false]) {
        let create = format!("/vhive/v1/namespaces/default/services/{name}/snapshot");
        let (status, made) = within(world.api("POST", &create, None)).await;
        assert_eq!(status, if new { 201 } else { 200 }, "{name}: {made}");
        assert!(made["revision"].to_string().contains(revision), "{name}: {made}");
    }
    for name in ["one-00003", "two"] {
        let create = format!("/vhive/v1/namespaces/default/services/{name}/snapshot");
        let (status, told) = within(world.api("POST", &create, None)).await;
        assert_eq!(status, 404, "{told}");
        let text = told["message"].as_str().unwrap();
        assert!(text.contains(name) && text.contains("neither a service nor a revision"), "{text}");
    }
    world.stop().await;
}

async fn raw(world: &World, line: &str, body: &[u8]) -> Reply {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: node\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    Reply::parse(&reply)
}

/// The content of a chunked body.
fn unchunk(mut wire: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let end = wire.windows(2).position(|two| two == b"\r\n").expect("a chunk");
        let size = std::str::from_utf8(&wire[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return content;
        }
        content.extend_from_slice(&wire[end + 2..end + 2 + size]);
        wire = &wire[end + 2 + size + 2..];
    }
}

#[tokio::test]
async fn what_was_busy_before_an_eviction_starts_nothing_after_it() {
    let world = World::new().await;
    let changes = |document: &mut Value| {
        document["spec"]["template"]["spec"]["containerConcurrency"] = Value::from(1);
        annotate(document, "autoscaling.knative.dev/target-utilization-percentage", "100");
        document["spec"]["template"]["spec"]["containers"][0]["env"] =
            serde_json::json!([{"name": "VHIVE_SIM_REPLY_MS", "value": "200"}]);
    };
    assert_eq!(world.apply("one", changes).await.0, 201);
    let (a, b, c) = tokio::join!(world.get("one"), world.get("one"), world.get("one"));
    assert_eq!([a.status, b.status, c.status], [200; 3]);
    assert_eq!(evict(&world, "one").await, 3);
    // Long enough for the autoscaler to have looked.
    assert_eq!(world.get("one").await.status, 200);
    assert_eq!(evict(&world, "one").await, 1);
    world.stop().await;
}

/// Replies with the status that its path names.
async fn of_status(mut stream: TcpStream) {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..read]);
        if seen.ends_with(b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&seen);
            // GET /503 HTTP/1.1
            let status = text.split(['/', ' ']).nth(2).unwrap_or("400").to_owned();
            let reply = format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(reply.as_bytes()).await.is_err() {
                return;
            }
            seen.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_snapshot_is_taken_behind_a_reply_that_says_that_the_function_is_sick() {
    let runtime = InProcess::new(of_status);
    let found = Arc::clone(&runtime.found);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    assert_eq!(world.apply("one", reap).await.0, 201);
    for (status, snapshots) in [(503, 0), (500, 0), (404, 1)] {
        let host = crate::support::host("one");
        let wire = format!("GET /{status} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let reply = world.raw(wire.as_bytes()).await;
        assert_eq!(reply.status, status);
        evict(&world, "one").await;
        assert_eq!(found.lock().unwrap().len(), snapshots, "{status}");
    }
    world.stop().await;
}

async fn listed(world: &World) -> Vec<Value> {
    let (status, all) = world.api("GET", SNAPSHOTS, None).await;
    assert_eq!(status, 200, "{all}");
    all.as_array().unwrap().clone()
}

/// How the last of so many requests to `one` came to an instance; nothing of that is left.
async fn kind(world: &World, requests: usize) -> StartKind {
    assert_eq!(world.get("one").await.status, 200);
    let records = world.records(|records| records.len() >= requests).await;
    evict(world, "one").await;
    records[requests - 1].start.unwrap()
}

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
const REVISIONS: &str = "/apis/serving.knative.dev/v1/namespaces/default/revisions";

#[tokio::test]
async fn the_snapshots_of_what_is_deleted_go_with_it() {
    let world = World::new().await;
    let one = format!("{SERVICES}/one");
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 1).await, StartKind::Boot);
    let path = only(&world).await["path"].as_str().unwrap().to_owned();
    assert_eq!(within(world.api("DELETE", &format!("{one}?dryRun=All"), None)).await.0, 200);
    assert!(std::fs::exists(&path).unwrap() && listed(&world).await.len() == 1);
    assert_eq!(within(world.api("DELETE", &one, None)).await.0, 200);
    assert!(listed(&world).await.is_empty() && !std::fs::exists(&path).unwrap());
    // Whoever makes the same again, perhaps somebody else, starts from nothing of it.
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 2).await, StartKind::Boot);

    // A change makes another revision; the snapshot of the earlier one is there for who goes back to it.
    let (_, mut document) = world.api("GET", &one, None).await;
    document["spec"]["template"]["spec"]["timeoutSeconds"] = Value::from(50);
    assert_eq!(world.api("PUT", &one, Some(&document)).await.0, 200);
    assert_eq!(kind(&world, 3).await, StartKind::Boot);
    assert_eq!(listed(&world).await.len(), 2);
    let first = format!("{REVISIONS}/one-00001");
    let (status, told) = within(world.api("DELETE", &first, None)).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(only(&world).await["revision"]["name"], "one-00002");

    // What a deletion is told to leave is there for whoever makes the same again. It is told clearly, or not at all.
    for unclear in [
        format!("{one}?keepSnapshots=yes"),
        format!("{SERVICES}?keepSnapshots=tru"),
        format!("{REVISIONS}/one-00002?keepSnapshots=true"),
        format!("{REVISIONS}?keepSnapshots=true"),
    ] {
        let (status, told) = world.api("DELETE", &unclear, None).await;
        assert!(status == 400 && told.to_string().contains("keepSnapshots"), "{unclear}: {told}");
    }
    assert_eq!(only(&world).await["kept"], false);
    let (status, told) = within(world.api("DELETE", &one, None)).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 4).await, StartKind::Boot);
    let left = format!("{one}?keepSnapshots=true");
    assert_eq!(within(world.api("DELETE", &left, None)).await.0, 200);
    let info = only(&world).await;
    assert_eq!((&info["orphan"], &info["kept"]), (&Value::from(true), &Value::from(true)));
    let (_, done) = world.api("POST", &format!("{SNAPSHOTS}/gc"), None).await;
    assert_eq!(done["removed"], 0, "{done}");
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 5).await, StartKind::Record);
    assert_eq!(only(&world).await["orphan"], false);
    // With its service it goes all the same.
    assert_eq!(within(world.api("DELETE", &one, None)).await.0, 200);
    assert!(listed(&world).await.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn the_snapshots_of_a_namespace_go_with_it_and_with_nothing_else() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = || {
        let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
        Setup::again(Runtimes::new().with(sim), Arc::clone(&dir))
    };
    let world = setup().start().await;
    for namespace in ["doomed", "doomed-not"] {
        let mut document = crate::support::service("one");
        reap(&mut document);
        let services = SERVICES.replace("default", namespace);
        assert_eq!(world.api("POST", &services, Some(&document)).await.0, 201);
        let create = format!("/vhive/v1/namespaces/{namespace}/services/one/snapshot");
        assert_eq!(within(world.api("POST", &create, None)).await.0, 201);
    }
    assert_eq!(listed(&world).await.len(), 2);
    world.stop().await;
    // A node that ends deletes nothing.
    let world = setup().start().await;
    let all = listed(&world).await;
    assert!(all.len() == 2 && all.iter().all(|one| one["orphan"] == false), "{all:?}");
    let doomed = "/api/v1/namespaces/doomed";
    assert_eq!(within(world.api("DELETE", doomed, None)).await.0, 200);
    assert_eq!(only(&world).await["revision"]["namespace"], "doomed-not");
    let doomed = "/api/v1/namespaces/doomed-not?keepSnapshots=true";
    assert_eq!(within(world.api("DELETE", doomed, None)).await.0, 200);
    let left = only(&world).await;
    assert_eq!((&left["orphan"], &left["kept"]), (&Value::from(true), &Value::from(true)));
    world.stop().await;
}

#[tokio::test]
async fn an_orphan_of_an_earlier_node_is_told_collected_and_used_by_nobody() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let setup = || {
        let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
        Setup::again(Runtimes::new().with(sim), Arc::clone(&dir))
    };
    let world = setup().start().await;
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 1).await, StartKind::Boot);
    let place = std::path::PathBuf::from(only(&world).await["path"].as_str().unwrap());
    let aside = dir.path().join("aside");
    // As a node leaves it that is killed between a deletion and this.
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    copy(&place, &aside);
    let one = format!("{SERVICES}/one");
    assert_eq!(within(world.api("DELETE", &one, None)).await.0, 200);
    world.stop().await;

    copy(&aside, &place);
    let world = setup().start().await;
    assert_eq!(only(&world).await["orphan"], true);
    let (_, done) = world.api("POST", &format!("{SNAPSHOTS}/gc"), None).await;
    assert_eq!(done["removed"], 1, "{done}");
    assert!(listed(&world).await.is_empty() && !place.exists());
    world.stop().await;

    copy(&aside, &place);
    let world = setup().start().await;
    assert_eq!(world.apply("one", reap).await.0, 201);
    assert_eq!(kind(&world, 1).await, StartKind::Boot, "it is another one's");
    assert_eq!(kind(&world, 2).await, StartKind::Record);
    assert_eq!(only(&world).await["orphan"], false);
    world.stop().await;
}

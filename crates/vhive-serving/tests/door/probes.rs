//! Probes as they are seen from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, annotate, eventually, host, read_head, within};

#[tokio::test]
async fn an_instance_that_no_longer_lives_is_replaced() {
    let sick = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&sick);
    let runtime = InProcess::new(move |mut stream| {
        let asked = Arc::clone(&asked);
        async move {
            while let Some((head, _)) = read_head(&mut stream).await {
                let ill = head.starts_with("GET /live ") && asked.load(Ordering::SeqCst);
                let status = if ill { "500 no" } else { "200 OK" };
                let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi");
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    let journals = Arc::clone(&runtime.journals);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    let (status, made) = world
        .apply("hello", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = json!({
                "httpGet": {"path": "/live"}, "periodSeconds": 1, "failureThreshold": 1,
            });
        })
        .await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(world.get("hello").await.status, 200);
    sick.store(true, Ordering::SeqCst);
    let first = journals.lock().unwrap()[0].clone();
    eventually(|| first.ended()).await;
    let words = first.tail(10).join("\n");
    assert!(words.contains("liveness probe GET /live was answered by status 500"), "{words}");
    sick.store(false, Ordering::SeqCst);
    assert_eq!(world.get("hello").await.status, 200);
    assert_eq!(journals.lock().unwrap().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn an_instance_that_is_not_ready_gets_no_requests_until_it_is() {
    // The one that holds a request is sick when told so; others never are.
    static FIRST: OnceLock<String> = OnceLock::new();
    let sick = Arc::new(AtomicBool::new(false));
    let (asked, held) = (Arc::clone(&sick), Arc::new(Notify::new()));
    let go = Arc::clone(&held);
    let runtime = InProcess::new(move |mut stream| {
        let (asked, go) = (Arc::clone(&asked), Arc::clone(&go));
        async move {
            let me = stream.local_addr().unwrap().port().to_string();
            while let Some((head, _)) = read_head(&mut stream).await {
                if head.starts_with("GET /hold ") {
                    FIRST.get_or_init(|| me.clone());
                    go.notified().await;
                }
                let first = FIRST.get() == Some(&me);
                let ill = head.starts_with("GET /ready ") && first && asked.load(Ordering::SeqCst);
                let status = if ill { "503 no" } else { "200 OK" };
                let length = me.len();
                let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{me}");
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    let journals = Arc::clone(&runtime.journals);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    let (status, made) = world
        .apply("hello", |document| {
            annotate(document, "autoscaling.knative.dev/min-scale", "2");
            document["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = json!({
                "httpGet": {"path": "/ready"}, "periodSeconds": 1, "failureThreshold": 2,
            });
        })
        .await;
    assert_eq!(status, 201, "{made}");
    let hold =
        format!("GET /hold HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("hello"));
    let mut holding = world.connect().await;
    holding.write_all(hold.as_bytes()).await.unwrap();
    let first = eventually(|| FIRST.get()).await;
    sick.store(true, Ordering::SeqCst);
    let key = vhive_api::RevisionKey::new("default", "hello-00001");
    let states = || -> Vec<&str> {
        let status = world.node.status(&key).unwrap();
        status.instances.iter().map(|one| one.state.as_str()).collect()
    };
    let leases = || -> Vec<u32> {
        let status = world.node.status(&key).unwrap();
        status.instances.iter().map(|one| one.leases).collect()
    };
    eventually(|| states().contains(&"unready").then_some(())).await;
    let why = "readiness probe GET /ready was answered by status 503, 2 times in a row";
    let all = journals.lock().unwrap().clone();
    let journal = all.iter().find(|journal| journal.tail(10).join("\n").contains(why)).unwrap();
    // It keeps what it has, and gets nothing more although it idles then: the others get another one.
    held.notify_one();
    let mut reply = Vec::new();
    within(holding.read_to_end(&mut reply)).await.unwrap();
    assert!(String::from_utf8(reply).unwrap().ends_with(first), "what it held is served");
    eventually(|| leases().iter().all(|leases| *leases == 0).then_some(())).await;
    for _ in 0..10 {
        let get = || world.get("hello");
        let (one, two, three, four) = tokio::join!(get(), get(), get(), get());
        for reply in [one, two, three, four] {
            assert_eq!(reply.status, 200);
            assert_ne!(reply.text(), *first);
        }
        assert!(states().contains(&"unready"), "it is still not ready");
    }
    sick.store(false, Ordering::SeqCst);
    eventually(|| (!states().contains(&"unready")).then_some(())).await;
    assert!(journal.tail(10).join("\n").contains("succeeds again"));
    assert_eq!(journal.ended(), None, "it was not replaced");
    world.stop().await;
}

/// A function that takes a moment to say that it lives, and never says so if it stood still meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_and_a_snapshot_do_not_meet() {
    let (found, asked) =
        (Arc::<OnceLock<Arc<Mutex<Vec<usize>>>>>::default(), Arc::new(Notify::new()));
    let (checkpoints, tell) = (Arc::clone(&found), Arc::clone(&asked));
    let runtime = InProcess::new(move |mut stream| {
        let (checkpoints, tell) = (Arc::clone(&checkpoints), Arc::clone(&tell));
        async move {
            while let Some((head, _)) = read_head(&mut stream).await {
                if head.starts_with("GET /live ") {
                    tell.notify_one();
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    if checkpoints.get().is_some_and(|found| !found.lock().unwrap().is_empty()) {
                        std::future::pending::<()>().await;
                    }
                }
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                if stream.write_all(reply).await.is_err() {
                    return;
                }
            }
        }
    });
    found.set(Arc::clone(&runtime.found)).unwrap();
    let journals = Arc::clone(&runtime.journals);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    let (status, made) = world
        .apply("hello", |document| {
            annotate(document, "vhive.dev/snapshot-policy", "vanilla");
            annotate(document, "autoscaling.knative.dev/initial-scale", "1");
            document["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = json!({
                "httpGet": {"path": "/live"}, "periodSeconds": 1, "timeoutSeconds": 1,
                "failureThreshold": 1,
            });
        })
        .await;
    assert_eq!(status, 201, "{made}");
    within(asked.notified()).await;
    // Behind the first reply a snapshot is taken, and a try is under way.
    assert_eq!(world.get("hello").await.status, 200);
    let found = Arc::clone(found.get().unwrap());
    let open = eventually(|| found.lock().unwrap().first().copied()).await;
    assert_eq!(open, 0, "no connection is in the snapshot");
    // The tries after it say that it no longer lives: that the probe goes on is seen by it.
    let first = journals.lock().unwrap()[0].clone();
    let began = std::time::Instant::now();
    eventually(|| first.ended()).await;
    assert!(began.elapsed() > Duration::from_millis(700), "{:?}", began.elapsed());
    world.stop().await;
}

#[tokio::test]
async fn probes_of_a_network_are_answered_without_an_instance_and_counted_nowhere() {
    for by_hyper_only in [false, true] {
        let runtime = InProcess::new(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nfunction";
                if stream.write_all(reply).await.is_err() {
                    return;
                }
            }
        });
        let journals = Arc::clone(&runtime.journals);
        let mut setup = Setup::of(Runtimes::new().with(runtime));
        setup.serving.gateway.by_hyper_only = by_hyper_only;
        let world = setup.start().await;
        world.apply("hello", |_| {}).await;
        for (fields, status, said) in [
            ("K-Network-Probe: queue\r\n", 200, "queue"),
            ("k-network-probe: activator\r\nPrefer: respond-async\r\n", 200, "activator"),
            ("K-Network-Probe: probe\r\nK-Network-Hash: 3f\r\n", 200, ""),
            ("K-Network-Probe: other\r\n", 400, "unexpected probe header value: other\n"),
            ("User-Agent: kube-probe/1.31\r\n", 200, ""),
            ("User-Agent: x\r\nK-Kubelet-Probe: kube\r\n", 200, ""),
        ] {
            let reply = world.request("GET", &host("hello"), fields, b"").await;
            assert_eq!((reply.status, reply.text().as_str()), (status, said), "{fields}");
            let hash = fields.contains("K-Network-Hash").then_some("3f");
            assert_eq!(reply.header("k-network-hash"), hash, "{fields}");
            let nobody = world.request("GET", &host("nobody"), fields, b"").await;
            assert_eq!(nobody.status, 404, "{fields}");
        }
        let one = "Connection: keep-alive\r\nK-Network-Probe: queue\r\nUpgrade: websocket\r\n";
        assert_eq!(world.request("POST", &host("hello"), one, b"four").await.text(), "queue");
        assert!(journals.lock().unwrap().is_empty(), "nothing was started");
        assert!(world.node.records().recent(10).is_empty(), "nothing was counted");

        for fields in ["K-Network-Probe:\r\n", "User-Agent: kube-prober/1\r\n"] {
            let reply = world.request("GET", &host("hello"), fields, b"").await;
            assert_eq!(reply.text(), "function", "{fields}: no probe");
        }
        assert_eq!(journals.lock().unwrap().len(), 1);
        world.stop().await;
    }
}

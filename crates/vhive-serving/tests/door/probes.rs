//! Probes as they are seen from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, annotate, eventually, read_head, within};

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

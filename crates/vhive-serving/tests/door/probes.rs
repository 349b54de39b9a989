//! Probes as they are seen from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, eventually, read_head};

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

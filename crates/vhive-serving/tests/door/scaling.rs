//! From zero, to zero, and what bounds it.

use std::time::Duration;

use serde_json::json;

use crate::support::{Setup, World, annotate, eventually, host};

fn sim_env(document: &mut serde_json::Value, name: &str, value: &str) {
    document["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": name, "value": value}]);
}

fn ready(world: &World, revision: &str) -> u32 {
    let key = vhive_api::RevisionKey::new("default", revision);
    world.node.counts(&key).map_or(0, |counts| counts.ready + counts.starting)
}

#[tokio::test]
async fn from_zero_to_zero_and_back() {
    let world = World::new().await;
    world.apply("hello", |document| annotate(document, "vhive.dev/window", "300ms")).await;
    for round in 0..2 {
        assert_eq!(ready(&world, "hello-00001"), 0);
        assert_eq!(world.get("hello").await.status, 200, "round {round}");
        assert_eq!(ready(&world, "hello-00001"), 1);
        eventually(|| (ready(&world, "hello-00001") == 0).then_some(())).await;
    }
    let records = world.records(|records| records.len() == 2).await;
    assert!(records.iter().all(|r| r.start == Some(vhive_api::StartKind::Boot)), "{records:?}");
    world.stop().await;
}

#[tokio::test]
async fn min_scale_is_there_from_the_beginning_and_stays() {
    let world = World::new().await;
    world
        .apply("kept", |document| {
            annotate(document, "autoscaling.knative.dev/min-scale", "2");
            annotate(document, "vhive.dev/window", "100ms");
        })
        .await;
    eventually(|| (ready(&world, "kept-00001") == 2).then_some(())).await;
    assert_eq!(world.get("kept").await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ready(&world, "kept-00001"), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_new_generation_takes_over_and_the_old_one_goes() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    world.apply("hello", |document| annotate(document, "note", "two")).await;
    assert_eq!(world.get("hello").await.status, 200);
    let records = world.records(|records| records.len() == 2).await;
    assert_eq!(records[0].revision, "hello-00001");
    assert_eq!(records[1].revision, "hello-00002");
    let old = vhive_api::RevisionKey::new("default", "hello-00001");
    eventually(|| world.node.counts(&old).is_none().then_some(())).await;
    world.stop().await;
}

#[tokio::test]
async fn requests_under_way_survive_a_new_generation() {
    let world = World::new().await;
    world.apply("slow", |document| sim_env(document, "VHIVE_SIM_REPLY_MS", "300")).await;
    let slow = async { world.get("slow").await };
    let change = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.apply("slow", |document| annotate(document, "note", "two")).await;
        world.get("slow").await
    };
    let (first, second) = tokio::join!(slow, change);
    assert_eq!((first.status, second.status), (200, 200), "{first:?} {second:?}");
    world.stop().await;
}

#[tokio::test]
async fn one_at_a_time_is_exact_under_load() {
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::AsyncWriteExt as _;
    static INSIDE: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    async fn serve(mut stream: tokio::net::TcpStream) {
        while crate::support::read_head(&mut stream).await.is_some() {
            let inside = INSIDE.fetch_add(1, Ordering::SeqCst) + 1;
            MOST.fetch_max(inside, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            INSIDE.fetch_sub(1, Ordering::SeqCst);
            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(reply).await.is_err() {
                return;
            }
        }
    }
    let world = std::sync::Arc::new(Setup::with_functions(serve).start().await);
    world
        .apply("single", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = json!(1);
            annotate(document, "autoscaling.knative.dev/max-scale", "1");
        })
        .await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let world = std::sync::Arc::clone(&world);
        clients.spawn(async move {
            for _ in 0..20 {
                assert_eq!(world.get("single").await.status, 200);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(MOST.load(Ordering::SeqCst), 1);
    std::sync::Arc::into_inner(world).unwrap().stop().await;
}

#[tokio::test]
async fn a_full_queue_is_told_with_a_time_to_retry() {
    let world = World::new().await;
    world
        .apply("busy", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = json!(1);
            annotate(document, "autoscaling.knative.dev/max-scale", "1");
            annotate(document, "vhive.dev/queue-depth", "1");
            sim_env(document, "VHIVE_SIM_REPLY_MS", "400");
        })
        .await;
    let later = |ms| {
        let world = &world;
        async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            world.get("busy").await
        }
    };
    let (one, two, three) = tokio::join!(later(0), later(100), later(200));
    assert_eq!((one.status, two.status), (200, 200));
    assert_eq!(three.status, 503);
    assert_eq!(three.header("retry-after"), Some("1"));
    assert_eq!(three.header("x-vhive-error"), Some("queue-full"));
    let records = world.records(|records| records.len() == 3).await;
    let queued = records.iter().filter(|record| {
        record.phases.iter().any(|p| p.phase == vhive_api::Phase::Queue && p.length_us > 100_000)
    });
    assert_eq!(queued.count(), 1, "{records:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_burst_gets_more_instances() {
    let world = std::sync::Arc::new(World::new().await);
    world
        .apply("burst", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = json!(1);
            sim_env(document, "VHIVE_SIM_REPLY_MS", "100");
        })
        .await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let world = std::sync::Arc::clone(&world);
        clients.spawn(async move { world.get("burst").await.status });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let records = world.records(|records| records.len() == 8).await;
    let sandboxes: std::collections::HashSet<_> =
        records.iter().map(|record| record.sandbox.clone()).collect();
    assert!(sandboxes.len() > 1, "{records:?}");
    let host = host("burst");
    assert!(!host.is_empty());
    std::sync::Arc::into_inner(world).unwrap().stop().await;
}

#[tokio::test]
async fn a_fixed_keep_alive_keeps_beyond_the_window_and_then_lets_go() {
    let world = World::new().await;
    for (name, keep) in [("long", "10m"), ("short", "300ms")] {
        world
            .apply(name, |document| {
                annotate(document, "vhive.dev/scaling-policy", "fixed");
                annotate(document, "vhive.dev/keep-alive", keep);
                annotate(document, "vhive.dev/window", "100ms");
            })
            .await;
        assert_eq!(world.get(name).await.status, 200);
        assert_eq!(ready(&world, &format!("{name}-00001")), 1);
    }
    eventually(|| (ready(&world, "short-00001") == 0).then_some(())).await;
    assert_eq!(ready(&world, "long-00001"), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_histogram_keeps_what_it_has_learnt_while_nothing_runs() {
    let world = World::new().await;
    world
        .apply("often", |document| {
            annotate(document, "vhive.dev/scaling-policy", "histogram");
            annotate(document, "vhive.dev/keep-alive", "200ms");
        })
        .await;
    assert_eq!(world.get("often").await.status, 200);
    eventually(|| (ready(&world, "often-00001") == 0).then_some(())).await;
    assert_eq!(world.get("often").await.status, 200);
    // Idle for less than a minute: from now on it is kept for 66 s instead of 200 ms.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(ready(&world, "often-00001"), 1);
    world.stop().await;
}

#[tokio::test]
async fn requests_per_second_call_for_instances() {
    let world = World::new().await;
    world
        .apply("busy", |document| {
            annotate(document, "autoscaling.knative.dev/metric", "rps");
            annotate(document, "autoscaling.knative.dev/target", "2");
            annotate(document, "autoscaling.knative.dev/max-scale", "3");
            annotate(document, "vhive.dev/window", "6s");
        })
        .await;
    for _ in 0..40 {
        assert_eq!(world.get("busy").await.status, 200);
    }
    // 40 in one second or two are far more than 2 a second and instance.
    eventually(|| (ready(&world, "busy-00001") == 3).then_some(())).await;
    world.stop().await;
}

#[tokio::test]
async fn activation_scale_is_there_with_the_first_request() {
    let world = World::new().await;
    world
        .apply("many", |document| {
            annotate(document, "autoscaling.knative.dev/activation-scale", "3");
            annotate(document, "vhive.dev/window", "300ms");
        })
        .await;
    assert_eq!(ready(&world, "many-00001"), 0);
    assert_eq!(world.get("many").await.status, 200);
    eventually(|| (ready(&world, "many-00001") == 3).then_some(())).await;
    eventually(|| (ready(&world, "many-00001") == 0).then_some(())).await;
    world.stop().await;
}

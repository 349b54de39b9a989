//! Who gets which slot, and what is started for it.

mod scene;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scene::{Counting, Scene, env, metric, register, sandbox_dirs, soon, wait_for};
use vhive_api::{Bytes, Phase, RuntimeName, SandboxId, Span, StartKind};
use vhive_node::{AcquireError, Runtimes};
use vhive_sandbox::Deadline;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_start_no_more_than_the_limit_and_share_no_slot() {
    let mut scene = Scene::new();
    scene.config.max_instances = 20;
    scene.config.start_threads = 3;
    scene.sim.boot = Span(Duration::from_millis(10));
    let (runtime, boots) = Counting::new(&scene.sim, RuntimeName::Sim);
    let node = scene.node_with(Runtimes::new().with(runtime)).await;
    let key = register(&node, "many", |_| ());

    let held: Arc<Mutex<HashMap<SandboxId, u32>>> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (node, key, held) = (node.clone(), key.clone(), Arc::clone(&held));
        tasks.spawn(async move {
            let lease = node.acquire(&key).await.expect("a slot");
            let id = lease.sandbox().clone();
            {
                let mut held = held.lock().unwrap();
                let count = held.entry(id.clone()).or_default();
                *count += 1;
                assert_eq!(*count, 1, "two requests hold {id}");
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
            *held.lock().unwrap().get_mut(&id).unwrap() -= 1;
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.expect("no request fails");
    }
    let used = held.lock().unwrap().len();
    assert!((1..=20).contains(&used), "{used} instances");
    assert!(boots.all.load(Ordering::SeqCst) <= 20);
    assert!(boots.most.load(Ordering::SeqCst) <= 3, "more boots at a time than start threads");
    node.resize(&key, 0);
    // A sandbox gives its room back after it has gone.
    wait_for(|| metric(&node, "vhive_node_instances"), |n| *n == 0).await;
    assert_eq!(sandbox_dirs(&node), 0);
}

#[tokio::test]
async fn a_cold_start_is_accounted_for_and_a_warm_one_is_none() {
    let mut scene = Scene::new();
    scene.sim.spawn = Span(Duration::from_millis(3));
    scene.sim.boot = Span(Duration::from_millis(5));
    scene.sim.init = Span(Duration::from_millis(4));
    scene.sim.listen = Span(Duration::from_millis(6));
    let node = scene.node().await;
    let key = register(&node, "one", |_| ());
    let asked = Instant::now();
    let cold = soon(node.acquire(&key)).await.expect("a slot");
    let report = cold.start().expect("it waited for a start");
    assert_eq!((report.kind, report.attempts), (StartKind::Boot, 1));
    assert_eq!(&report.sandbox, cold.sandbox());
    assert!(report.guest_clock_error.is_some());
    let spans = report.spans(asked);
    let lengths: Vec<(Phase, u64)> = spans.iter().map(|s| (s.phase, s.length_us)).collect();
    let least = [
        (Phase::Start, 18_000),
        (Phase::Turn, 0),
        (Phase::VmmSpawn, 3_000),
        (Phase::KernelBoot, 5_000),
        (Phase::Init, 4_000),
        (Phase::FunctionReady, 6_000),
    ];
    assert_eq!(lengths.len(), least.len(), "{lengths:?}");
    for ((phase, length), (wanted, least)) in lengths.iter().zip(least) {
        assert!(*phase == wanted && *length >= least, "{lengths:?}");
    }
    let whole = spans[0];
    for part in &spans[1..] {
        assert!(part.begin_us >= whole.begin_us);
        let end = |s: &vhive_api::PhaseSpan| s.begin_us + i64::try_from(s.length_us).unwrap();
        assert!(end(part) <= end(&whole) + 5, "{part:?} in {whole:?}");
    }
    let sandbox = cold.sandbox().clone();
    drop(cold);
    let warm = soon(node.acquire(&key)).await.expect("a slot");
    assert_eq!(warm.sandbox(), &sandbox);
    assert!(warm.start().is_none());
    let status = node.status(&key).expect("known");
    assert_eq!((status.ready, status.busy, status.in_flight), (1, 1, 1));
    assert_eq!(status.last_start.expect("it started").sandbox, sandbox);
    assert_eq!(status.instances[0].endpoint, Some(warm.endpoint()));
}

#[tokio::test]
async fn a_client_that_hangs_up_kills_no_start_and_keeps_no_place() {
    let mut scene = Scene::new();
    scene.sim.boot = Span(Duration::from_millis(60));
    let node = scene.node().await;
    let key = register(&node, "left", |r| r.scale.max = 1);
    let hung_up = tokio::time::timeout(Duration::from_millis(20), node.acquire(&key)).await;
    assert!(hung_up.is_err());
    let counts = node.counts(&key).expect("known");
    assert_eq!((counts.starting, counts.queued), (1, 0), "{counts:?}");
    let ready = |c: &Option<vhive_node::RevisionCounts>| c.is_some_and(|c| c.ready == 1);
    wait_for(|| node.counts(&key), ready).await;
    let lease = soon(node.acquire(&key)).await.expect("the half-made instance was finished");
    assert!(lease.start().is_none());

    // One that hangs up in the middle of the queue does not hold up those behind it.
    let behind = {
        let (node, key) = (node.clone(), key.clone());
        let gone = tokio::spawn({
            let (node, key) = (node.clone(), key.clone());
            async move { drop(node.acquire(&key).await) }
        });
        wait_for(|| node.counts(&key).unwrap().queued, |n| *n == 1).await;
        let behind = tokio::spawn({
            let (node, key) = (node.clone(), key.clone());
            async move { node.acquire(&key).await.map(|lease| lease.sandbox().clone()) }
        });
        wait_for(|| node.counts(&key).unwrap().queued, |n| *n == 2).await;
        gone.abort();
        wait_for(|| node.counts(&key).unwrap().queued, |n| *n == 1).await;
        behind
    };
    let sandbox = lease.sandbox().clone();
    drop(lease);
    assert_eq!(soon(behind).await.expect("no panic").expect("a slot"), sandbox);
    wait_for(|| node.counts(&key).unwrap().in_flight, |n| *n == 0).await;
}

#[tokio::test]
async fn concurrency_is_exact_and_zero_means_no_limit() {
    let scene = Scene::new();
    let node = scene.node().await;
    let two = register(&node, "two", |r| r.container_concurrency = 2);
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(soon(node.acquire(&two)).await.expect("a slot"));
    }
    let status = node.status(&two).expect("known");
    assert_eq!(status.instances.iter().map(|i| i.leases).collect::<Vec<_>>(), [2, 2]);
    let all = register(&node, "all", |r| r.container_concurrency = 0);
    for _ in 0..50 {
        leases.push(soon(node.acquire(&all)).await.expect("a slot"));
    }
    assert_eq!(node.counts(&all).expect("known").ready, 1);
}

#[tokio::test]
async fn resize_starts_what_lacks_and_never_stops_what_is_busy() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "sized", |r| r.scale.max = 4);
    node.resize(&key, 9);
    wait_for(|| node.counts(&key).unwrap().ready, |n| *n == 4).await;
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    node.resize(&key, 0);
    wait_for(|| sandbox_dirs(&node), |n| *n == 1).await;
    assert!(lease.ended().is_none(), "the busy one was stopped");
    drop(lease);
    wait_for(|| sandbox_dirs(&node), |n| *n == 0).await;
    assert_eq!(node.counts(&key).unwrap().ready, 0);
}

#[tokio::test]
async fn a_full_node_says_so_with_figures() {
    let mut scene = Scene::new();
    scene.config.max_memory = Some(Bytes::mib(100));
    let node = scene.node().await;
    let big = register(&node, "big", |r| r.memory = Bytes::mib(60));
    let other = register(&node, "other", |r| r.memory = Bytes::mib(60));
    let held = soon(node.acquire(&big)).await.expect("a slot");
    let full = match soon(node.acquire(&other)).await {
        Err(AcquireError::Full(full)) => full,
        answer => panic!("{answer:?}"),
    };
    assert_eq!((full.instances, full.memory), (1, Bytes::mib(60)));
    assert_eq!((full.wanted, full.max_memory), (Bytes::mib(60), Bytes::mib(100)));
    assert!(full.to_string().contains("60MiB of 100MiB"), "{full}");
    // A second instance of the busy revision would not fit either: its request waits its turn.
    let turn = tokio::spawn({
        let (node, key) = (node.clone(), big.clone());
        async move { node.acquire(&key).await.map(drop) }
    });
    wait_for(|| node.counts(&big).unwrap().queued, |n| *n == 1).await;
    drop(held);
    soon(turn).await.expect("no panic").expect("a slot");
    // What makes room lets the other in.
    node.forget(&big).await;
    assert!(soon(node.acquire(&other)).await.is_ok());
    assert!(matches!(node.acquire(&big).await, Err(AcquireError::Unknown(_))));
}

#[tokio::test]
async fn a_request_waits_for_room_that_is_being_made() {
    let mut scene = Scene::new();
    scene.config.max_instances = 1;
    let node = scene.node().await;
    let one = register(&node, "one", |_| ());
    let two = register(&node, "two", |_| ());
    // Over and over, so that the stop under way is met at any of its steps.
    for _ in 0..50 {
        drop(soon(node.acquire(&one)).await.expect("room for one"));
        node.resize(&one, 0);
        drop(soon(node.acquire(&two)).await.expect("room was being made"));
        node.resize(&two, 0);
    }
    wait_for(|| sandbox_dirs(&node), |n| *n == 0).await;
}

#[tokio::test]
async fn the_process_gets_the_platforms_variables_and_logs_come_out() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "told", |r| env(r, "VHIVE_SIM_FAULT", "exit-at-once:3"));
    let mut follower = node.follow_logs(&key, false).expect("known");
    let answer = soon(node.acquire(&key)).await;
    assert!(matches!(answer, Err(AcquireError::StartFailed(_))), "{answer:?}");
    let news = soon(follower.next()).await;
    assert_eq!(news[0].1.text, "sim exits as told");
    let logs = node.logs(&key).expect("known");
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0].end, Some(vhive_sandbox::End::Exited(3)));
    assert_eq!(logs[0].lines[0].text, "sim exits as told");
}

#[tokio::test]
async fn who_waited_for_an_instance_may_go_on_with_the_connection_that_showed_it_ready() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "waited-for", |r| r.scale.max = 1);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let connection = lease.connection().expect("it was just made");
    assert_eq!(connection.peer_addr().expect("connected"), lease.endpoint());
    assert!(lease.connection().is_none(), "there is one only");
    drop(lease);

    // Given back unused, it is closed: the next one may come much later.
    let key = register(&node, "given-back", |r| r.scale.max = 1);
    drop(soon(node.acquire(&key)).await.expect("a slot"));
    assert!(soon(node.acquire(&key)).await.expect("a slot").connection().is_none());

    // Nobody waits for what is started ahead.
    let key = register(&node, "ahead", |r| r.scale.max = 1);
    node.resize(&key, 1);
    wait_for(|| node.counts(&key).unwrap().ready, |n| *n == 1).await;
    assert!(soon(node.acquire(&key)).await.expect("a slot").connection().is_none());
}

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn has(&self, text: &str) -> bool {
        self.0.lock().expect("whole").iter().any(|line| line.contains(text))
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().expect("whole").push(format!("{event:?}"));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn no_boot_is_told_of_where_there_is_no_room_for_one() {
    let mut scene = Scene::new();
    scene.config.max_instances = 1;
    scene.config.snapshots.idle_wait = Span(Duration::from_millis(20));
    let log = Log::default();
    let _logged = tracing::subscriber::set_default(log.clone());
    let node = scene.node().await;
    let key = register(&node, "busy", scene::reap);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    wait_for(|| log.has("snapshot has to wait"), |waits| *waits).await;
    assert!(!log.has("booting an instance for its snapshot"));
    drop(lease);
    soon(node.shutdown(Deadline::after(scene::PATIENCE))).await.expect("clean");
}

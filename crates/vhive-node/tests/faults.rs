//! Whatever goes wrong: every waiter is answered with the reason, nothing leaks, the node goes on.

mod scene;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use scene::{Counting, Scene, env, metric, register, revision, sandbox_dirs, soon, wait_for};
use vhive_api::{HttpProbe, Readiness, RuntimeName, Span};
use vhive_node::probe::ProbeError;
use vhive_node::{AcquireError, Node, Runtimes, StartError, StartFailure};
use vhive_sandbox::End;

async fn all_fail(node: &Node, name: &str, waiters: usize) -> Arc<StartFailure> {
    let key = revision(name).key;
    let waiting = (0..waiters).map(|_| node.acquire(&key));
    let answers = soon(futures_util::future::join_all(waiting)).await;
    let mut failures = answers.into_iter().map(|answer| match answer {
        // Who comes after a start that failed very fast meets the pause already.
        Err(AcquireError::StartFailed(failure) | AcquireError::BackingOff { failure, .. }) => {
            Ok(failure)
        }
        answer => Err(format!("{name}: {answer:?}")),
    });
    let mut failures = failures.by_ref().map(|failure| failure.expect("an answer with a reason"));
    let first = failures.next().expect("at least one waiter");
    assert!(failures.all(|failure| failure.revision == key));
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_any_step_answers_all_leaks_nothing_and_backs_off() {
    let mut scene = Scene::new();
    scene.config.start_deadline = Span(Duration::from_millis(150));
    let node = scene.node().await;
    let good = register(&node, "good", |_| ());
    let faults = [
        ("fail:spawn", "sim fails at spawn as told"),
        ("fail:boot", "guest not KernelUp"),
        ("fail:init", "guest not Started"),
        ("panic:spawn", "the start panicked: sim panics at spawn"),
        ("panic:boot", "the start panicked"),
        ("panic:init", "the start panicked"),
        ("hang:spawn", "deadline passed"),
        ("hang:init", "deadline passed"),
        ("exit-at-once:7", "exited with code 7"),
        ("never-listen", "nothing listened on port 8080"),
        ("nonsense", "unknown fault"),
    ];
    for (n, (fault, reason)) in faults.into_iter().enumerate() {
        let name = format!("bad-{n}");
        let key = register(&node, &name, |r| env(r, "VHIVE_SIM_FAULT", fault));
        let failure = all_fail(&node, &name, 5).await;
        assert!(failure.report().contains(reason), "{fault}: {}", failure.report());
        match node.acquire(&key).await {
            Err(AcquireError::BackingOff { retry_after, .. }) => {
                assert!(retry_after <= Duration::from_secs(1));
            }
            answer => panic!("{fault}: {answer:?}"),
        }
        let status = node.status(&key).expect("known");
        assert_eq!(status.last_failure.expect("kept").sandbox, failure.sandbox);
        assert_eq!((status.ready, status.starting, status.queued), (0, 0, 0), "{fault}");
        soon(node.forget(&key)).await;
        assert_eq!(sandbox_dirs(&node), 0, "{fault} left a directory");
        assert_eq!(metric(&node, "vhive_node_instances"), 0, "{fault} kept its room");
    }
    soon(node.acquire(&good)).await.expect("the node goes on");
}

#[tokio::test]
async fn the_failure_carries_the_console() {
    let scene = Scene::new();
    let node = scene.node().await;
    register(&node, "bad", |r| env(r, "VHIVE_SIM_FAULT", "exit-at-once:1"));
    let failure = all_fail(&node, "bad", 1).await;
    assert_eq!(failure.console, ["sim exits as told"]);
    assert!(failure.report().ends_with("\n  sim exits as told"), "{}", failure.report());
    let probe = match &failure.error {
        StartError::Probe(ProbeError::Ended(end)) => end,
        error => panic!("{error:?}"),
    };
    assert_eq!(*probe, End::Exited(1));
}

#[tokio::test]
async fn what_the_node_lacks_is_named() {
    let scene = Scene::new();
    let (fake, _) = Counting::new(&scene.sim, RuntimeName::Qemu);
    let node = scene.node_with(Runtimes::new().with(fake)).await;
    register(&node, "no-image", |r| r.runtime = RuntimeName::Qemu);
    let failure = all_fail(&node, "no-image", 3).await;
    assert!(matches!(failure.error, StartError::Image { .. }), "{failure:?}");
    assert!(failure.report().contains("dev.local/no-image:latest"));
    register(&node, "no-runtime", |_| ());
    let failure = all_fail(&node, "no-runtime", 3).await;
    assert!(matches!(failure.error, StartError::NoRuntime(RuntimeName::Sim)), "{failure:?}");
}

#[tokio::test]
async fn after_the_pause_a_start_is_tried_again() {
    let mut scene = Scene::new();
    scene.config.back_off_first = Span(Duration::from_millis(30));
    let node = scene.node().await;
    let key = register(&node, "mended", |r| env(r, "VHIVE_SIM_FAULT", "fail:boot"));
    all_fail(&node, "mended", 2).await;
    // Somebody wants one instance whatever happens; the cure comes with the next description.
    node.resize(&key, 1);
    register(&node, "mended", |_| ());
    wait_for(|| node.counts(&key).unwrap().ready, |n| *n == 1).await;
    soon(node.acquire(&key)).await.expect("a slot");
}

fn ask(lease: &vhive_node::Lease) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(lease.endpoint())?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

#[tokio::test]
async fn an_instance_that_crashes_during_a_request_is_replaced() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "crash", |r| env(r, "VHIVE_SIM_FAULT", "crash-at:2"));
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    assert!(ask(&lease).expect("a reply").ends_with("\"reply_ms\":0}\n"));
    assert!(lease.ended().is_none());
    let (first, broken) = (lease.sandbox().clone(), ask(&lease));
    assert!(broken.is_err() || !broken.unwrap().ends_with("}\n"), "a whole reply");
    wait_for(|| lease.ended(), Option::is_some).await;
    lease.failed();
    let lease = soon(node.acquire(&key)).await.expect("another instance");
    assert_ne!(*lease.sandbox(), first);
    assert!(lease.start().is_some());
    wait_for(|| sandbox_dirs(&node), |n| *n == 1).await;
}

#[tokio::test]
async fn an_instance_that_ends_while_idle_is_gone_before_the_next_request() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "ends", |r| env(r, "VHIVE_SIM_FAULT", "exit-after:1"));
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let first = lease.sandbox().clone();
    assert!(ask(&lease).is_ok());
    drop(lease);
    wait_for(|| node.counts(&key).unwrap().ready, |n| *n == 0).await;
    let lease = soon(node.acquire(&key)).await.expect("another instance");
    assert_ne!(*lease.sandbox(), first);
    let logs = node.logs(&key).expect("known");
    assert_eq!((&logs[0].sandbox, &logs[0].end), (&first, &Some(End::Exited(0))));
}

#[tokio::test]
async fn a_broken_instance_is_not_lent_again() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "broken", |_| ());
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let first = lease.sandbox().clone();
    lease.failed();
    let lease = soon(node.acquire(&key)).await.expect("another instance");
    assert_ne!(*lease.sandbox(), first);
}

#[tokio::test]
async fn readiness_is_confirmed_by_get_and_without_an_init_of_ours() {
    let mut scene = Scene::new();
    scene.sim.tells = false;
    scene.sim.listen = Span(Duration::from_millis(20));
    scene.config.start_deadline = Span(Duration::from_millis(400));
    let node = scene.node().await;
    let http = || Readiness::Http(HttpProbe { path: "/".to_owned(), headers: Vec::new() });
    let key = register(&node, "good", |r| r.readiness = http());
    let lease = soon(node.acquire(&key)).await.expect("it answers");
    assert!(lease.start().expect("cold").length >= Duration::from_millis(20));
    register(&node, "mute", |r| {
        r.readiness = http();
        env(r, "VHIVE_SIM_FAULT", "mute");
    });
    let failure = all_fail(&node, "mute", 2).await;
    assert!(failure.report().contains("readiness probe GET /"), "{}", failure.report());
}

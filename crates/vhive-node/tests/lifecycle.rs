//! Opening, shutting down, crashing, sweeping, purging.

mod scene;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scene::{PATIENCE, Scene, env, register, sandbox_dirs, soon, wait_for};
use vhive_api::Span;
use vhive_node::sweep::LockError;
use vhive_node::{AcquireError, GroundError, Node, OpenError, PurgeError, Runtimes, purge};
use vhive_sandbox::Deadline;

#[tokio::test]
async fn a_second_node_on_a_state_directory_is_refused_and_told_who_holds_it() {
    let scene = Scene::new();
    let node = scene.node().await;
    let second = Node::open(scene.config.clone(), Runtimes::new(), scene.images(), None).await;
    let holder = match second {
        Err(OpenError::Ground(GroundError::Lock(LockError::Held { holder, .. }))) => holder,
        other => panic!("{other:?}"),
    };
    assert_eq!(holder, std::process::id().to_string());
    // The first is none the worse for it, and its end frees the directory.
    let key = register(&node, "one", |_| ());
    drop(soon(node.acquire(&key)).await.expect("a slot"));
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    scene.node().await;
    // Of the first one nothing starts any more.
    let late = register(&node, "late", |_| ());
    assert!(matches!(node.acquire(&late).await, Err(AcquireError::Closing(_))));
}

#[tokio::test]
async fn nodes_with_different_directories_do_not_meet() {
    let (one, two) = (Scene::new(), Scene::new());
    let mut shared = two.config.clone();
    shared.run_dir = one.config.run_dir.clone();
    let node_one = one.node().await;
    let key = register(&node_one, "same-name", |_| ());
    let lease_one = soon(node_one.acquire(&key)).await.expect("a slot");
    // The second node sweeps when it opens, in the same run directory; it must see nothing.
    let runtimes = Runtimes::new().with(vhive_sandbox::sim::Sim::new(two.sim.clone()));
    let node_two = Node::open(shared, runtimes, two.images(), None).await.expect("opens");
    assert_ne!(node_one.run_root().tag(), node_two.run_root().tag());
    register(&node_two, "same-name", |_| ());
    let lease_two = soon(node_two.acquire(&key)).await.expect("a slot");
    assert_ne!(lease_one.endpoint(), lease_two.endpoint());
    assert_eq!((sandbox_dirs(&node_one), sandbox_dirs(&node_two)), (1, 1));
    assert!(lease_one.ended().is_none());
}

#[tokio::test]
async fn shutdown_lets_requests_finish_and_refuses_new_ones() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "busy", |r| r.scale.max = 1);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let waiting = tokio::spawn({
        let (node, key) = (node.clone(), key.clone());
        async move { node.acquire(&key).await.map(|lease| lease.sandbox().clone()) }
    });
    wait_for(|| node.counts(&key).unwrap().queued, |n| *n == 1).await;
    let done = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown(Deadline::after(PATIENCE)).await }
    });
    let closing = |answer: &Option<String>| answer.as_deref() == Some("closing");
    let refusal = || {
        // Asking once: whoever is not refused at once would join the queue, and leaves it here.
        let asked = futures_util::FutureExt::now_or_never(node.acquire(&key))?;
        asked.err().map(|error| match error {
            AcquireError::Closing(_) => "closing".to_owned(),
            error => error.to_string(),
        })
    };
    wait_for(refusal, closing).await;
    assert!(!done.is_finished(), "a request is still in flight");
    assert!(lease.ended().is_none());
    let sandbox = lease.sandbox().clone();
    drop(lease);
    let served = soon(waiting).await.expect("no panic").expect("who waits is still served");
    assert_eq!(served, sandbox);
    soon(done).await.expect("no panic").expect("clean");
    assert_eq!(sandbox_dirs(&node), 0);
}

#[tokio::test]
async fn shutdown_keeps_its_deadline() {
    let mut scene = Scene::new();
    scene.config.stop_grace = Span(Duration::from_millis(50));
    let node = scene.node().await;
    let key = register(&node, "stuck", |_| ());
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let began = Instant::now();
    let deadline = Deadline::after(Duration::from_millis(300));
    soon(node.shutdown(deadline)).await.expect("what is stuck is stopped all the same");
    assert!(began.elapsed() < PATIENCE / 2);
    assert!(lease.ended().is_some());
    assert_eq!(sandbox_dirs(&node), 0);
}

#[tokio::test]
async fn shutdown_also_waits_for_what_a_forgotten_revision_still_holds() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "gone", |_| ());
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let forgetting = tokio::time::timeout(Duration::from_millis(10), node.forget(&key)).await;
    assert!(forgetting.is_err() && lease.ended().is_none(), "its request is still in flight");
    assert!(matches!(node.acquire(&key).await, Err(AcquireError::Unknown(_))));
    let done = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown(Deadline::after(PATIENCE)).await }
    });
    tokio::task::yield_now().await;
    assert!(!done.is_finished() && lease.ended().is_none());
    drop(lease);
    soon(done).await.expect("no panic").expect("clean");
    assert_eq!(sandbox_dirs(&node), 0);
}

#[tokio::test]
async fn a_revision_registered_again_at_once_is_another_one() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "again", |_| ());
    let first = soon(node.acquire(&key)).await.expect("a slot");
    // What remains to be waited for is not begun before the next one is there.
    let gone = node.forget(&key);
    assert_eq!(register(&node, "again", |_| ()), key);
    let second = soon(node.acquire(&key)).await.expect("a slot of the next one");
    drop(first);
    soon(gone).await;
    assert_eq!((second.ended().is_none(), sandbox_dirs(&node)), (true, 1));
}

#[tokio::test]
async fn dropping_the_last_handle_stops_everything() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "dropped", |_| ());
    drop(soon(node.acquire(&key)).await.expect("a slot"));
    let dir = node.run_root().sandboxes();
    assert_eq!(sandbox_dirs(&node), 1);
    drop(node);
    wait_for(|| std::fs::read_dir(&dir).map_or(0, Iterator::count), |n| *n == 0).await;
}

/// Run by itself this test is the parent; the child is the same test with `VHIVE_TEST_CHILD` set
/// to the scene's directory.
#[tokio::test]
async fn what_a_killed_node_leaves_is_swept_and_nothing_else() {
    if let Some(dir) = std::env::var_os("VHIVE_TEST_CHILD") {
        return child(std::path::Path::new(&dir)).await;
    }
    let scene = Scene::new();
    let mut child = Command::new(std::env::current_exe().expect("this test's program"))
        .args(["--exact", "what_a_killed_node_leaves_is_swept_and_nothing_else", "--nocapture"])
        .env("VHIVE_TEST_CHILD", scene.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let up = lines.any(|line| line.expect("text").ends_with("node is up"));
    assert!(up, "the child ended early");
    // What others keep beside it stays.
    let foreign = scene.config.run_dir.join("0badf00d/sandboxes/0123456789abcdef");
    std::fs::create_dir_all(&foreign).expect("made");
    child.kill().expect("killed");
    child.wait().expect("gone");
    let tag_dir = vhive_sandbox::RunRoot::below(
        &scene.config.run_dir,
        &scene.config.state_dir.canonicalize().expect("it exists"),
    );
    let left = || std::fs::read_dir(tag_dir.sandboxes()).map_or(0, Iterator::count);
    assert_eq!(left(), 2, "one ready, one half-made");
    let node = scene.node().await;
    assert_eq!(left(), 0);
    assert!(foreign.exists());
    let key = register(&node, "again", |_| ());
    soon(node.acquire(&key)).await.expect("a slot");
}

async fn child(dir: &std::path::Path) {
    let config = vhive_node::Config::below(dir);
    let sim = vhive_sandbox::sim::SimConfig { run_dir: true, ..Default::default() };
    let runtimes = Runtimes::new().with(vhive_sandbox::sim::Sim::new(sim));
    let images = vhive_image::ImageStore::open(dir.join("images")).expect("an image store");
    let node = Node::open(config, runtimes, images, None).await.expect("opens");
    let ready = register(&node, "ready", |_| ());
    let _lease = soon(node.acquire(&ready)).await.expect("a slot");
    let half = register(&node, "half", |r| env(r, "VHIVE_SIM_FAULT", "hang:boot"));
    node.resize(&half, 1);
    wait_for(|| sandbox_dirs(&node), |n| *n == 2).await;
    let mut out = std::io::stdout();
    writeln!(out, "node is up").and_then(|()| out.flush()).expect("a pipe");
    let killed = tokio::time::timeout(PATIENCE, std::future::pending::<()>()).await;
    assert!(killed.is_ok(), "the parent did not kill this process");
}

#[tokio::test]
async fn purge_removes_what_is_ours_and_names_what_is_not() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", |_| ());
    drop(soon(node.acquire(&key)).await.expect("a slot"));
    let (state, run) = (scene.config.state_dir.clone(), scene.config.run_dir.clone());
    let busy = purge(&state, &run);
    assert!(matches!(busy, Err(PurgeError::Lock(LockError::Held { .. }))), "{busy:?}");
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    let mine = state.join("notes.txt");
    std::fs::write(&mine, "mine").expect("written");
    let purged = purge(&state, &run).expect("purged");
    assert_eq!(purged.left, [mine.canonicalize().expect("still there")]);
    assert!(!state.join("records").exists());
    std::fs::remove_file(&mine).expect("removed");
    let purged = purge(&state, &run).expect("purged");
    assert!(purged.left.is_empty() && !state.exists() && !run.exists(), "{purged:?}");
    assert_eq!(purge(&state, &run).expect("nothing to do"), vhive_node::Purged::default());
}

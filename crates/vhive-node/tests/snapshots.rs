//! Snapshots from the first reply to prefetching, and everything that can go wrong on the way.

mod scene;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use scene::{
    PATIENCE, Scene, env, files, invoke, kinds, metric, only, reap, register, soon, wait_for,
};
use vhive_api::{
    MemoryMode, Phase, PrefetchPolicy, Revision, RevisionKey, SnapshotPolicy, StartKind,
};
use vhive_node::{AcquireError, CreateError, ImportError, Node, StartReport, TakeError};
use vhive_sandbox::Deadline;

use StartKind::{Boot, Lazy, Reap, Record, Snapshot};

#[tokio::test]
async fn boot_snapshot_record_prefetch() {
    let mut scene = Scene::new();
    scene.sim.snapshot.missed_pages = 2;
    let node = scene.node().await;
    let key = register(&node, "one", reap);

    let (boot, memory) = invoke(&node, &key).await;
    assert_eq!((boot.kind, memory, boot.fallback), (Boot, None, None));
    assert!(only(&node).working_sets.is_empty());

    let (record, memory) = invoke(&node, &key).await;
    assert_eq!((record.kind, record.attempts, record.fallback), (Record, 1, None));
    let memory = memory.expect("restored");
    assert_eq!((memory.mode, memory.faults), (MemoryMode::Record, Some(64)));
    let phases: Vec<Phase> = record.phases.iter().map(|part| part.phase).collect();
    let parts = [Phase::Turn, Phase::VmmSpawn, Phase::Restore, Phase::Resume, Phase::FunctionReady];
    assert_eq!(phases, parts);
    assert_eq!(only(&node).working_sets, [1]);

    for _ in 0..2 {
        let (reap, memory) = invoke(&node, &key).await;
        let memory = memory.expect("restored");
        assert_eq!((reap.kind, memory.mode), (Reap, MemoryMode::Prefetch));
        assert_eq!((memory.prefetched_pages, memory.faults), (64, Some(2)));
    }
    assert_eq!(only(&node).working_sets, [1], "two of 64 are no reason to record again");
    assert_eq!(metric(&node, "vhive_snapshots"), 1);
    let text = node.metrics();
    let told = |line: &str| assert!(text.contains(line), "no {line} in\n{text}");
    told("vhive_snapshot_taken_total{runtime=\"sim\",outcome=\"taken\"} 1");
    told("vhive_recordings_total{runtime=\"sim\",outcome=\"recorded\"} 1");
    told("vhive_restore_faults_total{runtime=\"sim\",mode=\"prefetch\"} 4");
    told("vhive_starts_total{runtime=\"sim\",kind=\"reap\",outcome=\"ready\"} 2");
}

#[tokio::test]
async fn each_policy_has_its_way() {
    let scene = Scene::new();
    let node = scene.node().await;
    let policies: [(&str, SnapshotPolicy, PrefetchPolicy, &[StartKind]); 6] = [
        ("off", SnapshotPolicy::Off, PrefetchPolicy::default(), &[Boot, Boot]),
        (
            "vanilla",
            SnapshotPolicy::Vanilla,
            PrefetchPolicy::default(),
            &[Boot, Snapshot, Snapshot],
        ),
        ("lazy", SnapshotPolicy::Lazy, PrefetchPolicy::default(), &[Boot, Lazy, Lazy]),
        ("serial", SnapshotPolicy::Reap, PrefetchPolicy::ReapSerial, &[Boot, Record, Reap]),
        ("around", SnapshotPolicy::Reap, PrefetchPolicy::FaultAround, &[Boot, Reap, Reap]),
        ("mincore", SnapshotPolicy::Reap, PrefetchPolicy::Mincore, &[Boot, Snapshot, Reap]),
    ];
    for (name, snapshot, prefetch, wanted) in policies {
        let key = register(&node, name, |r| (r.snapshot, r.prefetch) = (snapshot, prefetch));
        assert_eq!(kinds(&node, &key, wanted.len()).await, wanted, "{name}");
    }
}

#[tokio::test]
async fn what_prefetching_misses_is_recorded_again_but_not_for_ever() {
    let mut scene = Scene::new();
    scene.sim.snapshot.missed_pages = 40;
    let node = scene.node().await;
    let key = register(&node, "restless", reap);
    let found = kinds(&node, &key, 11).await;
    let tries = [Record, Reap, Record, Reap, Record, Reap, Record, Reap, Reap, Reap];
    assert_eq!(found, [&[Boot][..], &tries].concat());
    assert_eq!(only(&node).working_sets, [1, 2, 3, 4]);
}

#[tokio::test]
async fn faults_of_what_prefetching_was_about_to_bring_are_no_reason_to_record_again() {
    let mut scene = Scene::new();
    scene.sim.snapshot.awaited_pages = 40;
    let node = scene.node().await;
    let key = register(&node, "busy", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    for _ in 0..3 {
        let (reap, memory) = invoke(&node, &key).await;
        let memory = memory.expect("restored");
        assert_eq!((memory.faults, memory.prefetched_pages), (Some(40), 24));
        assert_eq!(reap.kind, Reap, "the host was slow and the working set is whole");
    }
    // Nor is a reply that comes before anything has been prefetched.
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    scene.sim.snapshot.awaited_pages = 64;
    let node = scene.node().await;
    let key = register(&node, "busy", reap);
    assert_eq!(kinds(&node, &key, 3).await, [Reap, Reap, Reap]);
    assert_eq!(only(&node).working_sets, [1]);
}

#[tokio::test]
async fn a_restore_that_fails_is_followed_by_a_boot_within_the_same_start() {
    let mut scene = Scene::new();
    scene.config.snapshots.restore_deadline =
        vhive_api::Span(std::time::Duration::from_millis(100));
    let node = scene.node().await;
    let faults = ["fail:restore", "panic:restore", "hang:restore", "deaf-restored", "refuse-state"];
    for fault in faults {
        let key = register(&node, &fault.replace(':', "-"), |r| {
            reap(r);
            env(r, "VHIVE_SIM_FAULT", fault);
        });
        assert_eq!(invoke(&node, &key).await.0.kind, Boot);
        // What blames the snapshot retires it at once; each boot after that makes another.
        for _ in 0..2 {
            let (report, memory) = invoke(&node, &key).await;
            let why = report.fallback.expect("it says why");
            assert_eq!((report.kind, report.attempts, memory), (Boot, 2, None), "{fault}: {why}");
        }
        // The third failure in a row is held against the snapshot; the boot has made another.
        let before = node.snapshots().list().len();
        assert_eq!(invoke(&node, &key).await.0.kind, Boot);
        assert_eq!(node.snapshots().list().len(), before);
    }
    assert_eq!(metric(&node, "vhive_snapshots_retired_total"), 4 + 3);
    assert_eq!(scene::sandbox_dirs(&node), 0);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_taken_costs_at_most_its_instance() {
    let mut scene = Scene::new();
    scene.config.snapshots.take_deadline = vhive_api::Span(std::time::Duration::from_millis(50));
    let node = scene.node().await;
    let faults = ["fail:checkpoint", "hang:checkpoint", "panic:checkpoint", "lost-at-checkpoint"];
    for (at, fault) in faults.into_iter().enumerate() {
        let key = register(&node, &fault.replace(':', "-"), |r| {
            reap(r);
            env(r, "VHIVE_SIM_FAULT", fault);
        });
        let lease = soon(node.acquire(&key)).await.expect("a slot");
        let first = lease.sandbox().clone();
        lease.replied();
        // Asked for at once: waits for the snapshot's end, and is served in any case.
        let lease = soon(node.acquire(&key)).await.expect("a slot");
        let goes_on = at < 2;
        assert_eq!(*lease.sandbox() == first, goes_on, "{fault}");
        lease.replied();
        soon(node.evict(&key)).await.expect("known");
        // Not tried again before the back-off has passed, and whoever asks is told why there is none.
        let told = node.status(&key).expect("known").not_taken.expect("it says why");
        assert!(told.again_in.is_some(), "{told:?}");
        let (report, _) = invoke(&node, &key).await;
        let why = report.fallback.expect("it says why");
        assert_eq!((report.kind, why), (Boot, format!("no snapshot: {}", told.why)), "{fault}");
        // Whoever deletes it and makes it again begins anew.
        soon(node.forget(&key)).await;
        soon(node.disown(&key)).await;
        let again = register(&node, &fault.replace(':', "-"), reap);
        assert_eq!(
            (&again, node.status(&again).expect("known").not_taken),
            (&key, None),
            "{fault}"
        );
    }
    assert!(node.snapshots().list().is_empty());
    assert!(files(&scene).is_empty(), "{:?}", files(&scene));
    let text = node.metrics();
    for line in ["outcome=\"failed\"} 2", "outcome=\"lost\"} 2"] {
        let line = format!("vhive_snapshot_taken_total{{runtime=\"sim\",{line}");
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn snapshots_survive_a_restart_and_half_made_ones_do_not() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let place = only(&node).path;
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);
    // What a killed node leaves: a draft, a half-deleted one, a half-read one, a half-written
    // working set.
    let root = scene.config.state_dir.join("snapshots");
    let beside = place.parent().expect("a parent").join("draft-0123456789abcdef");
    for dir in [beside.clone(), root.join("removed-x"), root.join("import-x")] {
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("memory"), b"half").expect("written");
    }
    fs::write(place.join("working-set.draft"), b"half").expect("written");
    fs::write(root.join("notes"), b"mine").expect("written");
    let node = scene.node().await;
    let left = files(&scene);
    let names: Vec<_> = left.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert!(names.contains(&"notes") && names.contains(&"working-set.1"), "{names:?}");
    assert_eq!(names.len(), 7, "{names:?}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&root).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o700);
    assert!(!only(&node).verified);
    let key = register(&node, "one", reap);
    // The snapshot is read in the background, or by the start itself.
    assert_eq!(kinds(&node, &key, 1).await, [Reap]);
    assert!(only(&node).verified);
}

#[tokio::test]
async fn damage_is_noticed_retired_and_the_request_answered_by_a_boot() {
    type Damage = fn(&Path);
    let flip: Damage = |path| {
        let mut bytes = fs::read(path).expect("read");
        // In a manifest some bits would not matter.
        let at = if path.ends_with("manifest.json") { 0 } else { bytes.len() / 2 };
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("written");
    };
    let truncate: Damage = |path| {
        let length = fs::metadata(path).expect("there").len();
        let file = fs::File::options().write(true).open(path).expect("opened");
        file.set_len(length / 2).expect("cut");
    };
    let remove: Damage = |path| fs::remove_file(path).expect("removed");
    for (how, damage) in [("flip", flip), ("truncate", truncate), ("remove", remove)] {
        for name in ["manifest.json", "vmstate", "memory", "working-set.1"] {
            for restart in [true, false] {
                let scene = Scene::new();
                let mut node = scene.node().await;
                let key = register(&node, "one", reap);
                assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
                let path = only(&node).path.join(name);
                if restart {
                    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
                    damage(&path);
                    node = scene.node().await;
                    register(&node, "one", reap);
                } else {
                    damage(&path);
                }
                let case = format!("{how} {name}, restart {restart}");
                let (report, _) = invoke(&node, &key).await;
                let gone = restart && how == "remove" && name == "working-set.1";
                let wanted = if gone { Record } else { Boot };
                assert_eq!(report.kind, wanted, "{case}");
                let found_early = restart && report.fallback.is_none();
                assert!(found_early || report.fallback.is_some(), "{case}");
                // And from there it goes on as before.
                let next = if name == "working-set.1" && !gone { Record } else { next(&report) };
                assert_eq!(kinds(&node, &key, 1).await, [next], "{case}");
            }
        }
    }
}

/// What follows a start whose snapshot has been made anew.
fn next(report: &StartReport) -> StartKind {
    if report.kind == Record { Reap } else { Record }
}

#[tokio::test]
async fn a_snapshot_of_another_version_is_stale_and_replaced() {
    let mut scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    scene.sim.snapshot.version = "2".to_owned();
    let node = scene.node().await;
    let key = register(&node, "one", |r| {
        reap(r);
        env(r, "VHIVE_SIM_FAULT", "");
    });
    assert_ne!(key.name, "", "registered");
    // Another environment is another revision's digest: nothing is shared.
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let same = register(&node, "one", reap);
    let lease = soon(node.acquire(&same)).await.expect("a slot");
    let report = lease.start().expect("cold").clone();
    let why = report.fallback.expect("it says why");
    assert_eq!(report.kind, Boot);
    assert!(why.contains("platform.version is 1, wanted 2"), "{why}");
    let stale = node.snapshots().list().into_iter().find_map(|info| info.stale).expect("listed");
    assert_eq!((stale.field.as_str(), stale.has.as_str()), ("platform.version", "1"));
    lease.replied();
    soon(node.evict(&same)).await.expect("known");
    assert!(node.snapshots().list().iter().all(|info| info.stale.is_none()), "replaced");
    assert_eq!(kinds(&node, &same, 2).await, [Record, Reap]);
}

#[tokio::test]
async fn a_snapshot_of_another_machine_is_named_by_field_and_replaced() {
    let other = serde_json::json!(vhive_api::Digest::of(b"other"));
    let cases = [
        ("/platform/kernel", "platform.kernel", other.clone()),
        ("/platform/cpu", "platform.cpu", "another".into()),
        ("/platform/page_size", "platform.page_size", 16384.into()),
        ("/shape/memory", "shape.memory", serde_json::json!(vhive_api::Bytes::mib(2))),
        ("/shape/vcpus", "shape.vcpus", 2.into()),
        ("/owner/image", "owner.image", other),
    ];
    for (pointer, field, value) in cases {
        let scene = Scene::new();
        let node = scene.node().await;
        let key = register(&node, "one", reap);
        assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
        let manifest = only(&node).path.join("manifest.json");
        soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
        drop(node);
        let text = fs::read(&manifest).expect("read");
        let mut content: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        *content.pointer_mut(pointer).expect(pointer) = value;
        fs::write(&manifest, content.to_string()).expect("written");
        let node = scene.node().await;
        let key = register(&node, "one", reap);
        let (report, _) = invoke(&node, &key).await;
        let why = report.fallback.expect("it says why");
        assert_eq!(report.kind, Boot, "{field}");
        assert!(why.contains(&format!("{field} is ")) && why.contains(", wanted "), "{why}");
        assert_eq!(kinds(&node, &key, 2).await, [Record, Reap], "{field}: replaced");
    }
}

#[tokio::test]
async fn a_snapshot_may_be_removed_while_it_is_used() {
    let mut scene = Scene::new();
    scene.sim.snapshot.restore_record = vhive_api::Span(std::time::Duration::from_millis(50));
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let info = only(&node);
    let starting = tokio::spawn({
        let (node, key) = (node.clone(), key.clone());
        async move { node.acquire(&key).await }
    });
    wait_for(|| only(&node).held, |held| *held).await;
    assert!(node.snapshots().remove(&info.id()).expect("removed"));
    assert!(node.snapshots().list().is_empty() && info.path.exists(), "its files stay");
    let lease = soon(starting).await.expect("no panic").expect("a slot");
    assert_eq!(lease.start().expect("cold").kind, Record);
    // It still records, for nobody; then the files go.
    lease.replied();
    wait_for(|| files(&scene).len(), |left| *left == 0).await;
    assert!(!node.snapshots().remove(&info.id()).expect("nothing to do"));
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
}

#[tokio::test]
async fn a_snapshot_that_is_being_taken_of_a_deleted_revision_is_not_kept() {
    let scene = Scene::new();
    let node = scene.node().await;
    // The first one goes on when the revision has been deleted, and not before; the others at once.
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let (gate, asked) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&asked);
    node.on_quiesce(move |_, _| {
        if counts.fetch_add(1, Ordering::SeqCst) == 0 {
            let told = gate.lock().expect("sound").recv_timeout(PATIENCE);
            told.expect("the revision is deleted in time");
        }
    });
    let key = register(&node, "one", reap);
    soon(node.acquire(&key)).await.expect("a slot").replied();
    wait_for(|| asked.load(Ordering::SeqCst), |count| *count == 1).await;
    assert!(files(&scene).len() > 1, "a draft has been begun");
    assert!(node.snapshots().list().is_empty(), "it is being written");
    let gone = node.forget(&key);
    soon(node.disown(&key)).await;
    go_on.send(()).expect("it waits");
    // The next one of this name has nothing to do with that, nor has it to wait longer than for its end.
    let key = register(&node, "one", reap);
    soon(gone).await;
    assert!(node.snapshots().list().is_empty() && files(&scene).is_empty(), "{:?}", files(&scene));
    let text = node.metrics();
    assert!(
        text.contains("vhive_snapshot_taken_total{runtime=\"sim\",outcome=\"dropped\"} 1"),
        "{text}"
    );
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
}

#[tokio::test]
async fn many_clones_of_one_snapshot_at_once() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let leases = (0..50).map(|_| {
        let (node, key) = (node.clone(), key.clone());
        tokio::spawn(async move { node.acquire(&key).await })
    });
    let mut held = Vec::new();
    for lease in leases.collect::<Vec<_>>() {
        held.push(soon(lease).await.expect("no panic").expect("a slot"));
    }
    assert!(held.iter().all(|lease| lease.start().expect("cold").kind == Reap));
    assert_eq!(only(&node).clones, 50);
    held.into_iter().for_each(vhive_node::Lease::replied);
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(only(&node).clones, 0);
}

#[tokio::test]
async fn of_two_snapshots_at_once_one_wins() {
    let mut scene = Scene::new();
    scene.sim.snapshot.checkpoint = vhive_api::Span(std::time::Duration::from_millis(30));
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    let leases = [soon(node.acquire(&key)).await, soon(node.acquire(&key)).await];
    for lease in leases {
        let lease = lease.expect("a slot");
        assert_eq!(lease.start().expect("cold").kind, Boot);
        lease.replied();
    }
    soon(node.evict(&key)).await.expect("known");
    wait_for(|| node.snapshots().list().len(), |count| *count == 1).await;
    let text = node.metrics();
    for line in ["outcome=\"taken\"} 1", "outcome=\"dropped\"} 1"] {
        let line = format!("vhive_snapshot_taken_total{{runtime=\"sim\",{line}");
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
    assert_eq!(kinds(&node, &key, 2).await, [Record, Reap]);
}

#[tokio::test]
async fn the_same_revision_of_another_namespace_has_a_snapshot_of_its_own() {
    let scene = Scene::new();
    let node = scene.node().await;
    let [here, there] = ["here", "there"].map(|namespace| {
        register(&node, "same", |r| {
            reap(r);
            r.key.namespace = namespace.to_owned();
        })
    });
    // What the first request of one has left in memory is nothing that the other may see.
    assert_eq!(kinds(&node, &here, 2).await, [Boot, Record]);
    let old = only(&node);
    assert_eq!(kinds(&node, &there, 2).await, [Boot, Record]);
    let all = node.snapshots().list();
    assert_eq!(all.len(), 2, "{all:?}");
    for one in all {
        assert_eq!(one.id() == old.id(), one.revision.namespace == "here", "{one:?}");
    }
}

#[tokio::test]
async fn a_snapshot_that_lies_where_earlier_versions_put_it_is_found_by_its_namespace() {
    let scene = Scene::new();
    let node = scene.node().await;
    let same = |namespace: &str, node: &Node| {
        register(node, "same", |r| {
            reap(r);
            r.key.namespace = namespace.to_owned();
        })
    };
    let here = same("here", &node);
    assert_eq!(kinds(&node, &here, 2).await, [Boot, Record]);
    let new = only(&node).path;
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);
    let manifest = fs::read(new.join("manifest.json")).expect("read");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let digest = manifest.pointer("/owner/digest").and_then(|digest| digest.as_str());
    let digest = digest.and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    let old = scene.config.state_dir.join("snapshots").join(digest);
    fs::rename(new.parent().expect("a parent"), &old).expect("moved");

    let node = scene.node().await;
    let (here, there) = (same("here", &node), same("there", &node));
    assert_eq!(kinds(&node, &there, 1).await, [Boot], "it is not this one's");
    assert_eq!(kinds(&node, &here, 1).await, [Reap]);
    let paths: Vec<_> = node.snapshots().list().into_iter().map(|one| one.path).collect();
    assert!(paths.contains(&old.join("sim")) && paths.len() == 2, "{paths:?}");
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);

    // Beside one that lies where they are put now, it is not needed.
    fs::create_dir_all(&new).expect("made");
    for entry in fs::read_dir(old.join("sim")).expect("listed").flatten() {
        fs::copy(entry.path(), new.join(entry.file_name())).expect("copied");
    }
    let node = scene.node().await;
    let here = same("here", &node);
    assert!(!old.exists() && node.snapshots().list().iter().any(|one| one.path == new));
    assert_eq!(kinds(&node, &here, 1).await, [Reap]);
}

#[tokio::test]
async fn an_instance_that_is_never_idle_gets_its_snapshot_from_another() {
    let mut scene = Scene::new();
    scene.config.snapshots.idle_wait = vhive_api::Span(std::time::Duration::from_millis(300));
    let node = scene.node().await;
    let key = register(&node, "busy", |r| {
        reap(r);
        r.container_concurrency = 2;
    });
    // Two at a time that take turns: one of them always holds the instance.
    let mut held = soon(node.acquire(&key)).await.expect("a slot");
    assert_eq!(held.start().expect("cold").kind, Boot);
    let waiting = "vhive_snapshot_waiting_seconds{namespace=\"default\",revision=\"busy\"}";
    assert!(node.metrics().contains(waiting), "{}", node.metrics());
    let began = std::time::Instant::now();
    while node.snapshots().list().is_empty() {
        let next = soon(node.acquire(&key)).await.expect("a slot");
        std::mem::replace(&mut held, next).replied();
        assert!(began.elapsed() < PATIENCE, "no snapshot under load");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert!(
        began.elapsed() >= scene.config.snapshots.idle_wait.0,
        "it has waited for an idle moment"
    );
    wait_for(|| node.metrics(), |text| !text.contains(waiting)).await;
    // The other has gone, and the one that serves is not withheld any more.
    wait_for(|| node.counts(&key).expect("known").ready, |ready| *ready == 1).await;
    held.replied();
    assert_eq!(kinds_after_eviction(&node, &key).await, [Record, Reap]);
}

async fn kinds_after_eviction(node: &Node, key: &RevisionKey) -> Vec<StartKind> {
    soon(node.evict(key)).await.expect("known");
    kinds(node, key, 2).await
}

#[tokio::test]
async fn a_snapshot_of_a_ready_instance_is_there_before_the_first_request() {
    let scene = Scene::new();
    let node = scene.node().await;
    let ready = |r: &mut Revision| {
        reap(r);
        r.snapshot_at = vhive_api::SnapshotAt::Ready;
    };
    let key = register(&node, "early", ready);
    wait_for(|| node.snapshots().list().len(), |count| *count == 1).await;
    wait_for(|| node.counts(&key).expect("known").ready, |ready| *ready == 0).await;
    // The next node need not make another, nor who is told of the revision again.
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);
    let node = scene.node().await;
    let key = register(&node, "early", ready);
    register(&node, "early", ready);
    assert_eq!(node.counts(&key).expect("known").starting, 0);
    assert_eq!(kinds(&node, &key, 2).await, [Record, Reap]);
    // If there is none, whoever has answered gives none: another one does.
    let id = only(&node).id();
    assert!(node.snapshots().remove(&id).expect("removed"));
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    assert_eq!(lease.start().expect("cold").kind, Boot);
    wait_for(|| node.snapshots().list().len(), |count| *count == 1).await;
    lease.replied();
    assert_eq!(kinds_after_eviction(&node, &key).await, [Record, Reap]);
}

#[tokio::test]
async fn one_can_be_made_ahead_of_the_first_request() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "ahead", reap);
    let (made, new) = soon(node.create_snapshot(&key)).await.expect("made");
    assert!(new && made.working_sets.is_empty());
    wait_for(|| node.counts(&key).unwrap().ready, |ready| *ready == 0).await;
    let (same, new) = soon(node.create_snapshot(&key)).await.expect("there");
    assert!(!new && same.taken == made.taken);
    assert_eq!(kinds(&node, &key, 2).await, [Record, Reap]);

    let bad = register(&node, "bad", |r| env(r, "VHIVE_SIM_FAULT", "fail:boot"));
    let failed = soon(node.create_snapshot(&bad)).await;
    assert!(matches!(failed, Err(CreateError::Instance(AcquireError::StartFailed(_)))));
    let broken = register(&node, "broken", |r| env(r, "VHIVE_SIM_FAULT", "fail:checkpoint"));
    let failed = soon(node.create_snapshot(&broken)).await;
    assert!(matches!(failed, Err(CreateError::Take(TakeError::Checkpoint(_)))), "{failed:?}");
    assert_eq!(node.snapshots().list().len(), 1);
}

#[tokio::test]
async fn a_snapshot_travels_as_an_archive_and_hostile_ones_do_not() {
    let (here, there) = (Scene::new(), Scene::new());
    let (node, other) = (here.node().await, there.node().await);
    let key = register(&node, "one", |r| {
        reap(r);
        r.memory = vhive_api::Bytes::mib(8);
    });
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let info = only(&node);
    let mut archive = Vec::new();
    node.snapshots().export(&info.id(), &mut archive).expect("written");
    assert!(archive.len() < 1 << 17, "holes are not written: {}", archive.len());
    let taken = other.snapshots().import(&archive[..]).expect("read");
    assert!(taken.allocated.0 < 1 << 17, "holes stay holes: {}", taken.allocated);
    assert_eq!((taken.digest, taken.working_sets.clone()), (info.digest, vec![1]));
    let key = register(&other, "one", |r| {
        reap(r);
        r.memory = vhive_api::Bytes::mib(8);
    });
    assert_eq!(kinds(&other, &key, 1).await, [Reap]);
    let again = other.snapshots().import(&archive[..]);
    assert!(matches!(again, Err(ImportError::Exists(id)) if id == info.id()), "{again:?}");

    assert!(other.snapshots().remove(&info.id()).expect("removed"));
    let before = files(&there);
    for (name, archive) in hostile(&archive) {
        let refused = other.snapshots().import(&archive[..]);
        assert!(refused.is_err(), "{name} was taken in");
        assert_eq!(files(&there), before, "{name} left something");
    }
    assert!(!there.path().join("escaped").exists());
}

/// Names and contents of an archive's files.
type Parts = Vec<(String, Vec<u8>)>;

/// Archives that must not be taken in.
fn hostile(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let parts = || {
        let mut archive = tar::Archive::new(good);
        let entries = archive.entries().expect("an archive").map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("read");
            (name, bytes)
        });
        entries.collect::<Vec<_>>()
    };
    let packed = |parts: &[(String, Vec<u8>)]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            // Names are put in as they are, however bad.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o600);
            header.set_cksum();
            archive.append(&header, &bytes[..]).expect("written");
        }
        archive.into_inner().expect("written")
    };
    let with = |change: &dyn Fn(&mut Parts)| {
        let mut parts = parts();
        change(&mut parts);
        packed(&parts)
    };
    let link = {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "manifest.json", "/etc/passwd").expect("written");
        archive.into_inner().expect("written")
    };
    // As sound as the rest: of the memory's content.
    let listed = |mark: &str| {
        with(&|parts| {
            let mut manifest: serde_json::Value =
                serde_json::from_slice(&parts[0].1).expect("a manifest");
            manifest["files"][mark] = manifest["files"]["memory"].clone();
            parts[0].1 = serde_json::to_vec(&manifest).expect("written");
            let memory = parts.iter().find(|(name, _)| name == "memory").expect("a memory");
            parts.push((mark.to_owned(), memory.1.clone()));
        })
    };
    let memory =
        |parts: &mut Parts| parts.iter().position(|(name, _)| name == "memory").expect("a memory");
    vec![
        ("nothing", Vec::new()),
        ("noise", vec![0x5A; 4096]),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("no manifest", with(&|parts| drop(parts.remove(0)))),
        ("manifest last", with(&|parts| parts.rotate_left(1))),
        ("a path", with(&|parts| parts.push(("../../escaped".to_owned(), vec![1])))),
        ("an absolute path", with(&|parts| parts.push(("/tmp/escaped".to_owned(), vec![1])))),
        ("one too many", with(&|parts| parts.push(("extra".to_owned(), vec![1])))),
        ("a name twice", with(&|parts| parts.push(parts[1].clone()))),
        (
            "the last of all working sets",
            with(&|parts| {
                let set = parts.iter().position(|(name, _)| name == "working-set.1");
                parts[set.expect("a working set")].0 = "working-set.4294967295".to_owned();
            }),
        ),
        ("a tombstone", with(&|parts| parts.push(("removed".to_owned(), vec![1])))),
        (
            "a flipped bit",
            with(&|parts| {
                let at = memory(parts);
                parts[at].1[100] ^= 1;
            }),
        ),
        (
            "a missing file",
            with(&|parts| {
                let at = memory(parts);
                parts.remove(at);
            }),
        ),
        (
            "a longer file",
            with(&|parts| {
                let at = memory(parts);
                parts[at].1.push(0);
            }),
        ),
        ("a link", link),
        ("the mark of what is kept as a file", listed("kept")),
        ("a tombstone as a file", listed("removed")),
    ]
}

#[tokio::test]
async fn the_least_used_go_when_there_are_too_many() {
    let mut scene = Scene::new();
    let node = scene.node().await;
    for name in ["first", "second", "third"] {
        let key = register(&node, name, |r| r.snapshot = SnapshotPolicy::Vanilla);
        assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    }
    let first = register(&node, "first", |r| r.snapshot = SnapshotPolicy::Vanilla);
    assert_eq!(kinds(&node, &first, 1).await, [Snapshot], "used again");
    let each = node.snapshots().list()[0].allocated;
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    scene.config.snapshots.max_bytes = vhive_api::Bytes(each.0 * 2);
    let node = scene.node().await;
    let left = |node: &Node| {
        let mut names: Vec<String> =
            node.snapshots().list().into_iter().map(|info| info.revision.name).collect();
        names.sort();
        names
    };
    assert_eq!(left(&node), ["first", "third"]);
    let key = register(&node, "fourth", |r| r.snapshot = SnapshotPolicy::Vanilla);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Snapshot]);
    assert_eq!(left(&node), ["first", "fourth"]);
    assert!(node.snapshots().collect().left.0 <= each.0 * 2);
    // One that alone is too large is not kept.
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    scene.config.snapshots.max_bytes = vhive_api::Bytes(1);
    let node = scene.node().await;
    let key = register(&node, "fifth", |r| r.snapshot = SnapshotPolicy::Vanilla);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Boot]);
    assert!(node.snapshots().list().is_empty() && files(&scene).is_empty());
}

#[tokio::test]
async fn a_working_set_that_makes_it_too_much_costs_the_least_used() {
    let mut scene = Scene::new();
    let node = scene.node().await;
    let other = register(&node, "other", |r| r.snapshot = SnapshotPolicy::Vanilla);
    let grows = register(&node, "grows", reap);
    assert_eq!(kinds(&node, &other, 1).await, [Boot]);
    assert_eq!(kinds(&node, &grows, 1).await, [Boot]);
    let both = node.snapshots().list();
    assert_eq!(both.len(), 2);
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);
    // Just what they take up now.
    scene.config.snapshots.max_bytes = vhive_api::Bytes(both.iter().map(|i| i.allocated.0).sum());
    let node = scene.node().await;
    assert_eq!(node.snapshots().list().len(), 2);
    let grows = register(&node, "grows", reap);
    assert_eq!(kinds(&node, &grows, 2).await, [Record, Reap]);
    assert_eq!(only(&node).revision.name, "grows");
}

#[tokio::test]
async fn a_full_disk_keeps_what_was_there_and_serves() {
    const TEST: &str = "a_full_disk_keeps_what_was_there_and_serves";
    let mut scene = Scene::new();
    let disk = scene.path().join("disk");
    fs::create_dir(&disk).expect("made");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&disk).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIP {TEST}: mounting a tmpfs");
        return;
    }
    let _mounted = Mounted(disk.clone());
    scene.config.state_dir = disk.join("state");
    scene.config.records.write = false;
    let node = scene.node().await;
    let key = register(&node, "fits", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let before = files(&scene);
    let filler = disk.join("filler");
    let full = fs::write(&filler, vec![1; 512 << 10]).expect_err("it is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let late = register(&node, "late", reap);
    assert_eq!(kinds(&node, &late, 2).await, [Boot, Boot]);
    assert_eq!(files(&scene), before);
    assert_eq!(kinds(&node, &key, 1).await, [Reap], "what was there is still used");
    fs::remove_file(&filler).expect("removed");
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn the_door_is_told_before_a_snapshot_is_taken_and_only_then() {
    let scene = Scene::new();
    let node = scene.node().await;
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let (into, counts) = (Arc::clone(&told), Arc::clone(&calls));
    node.on_quiesce(move |revision, sandbox| {
        counts.fetch_add(1, Ordering::SeqCst);
        into.lock().expect("sound").push(format!("{revision} {sandbox}"));
    });
    let key = register(&node, "one", reap);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let wanted = format!("{key} {}", lease.sandbox());
    // Given back without a reply: not yet.
    drop(lease);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    soon(node.acquire(&key)).await.expect("a slot").replied();
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(*told.lock().expect("sound"), [wanted]);
    assert_eq!(kinds(&node, &key, 2).await, [Record, Reap]);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// The child is this same test with `VHIVE_TEST_CHILD` set to the scene's directory; it is killed
/// in the middle of a checkpoint.
#[tokio::test]
async fn a_node_killed_while_it_takes_a_snapshot_leaves_nothing_that_the_next_one_uses() {
    const TEST: &str =
        "a_node_killed_while_it_takes_a_snapshot_leaves_nothing_that_the_next_one_uses";
    if let Some(dir) = std::env::var_os("VHIVE_TEST_CHILD") {
        let mut scene = Scene::new();
        scene.config = vhive_node::Config::below(Path::new(&dir));
        let node = scene.node().await;
        let key = register(&node, "hangs", |r| {
            reap(r);
            env(r, "VHIVE_SIM_FAULT", "hang:checkpoint");
        });
        let whole = register(&node, "whole", reap);
        assert_eq!(kinds(&node, &whole, 1).await, [Boot]);
        soon(node.acquire(&key)).await.expect("a slot").replied();
        // The draft, with a file in it.
        wait_for(|| files(&scene).len(), |count| *count >= 4 + 3).await;
        let mut out = std::io::stdout();
        writeln!(out, "node is up").and_then(|()| out.flush()).expect("a pipe");
        let killed = tokio::time::timeout(PATIENCE, std::future::pending::<()>()).await;
        assert!(killed.is_ok(), "the parent did not kill this process");
        return;
    }
    let scene = Scene::new();
    let mut child = Command::new(std::env::current_exe().expect("this test's program"))
        .args(["--exact", TEST, "--nocapture"])
        .env("VHIVE_TEST_CHILD", scene.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let up = lines.any(|line| line.expect("text").ends_with("node is up"));
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(up, "the child ended early");
    assert_eq!(files(&scene).len(), 4 + 1 + 3, "one whole, one half-made");
    let node = scene.node().await;
    assert_eq!(files(&scene).len(), 5, "{:?}", files(&scene));
    assert_eq!(only(&node).revision.name, "whole");
    let key = register(&node, "whole", reap);
    assert_eq!(kinds(&node, &key, 1).await, [Record]);
}

//! Archives of snapshots: stopped on their way out, and kept out of a disk without room.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use vhive_tests::node::command;

use crate::scene::{Dir, apply, code, fill, invoke, mount, node, said, service, skip};
use crate::watch::{Watch, What};

/// A service on `sim` with a snapshot.
fn snapshotted() -> String {
    let policy = "vhive.dev/snapshot-policy: vanilla\n        autoscaling.knative.dev/window";
    service("tiny", &[], "").replace("autoscaling.knative.dev/window", policy)
}

#[test]
fn e2e_an_export_that_is_stopped_leaves_the_earlier_archive_and_nothing_else() {
    let test = "e2e_an_export_that_is_stopped_leaves_the_earlier_archive_and_nothing_else";
    if skip(test) {
        return;
    }
    let dir = Dir::new("export");
    let socket = dir.path().join("api.sock");
    let node = node(&dir, &format!("[serving.api]\nsocket = {socket:?}\n"));
    apply(&node, &dir, &snapshotted());
    assert_eq!(invoke(&node, "tiny")["status"], 200);
    node.ok(&["evict", "tiny"]).expect("evicted");
    let listed = node.json(&["snapshot", "ls"]).expect("listed").to_string();
    let place = dir.path().join("archives");
    fs::create_dir(&place).expect("made");
    let file = place.join("tiny.tar");
    node.ok(&["snapshot", "export", "tiny", &file.to_string_lossy()]).expect("exported");
    let whole = fs::read(&file).expect("there");
    assert!(!whole.is_empty() && node.stop().expect("ends").success());

    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // A node in whose archive nothing comes after the beginning.
        drop(fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).expect("bound");
        let (done, ended) = mpsc::channel::<()>();
        let listed = listed.clone();
        let slow = std::thread::spawn(move || {
            let (mut asked, _) = listener.accept().expect("asked for the list");
            let _head = asked.read(&mut [0; 4096]).expect("a request");
            let head =
                format!("Content-Type: application/json\r\nContent-Length: {}", listed.len());
            write!(asked, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{listed}").expect("answered");
            let (mut asked, _) = listener.accept().expect("asked for the archive");
            let _head = asked.read(&mut [0; 4096]).expect("a request");
            write!(asked, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf").expect("begun");
            // Until the test is done with it.
            let _closed = ended.recv();
        });
        let mut watch = Watch::below(&place);
        let mut export = command(dir.path()).expect("built");
        export.args(["snapshot", "export", "tiny", &file.to_string_lossy()]);
        let export = export.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
        watch.until("writing the draft", |path, what| {
            path.to_string_lossy().ends_with(".part") && what == What::Written
        });
        kill_process(Pid::from_child(&export), signal).expect("signalled");
        let output = export.wait_with_output().expect("ends");
        drop(done);
        slow.join().expect("no panic");
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {}", said(&output));
        let left: Vec<_> = fs::read_dir(&place).expect("listed").flatten().collect();
        assert_eq!(left.len(), 1, "{signal:?}: {left:?}");
        assert!(fs::read(&file).expect("there") == whole, "{signal:?}: it is another");
    }
}

#[test]
fn e2e_an_archive_is_taken_in_only_where_the_disk_has_room() {
    let test = "e2e_an_archive_is_taken_in_only_where_the_disk_has_room";
    if skip(test) {
        return;
    }
    let dir = Dir::new("import-full");
    let state = dir.path().join("state");
    let _mounted = match mount(&state, "32m") {
        Ok(mounted) => mounted,
        Err(lacks) => {
            eprintln!("SKIP {test}: {lacks}");
            return;
        }
    };
    let node = node(&dir, "");
    apply(&node, &dir, &snapshotted());
    assert_eq!(invoke(&node, "tiny")["status"], 200);
    node.ok(&["evict", "tiny"]).expect("evicted");
    let file = dir.path().join("tiny.tar");
    let file = file.to_string_lossy();
    node.ok(&["snapshot", "export", "tiny", &file]).expect("exported");
    node.ok(&["snapshot", "rm", "tiny"]).expect("removed");

    // There is room for the archive, and with it none for what else has to be written.
    let filler = fill(&state, 2 << 20);
    let refused = node.vhive(&["snapshot", "import", &file]).expect("runs");
    assert_eq!(code(&refused), 1);
    assert!(said(&refused).contains("no room"), "{}", said(&refused));
    let left: Vec<_> = fs::read_dir(state.join("snapshots")).expect("listed").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_file(filler).expect("removed");
    node.ok(&["snapshot", "import", &file]).expect("there is room now");
    assert_eq!(invoke(&node, "tiny")["record"]["start"], "snapshot");
    assert!(node.stop().expect("ends").success());
}

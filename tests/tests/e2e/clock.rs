//! A node whose wall clock is set back and forward while it runs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use vhive_tests::node::TestNode;

use crate::scene::{Dir, apply, invoke, service, skip, tiny_image};

/// The library that gives a process a clock of its own, if there is one.
fn faketime() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/faketime/usr/lib");
    let mut dirs = fs::read_dir(lib).ok()?;
    dirs.find_map(|dir| {
        let file = dir.ok()?.path().join("faketime/libfaketimeMT.so.1");
        file.canonicalize().ok()
    })
}

/// When a record's invocation began, and how long it took in microseconds.
fn times(answer: &Value) -> (Timestamp, u64) {
    assert_eq!(answer["status"], 200, "{answer}");
    let record = &answer["record"];
    let at = record["at"].as_str().and_then(|text| text.parse().ok()).expect("a time");
    let phases = record["phases"].as_array().expect("phases");
    let total = phases.iter().find(|span| span["phase"] == "total").expect("a total");
    (at, total["length_us"].as_u64().expect("a length"))
}

#[test]
fn e2e_a_clock_that_is_set_back_and_forward_changes_nothing_that_is_decided() {
    let test = "e2e_a_clock_that_is_set_back_and_forward_changes_nothing_that_is_decided";
    if skip(test) {
        return;
    }
    let Some(library) = faketime() else {
        eprintln!("SKIP {test}: libfaketime (`cargo xtask test` brings it)");
        return;
    };
    let dir = Dir::new("clock");
    let clock = dir.path().join("clock");
    let set = |offset: &str| fs::write(&clock, offset).expect("written");
    set("+0s");
    tiny_image(dir.path());
    let yes = OsStr::new("1");
    let env = [
        ("LD_PRELOAD", library.as_os_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.as_os_str()),
        ("FAKETIME_NO_CACHE", yes),
        // Linux's monotone clock cannot be set either.
        ("FAKETIME_DONT_FAKE_MONOTONIC", yes),
    ];
    let node = TestNode::start_in(dir.path(), "", &env).expect("the node starts");
    apply(&node, &dir, &service("one", &[], ""));
    let (begun, _) = times(&invoke(&node, "one"));
    for (offset, hours) in [("-3600s", -1), ("+86400s", 24), ("+0s", 0)] {
        set(offset);
        // The instance is there as before, however late or early it seems to be.
        let answer = invoke(&node, "one");
        assert_eq!(answer["record"]["start"], "warm", "{offset}: {answer}");
        let (at, total) = times(&answer);
        let shift = at.duration_since(begun).as_secs() - hours * 3600;
        assert!((-60..60).contains(&shift), "{offset}: it was not the clock that was set: {shift}");
        assert!(total < 60_000_000, "{offset}: {total} µs");
        // A change is made and becomes what is served.
        apply(&node, &dir, &service("one", &[&format!("CLOCK={hours}")], ""));
        let (_, total) = times(&invoke(&node, "one"));
        assert!(total < 60_000_000, "{offset}: {total} µs");
        let idle = |now: &Value| now["instances"] == json!([]);
        node.wait_for("one", Duration::from_secs(30), idle).expect("to zero as ever");
        times(&invoke(&node, "one"));
    }
    node.stop().expect("it ends");
}

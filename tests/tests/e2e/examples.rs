//! The programs in `examples/` that need nothing of the host; the others run where microVMs do.

use std::process::Command;

use crate::scene::said;

fn shown(name: &str) -> String {
    let beside = vhive_tests::node::binary().expect("built");
    let done = Command::new(beside.with_file_name("examples").join(name)).output();
    let done = done.expect("built by `cargo build --package vhive --examples`");
    assert!(done.status.success(), "{}", said(&done));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn e2e_a_node_can_be_embedded() {
    let shown = shown("embed_node");
    let count = |word: &str| shown.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("boot"), count("warm")), (1, 2), "{shown}");
    assert!(shown.contains("kernel_boot") && shown.contains("cut: 0"), "{shown}");
}

#[test]
fn e2e_a_runtime_can_be_written_outside() {
    let shown = shown("custom_runtime");
    let lines: Vec<&str> = shown.lines().collect();
    let [cold, warm, end] = lines.as_slice() else { panic!("{shown}") };
    let sandbox = cold.strip_prefix("first request, cold: hello from ").expect("greeted");
    assert_eq!(*warm, format!("second request, warm: hello from {sandbox}"));
    assert_eq!(*end, format!("{sandbox} has ended: true"));
}

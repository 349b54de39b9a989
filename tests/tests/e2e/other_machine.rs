//! A real microVM's snapshot on what has become another machine: under another guest kernel, with other memory.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{hello, invoke_cold, node_with, tag, traces};
use crate::scene::{Dir, apply, invoke, said};

/// One kernel more, and in use from now on: the same but for what lies behind its end, which another digest
/// shows and the guest never sees.
fn another_kernel(dir: &Dir) {
    let kernels = dir.path().join("state/kernels");
    let shown = vhive(dir.path(), &["-o", "json", "kernel", "show"]).expect("runs");
    let now: Value = serde_json::from_slice(&shown.stdout).expect("the kernel in use");
    let vmlinux = Path::new(now["vmlinux"].as_str().expect("its file"));
    let place = vmlinux.parent().expect("it is in its kernel's directory");
    // Behind the link, which is about to go.
    let place = fs::canonicalize(place).expect("there");
    let mut vmlinux = fs::read(place.join("vmlinux")).expect("read");
    vmlinux.extend([0; 64]);
    let from = dir.path().join("vmlinux");
    fs::write(&from, vmlinux).expect("written");
    // The prepared ones are others' too.
    fs::remove_file(&kernels).expect("a link");
    let (from, modules) = (from.to_string_lossy(), place.join("modules"));
    let args = ["kernel", "install", "--from", &from, "--modules", &modules.to_string_lossy()];
    let done = vhive(dir.path(), &args).expect("runs");
    assert!(done.status.success(), "{}", said(&done));
}

/// Changes what the one manifest says.
fn rewrite(snapshots: &Path, pointer: &str, value: Value) {
    let owners = fs::read_dir(snapshots).expect("listed").flatten();
    let manifests: Vec<_> = owners
        .map(|owner| owner.path().join("qemu/manifest.json"))
        .filter(|path| path.is_file())
        .collect();
    let [manifest] = &manifests[..] else { unreachable!("one snapshot, not {manifests:?}") };
    let text = fs::read(manifest).expect("read");
    let mut content: Value = serde_json::from_slice(&text).expect("JSON");
    *content.pointer_mut(pointer).expect("the field is there") = value;
    fs::write(manifest, content.to_string()).expect("written");
}

#[test]
fn e2e_microvm_a_snapshot_of_another_kernel_or_memory_size_costs_a_boot_and_names_the_field() {
    let test =
        "e2e_microvm_a_snapshot_of_another_kernel_or_memory_size_costs_a_boot_and_names_the_field";
    let dir = Dir::new("other-machine");
    let Some(first) = node_with(test, &dir, "") else { return };
    // One instance: on a busy host the autoscaler would start a second one while the first boots.
    let policy = "vhive.dev/snapshot-policy: vanilla\n        \
                  autoscaling.knative.dev/max-scale: \"1\"\n        autoscaling.knative.dev/window";
    let yaml = hello("hello", "").replace("autoscaling.knative.dev/window", policy);
    apply(&first, &dir, &yaml);
    assert_eq!(invoke(&first, "hello")["record"]["start"], "boot");
    assert_eq!(invoke_cold(&first, "hello")["start"], "snapshot");
    assert!(first.stop().expect("ends").success());

    another_kernel(&dir);
    let next = TestNode::start(dir.path(), "").expect("the node starts");
    refused(&next, "platform.kernel");
    assert!(next.stop().expect("ends").success());

    rewrite(&dir.path().join("state/snapshots"), "/shape/memory", json!("256MiB"));
    let last = TestNode::start(dir.path(), "").expect("the node starts");
    refused(&last, "shape.memory is 256MiB, wanted 128MiB");
    assert!(last.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

/// The next start is a boot, says which field disagrees, and is followed by a snapshot that fits.
fn refused(node: &TestNode, field: &str) {
    let record = invoke_cold(node, "hello");
    let why = record["fallback"].as_str().unwrap_or_default();
    assert_eq!(record["start"], "boot", "{record}");
    assert!(why.contains(field) && why.contains(", wanted "), "{field}: {why}");
    let replaced = invoke_cold(node, "hello");
    assert_eq!((&replaced["start"], &replaced["fallback"]), (&"snapshot".into(), &Value::Null));
}

//! The guest without an operating system as a user gets it: by an annotation.

use std::path::Path;

use vhive_tests::manifest::variant;
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{missing, tag, traces};
use crate::scene::{Dir, apply, code, said, try_apply};

#[test]
fn e2e_microvm_nano_boots_and_is_restored_by_its_annotation() {
    let test = "e2e_microvm_nano_boots_and_is_restored_by_its_annotation";
    let dir = Dir::new("nano");
    if let Some(lacks) = missing(&dir) {
        eprintln!("SKIP {test}: {lacks}");
        return;
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions/nano");
    let built = vhive(dir.path(), &["image", "build", &place.to_string_lossy()]).expect("runs");
    assert!(built.status.success(), "{}", said(&built));
    let node = TestNode::start(dir.path(), "").expect("the node starts");
    let yaml = place.join("service.yaml");
    let with = |annotations: &[(&str, &str)]| variant(&yaml, "nano", annotations).expect("read");
    apply(&node, &dir, &with(&[("vhive.dev/snapshot-policy", "reap")]).to_string());
    for (start, pages) in [("boot", 256), ("record", 256), ("reap", 512), ("warm", 300)] {
        if start != "warm" {
            node.ok(&["evict", "nano"]).expect("evicted");
        }
        let path = format!("/fill?pages={pages}");
        let reply = node.json(&["invoke", "nano", "--path", &path]).expect("replied");
        assert_eq!(reply["status"], 200, "{reply}");
        assert!(reply.to_string().contains(&format!("pages {pages}")), "{reply}");
        let record = &reply["record"];
        assert_eq!((&record["start"], &record["runtime"]), (&start.into(), &"qemu".into()));
        assert!(record["fallback"].is_null(), "{record}");
    }

    let mut refused = with(&[]);
    refused["spec"]["template"]["spec"]["runtimeClassName"] = "runc".into();
    refused["spec"]["template"]["spec"]["containers"][0]["args"] = serde_json::json!(["x"]);
    let refused = try_apply(&node, &dir, &refused.to_string());
    assert_ne!(code(&refused), 0);
    for named in ["vhive.dev/guest", "qemu", "containers[0].args"] {
        assert!(said(&refused).contains(named), "{named}: {}", said(&refused));
    }
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

//! Apply, invoke, scale to zero, come back, restart, delete; nodes beside each other.

use std::fs;
use std::time::Duration;

use vhive_tests::node::{TestNode, vhive};

use crate::scene::{Dir, apply, code, invoke, node, said, service, skip};

#[test]
fn e2e_a_service_lives_from_apply_to_delete() {
    if skip("e2e_a_service_lives_from_apply_to_delete") {
        return;
    }
    let dir = Dir::new("life");
    let node = node(&dir, "");
    apply(&node, &dir, &service("one", &[], ""));
    let listed = node.json(&["get", "services"]).expect("listed");
    assert_eq!(listed["items"][0]["metadata"]["name"], "one");

    let cold = invoke(&node, "one");
    assert_eq!((&cold["status"], &cold["record"]["start"]), (&200.into(), &"boot".into()));
    let warm = invoke(&node, "one");
    assert_eq!((&warm["status"], &warm["record"]["start"]), (&200.into(), &"warm".into()));
    let phases = cold["record"]["phases"].as_array().expect("phases");
    let length = |name: &str| {
        let span = phases.iter().find(|span| span["phase"] == name);
        span.and_then(|span| span["length_us"].as_u64()).expect(name)
    };
    assert!(length("total") >= length("start"), "{phases:?}");

    let described = node.json(&["describe", "one"]).expect("described");
    assert_eq!(described["last_start"]["kind"], "boot");
    assert_eq!(described["instances"].as_array().map(Vec::len), Some(1));

    node.wait_for("one", Duration::from_secs(30), |now| now["instances"] == serde_json::json!([]))
        .expect("idle for a window, it goes to zero");
    assert_eq!(invoke(&node, "one")["record"]["start"], "boot");

    node.ok(&["delete", "one"]).expect("deleted");
    let gone = node.vhive(&["invoke", "one"]).expect("runs");
    assert_eq!(code(&gone), 6, "{}", said(&gone));
    let gone = node.vhive(&["describe", "one"]).expect("runs");
    assert_eq!(code(&gone), 3, "{}", said(&gone));
    assert!(node.stop().expect("ends").success());
}

#[test]
fn e2e_a_file_is_applied_and_deleted_with_all_that_is_in_it() {
    if skip("e2e_a_file_is_applied_and_deleted_with_all_that_is_in_it") {
        return;
    }
    let dir = Dir::new("files");
    let node = node(&dir, "");
    let path = dir.path().join("all.yaml");
    let inside = service("one", &[], "")
        .replace("metadata: { name: one }", "metadata: { name: one, namespace: team }");
    let more = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: m, namespace: team }\n\
                data: { a: b }\n";
    let space =
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: team, labels: { a: b } }\n---\n";
    fs::write(&path, format!("{space}{inside}{more}")).expect("written");
    let file = path.to_string_lossy().into_owned();
    for _ in 0..2 {
        let told = node.ok(&["apply", "-f", &file]).expect("applied");
        for wanted in ["namespace/team applied", "service/one applied", "configmap/m applied"] {
            assert!(told.contains(wanted), "no {wanted:?} in {told}");
        }
    }
    let told = node.ok(&["-n", "team", "delete", "cm/m"]).expect("deleted");
    assert!(told.contains("configmap/m deleted"), "{told}");
    // What is gone already is told, and the rest deleted.
    let rest = node.vhive(&["delete", "-f", &file]).expect("runs");
    assert_eq!(code(&rest), 3, "{}", said(&rest));
    let told = String::from_utf8_lossy(&rest.stdout).into_owned();
    for wanted in ["service/one deleted", "namespace/team deleted", "\"m\" not found"] {
        assert!(told.contains(wanted), "no {wanted:?} in {told}");
    }
    let wrong = node.vhive(&["delete", "pod/x"]).expect("runs");
    assert!(code(&wrong) == 1 && said(&wrong).contains("no kind"), "{}", said(&wrong));
    assert!(node.stop().expect("ends").success());
}

#[test]
fn e2e_a_killed_node_restarts_with_its_services_and_records() {
    if skip("e2e_a_killed_node_restarts_with_its_services_and_records") {
        return;
    }
    let dir = Dir::new("restart");
    let first = node(&dir, "");
    apply(&first, &dir, &service("kept", &[], ""));
    assert_eq!(invoke(&first, "kept")["status"], 200);
    first.kill().expect("killed");
    let second = TestNode::start(dir.path(), "").expect("starts again");
    assert_eq!(invoke(&second, "kept")["record"]["start"], "boot");
    assert!(second.stop().expect("ends").success());
}

#[test]
fn e2e_nodes_with_different_state_live_side_by_side_and_one_directory_has_one_node() {
    if skip("e2e_nodes_with_different_state_live_side_by_side_and_one_directory_has_one_node") {
        return;
    }
    let (left, right) = (Dir::new("left"), Dir::new("right"));
    let (one, two) = (node(&left, ""), node(&right, ""));
    for (node, dir) in [(&one, &left), (&two, &right)] {
        apply(node, dir, &service("same", &[], ""));
        assert_eq!(invoke(node, "same")["status"], 200);
    }
    let args = ["node", "--gateway", "127.0.0.1:0", "--api", "127.0.0.1:0"];
    let refused = vhive(left.path(), &args).expect("runs");
    assert_eq!(code(&refused), 1);
    let pid = one.pid().as_raw_nonzero().to_string();
    assert!(said(&refused).contains(&pid), "names the holder {pid}: {}", said(&refused));
    let refused = vhive(left.path(), &["node", "--sweep"]).expect("runs");
    assert_eq!(code(&refused), 1, "{}", said(&refused));
    assert_eq!(invoke(&one, "same")["status"], 200, "the refused node harmed nothing");
    assert!(two.stop().expect("ends").success());
    assert_eq!(invoke(&one, "same")["status"], 200, "nor did the other's end");
    assert!(one.stop().expect("ends").success());
}

#[test]
fn e2e_purge_leaves_nothing() {
    if skip("e2e_purge_leaves_nothing") {
        return;
    }
    let dir = Dir::new("purge");
    let node = node(&dir, "");
    apply(&node, &dir, &service("gone", &[], ""));
    assert_eq!(invoke(&node, "gone")["status"], 200);
    node.kill().expect("killed");
    let purged = vhive(dir.path(), &["node", "--purge"]).expect("runs");
    assert!(purged.status.success(), "{}", said(&purged));
    assert!(!dir.path().join("state").exists());
}

#[test]
fn e2e_without_a_node_clients_say_so() {
    let dir = Dir::new("alone");
    let done = vhive(dir.path(), &["get", "services"]).expect("runs");
    assert_eq!(code(&done), 4);
    assert!(said(&done).contains("vhive node"), "{}", said(&done));
    let done = vhive(dir.path(), &["no-such-verb"]).expect("runs");
    assert_eq!(code(&done), 2);
    fs::write(dir.path().join("vhive.toml"), "[node]\nmax_instance = 1\n").expect("written");
    let done = vhive(dir.path(), &["get", "services"]).expect("runs");
    assert!(said(&done).contains("max_instance"), "{}", said(&done));
}

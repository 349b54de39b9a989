//! Bad input and faults, table by table: what the user sees, and that the node lives on.

use std::net::TcpListener;
use std::process::Command;

use vhive_tests::node::{command, vhive};

use crate::scene::{Dir, apply, code, invoke, node, said, service, skip, try_apply};

#[test]
fn e2e_bad_manifests_are_refused_by_field() {
    if skip("e2e_bad_manifests_are_refused_by_field") {
        return;
    }
    let dir = Dir::new("manifests");
    let node = node(&dir, "");
    let good = service("good", &[], "");
    let unknown = service("good", &[], "      containerConcurency: 1\n");
    let unsupported = service("good", &[], "      nodeSelector: { disk: ssd }\n");
    let qemu = good.replace("runtimeClassName: sim", "runtimeClassName: qemu");
    let image = qemu.replace("dev.local/tiny", "dev.local/absent");
    let name = good.replace("name: good", "name: Not_A_Name");
    let kind = good.replace("kind: Service", "kind: Deployment");
    let runtime = good.replace("runtimeClassName: sim", "runtimeClassName: warp");
    for (yaml, named) in [
        ("{ this is: [not yaml", "YAML"),
        ("", "no object"),
        (unknown.as_str(), "containerConcurency"),
        (&unsupported, "nodeSelector"),
        (&image, "dev.local/absent"),
        (&name, "Not_A_Name"),
        (&kind, "kind: only \"Service\""),
        (&runtime, "warp"),
    ] {
        let refused = try_apply(&node, &dir, yaml);
        assert_eq!(code(&refused), 1, "{yaml}");
        assert!(said(&refused).contains(named), "{named} in {}", said(&refused));
    }
    apply(&node, &dir, &good);
    assert_eq!(invoke(&node, "good")["status"], 200);
}

#[test]
fn e2e_each_fault_of_a_start_is_told_and_the_node_lives() {
    if skip("e2e_each_fault_of_a_start_is_told_and_the_node_lives") {
        return;
    }
    let dir = Dir::new("starts");
    let node = node(&dir, "[node]\nstart_deadline = \"2s\"\nback_off_first = \"50ms\"\n");
    for (name, fault, told) in [
        ("spawn", "fail:spawn", "spawn"),
        ("boot", "fail:boot", "boot"),
        ("init", "fail:init", "init"),
        ("panic", "panic:boot", "panic"),
        ("exits", "exit-at-once:3", "code 3"),
        ("silent", "never-listen", "nothing listened"),
        ("hangs", "hang:boot", "deadline passed"),
    ] {
        apply(&node, &dir, &service(name, &[&format!("VHIVE_SIM_FAULT={fault}")], ""));
        let reply = invoke(&node, name);
        assert_eq!(reply["status"], 502, "{name}: {reply}");
        let body = reply["body"].as_str().unwrap_or_default();
        assert!(body.contains(told), "{name}: {told:?} in {body:?}");
        assert_eq!(reply["record"]["outcome"], "start-failed", "{name}");
    }
    apply(&node, &dir, &service("fine", &[], ""));
    assert_eq!(invoke(&node, "fine")["status"], 200);
}

#[test]
fn e2e_an_instance_that_crashes_with_a_request_is_replaced() {
    if skip("e2e_an_instance_that_crashes_with_a_request_is_replaced") {
        return;
    }
    let dir = Dir::new("crash");
    let node = node(&dir, "");
    apply(&node, &dir, &service("crash", &["VHIVE_SIM_FAULT=exit-after:1"], ""));
    let first = invoke(&node, "crash");
    assert_eq!(first["status"], 200, "{first}");
    let second = invoke(&node, "crash");
    assert_eq!(second["status"], 200, "{second}");
    assert_eq!(second["record"]["start"], "boot", "another instance served it");
}

#[test]
fn e2e_limits_have_their_own_status() {
    if skip("e2e_limits_have_their_own_status") {
        return;
    }
    let dir = Dir::new("limits");
    let config = "[serving.gateway]\nmax_head = \"8KiB\"\nmax_body = \"1KiB\"\n";
    let node = node(&dir, config);
    apply(
        &node,
        &dir,
        &service("slow", &["VHIVE_SIM_REPLY_MS=20000"], "      timeoutSeconds: 1\n"),
    );
    apply(&node, &dir, &service("quick", &[], ""));
    let reply = invoke(&node, "slow");
    assert_eq!(reply["status"], 504, "{reply}");

    let host = "Host: quick.default.example.com\r\nConnection: close\r\n";
    let long_head = format!("GET / HTTP/1.1\r\n{host}X-Long: {}\r\n\r\n", "x".repeat(16 << 10));
    assert!(node.raw(long_head.as_bytes()).expect("answered").starts_with("HTTP/1.1 431"));
    let body = "x".repeat(2 << 10);
    let long_body =
        format!("POST / HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n{body}", body.len());
    assert!(node.raw(long_body.as_bytes()).expect("answered").starts_with("HTTP/1.1 413"));
    let nowhere = "GET / HTTP/1.1\r\nHost: absent.default.example.com\r\nConnection: close\r\n\r\n";
    let reply = node.raw(nowhere.as_bytes()).expect("answered");
    assert!(reply.starts_with("HTTP/1.1 404") && reply.contains("absent.default"), "{reply}");
    assert_eq!(invoke(&node, "quick")["status"], 200);
}

#[test]
fn e2e_a_taken_port_is_named_and_nothing_is_left() {
    if skip("e2e_a_taken_port_is_named_and_nothing_is_left") {
        return;
    }
    let dir = Dir::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let args = ["node", "--gateway", &address, "--api", "127.0.0.1:0"];
    let refused = vhive(dir.path(), &args).expect("runs");
    assert_eq!(code(&refused), 1);
    let text = said(&refused);
    assert!(text.contains(&address) && text.contains("serving.gateway.listen"), "{text}");
    let swept = vhive(dir.path(), &["node", "--sweep"]).expect("runs");
    let text = String::from_utf8_lossy(&swept.stdout).into_owned();
    assert!(text.contains("swept: 0"), "nothing was left to sweep: {text}");
}

#[test]
fn e2e_doctor_says_that_no_userfaultfd_can_be_opened() {
    let name = "e2e_doctor_says_that_no_userfaultfd_can_be_opened";
    if skip(name) {
        return;
    }
    // In a mount namespace of its own the device is no device.
    let hide = "mount --bind /dev/userfaultfd /dev/userfaultfd && \
                mount -o remount,bind,nodev /dev/userfaultfd";
    let hides = Command::new("unshare").args(["-m", "sh", "-c", hide]).output();
    if !hides.is_ok_and(|done| done.status.success()) {
        eprintln!("SKIP {name}: a /dev/userfaultfd, and a mount namespace");
        return;
    }
    let dir = Dir::new("doctor-uffd");
    let mut config = ["qemu", "runsc", "runc", "crun"]
        .map(|name| format!("[{name}]\nbinary = \"/nonexistent/{name}\"\n"))
        .concat();
    config.push_str("[firecracker]\nbinary = \"/nonexistent/firecracker\"\n");
    std::fs::write(dir.path().join("vhive.toml"), config).expect("written");
    let told = |answer: &[u8]| {
        let answer: serde_json::Value = serde_json::from_slice(answer).expect("JSON");
        let host = answer["host"].as_array().expect("a list").clone();
        host.into_iter().find(|line| line["name"] == "userfaultfd").expect("a line")
    };
    let seen = vhive(dir.path(), &["-o", "json", "doctor"]).expect("runs");
    assert_eq!(told(&seen.stdout)["answer"], "good");
    let ask = format!("{hide} && exec \"$@\"");
    let plain = command(dir.path()).expect("a binary");
    let hidden = Command::new("unshare")
        .args(["-m", "sh", "-c", &ask, "sh"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .args(["-o", "json", "doctor"])
        .output()
        .expect("runs");
    let line = told(&hidden.stdout);
    assert_eq!(line["answer"], "missing");
    let (found, follows) = (line["found"].to_string(), line["follows"].to_string());
    assert!(found.contains("/dev/userfaultfd cannot be opened: Permission denied"), "{found}");
    assert!(follows.contains("no REAP") && follows.contains("--device"), "{follows}");
}

#[test]
fn e2e_doctor_names_what_is_missing_and_the_fix() {
    let dir = Dir::new("doctor");
    let config = ["qemu", "runsc", "runc", "crun"]
        .map(|name| format!("[{name}]\nbinary = \"/nonexistent/{name}\"\n"))
        .concat();
    std::fs::write(dir.path().join("vhive.toml"), config).expect("written");
    let done = vhive(dir.path(), &["-o", "json", "doctor"]).expect("runs");
    assert_eq!(code(&done), 5, "{}", said(&done));
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let qemu = &answer["runtimes"][0];
    assert_eq!((&qemu["name"], &qemu["answer"]), (&"qemu".into(), &"no".into()));
    let told = format!("{} {}", qemu["found"], qemu["follows"]);
    if !skip("e2e_doctor_names_what_is_missing_and_the_fix (the program's name)") {
        assert!(told.contains("/nonexistent/qemu"), "{told}");
    }
    assert_ne!(qemu["follows"], "", "says what to do");
    let runsc = &answer["runtimes"][2];
    assert_eq!((&runsc["name"], &runsc["alias"]), (&"runsc".into(), &"gvisor".into()));
    // What earlier trials came to is believed, unless it is asked again.
    let known = dir.path().join("state/host/firecracker.json");
    std::fs::create_dir_all(known.parent().expect("a directory")).expect("made");
    std::fs::write(&known, "{}").expect("written");
    for (args, is_kept) in [(&["doctor"][..], true), (&["doctor", "--again"], false)] {
        let done = vhive(dir.path(), args).expect("runs");
        let table = String::from_utf8_lossy(&done.stdout);
        assert!(table.contains("\nrunsc (gvisor)  no "), "{table}");
        assert_eq!(known.exists(), is_kept, "{args:?}");
    }
}

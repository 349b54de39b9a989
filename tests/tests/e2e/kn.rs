//! The real `kn` against a node, where there is one: named by `VHIVE_KN`, or on the PATH.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::kubernetes::kubeconfig;
use crate::scene::{Dir, node, skip};

/// The binary, if there is one.
fn kn() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("VHIVE_KN") {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("kn")).find(|binary| binary.is_file())
}

#[test]
fn e2e_kn_works_unchanged() {
    let test = "e2e_kn_works_unchanged";
    if skip(test) {
        return;
    }
    let Some(kn) = kn() else {
        println!("SKIP {test}: no kn on the PATH or in VHIVE_KN");
        return;
    };
    let dir = Dir::new("kn");
    // What it makes names no runtime.
    let node = node(&dir, "[serving.defaults]\nruntime = \"sim\"\n");
    kubeconfig(&node, dir.path());
    let run = |args: &[&str]| {
        let done = Command::new("timeout")
            .arg("60")
            .arg(&kn)
            .args(args)
            .env("KUBECONFIG", dir.path().join("kubeconfig"))
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("timeout runs");
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "kn {args:?}: {said}");
        said
    };
    let expect = |args: &[&str], wanted: &str| {
        let said = run(args);
        assert!(said.contains(wanted), "kn {args:?}: no {wanted:?} in {said}");
    };
    println!("{}", run(&["version"]).trim());
    let (image, url) = ("dev.local/tiny:latest", "http://hello.default.example.com");
    let named = |number: u32| format!("hello-{number:05}");
    expect(
        &[
            "service",
            "create",
            "hello",
            "--image",
            image,
            "--env",
            "A=1",
            "--revision-name",
            &named(1),
        ],
        url,
    );
    expect(&["service", "list"], "3 OK / 3");
    expect(&["service", "describe", "hello"], &named(1));
    // The image is pinned by what the revision says of it.
    expect(
        &["service", "update", "hello", "--env", "A=2", "--revision-name", &named(2)],
        &named(2),
    );
    expect(&["revision", "list", "-s", "hello"], &named(1));
    let (old, new) = (format!("{}=50", named(1)), format!("{}=old", named(1)));
    run(&[
        "service",
        "update",
        "hello",
        "--traffic",
        &old,
        "--traffic",
        "@latest=50",
        "--tag",
        &new,
    ]);
    expect(&["route", "describe", "hello"], "old");
    expect(&["route", "list"], url);
    let request =
        "GET / HTTP/1.1\r\nHost: old-hello.default.example.com\r\nConnection: close\r\n\r\n";
    let reply = node.raw(request.as_bytes()).expect("an answer");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    expect(&["service", "apply", "second", "--image", image, "--env", "A=1"], "second");
    expect(&["service", "apply", "second", "--image", image, "--env", "A=2"], "second");
    expect(&["service", "delete", "hello", "second", "--wait"], "deleted");
    expect(&["service", "list"], "No services found");
}

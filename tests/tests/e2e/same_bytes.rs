//! Every function of ours in every sandbox that this host offers: the same request gets the same
//! reply, head and body, byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use vhive_tests::manifest::variant;
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{tag, traces};
use crate::runtimes::offered;
use crate::scene::{Dir, apply, said};

/// Functions that boot soon on an emulated processor as well.
const SMALL: [&str; 4] = ["hello", "sleep", "syscalls", "pyaes"];

/// Nothing waits for a window to pass; the memory that an instance has is soon wanted by the next.
const CONFIG: &str = "[serving.autoscale]\nstable_window = \"60s\"\n";

#[derive(Debug, Deserialize)]
struct Requests {
    request: Vec<Request>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Request {
    name: String,
    method: String,
    path: String,
    content_type: Option<String>,
    body: Option<String>,
    expected: String,
    /// `exact`, or `json-subset` of a reply that tells times as well.
    compare: String,
}

/// What must be the same everywhere.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: String,
    /// Header lines, sorted, but those that tell the time of day.
    head: Vec<String>,
    body: String,
}

fn functions() -> BTreeMap<String, PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    let entries = fs::read_dir(all).expect("listed").map(|entry| entry.expect("read").path());
    let with = entries.filter(|dir| {
        let manifest = fs::read_to_string(dir.join("service.yaml")).unwrap_or_default();
        // What has no program of its own runs in virtual machines only.
        !manifest.is_empty() && !manifest.contains("vhive.dev/guest:")
    });
    with.map(|dir| (dir.file_name().expect("a name").to_string_lossy().into_owned(), dir)).collect()
}

fn requests(dir: &Path) -> Vec<Request> {
    let text = fs::read_to_string(dir.join("requests.toml")).expect("read");
    toml::from_str::<Requests>(&text).expect("requests").request
}

#[test]
fn e2e_every_function_gives_the_same_bytes_on_every_runtime() {
    let dir = Dir::new("same-bytes");
    let offered = offered("e2e_every_function_gives_the_same_bytes_on_every_runtime", &dir);
    if offered.is_empty() {
        return;
    }
    let functions = functions();
    assert!(functions.len() >= 9, "{functions:?}");
    for recipe in functions.values() {
        let done = vhive(dir.path(), &["image", "build", &recipe.to_string_lossy()]);
        let done = done.expect("runs");
        assert!(done.status.success(), "{}", said(&done));
    }
    let node = TestNode::start(dir.path(), CONFIG).expect("the node starts");
    for (name, place) in &functions {
        let mut first: Option<(&str, Vec<Reply>)> = None;
        for runtime in &offered {
            let emulated = ["qemu", "firecracker"].contains(&runtime.as_str());
            if emulated && !SMALL.contains(&name.as_str()) {
                continue;
            }
            let replies = replies(&node, &dir, (name, place), runtime);
            match &first {
                None => first = Some((runtime, replies)),
                Some((other, theirs)) => assert_eq!(&replies, theirs, "{name}: {runtime}, {other}"),
            }
        }
    }
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// What a function replies to each of its requests, the first from a cold start.
fn replies(
    node: &TestNode,
    dir: &Dir,
    (function, place): (&str, &Path),
    runtime: &str,
) -> Vec<Reply> {
    let service = format!("{}-{runtime}", function.replace('_', "-"));
    let mut manifest = variant(&place.join("service.yaml"), &service, &[]).expect("a manifest");
    manifest["spec"]["template"]["spec"]["runtimeClassName"] = runtime.into();
    apply(node, dir, &manifest.to_string());
    let replies = requests(place).into_iter().map(|request| {
        let mut reply = ask(node, &service, place, &request);
        // The gateway's, another for each.
        reply.head.retain(|line| !line.starts_with("x-request-id:"));
        let what = format!("{function} on {runtime}, {}", request.name);
        assert_eq!(reply.status, "HTTP/1.1 200 OK", "{what}: {reply:?}");
        let expected = fs::read_to_string(place.join(&request.expected)).expect("read");
        if request.compare == "exact" {
            assert_eq!(reply.body.trim_end(), expected.trim_end(), "{what}");
        } else {
            let (theirs, expected) = (json(&reply.body), json(&expected));
            assert!(contains(&theirs, &expected), "{what}: {theirs}, not {expected}");
            // It has times in it, of which even the number of digits differs.
            reply.body = expected.to_string();
            reply.head.retain(|line| !line.starts_with("content-length:"));
        }
        reply
    });
    let replies = replies.collect();
    node.ok(&["delete", &service]).expect("deleted");
    replies
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Whether every key of `part` is in `whole` with an equal value.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|w| contains(w, value)))
        }
        _ => whole == part,
    }
}

fn ask(node: &TestNode, service: &str, place: &Path, request: &Request) -> Reply {
    let body = request.body.as_ref().map(|name| fs::read(place.join(name)).expect("read"));
    let body = body.unwrap_or_default();
    let Request { method, path, content_type, .. } = request;
    let kind = content_type.as_ref().map(|kind| format!("Content-Type: {kind}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {service}.default.example.com\r\n{}\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        kind.unwrap_or_default(),
        body.len()
    );
    let reply = node.raw(&[head.as_bytes(), &body].concat()).expect("a reply in UTF-8");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines().map(str::to_owned);
    let status = lines.next().expect("a status");
    let mut head: Vec<String> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a header");
            format!("{}:{value}", name.to_ascii_lowercase())
        })
        .filter(|line| !line.starts_with("date:"))
        .collect();
    head.sort();
    Reply { status, head, body: body.to_owned() }
}

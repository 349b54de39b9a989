//! Every function of ours in every sandbox that this host offers, booted and restored: the same
//! request gets the same reply, head and body, byte by byte, and the same name the same greeting.

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

/// Of a service whose instances are restored: one at a time, so that whoever is told to go is all.
const RESTORED: [(&str, &str); 2] =
    [("vhive.dev/snapshot-policy", "vanilla"), ("autoscaling.knative.dev/max-scale", "1")];

#[derive(Debug, Deserialize)]
struct Requests {
    request: Vec<Request>,
    #[serde(default)]
    greeting: Vec<Greeting>,
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

/// Of the function's other manifest, which speaks gRPC.
#[derive(Debug, Deserialize)]
struct Greeting {
    name: String,
    message: String,
}

/// What must be the same everywhere.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: String,
    /// Header lines, sorted, but those that tell the time of day.
    head: Vec<String>,
    body: String,
}

/// A function's answers to all that it is asked.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    replies: Vec<Reply>,
    greetings: Vec<String>,
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

/// Whether every function is wanted in emulated machines too, which takes a quarter of an hour: once
/// before a release.
fn all_is_wanted() -> bool {
    std::env::var_os("VHIVE_ALL").is_some_and(|value| value == "1")
}

#[test]
fn e2e_every_function_gives_the_same_bytes_on_every_runtime() {
    let test = "e2e_every_function_gives_the_same_bytes_on_every_runtime";
    let dir = Dir::new("same-bytes");
    let offered = offered(test, &dir);
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
    let (all, mut greeted, mut restored) = (all_is_wanted(), 0, 0);
    for (name, place) in &functions {
        let text = fs::read_to_string(place.join("requests.toml")).expect("read");
        let requests: Requests = toml::from_str(&text).expect("requests");
        let function = Function { node: &node, dir: &dir, name, place, requests };
        let mut first: Option<(String, Answers)> = None;
        let mut compare = |who: &str, answers: Answers| match &first {
            None => first = Some((who.to_owned(), answers)),
            Some((other, theirs)) => assert_eq!(&answers, theirs, "{name}: {who}, {other}"),
        };
        for runtime in &offered {
            let emulated = ["qemu", "firecracker"].contains(&runtime.as_str());
            if emulated && !all && !SMALL.contains(&name.as_str()) {
                continue;
            }
            let booted = function.booted(runtime);
            greeted += booted.greetings.len();
            compare(runtime, booted);
            if emulated && !all {
                continue;
            }
            match function.restored(runtime) {
                Ok(passes) => {
                    restored += 1;
                    passes.into_iter().for_each(|(who, answers)| compare(&who, answers));
                }
                Err(lacks) => eprintln!("SKIP {test} on a restored {runtime}: {lacks}"),
            }
        }
    }
    assert!(greeted >= 2 * 3 * offered.len(), "{greeted} greetings of two functions");
    assert!(restored >= functions.len() || offered.iter().all(|name| name != "runsc"));
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// A function of ours, and where it is asked.
struct Function<'a> {
    node: &'a TestNode,
    dir: &'a Dir,
    name: &'a str,
    place: &'a Path,
    requests: Requests,
}

/// A function as services on one runtime: one for requests, and one for greetings if it knows them.
struct Services {
    http: String,
    grpc: Option<String>,
}

impl Services {
    fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.http).chain(&self.grpc)
    }
}

impl Function<'_> {
    fn deploy(&self, runtime: &str, way: &str, annotations: &[(&str, &str)]) -> Services {
        let deploy = |file: &str, kind: &str| {
            let service = format!("{}-{runtime}{way}{kind}", self.name.replace('_', "-"));
            let manifest = variant(&self.place.join(file), &service, annotations);
            let mut manifest = manifest.expect("a manifest");
            manifest["spec"]["template"]["spec"]["runtimeClassName"] = runtime.into();
            apply(self.node, self.dir, &manifest.to_string());
            service
        };
        let greets = !self.requests.greeting.is_empty();
        Services {
            http: deploy("service.yaml", ""),
            grpc: greets.then(|| deploy("service-grpc.yaml", "-grpc")),
        }
    }

    fn delete(&self, services: &Services) {
        for service in services.all() {
            self.node.ok(&["delete", service]).expect("deleted");
        }
    }

    /// What it answers, the first from a cold start.
    fn booted(&self, runtime: &str) -> Answers {
        let services = self.deploy(runtime, "", &[]);
        let answers = self.answers(&services);
        self.delete(&services);
        answers
    }

    /// What it answers once it has been booted to be restored, and what it answers restored; or why
    /// this host restores nothing of this runtime.
    fn restored(&self, runtime: &str) -> Result<Vec<(String, Answers)>, String> {
        let services = self.deploy(runtime, "-restored", &RESTORED);
        let mut passes = Vec::new();
        for start in ["boot", "snapshot"] {
            passes.push((format!("{runtime}, start {start}"), self.answers(&services)));
            for service in services.all() {
                let record = self.cold_start(service);
                let why = record["fallback"].as_str();
                // What restores in any case has no excuse.
                if let Some(lacks) = why.filter(|_| record["start"] == "boot" && runtime != "runsc")
                {
                    let lacks = lacks.to_owned();
                    self.delete(&services);
                    return Err(lacks);
                }
                assert_eq!(record["start"], start, "{service}: {record}");
                // It waits for a snapshot that is under way.
                self.node.ok(&["evict", service]).expect("evicted");
            }
        }
        self.delete(&services);
        Ok(passes)
    }

    /// The record of the last request that found nobody there.
    fn cold_start(&self, service: &str) -> Value {
        // The newest come last.
        let records = self.node.json(&["get", "records", "-s", service]).expect("records");
        let mut records = records.as_array().expect("a list").iter();
        records.rfind(|record| record["start"] != "warm").expect("a cold start").clone()
    }

    fn answers(&self, services: &Services) -> Answers {
        let replies = self.requests.request.iter().map(|request| {
            let mut reply = ask(self.node, &services.http, self.place, request);
            // The gateway's, another for each.
            reply.head.retain(|line| !line.starts_with("x-request-id:"));
            let what = format!("{}, {}", services.http, request.name);
            assert_eq!(reply.status, "HTTP/1.1 200 OK", "{what}: {reply:?}");
            let expected = fs::read_to_string(self.place.join(&request.expected)).expect("read");
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
        let greet = |service: &str, greeting: &Greeting| {
            let words = ["invoke", service, "--grpc", "-d", &greeting.name];
            let told = self.node.ok(&words).expect("greeted");
            assert_eq!(told.trim_end(), greeting.message, "{service}");
            told
        };
        let greet_all = |service: &String| -> Vec<String> {
            self.requests.greeting.iter().map(|greeting| greet(service, greeting)).collect()
        };
        Answers { replies, greetings: services.grpc.as_ref().map(greet_all).unwrap_or_default() }
    }
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

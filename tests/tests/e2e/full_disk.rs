//! What a node does whose disk is full.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};
use vhive_tests::node::TestNode;

use crate::durable::{PATH, api};
use crate::scene::{Dir, fill, invoke, mount, node, skip};

/// Most changes before a disk without room must have refused one.
const MOST: usize = 1000;

fn document(name: &str) -> String {
    // What fills a page or two of the store each time.
    let padding = "x".repeat(6000);
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": {"example.com/padding": padding}},
        "spec": {"template": {"spec": {
            "runtimeClassName": "sim",
            "containers": [{"image": "dev.local/tiny:latest"}],
        }}},
    })
    .to_string()
}

/// The status of an asynchronous request.
fn later(node: &TestNode, body: &str) -> String {
    let mut stream = TcpStream::connect(&node.gateway).expect("connected");
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: first.default.example.com\r\nPrefer: respond-async\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    reply.get(9..12).unwrap_or("none").to_owned()
}

#[test]
fn e2e_a_full_disk_refuses_changes_and_loses_none() {
    let test = "e2e_a_full_disk_refuses_changes_and_loses_none";
    if skip(test) {
        return;
    }
    let dir = Dir::new("full");
    let state = dir.path().join("state");
    let _mounted = match mount(&state, "16m") {
        Ok(mounted) => mounted,
        Err(lacks) => {
            eprintln!("SKIP {test}: {lacks}");
            return;
        }
    };
    let socket = dir.path().join("api.sock");
    let config = format!("[serving.api]\nsocket = {socket:?}\n");
    let first = node(&dir, &config);
    let make = |name: &str| api(&socket, "POST", PATH, &document(name)).expect("an answer");
    assert_eq!(make("first").0, 201);
    assert_eq!(invoke(&first, "first")["status"], 200);

    let filler = fill(&state, 0);
    let mut kept = vec!["first".to_owned()];
    let refused = (0..MOST).find_map(|number| {
        let name = format!("s{number}");
        let (status, body) = make(&name);
        if status == 201 {
            kept.push(name);
        }
        (status != 201).then_some((status, body))
    });
    let (status, why) = refused.expect("a disk without room has refused something");
    assert_eq!(status, 500, "{why}");
    assert!(why["message"].as_str().is_some_and(|text| text.contains("state.redb")), "{why}");
    // It is refused as often as it is tried, and requests are served as ever.
    assert_eq!(make("again").0, 500);
    assert_eq!(invoke(&first, "first")["status"], 200);
    // The other file of the store has no room either.
    let body = "y".repeat(64 << 10);
    let answers: Vec<String> = (0..20).map(|_| later(&first, &body)).collect();
    assert!(answers.iter().all(|status| ["202", "500"].contains(&status.as_str())), "{answers:?}");
    assert_eq!(answers.last().map(String::as_str), Some("500"), "{answers:?}");

    // With room it goes on, without a restart.
    fs::remove_file(&filler).expect("removed");
    let (status, why) = make("after");
    assert_eq!(status, 201, "{why}\n{}", first.log());
    kept.push("after".to_owned());
    assert_eq!(later(&first, "z"), "202", "{}", first.log());
    first.kill().expect("killed");

    let second = TestNode::start(dir.path(), &config).expect("the node starts again");
    let (_, list) = api(&socket, "GET", PATH, "").expect("an answer");
    let items = list["items"].as_array().expect("a list");
    let there: Vec<&str> =
        items.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
    for name in &kept {
        assert!(there.contains(&name.as_str()), "{name} was lost: {there:?}");
    }
    assert_eq!(invoke(&second, "first")["status"], Value::from(200));
    second.stop().expect("it ends");
}

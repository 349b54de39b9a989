//! What an instance has said, as `kubectl logs` and the Python client ask for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use vhive_api::guest::Stream;
use vhive_node::Runtimes;
use vhive_sandbox::Journal;

use crate::support::{InProcess, Reply, Setup, World, read_head, within};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn hello(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        if stream.write_all(reply).await.is_err() {
            return;
        }
    }
}

/// A node with one instance that has not said anything, its path, and what it says by.
async fn scene() -> (World, String, Arc<Journal>) {
    let runtime = InProcess::new(hello);
    let journals: Arc<Mutex<Vec<Arc<Journal>>>> = Arc::clone(&runtime.journals);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    let (_, pods) = world.api("GET", PODS, None).await;
    let name = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    let path = format!("{PODS}/{name}/log");
    let journal = Arc::clone(journals.lock().unwrap().first().unwrap());
    (world, path, journal)
}

async fn read(world: &World, path: &str) -> Reply {
    let mut stream = begin(world, path).await;
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    Reply::parse(&reply)
}

/// HTTP/1.0, so that no chunks are in the way.
async fn begin(world: &World, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until something has come.
async fn until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut wire = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&wire).contains(wanted) {
            assert_ne!(stream.read_buf(&mut wire).await.unwrap(), 0, "it ended before {wanted:?}");
        }
    })
    .await;
    String::from_utf8(wire).unwrap()
}

#[tokio::test]
async fn a_log_is_cut_to_what_is_asked_for() {
    let (world, path, journal) = scene().await;
    journal.line(Stream::Stdout, "one");
    journal.line(Stream::Stderr, "two");
    // Times are told apart by more than a clock's step.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let between = jiff::Timestamp::now();
    tokio::time::sleep(Duration::from_millis(30)).await;
    journal.line(Stream::Stdout, "three");
    for (query, wanted) in [
        ("", "one\ntwo\nthree\n".to_owned()),
        ("?container=user-container&tailLines=2", "two\nthree\n".to_owned()),
        ("?tailLines=0", String::new()),
        ("?limitBytes=6", "one\ntw".to_owned()),
        ("?limitBytes=6&tailLines=1&follow=true", "three\n".to_owned()),
        (&format!("?sinceTime={between}"), "three\n".to_owned()),
        ("?sinceSeconds=600", "one\ntwo\nthree\n".to_owned()),
        ("?follow=False&previous=false&pretty=True", "one\ntwo\nthree\n".to_owned()),
    ] {
        let reply = read(&world, &format!("{path}{query}")).await;
        assert_eq!((reply.status, reply.text()), (200, wanted), "{query}");
    }
    let stamped = read(&world, &format!("{path}?timestamps=True&tailLines=1")).await.text();
    let (time, text) = stamped.split_once(' ').unwrap();
    let time: jiff::Timestamp = time.parse().unwrap();
    assert!(time > between && text == "three\n", "{stamped}");
    for (query, status, said) in [
        ("?previous=true", 400, "previous terminated container"),
        ("?sinceSeconds=0", 422, "sinceSeconds"),
        ("?sinceTime=yesterday", 422, "sinceTime"),
        (&format!("?sinceTime={between}&sinceSeconds=3"), 422, "at most one"),
        ("?tailLines=few", 400, "tailLines"),
    ] {
        let reply = read(&world, &format!("{path}{query}")).await;
        let told: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(reply.status, status, "{query}: {told}");
        assert!(told["message"].as_str().unwrap().contains(said), "{query}: {told}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_log_is_followed_until_its_instance_is_gone() {
    let (world, path, journal) = scene().await;
    journal.line(Stream::Stdout, "before");
    // As the Python client writes it.
    let mut stream = begin(&world, &format!("{path}?follow=True&timestamps=False")).await;
    let head = until(&mut stream, "before\n").await;
    assert!(head.contains(" 200 "), "{head}");
    journal.line(Stream::Stdout, "while");
    assert_eq!(until(&mut stream, "while\n").await, "while\n");
    let mut short = begin(&world, &format!("{path}?follow=true&tailLines=0&limitBytes=3")).await;
    until(&mut short, "\r\n\r\n").await;
    journal.line(Stream::Stdout, "cut off");
    let mut rest = String::new();
    within(short.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "cut", "it ends with the last byte that was wanted");
    until(&mut stream, "cut off\n").await;
    let services = "/apis/serving.knative.dev/v1/namespaces/default/services";
    assert_eq!(world.api("DELETE", &format!("{services}/hello"), None).await.0, 200);
    let mut rest = String::new();
    within(stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "");
    world.stop().await;
}

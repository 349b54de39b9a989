//! What was acknowledged is there after the node was killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use vhive_tests::node::{TestNode, ask};

use crate::scene::{Dir, apply, node, service, skip};

pub(crate) const PATH: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

const CONFIGURATIONS: &str = "/apis/serving.knative.dev/v1/namespaces/default/configurations";
const ROUTES: &str = "/apis/serving.knative.dev/v1/namespaces/default/routes";

/// Changes in all, and how often the node is killed among them.
const CHANGES: u32 = 1000;
const KILLS: u32 = 8;

/// Asks the API; the answer is JSON.
pub(crate) fn api(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<(u16, Value)> {
    let reply = ask(socket, method, path, body)?;
    let status = reply.get(9..12).and_then(|text| text.parse().ok());
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    match (status, body.and_then(|body| serde_json::from_str(&body).ok())) {
        (Some(status), Some(body)) => Ok((status, body)),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Kind and path of an object: every other one is a configuration by itself.
fn kind_of(number: u32) -> (&'static str, &'static str) {
    if number.is_multiple_of(2) { ("Service", PATH) } else { ("Configuration", CONFIGURATIONS) }
}

/// Makes or changes one of 50 services and configurations, again and again; tells each change that was
/// acknowledged.
///
/// # Errors
/// One that was refused. That the node is gone is none.
fn change(
    socket: &Path,
    numbers: std::ops::Range<u32>,
    told: &mpsc::Sender<(String, u32)>,
) -> Result<(), String> {
    for number in numbers {
        let name = format!("s{}", number % 50);
        let (kind, path) = kind_of(number);
        let document = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": kind,
            "metadata": {"name": name, "labels": {"number": number.to_string()}},
            "spec": {"template": {"spec": {
                "runtimeClassName": "sim",
                "containers": [{
                    "image": "dev.local/tiny:latest",
                    "env": [{"name": "NUMBER", "value": number.to_string()}],
                }],
            }}},
        });
        let document = document.to_string();
        let made = api(socket, "POST", path, &document);
        let done = match made {
            Ok((409, _)) => api(socket, "PUT", &format!("{path}/{name}"), &document),
            other => other,
        };
        match done {
            Ok((200 | 201, _)) => {
                let _ = told.send((name, number));
            }
            Ok((status, body)) => return Err(format!("{name}: {status} {body}")),
            // The node is gone.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// A route for each configuration, which is there later.
fn make_routes(socket: &Path) {
    for number in (0..50).filter(|number| number % 2 == 1) {
        let name = format!("s{number}");
        let traffic = json!([{"configurationName": name, "percent": 100}]);
        let document = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Route",
            "metadata": {"name": name},
            "spec": {"traffic": traffic},
        });
        let (status, told) = api(socket, "POST", ROUTES, &document.to_string()).expect("answered");
        assert_eq!(status, 201, "{told}");
    }
}

#[test]
fn e2e_no_acknowledged_change_is_lost_when_the_node_is_killed() {
    if skip("e2e_no_acknowledged_change_is_lost_when_the_node_is_killed") {
        return;
    }
    let dir = Dir::new("durable");
    let socket: PathBuf = dir.path().join("api.sock");
    let config = format!("[serving.api]\nsocket = {socket:?}\n");
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    let each = CHANGES / KILLS;
    for round in 0..KILLS {
        let node = node(&dir, &config);
        if round == 0 {
            make_routes(&socket);
        }
        let (tell, told) = mpsc::channel();
        let (theirs, from) = (socket.clone(), round * each);
        let changes = std::thread::spawn(move || change(&theirs, from..from + each, &tell));
        // Killed at another point of each round, in the middle of a change.
        for (count, (name, number)) in (1..).zip(told.iter()) {
            last.insert(name, number);
            if count == each / 2 + round * 7 {
                break;
            }
        }
        node.kill().expect("killed");
        assert_eq!(changes.join().expect("it ends"), Ok(()));
        last.extend(told.iter());
    }
    let node = node(&dir, &config);
    let items = |path: &str| {
        let (_, list) = api(&socket, "GET", path, "").expect("an answer");
        list["items"].as_array().expect("a list").clone()
    };
    let number = |object: &Value| {
        let text = object["metadata"]["labels"]["number"].as_str().expect("a label");
        text.parse::<u32>().expect("a number")
    };
    let named = |one: &Value| one["metadata"]["name"].as_str().expect("a name").to_owned();
    let made = [items(PATH), items(CONFIGURATIONS).into_iter().filter(alone).collect()].concat();
    let kept: BTreeMap<String, &Value> = made.iter().map(|one| (named(one), one)).collect();
    let routes = items(ROUTES);
    let led: BTreeMap<String, &Value> = routes.iter().map(|one| (named(one), one)).collect();
    assert!(last.len() == 50 && kept.len() == 50, "{} and {}", last.len(), kept.len());
    for (name, acknowledged) in &last {
        let object = kept[name.as_str()];
        // A change that was cut off may have been made.
        assert!(number(object) >= *acknowledged, "{name}: {acknowledged} was lost: {object}");
        let env = &object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"];
        assert_eq!(env, &json!(number(object).to_string()), "half a change: {object}");
        let latest = &object["status"]["latestCreatedRevisionName"];
        // A service's route is a view of it; the others follow their configurations.
        assert_eq!(&led[name]["status"]["traffic"][0]["revisionName"], latest, "{object}");
    }
    node.stop().expect("it ends");
}

/// Whether no service has made it.
fn alone(object: &Value) -> bool {
    object["metadata"]["ownerReferences"].is_null()
}

/// A broker, and a trigger whose service comes later.
const EVENTING: &str = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: { name: default }
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: { name: late }
spec:
  broker: default
  subscriber: { ref: { apiVersion: serving.knative.dev/v1, kind: Service, name: late } }
  delivery: { retry: 100000, backoffPolicy: linear, backoffDelay: PT0.01S }
";

const EVENTS: usize = 50;

fn send_event(node: &TestNode, id: usize) -> String {
    let request = format!(
        "POST /default/default HTTP/1.1\r\nHost: broker-ingress.knative-eventing.example.com\r\n\
         Ce-Specversion: 1.0\r\nCe-Id: {id}\r\nCe-Source: /test\r\nCe-Type: t\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    node.raw(request.as_bytes()).expect("an answer")
}

#[test]
fn e2e_no_accepted_event_is_lost_when_the_node_is_killed() {
    if skip("e2e_no_accepted_event_is_lost_when_the_node_is_killed") {
        return;
    }
    let dir = Dir::new("events");
    let socket: PathBuf = dir.path().join("api.sock");
    let config = format!("[serving.api]\nsocket = {socket:?}\n");
    let first = node(&dir, &config);
    apply(&first, &dir, EVENTING);
    for id in 0..EVENTS {
        let reply = send_event(&first, id);
        assert!(reply.starts_with("HTTP/1.1 202 "), "{reply}");
    }
    first.kill().expect("killed");

    let next = node(&dir, &config);
    apply(&next, &dir, &service("late", &[], ""));
    let delivered = next.wait_for("late", Duration::from_secs(30), |_| {
        let path = "/vhive/v1/records?service=late&limit=10000";
        let (_, records) = api(&socket, "GET", path, "").expect("an answer");
        let all = records.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|record| record["status"] == 200).count() >= EVENTS
    });
    delivered.expect("every event arrives");
    next.stop().expect("it ends");
}

//! Brokers and triggers. One file, because all of it is told by the same functions on the same stage.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use vhive_node::Runtimes;

use crate::kubernetes::Watch;
use crate::support::{InProcess, Reply, Setup, World, read_head, within};

const API: &str = "/apis/eventing.knative.dev/v1/namespaces/default";
const INGRESS: &str = "broker-ingress.knative-eventing.example.com";

/// What a function has got.
#[derive(Clone, Debug)]
struct Heard {
    /// In lower case.
    head: String,
    body: Vec<u8>,
}

impl Heard {
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
    }

    /// The service that it came to.
    fn service(&self) -> &str {
        self.field("host").and_then(|host| host.split('.').next()).unwrap_or_default()
    }
}

type Answer = Arc<dyn Fn(&Heard) -> String + Send + Sync>;

/// A runtime in which every function answers as said, and tells what it hears.
fn functions(answer: Answer) -> (Runtimes, mpsc::UnboundedReceiver<Heard>) {
    let (tell, heard) = mpsc::unbounded_channel();
    let serve = move |stream| serve(stream, Arc::clone(&answer), tell.clone());
    (Runtimes::new().with(InProcess::new(serve)), heard)
}

async fn serve(mut stream: TcpStream, answer: Answer, tell: mpsc::UnboundedSender<Heard>) {
    while let Some((head, mut body)) = read_head(&mut stream).await {
        let head = head.to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|text| text.lines().next());
        let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        while body.len() < length {
            if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let heard = Heard { head, body };
        let reply = answer(&heard);
        // The test may have heard enough.
        let _ = tell.send(heard);
        if reply.is_empty() {
            std::future::pending::<()>().await;
        }
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn says(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A reply that is an event.
fn event(kind: &str, body: &str) -> String {
    let fields = format!(
        "Ce-Specversion: 1.0\r\nCe-Id: {kind}-1\r\nCe-Source: /functions\r\nCe-Type: {kind}\r\n\
         Content-Type: text/plain\r\n"
    );
    says("200 OK", &fields, body)
}

fn nothing(_: &Heard) -> String {
    says("200 OK", "", "")
}

struct Stage {
    world: World,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Stage {
    async fn new(answer: impl Fn(&Heard) -> String + Send + Sync + 'static) -> Self {
        Self::with(answer, |_| {}).await
    }

    async fn with(
        answer: impl Fn(&Heard) -> String + Send + Sync + 'static,
        change: impl FnOnce(&mut Setup),
    ) -> Self {
        let (runtimes, heard) = functions(Arc::new(answer));
        let mut setup = Setup::of(runtimes);
        change(&mut setup);
        Self { world: setup.start().await, heard }
    }

    async fn services(&self, names: &[&str]) {
        for name in names {
            let (status, told) = self.world.apply(name, |_| {}).await;
            assert_eq!(status, 201, "{told}");
        }
    }

    async fn make(&self, kind: &str, name: &str, spec: Value) -> Value {
        let (status, told) = self.try_make(kind, name, spec).await;
        assert_eq!(status, 201, "{told}");
        told
    }

    async fn try_make(&self, kind: &str, name: &str, spec: Value) -> (u16, Value) {
        let document = json!({
            "apiVersion": "eventing.knative.dev/v1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        });
        let path = format!("{API}/{}s", kind.to_lowercase());
        self.world.api("POST", &path, Some(&document)).await
    }

    /// A trigger that leads events of a type to a service.
    async fn lead(&self, kind: &str, service: &str, more: Value) {
        let mut spec = json!({
            "broker": "default",
            "filter": {"attributes": {"type": kind}},
            "subscriber": to(service),
        });
        for (name, value) in more.as_object().cloned().unwrap_or_default() {
            spec[name] = value;
        }
        self.make("Trigger", &format!("{kind}-to-{service}"), spec).await;
    }

    /// Sends an event in binary mode.
    async fn send(&self, kind: &str, more: &str, body: &[u8]) -> Reply {
        let fields = format!(
            "Ce-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: /test\r\nCe-Type: {kind}\r\n{more}"
        );
        self.post("/default/default", &fields, body).await
    }

    async fn post(&self, path: &str, fields: &str, body: &[u8]) -> Reply {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {INGRESS}\r\nConnection: close\r\n{fields}\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.world.raw(&[head.as_bytes(), body].concat()).await
    }

    async fn next(&mut self) -> Heard {
        within(self.heard.recv()).await.expect("functions are there")
    }

    async fn metric(&self, line: &str) -> Option<f64> {
        let socket = &self.world.serving.addresses().socket;
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut wire = Vec::new();
        within(stream.read_to_end(&mut wire)).await.unwrap();
        let text = Reply::parse(&wire).text();
        let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        found.map(|value| value.parse().unwrap())
    }

    /// Waits until a metric has a value.
    async fn counts(&self, line: &str, wanted: f64) {
        within(async {
            while self.metric(line).await != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn is_drained(&self) {
        self.counts("vhive_eventing_pending", 0.0).await;
    }
}

fn to(service: &str) -> Value {
    json!({"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": service}})
}

fn ended(trigger: &str, outcome: &str) -> String {
    format!(
        "vhive_eventing_deliveries_total{{namespace=\"default\",broker=\"default\",\
         trigger=\"{trigger}\",outcome=\"{outcome}\"}}"
    )
}

#[tokio::test]
async fn a_chain_of_functions_is_run_by_what_they_reply() {
    let mut stage = Stage::new(|heard| match heard.service() {
        "a" => event("second", "from a"),
        "b" => event("third", "from b"),
        _ => says("202 Accepted", "Ce-Specversion: 1.0\r\n", "taken"),
    })
    .await;
    stage.services(&["a", "b", "c"]).await;
    stage.make("Broker", "default", json!({})).await;
    for (kind, service) in [("first", "a"), ("second", "b"), ("third", "c")] {
        stage.lead(kind, service, json!({})).await;
    }
    let trace = "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let more = format!("{trace}Content-Type: text/plain\r\nCe-Mine: %E2%82%AC\r\n");
    let accepted = stage.send("first", &more, b"begin").await;
    assert_eq!((accepted.status, accepted.text().as_str()), (202, ""));
    for (service, kind, body) in
        [("a", "first", "begin"), ("b", "second", "from a"), ("c", "third", "from b")]
    {
        let heard = stage.next().await;
        assert_eq!((heard.service(), heard.field("ce-type")), (service, Some(kind)));
        assert_eq!(heard.body, body.as_bytes());
        assert_eq!(heard.field("prefer"), Some("reply"));
        assert_eq!(heard.field("content-type"), Some("text/plain"));
        assert_eq!(heard.field("ce-knativebrokerttl"), None, "it is the brokers' own");
        assert!(heard.field("ce-knativearrivaltime").is_some(), "{heard:?}");
        assert!(heard.field("traceparent").is_some_and(|found| found.contains("0af7651916")));
        if service == "a" {
            assert_eq!(heard.field("ce-mine"), Some("%e2%82%ac"));
        }
    }
    stage.is_drained().await;
    let records = stage.world.records(|all| all.len() >= 3).await;
    assert_eq!(records.len(), 3, "each is an invocation like any other");
    let mut services: Vec<&str> = records.iter().map(|record| record.service.as_str()).collect();
    services.sort_unstable();
    assert_eq!(services, ["a", "b", "c"]);
    stage.counts(&ended("second-to-b", "delivered"), 1.0).await;
    let took = "kn_eventing_dispatch_duration_seconds_count{kn_broker_namespace=\"default\",\
                kn_broker_name=\"default\",kn_trigger_name=\"third-to-c\",outcome=\"2xx\"}";
    stage.counts(took, 1.0).await;
    stage.world.stop().await;
}

#[tokio::test]
async fn each_event_goes_to_whom_it_fits_exactly() {
    let mut stage = Stage::new(nothing).await;
    stage.services(&["typed", "any", "both", "prefixed"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.make("Broker", "other", json!({})).await;
    stage.lead("wanted", "typed", json!({})).await;
    stage.lead("all", "any", json!({"filter": null})).await;
    let both = json!({"attributes": {"type": "wanted", "mine": "x"}});
    stage.lead("wanted", "both", json!({"filter": both})).await;
    // Looked at instead of `filter`.
    let filters = json!([{"prefix": {"type": "want"}}, {"not": {"exact": {"mine": "x"}}}]);
    stage.lead("never", "prefixed", json!({"filters": filters})).await;
    for (kind, more, wanted) in [
        ("wanted", "", &["any", "prefixed", "typed"][..]),
        ("wanted", "Ce-Mine: x\r\n", &["any", "both", "typed"]),
        ("Wanted", "", &["any"]),
        ("wanted2", "Ce-Mine: x\r\n", &["any"]),
    ] {
        assert_eq!(stage.send(kind, more, b"").await.status, 202);
        let mut got = Vec::new();
        for _ in wanted {
            got.push(stage.next().await.service().to_owned());
        }
        got.sort_unstable();
        assert_eq!(got, wanted, "{kind} {more:?}");
        stage.is_drained().await;
    }
    // Nobody listens to that one, and it takes events nevertheless.
    let fields = "Ce-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: s\r\nCe-Type: wanted\r\n";
    assert_eq!(stage.post("/default/other", fields, b"").await.status, 202);
    assert!(stage.heard.try_recv().is_err(), "and nothing else came");
    stage.world.stop().await;
}

#[tokio::test]
async fn structured_events_arrive_in_binary_mode_and_what_is_no_event_is_told_why() {
    let mut stage = Stage::with(nothing, |setup| {
        setup.serving.eventing.max_event = vhive_api::Bytes(1000);
    })
    .await;
    stage.services(&["a"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.lead("t", "a", json!({})).await;
    let json = "Content-Type: application/cloudevents+json; charset=utf-8\r\n";
    let body = br#"{"specversion":"1.0","id":"7","source":"/s","type":"t","subject":"a b","data":{"n": 1.0}}"#;
    assert_eq!(stage.post("/default/default", json, body).await.status, 202);
    let heard = stage.next().await;
    assert_eq!((heard.field("ce-id"), heard.field("ce-subject")), (Some("7"), Some("a%20b")));
    assert_eq!(heard.field("content-type"), Some("application/json"));
    assert_eq!(heard.body, br#"{"n": 1.0}"#);

    let full = "Ce-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: s\r\nCe-Type: t\r\n";
    let batch = "Content-Type: application/cloudevents-batch+json\r\n";
    let old = full.replace("1.0", "0.3");
    let hostile = format!("{full}Ce-Mine: x%0d%0aEvil: 1\r\n");
    let long = vec![b'x'; 1001];
    for (path, fields, body, status, code, why) in [
        ("/default/default", "", &b"x"[..], 400, "malformed-event", "ce-specversion"),
        ("/default/default", batch, b"[]", 400, "malformed-event", "batch"),
        ("/default/default", json, b"{", 400, "malformed-event", "JSON"),
        ("/default/default", &old, b"", 400, "malformed-event", "1.0"),
        ("/default/default", &hostile, b"", 400, "malformed-event", "control"),
        ("/default/default", full, &long, 413, "event-too-large", "1000"),
        ("/default/none", full, b"", 404, "unknown-broker", "none"),
        ("/none/default", full, b"", 404, "unknown-broker", "none"),
        ("/", full, b"", 404, "unknown-broker", "namespace"),
    ] {
        let refused = stage.post(path, fields, body).await;
        let told = (refused.status, refused.header("x-vhive-error"));
        assert_eq!(told, (status, Some(code)), "{path} {fields:?}: {}", refused.text());
        assert!(refused.text().contains(why), "{}", refused.text());
    }
    let get = stage.world.request("GET", INGRESS, "", b"").await;
    assert_eq!((get.status, get.header("allow")), (405, Some("POST, OPTIONS")));
    let options = stage.world.request("OPTIONS", INGRESS, "", b"").await;
    assert_eq!((options.status, options.header("allow")), (200, Some("POST, OPTIONS")));
    // The cluster's own spelling, which producers are configured with.
    let local = "broker-ingress.knative-eventing.svc.cluster.local";
    let head = format!(
        "POST /default/default HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n{full}\
         Content-Length: 0\r\n\r\n"
    );
    assert_eq!(stage.world.raw(head.as_bytes()).await.status, 202);
    assert_eq!(stage.next().await.field("ce-type"), Some("t"));
    stage.world.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_as_often_as_asked_and_then_goes_to_the_dead_letters() {
    let mut stage = Stage::new(|heard| match (heard.service(), heard.field("ce-type")) {
        ("letters", _) => says("200 OK", "", ""),
        (_, Some("refused")) => says("400 Bad Request", "", "not mine"),
        (_, Some("confused")) => says("200 OK", "Ce-Specversion: 1.0\r\n", "no event"),
        (_, Some("text")) => says("200 OK", "Content-Type: text/plain\r\n", "fine"),
        _ => says("503 Service Unavailable", "", "no\r\nway"),
    })
    .await;
    stage.services(&["flaky", "letters"]).await;
    stage.make("Broker", "default", json!({"delivery": {"deadLetterSink": to("letters")}})).await;
    let delivery = json!({"retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT0.01S"});
    let more = json!({"filter": null, "delivery": delivery});
    stage.lead("every", "flaky", more).await;

    assert_eq!(stage.send("busy", "Ce-Knativebrokerttl: 9\r\n", b"data").await.status, 202);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let heard = stage.next().await;
        assert_eq!((heard.service(), heard.body.as_slice()), ("flaky", &b"data"[..]));
        ids.push(heard.field("x-request-id").unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "each try has the same identifier");
    let letter = stage.next().await;
    assert_eq!((letter.service(), letter.field("ce-type")), ("letters", Some("busy")));
    assert_eq!(letter.field("ce-knativeerrorcode"), Some("503"));
    assert_eq!(letter.field("ce-knativeerrordest"), Some("http://flaky.default.example.com"));
    // "no\r\nway" in base64; the heads here are in lower case.
    assert_eq!(letter.field("ce-knativeerrordata"), Some("bm8ncndheq=="));
    let told = (letter.field("ce-knativebrokerttl"), letter.body.as_slice());
    assert_eq!(told, (Some("8"), &b"data"[..]));
    stage.counts(&ended("every-to-flaky", "dead-lettered"), 1.0).await;

    // 400 says that it will not be otherwise next time.
    stage.send("refused", "", b"").await;
    assert_eq!(stage.next().await.service(), "flaky");
    let letter = stage.next().await;
    assert_eq!((letter.service(), letter.field("ce-knativeerrorcode")), ("letters", Some("400")));
    // A reply that begins as an event and is none has failed.
    stage.send("confused", "", b"").await;
    for _ in 0..3 {
        assert_eq!(stage.next().await.service(), "flaky");
    }
    assert_eq!(stage.next().await.field("ce-knativeerrorcode"), Some("502"));
    // Any other text is no event and none is asked for.
    stage.send("text", "", b"").await;
    assert_eq!(stage.next().await.service(), "flaky");
    stage.counts(&ended("every-to-flaky", "delivered"), 1.0).await;
    stage.is_drained().await;
    stage.world.stop().await;
}

#[tokio::test]
async fn without_a_dead_letter_sink_what_cannot_be_delivered_is_counted() {
    let mut stage = Stage::new(|_| says("500 Mine", "", "")).await;
    stage.services(&["a"]).await;
    stage.make("Broker", "default", json!({"delivery": {"retry": 0}})).await;
    stage.lead("t", "a", json!({})).await;
    stage.send("t", "", b"").await;
    stage.next().await;
    stage.counts(&ended("t-to-a", "dropped"), 1.0).await;
    stage.is_drained().await;
    assert!(stage.heard.try_recv().is_err());
    stage.world.stop().await;
}

#[tokio::test]
async fn what_is_dropped_is_told_of_its_trigger() {
    let mut stage = Stage::new(|_| says("500 Mine", "", "")).await;
    stage.services(&["a"]).await;
    stage.make("Broker", "default", json!({"delivery": {"retry": 0}})).await;
    stage.lead("t", "a", json!({})).await;
    let mut watch = Watch::begin(&stage.world, "/api/v1/events?watch=true&resourceVersion=0").await;
    for _ in 0..3 {
        stage.send("t", "", b"").await;
        stage.next().await;
    }
    let (_, trigger) = stage.world.api("GET", &format!("{API}/triggers/t-to-a"), None).await;
    let told = loop {
        let (_, event) = watch.next().await;
        let of = &event["involvedObject"];
        if of["uid"] == trigger["metadata"]["uid"] && event["count"].as_u64() >= Some(3) {
            break event;
        }
    };
    assert_eq!(told["count"], 3, "each once, whatever the number of reports");
    assert_eq!((&told["type"], &told["reason"]), (&json!("Warning"), &json!("EventDropped")));
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("http://a.default.example.com") && message.contains("500"), "{told}");

    // One whose hops are used up is told of the broker.
    stage.send("t", "Ce-Knativebrokerttl: 1\r\n", b"").await;
    let told = loop {
        let (_, event) = watch.next().await;
        if event["involvedObject"]["kind"] == "Broker" {
            break event;
        }
    };
    assert_eq!((&told["reason"], &told["count"]), (&json!("EventLooped"), &json!(1)));
    stage.world.stop().await;
}

#[tokio::test]
async fn a_loop_ends_when_its_hops_are_used_up() {
    let mut stage =
        Stage::with(|_| event("again", "x"), |setup| setup.serving.eventing.hops = 5).await;
    stage.services(&["a"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.lead("again", "a", json!({})).await;
    assert_eq!(stage.send("again", "", b"").await.status, 202);
    for _ in 0..5 {
        stage.next().await;
    }
    let looped = "vhive_eventing_events_total{namespace=\"default\",broker=\"default\",\
                  outcome=\"looped\"}";
    stage.counts(looped, 1.0).await;
    stage.is_drained().await;
    assert!(stage.heard.try_recv().is_err(), "no more than that");
    // One who brings an event that is used up is told so.
    let used = stage.send("again", "Ce-Knativebrokerttl: 1\r\n", b"").await;
    assert_eq!((used.status, used.header("x-vhive-error")), (400, Some("event-loop")));
    stage.world.stop().await;
}

#[tokio::test]
async fn a_circle_of_brokers_ends_as_well() {
    let mut stage = Stage::with(nothing, |setup| setup.serving.eventing.hops = 4).await;
    stage.services(&["a"]).await;
    let broker = |name: &str| json!({"ref": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "name": name}});
    stage.make("Broker", "default", json!({"delivery": {"retry": 0}})).await;
    stage.make("Broker", "other", json!({"delivery": {"retry": 0}})).await;
    stage.lead("t", "a", json!({})).await;
    stage.lead("t", "on", json!({"subscriber": broker("other")})).await;
    stage.lead("t", "back", json!({"broker": "other", "subscriber": broker("default")})).await;
    stage.send("t", "", b"").await;
    // At the first broker with 4 and with 2 hops left.
    for _ in 0..2 {
        assert_eq!(stage.next().await.service(), "a");
    }
    stage.counts(&ended("t-to-on", "delivered"), 2.0).await;
    stage.is_drained().await;
    assert!(stage.heard.try_recv().is_err());
    stage.world.stop().await;
}

#[tokio::test]
async fn a_full_queue_takes_no_more_and_says_when_to_come_again() {
    // The first one is never answered.
    let mut stage =
        Stage::with(|_| String::new(), |setup| setup.serving.eventing.max_pending = 2).await;
    stage.services(&["a", "b"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.lead("one", "a", json!({})).await;
    stage.lead("two", "a", json!({})).await;
    stage.lead("two", "b", json!({})).await;
    stage.lead("four", "b", json!({})).await;
    assert_eq!(stage.send("one", "", b"").await.status, 202);
    let full = stage.send("two", "", b"").await;
    let told = (full.status, full.header("x-vhive-error"), full.header("retry-after"));
    assert_eq!(told, (503, Some("event-queue-full"), Some("1")), "all or none: {}", full.text());
    assert_eq!(stage.send("three", "", b"").await.status, 202, "nobody wants it");
    // A trigger gets no more than it leaves to the others, and those find room.
    let greedy = stage.send("one", "", b"").await;
    assert_eq!(greedy.status, 503);
    assert!(greedy.text().contains("1 requests for the same service or trigger"), "{greedy:?}");
    assert_eq!(stage.send("four", "", b"").await.status, 202);
    assert_eq!(stage.metric("vhive_eventing_pending").await, Some(2.0));
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(stage.next().await.field("ce-type").unwrap().to_owned());
    }
    heard.sort();
    assert_eq!(heard, ["four", "one"]);
    stop_hard(stage.world).await;
}

#[tokio::test]
async fn a_subscriber_that_hangs_holds_up_its_own_events_only() {
    let answer = |heard: &Heard| match heard.service() {
        "hangs" => String::new(),
        _ => says("200 OK", "", ""),
    };
    let mut stage = Stage::with(answer, |setup| {
        setup.serving.eventing.concurrency = 3;
        setup.serving.eventing.per_trigger = 2;
    })
    .await;
    stage.services(&["hangs", "lives"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.lead("one", "hangs", json!({})).await;
    stage.lead("two", "lives", json!({})).await;
    for _ in 0..5 {
        assert_eq!(stage.send("one", "", b"").await.status, 202);
    }
    for _ in 0..2 {
        assert_eq!(stage.next().await.service(), "hangs");
    }
    for _ in 0..5 {
        assert_eq!(stage.send("two", "", b"").await.status, 202);
        assert_eq!(stage.next().await.service(), "lives");
    }
    stage.counts(&ended("two-to-lives", "delivered"), 5.0).await;
    assert_eq!(stage.metric("vhive_eventing_pending").await, Some(5.0));
    stop_hard(stage.world).await;
}

/// Ends a node without waiting for what it does.
async fn stop_hard(world: World) -> Arc<tempfile::TempDir> {
    let World { node, serving, dir } = world;
    serving.shutdown(vhive_node::Deadline::after(Duration::from_millis(50))).await;
    node.shutdown(vhive_node::Deadline::after(Duration::from_secs(5))).await.unwrap();
    dir
}

#[tokio::test]
async fn what_was_accepted_is_delivered_by_the_next_node() {
    // The second function of the chain hangs.
    let mut stage = Stage::new(|heard| match heard.service() {
        "a" => event("second", "from a"),
        _ => String::new(),
    })
    .await;
    stage.services(&["a", "b"]).await;
    stage.make("Broker", "default", json!({})).await;
    stage.lead("first", "a", json!({})).await;
    stage.lead("second", "b", json!({})).await;
    stage.send("first", "", b"begin").await;
    assert_eq!(stage.next().await.service(), "a");
    let before = stage.next().await;
    assert_eq!(before.service(), "b");
    let dir = stop_hard(stage.world).await;

    let (runtimes, heard) = functions(Arc::new(nothing));
    let mut stage = Stage { world: Setup::again(runtimes, dir).start().await, heard };
    let after = stage.next().await;
    assert_eq!((after.service(), after.body.as_slice()), ("b", &b"from a"[..]));
    assert_eq!(after.field("x-request-id"), before.field("x-request-id"));
    stage.is_drained().await;
    assert!(stage.heard.try_recv().is_err(), "what had been done is not done again");
    let (status, broker) = stage.world.api("GET", &format!("{API}/brokers/default"), None).await;
    assert_eq!((status, &broker["metadata"]["generation"]), (200, &json!(1)));
    stage.world.stop().await;
}

#[tokio::test]
async fn what_waits_follows_its_trigger_and_goes_with_it() {
    let mut stage = Stage::new(|heard| match heard.service() {
        "bad" => says("503 Service Unavailable", "", ""),
        _ => says("200 OK", "", ""),
    })
    .await;
    stage.services(&["bad", "good"]).await;
    stage.make("Broker", "default", json!({})).await;
    let delivery = json!({"retry": 1000, "backoffPolicy": "linear", "backoffDelay": "PT0S"});
    stage.lead("t", "bad", json!({"delivery": delivery})).await;
    stage.send("t", "", b"").await;
    assert_eq!(stage.next().await.service(), "bad");
    let patch = json!({"spec": {"subscriber": to("good")}});
    let path = format!("{API}/triggers/t-to-bad");
    merge(Path::new(&stage.world.serving.addresses().socket), &path, &patch).await;
    within(async { while stage.next().await.service() != "good" {} }).await;
    stage.is_drained().await;

    let patch = json!({"spec": {"subscriber": to("bad"), "delivery": {"backoffDelay": "PT1S"}}});
    merge(Path::new(&stage.world.serving.addresses().socket), &path, &patch).await;
    stage.send("t", "", b"").await;
    assert_eq!(stage.next().await.service(), "bad");
    assert_eq!(stage.world.api("DELETE", &path, None).await.0, 200);
    stage.is_drained().await;
    stage.world.stop().await;
}

async fn merge(socket: &Path, path: &str, patch: &Value) {
    let body = patch.to_string();
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/merge-patch+json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut wire = Vec::new();
    within(stream.read_to_end(&mut wire)).await.unwrap();
    let reply = Reply::parse(&wire);
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test]
async fn a_trigger_is_ready_when_what_it_names_is_there() {
    let stage = Stage::new(nothing).await;
    let ready = |object: &Value, wanted: &str, reason: Option<&str>| {
        let all = object["status"]["conditions"].as_array().unwrap();
        let found = all.iter().find(|one| one["type"] == "Ready").unwrap();
        assert_eq!(
            (&found["status"], found["reason"].as_str()),
            (&json!(wanted), reason),
            "{object}"
        );
    };
    let spec = json!({"broker": "default", "subscriber": to("a")});
    let trigger = stage.make("Trigger", "t", spec).await;
    ready(&trigger, "False", Some("BrokerDoesNotExist"));
    assert_eq!(trigger["metadata"]["labels"]["eventing.knative.dev/broker"], "default");
    let broker = stage.make("Broker", "default", json!({})).await;
    ready(&broker, "True", None);
    let url = "http://broker-ingress.knative-eventing.example.com/default/default";
    assert_eq!(broker["status"]["address"]["url"], url);
    let path = format!("{API}/triggers/t");
    let get = || stage.world.api("GET", &path, None);
    let (_, trigger) = get().await;
    ready(&trigger, "False", Some("SubscriberNotFound"));
    assert_eq!(trigger["status"]["subscriberUri"], Value::Null);
    stage.services(&["a"]).await;
    let (_, trigger) = get().await;
    ready(&trigger, "True", None);
    assert_eq!(trigger["status"]["subscriberUri"], "http://a.default.example.com");
    stage.world.api("DELETE", &format!("{API}/brokers/default"), None).await;
    ready(&get().await.1, "False", Some("BrokerDoesNotExist"));

    let (status, told) = stage.try_make("Trigger", "u", json!({"broker": "b"})).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("spec.subscriber")));
    assert_eq!(told["details"]["kind"], "Trigger");
    let mut moved = trigger.clone();
    moved["spec"]["broker"] = json!("other");
    moved["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (status, told) = stage.world.api("PUT", &path, Some(&moved)).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("spec.broker")));
    let (status, _) = stage.world.api("PUT", &path, Some(&trigger)).await;
    assert_eq!(status, 409, "it has changed since");
    let mut taken = crate::support::service("broker-ingress");
    taken["metadata"]["namespace"] = json!("knative-eventing");
    let services = "/apis/serving.knative.dev/v1/namespaces/knative-eventing/services";
    assert_eq!(stage.world.api("POST", services, Some(&taken)).await.0, 422);
    // Nor by a tag of another one, nor as a service that events are sent to.
    let mut tagged = crate::support::service("ingress");
    tagged["metadata"]["namespace"] = json!("knative-eventing");
    tagged["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100, "tag": "broker"}]);
    let (status, told) = stage.world.api("POST", services, Some(&tagged)).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("spec.traffic")));
    for delivery in [json!(null), json!({"deadLetterSink": to("broker-ingress")})] {
        let subscriber = if delivery.is_null() { to("broker-ingress") } else { to("a") };
        let document = json!({
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": "t", "namespace": "knative-eventing"},
            "spec": {"broker": "b", "subscriber": subscriber, "delivery": delivery},
        });
        let path = "/apis/eventing.knative.dev/v1/namespaces/knative-eventing/triggers";
        let (status, told) = stage.world.api("POST", path, Some(&document)).await;
        assert_eq!(status, 422, "{told}");
        let field = told["details"]["causes"][0]["field"].as_str().unwrap();
        assert!(field.ends_with("ref.name"), "{field}");
    }
    stage.world.stop().await;
}

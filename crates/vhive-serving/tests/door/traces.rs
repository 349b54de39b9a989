//! Traces: what functions and clients learn of them, and what collectors get.

pub(crate) mod collector;

use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use vhive_serving::OtlpProtocol;

use self::collector::{Collector, Manner, attributes};
use crate::support::{Setup, World, annotate, eventually, host, read_head, within};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// What makes a request go through hyper, and what leaves it on the short way.
const WAYS: [&str; 2] = ["", "TE: gzip\r\n"];

/// Replies with the head of its request.
async fn mirror(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        let Ok(()) = stream.write_all(reply.as_bytes()).await else { return };
    }
}

fn quick(mut setup: Setup) -> Setup {
    setup.serving.tracing.interval = vhive_api::Span(Duration::from_millis(5));
    setup
}

/// A door whose functions mirror, and its collector.
async fn mirrored(percent: f64) -> (World, Collector) {
    let collector = Collector::new(Manner::Takes).await;
    let mut setup = quick(Setup::with_functions(mirror));
    setup.serving.tracing.otlp = collector.url();
    setup.serving.tracing.sample_percent = percent;
    let world = setup.start().await;
    world.apply("mirror", |_| {}).await;
    (world, collector)
}

/// The fields of a trace context that the function saw.
fn seen(head: &str) -> Vec<(&str, &str)> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let of_trace = ["traceparent", "tracestate", "b3"];
    fields.filter(|(name, _)| of_trace.contains(name) || name.starts_with("x-b3-")).collect()
}

fn field<'a>(fields: &[(&'a str, &'a str)], name: &str) -> &'a str {
    fields.iter().find(|(n, _)| *n == name).map(|(_, value)| *value).expect("the field is there")
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

async fn spans(collector: &Collector, traces: usize) -> Vec<Span> {
    eventually(|| {
        let spans = collector.spans();
        let servers = spans.iter().filter(|span| span.kind() == SpanKind::Server).count();
        (servers >= traces).then_some(spans)
    })
    .await
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no span {name}: {:?}", names(spans)))
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// What became of the traces, by collector and by word.
async fn counted(world: &World, exporter: &str, what: &str) -> u64 {
    let text = crate::api::metrics(world).await;
    let name = format!("vhive_gateway_traces_total{{exporter=\"{exporter}\",what=\"{what}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn until_counted(world: &World, exporter: &str, what: &str, least: u64) {
    within(async {
        while counted(world, exporter, what).await < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_cold_trace_has_the_phases_of_the_start_and_a_warm_one_has_none() {
    let collector = Collector::new(Manner::Takes).await;
    let mut setup = quick(Setup::new());
    setup.serving.tracing.otlp = collector.url();
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    let context =
        format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=1\r\nTraceState: b=2\r\n");
    let cold = world.request("GET", &host("hello"), &context, b"").await;
    assert_eq!(cold.status, 200);
    let spans_of_cold = spans(&collector, 1).await;
    for span in &spans_of_cold {
        assert_eq!((hex(&span.trace_id), span.trace_state.as_str()), (TRACE.into(), "a=1,b=2"));
        assert_eq!(span.flags & 1, 1);
    }
    let server = named(&spans_of_cold, "GET hello.default");
    assert_eq!((server.kind(), hex(&server.parent_span_id)), (SpanKind::Server, SPAN.into()));
    assert_eq!((server.flags, &server.status), (0x301, &None));
    let told = format!("00-{TRACE}-{}-01", hex(&server.span_id));
    assert_eq!(cold.header("traceresponse"), Some(told.as_str()));
    let about = attributes(&server.attributes);
    assert_eq!(about["faas.coldstart"], Any::BoolValue(true));
    assert_eq!(about["http.response.status_code"], Any::IntValue(200));
    assert_eq!(about["faas.version"], Any::StringValue("hello-00001".to_owned()));
    assert_eq!(about["vhive.start"], Any::StringValue("boot".to_owned()));
    let id = cold.header("x-request-id").unwrap().to_owned();
    assert_eq!(about["faas.invocation_id"], Any::StringValue(id));

    let inside = |outer: &Span, inner: &Span| {
        assert_eq!(inner.parent_span_id, outer.span_id, "{}", inner.name);
        assert!(inner.start_time_unix_nano >= outer.start_time_unix_nano, "{}", inner.name);
        // Beginnings and lengths are cut to microseconds, each by itself.
        assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano + 2000, "{}", inner.name);
        assert!(inner.start_time_unix_nano <= inner.end_time_unix_nano, "{}", inner.name);
    };
    for name in ["queue", "start", "request"] {
        inside(server, named(&spans_of_cold, name));
    }
    let start = named(&spans_of_cold, "start");
    for name in ["vmm_spawn", "kernel_boot", "init", "function_ready"] {
        inside(start, named(&spans_of_cold, name));
    }
    // One span for each phase that the record has, and no other.
    let record = &world.records(|records| records.len() == 1).await[0];
    let told: Vec<_> = record.phases.iter().map(|span| span.phase.as_str()).collect();
    assert_eq!(told.len(), spans_of_cold.len(), "{told:?}, {:?}", names(&spans_of_cold));
    assert!(told[1..].iter().all(|phase| names(&spans_of_cold).contains(phase)), "{told:?}");
    let request = named(&spans_of_cold, "request");
    assert_eq!(request.kind(), SpanKind::Client);
    assert!(request.start_time_unix_nano >= start.end_time_unix_nano, "after the start");

    assert_eq!(world.get("hello").await.status, 200);
    let both = spans(&collector, 2).await;
    let warm: Vec<Span> = both.into_iter().filter(|span| hex(&span.trace_id) != TRACE).collect();
    assert_eq!(names(&warm), ["GET hello.default", "request"]);
    assert!(warm[0].parent_span_id.is_empty(), "the trace begins here");
    assert_eq!(attributes(&warm[0].attributes)["faas.coldstart"], Any::BoolValue(false));
    until_counted(&world, "otlp", "exported", 2).await;
    world.stop().await;
}

#[tokio::test]
async fn a_start_from_a_snapshot_is_told_with_its_memory() {
    let collector = Collector::new(Manner::Takes).await;
    let mut setup = quick(Setup::new());
    setup.serving.tracing.otlp = collector.url();
    let world = setup.start().await;
    let reap = |document: &mut Value| {
        annotate(document, "vhive.dev/snapshot-policy", "reap");
        document["spec"]["template"]["spec"]["containerConcurrency"] = Value::from(1);
    };
    world.apply("one", reap).await;
    for _ in 0..3 {
        assert_eq!(world.get("one").await.status, 200);
        let evict = "/vhive/v1/namespaces/default/services/one/evict";
        assert_eq!(within(world.api("POST", evict, None)).await.0, 200);
    }
    let spans = spans(&collector, 3).await;
    let kind = |span: &&Span| {
        let about = attributes(&span.attributes);
        span.name == "start" && about["vhive.start"] == Any::StringValue("reap".to_owned())
    };
    let start = spans.iter().find(kind).expect("a start from a snapshot");
    let about = attributes(&start.attributes);
    assert_eq!(about["vhive.memory.mode"], Any::StringValue("prefetch".to_owned()));
    assert_eq!(about["vhive.memory.prefetched_pages"], Any::IntValue(64));
    let below: Vec<Span> =
        spans.iter().filter(|span| span.parent_span_id == start.span_id).cloned().collect();
    for name in ["restore", "resume", "function_ready"] {
        named(&below, name);
    }
    world.stop().await;
}

#[tokio::test]
async fn a_function_sees_the_gateways_span_as_its_parent_in_the_form_that_the_client_speaks() {
    let (world, collector) = mirrored(0.0).await;
    let mut traces = 0;
    for way in WAYS {
        for (context, names) in [
            (
                format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: x=y\r\n"),
                vec!["traceparent", "tracestate"],
            ),
            (format!("b3: {TRACE}-{SPAN}-1\r\n"), vec!["traceparent", "b3"]),
            (
                format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1\r\n"),
                vec![
                    "traceparent",
                    "x-b3-traceid",
                    "x-b3-spanid",
                    "x-b3-parentspanid",
                    "x-b3-sampled",
                ],
            ),
        ] {
            let extra = format!("{way}{context}");
            let reply = world.request("GET", &host("mirror"), &extra, b"").await;
            traces += 1;
            let text = reply.text();
            let fields = seen(&text);
            assert_eq!(fields.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names, "{extra}");
            let all = spans(&collector, traces).await;
            let server = &all[all.iter().rposition(|s| s.kind() == SpanKind::Server).unwrap()];
            let mut of_it = all.iter().filter(|span| span.parent_span_id == server.span_id);
            let request = of_it.find(|span| span.name == "request").unwrap();
            let (ours, above) = (hex(&request.span_id), hex(&server.span_id));
            assert_eq!(hex(&server.parent_span_id), SPAN, "{extra}");
            assert_eq!(field(&fields, "traceparent"), format!("00-{TRACE}-{ours}-01"));
            match names[1] {
                "tracestate" => assert_eq!(field(&fields, "tracestate"), "x=y"),
                "b3" => assert_eq!(field(&fields, "b3"), format!("{TRACE}-{ours}-1-{above}")),
                _ => {
                    assert_eq!(field(&fields, "x-b3-traceid"), TRACE);
                    assert_eq!(field(&fields, "x-b3-spanid"), ours);
                    assert_eq!(field(&fields, "x-b3-parentspanid"), above);
                }
            }
            let told = format!("00-{TRACE}-{above}-01");
            assert_eq!(reply.header("traceresponse"), Some(told.as_str()));
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_malformed_context_is_dropped_and_a_new_trace_begun() {
    let (world, collector) = mirrored(100.0).await;
    let bad = [
        format!("traceparent: 00-{}-{SPAN}-01\r\n", "0".repeat(32)),
        format!("traceparent: ff-{TRACE}-{SPAN}-01\r\ntracestate: x=y\r\n"),
        "traceparent: \u{e4}\r\nb3: -\r\n".to_owned(),
        format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n"),
        format!("b3: {}\r\n", "9".repeat(5000)),
    ];
    let mut traces = 0;
    for way in WAYS {
        for context in &bad {
            let extra = format!("{way}{context}");
            let reply = world.request("GET", &host("mirror"), &extra, b"").await;
            assert_eq!(reply.status, 200, "{extra}");
            let text = reply.text();
            let parent = field(&seen(&text), "traceparent").to_owned();
            assert!(parent.len() == 55 && !parent.contains(TRACE), "{parent}");
            assert!(!seen(&text).iter().any(|(name, _)| *name == "tracestate"), "{text}");
            traces += 1;
        }
    }
    let all = spans(&collector, traces).await;
    let servers = all.iter().filter(|span| span.kind() == SpanKind::Server);
    assert!(servers.clone().all(|span| span.parent_span_id.is_empty()));
    let ids: std::collections::BTreeSet<_> = servers.map(|span| &span.trace_id).collect();
    assert_eq!(ids.len(), traces, "each request has a trace of its own");
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_sampled_goes_on_untouched_and_is_told_to_nobody() {
    let contexts = [
        format!("traceparent: 00-{TRACE}-{SPAN}-00\r\ntracestate: x=y\r\n"),
        format!("b3: {TRACE}-{SPAN}-0\r\n"),
        "b3: 0\r\n".to_owned(),
        format!("x-b3-traceid: {TRACE}\r\nx-b3-spanid: {SPAN}\r\nx-b3-sampled: 0\r\n"),
        String::new(),
    ];
    let (sampling, collector) = mirrored(0.0).await;
    let off = Setup::with_functions(mirror).start().await;
    off.apply("mirror", |_| {}).await;
    let sampled = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\n");
    for way in WAYS {
        for (world, context) in contexts
            .iter()
            .flat_map(|context| [(&sampling, context), (&off, context)])
            .chain([(&off, &sampled), (&off, &"traceparent: nonsense\r\n".to_owned())])
        {
            let extra = format!("{way}{context}");
            let reply = world.request("GET", &host("mirror"), &extra, b"").await;
            let text = reply.text();
            let went_on: String =
                seen(&text).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            assert_eq!(&went_on, context, "{extra}");
            assert_eq!(reply.header("traceresponse"), None);
        }
    }
    let dir = sampling.dir.clone();
    sampling.stop().await;
    assert_eq!(names(&collector.spans()), [""; 0], "a drain sends all that there is");
    drop(dir);
    off.stop().await;
}

#[tokio::test]
async fn zipkin_and_grpc_collectors_get_the_same_traces_also_at_a_drain() {
    let (zipkin, grpc) = (Collector::new(Manner::Takes).await, Collector::new(Manner::Takes).await);
    let mut setup = Setup::new();
    // Nothing is sent before the drain.
    setup.serving.tracing.interval = vhive_api::Span(Duration::from_secs(3600));
    setup.serving.tracing.zipkin = zipkin.url();
    setup.serving.tracing.otlp = grpc.url();
    setup.serving.tracing.otlp_protocol = OtlpProtocol::Grpc;
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    let context = format!("X-B3-TraceId: {}\r\nX-B3-SpanId: {SPAN}\r\n", &TRACE[16..]);
    assert_eq!(world.request("GET", &host("hello"), &context, b"").await.status, 200);
    world.stop().await;
    let (json, spans) = (zipkin.zipkin(), grpc.spans());
    assert_eq!(json.len(), spans.len());
    for (json, span) in json.iter().zip(&spans) {
        assert_eq!(json["name"], span.name);
        assert_eq!(json["traceId"], TRACE[16..], "a trace of 64 bits stays one");
        assert_eq!(hex(&span.trace_id), format!("{}{}", "0".repeat(16), &TRACE[16..]));
        assert_eq!(json["id"], hex(&span.span_id));
        assert_eq!(json["parentId"], hex(&span.parent_span_id));
        let micros = span.end_time_unix_nano / 1000 - span.start_time_unix_nano / 1000;
        assert_eq!(json["timestamp"], span.start_time_unix_nano / 1000);
        assert_eq!(json["duration"], micros.max(1));
        assert_eq!(json["localEndpoint"]["serviceName"], "vhive");
        assert!(json["tags"].as_object().unwrap().values().all(Value::is_string), "{json}");
    }
    let request = json.iter().find(|span| span["kind"] == "CLIENT").unwrap();
    assert_eq!(request["remoteEndpoint"]["serviceName"], "hello");
    let server = json.iter().find(|span| span["kind"] == "SERVER").unwrap();
    assert_eq!(server["tags"]["http.response.status_code"], "200");
}

#[tokio::test]
async fn a_request_that_fails_is_an_error_with_its_reason() {
    let collector = Collector::new(Manner::Takes).await;
    let mut setup = quick(Setup::new());
    setup.serving.tracing.otlp = collector.url();
    let world = setup.start().await;
    world
        .apply("broken", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                serde_json::json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:boot"}]);
        })
        .await;
    let reply = world.get("broken").await;
    assert_eq!(reply.status, 502);
    let spans = spans(&collector, 1).await;
    let status = spans[0].status.clone().unwrap();
    assert_eq!((status.code(), status.message.is_empty()), (StatusCode::Error, false));
    let told = format!("00-{}-{}-01", hex(&spans[0].trace_id), hex(&spans[0].span_id));
    assert_eq!(reply.header("traceresponse"), Some(told.as_str()));
    world.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_slow_or_gone_costs_traces_and_no_request() {
    // It accepts and never answers: the queue fills.
    let hangs = Collector::new(Manner::Hangs).await;
    let mut setup = quick(Setup::new());
    let tracing = &mut setup.serving.tracing;
    (tracing.queue, tracing.batch, tracing.otlp) = (4, 2, hangs.url());
    tracing.timeout = vhive_api::Span(Duration::from_secs(3600));
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    for _ in 0..40 {
        assert_eq!(world.get("hello").await.status, 200);
    }
    // One batch is under way and one queue is full; which records came first is open.
    until_counted(&world, "otlp", "dropped", 40 - 4 - 2).await;
    assert_eq!(counted(&world, "otlp", "exported").await, 0);
    assert_eq!(counted(&world, "otlp", "failed").await, 0);
    let before = tokio::time::Instant::now();
    world.stop().await;
    assert!(before.elapsed() < Duration::from_secs(15), "a drain does not wait for it");

    // It is not there at all.
    let port = tokio::net::TcpSocket::new_v4().unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = Some(format!("http://{}", port.local_addr().unwrap()));
    let mut setup = quick(Setup::new());
    (setup.serving.tracing.otlp, setup.serving.tracing.zipkin) = (gone.clone(), gone);
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    for _ in 0..5 {
        assert_eq!(world.get("hello").await.status, 200);
    }
    until_counted(&world, "otlp", "failed", 5).await;
    until_counted(&world, "zipkin", "failed", 5).await;
    world.stop().await;

    // It fails, it takes only a part, it does not answer in time, and then it is well again.
    let ill = Collector::new(Manner::Fails).await;
    let mut setup = quick(Setup::new());
    setup.serving.tracing.otlp = ill.url();
    setup.serving.tracing.timeout = vhive_api::Span(Duration::from_millis(100));
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    for (n, manner) in [(1, Manner::Fails), (2, Manner::Rejects), (3, Manner::Hangs)] {
        *ill.manner.lock().unwrap() = manner;
        assert_eq!(world.get("hello").await.status, 200);
        until_counted(&world, "otlp", "failed", n).await;
    }
    *ill.manner.lock().unwrap() = Manner::Takes;
    assert_eq!(world.get("hello").await.status, 200);
    until_counted(&world, "otlp", "exported", 1).await;
    assert_eq!(counted(&world, "otlp", "dropped").await, 0);
    world.stop().await;
}

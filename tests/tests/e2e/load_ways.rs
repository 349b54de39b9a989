//! `vhive load`'s ways of sending, from their command lines, against a server of HTTP/2: what each
//! writes, also when it is interrupted. Nothing of vHive is on the other side.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vhive_tests::node::{command, vhive};

use crate::load::{at, text};
use crate::scene::{Dir, code, said};

/// Bytes as field 1 of a message; all here are shorter than 128 bytes.
fn field(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    [&[0x0a, length], bytes].concat()
}

/// A descriptor set of `shop.Till`, whose method `Ring` takes an item with a count.
fn set() -> Vec<u8> {
    let item = b"\x0a\x0aitem.proto\x12\x04shop\x22\x15\x0a\x04Item\x12\x0d\x0a\x05count\x18\x01\x20\x01\x28\x05b\x06proto3";
    let till = b"\x0a\x0atill.proto\x12\x04shop\x1a\x0aitem.proto\x32\x26\x0a\x04Till\x12\x1e\x0a\x04Ring\x12\x0a.shop.Item\x1a\x0a.shop.Itemb\x06proto3";
    [field(item), field(till)].concat()
}

/// Greets, does work in 7 µs and 8 KiB, and rings for three items and who has the key; counts requests.
fn server() -> (String, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    listener.set_nonblocking(true).expect("set");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                let answer = move |request| answer(request, Arc::clone(&counted));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
    });
    (address, count)
}

async fn answer(
    request: Request<Incoming>,
    counted: Arc<AtomicU64>,
) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
    counted.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let knows = request.headers().get("x-key").is_some_and(|key| key == "k");
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (reply, status) = match path.as_str() {
        "/helloworld.Greeter/SayHello" => (&b"\0\0\0\0\x0b\x0a\x09Hello|123"[..], "0"),
        "/faas.Executor/Execute" => (&b"\0\0\0\0\x04\x10\x07\x18\x08"[..], "0"),
        "/shop.Till/Ring" if knows && body[..] == b"\0\0\0\0\x02\x08\x03"[..] => (&body[..], "0"),
        "/" => (&b"ok 55"[..], "0"),
        _ => (&b""[..], "12"),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().expect("a value"));
    let body = Full::new(Bytes::copy_from_slice(reply));
    Ok(Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()))
}

fn put(dir: &Dir, name: &str, value: &Value) -> String {
    fs::write(dir.path().join(name), value.to_string()).expect("written");
    at(dir, name)
}

/// A list of one endpoint at the server.
fn endpoints(dir: &Dir, address: &str) -> String {
    let one = json!({"hostname": "f.default.test", "eventing": false, "address": address});
    put(dir, "endpoints.json", &json!([one]))
}

fn sent(dir: &Dir, args: &[&str]) -> Value {
    let done = vhive(dir.path(), &[&["-o", "json", "load"], args].concat()).expect("runs");
    assert_eq!(code(&done), 0, "{args:?}: {}", said(&done));
    serde_json::from_slice(&done.stdout).expect("JSON")
}

/// How many there are of a file's lines, and whether all have so many columns as the first.
fn table(path: &Path) -> (usize, bool) {
    let text = text(path);
    let columns = |line: &str| line.split(',').count();
    let first = text.lines().next().map_or(0, columns);
    (text.lines().count(), text.ends_with('\n') && text.lines().all(|line| columns(line) == first))
}

#[test]
fn e2e_load_sends_in_each_way_and_writes_what_it_says() {
    let dir = Dir::new("load-ways");
    let (address, count) = server();
    let (endpoints, out) = (endpoints(&dir, &address), at(&dir, "out"));
    fs::write(dir.path().join("set.pb"), set()).expect("written");
    let to = ["--endpoints", &endpoints, "--out", &out];

    // Closed loop; what functions say of themselves is the last word.
    let closed = ["closed", "--clients", "2", "--time", "1", "--protocol", "h2c"];
    let told = sent(&dir, &[&closed[..], &to, &["-profile", "-durf", "mine.csv"]].concat());
    let ok = told["outcomes"]["ok"].as_u64().expect("a number");
    assert!(ok > 10 && told["sent"] == ok && told["function"]["count"] == ok, "{told}");
    assert_eq!(count.load(Ordering::Relaxed), ok);
    let lines = text(&dir.path().join("out/mine.csv"));
    assert!(lines.lines().count() as u64 == ok && lines.lines().all(|line| line == "55"));

    // A sweep up to where it may go, by a plan in a file.
    let plan = "from = 20\nmost = 40\nreplies = 20\ntime = '1s'\nwithin = 1000.0\nprotocol = 'grpc'\nrps = 1\n";
    fs::write(dir.path().join("bad.toml"), plan).expect("written");
    fs::write(dir.path().join("plan.toml"), plan.replace("rps = 1\n", "")).expect("written");
    let bad = vhive(dir.path(), &["load", "sweep", "--plan", &at(&dir, "bad.toml")]).expect("runs");
    assert!(code(&bad) == 2 && said(&bad).contains("--rps"), "{}", said(&bad));
    let plan = at(&dir, "plan.toml");
    // Whether a rate holds is a matter of how busy this host is.
    let args = [&["-o", "json", "load", "sweep", "--plan", &plan][..], &to].concat();
    let done = vhive(dir.path(), &args).expect("runs");
    let told: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let first = &told["steps"][0];
    assert_eq!((&first["rate"], &first["failed"]), (&20.0.into(), &0.into()), "{}", said(&done));
    let kept: Value =
        serde_json::from_str(&text(&dir.path().join("out/sweep.json"))).expect("JSON");
    let command: Vec<&str> =
        kept["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(command.contains(&"--within=1000") && kept["steps"] == told["steps"], "{kept}");

    // Any method of gRPC, with its metadata, by a descriptor set.
    let (set, method) = (at(&dir, "set.pb"), "shop.Till/Ring");
    let ring =
        ["rps", "-rps", "50", "-time", "1", "--grpc-method", method, "--descriptor-set", &set];
    let told =
        sent(&dir, &[&ring[..], &to, &["--data", r#"{"count":3}"#, "-H", "x-key: k"]].concat());
    assert_eq!(told["outcomes"]["ok"], 50, "{told}");
}

/// A configuration of the loader: `more` beside what all have.
fn config(dir: &Dir, name: &str, more: Value) -> String {
    let mut config = json!({"InvokeProtocol": "grpc", "ExperimentDuration": 1, "Granularity": "second",
        "OutputPathPrefix": at(dir, &format!("{name}/run")), "IATDistribution": "equidistant"});
    let Value::Object(more) = more else { unreachable!("an object") };
    config.as_object_mut().expect("an object").extend(more);
    put(dir, &format!("{name}.json"), &config)
}

#[test]
fn e2e_load_replays_each_form_of_trace() {
    let dir = Dir::new("load-forms");
    let (address, _) = server();
    let endpoints = endpoints(&dir, &address);
    let replay = |config: &str, more: &[&str]| {
        let args = ["trace", "-config", config, "--endpoints", &endpoints];
        sent(&dir, &[&args[..], more].concat())
    };
    // A rate with a share of cold starts: 20 a second, of which 2 are of 4 functions.
    let rps = config(
        &dir,
        "rps",
        json!({"TracePath": "RPS", "RpsTarget": 20, "WarmupDuration": 1,
        "RpsColdStartRatioPercentage": 10, "RpsCooldownSeconds": 2, "RpsRuntimeMs": 3, "RpsMemoryMB": 4}),
    );
    let told = replay(&rps, &[]);
    assert_eq!((&told["planned"], &told["outcomes"]["ok"]), (&40.into(), &40.into()), "{told}");
    let csv = dir.path().join("rps/run_duration_1.csv");
    assert_eq!(table(&csv), (41, true));
    let csv = text(&csv);
    let phases =
        ["1,", "2,"].map(|phase| csv.lines().filter(|line| line.starts_with(phase)).count());
    assert_eq!(phases, [20, 20], "warm-up and experiment: {csv}");
    assert!(
        csv.lines().skip(1).all(|line| line.contains(",3000,") && line.ends_with(",8")),
        "{csv}"
    );
    assert_eq!(csv.matches("cold-function-").count(), 4, "{csv}");

    // Exact times of 2021, written to files of their own, and read from them.
    let trace = "app,func,end_timestamp,duration\na,f,0.375,0.25\na,f,0.5,0.0625\nb,g,0.875,0.125\nb,g,1.5,0.25\n";
    fs::write(dir.path().join("exact.csv"), trace).expect("written");
    let exact = config(&dir, "exact", json!({"TracePath": at(&dir, "exact.csv")}));
    let told = replay(&exact, &["-dryRun"]);
    assert_eq!((&told["invocations"], &told["functions"][1]["counts"]), (&3.into(), &json!([1])));
    let iat = at(&dir, "iat");
    let written = vhive(
        dir.path(),
        &["load", "trace", "-config", &exact, "-iatGeneration", "--iat-dir", &iat],
    );
    assert_eq!(code(&written.expect("runs")), 0);
    let first = dir.path().join("iat/iat0.json");
    let mut arrivals: Value = serde_json::from_str(&text(&first)).expect("JSON");
    assert_eq!(arrivals["IAT"], json!([125_000.0, 312_500.0]));
    arrivals["IAT"] = json!([200_000.0, 900_000.0]);
    fs::write(&first, arrivals.to_string()).expect("written");
    let failure = json!({"FailureEnabled": true, "FailAt": 0, "FailComponent": "command",
        "FailCommand": "echo broken"});
    let failure = put(&dir, "failure.json", &failure);
    let args = ["load", "trace", "-config", &exact, "--endpoints", &endpoints, "-generated"];
    let more = ["--iat-dir", &iat, "-failureConfig", &failure];
    let done = vhive(dir.path(), &[&args[..], &more].concat()).expect("runs");
    assert!(code(&done) == 0 && said(&done).contains("1 arrivals in"), "{}", said(&done));
    let csv = text(&dir.path().join("exact/run_duration_1.csv"));
    assert_eq!(csv.matches(",min0.inv").count(), 2, "one is behind the end: {csv}");
    let failures = text(&dir.path().join("exact/run_rows_1/failures.json"));
    assert!(failures.contains("\"said\": \"broken\""), "{failures}");
}

/// Starts it, interrupts it once the server has seen some requests, and gives what came of it.
fn interrupted(dir: &Dir, count: &AtomicU64, args: &[&str]) -> Output {
    let before = count.load(Ordering::Relaxed);
    let mut command = command(dir.path()).expect("a binary");
    command.args(["-o", "json", "load"]).args(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let (begun, (_hold, ticks)) = (Instant::now(), std::sync::mpsc::channel::<()>());
    while count.load(Ordering::Relaxed) < before + 20 && begun.elapsed() < Duration::from_secs(60) {
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    child.wait_with_output().expect("ended")
}

#[test]
fn e2e_load_that_is_interrupted_in_any_way_leaves_whole_files() {
    let dir = Dir::new("load-stops");
    let (address, count) = server();
    let (endpoints, out) = (endpoints(&dir, &address), at(&dir, "out"));
    let to = ["--endpoints", &endpoints, "--out", &out];

    let closed = ["closed", "--clients", "2", "--time", "600"];
    let done = interrupted(&dir, &count, &[&closed[..], &to].concat());
    assert_eq!(code(&done), 0, "{}", said(&done));
    let told: Value = serde_json::from_slice(&done.stdout).expect("a summary");
    let rows = text(&dir.path().join("out/rows.jsonl"));
    assert_eq!(told["sent"], rows.lines().count());
    assert!(rows.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    let sent = told["sent"].as_u64().expect("a number");
    assert_eq!(table(&dir.path().join("out/rows.csv")).0 as u64, 1 + sent);

    let done = interrupted(&dir, &count, &[&["sweep", "--time", "60"][..], &to].concat());
    assert_eq!(code(&done), 1, "there is no knee: {}", said(&done));
    let told: Value =
        serde_json::from_str(&text(&dir.path().join("out/sweep.json"))).expect("JSON");
    assert_eq!((&told["stopped"], &told["knee"]), (&true.into(), &Value::Null), "{told}");

    let more = json!({"TracePath": "RPS", "RpsTarget": 100, "ExperimentDuration": 600});
    let trace = config(&dir, "trace", more.clone());
    let args = ["trace", "-config", &trace, "--endpoints", &endpoints];
    let done = interrupted(&dir, &count, &args);
    assert_eq!(code(&done), 0, "{}", said(&done));
    let told: Value = serde_json::from_slice(&done.stdout).expect("a summary");
    let [sent, unsent] = ["sent", "unsent"].map(|key| told[key].as_u64().expect("a number"));
    assert_eq!((told["planned"].as_u64(), sent + unsent), (Some(60_000), 60_000), "{told}");
    let (lines, whole) = table(&dir.path().join("trace/run_duration_600.csv"));
    assert!(lines as u64 == 1 + sent && whole, "{lines} lines of {sent} requests");

    let base = config(&dir, "base", more);
    let studies =
        json!({"BaseConfigPath": base, "Studies": [{"Name": "s", "OutputDir": at(&dir, "multi")}]});
    let studies = put(&dir, "studies.json", &studies);
    let args = ["experiments", "--studies", &studies, "--endpoints", &endpoints];
    let done = interrupted(&dir, &count, &args);
    assert!(code(&done) == 1 && said(&done).contains("run it again to go on"), "{}", said(&done));
    let (lines, whole) = table(&dir.path().join("multi/s/s/experiment_duration_600.csv"));
    assert!(lines > 1 && whole && !dir.path().join("multi/s/s/done.json").exists());
}

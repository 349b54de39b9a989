//! The functions themselves, run as ordinary processes: known requests get the known replies, bad
//! ones get an error, and the function lives on.

#![expect(clippy::panic, reason = "the helpers of a test fail by panicking")]

mod client;
mod images;
mod inputs;
mod process;

use std::fs;

use client::{Client, Raw};
use inputs::Compare;
use process::{Running, start};
use serde_json::Value;
use vhive_api::Protocol;
use vhive_serving::Config;
use vhive_serving::admission::{admit, documents};

/// Requests that no function accepts: what is sent, and the statuses that may come back.
///
/// No status at all (the connection is closed) is right for what is not HTTP.
const HOSTILE: &[(&str, &[u8], &[u16])] = &[
    ("broken JSON", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 2\r\n\r\n{\"", &[400]),
    ("JSON that ends early", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 1\r\n\r\n[", &[400]),
    ("no UTF-8", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 4\r\n\r\n\"\xff\xfe\"", &[400]),
    ("not a number", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 3\r\n\r\nNaN", &[400]),
    ("length in words", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: two\r\n\r\n", &[400]),
    ("negative length", b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: -1\r\n\r\n", &[400]),
    (
        "more than is accepted",
        b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 99999999999\r\n\r\n",
        &[413],
    ),
    (
        "a length beyond all numbers",
        b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        &[400, 413],
    ),
    (
        "a chunk size that is none",
        b"POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        &[400, 413],
    ),
    (
        "two lengths",
        b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
        &[400],
    ),
    ("another path", b"GET /nope HTTP/1.1\r\nHost: f\r\n\r\n", &[404]),
    ("another method", b"DELETE / HTTP/1.1\r\nHost: f\r\n\r\n", &[405]),
    ("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 hello there\r\n\r\n", &[400]),
    (
        "an HTTP/2 preface, then nonsense",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxx",
        &[400],
    ),
];

/// Starts `name`, sends what its `requests.toml` says, then what nobody should send: the table
/// above, and `refused`, bodies that this function must answer with status 400.
async fn check(name: &str, refused: &[&str]) {
    let Some(function) = start(name).await else { return };
    expect_known_replies(&function).await;
    for (what, request, allowed) in HOSTILE {
        let mut raw = Raw::connect(function.address).await;
        raw.send(request).await;
        let status = raw.status().await;
        let may_close = *allowed == [400];
        assert!(
            status.map_or(may_close, |status| allowed.contains(&status)),
            "{name}: {what} got {status:?}, expected {allowed:?}"
        );
    }
    let long = [b"GET / HTTP/1.1\r\nX: ", vec![b'x'; 1 << 20].as_slice()].concat();
    let mut raw = Raw::connect(function.address).await;
    raw.send(&long).await;
    assert!(matches!(raw.status().await, Some(431 | 400) | None), "{name}: endless header");
    let mut client = Client::http1(function.address).await;
    let deep = "[".repeat(200_000);
    for body in refused.iter().copied().chain([deep.as_str()]) {
        let reply = client.post("/", "application/json", body.as_bytes()).await;
        assert_eq!(reply.status, 400, "{name}: {} got {}", head(body), reply.text());
        let error: Value = serde_json::from_slice(&reply.body).expect("errors are JSON");
        assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()), "{}", reply.text());
    }
    // Half a request, and an open connection that says nothing, keep nobody waiting.
    let _idle = Raw::connect(function.address).await;
    let mut half = Raw::connect(function.address).await;
    half.send(b"POST / HTTP/1.1\r\nHost: f\r\nContent-Length: 20\r\n\r\n{").await;
    expect_known_replies(&function).await;
    expect_http_manners(&function).await;
    function.stop().await;
}

async fn expect_known_replies(function: &Running) {
    let inputs = inputs::of(&function.name);
    assert!(inputs.request.len() >= 2, "{}: record and replay", function.name);
    let mut client = Client::http1(function.address).await;
    for request in &inputs.request {
        let body = fs::read(function.dir.join(&request.body)).expect("the body is a file");
        let expected = fs::read(function.dir.join(&request.expected)).expect("it is a file");
        assert_eq!(request.method, "POST");
        let reply = client.post(&request.path, &request.content_type, &body).await;
        let what = format!("{} {}: {}", function.name, request.name, reply.text());
        assert_eq!(reply.status, 200, "{what}");
        match request.compare {
            Compare::Exact => assert_eq!(reply.body, expected, "{what}"),
            Compare::JsonSubset => {
                let reply: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
                let expected: Value = serde_json::from_slice(&expected).expect("it is JSON");
                for (key, value) in expected.as_object().expect("a subset is an object") {
                    assert_eq!(&reply[key], value, "{what}");
                }
            }
        }
    }
    if inputs.greeting.is_empty() {
        return;
    }
    let mut client = Client::http2(function.address).await;
    for greeting in &inputs.greeting {
        assert_eq!(client.say_hello(&greeting.name).await, Ok(greeting.message.clone()));
    }
}

async fn expect_http_manners(function: &Running) {
    let first = &inputs::of(&function.name).request[0];
    let body = fs::read(function.dir.join(&first.body)).expect("the body is a file");
    let mut client = Client::http1(function.address).await;
    let help = client.get("/").await;
    assert_eq!((help.status, help.body.starts_with(b"POST /")), (200, true), "{}", help.text());

    // Two requests at once on one connection: one in pieces, one of known length.
    let mut raw = Raw::connect(function.address).await;
    let mut both = b"POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for piece in body.chunks(1000) {
        both.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        both.extend_from_slice(piece);
        both.extend_from_slice(b"\r\n");
    }
    both.extend_from_slice(b"0\r\n\r\nGET / HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n");
    raw.send(&both).await;
    let replies = raw.rest().await;
    let count = replies.matches("HTTP/1.1 200 OK\r\n").count();
    assert_eq!(count, 2, "{}: {replies}", function.name);
    assert!(replies.ends_with(&help.text()), "{}: {replies}", function.name);
}

async fn check_greeter(name: &str) {
    let Some(function) = start(name).await else { return };
    let mut client = Client::http2(function.address).await;
    let long = "x".repeat(9 << 20);
    for (frame, code) in [
        (&b""[..], 3),
        (b"\0\0\0\0", 3),
        (b"\0\0\0\0\x05\x0a\x09", 3),
        (b"\0\xff\xff\xff\xff\x0a\x01x", 3),
        (b"\0\0\0\0\x02\x0a\x09", 3),
        (b"\0\0\0\0\x03\x0a\x01\xff", 3),
        (b"\x01\0\0\0\0", 12),
        (long.as_bytes(), 8),
    ] {
        let failure = client.call("/helloworld.Greeter/SayHello", frame).await.err();
        let shown = String::from_utf8_lossy(&frame[..frame.len().min(20)]);
        assert_eq!(failure.map(|f| f.0), Some(code), "{name}: {shown:?}");
    }
    let unknown = client.call("/helloworld.Greeter/SayGoodbye", b"\0\0\0\0\0").await;
    assert_eq!(unknown.err().map(|f| f.0), Some(12), "{name}");
    // vSwarm's clients add field 15; unknown fields are skipped.
    let reply =
        client.call("/helloworld.Greeter/SayHello", b"\0\0\0\0\x07\x0a\x02hi\x7a\x01m").await;
    assert_eq!(reply.as_deref(), Ok(&b"\x0a\x0aHello, hi!"[..]), "{name}");
    // The same port takes plain HTTP over HTTP/2, more than one request at a time.
    let mut other = Client::http1(function.address).await;
    let (two, one) = tokio::join!(client.post("/", "application/json", b"["), other.get("/"));
    assert_eq!((two.status, one.status), (400, 200), "{name}");
    function.stop().await;
}

/// The beginning of a body, for messages.
fn head(body: &str) -> &str {
    body.get(..60).unwrap_or(body)
}

#[tokio::test]
async fn hello_greets() {
    check("hello", &[r#"{"name":7}"#, r#"{"nome":"x"}"#, "null", "7"]).await;
}

#[tokio::test]
async fn hello_greets_over_grpc() {
    check_greeter("hello").await;
}

#[tokio::test]
async fn sleep_uses_what_is_asked_for() {
    let refused = [
        r#"{"cpu_ms":-1}"#,
        r#"{"cpu_ms":1.5}"#,
        r#"{"cpu_ms":600001}"#,
        r#"{"idle_ms":18446744073709551615}"#,
        r#"{"cpu_ms":18446744073709551616}"#,
        r#"{"memory_mib":1000000000}"#,
        r#"{"memory_mib":18446744073709551615}"#,
    ];
    check("sleep", &refused).await;
    let Some(function) = start("sleep").await else { return };
    let mut client = Client::http1(function.address).await;
    let reply = client.get("/?cpu_ms=30&idle_ms=20&memory_mib=1").await;
    let reply: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let (cpu, wall) = (reply["measured_cpu_ms"].as_f64(), reply["measured_wall_ms"].as_f64());
    assert!(cpu >= Some(30.0) && cpu < Some(60.0) && wall >= Some(50.0), "{reply}");
    for bad in ["/?cpu_ms=-1", "/?cpu_ms", "/?cpu_ms=x", "/?zzz=1", "/?cpu_ms=1&", "/?&&&"] {
        assert_eq!(client.get(bad).await.status, 400, "{bad}");
    }
    function.stop().await;
}

#[tokio::test]
async fn trace_func_does_the_work_and_tells_its_drift() {
    let refused = [
        r#"{"cpu_ms":-1}"#,
        r#"{"cpu_ms":1.5}"#,
        r#"{"cpu_ms":600001}"#,
        r#"{"idle_ms":1}"#,
        r#"{"memory_mib":1000000000}"#,
        r#"{"memory_mib":18446744073709551615}"#,
    ];
    check("trace-func", &refused).await;
    let Some(function) = start("trace-func").await else { return };
    let mut client = Client::http1(function.address).await;
    let reply = client.get("/?cpu_ms=30&memory_mib=2").await;
    let reply: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let [cpu, wall, drift] = ["measured_cpu_ms", "measured_wall_ms", "drift_percent"]
        .map(|key| reply[key].as_f64().expect("a number"));
    // Work that is faster than the calibration was, corrects it: it is never much less than asked for.
    assert!(cpu > 25.0 && wall >= cpu, "{reply}");
    assert!((drift - (cpu / 30.0 - 1.0) * 100.0).abs() < 0.01, "{reply}");
    assert_eq!(reply["touched_bytes"], 2 << 20);
    let idle = client.get("/?memory_mib=1").await;
    let idle: Value = serde_json::from_slice(&idle.body).expect("it is JSON");
    assert!(idle["drift_percent"].is_null(), "no work, no drift: {idle}");
    // runtimeInMilliSec 10, memoryInMebiBytes 3; the reply has 3 << 10 in field 3.
    let mut grpc = Client::http2(function.address).await;
    let frame = [0, 0, 0, 0, 4, 0x10, 10, 0x18, 3];
    let done = grpc.call("/faas.Executor/Execute", &frame).await.expect("it is executed");
    assert!(done.ends_with(&[0x18, 0x80, 0x18]), "{done:?}");
    assert!(String::from_utf8_lossy(&done).contains("OK - trace-func - drift"), "{done:?}");
    function.stop().await;
}

#[tokio::test]
async fn syscalls_makes_as_many_as_it_says() {
    let refused = [r#"{"rounds":0}"#, r#"{"rounds":-1}"#, r#"{"rounds":1000001}"#];
    check("syscalls", &refused).await;
    let Some(function) = start("syscalls").await else { return };
    let mut client = Client::http1(function.address).await;
    let reply = client.get("/?rounds=500").await;
    let reply: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert_eq!((&reply["rounds"], &reply["calls"]), (&500.into(), &2000.into()));
    for kind in ["getppid_ns", "stat_ns", "pipe_ns"] {
        assert!(reply[kind].as_f64() > Some(0.0), "{reply}");
    }
    function.stop().await;
}

#[tokio::test]
async fn big_memory_touches_its_working_set() {
    let refused = [
        r#"{"mib":0}"#,
        r#"{"mib":-5}"#,
        r#"{"mib":129}"#,
        r#"{"mib":18446744073709551615}"#,
        r#"{"seed":-1}"#,
        r#"{"varying_percent":101}"#,
    ];
    check("big-memory", &refused).await;
}

#[tokio::test]
async fn the_checksum_of_big_memory_is_that_of_the_stated_words() {
    let Some(function) = start("big-memory").await else { return };
    let mut client = Client::http1(function.address).await;
    for (mib, seed, percent) in [(1_u64, 0_u64, 0_u64), (99, 1, 3), (128, 5, 100), (7, 300, 50)] {
        let body = format!(
            r#"{{"mib":{mib},"seed":{seed},"varying_percent":{percent},"write":{}}}"#,
            seed == 5
        );
        let reply = client.post("/", "application/json", body.as_bytes()).await;
        let reply: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
        let pages = mib * 256;
        let varying = pages * percent / 100;
        let stable = pages - varying;
        let begin = stable + splitmix(seed.wrapping_mul(2) | 1) % (128 * 256 - pages + 1);
        let touched = (0..stable).chain(begin..begin + varying);
        let sum =
            touched.fold(0_u64, |sum, page| sum.rotate_left(5) ^ splitmix(page * 512 + seed % 256));
        assert_eq!(reply["checksum"], format!("{sum:016x}"), "{body}: {reply}");
        assert_eq!(reply["pages"], pages);
    }
    function.stop().await;
}

/// The `i`-th output of SplitMix64 from state 0, as `functions/big-memory/README.md` states it.
fn splitmix(i: u64) -> u64 {
    let mut z = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(i.wrapping_add(1));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[tokio::test]
async fn pyaes_encrypts() {
    let refused = [
        r#"{"message":""}"#,
        r#"{"message":7}"#,
        r#"{"message":"x","iterations":0}"#,
        r#"{"message":"x","iterations":-3}"#,
        r#"{"message":"x","iterations":1000000000}"#,
        r#"{"message":"x","iterations":1.0}"#,
        r#"{"message":"x","iterations":true}"#,
        r#"{"key":"x"}"#,
        "null",
    ];
    check("pyaes", &refused).await;
}

#[tokio::test]
async fn functions_in_python_renew_their_generator_when_they_are_told() {
    let Some(function) = start("pyaes").await else { return };
    let mut client = Client::http1(function.address).await;
    // Before anybody has asked for a random number, and after.
    for _ in 0..2 {
        let told = client.post("/vhive/after-restore", "text/plain", b"").await;
        assert_eq!((told.status, told.body.len()), (200, 0));
        let drawn = client.get("/vhive/random").await;
        let drawn: Value = serde_json::from_slice(&drawn.body).expect("it is JSON");
        assert!(drawn["random"].is_u64(), "{drawn}");
    }
    assert_eq!(client.get("/vhive/after-restore").await.status, 404, "only POST tells");
    function.stop().await;
}

#[tokio::test]
async fn pyaes_greets_over_grpc() {
    check_greeter("pyaes").await;
}

#[tokio::test]
async fn json_serdes_reads_and_writes() {
    check("json_serdes", &["", "{'a':1}", "[1,]", "[NaN]", "-Infinity", "[1] 2"]).await;
}

#[tokio::test]
async fn chameleon_renders() {
    let refused = [
        r#"{"rows":0}"#,
        r#"{"rows":-1}"#,
        r#"{"rows":1000000000}"#,
        r#"{"columns":101}"#,
        r#"{"columns":"7"}"#,
        r#"{"caption":null}"#,
    ];
    check("chameleon", &refused).await;
}

#[tokio::test]
async fn image_rotate_rotates() {
    let refused = [
        r#"{"degrees":45}"#,
        r#"{"degrees":-90}"#,
        r#"{"picture":"../../etc/passwd"}"#,
        r#"{"picture":"server.py"}"#,
    ];
    check("image_rotate", &refused).await;
    let Some(function) = start("image_rotate").await else { return };
    let mut client = Client::http1(function.address).await;
    let picture = fs::read(function.dir.join("record.jpg")).expect("it is a file");
    let reply = client.post("/?degrees=90", "image/jpeg", &picture).await;
    let known = fs::read(function.dir.join("expected/record.json")).expect("it is a file");
    assert_eq!((reply.status, &reply.body[..]), (200, &known[..]), "{}", reply.text());
    let mut huge = picture.clone();
    let size = huge.windows(2).position(|w| w == [0xff, 0xc0]).expect("it is a baseline JPEG") + 5;
    huge[size..size + 4].copy_from_slice(&[0xff; 4]);
    for bad in [&b""[..], b"GIF89a", &picture[..600], &picture[..9000], &huge] {
        let reply = client.post("/?degrees=90", "image/jpeg", bad).await;
        assert_eq!(reply.status, 400, "{} bytes: {}", bad.len(), reply.text());
    }
    assert_eq!(client.post("/?degrees=91", "image/jpeg", &picture).await.status, 400);
    function.stop().await;
}

/// Not `sleep` and `trace-func`, which ask the kernel for the free memory and find no /proc here.
#[tokio::test]
async fn functions_run_in_their_images() {
    for name in ["hello", "big-memory", "json_serdes", "pyaes", "chameleon", "image_rotate"] {
        match images::start_in_image(name).await {
            Ok(function) => {
                expect_known_replies(&function).await;
                function.stop().await;
            }
            Err(missing) => {
                eprintln!("SKIP functions_run_in_their_images: {missing}");
                return;
            }
        }
    }
}

/// An image holds the binary and nothing else, so the binary must not ask for a loader.
#[test]
fn rust_functions_are_static() {
    for name in process::RUST {
        let elf = fs::read(process::rust_binary(name)).expect("it was just built");
        let word = |at: usize, bytes: usize| {
            elf[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (table, size, count) = (word(0x20, 8), word(0x36, 2), word(0x38, 2));
        let interpreters = (0..count).filter(|i| word(table + i * size, 4) == 3).count();
        assert_eq!((&elf[..4], interpreters), (&b"\x7fELF"[..], 0), "{name}");
    }
}

/// Every service of the functions is admitted, and names the image that is built beside it.
#[test]
fn services_are_admitted() {
    let mut seen = 0;
    for entry in fs::read_dir(process::functions()).expect("it is there") {
        let dir = entry.expect("readable").path();
        for (file, protocol) in
            [("service.yaml", Protocol::Http1), ("service-grpc.yaml", Protocol::H2c)]
        {
            let Ok(text) = fs::read_to_string(dir.join(file)) else { continue };
            let recipe = fs::read_to_string(dir.join("image.toml")).expect("there is a recipe");
            let recipe: toml::Value = toml::from_str(&recipe).expect("recipes are TOML");
            for document in documents(&text).expect("services are YAML") {
                let service = admit(&document, &Config::default());
                let service = service.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
                assert_eq!(recipe["name"].as_str(), Some(service.template.image.as_str()));
                let port = (service.template.port, service.template.protocol);
                assert_eq!(port, (8080, protocol), "{}", dir.display());
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 14, "ten functions, four of which also speak gRPC");
}

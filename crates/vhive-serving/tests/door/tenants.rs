//! Requests of several services over the same connections: nothing of one is seen by another, and each is
//! done once, whatever instances do to their connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, World, host, read_head, within};

const TENANTS: [&str; 4] = ["red", "green", "blue", "grey"];

/// What a function does with a request, as its path says.
const WAYS: [&str; 7] = ["echo", "chunked", "cut", "crash", "early", "extra", "close"];

/// The tenants that each instance, known by its port, has seen.
type Seen = Arc<Mutex<BTreeMap<u16, BTreeSet<String>>>>;

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

/// Reads the rest of a body of known length; none if it is cut off.
async fn body_of(stream: &mut TcpStream, head: &str, mut body: Vec<u8>) -> Option<Vec<u8>> {
    let length: usize = field(head, "content-length").parse().unwrap_or(0);
    while body.len() < length {
        if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    assert_eq!(body.len(), length, "the gateway sends no more than it announced");
    Some(body)
}

async fn function(mut stream: TcpStream, seen: Seen) {
    let port = stream.local_addr().unwrap().port();
    while let Some((head, rest)) = read_head(&mut stream).await {
        let tenant = field(&head, "host").split('.').next().unwrap().to_owned();
        seen.lock().unwrap().entry(port).or_default().insert(tenant);
        let mark = field(&head, "x-mark").to_owned();
        let way = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        let reply = |fields: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 200 OK\r\nX-Mark: {mark}\r\n{fields}\r\n");
            [head.as_bytes(), body].concat()
        };
        let sized = |body: &[u8]| reply(&format!("Content-Length: {}\r\n", body.len()), body);
        if way == "early" {
            // Before the request's body has come, of which nothing is read.
            let _sent = stream.write_all(&sized(mark.as_bytes())).await;
            return;
        }
        if way == "crash" {
            return;
        }
        let Some(body) = body_of(&mut stream, &head, rest).await else { return };
        let wire = match way.as_str() {
            "chunked" => {
                let mut wire = reply("Transfer-Encoding: chunked\r\n", b"");
                for piece in body.chunks(700) {
                    wire.extend(format!("{:x}\r\n", piece.len()).bytes());
                    wire.extend([piece, b"\r\n"].concat());
                }
                wire.extend(b"0\r\n\r\n");
                wire
            }
            "cut" => reply(&format!("Content-Length: {}\r\n", body.len() + 100), &body),
            // A second reply, which nobody has asked for.
            "extra" => [sized(&body), sized(mark.as_bytes())].concat(),
            "close" => reply("Connection: close\r\nContent-Length: 0\r\n", b""),
            _ => sized(&body),
        };
        if stream.write_all(&wire).await.is_err() || way == "cut" || way == "close" {
            return;
        }
    }
}

enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn connect(world: &World, by_http2: bool) -> Self {
        let io = TokioIo::new(world.connect().await);
        if by_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            return Self::Http2(sender);
        }
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    /// One request; status, the function's mark, and the body as far as it came; whether it is whole.
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Option<(u16, Option<String>, Vec<u8>, bool)> {
        let reply = match self {
            Self::Http1(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await.ok()?
            }
            Self::Http2(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request).await.ok()?
            }
        };
        let mark = reply.headers().get("x-mark").map(|mark| mark.to_str().unwrap().to_owned());
        let (status, mut body) = (reply.status().as_u16(), reply.into_body());
        let (mut all, mut whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                whole = false;
                break;
            };
            all.extend(frame.into_data().unwrap_or_default());
        }
        Some((status, mark, all, whole))
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Sends requests of random tenants over one connection after the other; says how many were served whole.
async fn client(world: Arc<World>, number: usize, by_http2: bool) -> usize {
    let mut dice = Dice(number as u64 + 1);
    let mut connection = Client::connect(&world, by_http2).await;
    let mut whole_ones = 0;
    for n in 0..60 {
        let tenant = TENANTS[dice.roll(TENANTS.len())];
        // Mostly what leaves its connection as it should be.
        let way = WAYS[dice.roll(2 * WAYS.len()) % (WAYS.len() + 2) % WAYS.len()];
        let mark = format!("<{tenant}-{number}-{n}>");
        let size = if way == "extra" { 20 } else { dice.roll(3000) };
        let body = mark.repeat(size);
        let authority = host(tenant);
        let uri = if by_http2 { format!("http://{authority}/{way}") } else { format!("/{way}") };
        let mut request = Request::post(uri).header("x-mark", mark.as_str());
        if !by_http2 {
            request = request.header("host", authority);
        }
        let request = request.body(Full::new(Bytes::from(body.clone()))).unwrap();
        let Some((status, told, got, whole)) = within(connection.send(request)).await else {
            connection = Client::connect(&world, by_http2).await;
            continue;
        };
        let got = String::from_utf8(got).unwrap();
        let about = format!("{way} of {mark}: {status}, {told:?}");
        if status != 200 {
            assert!(!got.contains('<') && told.is_none(), "{about}: {got}");
            continue;
        }
        assert_eq!(told.as_deref(), Some(mark.as_str()), "{about}");
        let expected = match way {
            "early" => mark.clone(),
            "close" => String::new(),
            _ => body,
        };
        assert!(expected.starts_with(&got), "{about}: other content");
        assert!(!whole || (got == expected && way != "cut"), "{about}: {} bytes", got.len());
        whole_ones += usize::from(whole);
        if !whole {
            connection = Client::connect(&world, by_http2).await;
        }
    }
    whole_ones
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_one_tenant_reaches_another_whatever_instances_do() {
    for by_hyper_only in [false, true] {
        let seen = Seen::default();
        let of_functions = Arc::clone(&seen);
        let runtime = InProcess::new(move |stream| function(stream, Arc::clone(&of_functions)));
        let mut setup = Setup::of(Runtimes::new().with(runtime));
        setup.serving.gateway.by_hyper_only = by_hyper_only;
        let world = Arc::new(setup.start().await);
        for (at, tenant) in TENANTS.iter().enumerate() {
            let one_at_a_time = at % 2;
            world
                .apply(tenant, |document| {
                    document["spec"]["template"]["spec"]["containerConcurrency"] =
                        one_at_a_time.into();
                })
                .await;
        }
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..8 {
            clients.spawn(client(Arc::clone(&world), number, number % 2 == 1));
        }
        let mut whole = 0;
        while let Some(one) = within(clients.join_next()).await {
            whole += one.unwrap();
        }
        assert!(whole > 8 * 60 / 3, "{whole} were served: too few to say anything");
        let seen = seen.lock().unwrap().clone();
        assert!(seen.len() >= TENANTS.len());
        assert!(seen.values().all(|tenants| tenants.len() == 1), "{seen:?}");
        Arc::into_inner(world).unwrap().stop().await;
    }
}

/// How often each request came to a function, by its identifier.
type Counted = Arc<Mutex<BTreeMap<String, usize>>>;

/// Notes each request, and treats its connection badly every now and then: closes it behind a reply
/// without a word, or before one, or ends with its whole sandbox, or hangs up on whoever connects.
async fn unreliable(
    mut stream: TcpStream,
    counted: Counted,
    turn: Arc<AtomicUsize>,
    end: impl Fn(),
) {
    if turn.fetch_add(1, Ordering::SeqCst) % 5 == 3 {
        return;
    }
    while let Some((head, rest)) = read_head(&mut stream).await {
        let id = field(&head, "x-request-id").to_owned();
        *counted.lock().unwrap().entry(id.clone()).or_default() += 1;
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        if turn % 7 == 5 {
            return;
        }
        if turn % 23 == 11 {
            end();
            return;
        }
        let Some(body) = body_of(&mut stream, &head, rest).await else { return };
        let said = format!("{id} {}", body.len());
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
        if stream.write_all(reply.as_bytes()).await.is_err() || turn % 3 == 1 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_done_or_answered_twice() {
    for by_hyper_only in [false, true] {
        let (counted, turn) = (Counted::default(), Arc::new(AtomicUsize::new(0)));
        let (noted, turns) = (Arc::clone(&counted), Arc::clone(&turn));
        let journals = Arc::<std::sync::OnceLock<Journals>>::default();
        let known = Arc::clone(&journals);
        let runtime = InProcess::new(move |stream| {
            let known = Arc::clone(&known);
            let end = move || {
                let all = known.get().unwrap().lock().unwrap().clone();
                if let Some(one) = all.iter().find(|journal| journal.ended().is_none()) {
                    one.end(vhive_sandbox::End::Vanished("it crashed".to_owned()));
                }
            };
            unreliable(stream, Arc::clone(&noted), Arc::clone(&turns), end)
        });
        assert!(journals.set(Arc::clone(&runtime.journals)).is_ok());
        let mut setup = Setup::of(Runtimes::new().with(runtime));
        setup.serving.gateway.by_hyper_only = by_hyper_only;
        setup.node.back_off_first = vhive_api::Span(Duration::from_millis(10));
        let world = Arc::new(setup.start().await);
        world.apply("hello", |_| {}).await;
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..6_usize {
            let world = Arc::clone(&world);
            clients.spawn(async move {
                let mut answered = Vec::new();
                let mut connection = Client::connect(&world, number % 3 == 2).await;
                for n in 0..60_usize {
                    let id = format!("{number}-{n}");
                    let size = n * 50 % 2000;
                    let request = Request::post(format!("http://{}/", host("hello")))
                        .header("host", host("hello"))
                        .header("x-request-id", id.as_str())
                        .body(Full::new(Bytes::from(vec![b'x'; size])))
                        .unwrap();
                    let Some((status, _, body, _)) = within(connection.send(request)).await else {
                        connection = Client::connect(&world, number % 3 == 2).await;
                        continue;
                    };
                    if status == 200 {
                        let body = String::from_utf8(body).unwrap();
                        assert_eq!(body, format!("{id} {size}"), "another one's reply");
                        answered.push(id);
                    }
                }
                answered
            });
        }
        let mut answered = Vec::new();
        while let Some(one) = within(clients.join_next()).await {
            answered.extend(one.unwrap());
        }
        let counted = counted.lock().unwrap().clone();
        let twice: Vec<_> = counted.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "done more than once: {twice:?}");
        assert!(answered.iter().all(|id| counted.get(id) == Some(&1)));
        assert!(answered.len() > 100, "{} of 360 were answered", answered.len());
        Arc::into_inner(world).unwrap().stop().await;
    }
}

type Journals = Arc<Mutex<Vec<Arc<vhive_sandbox::Journal>>>>;

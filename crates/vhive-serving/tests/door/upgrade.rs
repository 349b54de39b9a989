//! Connections that go over to another protocol.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Reply, Setup, World, eventually, host, read_head, within};

/// Goes over to `echo` if asked to, and says each byte again in upper case; replies otherwise.
async fn echo(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let head = head.to_ascii_lowercase();
        if !head.contains("upgrade: echo\r\n") || head.contains("get /no ") {
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
            stream.write_all(reply).await.unwrap();
            continue;
        }
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        // What it says at once comes together with its head.
        let reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\nX-Key: k\r\n\r\nHELLO ";
        stream.write_all(reply).await.unwrap();
        let mut bytes = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            bytes[..n].make_ascii_uppercase();
            if stream.write_all(&bytes[..n]).await.is_err() {
                break;
            }
        }
        return;
    }
}

async fn upgrade(world: &World, path: &str) -> TcpStream {
    let mut stream = world.connect().await;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\
         X-Own: 1\r\n\r\n",
        host("echo")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn expect(stream: &mut TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, wanted, "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn a_connection_goes_over_to_another_protocol_and_holds_its_slot() {
    let world = Setup::with_functions(echo).start().await;
    world
        .apply("echo", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = 1.into();
            document["spec"]["template"]["spec"]["timeoutSeconds"] = 1.into();
        })
        .await;
    let mut stream = upgrade(&world, "/").await;
    let (head, rest) = within(read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let lower = head.to_ascii_lowercase();
    for field in ["upgrade: echo\r\n", "connection: upgrade\r\n", "x-key: k\r\n"] {
        assert!(lower.contains(field), "{field} in {head}");
    }
    expect(&mut stream, &b"HELLO "[rest.len()..]).await;
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        expect(&mut stream, word.to_ascii_uppercase().as_bytes()).await;
    }
    // Longer than the revision's timeout, which is for replies.
    tokio::time::sleep(std::time::Duration::from_millis(2200)).await;
    stream.write_all(b"three").await.unwrap();
    expect(&mut stream, b"THREE").await;
    let key = vhive_api::RevisionKey::new("default", "echo-00001");
    assert_eq!(world.node.counts(&key).unwrap().in_flight, 1);
    drop(stream);
    eventually(|| (world.node.counts(&key).unwrap().in_flight == 0).then_some(())).await;
    let records = world.records(|all| !all.is_empty()).await;
    assert_eq!((records[0].status, records[0].request_bytes), (101, 11));
    assert_eq!(records[0].response_bytes, 17);
    world.stop().await;
}

#[tokio::test]
async fn a_function_may_stay_with_http_and_a_drain_ends_what_is_open() {
    let world = Setup::with_functions(echo).start().await;
    world.apply("echo", |_| {}).await;
    let mut stream = upgrade(&world, "/no").await;
    let (head, _) = within(read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let plain = world.get("echo").await;
    assert_eq!((plain.status, plain.text().as_str()), (200, "no"));

    let mut open = upgrade(&world, "/").await;
    let (head, _) = within(read_head(&mut open)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let serving = world.serving;
    let left = vhive_sandbox::Deadline::after(std::time::Duration::from_millis(200));
    let drained = within(serving.shutdown(left)).await;
    assert_eq!(drained.cut, 1);
    let mut rest = Vec::new();
    let _ = within(open.read_to_end(&mut rest)).await;
    world
        .node
        .shutdown(vhive_sandbox::Deadline::after(std::time::Duration::from_secs(5)))
        .await
        .unwrap();
}

#[tokio::test]
async fn interim_replies_before_the_switch_are_skipped() {
    /// All in one piece.
    async fn hints(mut stream: TcpStream) {
        if read_head(&mut stream).await.is_none() {
            return;
        }
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";
        stream.write_all(format!("{hint}{hint}{switch}HELLO").as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ended = stream.read_to_end(&mut rest).await;
    }
    let world = Setup::with_functions(hints).start().await;
    world.apply("echo", |_| {}).await;
    let mut stream = upgrade(&world, "/").await;
    let (head, rest) = within(read_head(&mut stream)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    expect(&mut stream, &b"HELLO"[rest.len()..]).await;
    drop(stream);
    world.stop().await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_502() {
    async fn switches(mut stream: TcpStream) {
        while read_head(&mut stream).await.is_some() {
            let reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
            stream.write_all(reply).await.unwrap();
        }
    }
    let world = Setup::with_functions(switches).start().await;
    world.apply("echo", |_| {}).await;
    let plain = world.get("echo").await;
    assert_eq!(plain.status, 502, "{}", plain.text());
    // HTTP/2 is begun by prior knowledge only.
    let wire = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\r\n",
        host("none")
    );
    let unknown: Reply = world.raw(wire.as_bytes()).await;
    assert_eq!(unknown.status, 404);
    world.stop().await;
}

//! More clients than there is room for.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{Setup, host, read_head, within};

/// Answers when the test says so.
async fn waits(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        if head.to_ascii_lowercase().contains("x-long: 1") {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let Ok(()) = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await
        else {
            return;
        };
    }
}

async fn is_open(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 100])).await;
    read.is_err()
}

async fn ask(stream: &mut TcpStream) {
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("waits"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    within(async {
        while !reply.ends_with(b"ok") {
            assert_ne!(stream.read_buf(&mut reply).await.unwrap(), 0, "closed");
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_ask_for_nothing_make_room_for_those_that_do() {
    let mut setup = Setup::with_functions(waits);
    setup.serving.gateway.max_connections = 6;
    let world = setup.start().await;
    world.apply("waits", |_| {}).await;
    // One is being served, one asks now and then, two say nothing, and two not enough.
    let mut served = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Long: 1\r\n\r\n", host("waits"));
    served.write_all(wire.as_bytes()).await.unwrap();
    let mut regular = world.connect().await;
    ask(&mut regular).await;
    let mut idle = Vec::new();
    for said in ["", "", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Enc"] {
        let mut stream = world.connect().await;
        stream.write_all(said.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        ask(&mut regular).await;
    }
    // There is room for new ones, although nobody has left by himself.
    for _ in 0..8 {
        assert_eq!(world.get("waits").await.status, 200);
    }
    ask(&mut regular).await;
    let mut reply = [0; 15];
    within(served.read_exact(&mut reply)).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 200 OK");
    let mut open = 0;
    for stream in &mut idle {
        open += usize::from(is_open(stream).await);
    }
    assert!(open < idle.len(), "somebody has made room");
    world.stop().await;
}

/// Says as many bytes as it is asked for.
async fn says(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let length = head.to_ascii_lowercase();
        let length = length.split("x-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let reply = [head.as_bytes(), &vec![b'x'; length]].concat();
        if stream.write_all(&reply).await.is_err() {
            return;
        }
    }
}

/// A client of which the kernel keeps little.
async fn narrow(to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(to).await.unwrap()
}

/// How much a server can write to such a client that does not read.
async fn held_by_the_kernel() -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = narrow(listener.local_addr().unwrap()).await;
    let (server, _) = listener.accept().await.unwrap();
    let (bytes, mut written) = (vec![0; 64 << 10], 0);
    let full = Duration::from_millis(200);
    while tokio::time::timeout(full, server.writable()).await.is_ok() {
        if let Ok(size) = server.try_write(&bytes) {
            written += size;
        }
    }
    written
}

#[tokio::test]
async fn a_client_that_has_yet_to_take_its_reply_does_not_make_room() {
    const CLIENTS: usize = 24;
    let held = held_by_the_kernel().await;
    let mut setup = Setup::with_functions(says);
    setup.serving.gateway.max_connections = CLIENTS;
    let world = setup.start().await;
    world.apply("waits", |_| {}).await;
    // For some of them the kernel holds the whole reply, for some the function has not yet been
    // heard to the end; for those between, it is the gateway that has the rest.
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let length = (held + n * (8 << 10)).saturating_sub(64 << 10);
        let mut stream = narrow(world.gateway()).await;
        // Not the short way.
        let wire = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nTE: gzip\r\nX-Length: {length}\r\n\r\n",
            host("waits")
        );
        stream.write_all(wire.as_bytes()).await.unwrap();
        clients.push((stream, length));
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // Others want to come in, as many as there are.
    let mut others = Vec::new();
    for _ in 0..CLIENTS {
        others.push(world.connect().await);
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    for (stream, length) in &mut clients {
        let mut reply: Vec<u8> = Vec::new();
        let whole = within(async {
            loop {
                let end = reply.windows(4).position(|four: &[u8]| four == b"\r\n\r\n");
                if end.is_some_and(|end| reply.len() == end + 4 + *length) {
                    return true;
                }
                if stream.read_buf(&mut reply).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
        });
        assert!(whole.await, "{} of {length} bytes came; the kernel holds {held}", reply.len());
    }
    drop(others);
    world.stop().await;
}

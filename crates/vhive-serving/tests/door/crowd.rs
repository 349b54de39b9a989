//! More clients than there is room for.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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

//! Whoever asks is hostile: the nano guest answers as HTTP says, or hangs up, and lives on.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::promises::Kernel;
use crate::site::{Site, get, soon};

/// Connections are kept and closed as HTTP/1.0 and HTTP/1.1 say.
pub(crate) fn connections_are_kept_and_closed(site: &Site) {
    let booted = site.boot(&Kernel::new().spec(site));
    let endpoint = booted.endpoint();
    let mut stream = connect(endpoint);
    for _ in 0..3 {
        send(&mut stream, b"GET / HTTP/1.1\r\nHost: nano\r\n\r\n");
        assert_eq!(reply(&mut stream), ("200".to_owned(), "hello from nano\n".to_owned()));
    }
    // Two at once, and the second is the last.
    send(&mut stream, b"GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\nConnection: close\r\n\r\n");
    let mut both = String::new();
    stream.read_to_string(&mut both).expect("closed after the second");
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
    assert_eq!(both.matches("hello from nano").count(), 1, "{both}");
    assert!(both.contains("Connection: close") && both.contains("Content-Length: 16"), "{both}");
    // A client that says that it has no more to say still gets its reply.
    let mut stream = connect(endpoint);
    send(&mut stream, b"GET / HTTP/1.1\r\n\r\n");
    stream.shutdown(Shutdown::Write).expect("shut down");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("closed");
    assert!(text.ends_with("hello from nano\n"), "{text}");
    // One after another, and more than there are sockets.
    for _ in 0..40 {
        assert_eq!(get(endpoint, "/"), "hello from nano\n");
    }
}

/// Long work of one does not keep others waiting.
pub(crate) fn several_are_served_at_a_time(site: &Site) {
    let booted = site.boot(&Kernel::new().spec(site));
    let endpoint = booted.endpoint();
    assert_eq!(get(endpoint, "/fill?pages=2000"), "pages 2000\n");
    let askers: Vec<_> = (0..8)
        .map(|seed| {
            std::thread::spawn(move || {
                let path = format!("/touch?pages=300&seed={seed}");
                let first = get(endpoint, &path);
                assert_eq!(get(endpoint, &path), first);
                first
            })
        })
        .collect();
    let mut sums: Vec<String> =
        askers.into_iter().map(|asker| asker.join().expect("answered")).collect();
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), 8);
}

/// Nonsense is refused with the right status or by hanging up, and nothing of it keeps the next one
/// from being served.
pub(crate) fn nonsense_is_survived(site: &Site) {
    let booted = site.boot(&Kernel::new().spec(site));
    let endpoint = booted.endpoint();
    let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(8000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    let huge = format!("GET /touch?pages={} HTTP/1.1\r\n\r\n", u64::MAX);
    let cases: [(&[u8], &str); 13] = [
        (b"\xff\xfe\x00\x01\r\n\r\n", "400"),
        (b"GET\r\n\r\n", "400"),
        (b"GET / HTTP/9.9\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        (b"GET /fill?pages=99999999999999999999999 HTTP/1.1\r\n\r\n", "400"),
        (b"GET /fill?pages=18446744073709551615 HTTP/1.1\r\n\r\n", "409"),
        (huge.as_bytes(), "409"),
        (b"GET /touch?pages=1&pages HTTP/1.1\r\n\r\n", "400"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", "413"),
        (b"DELETE / HTTP/1.1\r\n\r\n", "405"),
        (long.as_bytes(), "431"),
        (many.as_bytes(), "431"),
    ];
    for (bytes, status) in cases {
        let mut stream = connect(endpoint);
        send(&mut stream, bytes);
        assert_eq!(reply(&mut stream).0, status, "{}", String::from_utf8_lossy(bytes));
    }
    // Bytes that no parser expects, cut anywhere, and peers that go away in the middle.
    let mut state = 1_u32;
    for round in 0..30 {
        let noise: Vec<u8> = (0..round * 97)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        let mut stream = connect(endpoint);
        // It may hang up before all has been sent.
        let _ = stream.write_all(&noise);
    }
    // All its connections are taken by somebody who says nothing.
    let idle: Vec<TcpStream> = (0..16).map(|_| connect(endpoint)).collect();
    let deadline = soon();
    while let Err(refused) = try_get(endpoint) {
        assert!(!deadline.passed(), "the idlest makes room: {refused}");
    }
    drop(idle);
    assert_eq!(booted.journal.ended(), None);
}

/// Connects, as soon as the guest has room for one more.
fn connect(endpoint: SocketAddr) -> TcpStream {
    let deadline = soon();
    let stream = loop {
        match TcpStream::connect_timeout(&endpoint, Duration::from_secs(10)) {
            Ok(stream) => break stream,
            Err(error) => assert!(!deadline.passed(), "{error}"),
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    stream
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("sent");
}

/// One try.
fn try_get(endpoint: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&endpoint, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    stream.read_exact(&mut [0; 12])
}

/// Status and body of one reply.
fn reply(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a reply");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.and_then(|text| text.parse().ok()).expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    let status = head.split(' ').nth(1).expect("a status").to_owned();
    (status, String::from_utf8(body).expect("text"))
}

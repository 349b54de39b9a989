use proptest::prelude::*;

use super::*;
use crate::gateway::reply_head::read_reply;

fn translated(
    wire: &[u8],
    to: &Method,
    close: bool,
) -> Result<Option<(ReplyLine, String)>, BadReply> {
    let (mut input, mut out) = (BytesMut::from(wire), Vec::new());
    let mut date = Date::default();
    let id = InvocationId::from_bits(0x1234);
    let mut added = Added { id: Some(&id), trace: None, close, date: &mut date };
    let line = translate(&mut input, to, &mut out, &mut added)?;
    Ok(line.map(|line| (line, String::from_utf8_lossy(&out).into_owned())))
}

fn fields(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with("date: "));
    lines.map(ToOwned::to_owned).collect()
}

#[test]
fn heads_are_written_anew() {
    for (wire, to, wanted) in [
        (
            "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-A: b\r\n\r\n",
            Method::GET,
            vec!["x-a: b", "content-length: 5", "x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-Id: own\r\n\r\n",
            Method::GET,
            vec!["x-request-id: own", "content-length: 0"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Method::HEAD,
            vec!["content-length: 5", "x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 304 \r\nContent-Length: 5\r\nTrailer: a\r\n\r\n",
            Method::GET,
            vec!["x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\n",
            Method::GET,
            vec!["transfer-encoding: chunked", "x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3\r\n\r\n",
            Method::GET,
            vec!["transfer-encoding: chunked", "x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x-a, content-length\r\nX-A: b\r\nKeep-Alive: 5\r\n\r\n",
            Method::GET,
            vec!["content-length: 5", "x-request-id: 0000000000001234"],
        ),
        (
            "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 404 Gone\r\nContent-Length: 1\r\n\r\nx",
            Method::GET,
            vec!["content-length: 1", "x-request-id: 0000000000001234"],
        ),
    ] {
        let (_, text) = translated(wire.as_bytes(), &to, false).unwrap().unwrap();
        assert_eq!(fields(&text), wanted, "{wire:?}");
        assert!(text.contains("\r\ndate: ") && text.ends_with(" GMT\r\n\r\n"), "{text:?}");
    }
}

#[test]
fn the_last_reply_of_a_connection_says_so() {
    let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: then\r\n\r\n";
    let (_, text) = translated(wire, &Method::GET, true).unwrap().unwrap();
    assert!(
        text.ends_with("\r\nconnection: close\r\n\r\n") && text.contains("date: then"),
        "{text:?}"
    );
}

#[test]
fn what_is_no_reply_is_refused_as_by_the_other_reader() {
    for wire in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\nA: b\n\n",
        "noise",
    ] {
        let ours = translated(wire.as_bytes(), &Method::GET, false).map(|_| ());
        let other = read_reply(&mut BytesMut::from(wire), &Method::GET).map(|_| ());
        assert!(ours.is_err(), "{wire:?}");
        assert_eq!(ours, other, "{wire:?}");
    }
}

fn reply() -> impl Strategy<Value = Vec<u8>> {
    let field = prop::sample::select(vec![
        "Content-Length: 5",
        "content-length: 7",
        "Content-Length: +5",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Connection: close",
        "Connection: keep-alive, x-a",
        "X-A: b",
        "X-A: \u{e4}",
        "Date: then",
        "Keep-Alive: 5",
        "Trailer: x",
        "A : b",
        "Upgrade: x",
        ": x",
    ]);
    let status = prop::sample::select(vec!["200 OK", "204 No", "304 Not", "100 Go", "500", "42 x"]);
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n"]);
    (status, prop::collection::vec((field, end), 0..6), any::<Option<(prop::sample::Index, u8)>>())
        .prop_map(|(status, fields, change)| {
            let fields: String =
                fields.iter().map(|(field, end)| format!("{field}{end}")).collect();
            let mut wire = format!("HTTP/1.1 {status}\r\n{fields}\r\n").into_bytes();
            if let Some((at, byte)) = change {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            wire
        })
}

proptest! {
    #[test]
    fn both_readers_find_the_same(wire in reply(), head: bool) {
        let to = if head { Method::HEAD } else { Method::GET };
        let ours = translated(&wire, &to, false).map(|line| line.map(|(line, _)| line));
        let other = read_reply(&mut BytesMut::from(&wire[..]), &to).map(|head| {
            head.map(|head| ReplyLine {
                status: head.status,
                length: head.length,
                keep_alive: head.keep_alive,
            })
        });
        prop_assert_eq!(ours, other);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_head(wire: Vec<u8>) {
        let _ = translated(&wire, &Method::GET, false);
    }
}

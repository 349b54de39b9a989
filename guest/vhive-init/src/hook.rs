//! Tells the function of a snapshot: a POST on its own port.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::failure::{Failure, Step as _};

/// How long connecting, and how long each read or write of the exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a reply's head that are read at the most.
const MOST: usize = 4096;

/// Sends a POST without content; any status from 200 to 299 is success.
pub(crate) fn call(port: u16, path: &str) -> Result<(), Failure> {
    let step = format!("tell the function by POST {path}");
    let status = post(port, path).step(&step)?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(format!("it answered {status}")).step(step)
}

fn post(port: u16, path: &str) -> Result<u16, String> {
    let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain {
        return Err(format!("{path:?} is no path"));
    }
    exchange(port, path).map_err(|error| error.to_string()).and_then(|head| status(&head))
}

fn exchange(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // In one piece: a server may answer and close as soon as it has read the first of several.
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut piece = [0; 512];
    while head.len() < MOST && !head.contains(&b'\n') {
        match stream.read(&mut piece)? {
            0 => break,
            got => head.extend_from_slice(&piece[..got]),
        }
    }
    Ok(head)
}

/// The status in a reply's first line.
fn status(head: &[u8]) -> Result<u16, String> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    let status = status.and_then(|code| code.trim().parse().ok());
    status.ok_or_else(|| "its answer is not HTTP/1.1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_and_nonsense_is_not() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Ok(204));
        assert_eq!(status(b"HTTP/1.0 500\r\n"), Ok(500));
        for bad in [&b""[..], b"HTTP/1.1", b"HTTP/2 200", b"HTTP/1.1 abc x", b"SSH-2.0"] {
            assert!(status(bad).is_err());
        }
    }

    #[test]
    fn a_hook_is_called_and_a_refusal_is_told() {
        for (reply, good) in [("HTTP/1.1 200 OK\r\n\r\n", true), ("HTTP/1.1 500 X\r\n\r\n", false)]
        {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut piece = [0; 1024];
                    let got = stream.read(&mut piece).unwrap();
                    assert!(got > 0, "the request ends within its head");
                    head.extend_from_slice(&piece[..got]);
                }
                stream.write_all(reply.as_bytes()).unwrap();
                String::from_utf8(head).unwrap()
            });
            assert_eq!(call(port, "/vhive/after-restore").is_ok(), good);
            assert!(server.join().unwrap().starts_with("POST /vhive/after-restore HTTP/1.1\r\n"));
        }
        let failure = call(1, "no path").unwrap_err();
        assert!(failure.reason.contains("is no path"), "{failure:?}");
    }
}

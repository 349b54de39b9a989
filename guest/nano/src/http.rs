//! HTTP/1.1 as far as four questions need it. Whoever asks is hostile: a head is bounded, a body is
//! refused, and nothing here can panic.

use core::fmt::Write as _;

use heapless::String;

/// Longest head of a request, in bytes.
pub const MOST_HEAD: usize = 2048;

/// Most header lines.
const MOST_HEADERS: usize = 32;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `GET /`: a greeting.
    Hello,
    /// `GET /memory`: how many pages there are, how many are filled, and where the first is.
    Memory,
    /// `GET /fill?pages=N`.
    Fill {
        /// How many.
        pages: u64,
    },
    /// `GET /touch?pages=N&seed=S&write=0|1`.
    Touch {
        /// How many.
        pages: u64,
        /// Which, and in which order.
        seed: u64,
        /// Whether they are written to.
        write: bool,
    },
}

/// Status of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 400.
    BadRequest,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409: the pages are not filled.
    Conflict,
    /// 413: it has a body.
    ContentTooLarge,
    /// 431.
    HeaderFieldsTooLarge,
}

impl Status {
    /// Code and reason, as the status line has them.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::Conflict => "409 Conflict",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked, or with what that is refused.
    pub command: Result<Command, Status>,
    /// What becomes of the connection.
    pub after: After,
    /// Whether the reply goes without its body.
    pub only_head: bool,
    /// How many bytes of the input it took.
    pub length: usize,
}

/// What becomes of a connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next request may come.
    Keep,
    /// Likewise, and the client must be told, since its version's default is another.
    KeepAndSay,
    /// It is closed.
    Close,
}

/// Reads a request from the beginning of the input; none until its head is complete.
#[must_use]
pub fn parse(input: &[u8]) -> Option<Request> {
    let broken = |status| Request {
        command: Err(status),
        after: After::Close,
        only_head: false,
        length: input.len(),
    };
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() >= MOST_HEAD => {
            return Some(broken(Status::HeaderFieldsTooLarge));
        }
        Ok(httparse::Status::Partial) => return None,
        Err(httparse::Error::TooManyHeaders) => {
            return Some(broken(Status::HeaderFieldsTooLarge));
        }
        Err(_) => return Some(broken(Status::BadRequest)),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Some(broken(Status::BadRequest));
    };
    let mut after = if version == 0 { After::Close } else { After::Keep };
    for header in head.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("connection") {
            after = connection(header.value, after, version == 0);
        } else if is("transfer-encoding") || (is("content-length") && header.value != b"0") {
            return Some(broken(Status::ContentTooLarge));
        }
    }
    let only_head = method == "HEAD";
    let command =
        if method == "GET" || only_head { command(target) } else { Err(Status::MethodNotAllowed) };
    Some(Request { command, after, only_head, length })
}

fn connection(value: &[u8], mut after: After, is_old: bool) -> After {
    for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if word.eq_ignore_ascii_case(b"close") {
            return After::Close;
        }
        if is_old && word.eq_ignore_ascii_case(b"keep-alive") {
            after = After::KeepAndSay;
        }
    }
    after
}

fn command(target: &str) -> Result<Command, Status> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
        "/" => Ok(Command::Hello),
        "/memory" => Ok(Command::Memory),
        "/fill" => {
            let Query { pages, .. } = Query::parse(query)?;
            Ok(Command::Fill { pages: pages.ok_or(Status::BadRequest)? })
        }
        "/touch" => {
            let Query { pages, seed, write } = Query::parse(query)?;
            Ok(Command::Touch { pages: pages.ok_or(Status::BadRequest)?, seed, write })
        }
        _ => Err(Status::NotFound),
    }
}

#[derive(Default)]
struct Query {
    pages: Option<u64>,
    seed: u64,
    write: bool,
}

impl Query {
    fn parse(query: &str) -> Result<Self, Status> {
        let mut all = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(Status::BadRequest)?;
            let number = || value.parse().map_err(|_| Status::BadRequest);
            match name {
                "pages" => all.pages = Some(number()?),
                "seed" => all.seed = number()?,
                "write" => {
                    all.write = match value {
                        "0" => false,
                        "1" => true,
                        _ => return Err(Status::BadRequest),
                    }
                }
                _ => return Err(Status::BadRequest),
            }
        }
        Ok(all)
    }
}

/// Longest body of a reply, in bytes.
pub const MOST_BODY: usize = 96;

/// Longest reply, in bytes.
pub const MOST_REPLY: usize = 256 + MOST_BODY;

/// A reply's bytes.
#[must_use]
pub fn reply(request: &Request, status: Status, body: &str) -> String<MOST_REPLY> {
    let mut text = String::new();
    let connection = match request.after {
        After::Keep => "",
        After::KeepAndSay => "Connection: keep-alive\r\n",
        After::Close => "Connection: close\r\n",
    };
    let allow = if status == Status::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let (line, length) = (status.as_str(), body.len());
    let body = if request.only_head { "" } else { body };
    // It fits: the longest of everything makes less than MOST_REPLY.
    let _ = write!(
        text,
        "HTTP/1.1 {line}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         {connection}{allow}\r\n{body}"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::mix;

    fn command_of(target: &str) -> Result<Command, Status> {
        let request = parse(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        request.expect("complete").command
    }

    #[test]
    fn the_four_questions_are_understood() {
        assert_eq!(command_of("/"), Ok(Command::Hello));
        assert_eq!(command_of("/memory"), Ok(Command::Memory));
        assert_eq!(command_of("/fill?pages=7"), Ok(Command::Fill { pages: 7 }));
        let touch = Command::Touch { pages: 3, seed: 9, write: true };
        assert_eq!(command_of("/touch?pages=3&seed=9&write=1"), Ok(touch));
        let plain = Command::Touch { pages: 3, seed: 0, write: false };
        assert_eq!(command_of("/touch?pages=3"), Ok(plain));
        for bad in ["/touch", "/fill?pages=-1", "/fill?pages=1&x=2", "/touch?pages=1&write=2"] {
            assert_eq!(command_of(bad), Err(Status::BadRequest), "{bad}");
        }
        assert_eq!(command_of("/other"), Err(Status::NotFound));
    }

    #[test]
    fn connections_are_kept_as_the_version_says() {
        let after = |rest: &str| parse(format!("GET / {rest}\r\n\r\n").as_bytes()).unwrap().after;
        assert_eq!(after("HTTP/1.1"), After::Keep);
        assert_eq!(after("HTTP/1.1\r\nConnection: x, CLOSE"), After::Close);
        assert_eq!(after("HTTP/1.0"), After::Close);
        assert_eq!(after("HTTP/1.0\r\nconnection: Keep-Alive"), After::KeepAndSay);
    }

    #[test]
    fn what_is_hostile_is_refused() {
        let status = |input: &[u8]| parse(input).map(|request| request.command);
        assert_eq!(status(b"GET / HT"), None);
        assert_eq!(status(b"\xff\xfe\r\n\r\n"), Some(Err(Status::BadRequest)));
        assert_eq!(status(&[b'a'; MOST_HEAD]), Some(Err(Status::HeaderFieldsTooLarge)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MOST_HEADERS + 1));
        assert_eq!(status(many.as_bytes()), Some(Err(Status::HeaderFieldsTooLarge)));
        for body in ["Content-Length: 5", "Content-Length: x", "Transfer-Encoding: chunked"] {
            let request = format!("POST / HTTP/1.1\r\n{body}\r\n\r\n");
            assert_eq!(status(request.as_bytes()), Some(Err(Status::ContentTooLarge)), "{body}");
        }
        let post = status(b"POST / HTTP/1.1\r\n\r\n");
        assert_eq!(post, Some(Err(Status::MethodNotAllowed)));
    }

    #[test]
    fn the_longest_reply_fits() {
        let all = [Status::MethodNotAllowed, Status::HeaderFieldsTooLarge];
        for (status, after) in all.into_iter().zip([After::KeepAndSay, After::Close]) {
            let request = Request { command: Err(status), after, only_head: false, length: 0 };
            let body = "x".repeat(MOST_BODY);
            assert!(reply(&request, status, &body).ends_with(&body));
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let good = b"GET /touch?pages=3&seed=9&write=1 HTTP/1.1\r\nConnection: close\r\n\r\nGET";
        for seed in 0..20_000 {
            let mut bytes = good.to_vec();
            // A few bytes are others, and the rest is missing.
            for change in 0..seed % 5 {
                let random = mix(seed * 7 + change);
                let at = usize::try_from(random % good.len() as u64).unwrap();
                bytes[at] = random.to_be_bytes()[0];
            }
            bytes.truncate(usize::try_from(mix(seed) % 90).unwrap());
            if let Some(request) = parse(&bytes) {
                assert!(request.length <= bytes.len());
            }
            let _ = command(&std::string::String::from_utf8_lossy(&bytes));
        }
    }
}

//! What is done with requests that wait: where they go at each try, and what comes of the replies.
//! Asynchronous invocations are one errand, events another.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use jiff::Timestamp;

use super::dispatch::{FIRST_PAUSE, Got, LONGEST_PAUSE, SendError};
use super::store::Kept;
use super::{KeptReply, Pending, Stage};

/// Where a request goes at one try.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) host: String,
    /// Path and query.
    pub(crate) target: String,
    /// Besides the request's own.
    pub(crate) fields: Vec<(&'static str, String)>,
    /// For the whole reply, if the errand has a limit of its own.
    pub(crate) timeout: Option<Duration>,
}

/// What came of a try.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Another try after a pause.
    Again(Duration),
    /// It is over, and its reply is kept.
    Keep(KeptReply),
    /// It is over, and these wait in its place.
    Next(Vec<Pending>, End),
}

/// How what leaves no reply has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It arrived.
    Delivered,
    /// It goes to where undeliverable things go.
    DeadLettered,
    /// It went nowhere.
    Dropped,
    /// Nobody wants it any more.
    Unwanted,
}

/// Says what becomes of requests.
pub(crate) trait Errand: Send + Sync {
    /// Where a request goes now; none if nobody wants it any more.
    fn prepare(&self, pending: &Pending) -> Option<Sending>;

    /// What came of a try, the first of which is 1.
    fn judge(
        &self,
        pending: &Pending,
        got: Result<Got, SendError>,
        attempt: u32,
        took: Duration,
    ) -> Verdict;

    /// Requests of the same lane are bounded by themselves: its name, and how many at a time.
    fn lane(&self, _: &Pending) -> Option<(String, usize)> {
        None
    }

    /// What becomes of one that nobody wants any more.
    fn unwanted(&self, _: &Pending) -> Verdict {
        Verdict::Next(Vec::new(), End::Unwanted)
    }

    /// One is over, durably, without a reply to keep.
    fn ended(&self, _: &Pending, _: End) {}
}

/// Asynchronous invocations.
pub(crate) struct Invocations {
    /// Tries of one in all.
    pub(crate) attempts: u32,
    /// Sent at a time to one service.
    pub(crate) per_service: usize,
}

impl Errand for Invocations {
    fn prepare(&self, pending: &Pending) -> Option<Sending> {
        let (host, target) = (pending.host.clone(), pending.target.clone());
        Some(Sending { host, target, fields: Vec::new(), timeout: None })
    }

    fn lane(&self, pending: &Pending) -> Option<(String, usize)> {
        Some((pending.lane().to_owned(), self.per_service))
    }

    fn judge(
        &self,
        pending: &Pending,
        got: Result<Got, SendError>,
        attempt: u32,
        _: Duration,
    ) -> Verdict {
        let (again, reply) = judge(pending, got, attempt);
        if !again || attempt >= self.attempts {
            return Verdict::Keep(reply);
        }
        let factor = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        Verdict::Again(FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE))
    }
}

/// Whether to try again, and what is kept if not: what the gateway could not do may be possible
/// later, what a function says is said.
fn judge(pending: &Pending, got: Result<Got, SendError>, attempts: u32) -> (bool, KeptReply) {
    let head = |stage, status, fields, error| Kept {
        stage,
        host: pending.host.clone(),
        accepted: pending.accepted,
        ended: Timestamp::now(),
        attempts,
        status,
        fields,
        error,
    };
    match got {
        Ok(got) => {
            let own = got.own_error();
            let again = own.is_some() && got.parts.status.is_server_error();
            let stage = if own.is_some() { Stage::Failed } else { Stage::Done };
            let error = own.map(|code| String::from_utf8_lossy(code).into_owned());
            let framing = [header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::CONNECTION];
            let fields = got.parts.headers.iter().filter(|(name, _)| !framing.contains(name));
            let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
            let head = head(stage, got.parts.status.as_u16(), fields.collect(), error);
            (again, KeptReply { head, body: got.body })
        }
        Err(error) => {
            let again = !matches!(error, SendError::TooLong(_) | SendError::Request(_));
            let mut text = error.to_string();
            if matches!(error, SendError::TooLong(_)) {
                text.push_str(" (serving.async.max_reply)");
            }
            let head = head(Stage::Failed, 502, Vec::new(), Some(text));
            (again, KeptReply { head, body: Bytes::new() })
        }
    }
}

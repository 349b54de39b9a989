//! How requests' instances were started, from the node's records, collected beside a run.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::client::Client;

/// How long the node is not asked: it keeps the newest thousand records or so.
const SELDOM: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// As often at most.
const OFTEN: Duration = Duration::from_millis(50);

/// What is read of a record.
#[derive(Deserialize)]
struct Record {
    id: String,
    /// None of an invocation that no instance served.
    #[serde(default)]
    start: Option<String>,
}

/// What the node told.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Invocation → kind of start.
    pub(crate) starts: HashMap<String, String>,
    /// How often it was asked in vain: what it forgot meanwhile is missing.
    pub(crate) missed: u64,
}

/// A thread that asks: reading records would delay sends on theirs.
#[derive(Debug)]
pub(crate) struct Starts {
    thread: JoinHandle<anyhow::Result<Known>>,
    end: oneshot::Sender<()>,
}

impl Starts {
    pub(crate) fn begin(socket: PathBuf) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let thread =
            std::thread::spawn(move || runtime.block_on(collect(&Client::new(socket), ended)));
        Ok(Self { thread, end })
    }

    /// All that was seen. An error only when the node never told anything.
    pub(crate) fn end(self) -> anyhow::Result<Known> {
        // A thread that has failed waits for nothing.
        let _ = self.end.send(());
        let known = self.thread.join().expect("asking does not panic");
        known.context("the node's records cannot be read (`--records`)")
    }
}

async fn collect(client: &Client, mut ended: oneshot::Receiver<()>) -> anyhow::Result<Known> {
    let (mut known, mut seen) = (Known::default(), HashSet::new());
    let mut failed: Option<anyhow::Error> = None;
    let mut told = false;
    let (mut last, mut pause) = (false, OFTEN);
    while !last {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut ended => last = true,
        }
        let asked = client.get::<Vec<Record>>("/vhive/v1/records?limit=100000");
        let records = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(records)) => records,
            // It may be begun anew just now, on purpose even.
            bad => {
                known.missed += 1;
                failed = Some(match bad {
                    Ok(Err(why)) => why,
                    _ => anyhow::anyhow!("no answer within {PATIENCE:?}"),
                });
                pause = (pause * 2).clamp(OFTEN, SELDOM);
                continue;
            }
        };
        told = true;
        let all = records.len();
        let is_old = |record: &&Record| seen.contains(&record.id);
        let new = all - records.iter().filter(is_old).count();
        seen = records.iter().map(|record| record.id.clone()).collect();
        pause = after(pause, all, new);
        let starts = records.into_iter().filter_map(|record| Some((record.id, record.start?)));
        known.starts.extend(starts);
    }
    match failed {
        Some(why) if !told => Err(why),
        _ => Ok(known),
    }
}

/// The next pause, when `new` of `all` records that the node keeps were not known: most are new where
/// it forgets some before it is asked again.
fn after(pause: Duration, all: usize, new: usize) -> Duration {
    let next = if new > all / 2 {
        pause / 2
    } else if new <= all / 4 {
        pause * 2
    } else {
        pause
    };
    next.clamp(OFTEN, SELDOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shares of new records that a node shows which keeps 1024 of so many a second.
    fn lost(per_second: f64) -> f64 {
        let (mut pause, mut lost, mut sent) = (OFTEN, 0.0, 0.0);
        for _ in 0..100 {
            let come = per_second * pause.as_secs_f64();
            (lost, sent) = (lost + (come - 1024.0).max(0.0), sent + come);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "to 1024")]
            let new = come.min(1024.0) as usize;
            pause = after(pause, 1024, new);
        }
        lost / sent
    }

    /// A node's socket that answers each connection with the next of these, and from the last on with that;
    /// it tells when it has given the last.
    fn node(replies: Vec<&'static str>) -> (tempfile::TempDir, PathBuf, oneshot::Receiver<()>) {
        use std::io::{Read as _, Write as _};
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("node.sock");
        let (tell, told) = oneshot::channel();
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        std::thread::spawn(move || {
            let last = replies.last().copied().unwrap_or_default();
            let mut tell = Some(tell);
            let mut replies = replies.into_iter();
            while let Ok((mut stream, _)) = listener.accept() {
                let _head = stream.read(&mut [0; 4096]);
                let reply = replies.next().unwrap_or(last);
                // Whoever asked may be gone.
                let _ = stream.write_all(reply.as_bytes());
                if replies.len() == 0 {
                    // Told once; nobody asks again.
                    drop(tell.take());
                }
            }
        });
        (dir, socket, told)
    }

    fn records(id: &str) -> String {
        let body = format!(r#"[{{"id":"{id}","start":"boot"}}]"#);
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    #[test]
    fn what_was_told_before_a_node_went_and_after_it_came_is_kept() {
        let [a, b] = ["a", "b"].map(|id| &*records(id).leak());
        let busy = "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let asked = |replies: Vec<&'static str>| {
            let (_dir, socket, told) = node(replies);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let (end, ended) = oneshot::channel();
                let wait = async {
                    let _all = told.await;
                    drop(end);
                };
                let client = Client::new(socket);
                tokio::join!(collect(&client, ended), wait).0
            })
        };
        // The second poll is cut, the third refused.
        let known = asked(vec![a, "", busy, b]).expect("it told something");
        let mut ids: Vec<&str> = known.starts.keys().map(String::as_str).collect();
        ids.sort_unstable();
        assert_eq!((ids, known.missed), (vec!["a", "b"], 2));
        assert!(asked(vec![busy]).is_err(), "it never told anything");
    }

    #[test]
    fn a_node_is_asked_often_enough_for_what_it_forgets() {
        for per_second in [1.0, 500.0, 1000.0, 5000.0, 15_000.0] {
            assert!(lost(per_second) < 1e-9, "{per_second}: {}", lost(per_second));
        }
        assert!(lost(100_000.0) > 0.0, "which the summary then counts");
        assert_eq!(after(SELDOM, 1024, 10), SELDOM);
        for few in 0..4 {
            let pause = (0..10).fold(OFTEN, |pause, _| after(pause, few, 0));
            assert_eq!(pause, SELDOM, "a node with {few} records and nothing to do");
        }
    }
}

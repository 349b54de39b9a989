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

/// A thread that asks: reading records would delay sends on theirs.
#[derive(Debug)]
pub(crate) struct Starts {
    thread: JoinHandle<anyhow::Result<HashMap<String, String>>>,
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

    /// Invocation → kind of start, of all that were seen.
    pub(crate) fn end(self) -> anyhow::Result<HashMap<String, String>> {
        // A thread that has failed waits for nothing.
        let _ = self.end.send(());
        let known = self.thread.join().expect("asking does not panic");
        known.context("the node's records cannot be read (`--records`)")
    }
}

async fn collect(
    client: &Client,
    mut ended: oneshot::Receiver<()>,
) -> anyhow::Result<HashMap<String, String>> {
    let (mut known, mut seen) = (HashMap::new(), HashSet::new());
    let (mut last, mut pause) = (false, OFTEN);
    while !last {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut ended => last = true,
        }
        let records: Vec<Record> = client.get("/vhive/v1/records?limit=100000").await?;
        let all = records.len();
        let is_old = |record: &&Record| seen.contains(&record.id);
        let new = all - records.iter().filter(is_old).count();
        seen = records.iter().map(|record| record.id.clone()).collect();
        pause = after(pause, all, new);
        known.extend(records.into_iter().filter_map(|record| Some((record.id, record.start?))));
    }
    Ok(known)
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

//! How requests' instances were started, from the node's records, collected beside a run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::client::Client;

/// How often the node is asked: it keeps the newest thousand records or so.
const EVERY: Duration = Duration::from_secs(1);

/// What is read of a record.
#[derive(Deserialize)]
struct Record {
    id: String,
    start: String,
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
    let mut known = HashMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    let mut last = false;
    while !last {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut ended => last = true,
        }
        let records: Vec<Record> = client.get("/vhive/v1/records?limit=100000").await?;
        known.extend(records.into_iter().map(|record| (record.id, record.start)));
    }
    Ok(known)
}

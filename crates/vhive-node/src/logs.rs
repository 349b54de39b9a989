//! Output of a revision's instances: what is kept, and what comes.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use vhive_api::SandboxId;
use vhive_sandbox::{End, Line};

use crate::pool::Pool;

/// What one instance has written, as far as it is kept.
#[derive(Clone, Debug)]
pub struct InstanceLog {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// How it ended, if it has.
    pub end: Option<End>,
    /// Its lines, oldest first.
    pub lines: Vec<Line>,
}

/// The lines of every instance that exists, and of the one that ended last.
pub(crate) fn snapshot(pool: &Pool) -> Vec<InstanceLog> {
    let journals = pool.journals().into_iter();
    let logs = journals.map(|(sandbox, journal)| InstanceLog {
        sandbox,
        end: journal.ended(),
        lines: journal.lines_from(0),
    });
    logs.collect()
}

/// Lines as they come, from all instances of a revision.
#[derive(Debug)]
pub struct LogFollower {
    pool: Arc<Pool>,
    told: watch::Receiver<u64>,
    /// The number of the next line, per sandbox.
    next: HashMap<SandboxId, u64>,
}

impl LogFollower {
    /// Follows a pool; with `replay`, what is kept comes first.
    pub(crate) fn new(pool: Arc<Pool>, replay: bool) -> Self {
        let told = pool.told();
        let mut follower = Self { pool, told, next: HashMap::new() };
        if !replay {
            follower.news();
        }
        follower
    }

    /// Waits for lines and returns all that have come, oldest first per sandbox. May be cancelled
    /// without losing any. Never ends by itself: a revision without instances may get some again.
    /// Lines that the journal has already dropped are skipped; their numbers show the gap.
    pub async fn next(&mut self) -> Vec<(SandboxId, Line)> {
        loop {
            self.told.mark_unchanged();
            let news = self.news();
            if !news.is_empty() {
                return news;
            }
            if self.told.changed().await.is_err() {
                // The sender lives in the pool that we hold.
                return Vec::new();
            }
        }
    }

    fn news(&mut self) -> Vec<(SandboxId, Line)> {
        let journals = self.pool.journals();
        self.next.retain(|known, _| journals.iter().any(|(sandbox, _)| sandbox == known));
        let mut news = Vec::new();
        for (sandbox, journal) in journals {
            let next = self.next.entry(sandbox.clone()).or_default();
            for line in journal.lines_from(*next) {
                *next = line.number + 1;
                news.push((sandbox.clone(), line));
            }
        }
        news
    }
}

//! The end of a node: first what is in flight, then the instances, then the records.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhive_sandbox::Deadline;

use crate::node::Shared;
use crate::pool::Pool;

/// Sandboxes were left at the deadline of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{left} sandbox(es) not stopped in time; the next start of a node removes what remains")]
pub struct ShutdownError {
    /// How many.
    pub left: u32,
}

pub(crate) async fn shutdown(
    shared: &Arc<Shared>,
    deadline: Deadline,
) -> Result<(), ShutdownError> {
    shared.closing.store(true, Ordering::SeqCst);
    shared.snapshots.close();
    let pools = shared.all_pools();
    for pool in &pools {
        pool.close();
    }
    // Instances are stopped with their grace as soon as they are idle; some of the time is kept
    // back for stopping those that are not.
    let reserve = shared.config.stop_grace.0.min(deadline.left() / 2);
    let idle_by = deadline.instant().checked_sub(reserve).unwrap_or(deadline.instant());
    if tokio::time::timeout_at(idle_by.into(), emptied(&pools)).await.is_err() {
        // Starts that wait for their turn fail instead of beginning.
        shared.turns.close();
        for pool in &pools {
            pool.abandon();
        }
        let _ = tokio::time::timeout_at(deadline.instant().into(), emptied(&pools)).await;
    }
    let writer = Arc::clone(shared);
    let close = move || {
        writer.standbys.give_up(None);
        writer.records.close();
        if let Some(network) = &writer.tools.network {
            network.close();
        }
    };
    if let Err(error) = shared.handle.spawn_blocking(close).await {
        tracing::error!(%error, "records and networks not closed");
    }
    match pools.iter().map(|pool| pool.alive()).sum() {
        0 => {
            shared.ground.release();
            Ok(())
        }
        left => Err(ShutdownError { left }),
    }
}

async fn emptied(pools: &[Arc<Pool>]) {
    for pool in pools {
        pool.emptied().await;
    }
}

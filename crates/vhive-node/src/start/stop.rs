//! The end of a sandbox.

use std::sync::Arc;

use vhive_sandbox::{Deadline, Journal};

use crate::node::Shared;
use crate::pool::{Gone, Running};

/// Stops a sandbox on a blocking thread: by its stop signal if it still runs, then by dropping it.
pub(crate) fn spawn_stop(shared: &Shared, gone: Gone, running: Running, journal: Arc<Journal>) {
    let grace = shared.config.stop_grace.0;
    let mut stop = Stop { parts: Some((running, gone)) };
    let stop = move || {
        let Some((running, gone)) = stop.parts.take() else { return };
        // Dropped in this order on return and on a panic alike: sandbox, room, count.
        let (_gone, _room, _origin) = (gone, running.room, running.origin);
        let mut sandbox = running.sandbox;
        if journal.ended().is_none() {
            sandbox.stop(Deadline::after(grace));
        }
    };
    drop(shared.handle.spawn_blocking(stop));
}

/// A stop that is still to run. If the async runtime is gone and will never run it, dropping this
/// does the rest on a thread of its own: whoever drops it may hold locks of the very sandbox.
struct Stop {
    parts: Option<(Running, Gone)>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        let Some((running, gone)) = self.parts.take() else { return };
        let release = move || {
            drop(running);
            drop(gone);
        };
        let thread = std::thread::Builder::new().name("vhive-stop".to_owned());
        if let Err(error) = thread.spawn(release) {
            tracing::error!(%error, "no thread to stop a sandbox on; it was dropped in place");
        }
    }
}

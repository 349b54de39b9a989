//! How many connections fit into the files that this process may have open.

use vhive_load::Load;
use vhive_node::raise_open_files;

use crate::output;

/// Files that are open beside connections: those of rows, the runtime's own, what is asked of the node.
const BESIDE: u64 = 64;

/// Raises the limit as far as it may be, and keeps connections to what is left of it: what does not fit
/// waits, and is late, where it would fail else.
pub(super) fn make_room(load: &mut Load) {
    match raise_open_files() {
        Ok(limit) => {
            let room = limit.map(|limit| usize::try_from(limit.saturating_sub(BESIDE)));
            load.most_in_all = room.and_then(Result::ok).unwrap_or(usize::MAX);
        }
        Err(error) => {
            output::note(format!("the number of open files cannot be raised: {error}"));
        }
    }
}

/// Says so when requests have waited for want of files.
pub(super) fn tell_room(load: &Load) {
    if let Some(most) = load.short_of.get() {
        output::note(format!(
            "at most {most} connections to one address instead of {}: no more files may be open (`ulimit -Hn` \
             raises it); requests beyond have waited, and are late",
            load.most_connections.max(load.connections)
        ));
    }
}

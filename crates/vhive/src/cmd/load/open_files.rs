//! How many connections fit into the files that this process may have open.

use vhive_load::Load;
use vhive_node::raise_open_files;

use crate::output;

/// Files that are open beside connections: those of rows, the runtime's own, what is asked of the node.
const BESIDE: u64 = 64;

/// Raises the limit as far as it may be, and keeps connections to what is left of it: what does not fit
/// waits, and is late, where it would fail else.
pub(super) fn make_room(load: &mut Load) {
    let limit = match raise_open_files() {
        Ok(limit) => limit,
        Err(error) => {
            output::note(format!("the number of open files cannot be raised: {error}"));
            return;
        }
    };
    let most = load.most_connections;
    if let Some(limit) = limit.filter(|limit| fit(load, *limit)) {
        output::note(format!(
            "at most {} connections to one address instead of {most}: {limit} files may be open (`ulimit -Hn` \
             raises it); requests beyond wait, and are late",
            load.most_connections
        ));
    }
}

/// Whether there are fewer connections now than asked for.
fn fit(load: &mut Load, limit: u64) -> bool {
    let room = usize::try_from(limit.saturating_sub(BESIDE)).unwrap_or(usize::MAX).max(1);
    let most = load.most_connections.max(load.connections);
    load.connections = load.connections.min(room);
    load.most_connections = load.most_connections.min(room);
    most > room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_to_the_files_that_may_be_open() {
        for (limit, (ahead, most), wanted) in [
            (1024, (8, 4096), ((8, 960), true)),
            (1024, (2000, 4096), ((960, 960), true)),
            (1 << 20, (2000, 4096), ((2000, 4096), false)),
            (3, (8, 4096), ((1, 1), true)),
        ] {
            let mut load = Load::to(Vec::new());
            (load.connections, load.most_connections) = (ahead, most);
            let fewer = fit(&mut load, limit);
            assert_eq!(((load.connections, load.most_connections), fewer), wanted, "{limit}");
        }
    }
}

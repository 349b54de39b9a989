//! Whether a restore that failed says something of the snapshot: by the runtime's own words, since the
//! process that was killed or refused the state is not a child of ours.

use super::tool::Tool;
use crate::runtime::{BootError, RestoreError};

/// gVisor's words for what comes before it reads any state.
const BEFORE: [&str; 3] =
    ["creating container:", "setting up network:", "connecting to control server"];

/// What the command hears when gVisor, or what serves it files, is gone in the middle.
const BROKEN_OFF: [&str; 4] =
    ["EOF", "connection reset by peer", "broken pipe", "input/output error"];

/// How the words of CRIU begin; who has been killed has none.
pub(super) const CRIU: &str = "CRIU: ";

/// How the words of a command go on that somebody has killed.
const KILLED: &str = " was killed by signal ";

/// What CRIU says of a process that is killed while it restores it.
const ITS_TASK: &str = " killed by signal ";

/// The error for a command that has failed with these words, in a sandbox whose memory was enough or
/// not.
pub(super) fn failed(tool: &Tool, reason: String, out_of_memory: bool) -> RestoreError {
    let program = tool.binary.display().to_string();
    let starts_so = reason.strip_prefix(&program).is_some_and(|words| words.starts_with(KILLED));
    let before = tool.is_gvisor() && BEFORE.iter().any(|words| reason.contains(words));
    if starts_so || before {
        return BootError::Spawn { program, reason }.into();
    }
    let broken_off = if tool.is_gvisor() {
        BROKEN_OFF.iter().any(|words| reason.ends_with(words))
    } else {
        !reason.starts_with(CRIU) || reason.contains(ITS_TASK)
    };
    if broken_off || out_of_memory {
        RestoreError::BrokenOff { program, reason }
    } else {
        RestoreError::State { program, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::config::{ContainerConfig, GvisorConfig};
    use crate::snapshot::Blame;

    #[test]
    fn only_a_refusal_is_held_against_the_snapshot() {
        let gvisor = Tool::runsc(GvisorConfig::default());
        let runc = Tool::runc(ContainerConfig::default());
        let restoring =
            "runsc exited with code 128: starting container: restoring container \"a\": ";
        let gone = "runsc exited with code 128: starting container: connecting to control server at PID 7:";
        for (tool, words, blamed) in [
            (&gvisor, "runsc was killed by signal 9: ", Blame::Host),
            (&gvisor, "runsc exited with code 128: creating container: cannot: EOF", Blame::Host),
            (&gvisor, &format!("{gone} connection refused"), Blame::Host),
            (&gvisor, &format!("{restoring}input/output error"), Blame::Either),
            (&gvisor, &format!("{restoring}statefile cannot be empty"), Blame::Snapshot),
            (&gvisor, "runsc exited with code 128: \tpkg/urpc.go:451 +0x6b", Blame::Snapshot),
            (&runc, "runc was killed by signal 9", Blame::Host),
            (&runc, "runc exited with code 1: read unixpacket @->@: EOF", Blame::Either),
            (&runc, "CRIU: 17 killed by signal 9: Killed", Blame::Either),
            (&runc, "CRIU: Unable to read inventory", Blame::Snapshot),
        ] {
            assert_eq!(failed(tool, words.to_owned(), false).blame(), blamed, "{words}");
            let starved = failed(tool, words.to_owned(), true).blame();
            assert_ne!(starved, Blame::Snapshot, "{words}");
        }
    }
}

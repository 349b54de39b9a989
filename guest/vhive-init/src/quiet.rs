//! The kernel's housekeeping, which a clone would have to catch up with.

use std::fs;
use std::io::ErrorKind;

use crate::failure::{Failure, Step as _};

/// Settings of the kernel that wake it up now and then, and what they are set to. Each has a timer that has
/// run out when a guest goes on after a snapshot, so that every clone would begin by looking after it.
///
/// # Source
/// <https://docs.kernel.org/admin-guide/sysctl/vm.html>: `compaction_proactiveness`, 0 = only on demand;
/// `stat_interval`, seconds between two times that counts of each processor are added up.
const QUIET: [(&str, &str); 2] =
    [("/proc/sys/vm/compaction_proactiveness", "0"), ("/proc/sys/vm/stat_interval", "600")];

/// Lets the kernel of a machine do its housekeeping rarely, or when there is need. Needs `/proc`.
pub(crate) fn housekeeping() -> Result<(), Failure> {
    for (setting, value) in QUIET {
        match fs::write(setting, value) {
            // A kernel without it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            written => written.step("quieten the kernel")?,
        }
    }
    Ok(())
}

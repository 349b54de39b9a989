//! Memory that processes take on the host.

use rustix::process::Pid;
use vhive_api::Bytes;

/// Memory of a sandbox's processes on the host, the VMM's own included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Resident: pages that others map as well count in full.
    pub rss: Bytes,
    /// Proportional: each page divided by the number of its mappings.
    pub pss: Bytes,
}

impl Footprint {
    /// Of these processes together; none if there are none, or one of them cannot be read.
    pub(crate) fn of(processes: &[Pid]) -> Option<Self> {
        let read = |pid: &Pid| {
            let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
            parse(&std::fs::read_to_string(path).ok()?)
        };
        let all: Vec<Self> = processes.iter().map(read).collect::<Option<_>>()?;
        let add = |sum: Self, one: Self| Self {
            rss: Bytes(sum.rss.0.saturating_add(one.rss.0)),
            pss: Bytes(sum.pss.0.saturating_add(one.pss.0)),
        };
        all.into_iter().reduce(add)
    }
}

/// # Source
/// `Documentation/ABI/testing/procfs-smaps_rollup`: `Rss:    884 kB`.
fn parse(text: &str) -> Option<Footprint> {
    let field = |name: &str| -> Option<Bytes> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        Some(Bytes(kib.checked_mul(1024)?))
    };
    Some(Footprint { rss: field("Rss")?, pss: field("Pss")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let text = "00100000-ff709000 ---p 00000000 00:00 0    [rollup]\n\
                    Rss:                 884 kB\nPss_Dirty:            10 kB\n\
                    Pss:                 385 kB\nPss_Anon:              1 kB\n";
        let read = parse(text).expect("both are there");
        assert_eq!((read.rss, read.pss), (Bytes(884 * 1024), Bytes(385 * 1024)));
        for strange in ["", "Rss: 1 kB\n", "Rss: 1 kB\nPss: -1 kB\n", "Rss: 1 MB\nPss: 1 MB\n"] {
            assert_eq!(parse(strange), None, "{strange:?}");
        }
    }

    #[test]
    fn this_process_takes_memory_and_nobody_takes_none() {
        let own = Footprint::of(&[rustix::process::getpid()]).expect("may be read");
        assert!(own.rss >= own.pss && own.pss.0 > 0, "{own:?}");
        assert_eq!(Footprint::of(&[]), None);
        let nobody = Pid::from_raw(i32::MAX).expect("above the kernel's limit");
        assert_eq!(Footprint::of(&[rustix::process::getpid(), nobody]), None);
    }
}

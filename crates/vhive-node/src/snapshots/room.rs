//! Whether the disk has room for one more snapshot: what else lies on it must go on being written.

use std::path::Path;

use vhive_api::Bytes;

/// Most that has to stay free, in bytes.
const MOST_RESERVE: u64 = 1 << 30;

/// The disk would be too full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room: it takes up to {needed}, of {free} free on the disk of the snapshots {reserve} have to \
     stay free; remove snapshots, or lower node.snapshots.max_bytes"
)]
pub struct NoRoom {
    /// What the snapshot may take up while it is written.
    pub needed: Bytes,
    /// What is free.
    pub free: Bytes,
    /// What has to stay free: a twentieth of the disk, at most 1 GiB.
    pub reserve: Bytes,
}

/// Looks at the disk of a directory. One that cannot be looked at has room: writing will tell.
pub(super) fn look(dir: &Path, needed: Bytes) -> Result<(), NoRoom> {
    let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    fits(needed.0, free, disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn fits(needed: u64, free: u64, whole: u64) -> Result<(), NoRoom> {
    let reserve = (whole / 20).min(MOST_RESERVE);
    if needed.saturating_add(reserve) <= free {
        return Ok(());
    }
    Err(NoRoom { needed: Bytes(needed), free: Bytes(free), reserve: Bytes(reserve) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_disk_or_a_gibibyte_stays_free() {
        let (mib, gib) = (1 << 20, 1 << 30);
        for (needed, free, whole, good) in [
            (128 * mib, 200 * mib, 256 * mib, true),
            (128 * mib, 140 * mib, 256 * mib, false),
            (0, 0, 0, true),
            (gib, 2 * gib, 1000 * gib, true),
            (gib, 2 * gib - 1, 1000 * gib, false),
            (u64::MAX, u64::MAX - 1, gib, false),
        ] {
            let found = fits(needed, free, whole);
            assert_eq!(found.is_ok(), good, "{needed} {free} {whole}");
        }
        let short = fits(128 * mib, 64 * mib, 256 * mib).unwrap_err();
        assert!(
            short.to_string().contains("128MiB") && short.to_string().contains("64MiB"),
            "{short}"
        );
        assert_eq!(look(Path::new("/no/such/directory"), Bytes(u64::MAX)), Ok(()));
    }
}

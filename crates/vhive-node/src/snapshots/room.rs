//! Whether the disk has room for one more snapshot: what else lies on it must go on being written.
//!
//! What is being taken has its room reserved until it is complete: of several at once each sees what the others are
//! going to write. What of that has been written already counts twice meanwhile, which is on the safe side.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use vhive_api::Bytes;

/// Most that has to stay free, in bytes.
const MOST_RESERVE: u64 = 1 << 30;

/// The disk would be too full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room: it takes up to {needed}, of {free} free on the disk of the snapshots {reserve} have to \
     stay free{}; remove snapshots, or lower node.snapshots.max_bytes", taken(*reserved)
)]
pub struct NoRoom {
    /// What the snapshot may take up while it is written.
    pub needed: Bytes,
    /// What is free.
    pub free: Bytes,
    /// What others that are being taken are going to write of that, at most.
    pub reserved: Bytes,
    /// What has to stay free: a twentieth of the disk, at most 1 GiB.
    pub reserve: Bytes,
}

fn taken(reserved: Bytes) -> String {
    match reserved {
        Bytes(0) => String::new(),
        reserved => format!(", and others that are being taken may write {reserved}"),
    }
}

/// Bytes that are going to be written.
#[derive(Debug, Default)]
pub(super) struct Reserved(Arc<Mutex<u64>>);

/// Room for one snapshot; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    of: Arc<Mutex<u64>>,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.of.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

impl Reserved {
    /// Reserves room on the disk of a directory.
    pub(super) fn reserve(&self, dir: &Path, needed: Bytes) -> Result<Room, NoRoom> {
        // Nothing panics while it holds the lock, so a poisoned sum is still right.
        let mut reserved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(dir, needed, *reserved)?;
        let bytes = needed.0.min(u64::MAX - *reserved);
        *reserved += bytes;
        Ok(Room { of: Arc::clone(&self.0), bytes })
    }

    /// Whether there is room for so much beside what is reserved.
    pub(super) fn look(&self, dir: &Path, needed: Bytes) -> Result<(), NoRoom> {
        let reserved = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(dir, needed, reserved)
    }
}

/// Looks at the disk of a directory. One that cannot be looked at has room: writing will tell.
fn look(dir: &Path, needed: Bytes, reserved: u64) -> Result<(), NoRoom> {
    let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let of = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    fits((needed.0, reserved), of(disk.f_bavail), of(disk.f_blocks))
}

fn fits((needed, reserved): (u64, u64), free: u64, whole: u64) -> Result<(), NoRoom> {
    let reserve = (whole / 20).min(MOST_RESERVE);
    if needed.saturating_add(reserve).saturating_add(reserved) <= free {
        return Ok(());
    }
    let [needed, free, reserved, reserve] = [needed, free, reserved, reserve].map(Bytes);
    Err(NoRoom { needed, free, reserved, reserve })
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
            let found = fits((needed, 0), free, whole);
            assert_eq!(found.is_ok(), good, "{needed} {free} {whole}");
        }
        let short = fits((128 * mib, 0), 64 * mib, 256 * mib).unwrap_err().to_string();
        assert!(short.contains("128MiB") && short.contains("64MiB"), "{short}");
        assert!(!short.contains("others"), "{short}");
        let short = fits((128 * mib, 96 * mib), 200 * mib, 256 * mib).unwrap_err().to_string();
        assert!(short.contains("200MiB") && short.contains("others") && short.contains("96MiB"));
        assert!(fits((128 * mib, 48 * mib), 200 * mib, 256 * mib).is_ok());
        assert_eq!(look(Path::new("/no/such/directory"), Bytes(u64::MAX), 0), Ok(()));
    }

    #[test]
    fn what_two_take_at_once_is_counted_together() {
        let dir = tempfile::tempdir().unwrap();
        let disk = rustix::fs::statvfs(dir.path()).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        let reserve = (disk.f_blocks * disk.f_frsize / 20).min(MOST_RESERVE);
        let Some(usable) = free.checked_sub(reserve).filter(|usable| *usable > 1 << 20) else {
            println!("SKIP what_two_take_at_once_is_counted_together: a disk with room");
            return;
        };
        let reserved = Reserved::default();
        // Three fifths each of what there is.
        let each = Bytes(usable / 5 * 3);
        let first = reserved.reserve(dir.path(), each).expect("there is room for one");
        let none = reserved.reserve(dir.path(), each).expect_err("not for two");
        assert!(none.needed == each && none.reserved == each && none.free.0 > each.0, "{none}");
        reserved.look(dir.path(), each).expect_err("nor for an archive");
        drop(first);
        drop(reserved.reserve(dir.path(), each).expect("it has been given back"));
        assert_eq!(*reserved.0.lock().unwrap(), 0);
    }
}

//! What a store finds when a node begins.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhive_api::{Digest, RuntimeName};
use vhive_sandbox::snapshot::{Blame, MANIFEST, OpenError};
use vhive_sandbox::{Snapshot, SnapshotDraft};

use super::archive::IMPORT;
use super::owners::KEPT;
use super::stored::{REMOVED, Stored, TOMBSTONE, chain, working_set};
use super::{SnapshotId, stored};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct StoreError {
    /// The directory or file.
    path: PathBuf,
    /// Why not.
    #[source]
    source: io::Error,
}

type Entries = BTreeMap<SnapshotId, Arc<Stored>>;

/// Opens the directory: half-made things go, damaged snapshots are retired and counted, what
/// cannot be read is left alone, the others are listed. Contents are not read.
pub(super) fn open(dir: &Path) -> Result<(Entries, u64), StoreError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError { path, source }
    };
    make_dir(dir).map_err(at(dir))?;
    let (mut entries, mut retired) = (Entries::new(), 0);
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with(REMOVED) || name.starts_with(IMPORT) {
            fs::remove_dir_all(&path).map_err(at(&path))?;
            continue;
        }
        let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else {
            tracing::warn!(path = %path.display(), "not a snapshot; left alone");
            continue;
        };
        for entry in fs::read_dir(&path).map_err(at(&path))? {
            let path = entry.map_err(at(&path))?.path();
            match look_at(&path, digest, dir) {
                Ok(Found::Sound(id, stored)) => {
                    // Of two, the one that lies where earlier versions put it is the older.
                    let older = id.digest != digest && entries.contains_key(&id);
                    let other = if older { Some(stored) } else { entries.insert(id, stored) };
                    if let Some(other) = other {
                        let dir = other.snapshot.dir();
                        fs::remove_dir_all(dir).map_err(at(dir))?;
                        let _in_use = dir.parent().map(fs::remove_dir);
                    }
                }
                Ok(Found::HalfMade) => fs::remove_dir_all(&path).map_err(at(&path))?,
                Ok(Found::Foreign) => {
                    tracing::warn!(path = %path.display(), "not a snapshot; left alone");
                }
                Err(error) if error.blame() != Blame::Snapshot => {
                    // Another version may read it, or the next node when the host is well.
                    let why = chain(&error);
                    tracing::warn!(path = %path.display(), why, "snapshot not read; left alone");
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!(path = %path.display(), why, "damaged snapshot retired");
                    fs::remove_dir_all(&path).map_err(at(&path))?;
                    retired += 1;
                }
            }
        }
        // Only if nothing is left in it.
        let _in_use = fs::remove_dir(&path);
    }
    Ok((entries, retired))
}

enum Found {
    Sound(SnapshotId, Arc<Stored>),
    HalfMade,
    Foreign,
}

fn look_at(path: &Path, digest: Digest, root: &Path) -> Result<Found, OpenError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if SnapshotDraft::is_draft(name) || path.join(TOMBSTONE).exists() {
        return Ok(Found::HalfMade);
    }
    let runtime = RuntimeName::ALL.into_iter().find(|runtime| runtime.as_str() == name);
    let Some(runtime) = runtime.filter(|_| path.is_dir()) else { return Ok(Found::Foreign) };
    let snapshot = Snapshot::open(path)?;
    let manifest = snapshot.manifest();
    let damaged =
        |what: &str| Err(OpenError::Damaged { path: path.join(MANIFEST), what: what.to_owned() });
    let id = SnapshotId::of_owner(&manifest.owner, runtime);
    // Earlier versions named the directory after the revision's digest alone.
    if digest != id.digest && digest != manifest.owner.digest {
        return damaged("it belongs to another revision");
    }
    if manifest.platform.runtime != runtime {
        return damaged("it belongs to another runtime");
    }
    let read = |source| OpenError::Read { path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let known = name == MANIFEST
            || name == KEPT
            || manifest.files.contains_key(&*name)
            || working_set(&name).is_some();
        if !known {
            // A working set that was being written.
            stored::remove_any(&entry.path()).map_err(read)?;
        }
    }
    let stored = Stored::new(id, snapshot, root, false).map_err(read)?;
    Ok(Found::Sound(id, stored))
}

/// Makes a directory for root alone, if it is not there.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

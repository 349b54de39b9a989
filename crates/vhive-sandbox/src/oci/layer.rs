//! The layer that every container's root has on top: the program that becomes its first process.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use vhive_api::Digest;

use crate::kernel::init_binary;
use crate::runtime::HostLacks;

/// The program's path in a container.
pub(super) const INIT: &str = "/.vhive-init";

/// The directories of a layer that has been made.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// With init in it, and the places where a runtime mounts.
    pub(super) init: PathBuf,
    /// What stands for an image where there is none.
    pub(super) empty: PathBuf,
}

impl Layer {
    /// Makes it below a directory, under a name that says what is in it, unless it is there.
    pub(super) fn make(cache: &Path) -> Result<Self, HostLacks> {
        let name = format!("init-{}", &Digest::of(init_binary()).hex()[..16]);
        let dir = cache.join(&name);
        let layer = Self { init: dir.join("layer"), empty: dir.join("empty") };
        if !dir.exists() {
            publish(cache, &dir).map_err(|error| HostLacks {
                what: format!("{} cannot be written ({error})", dir.display()),
                fix: "make room, or choose another node.state_dir".to_owned(),
            })?;
        }
        Ok(layer)
    }
}

fn publish(cache: &Path, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    let draft = tempfile::Builder::new().prefix("init-draft-").tempdir_in(cache)?;
    // A temporary directory is its owner's; the layer's root becomes every container's.
    let open = || Permissions::from_mode(0o755);
    fs::set_permissions(draft.path(), open())?;
    for place in ["layer/proc", "layer/dev", "layer/sys", "empty"] {
        fs::create_dir_all(draft.path().join(place))?;
    }
    for place in ["layer", "layer/proc", "layer/dev", "layer/sys", "empty"] {
        fs::set_permissions(draft.path().join(place), open())?;
    }
    let init = draft.path().join("layer").join(INIT.trim_start_matches('/'));
    fs::write(&init, init_binary())?;
    fs::set_permissions(&init, Permissions::from_mode(0o555))?;
    fs::File::open(&init)?.sync_all()?;
    match fs::rename(draft.path(), dir) {
        Ok(()) => {
            // Under its new name it is nothing temporary any more.
            let _ = draft.keep();
            Ok(())
        }
        // Somebody else was first, with the same content.
        Err(_) if dir.exists() => Ok(()),
        Err(error) => Err(error),
    }
}

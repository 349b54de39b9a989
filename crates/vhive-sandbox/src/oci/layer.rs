//! The layers that every container's root has: on top the program that becomes its first process,
//! below the image the directories that programs expect. Whose image lacks them has those; made anew
//! in each container they would be kernel memory of each.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use vhive_api::Digest;
use vhive_api::inside::USUAL_DIRECTORIES;

use crate::kernel::init_binary;
use crate::runtime::HostLacks;

/// The program's path in a container.
pub(super) const INIT: &str = "/.vhive-init";

/// To be counted up with what is beside the program, and with what is mounted in every container: a
/// snapshot goes with it.
pub(super) const EDITION: u32 = 3;

/// The directories of a layer that has been made.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// With init in it, and the places where a runtime mounts.
    pub(super) init: PathBuf,
    /// What stands for an image where there is none.
    pub(super) empty: PathBuf,
    /// To be below an image.
    pub(super) usual: PathBuf,
}

impl Layer {
    /// Makes it below a directory, under a name that says what is in it, unless it is there.
    pub(super) fn make(cache: &Path) -> Result<Self, HostLacks> {
        let name = format!("init-{}-{EDITION}", &Digest::of(init_binary()).hex()[..16]);
        let dir = cache.join(&name);
        let [init, empty, usual] = ["layer", "empty", "usual"].map(|part| dir.join(part));
        let layer = Self { init, empty, usual };
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
    let usual = draft.path().join("usual");
    for (path, mode) in USUAL_DIRECTORIES {
        let place = usual.join(path.trim_start_matches('/'));
        fs::create_dir_all(&place)?;
        for dir in place.ancestors().take_while(|dir| dir.starts_with(&usual)) {
            fs::set_permissions(dir, open())?;
        }
        fs::set_permissions(place, Permissions::from_mode(mode))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_directories_are_open_to_whom_they_should_be() {
        let cache = tempfile::tempdir().expect("a directory");
        let layer = Layer::make(cache.path()).expect("made");
        let mode = |path: &str| {
            let there = fs::metadata(layer.usual.join(path)).expect("there");
            there.permissions().mode() & 0o7777
        };
        let modes = ["", "tmp", "var", "var/tmp", "run"].map(mode);
        assert_eq!(modes, [0o755, 0o1777, 0o755, 0o1777, 0o755]);
    }
}

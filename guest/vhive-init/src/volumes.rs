//! The files that a function is given: config maps and secrets, in memory.
//!
//! Each volume is a tmpfs that init fills and closes for writing. In a microVM init mounts it, in
//! gVisor the runtime has. In other containers, where init may do neither, the volumes are there before
//! init is, and it is told of none.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_remount};
use vhive_api::guest::Volume;

use crate::World;
use crate::failure::{Failure, Step as _};

/// Puts every volume in its place. One may lie in another, which comes first.
pub(crate) fn place(volumes: &[Volume], world: World) -> Result<(), Failure> {
    let mut sorted: Vec<&Volume> = volumes.iter().collect();
    sorted.sort_by(|one, two| one.path.cmp(&two.path));
    let flags = MountFlags::NOSUID.union(MountFlags::NODEV);
    for volume in &sorted {
        let step = || format!("mount the volume at {}", volume.path);
        if world == World::Machine {
            fs::create_dir_all(&volume.path).step(step())?;
            mount("tmpfs", volume.path.as_str(), "tmpfs", flags, c"mode=0755").step(step())?;
        }
        fill(Path::new(&volume.path), volume).step(step())?;
    }
    for volume in &sorted {
        let step = || format!("close the volume at {}", volume.path);
        let closed = flags.union(MountFlags::RDONLY);
        mount_remount(volume.path.as_str(), closed, c"").step(step())?;
    }
    Ok(())
}

/// Writes a volume's files below a directory.
fn fill(dir: &Path, volume: &Volume) -> Result<(), String> {
    for file in &volume.files {
        let path = below(dir, &file.path).ok_or_else(|| format!("unfit path {:?}", file.path))?;
        let bytes = file.content.bytes().ok_or_else(|| format!("{} is damaged", file.path))?;
        let told = |error: std::io::Error| format!("{}: {error}", file.path);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(told)?;
        }
        let mut open = OpenOptions::new();
        // Nobody reads it before it has its mode.
        let mut made = open.write(true).create_new(true).mode(0o600).open(&path).map_err(told)?;
        made.write_all(&bytes).map_err(told)?;
        made.set_permissions(Permissions::from_mode(file.mode & 0o777)).map_err(told)?;
    }
    Ok(())
}

/// A path that does not lead out of a directory.
fn below(dir: &Path, path: &str) -> Option<PathBuf> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !path.is_empty()).then(|| dir.join(path))
}

#[cfg(test)]
mod tests {
    use vhive_api::guest::{Content, VolumeFile};

    use super::*;

    fn volume(path: &str) -> Volume {
        let content = Content::of(vec![0xff, 0x00]);
        Volume {
            path: String::new(),
            files: vec![VolumeFile { path: path.to_owned(), mode: 0o440, content }],
        }
    }

    #[test]
    fn files_have_their_bytes_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &volume("deep/down/key")).unwrap();
        let path = dir.path().join("deep/down/key");
        assert_eq!(fs::read(&path).unwrap(), [0xff, 0x00]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o440);
    }

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "."] {
            assert!(fill(dir.path(), &volume(path)).is_err(), "{path:?}");
        }
    }
}

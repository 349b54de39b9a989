//! The files that a function is given, where the host's kernel is the container's: memory that is
//! filled and closed before the container is made, in the mount namespace that its runtime is started
//! in, which it goes with. Init could fill such a volume, but not close it.
//!
//! (In gVisor they are init's: what its kernel has mounted is in a checkpoint.)

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_remount};
use vhive_api::guest::Volume;

/// Name of the volumes' directory in a bundle.
const DIR: &str = "volumes";

/// The volumes with their places in a bundle. One may lie in another, which comes first.
pub(super) fn places<'a>(
    volumes: &'a [Volume],
    bundle: &Path,
) -> impl Iterator<Item = (&'a Volume, PathBuf)> {
    let mut sorted: Vec<&Volume> = volumes.iter().collect();
    sorted.sort_unstable_by(|one, two| one.path.cmp(&two.path));
    let dir = bundle.join(DIR);
    sorted.into_iter().enumerate().map(move |(n, volume)| (volume, dir.join(n.to_string())))
}

/// Makes them in the calling thread's mount namespace, which must be its own.
pub(super) fn make(volumes: &[Volume], bundle: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID.union(MountFlags::NODEV);
    for (volume, place) in places(volumes, bundle) {
        fs::create_dir_all(&place)?;
        mount("tmpfs", &place, "tmpfs", flags, Some(c"mode=0755"))?;
        fill(&place, volume)?;
        let inner = volumes
            .iter()
            .filter_map(|other| Path::new(&other.path).strip_prefix(&volume.path).ok());
        for inner in inner {
            // Where another volume goes: it cannot be made any more later.
            open_dirs().create(place.join(inner))?;
        }
        mount_remount(&place, flags | MountFlags::RDONLY, c"")?;
    }
    Ok(())
}

fn open_dirs() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder
}

fn fill(place: &Path, volume: &Volume) -> io::Result<()> {
    for file in &volume.files {
        let unfit = |what: &str| {
            let what = format!("{} in {}: {what}", file.path, volume.path);
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        let mut parts = Path::new(&file.path).components();
        let plain = parts.all(|part| matches!(part, Component::Normal(_)));
        if !plain || file.path.is_empty() {
            return Err(unfit("leads out of its volume"));
        }
        let bytes = file.content.bytes().ok_or_else(|| unfit("is damaged"))?;
        let path = place.join(&file.path);
        if let Some(parent) = path.parent() {
            open_dirs().create(parent)?;
        }
        let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        made.write_all(&bytes)?;
        made.set_permissions(Permissions::from_mode(file.mode & 0o777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vhive_api::guest::{Content, VolumeFile};

    use super::*;

    fn volume(path: &str, file: &str) -> Volume {
        let content = Content::of(b"text".to_vec());
        let files = vec![VolumeFile { path: file.to_owned(), mode: 0o440, content }];
        Volume { path: path.to_owned(), files }
    }

    #[test]
    fn outer_volumes_come_first_and_no_file_leads_out() {
        let volumes = [volume("/etc/app/own", "key"), volume("/etc/app", "deep/conf")];
        let bundle = Path::new("/bundle");
        let order: Vec<_> =
            places(&volumes, bundle).map(|(v, dir)| (v.path.clone(), dir)).collect();
        let wanted = [("/etc/app", "/bundle/volumes/0"), ("/etc/app/own", "/bundle/volumes/1")];
        assert_eq!(order, wanted.map(|(path, dir)| (path.to_owned(), PathBuf::from(dir))));
        let dir = tempfile::tempdir().expect("a temporary directory");
        fill(dir.path(), &volumes[1]).expect("filled");
        let file = dir.path().join("deep/conf");
        assert_eq!(fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o440);
        for path in ["", "/etc/passwd", "../x", "a/../../x", "."] {
            assert!(fill(dir.path(), &volume("/etc", path)).is_err(), "{path:?}");
        }
    }
}

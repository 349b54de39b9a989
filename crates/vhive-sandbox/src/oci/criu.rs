//! Snapshots of runc's containers, by CRIU; also of crun's, if it is built with it.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► runc pause ─► runc checkpoint --leave-running   (CRIU: processes)
//!                   ─► tar: what was written to the root ─► thaw ─► Resume
//!   a clone:  tar into a new layer ─► runc restore --detach ─► its host name ─► Resume{name}
//! ```
//!
//! CRIU saves the processes, their memory and the file systems in memory that the runtime has
//! mounted; of the root, which is an overlay, it saves nothing. So the layer that was written to is
//! saved beside it while nothing runs: memory and files are of one moment. The two pipes to init are
//! CRIU's “inherited descriptors”: runc gives a restored container's first process new ones.
//!
//! CRIU must know the host's kernel: whether this one does is found out by [`super::criu_probe`].
//!
//! # Source
//! CRIU, `Documentation/criu.txt`; runc, `man/runc-checkpoint.8.md`; crun, `src/checkpoint.c`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::mount::mount_bind;
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::{Digest, SandboxId};

use super::blame;
use super::command;
use super::layer;
use super::probe::Found;
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{self, time_to_go_on};
use crate::deadline::Deadline;
use crate::host::processor;
use crate::kernel::init_binary;
use crate::linux::host_kernel;
use crate::runtime::SnapshotError;
use crate::snapshot::{MEMORY, MemoryShape, Platform, Snapshot, SnapshotDraft, VM_STATE};

use super::sandbox::OciSandbox;

/// The layer that was written to, in a snapshot and beside CRIU's images.
pub(super) const CHANGES: &str = "changes";

/// How CRIU names the memory of the first process, of the others, and how we do.
const FIRST_PAGES: &str = "pages-1.img";

/// Most files of memory: one per process.
const MOST_PAGES: usize = 12;

/// Name of a bundle's file with options that runc knows no words for. crun reads it from 1.27 on.
pub(super) const OPTIONS: &str = "criu.conf";

/// A connection to elsewhere is closed in a clone, as if its other end had gone; a file that was
/// deleted and is still open is saved up to that size, in bytes.
const OPTIONS_TEXT: &str = "tcp-close\nghost-limit 67108864\n";

/// How long it may take to unpack a layer into memory.
const UNPACKING: Duration = Duration::from_secs(60);

/// What a booted container's snapshots are made with.
#[derive(Clone, Debug)]
pub(super) struct Criu {
    pub(super) tool: Tool,
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
    pub(super) changes: Changes,
}

/// The directory of the layer that a container writes to, in a mount that nobody else sees; empty
/// until that has been mounted.
pub(super) type Changes = Arc<OnceLock<OwnedFd>>;

/// What snapshots are taken on. CRIU puts a process' parts together again from what its kernel shows
/// of them, so they are for this kernel.
pub(super) fn platform(found: &Found, criu: &str) -> Platform {
    Platform {
        runtime: found.tool.name,
        version: format!("{}, CRIU {criu}, {}", found.version, surroundings()),
        cpu: processor(),
        kernel: Some(Digest::of(init_binary())),
        page_size: u32::try_from(rustix::param::page_size()).unwrap_or(0),
    }
}

/// What containers are saved and restored with besides: the kernel, and what is mounted in each of
/// them, which is part of what is saved.
pub(super) fn surroundings() -> String {
    // Where that cannot be read no container is made.
    let groups = cgroup::names_shown().unwrap_or_default();
    surrounded_by(&host_kernel(), layer::EDITION, &groups)
}

fn surrounded_by(kernel: &str, edition: u32, groups: &[String]) -> String {
    format!("Linux {kernel}, layer {edition}, groups {}", groups.join(" "))
}

/// Writes the options' file of a bundle.
pub(super) fn write_options(bundle: &Path) -> io::Result<()> {
    fs::write(bundle.join(OPTIONS), OPTIONS_TEXT)
}

impl Criu {
    /// Takes a snapshot, as [`crate::Checkpoint::snapshot_into`] does.
    pub(super) fn snapshot(
        self,
        of: &OciSandbox,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let guest_ns = contract::prepare(&of.supervised, deadline)?;
        let running = Running {
            tool: &self.tool,
            id: &of.id,
            bundle: of.dir.path(),
            netns: &of.netns,
            cgroup: &of.cgroup,
            changes: &self.changes,
        };
        let written = running.save(draft, deadline);
        let resumed = contract::go_on(&of.supervised, &of.id, time_to_go_on(deadline));
        // A sandbox that stands still is the worse news.
        resumed?;
        written?;
        let network = Some(of.network.guest().clone());
        draft.describe(self.platform, self.shape, network, guest_ns);
        Ok(())
    }
}

/// A container that runs, with what is needed to save it.
#[derive(Debug)]
pub(super) struct Running<'a> {
    pub(super) tool: &'a Tool,
    pub(super) id: &'a SandboxId,
    pub(super) bundle: &'a Path,
    pub(super) netns: &'a OwnedFd,
    pub(super) cgroup: &'a Cgroup,
    pub(super) changes: &'a Changes,
}

/// Lets a container that stands still run again when it is dropped.
struct Still<'a>(&'a Cgroup);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

impl Running<'_> {
    fn save(&self, draft: &mut SnapshotDraft, deadline: Deadline) -> Result<(), SnapshotError> {
        let image = draft.dir().join("image");
        let failed = |reason| SnapshotError::Runtime { step: "checkpoint the container", reason };
        self.save_into(&image, deadline).map_err(failed)?;
        let pages = pages_of(&image).map_err(|error| failed(error.to_string()))?;
        if pages.len() > MOST_PAGES {
            let what = format!("{} processes are more than {MOST_PAGES}", pages.len());
            return Err(failed(what));
        }
        for name in pages {
            draft.adopt(ours(&name), &image.join(&name))?;
        }
        draft.adopt(CHANGES, &image.join(CHANGES))?;
        let state = draft.dir().join("state");
        pack(&image, &state, &[], deadline).map_err(failed)?;
        draft.adopt(VM_STATE, &state)?;
        // It is in the state now.
        let _ = fs::remove_dir_all(&image);
        Ok(())
    }

    /// Writes CRIU's images and the layer into a directory, which is made.
    ///
    /// # Errors
    /// The commands' own words.
    pub(super) fn save_into(&self, image: &Path, deadline: Deadline) -> Result<(), String> {
        let log = self.bundle.join("criu");
        let layer = self.changes.get().ok_or("nobody knows the container's layer")?;
        for dir in [image, &log] {
            fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        }
        let _still = Still(self.cgroup);
        self.run(&["pause", self.id.as_str()], deadline)?;
        let (into, work) = (image.to_string_lossy(), log.to_string_lossy());
        let mut words = vec!["checkpoint", "--leave-running", "--file-locks"];
        words.extend(["--image-path", &into, "--work-path", &work, self.id.as_str()]);
        let saved = self.run(&words, deadline);
        saved.map_err(|said| own_words(&log.join("dump.log"), said))?;
        let layer = PathBuf::from(format!("/proc/self/fd/{}", layer.as_fd().as_raw_fd()));
        pack(&layer, &image.join(CHANGES), &XATTRS, deadline)
    }

    fn run(&self, command: &[&str], deadline: Deadline) -> Result<(), String> {
        let words = self.tool.words(&self.bundle.join("runtime"), command);
        command::run_inside(self.netns, self.tool, &words, deadline)
    }
}

/// What overlayfs notes on files goes along, but for where they once came from: that is another
/// mount then.
const XATTRS: [&str; 4] = [
    "--xattrs",
    "--xattrs-include=*",
    "--xattrs-exclude=trusted.overlay.origin",
    "--xattrs-exclude=trusted.overlay.uuid",
];

fn pack(dir: &Path, into: &Path, more: &[&str], deadline: Deadline) -> Result<(), String> {
    // Opened here: what `dir` means to us it does not mean to a child.
    let dir = File::open(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let words = ["--create", "--sparse", "--numeric-owner", "--directory=/proc/self/fd/0"];
    let mut words: Vec<OsString> = words.iter().chain(more).map(OsString::from).collect();
    words.extend(["--file".into(), into.into(), ".".into()]);
    command::succeed(Path::new("tar"), &words, Some(dir.as_fd()), deadline)
}

fn unpack(file: &Path, into: &Path, more: &[&str]) -> Result<(), String> {
    let file = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let words = ["--extract", "--numeric-owner", "--same-owner", "--preserve-permissions"];
    let mut words: Vec<OsString> = words.iter().chain(more).map(OsString::from).collect();
    words.extend(["--file=-".into(), "--directory".into(), into.into()]);
    command::succeed(Path::new("tar"), &words, Some(file.as_fd()), Deadline::after(UNPACKING))
}

/// Puts a snapshot's layer into the directory that a clone will write to.
pub(super) fn unpack_changes(image: &Path, upper: &Path) -> io::Result<()> {
    unpack(&image.join(CHANGES), upper, &XATTRS).map_err(io::Error::other)
}

/// Puts the files of memory among CRIU's other images, in the calling thread's mount namespace. CRIU
/// opens them when it has another root already, where a link would lead nowhere.
pub(super) fn mount_memory(image: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(image.join(MEMORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let place = image.join(entry.file_name());
        File::create_new(&place)?;
        mount_bind(entry.path(), &place)?;
    }
    Ok(())
}

/// The files of memory among CRIU's images.
fn pages_of(image: &Path) -> io::Result<Vec<String>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(image)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("pages-") {
            pages.push(name);
        }
    }
    Ok(pages)
}

/// Our name of a file of memory.
fn ours(theirs: &str) -> &str {
    if theirs == FIRST_PAGES { MEMORY } else { theirs.trim_end_matches(".img") }
}

/// Makes a directory with a snapshot's images under the names that CRIU looks for.
///
/// # Errors
/// What is wrong with the snapshot's state.
pub(super) fn lay_out(from: &Snapshot, image: &Path) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let memory = image.join(MEMORY);
    fs::create_dir_all(&memory).map_err(failed)?;
    for name in from.manifest().files.keys() {
        let place = match name.as_str() {
            VM_STATE => continue,
            MEMORY => memory.join(FIRST_PAGES),
            CHANGES => image.join(CHANGES),
            name => memory.join(format!("{name}.img")),
        };
        symlink(from.dir().join(name), place).map_err(failed)?;
    }
    unpack(&from.dir().join(VM_STATE), image, &[])
}

/// Gives a restored container's host name, which its init may not change.
///
/// # Errors
/// Any I/O error.
pub(super) fn name(pid: Pid, hostname: &str) -> io::Result<()> {
    thread::scope(|scope| {
        let naming = scope.spawn(|| {
            let names = File::open(format!("/proc/{}/ns/uts", pid.as_raw_nonzero()))?;
            let kind = LinkNameSpaceType::HostNameAndNISDomainName;
            move_into_link_name_space(names.as_fd(), Some(kind))?;
            Ok(rustix::system::sethostname(hostname.as_bytes())?)
        });
        naming.join().unwrap_or_else(|_| Err(io::Error::other("the naming thread panicked")))
    })
}

/// CRIU's last error, if it has logged one: runc says only where the log is.
pub(super) fn own_words(log: &Path, said: String) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    match last_error(&text) {
        Some(last) => format!("{}{last}", blame::CRIU),
        None => said,
    }
}

/// The first error that is of consequence: the others follow from it.
fn last_error(log: &str) -> Option<&str> {
    let errors = log.lines().filter_map(|line| line.split_once("Error ").map(|(_, error)| error));
    // It asks for more files than it may have, and goes on.
    let mut errors = errors.filter(|error| !error.contains("rlimit"));
    errors.next().map(|error| error.split_once("): ").map_or(error, |(_, words)| words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criu_says_is_told_instead_of_where() {
        let log = "(00.1) Warn  (criu/kerndat.c:1): built without\n\
            (00.2) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n\
            (00.3) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n\
            (00.4) Error (criu/cr-dump.c:1): Dumping FAILED.\n";
        assert_eq!(last_error(log), Some("vdso: Unexpected rt vDSO area bounds"));
        assert_eq!(last_error("(00.1) fine\n"), None);
        let said = own_words(Path::new("/no/such/log"), "exited with code 1".to_owned());
        assert_eq!(said, "exited with code 1");
    }

    #[test]
    fn a_snapshot_is_for_the_mounts_that_it_was_taken_with() {
        let of = |edition, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|name| (*name).to_owned()).collect();
            surrounded_by("6.1", edition, &groups)
        };
        let was = of(3, &["memory", "pids"]);
        assert_ne!(was, of(4, &["memory", "pids"]));
        assert_ne!(was, of(3, &["memory"]));
        let now = cgroup::names_shown().expect("readable");
        assert!(surroundings().ends_with(&now.join(" ")), "{now:?}");
    }

    #[test]
    fn memory_is_called_memory() {
        assert_eq!((ours("pages-1.img"), ours("pages-12.img")), (MEMORY, "pages-12"));
    }

    #[test]
    fn a_layer_comes_back_as_it_was() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("deep/file"), "text").unwrap();
        fs::set_permissions(from.join("deep/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("deep/file"), from.join("same")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let deadline = Deadline::after(Duration::from_secs(20));
        pack(&from, &dir.path().join(CHANGES), &XATTRS, deadline).unwrap();
        unpack_changes(dir.path(), &to).unwrap();
        let file = fs::metadata(to.join("deep/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4751, 2));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(pack(&dir.path().join("none"), &to.join("x"), &[], deadline).is_err());
    }
}

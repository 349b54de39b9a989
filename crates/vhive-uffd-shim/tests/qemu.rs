//! A real QEMU with the library preloaded: its guest's memory comes from the pager, page by page.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vhive_api::Digest;
use vhive_pager::{
    Mode, Pager, PagerConfig, PrefetchPolicy, PreparedMemory, handshake, sys, working_set,
};

const QEMU: &str = "qemu-system-x86_64";
const MEMORY_BYTES: u64 = 128 << 20;
/// Where the test's own content lies: above what firmware uses.
const MARK_AT: u64 = 32 << 20;

fn library() -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    test.with_file_name("libvhive_uffd_shim.so")
}

/// What this host lacks for these tests.
fn lacks() -> Option<String> {
    if let Err(error) = sys::open_device() {
        return Some(format!("/dev/userfaultfd: {error}"));
    }
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    version.err().map(|error| format!("{QEMU}: {error}"))
}

struct Scene {
    directory: tempfile::TempDir,
    memory: File,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        let memory = File::create_new(&path).expect("created");
        memory.set_len(MEMORY_BYTES).expect("sparse");
        memory.write_all_at(b"paged in from outside!!!", MARK_AT).expect("written");
        File::create_new(directory.path().join("dummy"))
            .and_then(|dummy| dummy.set_len(MEMORY_BYTES))
            .expect("sparse");
        Self { memory: File::open(&path).expect("opened"), directory }
    }

    fn prepared(&self, mode: Mode) -> PreparedMemory {
        let file = self.memory.try_clone().expect("cloned");
        PreparedMemory { file, digest: Digest::of(b"test"), mode }
    }

    /// Starts QEMU, its monitor on its standard input and output.
    fn qemu(&self, socket: UnixStream, inode: Option<&str>) -> Qemu {
        let dummy = self.directory.path().join("dummy");
        let status = std::fs::metadata(&dummy).expect("there");
        let ours = format!("{}:{}", status.dev(), status.ino());
        let (device, socket) = (
            inheritable(sys::open_device().expect("checked").into()),
            inheritable(OwnedFd::from(socket)),
        );
        let memory = format!("memory-backend-file,id=ram0,size={MEMORY_BYTES},share=off,mem-path=");
        let child = Command::new(QEMU)
            .args(["-M", "microvm,accel=tcg,memory-backend=ram0", "-m", "128M"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "stdio"])
            .args(["-object", &(memory + &dummy.to_string_lossy())])
            .env("LD_PRELOAD", library())
            .env("VHIVE_UFFD_MEM_INODE", inode.unwrap_or(&ours))
            .env("VHIVE_UFFD_DEV_FD", device.as_raw_fd().to_string())
            .env("VHIVE_UFFD_SOCK_FD", socket.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawned");
        Qemu(child)
    }
}

/// Killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inheritable(descriptor: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty()).expect("set");
    descriptor
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn monitor(qemu: &mut Qemu, commands: &str) -> String {
    let mut stdin = qemu.0.stdin.take().expect("piped");
    stdin.write_all(commands.as_bytes()).expect("sent");
    let mut text = String::new();
    qemu.0.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    qemu.0.wait().expect("ended");
    text
}

/// Runs a guest to the end of `commands` in this mode; what its monitor said, and the session.
fn guest(pager: &Pager, scene: &Scene, mode: Mode) -> (String, vhive_pager::Session) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let prepared = pager.prepare(scene.prepared(mode)).expect("prepared");
    let mut qemu = scene.qemu(theirs, None);
    let handoff = handshake::receive(&ours, MEMORY_BYTES, soon()).expect("handed over");
    let session = prepared.attach(handoff, Box::new(|_| ())).expect("attached");
    session.wait_installed(soon()).expect("in time");
    (monitor(&mut qemu, &format!("stop\nxp /6xw {MARK_AT:#x}\nquit\n")), session)
}

fn words(bytes: &[u8]) -> Vec<String> {
    let word =
        |word: &[u8]| format!("{:#010x}", u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    bytes.chunks_exact(4).map(word).collect()
}

#[test]
fn the_memory_of_a_qemu_guest_comes_from_the_pager() {
    if let Some(lacks) = lacks() {
        println!("SKIP the_memory_of_a_qemu_guest_comes_from_the_pager: {lacks}");
        return;
    }
    let scene = Scene::new();
    let pager = Pager::start(&PagerConfig::default()).expect("started");
    let policy = PrefetchPolicy::ReapPipelined;
    let (said, session) = guest(&pager, &scene, Mode::Record { policy });
    for word in words(b"paged in from outside!!!") {
        assert!(said.contains(&word), "{word} in {said}");
    }
    let stats = session.stats();
    let trace = session.finish_recording().expect("recorded");
    let page = u32::try_from(MARK_AT / 4096).expect("small");
    assert!(trace.holds(page) && stats.faults >= 1, "{} faults", stats.faults);

    let bytes = working_set::create(&trace, &scene.memory, Digest::of(b"test")).expect("made");
    let working_set = working_set::publish(scene.directory.path(), &bytes).expect("published");
    let (again, session) = guest(&pager, &scene, Mode::Prefetch { working_set, policy });
    assert!(again.contains(&words(b"paged in from outside!!!")[0]), "{again}");
    let left = session.stats();
    assert!(session.prefetch_failure().is_none());
    println!("{} faults recorded, {} left", stats.faults, left.faults);
    let mut left_over = left.timeline.faults().iter();
    assert!(left.prefetched_pages >= stats.faults && !left_over.any(|at| at.page == page));
}

#[test]
fn qemu_aborts_rather_than_run_with_memory_that_nobody_serves() {
    if let Some(lacks) = lacks() {
        println!("SKIP qemu_aborts_rather_than_run_with_memory_that_nobody_serves: {lacks}");
        return;
    }
    let scene = Scene::new();
    let aborted = |mut qemu: Qemu, reason: &str| {
        let mut told = String::new();
        qemu.0.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
        let status = qemu.0.wait().expect("ended");
        assert!(!status.success() && told.contains(reason), "{status} {told}");
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    drop(ours);
    aborted(scene.qemu(theirs, None), "cannot hand guest memory over");
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    aborted(scene.qemu(theirs, Some("7")), "VHIVE_UFFD_MEM_INODE is not");
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    let dummy = File::options().write(true).open(scene.directory.path().join("dummy"));
    dummy.and_then(|dummy| dummy.set_len(MEMORY_BYTES + 4096)).expect("longer");
    aborted(scene.qemu(theirs, None), "guest memory is not mapped as a whole");
}

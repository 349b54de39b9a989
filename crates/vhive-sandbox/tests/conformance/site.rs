//! Where a promise is checked: a runtime, a network, a root file system, all of this test's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vhive_api::guest::{Process, Stream};
use vhive_api::{Bytes, SandboxId};
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig};
use vhive_sandbox::kernel::{KernelStore, StoreError};
use vhive_sandbox::network::{NetworkConfig, NetworkPool};
use vhive_sandbox::oci::{ContainerConfig, CrunConfig, GvisorConfig, Oci, Platform};
use vhive_sandbox::qemu::{Qemu, QemuConfig};
use vhive_sandbox::sim::{Sim, SimConfig};
use vhive_sandbox::{
    BootError, Deadline, Guest, Journal, Milestone, NetworkSlot, RunRoot, Runtime, Sandbox,
    SandboxSpec, Uses,
};

use crate::traces::Traces;

/// A row of the table of runtimes.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Runs the function's own program, in its own root file system.
    pub(crate) real: bool,
    /// Has a kernel of its own, of the size that was asked for, behind a process of the host's.
    pub(crate) machine: bool,
    /// What every specification says that it will be asked for, where a promise says nothing: a
    /// sandbox may be made otherwise for it.
    pub(crate) uses: Uses,
    pub(crate) make: fn() -> Result<Arc<dyn Runtime>, String>,
}

pub(crate) const NOTHING: Uses = Uses { snapshots: false, commands: false };

pub(crate) const RUNTIMES: &[Kind] = &[
    Kind {
        name: "sim",
        real: false,
        machine: false,
        uses: NOTHING,
        make: || Ok(Arc::new(Sim::new(SimConfig::default()))),
    },
    Kind { name: "qemu", real: true, machine: true, uses: NOTHING, make: qemu },
    Kind { name: "firecracker", real: true, machine: true, uses: NOTHING, make: firecracker },
    Kind { name: "runc", real: true, machine: false, uses: NOTHING, make: runc },
    Kind { name: "crun", real: true, machine: false, uses: NOTHING, make: crun },
    Kind { name: "runsc", real: true, machine: false, uses: NOTHING, make: runsc },
    Kind {
        name: "runsc-init",
        real: true,
        machine: false,
        uses: Uses { snapshots: true, commands: true },
        make: runsc,
    },
    Kind { name: "runsc-ptrace", real: true, machine: false, uses: NOTHING, make: runsc_ptrace },
];

fn firecracker() -> Result<Arc<dyn Runtime>, String> {
    let firecracker = Firecracker::new(firecracker_config());
    // Before a guest kernel is installed for nothing.
    firecracker.check_bare().map_err(|lacks| lacks.to_string())?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("firecracker");
    fit(firecracker.with_kernels(kernels()?, cache))
}

/// The program that `VHIVE_FIRECRACKER` names, with its jailer beside it; else both are looked up
/// in `PATH`.
pub(crate) fn firecracker_config() -> FirecrackerConfig {
    let named = std::env::var_os("VHIVE_FIRECRACKER").filter(|path| !path.is_empty());
    let Some(binary) = named.map(PathBuf::from) else {
        return FirecrackerConfig::default();
    };
    // Each test that wants one would be skipped.
    let fits = binary.is_absolute() && binary.is_file();
    assert!(fits, "VHIVE_FIRECRACKER is no absolute path of a program: {}", binary.display());
    let jailer = binary.with_file_name("jailer");
    FirecrackerConfig { binary, jailer, ..FirecrackerConfig::default() }
}

fn runc() -> Result<Arc<dyn Runtime>, String> {
    fit(Oci::runc(ContainerConfig::default(), cache()))
}

fn crun() -> Result<Arc<dyn Runtime>, String> {
    fit(Oci::crun(CrunConfig::default(), cache()))
}

fn runsc() -> Result<Arc<dyn Runtime>, String> {
    fit(Oci::runsc(GvisorConfig::default(), cache()))
}

fn runsc_ptrace() -> Result<Arc<dyn Runtime>, String> {
    let config = GvisorConfig { platform: Platform::Ptrace, ..GvisorConfig::default() };
    fit(Oci::runsc(config, cache()))
}

fn fit(runtime: impl Runtime + 'static) -> Result<Arc<dyn Runtime>, String> {
    runtime.check_host().map_err(|lacks| lacks.to_string())?;
    Ok(Arc::new(runtime))
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("containers")
}

pub(crate) fn qemu() -> Result<Arc<dyn Runtime>, String> {
    qemu_with(QemuConfig::default())
}

pub(crate) fn qemu_with(config: QemuConfig) -> Result<Arc<dyn Runtime>, String> {
    let kernels = kernels()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu");
    fit(Qemu::new(config, kernels, cache))
}

/// The guest kernel, installed once for all tests.
pub(crate) fn kernels() -> Result<KernelStore, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let store = KernelStore::open(dir).map_err(|error| error.to_string())?;
    match store.current() {
        Ok(_) => Ok(store),
        Err(StoreError::None(_)) => match store.install_from_apt(&mut |_| {}) {
            Ok(_) => Ok(store),
            Err(error) => Err(format!("a guest kernel ({error})")),
        },
        Err(error) => panic!("{error}"),
    }
}

/// Where a promise is checked. Dropping it removes all that it made.
pub(crate) struct Site {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) root: RunRoot,
    rootfs: PathBuf,
    pub(crate) uses: Uses,
    before: Traces,
    pool: Option<NetworkPool>,
    _dir: tempfile::TempDir,
}

/// What has been booted, and what it told.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) sandbox: Box<dyn Sandbox>,
    pub(crate) journal: Arc<Journal>,
}

impl Site {
    /// Makes it, or says what the host lacks.
    pub(crate) fn open(kind: &Kind) -> Result<Self, String> {
        Ok(Self { uses: kind.uses, ..Self::of((kind.make)()?, kind.real)? })
    }

    /// Likewise for a given runtime.
    pub(crate) fn of(runtime: Arc<dyn Runtime>, real: bool) -> Result<Self, String> {
        Self::on(runtime, real, NetworkConfig::default())
    }

    /// Likewise on a given network.
    pub(crate) fn on(
        runtime: Arc<dyn Runtime>,
        real: bool,
        network: NetworkConfig,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = RunRoot::below(&dir.path().join("run"), dir.path());
        let rootfs = if real { rootfs(dir.path())? } else { PathBuf::new() };
        let pool = real.then(|| pool(network, &root)).transpose()?;
        let before = Traces::of(&root);
        Ok(Self { runtime, root, rootfs, uses: NOTHING, before, pool, _dir: dir })
    }

    /// A spec for busybox' shell running `script`.
    pub(crate) fn spec(&self, script: &str) -> SandboxSpec {
        self.spec_of(Process {
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            ..Process::default()
        })
    }

    pub(crate) fn spec_of(&self, process: Process) -> SandboxSpec {
        SandboxSpec {
            guest: Guest::default(),
            id: SandboxId::random(),
            rootfs: self.rootfs.clone(),
            process,
            hooks: vhive_api::guest::Hooks::default(),
            uses: self.uses,
            port: 8080,
            cpu_millis: 1000,
            memory: Bytes::mib(128),
            network: self.slot().map(Arc::new),
            run_root: self.root.clone(),
            journal: Journal::new(),
        }
    }

    /// Lets a sandbox reach the node, which answers `the node` from then on.
    pub(crate) fn open_ingress(&self, spec: &SandboxSpec) {
        let pool = self.pool.as_ref().expect("a real runtime has one");
        answer(pool.ingress().expect("a socket"), "the node\n");
        spec.network.as_ref().expect("a slot").open_ingress().expect("opened");
    }

    fn slot(&self) -> Option<NetworkSlot> {
        self.pool.as_ref().map(|pool| pool.take(soon()).expect("a network slot"))
    }

    pub(crate) fn try_boot(&self, spec: &SandboxSpec) -> Result<Booted, BootError> {
        let sandbox = self.runtime.boot(spec, soon())?;
        Ok(Booted { sandbox, journal: Arc::clone(&spec.journal) })
    }

    pub(crate) fn boot(&self, spec: &SandboxSpec) -> Booted {
        self.try_boot(spec).unwrap_or_else(|error| {
            panic!("{error}; console:\n{}", spec.journal.tail(50).join("\n"))
        })
    }

    /// Boots on another thread, until the function listens.
    pub(crate) fn boot_soon(&self, spec: &SandboxSpec) -> JoinHandle<Booted> {
        let (runtime, spec) = (Arc::clone(&self.runtime), spec.clone());
        std::thread::spawn(move || {
            let sandbox = runtime.boot(&spec, soon());
            let sandbox = sandbox.unwrap_or_else(|error| {
                panic!("{error}; console:\n{}", spec.journal.tail(50).join("\n"))
            });
            let booted = Booted { sandbox, journal: spec.journal };
            booted.listening();
            booted
        })
    }

    /// Running sandboxes are seen by the check for traces, or it would be worth nothing.
    pub(crate) fn expect_traces(&self) {
        if self.pool.is_some() {
            let now = Traces::of(&self.root);
            assert!(now.is_more_than(&self.before), "{now:?}");
        }
    }

    /// Nothing is on the host that was not there before.
    pub(crate) fn expect_no_traces(&self) {
        if let Some(pool) = &self.pool {
            pool.close();
        }
        let (_hold, tick) = mpsc::channel::<()>();
        let deadline = Deadline::after(Duration::from_secs(5));
        // What is just ending is given its time.
        let left = loop {
            let left = Traces::of(&self.root).since(&self.before);
            if left.processes.is_empty() || deadline.passed() {
                break left;
            }
            let _ = tick.recv_timeout(Duration::from_millis(50));
        };
        assert_eq!(left, Traces::default());
    }
}

impl Booted {
    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.sandbox.endpoint()
    }

    pub(crate) fn listening(&self) {
        self.journal.wait(Milestone::Listening, soon()).unwrap_or_else(|error| {
            panic!("{error}; console:\n{}", self.journal.tail(50).join("\n"))
        });
    }

    /// The lines that the function wrote to `stream` so far.
    pub(crate) fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.journal.lines_from(0).into_iter();
        lines.filter(|line| line.stream == stream).map(|line| line.text).collect()
    }
}

/// Answers every request with `text`, until the test has ended.
pub(crate) fn answer(listener: TcpListener, text: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            // Whoever is gone needs no answer.
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{text}");
        }
    });
}

/// The body of the reply to `GET path`.
pub(crate) fn get(endpoint: SocketAddr, path: &str) -> String {
    let mut stream =
        TcpStream::connect_timeout(&endpoint, Duration::from_secs(10)).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").expect("sent");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("a reply");
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{reply:?}"));
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

/// Enough time for anything on a busy machine.
pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn pool(network: NetworkConfig, root: &RunRoot) -> Result<NetworkPool, String> {
    let config = NetworkConfig { ready: 1, max: 4, ..network };
    NetworkPool::open(&config, root).map_err(|error| error.to_string())
}

/// An image like the usual one, but with a file at each of these paths.
pub(crate) fn image_with_files(dir: &Path, paths: &[&str]) -> PathBuf {
    rootfs(dir).expect("as before");
    let tree = dir.join("tree");
    for path in paths {
        let place = tree.join(path);
        let _ = fs::remove_dir_all(&place);
        fs::write(&place, "a file").expect("written");
    }
    pack(&tree, &dir.join("other.erofs")).expect("as before")
}

/// A root file system with busybox, a user, and a page for its web server.
fn rootfs(dir: &Path) -> Result<PathBuf, String> {
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        return Err("no /bin/busybox (Debian package busybox-static)".to_owned());
    }
    let tree = dir.join("tree");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "srv/cgi-bin", "home/alice"] {
        fs::create_dir_all(tree.join(name)).expect("made");
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("set");
    fs::copy(busybox, tree.join("bin/busybox")).expect("copied");
    let applets = "sh httpd cat id date hostname sleep nc grep seq sed tr touch mkdir chmod sha256sum \
        head od ls dd mount mknod unshare";
    for applet in applets.split(' ') {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("linked");
    }
    let passwd = "root:x:0:0::/:/bin/sh\nalice:x:1234:2345::/home/alice:/bin/sh\n";
    fs::write(tree.join("etc/passwd"), passwd).expect("written");
    fs::write(tree.join("etc/group"), "root:x:0:\nstaff:x:2345:\nextra:x:3456:bob,alice\n")
        .expect("written");
    let broken = tree.join("bin/broken");
    fs::write(&broken, "#!/no/such/interpreter\n").expect("written");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("set");
    fs::write(tree.join("srv/index.html"), "hello from inside\n").expect("written");
    // Asked with `?<address>+<port>`; Debian's static busybox has no wget that works.
    let script = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
        printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 3 ${QUERY_STRING%+*} ${QUERY_STRING#*+} \
        || echo unreachable\n";
    let cgi = tree.join("srv/cgi-bin/fetch");
    fs::write(&cgi, script).expect("written");
    fs::set_permissions(&cgi, fs::Permissions::from_mode(0o755)).expect("set");
    pack(&tree, &dir.join("rootfs.erofs"))
}

fn pack(tree: &Path, image: &Path) -> Result<PathBuf, String> {
    let made = Command::new("mkfs.erofs").arg(image).arg(tree).output();
    let made = made.map_err(|_| "no mkfs.erofs (Debian package erofs-utils)".to_owned())?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(image.to_owned())
}

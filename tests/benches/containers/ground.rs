//! What is started: the demo's `hello`, by us and by the runtime alone.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use vhive_api::guest::Process;
use vhive_api::{Bytes, SandboxId};
use vhive_sandbox::network::{NetworkConfig, NetworkPool};
use vhive_sandbox::oci::{ContainerConfig, GvisorConfig, Oci};
use vhive_sandbox::process::{Child, Exit, Launch, spawn};
use vhive_sandbox::{
    Deadline, Guest, Journal, Milestone, NetworkSlot, RunRoot, Runtime as _, SandboxSpec, Uses,
};

use crate::hello::hello;

const PORT: u16 = 8080;
/// Far beyond any start that works.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to connect: both sides are asked alike.
const PAUSE: Duration = Duration::from_micros(200);

/// Everything that a start needs. The network is removed with it.
pub(crate) struct Ground {
    runtime: Oci,
    name: String,
    pool: NetworkPool,
    root: RunRoot,
    rootfs: PathBuf,
    process: Process,
    dir: tempfile::TempDir,
}

impl Ground {
    /// Makes it, or says what is missing.
    pub(crate) fn find(name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let runtime = match name {
            "runsc" => Oci::runsc(GvisorConfig::default(), dir.path()),
            _ => Oci::runc(ContainerConfig::default(), dir.path()),
        };
        runtime.check_host()?;
        let (rootfs, process) =
            hello(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("images"), PORT)?;
        let root = RunRoot::below(&dir.path().join("run"), dir.path());
        let pool = NetworkPool::open(&NetworkConfig::default(), &root);
        let pool = pool.context("a network for containers")?;
        pool.warm(Deadline::after(PATIENCE))?;
        Ok(Self { runtime, name: name.to_owned(), pool, root, rootfs, process, dir })
    }

    /// Starts `hello` as a node does, and asks it once.
    pub(crate) fn start(&self) -> Result<Duration> {
        let deadline = Deadline::after(PATIENCE);
        let begin = Instant::now();
        let spec = self.spec(deadline)?;
        let journal = Arc::clone(&spec.journal);
        let sandbox = self
            .runtime
            .boot(&spec, deadline)
            .with_context(|| format!("start (console: {})", journal.tail(5).join(" | ")))?;
        journal.wait(Milestone::Listening, deadline)?;
        ask_until_answered(sandbox.endpoint(), deadline)?;
        Ok(begin.elapsed())
    }

    fn spec(&self, deadline: Deadline) -> Result<SandboxSpec> {
        Ok(SandboxSpec {
            guest: Guest::default(),
            id: SandboxId::random(),
            rootfs: self.rootfs.clone(),
            process: self.process.clone(),
            hooks: vhive_api::guest::Hooks::default(),
            // As of a service without snapshots and commands: the default.
            uses: Uses::default(),
            port: PORT,
            cpu_millis: 1000,
            memory: Bytes::mib(128),
            network: Some(Arc::new(self.pool.take(deadline)?)),
            run_root: self.root.clone(),
            journal: Journal::new(),
        })
    }

    /// The runtime's own `run` of a bundle like ours, without init; its network and its root are
    /// there beforehand, and it uses no control groups.
    pub(crate) fn bare_start(&self) -> Result<Duration> {
        let deadline = Deadline::after(PATIENCE);
        let slot = self.pool.take(deadline)?;
        let netns = slot.make_namespace()?;
        let bundle = tempfile::tempdir_in(self.dir.path())?;
        let config = self.bare_config(deadline)?;
        fs::write(bundle.path().join("config.json"), serde_json::to_vec(&config)?)?;
        for place in ["image", "changes", "rootfs", "state"] {
            fs::create_dir(bundle.path().join(place))?;
        }
        thread::scope(|scope| {
            let runner = scope.spawn(|| self.run_bare(bundle.path(), &netns, &slot, deadline));
            runner.join().expect("the thread does not panic")
        })
    }

    /// What our own bundle says, with the function in init's place.
    fn bare_config(&self, deadline: Deadline) -> Result<Value> {
        let spec = self.spec(deadline)?;
        let _sandbox = self.runtime.boot(&spec, deadline)?;
        let path = self.root.sandboxes().join(spec.id.as_str()).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(path)?)?;
        config["process"]["args"] = json!(self.process.args);
        config["process"]["env"] = json!(self.process.env);
        let name = format!("/vhive-bench-{}", spec.id);
        config["linux"]["cgroupsPath"] = json!(name);
        Ok(config)
    }

    fn run_bare(
        &self,
        bundle: &Path,
        netns: &OwnedFd,
        slot: &NetworkSlot,
        deadline: Deadline,
    ) -> Result<Duration> {
        let host = File::open("/proc/thread-self/ns/net")?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        let (image, changes) = (bundle.join("image"), bundle.join("changes"));
        mount(&self.rootfs, &image, "erofs", MountFlags::RDONLY, None)?;
        mount("tmpfs", &changes, "tmpfs", MountFlags::empty(), None)?;
        for place in ["upper", "work"] {
            fs::create_dir(changes.join(place))?;
        }
        let changes = changes.display();
        let layers =
            format!("lowerdir={},upperdir={changes}/upper,workdir={changes}/work", image.display());
        let layers = std::ffi::CString::new(layers)?;
        let root = bundle.join("rootfs");
        mount("overlay", &root, "overlay", MountFlags::empty(), Some(layers.as_c_str()))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        if self.name == "runsc" {
            mount("none", "/proc/sys/net/core", "tmpfs", MountFlags::RDONLY, None)?;
        }
        let endpoint = SocketAddr::from((slot.address(), PORT));
        let begin = Instant::now();
        let place = bundle.display().to_string();
        let mut child = self.command(&["run", "--detach", "--bundle", &place, "bench"], bundle)?;
        let exit = child.wait();
        let answered = if exit == Exit::Code(0) {
            // The host's namespace is where it is asked from.
            thread::scope(|scope| {
                let asking = scope.spawn(|| ask_from(&host, endpoint, deadline));
                asking.join().expect("the thread does not panic")
            })
        } else {
            Err(anyhow::anyhow!("{} run: {exit}", self.name))
        };
        let took = begin.elapsed();
        let mut removed = self.command(&["delete", "--force", "bench"], bundle)?;
        ensure!(removed.wait() == Exit::Code(0), "{} delete failed", self.name);
        answered.map(|()| took)
    }

    fn command(&self, words: &[&str], bundle: &Path) -> Result<Child> {
        let options: &[&str] = match self.name.as_str() {
            "runsc" => &["--platform=systrap", "--overlay2=root:memory", "--network=sandbox"],
            _ => &[],
        };
        let mut args = vec![OsString::from("--root"), bundle.join("state").into()];
        args.extend(options.iter().chain(words).map(OsString::from));
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let log = File::options().create(true).append(true).open(bundle.join("log"))?;
        Ok(spawn(&Launch {
            program: Path::new(&self.name),
            args: &args,
            environment: &[],
            inherit: &[],
            stdin: None,
            stdout: null.as_fd(),
            stderr: log.as_fd(),
            confinement: None,
        })?)
    }
}

fn ask_from(netns: &File, endpoint: SocketAddr, deadline: Deadline) -> Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    ask_until_answered(endpoint, deadline)
}

/// Connects as soon as something listens, and reads one reply.
pub(crate) fn ask_until_answered(endpoint: SocketAddr, deadline: Deadline) -> Result<()> {
    let (_hold, tick) = std::sync::mpsc::channel::<()>();
    loop {
        match ask(endpoint) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused && !deadline.passed() =>
            {
                let _ = tick.recv_timeout(PAUSE);
            }
            asked => return Ok(asked?),
        }
    }
}

fn ask(endpoint: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&endpoint, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    if reply.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&reply).into_owned()))
}

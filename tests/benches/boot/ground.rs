//! What is booted: the demo's `hello`, in a microVM of ours and as a bare QEMU.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhive_api::guest::{FromGuest, Process, read_frame};
use vhive_api::{Bytes, SandboxId};
use vhive_sandbox::kernel::{self, GuestKernel, KernelStore, StoreError};
use vhive_sandbox::network::{NetworkConfig, NetworkPool};
use vhive_sandbox::qemu::{Choose, Qemu, QemuConfig};
use vhive_sandbox::{
    Deadline, Guest, Journal, Milestone, RunRoot, Runtime as _, SandboxSpec, Uses,
};

use crate::hello::hello;

const MEMORY_MIB: u64 = 128;
const PORT: u16 = 8080;
/// Far beyond any boot that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a boot needs. The network is removed with it.
pub(crate) struct Ground {
    qemu: Qemu,
    kernel: GuestKernel,
    command_line: String,
    pool: NetworkPool,
    root: RunRoot,
    rootfs: PathBuf,
    process: Process,
    dir: tempfile::TempDir,
}

/// What one boot took.
pub(crate) struct Booted {
    /// From the call to each milestone, in order.
    pub(crate) milestones: Vec<(Milestone, Duration)>,
    /// From the call to the first reply's last byte.
    pub(crate) reply: Duration,
    pub(crate) attempts: u32,
}

impl Ground {
    /// Makes it, or says what is missing.
    pub(crate) fn find() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let kernels = KernelStore::open(kept.join("kernels"))?;
        let kernel = match kernels.current() {
            Err(StoreError::None(_)) => {
                kernels.install_from_apt(&mut |_| {}).context("a guest kernel")?
            }
            current => current?,
        };
        // Under KVM the ratio would be of something else.
        let config = QemuConfig { accelerator: Choose::Tcg, ..QemuConfig::default() };
        let qemu = Qemu::new(config, kernels, dir.path());
        qemu.check_host()?;
        let command_line = kernel::command_line(kernel::tsc_khz()?);
        let (rootfs, process) = hello(&kept.join("images"), PORT)?;
        let root = RunRoot::below(&dir.path().join("run"), dir.path());
        let network = NetworkConfig { ready: 2, max: 4, ..NetworkConfig::default() };
        let pool = NetworkPool::open(&network, &root).context("a network for guests")?;
        Ok(Self { qemu, kernel, command_line, pool, root, rootfs, process, dir })
    }

    /// Boots `hello` as a node does, and asks it once.
    pub(crate) fn boot_to_reply(&self) -> Result<Booted> {
        let deadline = Deadline::after(PATIENCE);
        self.pool.warm(deadline)?;
        let begin = Instant::now();
        let journal = Journal::new();
        let spec = SandboxSpec {
            guest: Guest::default(),
            id: SandboxId::random(),
            rootfs: self.rootfs.clone(),
            process: self.process.clone(),
            hooks: vhive_api::guest::Hooks::default(),
            uses: Uses::default(),
            port: PORT,
            cpu_millis: 1000,
            memory: Bytes::mib(MEMORY_MIB),
            network: Some(Arc::new(self.pool.take(deadline)?)),
            run_root: self.root.clone(),
            journal: Arc::clone(&journal),
        };
        let sandbox = self
            .qemu
            .boot(&spec, deadline)
            .with_context(|| format!("boot (console: {})", journal.tail(5).join(" | ")))?;
        journal.wait(Milestone::Listening, deadline)?;
        ask(sandbox.endpoint())?;
        let reply = begin.elapsed();
        let told = journal.milestones().into_iter();
        let milestones = told.map(|(step, at)| (step, at.saturating_duration_since(begin)));
        Ok(Booted { milestones: milestones.collect(), reply, attempts: journal.attempts() })
    }

    /// Boots kernel and initramfs with as little as init needs to say hello.
    pub(crate) fn bare_boot(&self) -> Result<Duration> {
        let socket = self.dir.path().join("bare.sock");
        let listener = UnixListener::bind(&socket)?;
        let begin = Instant::now();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "microvm", "-accel", "tcg", "-cpu", "max,erms=off,fsrm=off", "-smp", "1"]);
        qemu.args(["-m", &format!("{MEMORY_MIB}M")]);
        qemu.arg("-kernel").arg(&self.kernel.vmlinux).arg("-initrd").arg(&self.kernel.initramfs);
        qemu.args(["-append", &self.command_line, "-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.args(["-display", "none", "-serial", "null", "-device", "virtio-serial-device"]);
        qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
        qemu.arg("-chardev").arg(format!("socket,id=channel,path={}", socket.display()));
        qemu.args(["-device", "virtserialport,chardev=channel,name=vhive.0"]);
        let mut qemu = qemu.stdin(Stdio::null()).spawn()?;
        let hello = listener.accept().map_err(anyhow::Error::from).and_then(|(mut channel, _)| {
            channel.set_read_timeout(Some(PATIENCE))?;
            Ok(read_frame::<FromGuest>(&mut channel)?)
        });
        let took = begin.elapsed();
        qemu.kill()?;
        qemu.wait()?;
        std::fs::remove_file(&socket)?;
        ensure!(matches!(hello?, Some(FromGuest::Hello { .. })), "init said something else");
        Ok(took)
    }
}

fn ask(endpoint: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&endpoint, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    ensure!(reply.starts_with(b"HTTP/1.1 "), "no HTTP: {}", String::from_utf8_lossy(&reply));
    Ok(())
}

//! The guest's init against hosts that do not behave, under a bare QEMU: no runtime in between.
//! What init does for a host that behaves is in the conformance suite.

#![expect(clippy::panic, reason = "a helper that fails fails its test")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhive_api::guest::{FromGuest, GuestConfig, Process, ToGuest, read_frame, write_frame};
use vhive_sandbox::kernel::{self, KernelStore, StoreError};
use vhive_sandbox::process::{Child, Exit, Launch, spawn};

const QEMU: &str = "qemu-system-x86_64";
const PATIENCE: Duration = Duration::from_secs(60);

/// Over what the guest's init speaks to the host.
#[derive(Clone, Copy, PartialEq)]
enum Line {
    /// A virtio-serial port, as under the runtime `qemu`; the serial port is the console.
    Virtio,
    /// The serial port, as under the runtime `firecracker`; there is no console.
    Serial,
}

/// A guest that is booting, and the host's end of its channel.
struct Guest {
    qemu: Child,
    channel: UnixStream,
    dir: tempfile::TempDir,
}

impl Guest {
    /// Boots one, or says what the host lacks.
    fn boot() -> Result<Self, String> {
        Self::boot_over(Line::Virtio)
    }

    fn boot_over(line: Line) -> Result<Self, String> {
        let kernel = installed_kernel()?;
        let khz = kernel::tsc_khz().map_err(|error| error.to_string())?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let rootfs = rootfs(dir.path())?;
        let (channel, guests) = UnixStream::pair().expect("a socket pair");
        channel.set_read_timeout(Some(PATIENCE)).expect("set");
        let console = File::create(dir.path().join("console")).expect("a file");
        let args = format!(
            "-M microvm -accel tcg,tb-size=64 -m 128 -nodefaults -no-user-config -no-reboot \
             -display none -chardev socket,id=channel,fd={} {} -device virtio-blk-device,drive=root",
            guests.as_raw_fd(),
            match line {
                Line::Virtio => {
                    "-serial stdio -device virtio-serial-device \
                     -device virtserialport,chardev=channel,name=vhive.0"
                }
                Line::Serial => "-serial chardev:channel",
            }
        );
        let mut args: Vec<OsString> = args.split_whitespace().map(OsString::from).collect();
        let drive = format!("id=root,file={},format=raw,if=none,readonly=on", rootfs.display());
        let line = match line {
            Line::Virtio => kernel::command_line(khz),
            Line::Serial => kernel::serial_command_line(khz),
        };
        for (option, value) in [
            ("-drive", OsString::from(drive)),
            ("-kernel", kernel.vmlinux.into()),
            ("-initrd", kernel.initramfs.into()),
            ("-append", line.into()),
        ] {
            args.extend([option.into(), value]);
        }
        let launch = Launch {
            program: Path::new(QEMU),
            args: &args,
            environment: &[],
            inherit: &[guests.as_fd()],
            stdin: None,
            stdout: console.as_fd(),
            stderr: console.as_fd(),
            confinement: None,
        };
        let qemu = spawn(&launch).map_err(|error| format!("{QEMU} ({error})"))?;
        Ok(Self { qemu, channel, dir })
    }

    fn next(&mut self) -> Option<FromGuest> {
        read_frame(&mut self.channel).unwrap_or_else(|error| panic!("{error}: {}", self.console()))
    }

    fn expect_hello(&mut self) {
        let first = self.next();
        assert!(matches!(first, Some(FromGuest::Hello { .. })), "{first:?}: {}", self.console());
    }

    /// Answers the greeting and waits until a shell runs `script`.
    fn start(&mut self, script: &str) {
        self.start_with(script, Vec::new());
    }

    fn start_with(&mut self, script: &str, env: Vec<String>) {
        self.expect_hello();
        let process = Process {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env,
            ..Process::default()
        };
        let config = GuestConfig {
            process,
            hostname: "guest".to_owned(),
            port: 8080,
            network: None,
            now_unix_ns: 1_700_000_000_000_000_000,
            entropy: "00".repeat(32),
            hooks: vhive_api::guest::Hooks::default(),
        };
        write_frame(&mut self.channel, &ToGuest::Start(Box::new(config))).expect("sent");
        loop {
            match self.next() {
                Some(FromGuest::Started { .. }) => return,
                Some(FromGuest::Mounted { .. }) => {}
                other => panic!("{other:?}: {}", self.console()),
            }
        }
    }

    /// Reads on until init says why it gives up.
    fn failure(&mut self) -> (String, String) {
        loop {
            match self.next() {
                Some(FromGuest::Failed { step, reason, .. }) => return (step, reason),
                Some(_) => {}
                None => panic!("hung up: {}", self.console()),
            }
        }
    }

    /// The guest powers itself off.
    fn expect_off(&mut self) {
        let timeout = Timespec::try_from(PATIENCE).expect("a minute");
        let mut ended = [PollFd::from_borrowed_fd(self.qemu.pidfd(), PollFlags::IN)];
        let ended = poll(&mut ended, Some(&timeout)).expect("polled");
        assert_eq!(ended, 1, "still running: {}", self.console());
        assert_eq!(self.qemu.wait(), Exit::Code(0), "{}", self.console());
    }

    fn console(&self) -> String {
        let mut text = Vec::new();
        let file = File::open(self.dir.path().join("console"));
        file.and_then(|mut file| file.read_to_end(&mut text)).expect("read");
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn qemu_guest_refuses_garbage_instead_of_a_start() {
    let mut guest = match Guest::boot() {
        Ok(guest) => guest,
        Err(missing) => {
            eprintln!("SKIP qemu_guest_refuses_garbage_instead_of_a_start: {missing}");
            return;
        }
    };
    guest.expect_hello();
    guest.channel.write_all(&[0xff; 64]).expect("sent");
    let (step, reason) = guest.failure();
    assert_eq!(step, "greet the host");
    assert!(reason.contains("4294967295 bytes"), "{reason}");
    guest.expect_off();
    assert!(guest.console().contains("vhive-init: greet the host: "), "{}", guest.console());
}

#[test]
fn qemu_guest_refuses_garbage_while_the_function_runs() {
    let mut guest = match Guest::boot() {
        Ok(guest) => guest,
        Err(missing) => {
            eprintln!("SKIP qemu_guest_refuses_garbage_while_the_function_runs: {missing}");
            return;
        }
    };
    guest.start("while :; do sleep 1; done");
    let nonsense = br#"{"type":"dance"}"#;
    guest.channel.write_all(&[16, 0, 0, 0]).expect("sent");
    guest.channel.write_all(nonsense).expect("sent");
    let (step, reason) = guest.failure();
    assert_eq!(step, "read from the host");
    assert!(reason.contains("dance"), "{reason}");
    guest.expect_off();
}

#[test]
fn qemu_guest_does_not_outlive_its_host() {
    let mut guest = match Guest::boot() {
        Ok(guest) => guest,
        Err(missing) => {
            eprintln!("SKIP qemu_guest_does_not_outlive_its_host: {missing}");
            return;
        }
    };
    guest.start("trap : TERM; while :; do sleep 1; done");
    guest.channel.shutdown(std::net::Shutdown::Both).expect("hung up");
    guest.expect_off();
}

#[test]
fn qemu_guest_obeys_a_stop_behind_a_flood_of_output() {
    match Guest::boot() {
        Ok(guest) => obeys_a_stop_behind_a_flood(guest),
        Err(missing) => {
            eprintln!("SKIP qemu_guest_obeys_a_stop_behind_a_flood_of_output: {missing}");
        }
    }
}

#[test]
fn qemu_guest_obeys_a_stop_behind_a_flood_over_the_serial_port() {
    match Guest::boot_over(Line::Serial) {
        Ok(guest) => obeys_a_stop_behind_a_flood(guest),
        Err(missing) => {
            eprintln!(
                "SKIP qemu_guest_obeys_a_stop_behind_a_flood_over_the_serial_port: {missing}"
            );
        }
    }
}

fn obeys_a_stop_behind_a_flood(mut guest: Guest) {
    guest.start("n=0; while :; do echo $n; n=$((n+1)); done");
    write_frame(&mut guest.channel, &ToGuest::Stop { grace_ms: 0 }).expect("sent");
    let mut next = 0_u32;
    loop {
        match guest.next() {
            Some(FromGuest::Output { line, .. }) => {
                assert_eq!(line, next.to_string(), "nothing lost, nothing out of order");
                next += 1;
            }
            Some(FromGuest::Exited { code, .. }) => {
                assert!(matches!(code, 137 | 143), "{code}");
                break;
            }
            other => panic!("{other:?}: {}", guest.console()),
        }
    }
    guest.expect_off();
}

#[test]
fn qemu_guest_keeps_the_contract_over_the_serial_port() {
    let mut guest = match Guest::boot_over(Line::Serial) {
        Ok(guest) => guest,
        Err(missing) => {
            eprintln!("SKIP qemu_guest_keeps_the_contract_over_the_serial_port: {missing}");
            return;
        }
    };
    // More than the port's queues hold; and frames of all lengths, of which some look like what
    // a terminal would act upon.
    let long: String = (' '..='~').cycle().take(20_000).collect();
    let script = "echo ${#LONG}; while [ ${#s} -lt 300 ]; do s=\u{fc}$s; echo $s; done; exit 3";
    guest.start_with(script, vec![format!("LONG={long}")]);
    let mut lines = Vec::new();
    loop {
        match guest.next() {
            Some(FromGuest::Output { line, .. }) => lines.push(line),
            Some(FromGuest::Exited { code, .. }) => {
                assert_eq!(code, 3);
                break;
            }
            other => panic!("{other:?}: {}", guest.console()),
        }
    }
    assert_eq!(lines[0], "20000");
    let lengths: Vec<usize> = lines[1..].iter().map(String::len).collect();
    let wanted: Vec<usize> = (2..).step_by(2).take(lengths.len()).collect();
    assert!(lengths.len() >= 150 && lengths == wanted, "{lengths:?}");
    guest.expect_off();
}

/// The guest kernel, installed once for all tests.
fn installed_kernel() -> Result<kernel::GuestKernel, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let store = KernelStore::open(dir).map_err(|error| error.to_string())?;
    match store.current() {
        Err(StoreError::None(_)) => {
            let installed = store.install_from_apt(&mut |_| {});
            installed.map_err(|error| format!("a guest kernel ({error})"))
        }
        other => Ok(other.expect("the store is whole")),
    }
}

/// A root file system with a shell.
fn rootfs(dir: &Path) -> Result<std::path::PathBuf, String> {
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        return Err("no /bin/busybox (Debian package busybox-static)".to_owned());
    }
    let bin = dir.join("tree/bin");
    fs::create_dir_all(&bin).expect("made");
    fs::copy(busybox, bin.join("busybox")).expect("copied");
    for applet in ["sh", "sleep"] {
        symlink("busybox", bin.join(applet)).expect("linked");
    }
    let image = dir.join("root.erofs");
    let made = Command::new("mkfs.erofs")
        .arg(&image)
        .arg(dir.join("tree"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(status) if status.success() => Ok(image),
        other => Err(format!("mkfs.erofs (Debian package erofs-utils): {other:?}")),
    }
}

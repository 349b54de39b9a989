//! A function as a process of this host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use crate::images::{Mounted, start_in_image};

/// The functions written in Rust.
pub(crate) const RUST: [&str; 5] = ["hello", "sleep", "trace-func", "big-memory", "syscalls"];

/// What each function in Python imports that may not be there.
const PYTHON: [(&str, &str); 4] = [
    ("pyaes", "import pyaes, h2"),
    ("json_serdes", "import json"),
    ("chameleon", "import chameleon"),
    ("image_rotate", "import PIL"),
];

/// How long a function may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The directory of all functions.
pub(crate) fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions")
}

/// A function that listens. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) address: SocketAddr,
    child: Child,
    /// Its root directory, if that is not the host's; unmounted after the process is killed.
    pub(crate) root: Option<Mounted>,
}

impl Running {
    /// Asks the function to stop, and expects it to do so without complaint.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().expect("it was running a moment ago");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("it is a pid");
        kill_process(pid, Signal::TERM).expect("it is our child");
        let status = timeout(PATIENCE, self.child.wait()).await;
        let code = status.expect("it stops in time").map(|status: ExitStatus| status.code());
        assert_eq!(code.ok(), Some(Some(0)), "{} after SIGTERM", self.name);
    }
}

/// Starts a function: as a process of this host if it has what the function imports, else in the
/// function's image; `None`, with the reason printed, if that cannot be either.
pub(crate) async fn start(name: &str) -> Option<Running> {
    if RUST.contains(&name) {
        return Some(run(name, Command::new(rust_binary(name)).into()).await);
    }
    if let Some(command) = python(name) {
        return Some(run(name, command.into()).await);
    }
    start_in_image(name)
        .await
        .inspect_err(|missing| eprintln!("SKIP functions::{name}: {missing}"))
        .ok()
}

/// Runs the command that is the function `name` on a free port of the loopback interface, and
/// returns once it listens.
pub(crate) async fn run(name: &str, mut command: tokio::process::Command) -> Running {
    let dir = functions().join(name);
    command.env("HOST", "127.0.0.1").env("PORT", "0").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it is there and can be executed");
    let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    let read = timeout(PATIENCE, stdout.read_line(&mut line)).await;
    read.expect("it says in time that it listens").expect("it writes text");
    let address = line.trim_end().strip_prefix(&format!("{name} listening on "));
    let address = address.unwrap_or_else(|| panic!("{name} says {line:?}"));
    let address = address.parse().expect("it is an address");
    Running { name: name.to_owned(), dir, address, child, root: None }
}

/// Builds the functions written in Rust, once per process, and returns one.
pub(crate) fn rust_binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--quiet", "--target-dir", "target"])
            .current_dir(functions())
            // Flags for the host's programs are not for the guests'.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status();
        assert!(status.expect("cargo runs this test").success(), "the functions do not build");
    });
    functions().join("target/x86_64-unknown-linux-gnu/release").join(name)
}

/// The function with an interpreter of this host that has what it imports. Debian's own comes
/// first: the packages belong to it.
fn python(name: &str) -> Option<Command> {
    let (_, imports) = PYTHON.iter().find(|row| row.0 == name).expect("it is in the table");
    let python =
        ["/usr/bin/python3", "python3"].into_iter().find(|python| runs(python, imports))?;
    let mut command = Command::new(python);
    command.arg("-B").arg(functions().join(name).join("server.py"));
    // Modules elsewhere than in the system's directories are found as usual.
    let mut path = functions().join("python").into_os_string();
    if let Some(more) = std::env::var_os("PYTHONPATH") {
        path.push(":");
        path.push(more);
    }
    command.env("PYTHONPATH", path);
    Some(command)
}

fn runs(python: &str, code: &str) -> bool {
    let mut command = Command::new(python);
    command.args(["-B", "-c", code]).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

//! A `vhive node` of a test's own: its state and run directories are temporary, its ports free
//! ones, and it ends with its guard.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a node may take to serve, and to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: `VHIVE_BIN`, else the one built beside this test.
///
/// # Errors
/// When there is none.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("VHIVE_BIN") {
        return Ok(path.into());
    }
    let here = std::env::current_exe()?;
    let found = here.ancestors().map(|dir| dir.join("vhive")).find(|path| path.is_file());
    found.context("no vhive binary beside the tests; run `cargo build --package vhive` first")
}

/// A node under test. Dropping it stops it and sweeps.
#[derive(Debug)]
pub struct TestNode {
    dir: PathBuf,
    child: Option<Child>,
    sweep: bool,
    /// Where requests go, `host:port`.
    pub gateway: String,
}

impl TestNode {
    /// Starts a node whose state is in `dir` and returns once it serves. `config` is the text of
    /// its configuration file.
    ///
    /// # Errors
    /// When it does not serve in time, with what it wrote.
    pub fn start(dir: &Path, config: &str) -> anyhow::Result<Self> {
        Self::start_in(dir, config, &[])
    }

    /// Likewise, with these variables in its environment besides.
    ///
    /// # Errors
    /// As [`TestNode::start`].
    pub fn start_in(dir: &Path, config: &str, env: &[(&str, &OsStr)]) -> anyhow::Result<Self> {
        configure(dir, config)?;
        let log = File::options().create(true).append(true).open(dir.join("node.log"))?;
        let mut command = command(dir)?;
        command.args(["--log", "info", "-o", "json", "node"]);
        command.args(["--gateway", "127.0.0.1:0", "--api", "127.0.0.1:0"]);
        command.envs(env.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = child.stdout.take().context("the output was piped")?;
        let mut node =
            Self { dir: dir.to_owned(), child: Some(child), sweep: true, gateway: String::new() };
        let (sender, first_line) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // The test may have given up waiting.
            let _ = sender.send(read.map(|_| line));
        });
        let line =
            first_line.recv_timeout(PATIENCE).context("the node did not serve in time")??;
        let ready: Value = serde_json::from_str(&line)
            .with_context(|| format!("the node did not start; it wrote:\n{}", node.log()))?;
        node.gateway =
            ready["gateway"].as_str().context("no gateway in the ready line")?.to_owned();
        Ok(node)
    }

    /// What the node has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("node.log")).unwrap_or_default()
    }

    /// The node's process.
    ///
    /// # Panics
    /// When it has been stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the node runs"))
    }

    /// Runs a `vhive` command against the node.
    ///
    /// # Errors
    /// When it cannot be run; a failing exit is in the output.
    pub fn vhive(&self, args: &[&str]) -> anyhow::Result<Output> {
        vhive(&self.dir, args)
    }

    /// Runs a command that must succeed and returns its standard output.
    ///
    /// # Errors
    /// When it exits otherwise, with what it and the node wrote.
    pub fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let done = self.vhive(args)?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("vhive {args:?}: {}\n{said}\nnode:\n{}", done.status, self.log());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Runs a command that must succeed and parses its output as JSON.
    ///
    /// # Errors
    /// As [`TestNode::ok`].
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.ok(&all)?)?)
    }

    /// Sends raw bytes to the gateway and returns all that comes back until it closes the
    /// connection.
    ///
    /// # Errors
    /// When it does not close it in time.
    pub fn raw(&self, request: &[u8]) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.gateway)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Waits until `holds` says yes to the service's description; reports the last one otherwise.
    ///
    /// # Errors
    /// When it does not hold in time.
    pub fn wait_for(
        &self,
        service: &str,
        most: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let begun = Instant::now();
        let (_hold, ticks) = std::sync::mpsc::channel::<()>();
        loop {
            let described = self.json(&["describe", service])?;
            if holds(&described) {
                return Ok(described);
            }
            if begun.elapsed() > most {
                bail!("not within {most:?}; last seen: {described:#}\nnode:\n{}", self.log());
            }
            let _ = ticks.recv_timeout(Duration::from_millis(50));
        }
    }

    /// Stops the node by SIGTERM and says how it ended.
    ///
    /// # Errors
    /// When it does not end in time (then it is killed).
    pub fn stop(mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.end(Signal::TERM)
    }

    /// Kills the node by SIGKILL; what it made on the host stays until something sweeps.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.sweep = false;
        self.end(Signal::KILL).map(drop)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("already ended")?;
        let pid = Pid::from_child(&child);
        kill_process(pid, signal)?;
        let (sender, ended) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            // The receiver may have given up.
            let _ = sender.send(child.wait());
        });
        let outcome = ended.recv_timeout(PATIENCE);
        if outcome.is_err() {
            kill_process(pid, Signal::KILL)?;
        }
        let _ = waiter.join();
        Ok(outcome.with_context(|| format!("no end after {signal:?}:\n{}", self.log()))??)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.end(Signal::TERM)
        {
            eprintln!("the node did not end well: {error:#}");
        }
        if self.sweep
            && let Err(error) = vhive(&self.dir, &["node", "--sweep"])
        {
            eprintln!("the sweep could not be run: {error:#}");
        }
    }
}

/// One request to a node's API on its unix socket; the whole reply as it came.
///
/// # Errors
/// When nobody answers.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// A `vhive` command on the state directory below `dir`.
///
/// # Errors
/// When there is no binary.
pub fn command(dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("--state-dir").arg(dir.join("state"));
    let config = dir.join("vhive.toml");
    if config.exists() {
        command.arg("--config").arg(config);
    }
    Ok(command)
}

/// The Firecracker that `VHIVE_FIRECRACKER` names, with its jailer beside it; none = those in `PATH`.
///
/// # Panics
/// If it names none by its absolute path: each test that wants one would be skipped.
#[must_use]
pub fn named_firecracker() -> Option<PathBuf> {
    let named = std::env::var_os("VHIVE_FIRECRACKER").filter(|path| !path.is_empty());
    let named = named.map(PathBuf::from);
    let fits = named.as_ref().is_none_or(|path| path.is_absolute() && path.is_file());
    assert!(fits, "VHIVE_FIRECRACKER is no absolute path of a program: {named:?}");
    named
}

/// Writes the configuration that commands on `dir` use from now on.
///
/// # Errors
/// Any I/O error.
pub fn configure(dir: &Path, config: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("vhive.toml"), with_firecracker(config))
}

/// A configuration with that Firecracker, unless it says something of Firecracker itself.
fn with_firecracker(config: &str) -> String {
    match named_firecracker() {
        Some(binary) if !config.contains("[firecracker]") => {
            let jailer = binary.with_file_name("jailer");
            format!("{config}\n[firecracker]\nbinary = {binary:?}\njailer = {jailer:?}\n")
        }
        _ => config.to_owned(),
    }
}

/// Runs a `vhive` command on the state directory below `dir`.
///
/// # Errors
/// When it cannot be run; a failing exit is in the output.
pub fn vhive(dir: &Path, args: &[&str]) -> anyhow::Result<Output> {
    Ok(command(dir)?.args(args).stdin(Stdio::null()).output()?)
}

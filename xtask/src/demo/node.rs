//! The demo's node: a child process that ends with its guard.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::state_dir;
use super::step::Step;
use crate::shell;

/// How long the node may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(60);

/// The release binary.
pub(crate) fn vhive_binary() -> PathBuf {
    shell::root().join("target/release/vhive")
}

/// A `vhive` command on the demo's state directory.
pub(crate) fn vhive(args: &[&str]) -> Command {
    let mut command = Command::new(vhive_binary());
    command.arg("--state-dir").arg(state_dir()).args(args).current_dir(shell::root());
    command
}

/// A running node. Dropping it stops it and removes what it made on the host.
#[derive(Debug)]
pub(crate) struct Node {
    child: Option<Child>,
}

impl Node {
    /// Starts a node on free ports and returns once it serves.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let log_path = state_dir().join("../node.log");
        let log = std::fs::File::create(&log_path)?;
        let args = [
            "--log",
            "info",
            "-o",
            "json",
            "node",
            "--gateway",
            "127.0.0.1:0",
            "--api",
            "127.0.0.1:0",
        ];
        let mut command = vhive(&args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().context("cannot start the node")?;
        let stdout = child.stdout.take().context("the node's output was piped")?;
        let node = Self { child: Some(child) };
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready)?;
        if ready.is_empty() {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let skip = log.lines().count().saturating_sub(20);
            let tail: Vec<&str> = log.lines().skip(skip).collect();
            bail!("the node ended at once; it said:\n{}", tail.join("\n"));
        }
        Ok(node)
    }

    /// Runs a `vhive` command against the node; a failure carries the node's words, and for a
    /// service's failure the command already shows the guest's console.
    pub(crate) fn vhive(&self, args: &[&str]) -> anyhow::Result<String> {
        shell::output(&mut vhive(args))
    }

    fn describe(&self, service: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.vhive(&["-o", "json", "describe", service])?)?)
    }

    /// Resident memory of a sandbox of the service on the host, in bytes: their mean.
    pub(crate) fn memory(&self, service: &str) -> anyhow::Result<Option<u64>> {
        let described = self.describe(service)?;
        let instances = described["instances"].as_array().cloned().unwrap_or_default();
        let known: Vec<u64> = instances.iter().filter_map(|i| i["memory_bytes"].as_u64()).collect();
        let sum: u64 = known.iter().sum();
        Ok(sum.checked_div(known.len() as u64))
    }

    /// The last lines that the service's guests wrote, as far as the node still has them.
    pub(crate) fn console(&self, service: &str) -> String {
        match self.vhive(&["logs", service]) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().collect();
                lines[lines.len().saturating_sub(20)..].join("\n")
            }
            Err(error) => format!("(not known: {error:#})"),
        }
    }

    /// Waits until a service has no instance.
    pub(crate) fn wait_for_zero(
        &self,
        service: &str,
        most: Duration,
        step: &Step,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let described = self.describe(service)?;
            let instances = described["instances"].as_array().map_or(0, Vec::len);
            if instances == 0 {
                return Ok(());
            }
            if begun.elapsed() > most {
                bail!("{service} still has {instances} instance(s) after {} s", most.as_secs());
            }
            step.say(&format!("{instances} instance(s)"));
            step.interrupt.wait(Duration::from_millis(250))?;
        }
    }

    /// Stops the node and checks that it ended well.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = Pid::from_child(&child);
        if child.try_wait()?.is_none() {
            kill_process(pid, Signal::TERM)?;
        }
        let (sender, ended) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            // The receiver may have given up; then the outcome no longer matters.
            let _ = sender.send(child.wait());
        });
        let outcome = ended.recv_timeout(DRAIN);
        if outcome.is_err() {
            kill_process(pid, Signal::KILL)?;
        }
        let _ = waiter.join();
        shell::run(vhive(&["node", "--sweep"]).stdout(Stdio::null()))?;
        match outcome {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("the node ended with {status}"),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("the node did not end within {} s and was killed", DRAIN.as_secs()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            println!("the node did not end well: {error:#}");
        }
    }
}

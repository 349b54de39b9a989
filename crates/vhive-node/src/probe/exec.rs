//! Probes by a command, which runs on this host; that sandboxes run commands is in their conformance tests.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use vhive_api::{ProbeTiming, Readiness, SandboxId, TimedProbe};
use vhive_sandbox::{Deadline, Journal, RunError, Sandbox};

use super::{Passed, Probe, ProbeError, wait};

/// A sandbox without walls.
#[derive(Debug)]
struct Open {
    id: SandboxId,
    endpoint: SocketAddr,
    /// Told of every command.
    tell: Sender<()>,
}

impl Sandbox for Open {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn processes(&self) -> &[rustix::process::Pid] {
        &[]
    }

    fn run(&mut self, command: &[String], _: Deadline) -> Result<i32, RunError> {
        let failed = |error: std::io::Error| RunError::Failed(error.to_string());
        // The test may have heard enough.
        let _ = self.tell.send(());
        let status = Command::new(&command[0]).args(&command[1..]).status().map_err(failed)?;
        Ok(status.code().unwrap_or(-1))
    }

    fn stop(&mut self, _: Deadline) {}
}

/// Asks `test -e` of a file, once by the readiness and once by the startup probe if wanted.
fn ask(
    file: &Path,
    (startup, listens): (bool, bool),
    (limit, tell): (Duration, &Sender<()>),
) -> Result<Passed, ProbeError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    let _listener = listens.then_some(listener);
    let mut sandbox = Open { id: SandboxId::random(), endpoint, tell: tell.clone() };
    let command = ["test", "-e", file.to_str().unwrap()].map(str::to_owned).to_vec();
    let check = Readiness::Exec(command);
    let started = TimedProbe { check: check.clone(), timing: ProbeTiming::default() };
    let readiness = if startup { Readiness::Tcp } else { check };
    let probe = Probe {
        endpoint,
        port: 8080,
        readiness: &readiness,
        timing: ProbeTiming::default(),
        startup: startup.then_some(&started),
        sandbox: Some(&mut sandbox),
    };
    wait(probe, &Journal::new(), Instant::now(), Deadline::after(limit))
}

#[test]
fn a_function_is_ready_once_its_command_succeeds_and_its_port_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ready");
    let (tell, told) = channel();
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(20));
    for (startup, name) in [(false, "readiness"), (true, "startup")] {
        match ask(&file, (startup, true), (short, &tell)) {
            Err(ProbeError::NotReady { stage, what, answer, .. }) => {
                assert_eq!((stage, answer.as_str()), (name, "exit code 1"));
                assert!(what.starts_with("exec [\"test\", \"-e\""), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
    // It becomes true while it is asked.
    told.try_iter().for_each(drop);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&file, (false, true), (long, &tell)));
        for _ in 0..2 {
            told.recv_timeout(long).unwrap();
        }
        std::fs::write(&file, "").unwrap();
        waiting.join().unwrap().expect("ready");
    });
    ask(&file, (true, true), (long, &tell)).expect("ready");
    let refused = ask(&file, (false, false), (short, &tell));
    assert!(matches!(refused, Err(ProbeError::NotListening { .. })), "{refused:?}");
}

//! Failures made on purpose while a run goes on: at a time, something is done to the platform.
//!
//! # Source
//! invitro `pkg/driver/failure`, `pkg/config/parser.go` (`FailureConfiguration`).

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// How long after a run's end a failure that is under way may take.
const LAST: Duration = Duration::from_secs(10);
/// The most that is kept of what a command writes.
const KEPT: usize = 4096;

/// The original's file, and two keys of ours.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct FailureConfig {
    /// Without it nothing is done.
    pub failure_enabled: bool,
    /// Seconds from the run's beginning.
    pub fail_at: u64,
    /// `control_plane`, `data_plane`, `worker_node`, and ours: `command`, `instance`.
    pub fail_component: String,
    /// Hosts of `worker_node`, between spaces; services of `instance`.
    pub fail_node: String,
    /// Of `command`: what a shell runs.
    pub fail_command: String,
}

/// Why a file of failures cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FailureError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no such file.
    #[error("{path} is no configuration of failures")]
    Json {
        /// The file.
        path: PathBuf,
        /// The unknown key or bad value, by line and column.
        source: serde_json::Error,
    },
    /// A key makes no failure.
    #[error("{key}: {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// Why not.
        problem: String,
    },
    /// A failure on the command line is none.
    #[error("{0:?} is no failure: give SPAN:COMMAND, e.g. 30s:'systemctl restart kubelet'")]
    Line(String),
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A shell runs it.
    Command(String),
    /// The idle instances of a service are stopped, through the node's API.
    Instances(String),
}

/// A failure, and when it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// From the run's beginning.
    pub at: Duration,
    /// What is done.
    pub act: Act,
}

impl FailureConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn read(path: &Path) -> Result<Self, FailureError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| FailureError::Read { path: path.to_owned(), source })?;
        serde_json::from_str(&text)
            .map_err(|source| FailureError::Json { path: path.to_owned(), source })
    }

    /// What it asks for: nothing unless it is enabled, as in the original.
    ///
    /// # Errors
    /// A component that is none, or that lacks what it needs.
    pub fn failures(&self) -> Result<Vec<Failure>, FailureError> {
        if !self.failure_enabled {
            return Ok(Vec::new());
        }
        let refuse =
            |key, problem: &str| Err(FailureError::Key { key, problem: problem.to_owned() });
        let names = || self.fail_node.split_whitespace();
        let acts: Vec<Act> = match self.fail_component.as_str() {
            "control_plane" => {
                CONTROL_PLANE.iter().map(|pod| Act::Command(delete_pod(pod))).collect()
            }
            "data_plane" => DATA_PLANE.iter().map(|pod| Act::Command(delete_pod(pod))).collect(),
            "worker_node" => {
                let host = |c: char| c.is_ascii_alphanumeric() || "-._:@".contains(c);
                if let Some(bad) =
                    names().find(|name| name.starts_with('-') || !name.chars().all(host))
                {
                    return refuse("FailNode", &format!("{bad:?} is no host"));
                }
                let ssh = "ssh -o StrictHostKeyChecking=no";
                names()
                    .map(|node| {
                        Act::Command(format!("{ssh} {node} sudo systemctl restart kubelet"))
                    })
                    .collect()
            }
            "command" if !self.fail_command.trim().is_empty() => {
                vec![Act::Command(self.fail_command.clone())]
            }
            "command" => return refuse("FailCommand", "the command to run is missing"),
            "instance" => names().map(|name| Act::Instances(name.to_owned())).collect(),
            other => {
                let known = "control_plane, data_plane, worker_node, command and instance";
                return refuse(
                    "FailComponent",
                    &format!("{other:?} is not known; known are {known}"),
                );
            }
        };
        if acts.is_empty() {
            return refuse("FailNode", "names nothing");
        }
        let at = Duration::from_secs(self.fail_at);
        if at > crate::LONGEST {
            return refuse("FailAt", "must be ten years at most");
        }
        Ok(acts.into_iter().map(|act| Failure { at, act }).collect())
    }
}

/// Namespaces and the words that name a pod of the control plane there.
///
/// # Source
/// invitro `pkg/driver/failure/knative_delete_control_plane.sh`.
const CONTROL_PLANE: &[(&str, &str)] = &[
    ("knative-serving", "autoscaler"),
    ("knative-serving", "controller"),
    ("knative-serving", "net-istio-controller"),
    ("knative-serving", "net-istio-webhook"),
    ("knative-serving", "webhook"),
    ("kube-system", "etcd-node"),
    ("kube-system", "kube-apiserver"),
    ("kube-system", "kube-controller-manager"),
    ("kube-system", "kube-scheduler"),
    ("istio-system", "istiod"),
];

/// # Source
/// invitro `pkg/driver/failure/knative_delete_data_plane.sh`.
const DATA_PLANE: &[(&str, &str)] = &[
    ("knative-serving", "activator"),
    ("istio-system", "cluster-local-gateway"),
    ("istio-system", "istio-ingressgateway"),
];

/// Deletes the last of a namespace's pods that is named so; it has failed if there is none.
fn delete_pod((namespace, name): &(&str, &str)) -> String {
    format!(
        "all=$(kubectl get pods -n {namespace} -o name) || exit; \
         pod=$(printf '%s\\n' \"$all\" | grep {name} | tail -n 1); \
         [ -n \"$pod\" ] || {{ echo no pod of {namespace} is named {name}; exit 1; }}; \
         kubectl delete -n {namespace} \"$pod\""
    )
}

/// What came of a failure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Injected {
    /// When it was to happen, in seconds from the run's beginning.
    pub at_s: f64,
    /// What was to be done.
    pub what: String,
    /// When it was begun, in microseconds from the run's beginning; absent when the run ended
    /// before.
    pub begun_us: Option<u64>,
    /// When it was done, likewise.
    pub done_us: Option<u64>,
    /// Why it did not work; absent when it did, or was not begun.
    pub error: Option<String>,
    /// What it wrote or replied.
    pub said: String,
}

/// Does what is to be done to a service's instances; returns what the platform says.
pub type Stop = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

struct Waiting {
    failure: Failure,
    end: Sender<()>,
    done: Receiver<Injected>,
}

/// Failures that wait for their time, each in a thread of its own: none delays a send.
pub struct Injector {
    clock: Arc<OnceLock<Clock>>,
    waiting: Vec<Waiting>,
}

impl std::fmt::Debug for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<&Failure> = self.waiting.iter().map(|one| &one.failure).collect();
        f.debug_struct("Injector").field("failures", &all).finish_non_exhaustive()
    }
}

impl Injector {
    /// Begins to wait; `clock` is the run's, set when it begins.
    #[must_use]
    pub fn begin(failures: Vec<Failure>, clock: &Arc<OnceLock<Clock>>, stop: &Stop) -> Self {
        let wait = |failure: Failure| {
            let (end, ended) = channel();
            let (tell, done) = channel();
            let (mine, clock, stop) = (failure.clone(), Arc::clone(clock), Arc::clone(stop));
            std::thread::spawn(move || {
                // The run may have failed to begin; then nobody listens, and nothing is done.
                let clock = *clock.wait();
                let at = clock.at(0) + mine.at;
                // The channel carries nothing: it ends with the run.
                let _ = ended.recv_timeout(at.saturating_duration_since(Instant::now()));
                if at <= Instant::now() {
                    let _ = tell.send(inject(&mine, clock, &stop));
                }
            });
            Waiting { failure, end, done }
        };
        Self { clock: Arc::clone(clock), waiting: failures.into_iter().map(wait).collect() }
    }

    /// What is to happen, as nothing of it has been begun.
    #[must_use]
    pub fn planned(&self) -> Vec<Injected> {
        self.waiting.iter().map(|one| untold(&one.failure, None, None)).collect()
    }

    /// The run has ended: what has not been begun is not any more. What is under way has ten
    /// seconds.
    #[must_use]
    pub fn end(self) -> Vec<Injected> {
        let until = Instant::now() + LAST;
        let Some(clock) = self.clock.get() else {
            return self.planned();
        };
        let now_ns = clock.now_ns();
        let mut all = Vec::new();
        for Waiting { failure, end, done } in self.waiting {
            drop(end);
            let left = until.saturating_duration_since(Instant::now());
            all.push(match done.recv_timeout(left) {
                Ok(injected) => injected,
                Err(RecvTimeoutError::Disconnected) => untold(&failure, None, None),
                Err(RecvTimeoutError::Timeout) => {
                    let why = format!("still under way {} s after the run's end", LAST.as_secs());
                    let begun_us = u64::try_from(failure.at.as_micros()).unwrap_or(u64::MAX);
                    untold(&failure, Some(begun_us.min(now_ns / 1000)), Some(why))
                }
            });
        }
        all
    }
}

fn untold(failure: &Failure, begun_us: Option<u64>, error: Option<String>) -> Injected {
    let at_s = failure.at.as_secs_f64();
    Injected {
        at_s,
        what: failure.act.to_string(),
        begun_us,
        done_us: None,
        error,
        said: String::new(),
    }
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(command) => f.write_str(command),
            Self::Instances(service) => write!(f, "instances of {service}"),
        }
    }
}

fn inject(failure: &Failure, clock: Clock, stop: &Stop) -> Injected {
    let begun_us = Some(clock.now_ns() / 1000);
    let (error, said) = match &failure.act {
        Act::Instances(service) => match stop(service) {
            Ok(said) => (None, said),
            Err(why) => (Some(why), String::new()),
        },
        Act::Command(command) => shell(command),
    };
    let done_us = Some(clock.now_ns() / 1000);
    Injected { done_us, error, said, ..untold(failure, begun_us, None) }
}

/// Runs a command; gives why it failed, and the end of what it wrote.
fn shell(command: &str) -> (Option<String>, String) {
    match run(command) {
        Err(error) => (Some(format!("cannot run a shell: {error}")), String::new()),
        Ok((status, said)) => {
            let failed = (!status.success()).then(|| format!("{status}: {said}"));
            (failed, said)
        }
    }
}

/// Waits for the shell only: what it leaves running in the background may write for ever. All that the
/// shell itself wrote is in the pipe before the mark that is written behind it.
fn run(command: &str) -> io::Result<(ExitStatus, String)> {
    let (read, mut write) = io::pipe()?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    shell.stdout(write.try_clone()?).stderr(write.try_clone()?);
    let mut child = shell.spawn()?;
    // It holds the pipe's other end.
    drop(shell);
    let mark = mark();
    let (tell, told) = channel();
    let awaited = mark.clone();
    std::thread::spawn(move || keep_the_end(read, &awaited, &tell));
    let status = child.wait()?;
    // A write of so little is one piece of what is read, whoever else writes.
    write.write_all(&mark)?;
    drop(write);
    let tail = told.recv_timeout(LAST).unwrap_or_default();
    Ok((status, String::from_utf8_lossy(&tail).trim().to_owned()))
}

/// Bytes that no command writes by chance.
fn mark() -> Vec<u8> {
    let one = || RandomState::new().build_hasher().finish();
    [one(), one()].iter().flat_map(|one| one.to_le_bytes()).collect()
}

/// Tells the end of what comes before the mark; what comes behind it is read, so that nobody who
/// writes has to wait, until nobody can write any more.
fn keep_the_end(mut from: impl io::Read, mark: &[u8], tell: &Sender<Vec<u8>>) {
    let (mut buffer, mut tail, mut is_told) = ([0; KEPT], Vec::new(), false);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if is_told {
            continue;
        }
        // A read may end within the mark.
        let seen = tail.len().saturating_sub(mark.len());
        tail.extend(&buffer[..read]);
        let at = tail[seen..].windows(mark.len()).position(|bytes| bytes == mark);
        let end = at.map_or(tail.len(), |at| seen + at);
        tail.truncate(end);
        let kept = if at.is_some() { KEPT } else { KEPT + mark.len() };
        tail.drain(..tail.len().saturating_sub(kept));
        if at.is_some() {
            // Whoever waited may have gone on.
            let _ = tell.send(std::mem::take(&mut tail));
            is_told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Stop {
        Arc::new(|service: &str| Err(format!("no {service}")))
    }

    fn config(text: &str) -> Result<Vec<Failure>, String> {
        let config: FailureConfig =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.failures().map_err(|error| error.to_string())
    }

    #[test]
    fn the_originals_file_is_followed_and_ours_in_it() {
        let sample = r#"{"FailureEnabled": false, "FailAt": 600, "FailComponent": "control_plane", "FailNode": ""}"#;
        assert_eq!(config(sample), Ok(vec![]), "not enabled, as in the original's sample");
        let all = config(&sample.replace("false", "true")).unwrap();
        assert_eq!((all.len(), all[0].at), (10, Duration::from_secs(600)));
        let Act::Command(first) = &all[0].act else { panic!("a command") };
        assert!(
            first.contains("grep autoscaler") && first.contains("-n knative-serving"),
            "{first}"
        );
        let nodes = r#"{"FailureEnabled":true,"FailAt":3,"FailComponent":"worker_node","FailNode":"a b.c"}"#;
        let all = config(nodes).unwrap();
        let wanted = "ssh -o StrictHostKeyChecking=no b.c sudo systemctl restart kubelet";
        assert_eq!(all[1].act, Act::Command(wanted.to_owned()));
        let ours =
            r#"{"FailureEnabled":true,"FailAt":1,"FailComponent":"instance","FailNode":"hello-0"}"#;
        assert_eq!(config(ours).unwrap()[0].act, Act::Instances("hello-0".to_owned()));
        for (text, said) in [
            (nodes.replace("worker_node", "router"), "FailComponent"),
            (nodes.replace("a b.c", ""), "FailNode"),
            (nodes.replace("a b.c", "a;reboot"), "FailNode"),
            (nodes.replace("a b.c", "-oProxyCommand=x"), "FailNode"),
            (nodes.replace("worker_node", "command"), "FailCommand"),
            (nodes.replace("FailAt\":3", "FailAt\":-3"), "-3"),
            (nodes.replace("FailAt\":3", "FailAt\":18446744073709551615"), "FailAt"),
            (nodes.replace("FailAt", "FailedAt"), "FailedAt"),
        ] {
            let error = config(&text).unwrap_err();
            assert!(error.contains(said), "{error} for {said}");
        }
    }

    #[test]
    fn failures_happen_at_their_time_and_tell_what_came_of_them() {
        let clock = Arc::new(OnceLock::new());
        let act = |command: &str| Act::Command(command.to_owned());
        let at = Duration::from_millis;
        let failures = vec![
            Failure { at: at(30), act: act("echo done") },
            Failure { at: at(0), act: act("echo broken >&2; exit 3") },
            Failure { at: at(10), act: Act::Instances("f".to_owned()) },
            Failure { at: at(3_600_000), act: act("touch never") },
        ];
        let injector = Injector::begin(failures, &clock, &none());
        clock.set(Clock::start()).unwrap();
        // The first three are due then; what is under way is waited for.
        let (_hold, wait) = channel::<()>();
        assert!(wait.recv_timeout(at(50)).is_err());
        let all = injector.end();
        assert_eq!((all[0].error.as_deref(), all[0].said.as_str()), (None, "done"));
        assert!(all[0].begun_us >= Some(30_000) && all[0].done_us >= all[0].begun_us, "{all:?}");
        assert!(all[1].error.as_deref().is_some_and(|why| why.contains("broken")), "{all:?}");
        assert_eq!(all[2].error.as_deref(), Some("no f"));
        assert_eq!((all[3].begun_us, &all[3].error), (None, &None), "the run ended before");
    }

    #[test]
    fn a_command_that_writes_much_or_leaves_something_running_is_done_when_its_shell_is() {
        let (failed, said) = shell("yes nonsense | head -c 10000000; echo end >&2");
        assert_eq!(failed, None);
        assert!(said.len() <= KEPT && said.ends_with("end"), "{}", said.len());
        let begun = Instant::now();
        let (failed, said) = shell("sleep 20 & echo $!");
        assert!(begun.elapsed() < Duration::from_secs(15), "it waited for the background");
        assert_eq!(failed, None);
        let pid: u32 = said.parse().unwrap();
        assert_eq!(shell(&format!("kill {pid}")), (None, String::new()));
    }

    #[test]
    fn a_mark_that_comes_in_pieces_ends_what_is_kept() {
        struct Pieces(Vec<&'static [u8]>);
        impl io::Read for Pieces {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let piece = if self.0.is_empty() { &[][..] } else { self.0.remove(0) };
                buffer[..piece.len()].copy_from_slice(piece);
                Ok(piece.len())
            }
        }
        let long: &[u8] = &[b'x'; KEPT];
        for (pieces, kept) in [
            (vec![&b"one MA"[..], b"R", b"Ktwo", b"three"], &b"one "[..]),
            (vec![b"MAMARK"], b"MA"),
            (vec![long, b"yMAR", b"KMARK"], &[&long[1..], b"y"].concat()),
        ] {
            let (tell, told) = channel();
            keep_the_end(Pieces(pieces), b"MARK", &tell);
            drop(tell);
            assert_eq!(told.iter().collect::<Vec<_>>(), [kept.to_vec()]);
        }
    }

    #[test]
    fn a_run_that_never_began_has_no_failures() {
        let failures = vec![Failure { at: Duration::ZERO, act: Act::Command("exit 1".to_owned()) }];
        let clock = Arc::new(OnceLock::new());
        let injector = Injector::begin(failures, &clock, &none());
        let all = injector.end();
        assert_eq!((all.len(), all[0].begun_us, &all[0].error), (1, None, &None));
    }
}

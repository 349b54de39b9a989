//! The peer of `density-hello-*`: `hello` by itself, each in a control group of its own and in no container.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhive_api::Bytes;
use vhive_study::memory_group::MemoryGroup;

/// How many there are.
const COUNT: usize = 64;
/// How long one may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether it does.
const PAUSE: Duration = Duration::from_millis(5);
/// The group's tag: no node's, which has hexadecimal digits.
const TAG: &str = "bench-alone";

/// Ended and reaped on drop, and its group removed.
struct Alone {
    child: Child,
    group: PathBuf,
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.group);
    }
}

/// Which part of what the kernel charges them with is their own (their proportional set sizes).
pub(crate) fn part(functions: &Path) -> Result<f64> {
    let program = functions.join("target/x86_64-unknown-linux-gnu/release/hello");
    ensure!(program.is_file(), "no {}", program.display());
    let group = MemoryGroup::limit(TAG, Bytes::mib(4096))?;
    let before = group.charged().all.context("the group tells nothing")?;
    let mut all = Vec::new();
    for number in 0..COUNT {
        all.push(start(&program, &group.dir().join(number.to_string()))?);
    }
    let own: Result<Vec<u64>> = all.iter().map(|one| pss(one.child.id())).collect();
    let charged = group.charged().all.context("the group tells nothing")? - before;
    let part = own?.iter().sum::<u64>() as f64 / charged as f64;
    drop(all);
    Ok(part)
}

/// Starts one in a new group, and waits until it listens.
fn start(program: &Path, group: &Path) -> Result<Alone> {
    fs::create_dir(group)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut command = Command::new("sh");
    // Nothing of it is charged elsewhere.
    command.args(["-c", "echo $$ > \"$1/cgroup.procs\" && exec \"$2\"", "sh"]);
    command.args([group, program]).env("PORT", port.to_string());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let alone = Alone { child, group: group.to_owned() };
    let (_hold, pause) = std::sync::mpsc::channel::<()>();
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(begun.elapsed() < PATIENCE, "{} does not listen", program.display());
        let _ = pause.recv_timeout(PAUSE);
    }
    Ok(alone)
}

/// In bytes.
fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

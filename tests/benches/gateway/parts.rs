//! The processes of the comparison.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::num::NonZeroI32;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::Measured;

/// The CPUs that this process may use.
pub(crate) fn cpus() -> anyhow::Result<Vec<usize>> {
    let may = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| may.is_set(*cpu)).collect())
}

/// Puts this process, and with it all that it starts, on one CPU.
pub(crate) fn on_cpu(cpu: usize) -> anyhow::Result<()> {
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    rustix::thread::sched_setaffinity(None, &one)?;
    Ok(())
}

/// A process that listens; ends with this value.
pub(crate) struct Part {
    pid: Pid,
    /// None of a daemon, which is no child of ours.
    child: Option<Child>,
    pub(crate) address: String,
}

impl Part {
    /// CPU time that it and its children have used.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let pid = self.pid.as_raw_nonzero();
        let mut nanos = threads_nanos(pid)?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        for child in children.split_whitespace() {
            nanos += threads_nanos(child.parse()?)?;
        }
        Ok(nanos as f64 / 1e9)
    }
}

/// # Source
/// `Documentation/scheduler/sched-stats.rst`: the first field of `/proc/<pid>/schedstat`.
fn threads_nanos(pid: NonZeroI32) -> anyhow::Result<u64> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split(' ').next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(nanos)
}

impl Drop for Part {
    fn drop(&mut self) {
        let _gone_already_is_fine = kill_process(self.pid, Signal::TERM);
        if let Some(child) = &mut self.child {
            drop(child.wait());
        }
    }
}

/// Starts this program in a role; its first line of output is its address.
pub(crate) fn role(args: &[&str]) -> anyhow::Result<Part> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("role")
        .args(args)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    let out = child.stdout.take().context("piped")?;
    BufReader::new(out).read_line(&mut address)?;
    let address = address.trim().to_owned();
    if address.is_empty() {
        bail!("{args:?} did not start: {}", child.wait()?);
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
    Ok(Part { pid, child: Some(child), address })
}

/// Starts a client, which sends for so many milliseconds or (`150x`) so many requests on each
/// connection, and reads what it measured.
pub(crate) fn client(address: &str, connections: &str, until: &str) -> anyhow::Result<Measured> {
    let output = Command::new(std::env::current_exe()?)
        .args(["role", "client", address, connections, until])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("client of {address} failed: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// An upstream that is kept connected to, and the location that passes everything on to it.
pub(crate) fn proxy(upstream: &str) -> [String; 2] {
    let before = format!(
        "upstream function {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}\n"
    );
    let location = "proxy_pass http://function;\nproxy_http_version 1.1;\n\
        proxy_set_header Connection \"\";\nproxy_set_header Host $host;\n";
    [before, location.to_owned()]
}

/// Starts nginx with one worker and no access log; `before` goes before its server, `location`
/// into its only location.
pub(crate) fn nginx(dir: &Path, [before, location]: &[String; 2]) -> anyhow::Result<Part> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let shown = dir.display();
    let config = format!(
        "worker_processes 1;\nuser root;\npid {shown}/nginx.pid;\n\
         error_log {shown}/error.log;\nevents {{ worker_connections 1024; }}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {shown}/body;\nproxy_temp_path {shown}/proxy;\n\
         fastcgi_temp_path {shown}/fastcgi;\nuwsgi_temp_path {shown}/uwsgi;\n\
         scgi_temp_path {shown}/scgi;\nkeepalive_requests 1000000000;\ntcp_nodelay on;\n\
         {before}server {{\nlisten {address};\nlocation / {{\n{location}}}\n}}\n}}\n"
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config)?;
    // In the foreground until it listens; then a daemon.
    let log = dir.join("error.log");
    let mut command = Command::new("nginx");
    command.arg("-e").arg(&log).arg("-p").arg(dir).arg("-c").arg(&path);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !status.success() {
        bail!("nginx does not start: {}", std::fs::read_to_string(log)?);
    }
    // Its worker answers only once the master has written its process id.
    client(&address, "1", "1")?;
    let pid: i32 = std::fs::read_to_string(dir.join("nginx.pid"))?.trim().parse()?;
    Ok(Part { pid: Pid::from_raw(pid).context("a process id")?, child: None, address })
}

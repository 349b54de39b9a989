//! What the kernel knows of a sandbox's QEMU, and settings put back when the bench is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use vhive_tests::cache::Setting;

/// Of a QEMU since it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// Processor time, all threads, in milliseconds.
    pub(crate) cpu_ms: f64,
    /// Longest wait of one thread for the disk, in milliseconds: it is the virtual CPU's. Not a
    /// number where the kernel's account is none.
    pub(crate) disk_ms: f64,
    /// Page faults that read from the disk.
    pub(crate) major_faults: f64,
    /// Read from the disk on its behalf, in MiB.
    pub(crate) read_mib: f64,
}

impl Account {
    /// Looks at the process whose command line names the sandbox.
    pub(crate) fn of(sandbox: &str) -> Result<Self> {
        let process = find(sandbox)?;
        let whole = Stat::read(&process.join("stat"))?;
        let mut disk_ms = 0.0_f64;
        for thread in fs::read_dir(process.join("task"))? {
            // Threads come and go.
            let Ok(stat) = Stat::read(&thread?.path().join("stat")) else { continue };
            disk_ms = disk_ms.max(stat.ticks(42) * stat.ms_per_tick);
        }
        let io = fs::read_to_string(process.join("io"))?;
        let read = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
        let read: f64 = read.and_then(|bytes| bytes.parse().ok()).unwrap_or(f64::NAN);
        Ok(Self {
            cpu_ms: (whole.ticks(14) + whole.ticks(15)) * whole.ms_per_tick,
            disk_ms,
            major_faults: whole.ticks(12),
            read_mib: read / f64::from(1_u32 << 20),
        })
    }
}

fn find(sandbox: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.contains(sandbox) && command.contains("qemu") {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("sandbox {sandbox} has no QEMU")
}

/// A `stat` file.
///
/// # Source
/// proc(5): fields are numbered from 1, the second is in brackets and may hold anything.
struct Stat {
    fields: Vec<f64>,
    ms_per_tick: f64,
}

impl Stat {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let rest = text.rsplit_once(") ").context("a stat file without a name")?.1;
        let fields = rest.split_whitespace().map(|field| field.parse().unwrap_or(f64::NAN));
        let ms_per_tick = 1e3 / rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { fields: fields.collect(), ms_per_tick })
    }

    fn ticks(&self, number: usize) -> f64 {
        self.fields.get(number - 3).copied().unwrap_or(f64::NAN)
    }
}

/// From now on a signal that ends this program puts the settings back first.
pub(crate) fn put_back_on_signals(settings: Vec<Setting>) -> Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    // Every later thread inherits this, and every later program.
    set.thread_block()?;
    thread::spawn(move || {
        let caught = set.wait();
        drop(settings);
        if set.thread_unblock().is_ok()
            && let Ok(signal) = caught
        {
            // If it cannot be raised, the main thread goes on: nothing is lost.
            let _ = raise(signal);
        }
    });
    Ok(())
}

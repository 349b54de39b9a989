//! A node of its own with the demo's kernel and images, and single starts on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use vhive_api::{InvocationRecord, MemoryFigures, Phase, StartKind};
use vhive_tests::cache::{Setting, drop_files};
use vhive_tests::input::{self, functions};
use vhive_tests::manifest;
use vhive_tests::node::TestNode;

use crate::account::{self, Account};

/// Recorded once and never again, however much the other input misses; otherwise as delivered.
const ONCE: &str = "[node.snapshots]\nrerecord_above_percent = 100000\n";
/// Recorded again after any start that missed a page.
const AGAIN: &str = "[node.snapshots]\nrerecord_above_percent = 0\n";

/// Whether the kernel accounts for waits.
const DELAYS: &str = "/proc/sys/kernel/task_delayacct";

/// The node, and the host's settings as they were.
pub(crate) struct Ground {
    pub(crate) node: TestNode,
    pub(crate) readahead: Setting,
    /// Whether the kernel accounts how long a thread waits for the disk.
    pub(crate) delays: bool,
    /// A second one, whose node records again whatever was missed.
    pub(crate) merging: Option<Box<Self>>,
    state: PathBuf,
    // Put back, then the directory removed, after the node has ended.
    accounting: Setting,
    _dir: tempfile::TempDir,
}

/// One invocation.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) record: InvocationRecord,
    pub(crate) account: Account,
}

/// What is done to the page cache and the readahead before a start.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Files<'a> {
    /// Nothing of the snapshots in the page cache, readahead of so many KiB.
    Cold(&'a str),
    /// As the start before has left them, no readahead.
    AsTheyAre,
}

impl Ground {
    /// Makes it, or says what is missing.
    pub(crate) fn find() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "root is missing");
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/demo/state");
        for part in ["kernels", "images"] {
            let there = made.join(part);
            ensure!(there.is_dir(), "no {}: `make demo` makes it", there.display());
        }
        // Both before the signals are blocked: what is started later inherits a mask that holds them up.
        let merging = Self::on(&made, AGAIN)?;
        let mut ground = Self::on(&made, ONCE)?;
        account::put_back_on_signals(vec![
            Setting::readahead(&ground.state)?,
            Setting::keep(DELAYS.into())?,
        ])?;
        ground.delays = ground.accounting.set("1").is_ok();
        ground.merging = Some(Box::new(merging));
        Ok(ground)
    }

    /// A node with this configuration, and what `made` has of kernels and images.
    fn on(made: &Path, config: &str) -> Result<Self> {
        // On the disk, whatever /tmp is.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let state = dir.path().join("state");
        fs::create_dir(&state)?;
        for part in ["kernels", "images"] {
            symlink(made.join(part).canonicalize()?, state.join(part))?;
        }
        let readahead = Setting::readahead(dir.path()).context("no device with a readahead")?;
        let accounting =
            Setting::keep(DELAYS.into()).context("the kernel has no delay accounting")?;
        let node = TestNode::start(dir.path(), config)?;
        let (delays, merging) = (false, None);
        Ok(Self { node, readahead, delays, merging, state, accounting, _dir: dir })
    }

    /// Puts a function on the node under `service`, with annotations.
    pub(crate) fn apply(
        &self,
        function: &str,
        service: &str,
        annotations: &[(&str, &str)],
    ) -> Result<()> {
        self.put(service, &variant(function, service, annotations)?)
    }

    /// Likewise, one request per instance.
    pub(crate) fn apply_alone(
        &self,
        function: &str,
        service: &str,
        annotations: &[(&str, &str)],
    ) -> Result<()> {
        let mut manifest = variant(function, service, annotations)?;
        manifest["spec"]["template"]["spec"]["containerConcurrency"] = json!(1);
        self.put(service, &manifest)
    }

    fn put(&self, service: &str, manifest: &Value) -> Result<()> {
        let file = self.state.join(format!("{service}.json"));
        fs::write(&file, serde_json::to_vec(manifest)?)?;
        self.node.ok(&["apply", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// Takes the service and its snapshot away.
    pub(crate) fn forget(&self, service: &str) -> Result<()> {
        self.node.ok(&["evict", service])?;
        self.node.ok(&["snapshot", "rm", service])?;
        self.node.ok(&["delete", service]).map(drop)
    }

    /// Invokes with no instance there; the start must be of the expected kind.
    pub(crate) fn cold(
        &self,
        (function, service): (&str, &str),
        input: &str,
        files: Files<'_>,
        expected: StartKind,
    ) -> Result<Sample> {
        // Returns when a snapshot or recording behind the last reply is done as well.
        self.node.ok(&["evict", service])?;
        match files {
            Files::Cold(kib) => {
                self.readahead.set(kib)?;
                self.drop_snapshots()?;
            }
            Files::AsTheyAre => self.readahead.set("0")?,
        }
        let sample = self.invoke((function, service), input)?;
        self.readahead.set(self.readahead.before())?;
        let record = &sample.record;
        if record.start != Some(expected) {
            let how = record.start.map_or("nothing", StartKind::as_str);
            let why = record.fallback.as_deref().unwrap_or("no reason given");
            bail!("{service}: served by {how}, not {}: {why}", expected.as_str());
        }
        Ok(sample)
    }

    pub(crate) fn drop_snapshots(&self) -> Result<()> {
        let snapshots = self.state.join("snapshots");
        if snapshots.exists() {
            drop_files(&snapshots).context("the page cache cannot be dropped")?;
        }
        Ok(())
    }

    fn invoke(&self, (function, service): (&str, &str), input: &str) -> Result<Sample> {
        let mut input = input::of(function, input)?;
        if !input.data.starts_with('@') {
            // It may be longer than an argument of a program can be.
            let file = self.state.join(format!("{service}-input.json"));
            fs::write(&file, &input.data)?;
            input.data = format!("@{}", file.display());
        }
        let args = ["invoke", service, "-X", &input.method, "--path", &input.path];
        let reply = self.node.json(
            &[&args[..], &["-H", "content-type: application/json", "-d", &input.data]].concat(),
        )?;
        ensure!(reply["status"] == 200, "{service}: status {}: {}", reply["status"], reply["body"]);
        let record: Option<InvocationRecord> = serde_json::from_value(reply["record"].clone())?;
        let record = record.with_context(|| format!("{service}: no record"))?;
        let sandbox = record.sandbox.as_ref().with_context(|| format!("{service}: no sandbox"))?;
        let mut account = Account::of(&sandbox.to_string())?;
        if account.disk_ms > length_ms(&record, Phase::Total) {
            // A wait whose begin the kernel has missed counts from an earlier one's, or from boot.
            account.disk_ms = f64::NAN;
        }
        Ok(Sample { record, account })
    }

    /// Whether the service's next start from its snapshot records. Its instances are stopped for that.
    pub(crate) fn will_record(&self, service: &str) -> Result<bool> {
        // What the last start has missed is noted behind its reply; this waits for that.
        self.node.ok(&["evict", service])?;
        Ok(self.node.json(&["snapshot", "show", service])?["missed"] == true)
    }

    /// The newest records of a service.
    pub(crate) fn records(&self, service: &str, limit: usize) -> Result<Vec<InvocationRecord>> {
        let limit = limit.to_string();
        let all = self.node.json(&["get", "records", "-s", service, "--limit", &limit])?;
        let items: Value = if all.is_array() { all } else { json!([]) };
        Ok(serde_json::from_value(items)?)
    }
}

impl Sample {
    /// Length of a phase in milliseconds.
    pub(crate) fn ms(&self, phase: Phase) -> f64 {
        length_ms(&self.record, phase)
    }

    pub(crate) fn total(&self) -> f64 {
        self.ms(Phase::Total)
    }

    /// The start alone: from the request to the function's readiness, in milliseconds.
    pub(crate) fn ready(&self) -> f64 {
        self.total() - self.ms(Phase::Request)
    }

    pub(crate) fn memory(&self) -> Option<MemoryFigures> {
        self.record.memory
    }

    /// Time in which the guest waited for memory, by the pager's account, in milliseconds.
    pub(crate) fn waited(&self) -> f64 {
        self.memory().map_or(f64::NAN, |memory| memory.wait_us as f64 / 1e3)
    }

    pub(crate) fn faults(&self) -> f64 {
        self.memory().and_then(|memory| memory.faults).map_or(f64::NAN, |faults| faults as f64)
    }
}

/// Length of a phase in milliseconds; not a number without it.
pub(crate) fn length_ms(record: &InvocationRecord, phase: Phase) -> f64 {
    let span = record.phases.iter().find(|span| span.phase == phase);
    span.map_or(f64::NAN, |span| span.length_us as f64 / 1e3)
}

fn variant(function: &str, service: &str, annotations: &[(&str, &str)]) -> Result<Value> {
    manifest::variant(&functions().join(function).join("service.yaml"), service, annotations)
}

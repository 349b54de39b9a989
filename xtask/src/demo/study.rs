//! The study at the end: what `vhive study` says of two functions.

use std::path::PathBuf;

use super::functions::follow;
use super::node::vhive;
use super::state_dir;
use super::step::Step;

/// How often each function is started in each way.
pub(crate) const REPETITIONS: u32 = 2;

/// Small, so that the demo stays short; the rest of the plan is the default one.
const PLAN: &str = r#"# The demo's study; `vhive study cold-start --print-plan` shows every key.
functions = ["hello", "pyaes"]
kinds = ["boot", "snapshot", "reap", "warm"]
cache = "advise"                 # drops the snapshots' files from the page cache, not the host's others
"#;

/// Where its result is.
pub(crate) fn dir() -> PathBuf {
    state_dir().with_file_name("report")
}

/// Runs it and returns what it found, in its own words.
pub(crate) fn run(step: &Step) -> anyhow::Result<String> {
    let (plan, out) = (state_dir().with_file_name("study.toml"), dir());
    std::fs::write(&plan, format!("{PLAN}repetitions = {REPETITIONS}\n"))?;
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    let (plan, out) = (plan.to_string_lossy(), out.to_string_lossy());
    follow(&mut vhive(&["study", "cold-start", &plan, "--out", &out]), step)
}

//! The studies at the end: what `vhive study` says of two functions' starts, and of one's pages.

use std::path::PathBuf;

use vhive_tests::results;

use super::functions::follow;
use super::node::vhive;
use super::state_dir;
use super::step::Step;

/// How often each function is started in each way.
pub(crate) const REPETITIONS: u32 = 2;

/// Small, so that the demo stays short; the rest of the plan is the default one.
const PLAN: &str = r#"# The demo's study; `vhive study cold-start --print-plan` shows every key.
cache = "advise"                 # drops the snapshots' files from the page cache, not the host's others
"#;
const FUNCTIONS: [&str; 2] = ["hello", "pyaes"];
const KINDS: [&str; 4] = ["boot", "snapshot", "reap", "warm"];

/// Counted, not timed, so once is enough.
const PAGES: [&str; 10] = [
    "study",
    "pages",
    "--functions",
    "hello",
    "--kinds",
    "lazy,reap",
    "--repetitions",
    "1",
    "--keep-cache",
    "--out",
];

/// Where its result is.
pub(crate) fn dir() -> PathBuf {
    state_dir().with_file_name("report")
}

/// Runs both and returns what they found, in their own words.
pub(crate) fn run(step: &Step) -> anyhow::Result<String> {
    let (plan, out, pages) =
        (state_dir().with_file_name("study.toml"), dir(), state_dir().with_file_name("pages"));
    let varied =
        format!("functions = {FUNCTIONS:?}\nkinds = {KINDS:?}\nrepetitions = {REPETITIONS}\n");
    std::fs::write(&plan, format!("{PLAN}{varied}"))?;
    for old in [&out, &pages] {
        if old.exists() {
            std::fs::remove_dir_all(old)?;
        }
    }
    let (plan, to) = (plan.to_string_lossy(), out.to_string_lossy());
    let found = follow(&mut vhive(&["study", "cold-start", &plan, "--out", &to]), step)?;
    results::check_starts(&out, &FUNCTIONS, &KINDS, REPETITIONS)?;
    let to = pages.to_string_lossy();
    let counted = follow(&mut vhive(&[&PAGES[..], &[&to]].concat()), step)?;
    results::check_starts(&pages, &["hello"], &["lazy", "reap"], 1)?;
    results::check_pages(&pages, "hello")?;
    Ok(format!("{found}\n{counted}"))
}

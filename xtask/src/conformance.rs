//! `cargo xtask conformance`: runs the conformance suite and writes its table, `docs/conformance.md`.
//!
//! The plainest runtime comes first: what a plain container does not do is no promise, but a wrong
//! check, and then the others are not asked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::shell::{self, cargo};

/// The order of the columns.
const RUNTIMES: [&str; 8] =
    ["qemu", "firecracker", "runsc", "runsc-init", "runsc-ptrace", "runc", "crun", "sim"];

/// The runtime that the checks themselves are checked on.
const FIRST: &str = "runc";

pub(crate) fn run() -> anyhow::Result<()> {
    let results = shell::root().join("target/conformance.tsv");
    if results.exists() {
        fs::remove_file(&results)?;
    }
    let suite = ["test", "--quiet", "--package", "vhive-sandbox", "--test", "conformance", "--"];
    let list = shell::output(cargo(&suite).args(["--list"]))?;
    let pairs: Vec<(&str, &str)> = list.lines().filter_map(pair_of).collect();
    let suite = |words: &[&str]| {
        let mut suite = cargo(&suite);
        suite.arg("--test-threads=1").args(words).env("VHIVE_CONFORMANCE", &results);
        shell::run(&mut suite)
    };
    let told = || fs::read_to_string(&results).context("the suite told nothing");
    let column = format!("{FIRST}::");
    let first = suite(&[&column]);
    let wrong = wrong_checks(&pairs, &by_name(&told()?)).join(", ");
    ensure!(
        wrong.is_empty(),
        "wrong check: {FIRST} does not keep {wrong}; nothing else was asked, and the table is as it was"
    );
    first?;
    let passed = suite(&["--skip", &column]);
    let page = page(&pairs, &by_name(&told()?));
    fs::write(shell::root().join("docs/conformance.md"), page)?;
    println!("conformance: docs/conformance.md is written");
    passed
}

/// What became of each promise that was kept or skipped.
fn by_name(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('\t')).collect()
}

/// The promises that the first runtime was asked for and has not kept.
fn wrong_checks<'a>(pairs: &[(&str, &'a str)], told: &BTreeMap<&str, &str>) -> Vec<&'a str> {
    let asked = pairs.iter().filter(|(runtime, _)| *runtime == FIRST);
    asked
        .map(|(_, promise)| *promise)
        .filter(|promise| !told.contains_key(format!("{FIRST}::{promise}").as_str()))
        .collect()
}

/// A line of `--list`.
fn pair_of(line: &str) -> Option<(&str, &str)> {
    line.trim().strip_suffix(": test")?.split_once("::")
}

fn page(pairs: &[(&str, &str)], told: &BTreeMap<&str, &str>) -> String {
    let runtimes: Vec<&str> =
        RUNTIMES.into_iter().filter(|name| pairs.iter().any(|(of, _)| of == name)).collect();
    let mut promises: Vec<&str> = Vec::new();
    for (_, promise) in pairs {
        if !promises.contains(promise) {
            promises.push(promise);
        }
    }
    let mut notes: Vec<String> = Vec::new();
    let mut text = format!(
        "# What every sandbox promises\n\n\
         Written by `cargo xtask conformance` from the suite in `crates/vhive-sandbox/tests/conformance/`, where each \
         promise\nis one function that runs on every runtime. Host: Linux {}, {}.\n\n\
         | promise | {} |\n|---|{}\n",
        kernel(),
        if Path::new("/dev/kvm").exists() { "a `/dev/kvm`" } else { "no `/dev/kvm`" },
        runtimes.join(" | "),
        "---|".repeat(runtimes.len()),
    );
    for promise in promises {
        let _ = write!(text, "| {} |", promise.replace('_', " "));
        for runtime in &runtimes {
            let asked = pairs.contains(&(runtime, promise));
            let result = told.get(format!("{runtime}::{promise}").as_str()).copied();
            let cell = match result {
                _ if !asked => "".to_owned(),
                Some("kept") => "yes".to_owned(),
                Some(why) => note(&mut notes, why),
                None => "**no**".to_owned(),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text.push_str(
        "\nAn empty field: the promise is about something that the runtime has not, or the runtime is one of the\n\
         table in another form, of which enough is run to see that it works.\n",
    );
    for (at, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "\n{}. {note}", at + 1);
    }
    text
}

/// The number of a note; equal ones share it.
fn note(notes: &mut Vec<String>, why: &str) -> String {
    let at = notes.iter().position(|note| note == why).unwrap_or_else(|| {
        notes.push(why.to_owned());
        notes.len() - 1
    });
    format!("({})", at + 1)
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "sim::answers: test\nrunc::answers: test\nrunc::stops: test\n\
        runc::restores: test\nrunsc::stops: test\n\n5 tests, 0 benchmarks\n";

    #[test]
    fn what_runc_does_not_keep_is_a_wrong_check() {
        let pairs: Vec<_> = LIST.lines().filter_map(pair_of).collect();
        let told = "runc::answers\tkept\nrunc::restores\tskipped: no criu\nrunsc::stops\tkept\n";
        assert_eq!(wrong_checks(&pairs, &by_name(told)), ["stops"]);
        let all = format!("{told}runc::stops\tkept\n");
        assert!(wrong_checks(&pairs, &by_name(&all)).is_empty(), "the others are not its concern");
    }

    #[test]
    fn the_table_says_what_is_kept_skipped_broken_and_not_asked() {
        let pairs: Vec<_> = LIST.lines().filter_map(pair_of).collect();
        let told = "sim::answers\tkept\nrunc::answers\tkept\nrunc::restores\tskipped: no criu\n";
        let page = page(&pairs, &by_name(told));
        assert!(page.contains("| promise | runsc | runc | sim |\n"), "{page}");
        assert!(page.contains("| answers |  | yes | yes |\n"), "{page}");
        assert!(page.contains("| stops | **no** | **no** |  |\n"), "{page}");
        assert!(page.contains("| restores |  | (1) |  |\n"), "{page}");
        assert!(page.contains("\n1. skipped: no criu\n"), "{page}");
    }
}

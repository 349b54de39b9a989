//! `cargo xtask conformance`: runs the conformance suite and writes its table, `docs/conformance.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::shell::{self, cargo};

/// The order of the columns.
const RUNTIMES: [&str; 8] =
    ["qemu", "firecracker", "runsc", "runsc-init", "runsc-ptrace", "runc", "crun", "sim"];

pub(crate) fn run() -> anyhow::Result<()> {
    let results = shell::root().join("target/conformance.tsv");
    if results.exists() {
        fs::remove_file(&results)?;
    }
    let suite = ["test", "--quiet", "--package", "vhive-sandbox", "--test", "conformance", "--"];
    let list = shell::output(cargo(&suite).args(["--list"]))?;
    let pairs: Vec<(&str, &str)> = list.lines().filter_map(pair_of).collect();
    let passed =
        shell::run(cargo(&suite).arg("--test-threads=1").env("VHIVE_CONFORMANCE", &results));
    let text = fs::read_to_string(&results).context("the suite told nothing")?;
    let told: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('\t')).collect();
    let page = page(&pairs, &told);
    fs::write(shell::root().join("docs/conformance.md"), page)?;
    println!("conformance: docs/conformance.md is written");
    passed
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

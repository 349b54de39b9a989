//! `make test`: runs every test and counts what was skipped, with the reasons.
//!
//! A test that needs what this host lacks prints `SKIP <test>: <the missing thing>`; the lines are
//! collected from the run's log, so that a skip can never pass unseen.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::shell::{self, cargo};
use crate::{check_docs, check_shape, clients};

pub(crate) fn run() -> anyhow::Result<()> {
    let dir = shell::root().join("target/test");
    fs::create_dir_all(&dir)?;
    let log_path = dir.join("log.txt");
    let mut log = File::create(&log_path)?;

    check_docs::run()?;
    check_shape::run()?;
    clients::bring();
    println!("test: building the binary that end-to-end tests drive, and its example");
    shell::run(&mut cargo(&["build", "--package", "vhive", "--bins", "--examples"]))?;
    let have_nextest = cargo(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut good = true;
    if have_nextest {
        let args = ["nextest", "run", "--workspace", "--success-output", "immediate"];
        good &= logged(&mut cargo(&args), &mut log)?;
    } else {
        println!(
            "test: cargo-nextest is not installed; using `cargo test`, one crate after another"
        );
        let args = ["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
        good &= logged(cargo(&args).args(["--", "--show-output"]), &mut log)?;
    }
    good &= logged(&mut cargo(&["test", "--workspace", "--doc", "--quiet"]), &mut log)?;
    for nested in ["guest/vhive-init/Cargo.toml", "guest/nano/Cargo.toml", "functions/Cargo.toml"] {
        let manifest = shell::root().join(nested).to_string_lossy().into_owned();
        let args = ["test", "--quiet", "--manifest-path", &manifest];
        good &= logged(&mut cargo(&args), &mut log)?;
    }
    drop(log);

    let text = fs::read_to_string(&log_path)?;
    let skips: BTreeSet<&str> = text.lines().filter_map(skip_of).collect();
    println!("\nskipped here, because the host lacks something: {}", skips.len());
    for skip in &skips {
        println!("  {skip}");
    }
    let required = std::env::var("VHIVE_REQUIRE").unwrap_or_default();
    let missing = missing(&required, &skips);
    if !missing.is_empty() {
        let missing = missing.join(", ");
        bail!("VHIVE_REQUIRE={required}, and tests were skipped for want of {missing}");
    }
    if !good {
        bail!("tests failed; the whole log is in {}", log_path.display());
    }
    Ok(())
}

fn skip_of(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("SKIP ").filter(|rest| rest.contains(": "))
}

/// The runtimes, of those divided by commas, that a test was skipped for want of. Such a skip names
/// the runtime before the promise, or after the test: `runc::it_stops`, `e2e_start on runc`.
fn missing<'a>(required: &'a str, skips: &BTreeSet<&str>) -> Vec<&'a str> {
    let wants = |runtime: &str, skip: &str| {
        let test = skip.split(": ").next().unwrap_or_default();
        let (first, last) = (test.split("::").next(), test.rsplit(" on ").next());
        test != runtime && (first == Some(runtime) || last == Some(runtime))
    };
    let required = required.split(',').map(str::trim).filter(|name| !name.is_empty());
    required.filter(|runtime| skips.iter().any(|skip| wants(runtime, skip))).collect()
}

/// Runs a command, its output into the log; shows results and failures, not what passing tests say.
fn logged(command: &mut Command, log: &mut File) -> anyhow::Result<bool> {
    let shown = shell::shown(command);
    println!("test: {shown}");
    writeln!(log, "$ {shown}")?;
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).stdin(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    // The command holds the pipe's writing ends; without them the reader would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut failing = false;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        writeln!(log, "{line}")?;
        let word = line.split_whitespace().next().unwrap_or_default();
        failing = match word {
            "FAIL" | "TIMEOUT" | "SIGABRT" | "SIGSEGV" | "failures:" => true,
            "PASS" | "Summary" => false,
            // Of `cargo test`; nextest quotes such lines, indented, before what the test has said.
            "test" if line.starts_with("test ") => false,
            _ => failing,
        };
        let telling = ["PASS", "SLOW", "Summary", "error", "error:", "warning:", "SKIP"];
        if failing || telling.contains(&word) || line.starts_with("test result") {
            println!("{line}");
        }
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{missing, skip_of};

    #[test]
    fn what_is_required_is_not_skipped() {
        let skips = BTreeSet::from([
            "crun::boots_and_answers: crun starts no container here",
            "e2e_runtimes_give_the_same_replies on runsc: no runsc",
            "firecracker::limits_are_real: no firecracker, and runc is no help",
        ]);
        assert_eq!(missing("qemu, crun,runsc,runc", &skips), ["crun", "runsc"]);
        assert_eq!(missing("", &skips), [""; 0]);
        assert_eq!(missing("qemu", &BTreeSet::from(["qemu: is not a runtime's test"])), [""; 0]);
    }

    #[test]
    fn skips_are_told_from_prose() {
        assert_eq!(
            skip_of("    SKIP boots on kvm: no /dev/kvm"),
            Some("boots on kvm: no /dev/kvm")
        );
        assert_eq!(skip_of("we SKIP this: never"), None);
    }
}

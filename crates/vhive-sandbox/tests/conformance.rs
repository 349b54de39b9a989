//! What every runtime promises: one body per promise, run on every runtime that this host offers.
//!
//! A test is named `<runtime>::<promise>`; `runsc-init` is gVisor with an init of ours inside, which
//! it has where snapshots or commands are wanted. To add a runtime, add a row to `RUNTIMES`; to add a
//! promise, a row to `promises::ALL`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests fail by panicking, and tell why they skip"
)]

#[path = "conformance/afterlife.rs"]
mod afterlife;
#[path = "conformance/calls.rs"]
mod calls;
#[path = "conformance/full.rs"]
mod full;
#[path = "conformance/greedy.rs"]
mod greedy;
#[path = "conformance/inside.rs"]
mod inside;
#[path = "conformance/killed.rs"]
mod killed;
#[path = "network/lab.rs"]
#[expect(dead_code, reason = "what the network's own tests need besides")]
mod lab;
#[path = "conformance/limits.rs"]
mod limits;
#[path = "conformance/outward.rs"]
mod outward;
#[path = "conformance/processors.rs"]
mod processors;
#[path = "conformance/promises.rs"]
mod promises;
#[path = "conformance/restored.rs"]
mod restored;
#[path = "conformance/site.rs"]
mod site;
#[path = "conformance/traces.rs"]
mod traces;

use std::io::Write as _;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use promises::{ALL, Promise};
use site::{RUNTIMES, Site};

/// Another way to run a runtime of the table, of which this is enough to see that it works.
const PARTLY: &[(&str, &[&str])] =
    &[("runsc-ptrace", &["boots_and_answers", "a_clone_answers_as_the_original"])];

/// Promises that are known not to be kept, and why. The table says so.
const BROKEN: &[(&str, &str, &str)] = &[];

fn main() -> ExitCode {
    let pairs = RUNTIMES.iter().flat_map(|kind| ALL.iter().map(move |promise| (kind, promise)));
    let fits = pairs.filter(|(kind, promise)| {
        (kind.real || !promise.real)
            && promise.machine.is_none_or(|machine| machine == kind.machine)
            // Those say themselves what they ask for, so it would be the same sandbox again.
            && !(promise.restores && kind.uses.snapshots)
            && PARTLY.iter().all(|(name, kept)| *name != kind.name || kept.contains(&promise.name))
    });
    let trials = fits.map(|(kind, promise)| {
        let name = format!("{}::{}", kind.name, promise.name);
        let broken =
            BROKEN.iter().find(|(of, broken, _)| *of == kind.name && *broken == promise.name);
        Trial::test(name.clone(), move || {
            if let Some((_, _, why)) = broken {
                eprintln!("SKIP {} of {}: {why}", promise.name, kind.name);
                note(&name, &format!("not kept: {why}"));
                return Ok(());
            }
            let result = match Site::open(kind) {
                Ok(site) if promise.restores && site.runtime.restores().is_none() => {
                    match site.runtime.restores_nothing() {
                        Some(lacks) => {
                            eprintln!("SKIP {name}: {lacks}");
                            format!("skipped: {lacks}")
                        }
                        None => "it restores nothing".to_owned(),
                    }
                }
                Ok(_) if promise.lab && lab::lacks().is_some() => {
                    let lacks = lab::lacks().unwrap_or_default();
                    eprintln!("SKIP {name}: {lacks}");
                    format!("skipped: {lacks}")
                }
                Ok(site) => {
                    check(promise, &site);
                    "kept".to_owned()
                }
                Err(missing) => {
                    eprintln!("SKIP {name}: {missing}");
                    format!("skipped: {missing}")
                }
            };
            note(&name, &result);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Tells `cargo xtask conformance`, if that runs the suite, what became of a promise; of a broken one
/// it hears nothing.
fn note(name: &str, result: &str) {
    let Some(path) = std::env::var_os("VHIVE_CONFORMANCE") else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    let line = format!("{name}\t{}\n", result.replace(['\n', '\t'], " "));
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("written");
}

/// A promise holds, and nothing is left on the host afterwards.
fn check(promise: &Promise, site: &Site) {
    (promise.body)(site);
    site.expect_no_traces();
}

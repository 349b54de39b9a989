//! What every runtime promises: one body per promise, run on every runtime that this host offers.
//!
//! A test is named `<runtime>::<promise>`. To add a runtime, add a row to `RUNTIMES`; to add a
//! promise, a row to `promises::ALL`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]

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

fn main() -> ExitCode {
    let pairs = RUNTIMES.iter().flat_map(|kind| ALL.iter().map(move |promise| (kind, promise)));
    let fits = pairs.filter(|(kind, promise)| {
        (kind.real || !promise.real)
            && promise.machine.is_none_or(|machine| machine == kind.machine)
    });
    let trials = fits.map(|(kind, promise)| {
        let name = format!("{}::{}", kind.name, promise.name);
        Trial::test(name.clone(), move || {
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

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
            match Site::open(kind) {
                Ok(site) if promise.restores && site.runtime.restores().is_none() => {}
                Ok(site) => check(promise, &site),
                Err(missing) => eprintln!("SKIP {name}: {missing}"),
            }
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A promise holds, and nothing is left on the host afterwards.
fn check(promise: &Promise, site: &Site) {
    (promise.body)(site);
    site.expect_no_traces();
}

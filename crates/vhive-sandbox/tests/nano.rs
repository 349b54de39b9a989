//! The bare-metal guest on every runtime that boots bare guests. A test is named
//! `<runtime>::<promise>`.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]
#![expect(dead_code, reason = "the conformance suite uses the rest")]

#[path = "nano/hostile.rs"]
mod hostile;
#[path = "nano/pattern.rs"]
mod pattern;
#[path = "nano/promises.rs"]
mod promises;
#[path = "conformance/site.rs"]
mod site;
#[path = "conformance/traces.rs"]
mod traces;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use vhive_sandbox::Runtime;
use vhive_sandbox::firecracker::Firecracker;

use site::{Kind, NOTHING, Site, firecracker_config, qemu};

/// The runtimes that boot guests without an operating system.
const BARE: &[Kind] = &[
    Kind { name: "qemu", real: true, machine: true, uses: NOTHING, make: qemu },
    Kind { name: "firecracker", real: true, machine: true, uses: NOTHING, make: firecracker },
];

/// It is not asked for more than such guests need.
fn firecracker() -> Result<Arc<dyn Runtime>, String> {
    let firecracker = Firecracker::new(firecracker_config());
    firecracker.check_bare().map_err(|lacks| lacks.to_string())?;
    Ok(Arc::new(firecracker))
}

type Promise = (&'static str, fn(&Site));

const PROMISES: &[Promise] = &[
    (
        "it_answers_with_the_checksum_of_its_pattern",
        promises::it_answers_with_the_checksum_of_its_pattern,
    ),
    (
        "a_clone_touches_what_the_original_filled",
        promises::a_clone_touches_what_the_original_filled,
    ),
    ("a_waiting_vmm_goes_on", promises::a_waiting_vmm_goes_on),
    ("another_program_is_refused", promises::another_program_is_refused),
    ("it_stops", promises::it_stops),
    ("connections_are_kept_and_closed", hostile::connections_are_kept_and_closed),
    ("several_are_served_at_a_time", hostile::several_are_served_at_a_time),
    ("nonsense_is_survived", hostile::nonsense_is_survived),
];

fn main() -> ExitCode {
    let pairs = BARE.iter().flat_map(|kind| PROMISES.iter().map(move |promise| (kind, promise)));
    let trials = pairs.map(|(kind, (promise, body))| {
        let name = format!("{}::{promise}", kind.name);
        Trial::test(name.clone(), move || {
            match Site::open(kind) {
                Ok(site) => {
                    body(&site);
                    site.expect_no_traces();
                }
                Err(missing) => eprintln!("SKIP {name}: {missing}"),
            }
            Ok(())
        })
    });
    // What one leaves on the host must not be taken for another's.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

//! What only the runtime `qemu` can get wrong.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]
#![expect(dead_code, reason = "the conformance suite uses the rest")]

#[path = "conformance/site.rs"]
mod site;
#[path = "conformance/traces.rs"]
mod traces;

use std::time::Duration;

use vhive_api::{Bytes, Span};
use vhive_sandbox::qemu::{LEAST_MEMORY, QemuConfig};
use vhive_sandbox::{BootError, Milestone};

use site::{Site, qemu_with, soon};

/// A site, or none where the host lacks something.
fn site(test: &str, config: QemuConfig) -> Option<Site> {
    match qemu_with(config).and_then(|qemu| Site::of(qemu, true)) {
        Ok(site) => Some(site),
        Err(missing) => {
            eprintln!("SKIP {test}: {missing}");
            None
        }
    }
}

#[test]
fn qemu_boots_a_hanging_kernel_twice_and_says_so() {
    // No kernel is as fast as that, so every one hangs.
    let hello_deadline = Span(Duration::from_millis(30));
    let config = QemuConfig { hello_deadline, ..QemuConfig::default() };
    let Some(site) = site("qemu_boots_a_hanging_kernel_twice_and_says_so", config) else { return };
    let spec = site.spec("true");
    let error = site.runtime.boot(&spec, soon()).expect_err("it hangs");
    let BootError::Guest { wanted: Milestone::KernelUp, attempts: 2, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(spec.journal.attempts(), 2);
    assert!(spec.journal.tail(50).iter().any(|line| line.contains("booting once more")));
    drop(spec);
    site.expect_no_traces();
}

#[test]
fn qemu_says_why_it_does_not_start() {
    let name = "qemu_says_why_it_does_not_start";
    let Some(site) = site(name, QemuConfig::default()) else { return };
    let mut spec = site.spec("true");
    spec.rootfs = "/no/such/image.erofs".into();
    let error = site.runtime.boot(&spec, soon()).expect_err("no root");
    assert_eq!(error.to_string(), "cannot open /no/such/image.erofs");
    let mut spec = site.spec("true");
    spec.memory = Bytes::mib(64);
    let error = site.runtime.boot(&spec, soon()).expect_err("too small");
    assert_eq!(error.to_string(), "cannot boot a guest with 64MiB of memory");
    drop(spec);
    site.expect_no_traces();
}

#[test]
fn qemu_that_exceeds_its_limits_is_ended_alone() {
    // Less than QEMU needs for itself.
    let config = QemuConfig { overhead: Bytes(0), ..QemuConfig::default() };
    let Some(site) = site("qemu_that_exceeds_its_limits_is_ended_alone", config) else { return };
    if !vhive_sandbox::cgroup::controllers()
        .is_ok_and(|all| all.contains(&vhive_sandbox::cgroup::Controller::Memory))
    {
        eprintln!("SKIP qemu_that_exceeds_its_limits_is_ended_alone: the memory controller");
        return;
    }
    let mut spec = site.spec("true");
    spec.memory = LEAST_MEMORY;
    let error = site.runtime.boot(&spec, soon()).expect_err("killed");
    let end = spec.journal.ended().expect("it has ended").to_string();
    assert!(end.contains("memory limit"), "{error}: {end}");
    drop(spec);
    site.expect_no_traces();
}

//! Whether runc's containers can be snapshotted is found out by doing it, and costs nothing else.
//! What a snapshot then promises is in the conformance suite.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use vhive_sandbox::Runtime as _;
use vhive_sandbox::oci::{ContainerConfig, Oci};

fn runc(criu: Option<&Path>, cache: &Path) -> Oci {
    let criu = criu.map(Path::to_owned);
    Oci::runc(ContainerConfig { criu, ..ContainerConfig::default() }, cache)
}

/// Trials that have not been cleared away.
fn probes(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).expect("readable").filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("probe-")).collect()
}

#[test]
fn a_criu_that_does_not_work_costs_the_snapshots_only() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let cache = state.path().join("host");
    if let Err(lacks) = runc(Some(Path::new("/no/such/criu")), &cache).check_host() {
        eprintln!("SKIP a_criu_that_does_not_work_costs_the_snapshots_only: {lacks}");
        return;
    }
    let missing = runc(Some(Path::new("/no/such/criu")), &cache);
    assert!(missing.restores().is_none());
    let lacks = missing.restores_nothing().expect("it is the host's doing");
    assert!(lacks.what.starts_with("no /no/such/criu"), "{lacks}");
    // It says that it is one, and fails like one that does not know the kernel.
    let program = state.path().join("criu");
    let script = "#!/bin/sh\ncase $1 in --version) echo Version: 3.17;; *) exit 1;; esac\n";
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    for _ in 0..2 {
        let fails = runc(Some(&program), &cache);
        fails.check_host().expect("containers are run all the same");
        assert!(fails.restores().is_none());
        let lacks = fails.restores_nothing().expect("it is the host's doing");
        assert!(lacks.what.starts_with("CRIU 3.17 restores no container here: "), "{lacks}");
        assert!(!cache.join("criu.json").exists(), "only what works is remembered");
    }
    assert_eq!(probes(&cache), Vec::<String>::new());
}

#[test]
fn a_criu_that_works_is_remembered_until_it_is_another() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let cache = state.path().join("host");
    let first = runc(None, &cache);
    let lacks = first.check_host().err().or_else(|| first.restores_nothing());
    if let Some(lacks) = lacks {
        eprintln!("SKIP a_criu_that_works_is_remembered_until_it_is_another: {lacks}");
        return;
    }
    assert!(first.restores().is_some());
    assert_eq!(probes(&cache), Vec::<String>::new());
    let known = fs::read_to_string(cache.join("criu.json")).expect("kept");
    let other = known.replace(r#""criu": ""#, r#""criu": "another, not "#);
    assert_ne!(known, other);
    fs::write(cache.join("criu.json"), other).expect("written");
    assert!(runc(None, &cache).restores().is_some());
    let again = fs::read_to_string(cache.join("criu.json")).expect("kept");
    assert_eq!(again, known, "it was tried again");
}

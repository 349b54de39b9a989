//! A node that is killed leaves devices; a sweep finds all of them and nothing else.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use vhive_sandbox::RunRoot;
use vhive_sandbox::network::{NetworkConfig, NetworkPool, sweep};

use super::lab::{Lab, ask, connect, soon};
use super::{forwarding, pool, server, start, traces};

const TEST: &str = "killed::a_killed_node_is_swept_and_its_neighbour_is_not";
/// Set for the process that is to be killed: base and state directory of its node.
const BASE: &str = "VHIVE_TEST_BASE";
const STATE: &str = "VHIVE_TEST_STATE";

#[test]
fn a_killed_node_is_swept_and_its_neighbour_is_not() {
    if let (Some(base), Some(state)) = (std::env::var_os(BASE), std::env::var_os(STATE)) {
        return be_killed(&RunRoot::below(base.as_ref(), state.as_ref()));
    }
    let Some(lab) = Lab::new("a_killed_node_is_swept_and_its_neighbour_is_not") else { return };
    let root = lab.root("victim");
    let untouched = traces();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(BASE, root.dir().parent().unwrap())
        .env(STATE, lab.state("victim"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("slots are up")), "the node came up");
    let neighbour = pool(&lab, "neighbour", NetworkConfig::default());
    let slot = neighbour.take(soon()).unwrap();
    let _guest = start("neighbour", &slot);
    neighbour.warm(soon()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    let prefix = format!("vh{}-", root.tag());
    let table = format!("vhive_{}", root.tag());
    let left = traces();
    assert!(left.iter().filter(|trace| trace.contains(&prefix)).count() > 3, "{left:?}");
    assert!(root.dir().join("netns").exists());
    sweep(&root).unwrap();
    let left = traces();
    for name in [&prefix, &table] {
        assert!(!left.iter().any(|trace| trace.contains(name)), "{name} in {left:?}");
    }
    assert!(!root.dir().join("netns").exists());
    sweep(&root).unwrap();

    // The neighbour has lost nothing, not even the forwarding that the victim had turned on.
    assert_eq!(ask(&mut connect(server(&slot)).unwrap(), "x").unwrap(), "neighbour heard x");
    assert_eq!(forwarding("wan0"), "1");
    drop((slot, neighbour));
    assert_eq!(traces(), untouched);
}

#[test]
fn a_node_that_starts_again_sweeps_for_itself() {
    let Some(lab) = Lab::new("a_node_that_starts_again_sweeps_for_itself") else { return };
    // Killed before its first slot was complete: some of the devices, no claim.
    let root = lab.root("node");
    std::fs::create_dir_all(root.dir().join("netns")).unwrap();
    std::fs::write(root.dir().join("netns").join("0"), "").unwrap();
    let untouched = traces();
    super::lab::ip(&format!("link add vh{}-0 type veth peer name leftover", root.tag()));
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let _guest = start("guest", &slot);
    assert_eq!(ask(&mut connect(server(&slot)).unwrap(), "x").unwrap(), "guest heard x");
    drop((slot, pool));
    assert_eq!(traces(), untouched);
}

/// Holds slots until killed.
#[expect(clippy::print_stdout, reason = "how its parent learns that it is ready")]
fn be_killed(root: &RunRoot) {
    let config = NetworkConfig { ready: 3, ..NetworkConfig::default() };
    let pool = NetworkPool::open(&config, root).unwrap();
    let slots = [pool.take(soon()).unwrap(), pool.take(soon()).unwrap()];
    let tap = slots[0].open_tap().unwrap();
    pool.warm(soon()).unwrap();
    eprintln!("{tap:?}");
    println!("slots are up");
    // Ends with the test's process, whatever happens to it.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

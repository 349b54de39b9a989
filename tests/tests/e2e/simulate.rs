//! `vhive study simulate` and `compare`: a recorded run in virtual time, a result against another.

use std::fs;

use serde_json::Value;
use vhive_tests::live;
use vhive_tests::node::vhive;

use crate::scene::{Dir, code, node, said, skip};

/// How far a simulation may be from the run that it replays, in per cent. What the machine does
/// besides moves single starts; the usual difference is the benchmark `sim-vs-live`.
const TOLERANCE: f64 = 15.0;
/// A run that the machine disturbs is made again, so often at most.
const ATTEMPTS: u32 = 4;
/// What has fewer cold starts, in per cent of all, may be in one of the two and not in the other.
const RARE: f64 = 5.0;

/// Kinds of starts of one figure that the other has none of.
fn missing(of: &live::Figures, other: &live::Figures) -> Vec<String> {
    let often = |count: u64| 100.0 * count as f64 >= RARE * of.cold as f64;
    let all = of.by_start.iter().filter(|(kind, count)| {
        often(**count) && other.by_start.get(*kind).is_none_or(|count| *count == 0)
    });
    all.map(|(kind, _)| kind.clone()).collect()
}

/// Why a simulation is not its run's.
fn differs(replayed: &live::Replayed) -> Option<String> {
    let (live, simulated) = (&replayed.live, &replayed.simulated);
    let (sums, over_time) = (replayed.worse(), replayed.off_over_time());
    let waited = (live.turn_wait_s, simulated.turn_wait_s);
    eprintln!("{sums:.1} % off, {over_time:.1} % in a second, waited for turns {waited:.1?} s");
    let missing = [missing(live, simulated), missing(simulated, live)].concat();
    match () {
        () if sums > TOLERANCE => Some(format!("{sums:.1} % off")),
        () if over_time > TOLERANCE => Some(format!("{over_time:.1} % off in a second")),
        () if !missing.is_empty() => Some(format!("only one has starts of {missing:?}")),
        () => None,
    }
}

#[test]
fn e2e_a_simulation_replays_a_recorded_run() {
    if skip("e2e_a_simulation_replays_a_recorded_run") {
        return;
    }
    let policies = [("fixed", "1s", "off"), ("kpa", "6s", "off"), ("fixed", "1s", "reap")];
    replays("simulate", live::Turns::Plenty, &policies);
}

#[test]
fn e2e_a_simulation_replays_a_run_whose_starts_wait_for_their_turns() {
    if skip("e2e_a_simulation_replays_a_run_whose_starts_wait_for_their_turns") {
        return;
    }
    let policies = [("fixed", "1s", "off"), ("fixed", "1s", "reap")];
    replays("simulate-turns", live::Turns::Default, &policies);
}

/// Serves a load under each policy on a node of its own, and simulates it.
fn replays(
    name: &str,
    turns: live::Turns,
    policies: &[(&'static str, &'static str, &'static str)],
) {
    let dir = Dir::new(name);
    let node = node(&dir, &live::config(dir.path(), turns));
    for (kind, keep, snapshot) in policies.iter().copied() {
        let policy = live::Policy { kind, keep, snapshot };
        for attempt in 1..=ATTEMPTS {
            let replayed = live::replay(&node, dir.path(), policy).expect("replayed");
            let (live, simulated) = (&replayed.live, &replayed.simulated);
            assert_eq!(live.invocations, simulated.invocations, "each request is simulated once");
            assert!(live.cold > 10, "{policy:?}: {replayed:?}");
            eprintln!("{policy:?}, {turns:?} turns, attempt {attempt}:");
            let Some(why) = differs(&replayed) else { break };
            assert!(attempt < ATTEMPTS, "{why} each time: {policy:?}: {replayed:?}");
        }
    }
}

#[test]
fn e2e_a_simulation_is_reported_and_compared() {
    let dir = Dir::new("simulate-report");
    let starts = concat!(env!("CARGO_MANIFEST_DIR"), "/../studies/simulate-starts.jsonl");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let simulate = |out: &str, more: &[&str]| {
        let args = ["study", "simulate", "--starts", starts, "--out", out];
        let trace = ["--functions", "80", "--minutes", "60"];
        vhive(dir.path(), &[&args[..], &trace, more].concat()).expect("runs")
    };
    let (a, b, again) = (path("a"), path("b"), path("again"));
    let policies = ["--policies", "kpa:60s,fixed:10m,histogram:10m"];
    let done = simulate(&a, &policies);
    assert_eq!(code(&done), 0, "{}", said(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("histogram 10m"));
    assert!(dir.path().join("a/report.html").exists() && dir.path().join("a/pareto.svg").exists());
    simulate(&again, &[&policies[..], &["--threads", "1"]].concat());
    let rows = |of: &str| fs::read_to_string(dir.path().join(of).join("rows.jsonl")).expect("rows");
    assert_eq!(rows("a"), rows("again"), "a seed reproduces, with any number of threads");
    let nodes = ["--nodes", "4", "--node-memory", "2GiB", "--placements", "least-loaded"];
    let done = simulate(&b, &[&policies[..], &nodes].concat());
    assert_eq!(code(&done), 0, "{}", said(&done));
    let taken = simulate(&a, &policies);
    assert!(code(&taken) == 1 && said(&taken).contains("already holds"), "{}", said(&taken));

    let done = vhive(dir.path(), &["report", &a]).expect("runs");
    assert_eq!(code(&done), 0, "{}", said(&done));
    let out = path("compared");
    let done = vhive(dir.path(), &["-o", "json", "study", "compare", &a, &again, "--out", &out])
        .expect("runs");
    let compared: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(compared["facts"][0]["name"], "plan.threads", "{compared}");
    assert_eq!(compared["lines"][0]["median"]["by"], 0.0);
    assert!(dir.path().join("compared/compare.html").exists());
    let none = vhive(dir.path(), &["study", "compare", &a, &path("nothing")]).expect("runs");
    assert!(code(&none) == 1 && said(&none).contains("no result"), "{}", said(&none));
}

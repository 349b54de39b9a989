//! Results of what was killed: a simulation, a run of `vhive load`, a sweep. Each is reported and
//! compared by the rows that it has left.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vhive_tests::node::{command, vhive};

use crate::load::{at, text};
use crate::load_peers::server;
use crate::scene::{Dir, code, said};

/// Runs a command to its end, which must be a good one.
fn run(dir: &Dir, args: &[&str]) -> String {
    let done = vhive(dir.path(), args).expect("runs");
    assert_eq!(code(&done), 0, "{}", said(&done));
    said(&done)
}

/// Starts a command whose standard error is read.
fn start(dir: &Dir, args: &[&str]) -> Child {
    let mut command = command(dir.path()).expect("a command");
    command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("runs")
}

/// Kills it with what nobody can hear.
fn kill(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::KILL).expect("killed");
    child.wait().expect("ended");
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} never came");
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Makes a report; it must say that the result is cut short.
fn report(dir: &Dir, out: &str) -> Value {
    let done = vhive(dir.path(), &["-o", "json", "report", out]).expect("runs");
    assert_eq!(code(&done), 0, "{}", said(&done));
    let built: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let told = built["warnings"].to_string();
    assert!(told.contains("cut short"), "{built}");
    assert!(text(&Path::new(out).join("report.html")).contains("cut short"));
    built
}

#[test]
fn e2e_a_simulation_that_was_killed_is_reported_and_goes_on() {
    let dir = Dir::new("simulate-killed");
    let starts = concat!(env!("CARGO_MANIFEST_DIR"), "/../studies/simulate-starts.jsonl");
    let (out, whole) = (at(&dir, "out"), at(&dir, "whole"));
    let args = ["study", "simulate", "--starts", starts, "--functions", "100", "--minutes", "120"];
    let policies = ["--policies", "kpa:60s,fixed:1m,fixed:10m,histogram:10m,fixed:1h"];
    let args = [&args[..], &policies].concat();
    let into_out = [&args[..], &["--out", &out]].concat();
    let mut child = start(&dir, &into_out);
    // What is told has been written.
    let told = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let first = told.map_while(Result::ok).find(|line| line.contains("million a second"));
    assert!(first.is_some_and(|line| line.contains("kpa 1m")), "the plan's first");
    kill(child);
    let path = Path::new(&out).join("rows.jsonl");
    let rows = text(&path);
    let first = rows.find('\n').expect("a whole row") + 1;
    // However far it was: it might have been killed within its second row.
    fs::write(&path, format!("{}{{\"policy\":\"cut", &rows[..first])).expect("written");
    let _ = fs::remove_file(Path::new(&out).join("report.html"));
    report(&dir, &out);

    let refused = vhive(dir.path(), &[&into_out[..], &["--seed", "9"]].concat()).expect("runs");
    assert!(code(&refused) == 1 && said(&refused).contains("other plan"), "{}", said(&refused));
    let told = run(&dir, &into_out);
    assert!(told.contains("1 policies were done before"), "{told}");
    run(&dir, &[&args[..], &["--out", &whole]].concat());
    assert_eq!(text(&path), text(&Path::new(&whole).join("rows.jsonl")), "as in one go");
    assert!(!text(&Path::new(&out).join("report.html")).contains("cut short"));
}

#[test]
fn e2e_load_that_was_killed_is_reported_and_compared() {
    let dir = Dir::new("load-killed");
    let (address, _) = server();
    let list = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    let (endpoints, out) = (at(&dir, "endpoints.json"), at(&dir, "out"));
    fs::write(&endpoints, list).expect("written");
    let args = ["load", "rps", "--endpoints", &endpoints, "--rps", "50"];
    let child = start(&dir, &[&args[..], &["--time", "60", "--out", &out]].concat());
    until("a row", || lines(&Path::new(&out).join("rows.jsonl")) > 20);
    kill(child);
    let summary: Value =
        serde_json::from_str(&text(&Path::new(&out).join("summary.json"))).expect("JSON");
    assert!(summary["began"].is_string() && summary["ended"].is_null(), "{summary}");
    report(&dir, &out);

    let other = at(&dir, "whole");
    run(&dir, &[&args[..], &["--time", "1", "--out", &other]].concat());
    let compared = vhive(dir.path(), &["-o", "json", "study", "compare", &out, &other]);
    let compared = compared.expect("runs");
    assert_eq!(code(&compared), 0, "{}", said(&compared));
    let compared: Value = serde_json::from_slice(&compared.stdout).expect("JSON");
    let cut = &compared["cut_short"];
    assert!(cut[0].as_str().is_some_and(|cut| cut.ends_with(" rows")) && cut[1].is_null(), "{cut}");
    assert_eq!(compared["lines"][0]["group"], "f", "{compared}");
}

/// The shell of a script has what it starts with `&` ignore Ctrl-C.
#[test]
fn e2e_load_that_a_script_starts_in_the_background_ends_in_order() {
    let dir = Dir::new("load-background");
    let (address, _) = server();
    let list = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    let (endpoints, out) = (at(&dir, "endpoints.json"), at(&dir, "out"));
    fs::write(&endpoints, list).expect("written");
    let load = command(dir.path()).expect("a command");
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$@\" & echo $!; wait $!", "sh"]).arg(load.get_program());
    shell.args(load.get_args()).args(["load", "rps", "--endpoints", &endpoints, "--rps", "50"]);
    shell.args(["--time", "60", "--out", &out]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut shell = shell.spawn().expect("runs");
    let mut told = BufReader::new(shell.stdout.take().expect("a pipe")).lines();
    let pid = told.next().expect("a line").expect("read").parse().expect("a number");
    until("a row", || lines(&Path::new(&out).join("rows.jsonl")) > 20);
    kill_process(Pid::from_raw(pid).expect("one"), Signal::INT).expect("told");
    let begun = Instant::now();
    shell.wait().expect("ended");
    assert!(begun.elapsed() < Duration::from_secs(40), "it was not heard");
    let summary = text(&Path::new(&out).join("summary.json"));
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert!(summary["ended"].is_string(), "{summary}");
}

#[test]
fn e2e_a_sweep_that_was_killed_is_reported_by_the_rates_that_it_has_tried() {
    let dir = Dir::new("sweep-killed");
    let (address, _) = server();
    let list = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    let (endpoints, out) = (at(&dir, "endpoints.json"), at(&dir, "out"));
    fs::write(&endpoints, list).expect("written");
    let args = ["load", "sweep", "--endpoints", &endpoints, "--from", "20", "--most", "2000"];
    let more = ["--time", "1", "--within", "1000", "--out", &out];
    let child = start(&dir, &[&args[..], &more].concat());
    let file = Path::new(&out).join("sweep.json");
    let found = || -> Option<Value> { serde_json::from_slice(&fs::read(&file).ok()?).ok() };
    let tried = || found().and_then(|found| Some(found["steps"].as_array()?.len())).unwrap_or(0);
    until("a rate", || tried() > 0);
    kill(child);
    let (found, steps) = (found().expect("whole at any time"), tried());
    assert!(found["ended"].is_null() && found["unloaded_p99_us"].is_null(), "{found}");
    let built = report(&dir, &out);
    let csv = text(&Path::new(&out).join("sweep.csv"));
    assert_eq!(csv.lines().count(), 1 + steps, "{built}");
    // A busy host may send too late for any rate to hold.
    let held =
        if found["knee"].is_null() { "No rate that was tried held" } else { "seen to hold is" };
    assert!(text(&Path::new(&out).join("report.html")).contains(held));
    let told = run(&dir, &["study", "compare", &out, &out]);
    assert!(told.contains("A was cut short") && told.contains("B was cut short"), "{told}");
}

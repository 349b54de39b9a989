//! `vhive load` against a node with the runtime `sim`: deploy, send, replay a trace, delete.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vhive_tests::node::{TestNode, binary, vhive};

use crate::scene::{Dir, apply, code, node, said, service, skip};

/// A list of two functions, one of them twice, and their manifests.
pub(crate) fn functions(dir: &Path) {
    let yaml = service("x", &["VHIVE_SIM_BOOT_MS=30", "VHIVE_SIM_REPLY_MS=1"], "");
    fs::write(dir.join("one.yaml"), yaml).expect("written");
    let list = r#"{"functions":[{"name":"one","file":"one.yaml","count":2,"eventing":false,
        "applyScript":""},{"name":"gone","file":"absent.yaml","count":1}]}"#;
    fs::write(dir.join("functions.json"), list).expect("written");
}

pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a file")
}

/// Where in `dir`, for command lines.
pub(crate) fn at(dir: &Dir, name: &str) -> String {
    dir.path().join(name).to_string_lossy().into_owned()
}

/// Deploys with the original's flags and gives the list of endpoints.
pub(crate) fn deploy(node: &TestNode, dir: &Dir) -> String {
    functions(dir.path());
    let (json, endpoints) = (at(dir, "functions.json"), at(dir, "endpoints.json"));
    let path = dir.path().to_string_lossy().into_owned();
    let args = ["load", "deploy", "-jsonFile", &json, "-funcPath", &path, "-conc", "2"];
    let args = [&args[..], &["-endpointsFile", &endpoints]].concat();
    let done = node.vhive(&args).expect("runs");
    assert_eq!(code(&done), 1, "one of three has no manifest: {}", said(&done));
    assert!(said(&done).contains("service/gone-0 failed") && said(&done).contains("absent.yaml"));
    endpoints
}

/// Writes a trace of two functions and three columns.
pub(crate) fn trace(dir: &Path, first: &str, second: &str) {
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("written");
    write(
        "invocations.csv",
        &format!(
            "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f0,http,{first}\no,a,f1,http,{second}\n"
        ),
    );
    let headings = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,\
        percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,\
        percentile_Average_75,percentile_Average_99,percentile_Average_100";
    let row = |name: &str| format!("o,a,{name},2,9,1,3,1,1,1,2,2,3,3\n");
    write("durations.csv", &format!("{headings}\n{}{}", row("f0"), row("f1")));
    let headings = "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb,\
        AverageAllocatedMb_pct1,AverageAllocatedMb_pct5,AverageAllocatedMb_pct25,\
        AverageAllocatedMb_pct50,AverageAllocatedMb_pct75,AverageAllocatedMb_pct95,\
        AverageAllocatedMb_pct99,AverageAllocatedMb_pct100";
    let row = |name: &str| format!("o,a,{name},9,9,1,2,3,4,5,6,7,8\n");
    write("memory.csv", &format!("{headings}\n{}{}", row("f0"), row("f1")));
}

#[test]
fn e2e_load_is_deployed_sent_at_its_rate_and_deleted() {
    if skip("e2e_load_is_deployed_sent_at_its_rate_and_deleted") {
        return;
    }
    let dir = Dir::new("load");
    let node = node(&dir, "");
    apply(&node, &dir, &service("mine", &[], ""));
    let endpoints = deploy(&node, &dir);
    let listed: Value = serde_json::from_str(&text(Path::new(&endpoints))).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "only what is ready: {listed}");
    assert_eq!(listed[0]["hostname"], "one-0.default.example.com");
    assert_eq!(listed[0]["address"], node.gateway.as_str());

    let out = at(&dir, "out");
    let args = ["load", "rps", "-endpointsFile", &endpoints, "-rps", "40", "-time", "2"];
    let run = [&args[..], &["--records", "--out", &out]].concat();
    let summary = node.json(&run).expect("sent");
    assert_eq!((&summary["planned"], &summary["outcomes"]["ok"]), (&80.into(), &80.into()));
    let rows: Vec<Value> = text(&dir.path().join("out/rows.jsonl"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    assert_eq!(rows.len(), 80);
    let of = |start: &str| rows.iter().filter(|row| row["start"] == start).count();
    assert!(of("boot") >= 2 && of("warm") >= 40, "{} boots, {} warm", of("boot"), of("warm"));
    assert_eq!(of("boot") + of("warm"), 80, "the node told of each");
    let cold = rows.iter().filter(|row| row["start"] == "boot");
    assert!(cold.clone().all(|row| row["latency_us"].as_f64() > Some(1e3)));
    let latencies: Vec<_> = fs::read_dir(dir.path().join("out"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("rps") && name.ends_with("_lat.csv"))
        .collect();
    assert_eq!(latencies.len(), 1, "{latencies:?}");
    assert_eq!(text(&dir.path().join("out").join(&latencies[0])).lines().count(), 80);

    let json = at(&dir, "functions.json");
    // Its list is broken meanwhile: what was deployed is found all the same.
    fs::write(&json, "{").expect("written");
    let args = ["load", "deploy", "--json", &json, "--endpoints", &endpoints, "--delete"];
    let deleted = node.vhive(&args).expect("runs");
    assert_eq!(code(&deleted), 0, "{}", said(&deleted));
    let listed: Value = serde_json::from_str(&text(Path::new(&endpoints))).expect("JSON");
    assert_eq!(listed, serde_json::json!([]), "what is gone has no line");
    let left = node.json(&["get", "services"]).expect("listed");
    let names: Vec<&Value> = left["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["metadata"]["name"])
        .collect();
    assert_eq!(names, ["mine"], "exactly what was deployed is gone");
}

#[test]
fn e2e_load_replays_a_trace_minute_by_minute() {
    if skip("e2e_load_replays_a_trace_minute_by_minute") {
        return;
    }
    let dir = Dir::new("load-trace");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    trace(dir.path(), "0,5,3", "1,0,4");
    let here = dir.path().to_string_lossy().into_owned();
    let config = format!(
        "{{\"TracePath\":{here:?},\"Granularity\":\"second\",\"ExperimentDuration\":3,\
         \"IATDistribution\":\"exponential_shift\",\"OutputPathPrefix\":{:?}}}",
        at(&dir, "data/run")
    );
    write("config.json", &config);
    let config = at(&dir, "config.json");
    let dry = node.json(&["load", "trace", "-config", &config, "-dryRun"]).expect("planned");
    assert_eq!((&dry["invocations"], &dry["functions"][0]["counts"][1]), (&13.into(), &5.into()));

    node.ok(&["load", "trace", "-config", &config, "--endpoints", &endpoints]).expect("sent");
    let csv = text(&dir.path().join("data/run_duration_3.csv"));
    let mut ids: Vec<String> = csv
        .lines()
        .skip(1)
        .map(|line| line.split(',').skip(1).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    ids.sort();
    let count = |minute: &str, function: &str| {
        ids.iter().filter(|id| id.contains(minute) && id.starts_with(function)).count()
    };
    let per_minute = ["min0.", "min1.", "min2."]
        .map(|minute| (count(minute, "trace-func-0"), count(minute, "trace-func-1")));
    assert_eq!(per_minute, [(0, 1), (5, 0), (3, 4)], "{csv}");
    assert!(csv.starts_with("phase,instance,invocationID,startTime,requestedDuration,"));

    write("bad.json", "{\"Sede\": 1}");
    let bad = node.vhive(&["load", "trace", "--config", &at(&dir, "bad.json")]).expect("runs");
    assert!(code(&bad) == 1 && said(&bad).contains("Sede"), "{}", said(&bad));
    write("invocations.csv", "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,a,f0,http,0,x,3\n");
    let bad = node.vhive(&["load", "trace", "--config", &config]).expect("runs");
    assert!(said(&bad).contains("invocations.csv:2: column 6"), "{}", said(&bad));
}

#[test]
fn e2e_load_that_is_interrupted_leaves_whole_files() {
    if skip("e2e_load_that_is_interrupted_leaves_whole_files") {
        return;
    }
    let dir = Dir::new("load-stop");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    let out = dir.path().join("out");
    let mut command = Command::new(binary().expect("a binary"));
    command.args(["-o", "json", "load", "rps", "--endpoints", &endpoints, "--rps", "50"]);
    command.args(["--time", "600", "--out"]).arg(&out);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let begun = std::time::Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    let grown = || fs::metadata(out.join("rows.jsonl")).is_ok_and(|file| file.len() > 1000);
    while !grown() && begun.elapsed() < Duration::from_secs(30) {
        let _ = ticks.recv_timeout(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    let done = child.wait_with_output().expect("ended");
    assert!(done.status.success(), "{}", said(&done));
    let summary: Value = serde_json::from_slice(&done.stdout).expect("a summary");
    assert!(summary["unsent"].as_u64() > Some(0), "{summary}");
    let sent = summary["sent"].as_u64().expect("a number");
    let rows = text(&out.join("rows.jsonl"));
    assert_eq!(rows.lines().count() as u64, sent);
    assert!(rows.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert_eq!(text(&out.join("rows.csv")).lines().count() as u64, 1 + sent);
}

#[test]
fn e2e_load_says_what_it_cannot_use() {
    let dir = Dir::new("load-bad");
    let run = |args: &[&str]| vhive(dir.path(), &[&["load"], args].concat()).expect("runs");
    let unknown = run(&["rps", "-nonsense", "3"]);
    assert!(code(&unknown) == 2 && said(&unknown).contains("--nonsense"), "{}", said(&unknown));
    let absent = at(&dir, "absent.json");
    let missing = run(&["rps", "--endpoints", &absent]);
    assert!(code(&missing) == 1 && said(&missing).contains("absent.json"), "{}", said(&missing));
    let endpoints = at(&dir, "endpoints.json");
    fs::write(&endpoints, r#"[{"hostname":"no-such-host.invalid"}]"#).expect("written");
    let nowhere = run(&["rps", "--endpoints", &endpoints, "--out", &at(&dir, "out")]);
    assert!(code(&nowhere) == 1 && said(&nowhere).contains("no-such-host.invalid"));
    for (flags, why) in [(["--rps", "-1"], "rate"), (["--time", "0"], "requests")] {
        let refused = run(&[&["rps", "--endpoints", &endpoints], &flags[..]].concat());
        let negative = code(&refused) == 2;
        assert!(negative || said(&refused).contains(why), "{}", said(&refused));
    }
    let span = run(&["rps", "--endpoints", &endpoints, "--time", "soon"]);
    assert!(code(&span) == 2 && said(&span).contains("soon"), "{}", said(&span));
}

#[test]
fn e2e_load_makes_traces_up_and_samples_them() {
    let dir = Dir::new("load-synth");
    let run = |args: &[&str]| vhive(dir.path(), &[&["load"], args].concat()).expect("runs");
    let (trace, samples) = (at(&dir, "trace"), at(&dir, "samples"));
    let args = ["synth", "-f", "20", "-b", "1", "-t", "3", "-s", "2", "-dur", "1", "-mem", "64"];
    let made = run(&[&args[..], &["-m", "0", "--out", &trace]].concat());
    assert!(made.status.success(), "{}", said(&made));
    let args = ["sample", "-t", &trace, "-min", "5", "-max", "10", "-st", "5", "-tr", "3"];
    let chosen = run(&[&args[..], &["--out", &samples]].concat());
    assert!(chosen.status.success(), "{}", said(&chosen));
    for size in [5, 10] {
        let lines = text(&dir.path().join(format!("samples/{size}/invocations.csv")));
        assert_eq!(lines.lines().count(), size + 1);
    }
    let config = at(&dir, "config.json");
    let small = at(&dir, "samples/5");
    fs::write(&config, format!("{{\"TracePath\": {small:?}, \"ExperimentDuration\": 2}}"))
        .expect("written");
    let planned =
        vhive(dir.path(), &["-o", "json", "load", "trace", "-config", &config, "-dryRun"]);
    let planned: Value = serde_json::from_slice(&planned.expect("runs").stdout).expect("JSON");
    assert_eq!(planned["invocations"], 5 * (60 + 180));
}

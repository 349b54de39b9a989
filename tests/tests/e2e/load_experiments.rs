//! `vhive load`: workflows, many experiments with a kill in between, failures on purpose, other
//! traces; `vhive deploy` by a kubeconfig.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vhive_tests::node::{binary, vhive};

use crate::load::{at, deploy, functions, text, trace};
use crate::scene::{Dir, code, node, said, skip};

fn put(dir: &Dir, name: &str, value: &Value) -> String {
    fs::write(dir.path().join(name), value.to_string()).expect("written");
    at(dir, name)
}

#[test]
fn e2e_load_sends_workflows_step_by_step() {
    if skip("e2e_load_sends_workflows_step_by_step") {
        return;
    }
    let dir = Dir::new("load-dag");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    trace(dir.path(), "2,0,1", "9,9,9");
    let config = json!({
        "TracePath": dir.path(), "Granularity": "second", "ExperimentDuration": 3,
        "IATDistribution": "equidistant", "OutputPathPrefix": at(&dir, "data/run"),
        "DAGMode": true, "EnableDAGDataset": false, "Width": 1, "Depth": 2,
    });
    let config = put(&dir, "config.json", &config);
    let dry = node.json(&["load", "trace", "-config", &config, "-dryRun"]).expect("planned");
    assert_eq!(dry["workflows"], json!([{"depth": 2, "width": 1, "functions": [0, 1]}]));
    node.ok(&["load", "trace", "-config", &config, "--endpoints", &endpoints]).expect("sent");
    let csv = text(&dir.path().join("data/run_duration_3.csv"));
    let mut ids: Vec<String> = csv
        .lines()
        .skip(1)
        .map(|line| line.split(",min").nth(1).and_then(|rest| rest.split(',').next()))
        .map(|id| id.expect("an id").to_owned())
        .collect();
    ids.sort();
    assert_eq!(ids, ["0.inv0", "0.inv0", "0.inv1", "0.inv1", "2.inv0", "2.inv0"], "{csv}");
    assert!(csv.contains("\"DAG 0,trace-func-0-f0\"") && csv.contains("\"DAG 0,trace-func-1-f1\""));

    let refused = json!({"TracePath": dir.path(), "ExperimentDuration": 3, "DAGMode": true,
        "Width": 5, "Depth": 5});
    let refused = put(&dir, "large.json", &refused);
    let done = node.vhive(&["load", "trace", "-config", &refused, "-dryRun"]).expect("runs");
    assert!(code(&done) == 1 && said(&done).contains("not enough"), "{}", said(&done));
}

/// Starts `vhive load experiments`, kills it once a file is there, and gives what it had finished.
fn killed(dir: &Dir, args: &[&str], there: &Path) {
    let mut command = Command::new(binary().expect("a binary"));
    command.args(["load", "experiments"]).args(args);
    command.arg("--state-dir").arg(dir.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    let begun = Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    while !there.exists() && begun.elapsed() < Duration::from_secs(60) {
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::KILL).expect("killed");
    child.wait().expect("ended");
    assert!(there.exists(), "{} never came", there.display());
}

#[test]
fn e2e_load_goes_on_with_experiments_after_a_kill() {
    if skip("e2e_load_goes_on_with_experiments_after_a_kill") {
        return;
    }
    let dir = Dir::new("load-multi");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    trace(dir.path(), "2,1,1", "1,1,1");
    let base = json!({"TracePath": dir.path(), "Granularity": "second", "ExperimentDuration": 1});
    let base = put(&dir, "base.json", &base);
    let (log, made) = (at(&dir, "scripts.log"), at(&dir, "made.json"));
    let studies = json!({
        "BaseConfigPath": base,
        "PreScript": format!("echo all >>{log}"),
        "Studies": [{
            "Name": "seeds", "OutputDir": at(&dir, "out"),
            // Here is where they are deployed: nobody has their endpoints before.
            "PreScript": format!("echo one >>{log}; cp {endpoints} {made}"),
            "Sweep": [{"Field": "Seed", "Values": [1, 2, 3]},
                      {"Field": "ExperimentDuration", "Values": [1, 3]}],
        }],
    });
    let studies = put(&dir, "studies.json", &studies);
    let args = ["--studies", &studies, "--endpoints", &made];
    let done = |seed: u32, length: u32| {
        let place = format!("out/seeds/seeds_Seed_{seed}_ExperimentDuration_{length}/done.json");
        dir.path().join(place)
    };
    let dry = [&["load", "experiments"], &args[..], &["--dry-run"]].concat();
    let all = node.json(&dry).expect("planned");
    assert_eq!(all.as_array().map(Vec::len), Some(6));
    assert!(!Path::new(&log).exists(), "a dry run runs no scripts");

    killed(&dir, &args, &done(1, 1));
    let finished = |all: &Value| {
        all.as_array().into_iter().flatten().filter(|one| one["finished"] == true).count()
    };
    let before = finished(&node.json(&dry).expect("planned"));
    assert!((1..6).contains(&before), "{before} finished");
    let said = node.vhive(&[&["load", "experiments"], &args[..]].concat()).expect("runs");
    assert_eq!(code(&said), 0, "{}", crate::scene::said(&said));
    assert!(
        crate::scene::said(&said).contains(&format!("{before} of 6 experiments were finished"))
    );
    assert_eq!(finished(&node.json(&dry).expect("planned")), 6);
    let text = text(Path::new(&log));
    let begun = text.lines().filter(|line| *line == "one").count();
    // One may have been under way when the kill came.
    assert!((6..=7).contains(&begun), "{begun} experiments were begun: {text}");
    let again = node.ok(&[&["load", "experiments"], &args[..]].concat()).expect("nothing to do");
    assert!(again.contains("6 experiments finished"), "{again}");
}

#[test]
fn e2e_load_breaks_something_on_purpose_and_tells_what_came_of_it() {
    if skip("e2e_load_breaks_something_on_purpose_and_tells_what_came_of_it") {
        return;
    }
    let dir = Dir::new("load-fail");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    let (out, mark) = (at(&dir, "out"), at(&dir, "mark"));
    let touch = format!("0.2:touch {mark}");
    let run =
        ["load", "rps", "--endpoints", &endpoints, "--rps", "40", "--time", "2", "--out", &out];
    let more = ["--records", "--fail", &touch, "--fail-instances", "1.08:one-0"];
    let summary = node.json(&[&run[..], &more].concat()).expect("sent");
    assert_eq!(summary["outcomes"]["ok"], 80, "{summary}");
    assert!(Path::new(&mark).exists());
    let told: Value =
        serde_json::from_str(&text(&dir.path().join("out/failures.json"))).expect("JSON");
    assert!(told[0]["begun_us"].as_u64() >= Some(200_000) && told[0]["error"].is_null(), "{told}");
    assert!(told[1]["begun_us"].as_u64() >= Some(1_080_000), "{told}");
    assert!(
        told[1]["said"].as_str().is_some_and(|said| said.contains("instances stopped")),
        "{told}"
    );
    // Between two of its requests, which come at every 50 ms, it was idle; so a later one found none.
    let late_boots = text(&dir.path().join("out/rows.jsonl"))
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row"))
        .filter(|row| row["start"] == "boot" && row["intended_us"].as_f64() > Some(1e6))
        .count();
    assert!(late_boots >= 1, "no cold start after the failure");

    let broken = [&run[..], &["--fail", "0:exit 7"]].concat();
    let done = node.vhive(&broken).expect("runs");
    assert!(code(&done) == 1 && said(&done).contains("exit status: 7"), "{}", said(&done));
    let bad = node.vhive(&[&run[..], &["--fail", "soon"]].concat()).expect("runs");
    assert!(code(&bad) == 1 && said(&bad).contains("is no failure"), "{}", said(&bad));
}

#[test]
fn e2e_load_converts_other_traces() {
    let dir = Dir::new("load-convert");
    let run =
        |args: &[&str]| vhive(dir.path(), &[&["load", "convert"], args].concat()).expect("runs");
    for (metric, row) in
        [("requests", "0,60,7,"), ("function_delay", "0,60,5,5"), ("memory_limit", "0,60,64,64")]
    {
        let place = dir.path().join(format!("huawei/{metric}_minute"));
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("day_000.csv"), format!("day,time,0,1\n{row}\n")).expect("written");
    }
    let (huawei, out) = (at(&dir, "huawei"), at(&dir, "trace"));
    let args = ["huawei2023", "-t", &huawei, "-s", "00:00:01", "-dur", "1", "--out", &out];
    let done = run(&args);
    assert!(done.status.success(), "{}", said(&done));
    let config = put(&dir, "config.json", &json!({"TracePath": out, "ExperimentDuration": 1}));
    let dry = ["-o", "json", "load", "trace", "-config", &config, "-dryRun"];
    let planned = vhive(dir.path(), &dry).expect("runs");
    let planned: Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    assert_eq!(planned["invocations"], 7);

    let ibm = dir.path().join("week_1.csv");
    fs::write(
        &ibm,
        "NamespaceHash,AppHash,InvocationTimes,AppExecTimes\nn,a,\"[18000, x]\",\"[1, 1]\"\n",
    )
    .expect("written");
    let out = at(&dir, "ibm.csv");
    let bad =
        run(&["ibm2026", "--trace", &ibm.to_string_lossy(), "--duration", "1", "--out", &out]);
    assert!(code(&bad) == 1 && said(&bad).contains("week_1.csv:2: column 3"), "{}", said(&bad));
}

#[test]
fn e2e_load_takes_what_azure_has_published_as_it_is() {
    let dir = Dir::new("load-azure");
    let (published, out) = (at(&dir, "published"), at(&dir, "trace"));
    fs::create_dir_all(&published).expect("made");
    let columns = |count: &dyn Fn(u32) -> u32| {
        (1..=1440).map(|minute| format!(",{}", count(minute))).collect::<String>()
    };
    let percentiles = |names: &[u32], of: &str| {
        names.iter().map(|percent| format!(",{of}{percent}")).collect::<String>()
    };
    for (name, text) in [
        (
            "invocations_per_function_md",
            format!(
                "HashOwner,HashApp,HashFunction,Trigger{}\no,a,f,http{}\no,b,g,http{}\n",
                columns(&|minute| minute),
                columns(&|minute| minute % 7),
                columns(&|_| 1)
            ),
        ),
        (
            "function_durations_percentiles",
            format!(
                "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum{}\n\
                o,a,f,5,9,1,9,1,1,2,5,6,8,9\n",
                percentiles(&[0, 1, 25, 50, 75, 99, 100], "percentile_Average_")
            ),
        ),
        (
            "app_memory_percentiles",
            format!(
                "HashOwner,HashApp,SampleCount,AverageAllocatedMb{}\no,a,9,64{}\n",
                percentiles(&[1, 5, 25, 50, 75, 95, 99, 100], "AverageAllocatedMb_pct"),
                ",64".repeat(8)
            ),
        ),
    ] {
        fs::write(format!("{published}/{name}.anon.d02.csv"), text).expect("written");
    }
    let run =
        |args: &[&str]| vhive(dir.path(), &[&["load", "convert"], args].concat()).expect("runs");
    let planned = |path: &str| {
        let config = put(&dir, "config.json", &json!({"TracePath": path, "ExperimentDuration": 2}));
        let dry = ["-o", "json", "load", "trace", "-config", &config, "-dryRun"];
        let planned = vhive(dir.path(), &dry).expect("runs");
        serde_json::from_slice::<Value>(&planned.stdout).expect("JSON")["invocations"].clone()
    };
    let ours = ["azure2019", "--from", &published, "--day", "2", "--start", "3", "-o", &out];
    // As the original's sampler has it: the second day is 01.
    let originals = ["preprocess", "-t", &published, "-s", "01:00:03", "-dur", "2", "-o", &out];
    for args in [&ours[..], &originals] {
        let done = run(args);
        assert!(done.status.success(), "{}", said(&done));
        assert!(
            said(&done).contains("1 functions left out: not in the file of d"),
            "{}",
            said(&done)
        );
        assert_eq!(planned(&out), 4 + 5, "columns 4 and 5");
    }
    let refused = run(&[&originals[..], &["--day", "15"]].concat());
    assert!(!refused.status.success() && said(&refused).contains("--day"), "{}", said(&refused));

    let file = at(&dir, "AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt");
    fs::write(&file, "app,func,end_timestamp,duration\na,f,5,1\na,f,70,1\na,f,500,1\n")
        .expect("written");
    assert_eq!(planned(&file), 2);
}

#[test]
fn e2e_load_deploys_by_a_kubeconfig_through_tls() {
    if skip("e2e_load_deploys_by_a_kubeconfig_through_tls") {
        return;
    }
    let dir = Dir::new("load-cluster");
    let node = node(&dir, "");
    functions(dir.path());
    let config = node.ok(&["kubeconfig"]).expect("a kubeconfig");
    fs::write(dir.path().join("kubeconfig"), &config).expect("written");
    // Nothing but the file leads to the node: no socket, no state.
    let away = Dir::new("load-cluster-away");
    let (json, endpoints) = (at(&dir, "functions.json"), at(&dir, "endpoints.json"));
    let (path, kubeconfig) = (dir.path().to_string_lossy().into_owned(), at(&dir, "kubeconfig"));
    let run = |more: &[&str]| {
        let args = ["deploy", "-jsonFile", &json, "--kubeconfig", &kubeconfig];
        vhive(away.path(), &[&args[..], more].concat()).expect("runs")
    };
    let done = run(&["-funcPath", &path, "-endpointsFile", &endpoints]);
    assert_eq!(code(&done), 1, "one of three has no manifest: {}", said(&done));
    let listed: Value = serde_json::from_str(&text(Path::new(&endpoints))).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(listed[1]["hostname"], "one-1.default.example.com");
    assert_eq!(listed[0]["address"], node.gateway.as_str(), "the node tells where its gateway is");
    let deleted = run(&["--delete"]);
    assert_eq!(code(&deleted), 0, "{}", said(&deleted));
    let left = node.json(&["get", "services"]).expect("listed");
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");

    // A token that is not the node's, and a certificate that another authority has signed.
    let spoil = |from: &str, to: &str| {
        let text: String = config
            .lines()
            .map(|line| match line.split_once(from) {
                Some((head, _)) => format!("{head}{from}{to}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        fs::write(&kubeconfig, text).expect("written");
    };
    spoil("token: ", "wrong");
    let refused = run(&["--delete"]);
    assert!(
        code(&refused) == 1 && said(&refused).contains("does not know us"),
        "{}",
        said(&refused)
    );
    let server = config.lines().find(|line| line.contains("server: ")).expect("a server");
    let server = server.split("server: ").nth(1).expect("an address").trim_matches(['"', '\'']);
    let text = format!(
        "current-context: a\ncontexts: [{{name: a, context: {{cluster: c}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n"
    );
    fs::write(&kubeconfig, text).expect("written");
    let unknown = run(&["--delete"]);
    assert!(code(&unknown) == 1 && said(&unknown).contains("certificate"), "{}", said(&unknown));
    let lost = run(&["--delete", "--context", "b"]);
    assert!(code(&lost) == 1 && said(&lost).contains("no context \"b\""), "{}", said(&lost));
}

//! `vhive load` with bad input and a disk that fills: clear words, and no silent loss.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use vhive_tests::node::{binary, vhive};

use crate::load::{at, deploy, text, trace};
use crate::load_peers::server;
use crate::scene::{Dir, code, fill, mount, node, said, skip};

#[test]
fn e2e_load_whose_disk_fills_goes_on_and_counts_what_is_lost() {
    let test = "e2e_load_whose_disk_fills_goes_on_and_counts_what_is_lost";
    if skip(test) {
        return;
    }
    let dir = Dir::new("load-full");
    let place = dir.path().join("disk");
    let _disk = match mount(&place, "1m") {
        Ok(disk) => disk,
        Err(missing) => return eprintln!("SKIP {test}: {missing}"),
    };
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    fill(&place, 64 << 10);
    let out = at(&dir, "disk/out");
    let args =
        ["-o", "json", "load", "rps", "--endpoints", &endpoints, "--rps", "300", "--time", "2"];
    let done = node.vhive(&[&args[..], &["--out", &out]].concat()).expect("runs");
    assert_eq!(code(&done), 1, "{}", said(&done));
    assert!(said(&done).contains("rows were not written"), "{}", said(&done));
    // What could be written is whole but for its last line.
    let rows = text(&place.join("out/rows.jsonl"));
    let whole = rows.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert!(whole > 10 && whole + 1 >= rows.lines().count(), "{whole} of {}", rows.lines().count());
}

#[test]
fn e2e_load_names_what_is_wrong_with_a_trace() {
    let dir = Dir::new("load-bad-trace");
    let run = |more: &Value| {
        let mut config = json!({"TracePath": dir.path(), "ExperimentDuration": 3,
            "OutputPathPrefix": at(&dir, "data/run")});
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        let endpoints = at(&dir, "endpoints.json");
        fs::write(&endpoints, r#"[{"hostname":"f","address":"127.0.0.1:9"}]"#).expect("written");
        let config = at(&dir, "config.json");
        let args = ["load", "trace", "-config", &config, "--endpoints", &endpoints];
        let done = vhive(dir.path(), &args).expect("runs");
        assert_eq!(code(&done), 1, "{}", said(&done));
        said(&done)
    };
    trace(dir.path(), "0,0,0", "0,0,0");
    let empty = run(&json!({}));
    assert!(empty.contains("no invocation in the time that is sent"), "{empty}");
    let short = run(&json!({"ExperimentDuration": 4}));
    assert!(short.contains("4 columns of invocations are needed, 3 are there"), "{short}");
    let absurd = run(&json!({"ExperimentDuration": 999_999_999}));
    assert!(absurd.contains("ExperimentDuration"), "{absurd}");
    let negative = run(&json!({"ExperimentDuration": -3}));
    assert!(negative.contains("-3"), "{negative}");
    let path = dir.path().join("durations.csv");
    let good = text(&path);
    fs::write(&path, good.replace("o,a,f1,2,9,1,3,1,", "o,a,f1,2,9,1,3,-1,")).expect("written");
    let below = run(&json!({}));
    assert!(below.contains("durations.csv:3: column 8"), "{below}");
    fs::write(&path, good.replace("o,a,f1,2,9,1,3,1,", "o,a,f1,2,9,1,3,1e999,")).expect("written");
    let infinite = run(&json!({}));
    assert!(infinite.contains("durations.csv:3: column 8"), "{infinite}");
    fs::write(&path, "").expect("written");
    let nothing = run(&json!({}));
    assert!(nothing.contains("durations.csv"), "{nothing}");
    fs::write(dir.path().join("2021.csv"), "app,func,end_timestamp,duration\n").expect("written");
    let none = run(&json!({"TracePath": at(&dir, "2021.csv")}));
    assert!(none.contains("no invocation ends within 3 minutes"), "{none}");
}

/// `vhive load rps` at a server of 20 ms with more under way than the files that it may open.
fn short_of_files(dir: &Dir, limits: &str, more: &[&str]) -> (Value, String) {
    let (address, _) = server();
    let endpoint = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    fs::write(dir.path().join("endpoints.json"), endpoint).expect("written");
    let shell = format!("{limits}; exec \"$0\" \"$@\"");
    let binary = binary().expect("the binary").display().to_string();
    let done = Command::new("sh")
        .args(["-c", &shell, &binary, "-o", "json", "load", "rps"])
        .args(["--endpoints", "endpoints.json", "--rps", "4000", "--time", "0.5", "--out", "out"])
        .args(more)
        .current_dir(dir.path())
        .output()
        .expect("runs");
    let told = said(&done);
    let summary = serde_json::from_slice(&done.stdout);
    assert!(summary.is_ok(), "{told}");
    (summary.expect("it is"), told)
}

#[test]
fn e2e_load_opens_as_many_files_as_it_may_and_no_more() {
    let dir = Dir::new("load-files");
    // 80 at a time on average: more than a soft limit of 64 has room for, and than a hard one.
    let (raised, told) = short_of_files(&dir, "ulimit -Sn 64", &[]);
    assert_eq!(raised["own_failures"], 0, "{told}");
    let (kept, told) = short_of_files(&dir, "ulimit -n 96", &[]);
    assert!(told.contains("at most 32 connections to one address instead of 4096"), "{told}");
    assert_eq!(
        (&kept["own_failures"], &kept["outcomes"]["error"]),
        (&json!(0), &json!(0)),
        "{told}"
    );
}

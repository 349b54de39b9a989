//! What `vhive load` leaves behind, read by others: reports, comparisons, Parquet.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vhive_tests::node::{command, vhive};

use crate::load::{at, deploy, text};
use crate::load_peers::server;
use crate::scene::{Dir, code, node, said, skip};

/// A Python with `pyarrow`, where there is one or `xtask test` has brought it.
fn pyarrow() -> Option<String> {
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/pyarrow/bin/python");
    let all = [brought.to_string_lossy().into_owned(), "python3".to_owned()];
    all.into_iter().find(|python| {
        let asked = Command::new(python).args(["-c", "import pyarrow.parquet"]).output();
        asked.is_ok_and(|done| done.status.success())
    })
}

fn rows(path: &Path) -> Vec<Value> {
    text(path).lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

#[test]
fn e2e_load_has_a_report_and_is_compared() {
    if skip("e2e_load_has_a_report_and_is_compared") {
        return;
    }
    let dir = Dir::new("load-results");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    let send = |out: &str, more: &[&str]| {
        let args = ["load", "rps", "--endpoints", &endpoints, "--rps", "40", "--time", "2"];
        node.ok(&[&args[..], &["--records", "--out", &at(&dir, out)], more].concat()).expect("sent")
    };
    send("a", &["--parquet"]);
    send("b", &[]);
    for file in ["report.html", "over-time.svg", "latency.svg", "lateness.svg"] {
        assert!(dir.path().join("a").join(file).exists(), "{file} is made with the run");
    }
    assert!(!dir.path().join("b/rows.parquet").exists(), "only if asked for");
    let page = text(&dir.path().join("a/report.html"));
    let built = node.json(&["report", &at(&dir, "a")]).expect("built again");
    assert_eq!(text(&dir.path().join("a/report.html")), page, "the same from the same rows");
    assert!(built["report"].as_str().is_some_and(|path| path.ends_with("a/report.html")));
    let summary: Value =
        serde_json::from_str(&text(&dir.path().join("a/summary.json"))).expect("JSON");
    let ok = summary["outcomes"]["ok"].as_u64().expect("a number");
    assert!(ok == 80 && page.contains(&format!("80 requests, {ok} successes")), "{summary}");
    // A revision in the checkout that this is built in; none elsewhere.
    let git = summary["host"]["git"].as_str().unwrap_or_default();
    let version = vhive(dir.path(), &["--version"]).expect("runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(version.contains(git), "{git} in {version}");

    let (a, b) = (at(&dir, "a"), at(&dir, "b"));
    let compared = node.json(&["study", "compare", &a, &b, "--out", &at(&dir, "ab")]);
    let compared = compared.expect("compared");
    let warm = compared["lines"].as_array().expect("lines").iter().find(|line| {
        line["metric"] == "latency ms"
            && line["group"].as_str().is_some_and(|group| group.ends_with(" warm"))
    });
    let warm = warm.expect("both have warm requests");
    let of = |out: &str, start: &str, endpoint: &str| {
        let rows = rows(&dir.path().join(out).join("rows.jsonl"));
        let of = |row: &&Value| row["start"] == start && row["endpoint"] == endpoint;
        rows.iter().filter(of).count() as u64
    };
    let endpoint = warm["group"].as_str().expect("a text").trim_end_matches(" warm");
    assert_eq!(warm["a"]["n"], of("a", "warm", endpoint));
    assert_eq!(warm["b"]["n"], of("b", "warm", endpoint));
    assert!(dir.path().join("ab/compare.html").exists());

    let Some(python) = pyarrow() else {
        return eprintln!("SKIP e2e_load_has_a_report_and_is_compared (Parquet): pyarrow");
    };
    let script = "import json, sys, pyarrow.parquet as p\n\
                  for row in p.read_table(sys.argv[1]).to_pylist(): print(json.dumps(row))";
    let file = at(&dir, "a/rows.parquet");
    let done = Command::new(python).args(["-c", script, &file]).output().expect("runs");
    assert!(done.status.success(), "{}", said(&done));
    let read: Vec<Value> = String::from_utf8_lossy(&done.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    let written = rows(&dir.path().join("a/rows.jsonl"));
    assert_eq!(read.len(), written.len());
    for (read, written) in read.iter().zip(&written) {
        let (read, written) = (read.as_object().expect("a row"), written.as_object().expect("one"));
        assert_eq!(read.len(), written.len(), "{read:?}");
        for (name, value) in written {
            let same = match (value.as_f64(), read[name].as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => *value == read[name],
            };
            assert!(same, "{name}: {value} and {}", read[name]);
        }
    }
}

#[test]
fn e2e_load_sweeps_leave_their_rows() {
    if skip("e2e_load_sweeps_leave_their_rows") {
        return;
    }
    let dir = Dir::new("load-sweep");
    let node = node(&dir, "");
    let endpoints = deploy(&node, &dir);
    let sweep = |out: &str| {
        let args = ["load", "sweep", "--endpoints", &endpoints, "--from", "20", "--most", "40"];
        let more = [
            "--replies",
            "20",
            "--time",
            "1",
            "--within",
            "100",
            "--out",
            &at(&dir, out),
            "--parquet",
        ];
        let done = node.vhive(&[&args[..], &more].concat()).expect("runs");
        // Whether a rate holds depends on what the machine does besides.
        assert!(
            code(&done) <= 1 && dir.path().join(out).join("sweep.json").exists(),
            "{}",
            said(&done)
        );
    };
    sweep("a");
    // What an earlier run of another kind has left is not taken for a sweep's.
    fs::create_dir_all(dir.path().join("b")).expect("made");
    fs::write(dir.path().join("b/summary.json"), "{}").expect("written");
    sweep("b");
    for out in ["a", "b"] {
        let found: Value =
            serde_json::from_str(&text(&dir.path().join(out).join("sweep.json"))).expect("JSON");
        let rows = rows(&dir.path().join(out).join("rows.jsonl"));
        let sent: u64 = found["steps"]
            .as_array()
            .expect("steps")
            .iter()
            .filter_map(|s| s["sent"].as_u64())
            .sum();
        let rated = rows.iter().filter(|row| row["rate"].is_number()).count() as u64;
        assert_eq!(rated, sent, "{out}: {found}");
        assert!(rows.iter().any(|row| row["rate"].is_null()), "one client alone");
        let page = text(&dir.path().join(out).join("report.html"));
        assert!(page.contains("Search for the knee"), "{out}");
        assert!(dir.path().join(out).join("rows.parquet").exists());
    }
    let compared = node.json(&["study", "compare", &at(&dir, "a"), &at(&dir, "b")]).expect("done");
    assert_eq!(compared["kind"], "sweep");
    let at_20 = |line: &&Value| {
        line["group"].as_str().is_some_and(|group| group.ends_with(" at 20/s"))
            && line["metric"] == "from intended ms"
    };
    assert!(
        compared["lines"].as_array().expect("lines").iter().any(|line| at_20(&line)),
        "{compared}"
    );
}

#[test]
fn e2e_load_that_cannot_begin_leaves_nothing_of_an_earlier_run() {
    let dir = Dir::new("load-again");
    let at = |name: &str| at(&dir, name);
    let list = r#"[{"hostname":"f","address":"no-such-host.invalid:80","protocol":"http1"}]"#;
    fs::write(at("endpoints.json"), list).expect("written");
    fs::create_dir(at("out")).expect("made");
    let of_the_end =
        ["summary.json", "sweep.json", "report.html", "rows.parquet", "rows.parquet.part"];
    for name in of_the_end {
        fs::write(dir.path().join("out").join(name), "old").expect("written");
    }
    let (endpoints, out) = (at("endpoints.json"), at("out"));
    let args = ["load", "rps", "--endpoints", &endpoints, "--rps", "5", "--time", "1"];
    let done = vhive(dir.path(), &[&args[..], &["--out", &out]].concat()).expect("runs");
    assert!(code(&done) != 0 && said(&done).contains("no-such-host"), "{}", said(&done));
    let left = fs::read_dir(&out).expect("read").flatten();
    let mut left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, ["rows.csv", "rows.jsonl"], "{}", said(&done));
}

#[test]
fn e2e_load_by_a_plan_that_can_be_read_once_is_recorded_with_it() {
    let dir = Dir::new("load-plan");
    let (address, _) = server();
    let list = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    fs::write(at(&dir, "endpoints.json"), list).expect("written");
    let (endpoints, out) = (at(&dir, "endpoints.json"), at(&dir, "out"));
    let mut run = command(dir.path()).expect("a command");
    run.args(["load", "rps", "--endpoints", &endpoints, "--out", &out, "--plan", "/dev/stdin"]);
    run.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = run.spawn().expect("runs");
    let plan = run.stdin.take().expect("a pipe").write_all(b"rps = 10\ntime = '1s'\n");
    plan.expect("written");
    let done = run.wait_with_output().expect("ends");
    assert!(done.status.success(), "{}", said(&done));
    let summary: Value =
        serde_json::from_str(&text(Path::new(&at(&dir, "out/summary.json")))).expect("a summary");
    let command = summary["command"].as_array().expect("a command line");
    for word in ["--rps=10", "--time=1s"] {
        assert!(command.iter().any(|one| one == word), "no {word} in {summary}");
    }
}

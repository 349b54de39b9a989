//! `vhive study` and `vhive report` against a node with the runtime `sim`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vhive_api::Digest;
use vhive_pager::{FaultTrace, working_set};
use vhive_study::{Deadline, Door, Target};
use vhive_tests::node::{TestNode, command, vhive};

use crate::microvm::{tag, traces};
use crate::runtimes::offered;
use crate::scene::{Dir, apply, code, invoke, node, said, service, skip};

/// A functions directory with one function whose image is there.
fn functions(dir: &Path) -> PathBuf {
    let functions = dir.join("functions");
    let tiny = functions.join("tiny");
    fs::create_dir_all(&tiny).expect("made");
    let yaml = service("tiny", &["VHIVE_SIM_BOOT_MS=60", "VHIVE_SIM_REPLY_MS=1"], "");
    fs::write(tiny.join("service.yaml"), yaml).expect("written");
    let request = |name: &str| {
        format!(
            "[[request]]\nname = \"{name}\"\nmethod = \"POST\"\npath = \"/\"\nbody = \"body\"\n\
             expected = \"body\"\ncompare = \"exact\"\n"
        )
    };
    fs::write(tiny.join("requests.toml"), request("record") + &request("replay")).expect("written");
    fs::write(tiny.join("body"), "{}").expect("written");
    functions
}

fn rows(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("rows.jsonl")).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn e2e_a_study_of_cold_starts_measures_every_kind_and_reports() {
    if skip("e2e_a_study_of_cold_starts_measures_every_kind_and_reports") {
        return;
    }
    let dir = Dir::new("study");
    let functions = functions(dir.path());
    let node = node(&dir, "");
    let out = dir.path().join("result");
    let args = [
        "study",
        "cold-start",
        "--functions-dir",
        &functions.to_string_lossy(),
        "--functions",
        "tiny",
        "--kinds",
        "boot,warm,snapshot,lazy,record,reap",
        "--repetitions",
        "2",
        "--keep-cache",
        "--out",
        &out.to_string_lossy(),
    ];
    let shown = node.ok(&args).expect("measured");
    let rows = rows(&out);
    for kind in ["boot", "warm", "snapshot", "lazy", "record", "reap"] {
        let served = |row: &&Value| row["kind"] == kind && row["record"]["start"] == kind;
        let count = rows.iter().filter(served).count();
        let planned = if kind == "reap" { 4 } else { 2 };
        assert!(count >= planned, "{kind}: {count} of {planned}\n{shown}");
        assert!(shown.contains(kind), "{kind} in {shown}");
    }
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("was not dropped") && page.contains("`sim`"), "warns");
    for name in ["rows.csv", "summary.csv", "phases.svg", "distribution.svg"] {
        assert!(out.join(name).metadata().expect(name).len() > 100, "{name}");
    }
    let listed = node.json(&["get", "services"]).expect("listed");
    assert_eq!(listed["items"], serde_json::json!([]), "the study's services are gone");

    fs::remove_file(out.join("report.html")).expect("removed");
    let again = vhive(dir.path(), &["report", &out.to_string_lossy()]).expect("runs");
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(fs::read_to_string(out.join("report.html")).expect("made again"), page);
    let twice = node.vhive(&args).expect("runs");
    assert_eq!(code(&twice), 1, "a result is never overwritten");
}

#[test]
fn e2e_a_study_of_concurrent_starts_has_a_row_per_invocation() {
    if skip("e2e_a_study_of_concurrent_starts_has_a_row_per_invocation") {
        return;
    }
    let dir = Dir::new("parallel");
    let functions = functions(dir.path());
    // Who is busy for so long serves no second one that comes a little later.
    let yaml = service("tiny", &["VHIVE_SIM_BOOT_MS=60", "VHIVE_SIM_REPLY_MS=400"], "");
    fs::write(functions.join("tiny/service.yaml"), yaml).expect("written");
    let node = node(&dir, "");
    let out = dir.path().join("result");
    let args = [
        "study",
        "parallel",
        "--functions-dir",
        &functions.to_string_lossy(),
        "--functions",
        "tiny",
        "--kinds",
        "boot,snapshot",
        "--repetitions",
        "1",
        "--max",
        "4",
        "--keep-cache",
        "--out",
        &out.to_string_lossy(),
    ];
    node.ok(&args).expect("measured");
    let rows = rows(&out);
    let of = |kind: &str| {
        rows.iter().filter(|row| row["kind"] == kind && row["record"]["start"] == kind).count()
    };
    assert_eq!(rows.len(), 2 * (1 + 2 + 4));
    assert_eq!((of("boot"), of("snapshot")), (7, 7), "each has an instance of its own");
    assert!(out.join("levels.svg").exists());
}

/// As when the connection breaks over which somebody watches a study of hours.
#[test]
fn e2e_a_study_whose_terminal_is_closed_ends_in_order() {
    let test = "e2e_a_study_whose_terminal_is_closed_ends_in_order";
    if skip(test) {
        return;
    }
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("told");
    if u64::from_str_radix(ignored.trim(), 16).expect("a set") & 1 != 0 {
        eprintln!("SKIP {test}: SIGHUP, which is ignored here, as the study would");
        return;
    }
    let dir = Dir::new("study-hup");
    let functions = functions(dir.path());
    let node = node(&dir, "");
    let out = dir.path().join("result");
    let mut study = command(dir.path()).expect("a command");
    study.args(["study", "cold-start", "--functions-dir"]).arg(&functions);
    study.args(["--functions", "tiny", "--kinds", "boot,warm", "--repetitions", "500"]);
    study.args(["--keep-cache", "--out"]).arg(&out);
    study.stdout(Stdio::null()).stderr(Stdio::piped());
    let study = study.spawn().expect("runs");
    let begun = std::time::Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    let measured = || fs::read_to_string(out.join("rows.jsonl")).is_ok_and(|rows| !rows.is_empty());
    while !measured() && begun.elapsed() < Duration::from_secs(60) {
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
    assert!(measured(), "no row ever came");
    let pid = Pid::from_child(&study);
    kill_process(pid, Signal::HUP).expect("told");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(study.wait_with_output()));
    let Ok(done) = told.recv_timeout(Duration::from_secs(60)) else {
        kill_process(pid, Signal::KILL).expect("killed");
        panic!("it goes on");
    };
    let done = done.expect("ends");
    // Not by the signal: what it has changed was put back.
    assert_eq!(code(&done), 1, "{done:?}");
    assert!(said(&done).contains("SIGHUP"), "{}", said(&done));
    let listed = node.json(&["get", "services"]).expect("listed");
    assert_eq!(listed["items"], serde_json::json!([]), "the study's services are gone");
    let rows = rows(&out);
    assert!((1..1000).contains(&rows.len()), "{} rows", rows.len());
    assert!(out.join("report.html").exists());
}

#[test]
fn e2e_a_study_of_runtimes_measures_starts_and_throughput() {
    if skip("e2e_a_study_of_runtimes_measures_starts_and_throughput") {
        return;
    }
    let dir = Dir::new("study-runtimes");
    let functions = functions(dir.path());
    let plan = dir.path().join("plan.toml");
    let text = "functions = [\"tiny\"]\nkinds = [\"boot\", \"warm\", \"snapshot\"]\n\
                repetitions = 2\ncache = \"keep\"\n[runtimes]\nload = [\"tiny\"]\n\
                system_calls = [\"tiny\"]\nconnections = 3\nload_for = \"200ms\"\n";
    fs::write(&plan, text).expect("written");
    let node = node(&dir, "");
    let out = dir.path().join("result");
    let (plan, functions) = (plan.to_string_lossy(), functions.to_string_lossy());
    let place = out.to_string_lossy();
    let args = ["study", "runtimes", &plan, "--functions-dir", &functions];
    let args = [&args[..], &["--runtimes", "sim,firecracker", "--out", &place]].concat();
    let shown = node.ok(&args).expect("measured");
    let rows = rows(&out);
    for kind in ["boot", "warm", "snapshot"] {
        let served = |row: &&Value| {
            row["kind"] == kind && row["record"]["start"] == kind && row["runtime"] == "sim"
        };
        assert_eq!(rows.iter().filter(served).count(), 2, "{kind}\n{shown}");
    }
    assert_eq!(rows.len(), 6, "nothing of a runtime that is not offered");
    let loads = fs::read_to_string(out.join("loads.jsonl")).expect("throughputs");
    for line in loads.lines() {
        let load: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&load["connections"], &load["failures"]), (&3.into(), &0.into()), "{load}");
        assert!(load["replies"].as_u64() > Some(0), "{load}");
    }
    assert_eq!(loads.lines().count(), 2);
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("Throughput of one instance"));
    assert!(page.contains("firecracker boot is not measured"), "says what is missing");
    assert!(out.join("loads.csv").exists() && !out.join("densities.csv").exists());
    let listed = node.json(&["get", "services"]).expect("listed");
    assert_eq!(listed["items"], serde_json::json!([]), "the study's services are gone");
}

#[test]
fn e2e_a_study_of_runtimes_compares_real_sandboxes() {
    let test = "e2e_a_study_of_runtimes_compares_real_sandboxes";
    let dir = Dir::new("study-sandboxes");
    let mut offered = offered(test, &dir);
    // A machine's starts take seconds each.
    offered.retain(|name| !["qemu", "firecracker"].contains(&name.as_str()));
    if offered.is_empty() {
        return;
    }
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    let recipe = functions.join("syscalls");
    let built = vhive(dir.path(), &["image", "build", &recipe.to_string_lossy()]).expect("runs");
    assert!(built.status.success(), "{}", said(&built));
    let plan = dir.path().join("plan.toml");
    let text = "functions = [\"hello\"]\nkinds = [\"boot\", \"warm\"]\nrepetitions = 1\n\
                cache = \"keep\"\n[runtimes]\nload = [\"hello\", \"syscalls\"]\n\
                connections = 2\nload_for = \"200ms\"\ndensity = \"64Mi\"\n";
    fs::write(&plan, text).expect("written");
    // So much that it is the memory that ends a filling.
    let room = "[node]\nmax_memory = \"1000GiB\"\n[node.snapshots]\nstandby = 0\n";
    let node = TestNode::start(dir.path(), room).expect("the node starts");
    let out = dir.path().join("result");
    let (plan, functions) = (plan.to_string_lossy(), functions.to_string_lossy());
    let (place, names) = (out.to_string_lossy(), offered.join(","));
    let args = ["study", "runtimes", &plan, "--functions-dir", &functions];
    let args = [&args[..], &["--runtimes", &names, "--out", &place]].concat();
    let shown = node.ok(&args).expect("measured");
    let lines = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(out.join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let (loads, densities) = (lines("loads.jsonl"), lines("densities.jsonl"));
    for runtime in &offered {
        for function in ["hello", "syscalls"] {
            let ours = |load: &&Value| load["runtime"] == **runtime && load["function"] == function;
            let load = loads.iter().find(ours).expect("measured");
            assert_eq!(load["failures"], 0, "{load}");
            assert!(load["replies"].as_u64() > Some(0), "{load}");
        }
        let ours = |density: &&Value| density["runtime"] == **runtime;
        let density = densities.iter().find(ours).unwrap_or(&Value::Null);
        assert!(density["instances"].as_u64() > Some(0), "{runtime}: {density}\n{shown}");
        assert_ne!(density["ended"], "stalled", "{density}");
        let pss = density["pss_bytes"].as_u64().expect("counted");
        assert!(pss < 64 << 20, "{density}");
    }
    let page = fs::read_to_string(out.join("report.html")).expect("a report");
    assert!(page.contains("Throughput of one instance"), "a chart");
    assert!(page.contains("system calls"), "groups are apart");
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

#[test]
fn e2e_a_study_says_what_it_cannot_use() {
    if skip("e2e_a_study_says_what_it_cannot_use") {
        return;
    }
    let dir = Dir::new("study-bad");
    let refused = vhive(dir.path(), &["study", "cold-start"]).expect("runs");
    assert_eq!(code(&refused), 4, "no node: {}", said(&refused));
    let refused = vhive(dir.path(), &["study", "cold-start", "--kinds", "hot"]).expect("runs");
    assert_eq!(code(&refused), 2);
    assert!(said(&refused).contains("snapshot"), "names the kinds: {}", said(&refused));
    let empty = dir.path().to_string_lossy();
    let refused = vhive(dir.path(), &["report", &empty]).expect("runs");
    assert!(code(&refused) == 1 && said(&refused).contains("study.json"), "{}", said(&refused));

    let functions = functions(dir.path());
    let functions = functions.to_string_lossy();
    let node = node(&dir, "");
    apply(&node, &dir, &service("tiny-boot", &[], ""));
    let out = dir.path().join("result");
    let mut args = vec!["study", "cold-start", "--functions-dir", &functions, "--kinds", "boot"];
    let absent = node.vhive(&[&args[..], &["--functions", "absent"]].concat()).expect("runs");
    assert!(said(&absent).contains("absent/service.yaml"), "{}", said(&absent));
    let out = out.to_string_lossy();
    args.extend(["--functions", "tiny", "--out", &out]);
    let taken = node.vhive(&args).expect("runs");
    assert!(said(&taken).contains("no study made"), "{}", said(&taken));
    let kept = node.json(&["describe", "tiny-boot"]).expect("the user's service is left alone");
    assert_eq!(kept["service"]["metadata"]["name"], "tiny-boot");
}

#[test]
fn e2e_a_study_of_pages_starts_lazily_from_the_snapshot_that_is_recorded() {
    if skip("e2e_a_study_of_pages_starts_lazily_from_the_snapshot_that_is_recorded") {
        return;
    }
    let dir = Dir::new("pages");
    let functions = functions(dir.path());
    let node = node(&dir, "");
    let out = dir.path().join("result");
    let (functions, to) = (functions.to_string_lossy(), out.to_string_lossy());
    let args = ["study", "pages", "--functions-dir", &functions, "--functions", "tiny"];
    let more = ["--kinds", "lazy,reap", "--repetitions", "2", "--keep-cache", "--out", &to];
    let shown = node.ok(&[&args[..], &more].concat()).expect("measured");
    let rows = rows(&out);
    for (kind, planned) in [("lazy", 2), ("reap", 4)] {
        let good = |row: &&Value| {
            let record = &row["record"];
            row["kind"] == kind
                && record["start"] == kind
                && (&record["service"], &record["revision"])
                    == (&"tiny-reap".into(), &"tiny-reap-00001".into())
        };
        assert!(rows.iter().filter(good).count() >= planned, "{kind}: {rows:?}\n{shown}");
    }
    let kept = node.json(&["snapshot", "ls"]).expect("listed").to_string();
    assert_eq!(kept, "[]", "the services' snapshots go with them");
    let listed = node.json(&["get", "services"]).expect("listed");
    assert_eq!(listed["items"], serde_json::json!([]), "the study's services are gone");
}

/// Snapshots that are kept outlive their services, and the next service of that name has a revision of the same name.
#[test]
fn e2e_a_study_reads_the_working_set_of_its_own_snapshot_and_no_earlier_ones() {
    if skip("e2e_a_study_reads_the_working_set_of_its_own_snapshot_and_no_earlier_ones") {
        return;
    }
    let dir = Dir::new("pages-twice");
    let functions = functions(dir.path());
    let socket = dir.path().join("api.sock");
    let node = node(&dir, &format!("[serving.api]\nsocket = {socket:?}\n"));
    let paths = || -> Vec<String> {
        let listed = node.json(&["snapshot", "ls"]).expect("listed");
        let all = listed.as_array().expect("a list");
        all.iter().filter_map(|one| Some(one["path"].as_str()?.to_owned())).collect()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
    let deadline = Deadline::after(Duration::from_secs(60));
    let target = runtime.block_on(Target::connect(Door::Socket(socket), "default", deadline));
    let target = target.expect("it answers");
    let policy = "vhive.dev/snapshot-policy: reap\n        autoscaling.knative.dev/window";
    let (mut before, mut shadowed) = (Vec::new(), 0);
    for edition in 0..8 {
        let yaml = service("tiny-reap", &[&format!("EDITION={edition}")], "");
        apply(&node, &dir, &yaml.replace("autoscaling.knative.dev/window", policy));
        assert_eq!(
            runtime.block_on(target.working_set("tiny-reap", deadline)).expect("asked"),
            None
        );
        for start in ["boot", "record"] {
            assert_eq!(invoke(&node, "tiny-reap")["record"]["start"], start, "{edition}");
            node.ok(&["evict", "tiny-reap"]).expect("evicted");
        }
        let now = paths();
        let new: Vec<&String> = now.iter().filter(|path| !before.contains(*path)).collect();
        let [own] = new[..] else { panic!("one snapshot more: {now:?}") };
        shadowed += u32::from(now.first() != Some(own));
        let set = runtime.block_on(target.working_set("tiny-reap", deadline)).expect("asked");
        assert_eq!(set, Some(Path::new(own).join("working-set.1")), "{edition}");
        // It is there beside the next one, of a revision of the same name, until somebody removes it.
        node.ok(&["delete", "--keep-snapshots", "tiny-reap"]).expect("deleted");
        before = now;
    }
    assert!(shadowed > 0, "an earlier snapshot was listed before a later one");
    // What a study says of the working set that it has read: that of `sim` is not the pager's, and is named.
    for run in 0..2 {
        let out = dir.path().join(format!("result-{run}"));
        let (functions, to) = (functions.to_string_lossy(), out.to_string_lossy());
        let args = ["study", "pages", "--functions-dir", &functions, "--functions", "tiny"];
        let more = ["--kinds", "lazy,reap", "--repetitions", "1", "--keep-cache", "--out", &to];
        node.ok(&[&args[..], &more].concat()).expect("measured");
        assert!(
            paths().is_empty(),
            "a study's snapshots, and all of that name, go with its services"
        );
        let facts = fs::read_to_string(out.join("study.json")).expect("facts");
        let facts: Value = serde_json::from_str(&facts).expect("JSON");
        let notes = facts["notes"].to_string();
        assert!(notes.contains("/working-set.1"), "{notes}");
        assert!(!before.iter().any(|path| notes.contains(path.as_str())), "{before:?} in {notes}");
    }
}

#[test]
fn e2e_microvm_studies_tell_of_real_starts_and_compare_real_pages() {
    let test = "e2e_microvm_studies_tell_of_real_starts_and_compare_real_pages";
    let dir = Dir::new("microvm-study");
    let Some(node) = crate::microvm::node_with(test, &dir, "") else { return };
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    let functions = functions.to_string_lossy();
    let study = |name: &str, kinds: &[&str]| {
        let out = dir.path().join(name);
        let (kinds, to) = (kinds.join(","), out.to_string_lossy().into_owned());
        let args = ["study", name, "--functions-dir", &functions, "--functions", "hello"];
        let more = ["--kinds", &kinds, "--repetitions", "1", "--keep-cache", "--out", &to];
        node.ok(&[&args[..], &more].concat()).expect("measured");
        vhive_tests::results::check_starts(
            &out,
            &["hello"],
            &kinds.split(',').collect::<Vec<_>>(),
            1,
        )
        .expect("as asked for");
        out
    };
    study("cold-start", &["boot", "warm", "snapshot", "record"]);
    let out = study("pages", &["lazy", "reap"]);
    vhive_tests::results::check_pages(&out, "hello").expect("compared page by page");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

#[test]
fn e2e_microvm_sixty_four_requests_at_once_are_served_by_clones() {
    let test = "e2e_microvm_sixty_four_requests_at_once_are_served_by_clones";
    let dir = Dir::new("microvm-parallel");
    if let Some(lacks) = crate::microvm::missing(&dir) {
        eprintln!("SKIP {test}: {lacks}");
        return;
    }
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    // As many as are wanted, however much memory the host has: clones share most of it.
    let room = "[node]\nmax_memory = \"1000GiB\"\n";
    let node = TestNode::start(dir.path(), room).expect("the node starts");
    let out = dir.path().join("result");
    let (functions, to) = (functions.to_string_lossy(), out.to_string_lossy());
    let args = ["study", "parallel", "--functions-dir", &functions, "--functions", "hello"];
    let more = ["--kinds", "snapshot", "--repetitions", "1", "--max", "64", "--keep-cache"];
    node.ok(&[&args[..], &more, &["--out", &to]].concat()).expect("measured");
    let rows = rows(&out);
    assert_eq!(rows.len(), 127, "1, 2, 4 … 64");
    let of_64: Vec<&Value> = rows.iter().filter(|row| row["level"] == 64).collect();
    assert_eq!(of_64.len(), 64);
    for row in &of_64 {
        assert!(row["error"].is_null() && row["record"]["status"] == 200, "{row}");
        assert!(row["record"]["fallback"].is_null(), "{row}");
    }
    // Who is done early serves one that still waits: how many clones there are depends on how fast they start.
    let of_a_clone = |row: &&&Value| row["record"]["start"] == "snapshot";
    let served = of_64.iter().filter(of_a_clone).count();
    assert!(served > 1, "{served} of 64 are of clones");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

#[test]
fn the_instrument_reads_what_the_pager_writes() {
    let dir = Dir::new("working-set");
    let memory = dir.path().join("memory");
    let mut bytes = vec![0; 64 << 12];
    for page in [3, 4, 5, 20, 40] {
        bytes[page << 12] = 1;
    }
    fs::write(&memory, &bytes).expect("written");
    let memory = fs::File::open(&memory).expect("there");
    let mut trace = FaultTrace::below(64);
    for page in [20, 3, 4, 5, 40, 50, 51] {
        assert!(trace.record(page));
    }
    let digest = Digest::of(&bytes);
    let written = working_set::create(&trace, &memory, digest).expect("a working set");
    working_set::publish(dir.path(), &written).expect("published");
    let path = dir.path().join("working-set.1");
    let theirs = vhive_pager::WorkingSet::open(&path).expect("the pager reads it");
    let ours = vhive_study::working_set::WorkingSet::open(&path).expect("the instrument reads it");
    assert_eq!(ours.memory_pages, theirs.memory_pages);
    let plain = |first, pages, zero| (first, pages, zero);
    let theirs: Vec<_> =
        theirs.extents.iter().map(|e| plain(e.run.first, e.run.pages, e.is_zero)).collect();
    let read: Vec<_> = ours.extents.iter().map(|e| plain(e.first, e.pages, e.zero)).collect();
    assert_eq!(read, theirs);
    assert_eq!((ours.pages() >= 7, ours.zero_pages() >= 2), (true, true), "{ours:?}");

    let mut damaged = written;
    damaged[130] ^= 1;
    fs::write(&path, &damaged).expect("written");
    let error = vhive_study::working_set::WorkingSet::open(&path).expect_err("damaged");
    assert!(error.to_string().contains("checksum"), "{error}");
}

use std::fs;

use super::*;
use crate::trace::convert::Start;
use crate::trace::{Function, Source, azure2019};

const DURATIONS: &str = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,\
    percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,\
    percentile_Average_75,percentile_Average_99,percentile_Average_100";
const MEMORY: &str = "HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1,\
    AverageAllocatedMb_pct5,AverageAllocatedMb_pct25,AverageAllocatedMb_pct50,\
    AverageAllocatedMb_pct75,AverageAllocatedMb_pct95,AverageAllocatedMb_pct99,\
    AverageAllocatedMb_pct100";

/// The three files of a day, in the form of the published ones; `edit` may change a file.
fn publish(dir: &Path, day: u32, edit: impl Fn(&str, String) -> String) {
    let put = |name: &str, text: String| {
        fs::write(dir.join(format!("{name}.anon.d{day:02}.csv")), edit(name, text)).unwrap();
    };
    let minutes = |count: &dyn Fn(u64) -> u64| {
        (1..=1440).map(|minute| format!(",{}", count(minute))).collect::<String>()
    };
    let head: String = minutes(&|minute| minute);
    let lines = [
        // As many as the minute's number, in the two functions of application a.
        ("o,a,f1,http", minutes(&|minute| minute)),
        ("o,a,f2,queue", minutes(&|_| 1)),
        // Not in the window of the tests; the third function of the application.
        ("o,a,f3,timer", minutes(&|minute| u64::from(minute == 1))),
        ("o,b,f4,http", minutes(&|_| 2)),
        // Known by nothing else: by no runtimes, no memory, no time.
        ("o,b,f5,http", minutes(&|_| 1)),
        ("o,c,f6,http", minutes(&|_| 1)),
        ("o,b,f7,http", minutes(&|_| 1)),
        // Once more, and the same names of another owner.
        ("o,b,f4,timer", minutes(&|_| 9)),
        ("p,b,f4,http", minutes(&|_| 3)),
    ];
    let lines: String = lines.iter().map(|(who, counts)| format!("{who}{counts}\n")).collect();
    let text = format!("HashOwner,HashApp,HashFunction,Trigger{head}\n{lines}");
    put("invocations_per_function_md", text);
    put(
        "function_durations_percentiles",
        format!(
            "{DURATIONS}\no,a,f1,30,9,1,90,1,2,10,20,40,80,90\no,a,f2,3,9,,,1,1,2,3,4,8,9\n\
            o,a,f3,3,9,1,9,1,1,2,3,4,8,9\no,b,f4,4.5,9,1,9,1,1,2,4,4,8,9\n\
            o,c,f6,3,9,1,9,1,1,2,3,4,8,9\no,b,f7,0,9,0,0,0,0,0,0,0,0,0\n\
            p,b,f4,7,9,1,9,1,1,2,7,7,8,9\no,z,f9,3,9,1,9,1,1,2,3,4,8,9\n"
        ),
    );
    put(
        "app_memory_percentiles",
        format!(
            "{MEMORY}\no,a,60,240,200,210,220,240,260,280,300,320\n\
            o,b,60,120,100,110,120,130,140,150,160,170\np,b,6,12,10,11,12,13,14,15,16,17\n\
            o,y,6,12,10,11,12,13,14,15,16,17\n"
        ),
    );
}

fn convert(from: &Path, day: u32, part: (&str, u64), to: &Path) -> Result<Done, TraceError> {
    let start = part.0.parse::<Start>().unwrap().of_day(day)?;
    azure_day(from, Window::new(start, part.1)?, to)
}

type Done = (Converted, LeftOut);

fn told(function: &Function) -> (Vec<u32>, u64, u64, f64) {
    let Source::Counts { counts, stats } = &function.source else { panic!("counts") };
    (counts.clone(), stats.runtime.median(), stats.memory.median(), stats.mean_runtime_ms)
}

#[test]
fn a_published_day_becomes_a_trace_that_the_loader_reads() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(from.path(), 3, |_, text| text);
    let (done, left_out) = convert(from.path(), 3, ("00:10:00", 3), to.path()).unwrap();
    assert_eq!(
        left_out,
        LeftOut {
            idle: 1,
            no_runtimes: 1,
            no_memory: 1,
            no_time: 1,
            not_invoked: 1,
            repeated: 1,
            ..LeftOut::default()
        }
    );
    assert_eq!(left_out.notes().len(), 6, "{:?}", left_out.notes());
    let functions = azure2019::read(to.path(), 3).unwrap();
    let all: Vec<_> = functions.iter().map(told).collect();
    // Minute 600 of the day is column 601. Two of application a's three functions stay, and share 240.
    let wanted = [
        (vec![601, 602, 603], 20, 120, 30.0),
        (vec![1, 1, 1], 3, 120, 3.0),
        (vec![2, 2, 2], 4, 130, 4.5),
        (vec![3, 3, 3], 7, 13, 7.0),
    ];
    assert_eq!(all, wanted);
    let invocations = 601 + 602 + 603 + 3 + 6 + 9;
    assert_eq!((done.functions, done.invocations), (4, invocations));
    let mut names: Vec<_> =
        fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["durations.csv", "invocations.csv", "memory.csv"]);
}

#[test]
fn a_whole_day_is_converted_with_all_its_invocations() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(from.path(), 12, |_, text| text);
    let (done, left_out) = convert(from.path(), 12, ("00:00:00", 1440), to.path()).unwrap();
    assert_eq!((done.functions, left_out.idle), (5, 0));
    assert_eq!(done.invocations, 1440 * 1441 / 2 + 1440 + 1 + 2 * 1440 + 3 * 1440);
    let functions = azure2019::read(to.path(), 1440).unwrap();
    // The third of application a's functions is invoked in the first minute.
    assert_eq!(told(&functions[0]).2, 80);
    let sum: u64 = functions.iter().flat_map(|one| told(one).0).map(u64::from).sum();
    assert_eq!(sum, done.invocations);
}

#[test]
fn figures_that_cannot_be_leave_a_function_out_and_are_told_by_their_place() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(from.path(), 1, |name, text| match name {
        "function_durations_percentiles" => {
            text.replace("o,a,f2,3,9,,,1,1,2", "o,a,f2,3,9,,,1,4,2")
        }
        "app_memory_percentiles" => text.replace("o,b,60,120,100", "o,b,60,120,-100"),
        _ => text,
    });
    let (done, left_out) = convert(from.path(), 1, ("600", 1), to.path()).unwrap();
    assert_eq!((done.functions, left_out.unusable), (2, 2));
    let place =
        "app_memory_percentiles.anon.d01.csv:3: column 5 (\"averageallocatedmb_pct1\"): -100";
    let notes = left_out.notes().join("\n");
    assert!(notes.contains(place), "{notes}");
    // One function of the application is left, and has its memory alone.
    assert_eq!(told(&azure2019::read(to.path(), 1).unwrap()[0]).2, 240);
}

#[test]
fn mistakes_have_a_line_and_a_column_and_leave_no_trace() {
    for (file, from, to, said) in [
        (
            "invocations",
            "o,a,f2,queue,1",
            "o,a,f2,queue,x",
            "md.anon.d01.csv:3: column 5 (\"1\"): \"x\"",
        ),
        ("invocations", "o,a,f2,queue,1", "o,a,f2,queue,1.5", "md.anon.d01.csv:3: column 5"),
        ("invocations", "o,a,f2,queue,", "o,a,f2,", "md.anon.d01.csv:3: "),
        ("invocations", "HashOwner", "Owner", "no column \"HashOwner\""),
        ("invocations", ",1,2,", ",1,1,", "md.anon.d01.csv:1: column 6 (\"1\"): is column 5"),
        ("durations", "4.5", "", "percentiles.anon.d01.csv:5: column 4 (\"average\"): \"\""),
        ("durations", "HashFunction", "Hash", "no column \"HashFunction\""),
        ("memory", "o,b,60,120", "o,b,60,many", "percentiles.anon.d01.csv:3: column 4"),
        ("memory", "AverageAllocatedMb_pct5,", "pct5,", "no column \"AverageAllocatedMb_pct5\""),
    ] {
        let (published, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        publish(published.path(), 1, |name, text| {
            let edited = text.replace(from, to);
            if name.contains(file) { edited } else { text }
        });
        fs::write(out.path().join("invocations.csv"), "old").unwrap();
        let why = match convert(published.path(), 1, ("00:00:00", 2), out.path()) {
            Ok((done, _)) => format!("{done:?}"),
            Err(error) => error.to_string(),
        };
        assert!(why.contains(said), "{why} for {said}");
        let there: Vec<_> = fs::read_dir(out.path()).unwrap().flatten().collect();
        assert_eq!(there.len(), 1, "{there:?}");
        assert_eq!(fs::read_to_string(there[0].path()).unwrap(), "old");
    }
}

#[test]
fn a_day_of_which_nothing_is_left_is_refused_with_the_reasons() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(from.path(), 1, |name, text| match name {
        "app_memory_percentiles" => format!("{MEMORY}\n"),
        _ => text,
    });
    let why = convert(from.path(), 1, ("00:00:00", 1), to.path()).unwrap_err().to_string();
    assert!(
        why.contains("no function is left") && why.contains("not in the file of memory"),
        "{why}"
    );
}

#[test]
fn a_window_is_of_one_day_that_is_published() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(from.path(), 1, |_, text| text);
    let said = |day, part| convert(from.path(), day, part, to.path()).unwrap_err().to_string();
    let why = said(1, ("00:23:00", 61));
    assert!(why.contains("more than the day has"), "{why}");
    let why = said(13, ("00:00:00", 1));
    assert!(why.contains("d13.csv") && why.contains("days 1 to 12"), "{why}");
    let why = said(2, ("00:00:00", 1));
    assert!(why.contains("app_memory_percentiles.anon.d02.csv"), "{why}");
}

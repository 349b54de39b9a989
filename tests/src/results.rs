//! Whether a study's result holds what it should: of real starts, with real faults.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The rows of a result, as `vhive study` has written them.
///
/// # Errors
/// When there are none.
pub fn rows(dir: &Path) -> Result<Vec<Value>> {
    let path = dir.join("rows.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Every function has been started in every way so often, as the records say, and those that the pager serves
/// tell where their faults were.
///
/// # Errors
/// What is not so.
pub fn check_starts(
    dir: &Path,
    functions: &[&str],
    kinds: &[&str],
    repetitions: u32,
) -> Result<()> {
    let rows = rows(dir)?;
    for function in functions {
        for kind in kinds {
            let good = |row: &&Value| {
                row["function"] == *function
                    && row["kind"] == *kind
                    && row["record"]["start"] == *kind
                    && row["error"].is_null()
                    && row["record"]["status"] == 200
            };
            let good: Vec<&Value> = rows.iter().filter(good).collect();
            let enough = good.len() >= repetitions as usize;
            ensure!(enough, "{function} {kind}: {} good starts of {repetitions}", good.len());
            if ["lazy", "record", "reap"].contains(kind) {
                let faults: usize = good.iter().map(|row| faults(&row["record"])).sum();
                ensure!(faults > 0, "{function} {kind}: no fault has a time and a page");
            }
        }
    }
    Ok(())
}

/// Faults in a record's timeline.
fn faults(record: &Value) -> usize {
    let count = |which: &str| record["fault_timeline"][which].as_array().map_or(0, Vec::len);
    count("residual") + count("awaited")
}

/// `pages.csv` of a study of pages has a working set for the function, and another input was compared with it
/// page by page: some of its pages had been recorded.
///
/// # Errors
/// What is not so.
pub fn check_pages(dir: &Path, function: &str) -> Result<()> {
    let path = dir.join("pages.csv");
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let mut lines = text.lines();
    let headings: Vec<&str> = lines.next().unwrap_or_default().trim_end().split(',').collect();
    let row = lines.find(|line| line.starts_with(&format!("{function},")));
    let row = row.with_context(|| format!("no {function} in\n{text}"))?;
    let row: Vec<&str> = row.trim_end().split(',').collect();
    let cell = |name: &str| {
        let at = headings.iter().position(|heading| *heading == name);
        at.and_then(|at| row.get(at)).copied().with_context(|| format!("no {name} in\n{text}"))
    };
    let number = |name: &str| Ok::<f64, anyhow::Error>(cell(name)?.parse()?);
    for name in ["RecPages", "RecRegions", "RepPages", "Reused"] {
        ensure!(number(name)? > 0.0, "{function}: {name} is 0 in\n{text}");
    }
    let by = cell("compared_by")?;
    ensure!(by == "pages" || by == "sample", "{function} was compared by {by}");
    let (same, unique, needed) = (number("Reused")?, number("Unique")?, number("RepPages")?);
    ensure!((same + unique - needed).abs() <= 1.0, "{same} and {unique} are not {needed} pages");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(rows: &str, pages: &str) -> std::path::PathBuf {
        let name =
            format!("vhive-results-{}-{:?}", std::process::id(), std::thread::current().id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join("rows.jsonl"), rows).expect("written");
        fs::write(dir.join("pages.csv"), pages).expect("written");
        dir
    }

    #[test]
    fn what_a_result_lacks_is_told() {
        let row = |start: &str, faults: &str| {
            format!(
                r#"{{"function":"hello","kind":"reap","error":null,"record":{{"start":"{start}","status":200,"fault_timeline":{{"residual":[{faults}],"awaited":[]}}}}}}"#
            )
        };
        let head = "FuncName,RecPages,RecRegions,RepPages,StdDev,Reused,Unique,StdDev,compared_by";
        let pages = |line: &str| format!("{head}\r\n{line}\r\n");
        for (rows, csv, good) in [
            (row("reap", "[1,2]"), "hello,10,3,8,0,5,3,0,pages", (true, true)),
            (row("snapshot", "[1,2]"), "hello,0,3,8,0,5,3,0,pages", (false, false)),
            (row("reap", ""), "hello,10,3,8,0,5,3,0,counts", (false, false)),
            (row("reap", "[1,2]"), "hello,10,3,8,0,0,8,0,pages", (true, false)),
            (row("reap", "[1,2]"), "pyaes,10,3,8,0,5,3,0,pages", (true, false)),
            (row("reap", "[1,2]"), "hello,10,3,8,0,5,5,0,pages", (true, false)),
        ] {
            let dir = written(&rows, &pages(csv));
            let starts = check_starts(&dir, &["hello"], &["reap"], 1);
            let found = (starts.is_ok(), check_pages(&dir, "hello").is_ok());
            assert_eq!(found, good, "{rows} {csv} {starts:?}");
            assert!(check_starts(&dir, &["hello"], &["reap"], 2).is_err());
            fs::remove_dir_all(&dir).expect("removed");
        }
    }
}

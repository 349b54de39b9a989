//! Azure Functions 2019: a directory of `invocations.csv`, `durations.csv` and `memory.csv`.
//!
//! # Source
//! Shahrad et al., *Serverless in the Wild* (2020); invitro `pkg/trace/azure_trace_parser.go`.

use std::collections::HashMap;
use std::path::Path;

use super::draw::{MEMORY_QUANTILES, Percentiles, RUNTIME_QUANTILES, Stats};
use super::table::{Line, Table};
use super::{Function, Source, TraceError, name};

/// Columns of runtimes, one for each of [`RUNTIME_QUANTILES`].
pub(super) const RUNTIME_COLUMNS: [&str; 7] = [
    "percentile_Average_0",
    "percentile_Average_1",
    "percentile_Average_25",
    "percentile_Average_50",
    "percentile_Average_75",
    "percentile_Average_99",
    "percentile_Average_100",
];
/// Columns of memory, one for each of [`MEMORY_QUANTILES`].
pub(super) const MEMORY_COLUMNS: [&str; 8] = [
    "AverageAllocatedMb_pct1",
    "AverageAllocatedMb_pct5",
    "AverageAllocatedMb_pct25",
    "AverageAllocatedMb_pct50",
    "AverageAllocatedMb_pct75",
    "AverageAllocatedMb_pct95",
    "AverageAllocatedMb_pct99",
    "AverageAllocatedMb_pct100",
];

/// Reads the first `units` columns of every function.
///
/// # Errors
/// By file, line and column; also when a function has no durations or no memory.
pub fn read(dir: &Path, units: usize) -> Result<Vec<Function>, TraceError> {
    let mut functions = Vec::new();
    each(dir, units, |function| functions.push(function))?;
    Ok(functions)
}

/// Gives every function to `take`, such that no more than one line of invocations is in memory at a
/// time. What is known of durations and memory is in memory for all functions.
///
/// # Errors
/// As [`read`]'s; what comes before has been taken.
pub fn each(dir: &Path, units: usize, mut take: impl FnMut(Function)) -> Result<(), TraceError> {
    let runtimes = percentiles(
        &dir.join("durations.csv"),
        &RUNTIME_COLUMNS,
        RUNTIME_QUANTILES,
        Some("Average"),
    )?;
    let memories = percentiles(&dir.join("memory.csv"), &MEMORY_COLUMNS, MEMORY_QUANTILES, None)?;
    let path = dir.join("invocations.csv");
    let table = Table::open(&path)?;
    let hash = table.column("HashFunction")?;
    let whose = [table.column("HashOwner")?, table.column("HashApp")?].map(Some);
    // Behind the trigger, or in its place.
    let first = table.optional("Trigger").map_or(3, |column| column + 1);
    let there = table.width().saturating_sub(first);
    if there < units {
        let problem = format!("{units} columns of invocations are needed, {there} are there");
        return Err(TraceError::File { path, problem });
    }
    let mut index = 0;
    table.each(|line| {
        let key = line.text(hash);
        let counts: Result<Vec<u32>, _> =
            (first..first + units).map(|column| line.parse(column, "count")).collect();
        let missing = |file: &str| line.wrong(hash, &format!("{key:?} is not in {file}"));
        let one_of = |all: &Known, file: &str| match all.get(key).map(Vec::as_slice) {
            None | Some([]) => Err(missing(file)),
            Some([only]) => Ok(only.clone()),
            // The same function of several applications, or a name that two have.
            Some(several) => {
                let whose = owner(line, whose);
                let own = several.iter().find(|one| one.whose == whose);
                own.cloned().ok_or_else(|| {
                    let lines: Vec<String> =
                        several.iter().map(|one| one.line.to_string()).collect();
                    let lines = lines.join(" and ");
                    line.wrong(
                        hash,
                        &format!("{key:?} is in lines {lines} of {file}, of other owners"),
                    )
                })
            }
        };
        let runtime = one_of(&runtimes, "durations.csv")?;
        let memory = one_of(&memories, "memory.csv")?.drawn;
        let stats = Stats { runtime: runtime.drawn, memory, mean_runtime_ms: runtime.mean };
        let name = name(index, key);
        index += 1;
        take(Function { name, source: Source::Counts { counts: counts?, stats } });
        Ok(())
    })?;
    if index == 0 {
        let problem = "it has no function".to_owned();
        return Err(TraceError::File { path, problem });
    }
    Ok(())
}

/// What a line of durations or memory says.
#[derive(Clone)]
struct Entry {
    whose: String,
    line: u64,
    drawn: Percentiles,
    mean: f64,
}

/// That by the function's hash, which may be in several applications.
type Known = HashMap<String, Vec<Entry>>;

/// Owner and application of a line; nothing where the file does not tell them.
fn owner(line: &Line<'_>, columns: [Option<usize>; 2]) -> String {
    let text = |column: Option<usize>| column.map_or("", |column| line.text(column));
    columns.map(text).join(",")
}

/// Percentiles (and a mean) by the function's hash.
fn percentiles(
    path: &Path,
    names: &[&str],
    quantiles: &'static [f64],
    mean: Option<&str>,
) -> Result<Known, TraceError> {
    let table = Table::open(path)?;
    let hash = table.column("HashFunction")?;
    let columns: Result<Vec<usize>, _> = names.iter().map(|name| table.column(name)).collect();
    let columns = columns?;
    let mean = mean.map(|name| table.column(name)).transpose()?;
    let columns_of_owner = ["HashOwner", "HashApp"].map(|name| table.optional(name));
    let mut all = Known::new();
    table.each(|line| {
        let values: Result<Vec<f64>, _> =
            columns.iter().map(|column| line.amount(*column)).collect();
        let drawn = Percentiles::new(quantiles, &values?);
        let drawn = drawn.ok_or_else(|| line.wrong(columns[0], "the percentiles fall"))?;
        let mean = mean.map_or(Ok(0.0), |column| line.amount(column))?;
        let (whose, number) = (owner(line, columns_of_owner), line.number());
        let of_hash = all.entry(line.text(hash).to_owned()).or_default();
        if let Some(other) = of_hash.iter().find(|one| one.whose == whose) {
            let problem = format!("{:?} is in line {} as well", line.text(hash), other.line);
            return Err(line.wrong(hash, &problem));
        }
        of_hash.push(Entry { whose, line: number, drawn, mean });
        Ok(())
    })?;
    Ok(all)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A trace of two functions and three minutes; `edit` may spoil a file.
    pub(crate) fn write(dir: &Path, edit: impl Fn(&str, String) -> String) {
        let put = |file: &str, text: &str| {
            std::fs::write(dir.join(file), edit(file, text.to_owned())).unwrap();
        };
        put(
            "invocations.csv",
            "HashOwner,HashApp,HashFunction,Trigger,1,2,3\n\
            o,a,f0abc,http,5,0,2\no,a,f1DEF,queue,1,1,70\n",
        );
        put(
            "durations.csv",
            "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,\
            percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,\
            percentile_Average_75,percentile_Average_99,percentile_Average_100\n\
            o,a,f1DEF,30,9,1,90,1,2,10,20,40,80,90\no,a,f0abc,3,9,1,9,1,1,2,3,4,8,9\n",
        );
        put(
            "memory.csv",
            "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb,\
            AverageAllocatedMb_pct1,AverageAllocatedMb_pct5,AverageAllocatedMb_pct25,\
            AverageAllocatedMb_pct50,AverageAllocatedMb_pct75,AverageAllocatedMb_pct95,\
            AverageAllocatedMb_pct99,AverageAllocatedMb_pct100\n\
            o,a,f0abc,9,120,100,101,110,120,130,140,150,160\n\
            o,a,f1DEF,9,12,10,10,11,12,13,14,15,16\n",
        );
    }

    #[test]
    fn the_three_files_become_functions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), |_, text| text);
        let functions = read(dir.path(), 2).unwrap();
        assert_eq!(functions[0].name, "trace-func-0-f0abc");
        assert_eq!(functions[1].name, "trace-func-1-f1def");
        let Source::Counts { counts, stats } = &functions[1].source else { panic!("counts") };
        assert_eq!((&counts[..], stats.mean_runtime_ms), (&[1, 1][..], 30.0));
        assert_eq!((stats.runtime.median(), stats.memory.median()), (20, 12));
    }

    #[test]
    fn a_function_of_two_applications_has_the_figures_of_each() {
        let dir = tempfile::tempdir().unwrap();
        // Both are called the same, in applications a and b.
        let two = |text: String| text.replace("o,a,f1DEF", "o,b,f0abc");
        write(dir.path(), |_, text| two(text));
        let functions = read(dir.path(), 2).unwrap();
        let medians: Vec<_> = functions
            .iter()
            .map(|function| match &function.source {
                Source::Counts { stats, .. } => (stats.runtime.median(), stats.memory.median()),
                Source::Exact(_) => panic!("counts"),
            })
            .collect();
        assert_eq!(medians, [(3, 120), (20, 12)]);
        let other = |name: &str, text: String| match name {
            "invocations.csv" => two(text).replace("o,b,", "o,c,"),
            _ => two(text),
        };
        write(dir.path(), other);
        let error = read(dir.path(), 2).unwrap_err().to_string();
        assert!(error.contains("is in lines 2 and 3 of durations.csv"), "{error}");
    }

    #[test]
    fn mistakes_have_a_line_and_a_column() {
        let dir = tempfile::tempdir().unwrap();
        for (file, from, to, said) in [
            ("invocations.csv", "5,0,2", "5,x,2", "invocations.csv:2: column 6 (\"2\"): \"x\""),
            ("invocations.csv", "5,0,2", "5,-1,2", "invocations.csv:2: column 6"),
            ("invocations.csv", "5,0,2", "5,0", "invocations.csv:2: "),
            (
                "invocations.csv",
                "f1DEF",
                "other",
                "invocations.csv:3: column 3 (\"hashfunction\"): \"other\" is not in durations.csv",
            ),
            ("invocations.csv", "HashApp", "App", "no column \"HashApp\""),
            ("invocations.csv", "Trigger,1,2,3", "Trigger,1,2", "invocations.csv"),
            ("durations.csv", "1,2,10", "1,nan,10", "durations.csv:2: column 9"),
            (
                "durations.csv",
                "1,2,10",
                "9,2,10",
                "durations.csv:2: column 8 (\"percentile_average_0\"): the percentiles fall",
            ),
            ("memory.csv", "f1DEF", "f", "not in memory.csv"),
            (
                "memory.csv",
                "f1DEF",
                "f0abc",
                "memory.csv:3: column 3 (\"hashfunction\"): \"f0abc\" is in line 2 as well",
            ),
            (
                "durations.csv",
                "o,a,f1DEF",
                "p,b,f0abc",
                "invocations.csv:3: column 3 (\"hashfunction\"): \"f1DEF\" is not in durations.csv",
            ),
        ] {
            write(
                dir.path(),
                |name, text| if name == file { text.replace(from, to) } else { text },
            );
            let error = read(dir.path(), 3).unwrap_err().to_string();
            assert!(error.contains(said), "{error} for {said}");
        }
        write(dir.path(), |_, text| text.lines().next().map(|head| format!("{head}\n")).unwrap());
        assert!(read(dir.path(), 3).unwrap_err().to_string().contains("no function"));
        std::fs::remove_file(dir.path().join("memory.csv")).unwrap();
        assert!(matches!(read(dir.path(), 3), Err(TraceError::Read { .. })));
    }
}

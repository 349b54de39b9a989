//! Azure Functions 2021: one CSV file with the end and the duration of every invocation.
//!
//! # Source
//! Zhang et al., *Faster and Cheaper Serverless Computing on Harvested Resources* (2021); invitro
//! `pkg/trace/azure2021_trace_parser.go`.

use std::collections::HashMap;
use std::path::Path;

use super::table::Table;
use super::{Function, Invocation, Source, TraceError, name};
use crate::arrivals::whole_nanos;
use crate::call::Work;

/// The trace tells no memory; the original takes this.
const MEMORY_MIB: u32 = 200;

/// A trace, and what of it is not as it is written.
#[derive(Debug)]
pub struct Exact {
    /// The functions, in the order of their first line.
    pub functions: Vec<Function>,
    /// Invocations that are left out, for they begin before the trace does.
    pub before: u64,
    /// Invocations that are left out, for they end after the time that is read.
    pub after: u64,
    /// Invocations that were moved by some microseconds, for two of a function began together.
    pub moved: u64,
}

impl Exact {
    /// That for people, of which there may be nothing to tell.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let all = [
            (self.before, "invocations are left out: they begin before the trace"),
            (self.after, "invocations are left out: they end after the time that is read"),
            (
                self.moved,
                "invocations are some microseconds later: two of a function begin together",
            ),
        ];
        let told = all.iter().filter(|(count, _)| *count > 0);
        told.map(|(count, text)| format!("{count} {text}")).collect()
    }
}

/// Reads every invocation that begins and ends within `minutes`, and what is left out or moved. Functions are
/// in the order of their first line. `strict` refuses two invocations of one function in the
/// same microsecond, and one that begins before the trace, as the original does.
///
/// # Errors
/// By line and column.
pub fn read(path: &Path, minutes: u64, strict: bool) -> Result<Exact, TraceError> {
    let table = Table::open(path)?;
    let [app, func] = [table.column("app")?, table.column("func")?];
    let [end, duration] = [table.column("end_timestamp")?, table.column("duration")?];
    let mut index: HashMap<(String, String), usize> = HashMap::new();
    let mut found: Vec<(String, Vec<(u64, Invocation)>)> = Vec::new();
    let most = minutes as f64 * 60.0;
    let (mut before, mut after, mut moved) = (0, 0, 0);
    table.each(|line| {
        let (ended, lasted) = (line.amount(end)?, line.amount(duration)?);
        if ended > most {
            after += 1;
            return Ok(());
        }
        let begun = ended - lasted;
        if begun < 0.0 && !strict {
            before += 1;
            return Ok(());
        }
        if begun < 0.0 {
            let problem = format!("{lasted} s long, it would begin before the trace");
            return Err(line.wrong(duration, &problem));
        }
        let key = (line.text(app).to_owned(), line.text(func).to_owned());
        let count = found.len();
        let at = *index.entry(key).or_insert_with_key(|(app, func)| {
            let short = |text: &str| text.chars().take(5).collect::<String>();
            let hash = format!("{}{}", short(app), short(func));
            found.push((name(count, &hash), Vec::new()));
            count
        });
        let runtime_ms = u32::try_from((whole_nanos(lasted * 1e3)).max(1)).unwrap_or(u32::MAX);
        let work = Work { runtime_ms, memory_mib: MEMORY_MIB };
        // Whole microseconds, as the original counts.
        let at_ns = whole_nanos(begun * 1e6).saturating_mul(1000);
        found[at].1.push((line.number(), Invocation { at_ns, work }));
        Ok(())
    })?;
    let mut functions = Vec::new();
    for (name, mut invocations) in found {
        invocations.sort_by_key(|(line, invocation)| (invocation.at_ns, *line));
        let mut last: Option<(u64, u64)> = None;
        for (line, invocation) in &mut invocations {
            let together = last.filter(|(_, at_ns)| invocation.at_ns <= *at_ns);
            match together {
                Some((other, _)) if strict => {
                    let problem = format!("begins in the same microsecond as line {other}");
                    return Err(TraceError::Line { path: path.to_owned(), line: *line, problem });
                }
                Some((_, at_ns)) => {
                    invocation.at_ns = at_ns.saturating_add(1000);
                    moved += 1;
                }
                None => {}
            }
            last = Some((*line, invocation.at_ns));
        }
        let all = invocations.into_iter().map(|(_, invocation)| invocation).collect();
        functions.push(Function { name, source: Source::Exact(all) });
    }
    if functions.is_empty() {
        let problem = format!("no invocation ends within {minutes} minutes");
        return Err(TraceError::File { path: path.to_owned(), problem });
    }
    Ok(Exact { functions, before, after, moved })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(rows: &str) -> Result<Vec<Function>, TraceError> {
        Ok(read_with(rows, true)?.functions)
    }

    fn read_with(rows: &str, strict: bool) -> Result<Exact, TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.csv");
        std::fs::write(&path, format!("app,func,end_timestamp,duration\n{rows}")).unwrap();
        read(&path, 1, strict)
    }

    #[test]
    fn arrivals_are_exact_and_late_ones_are_left_out() {
        let functions =
            read_text("aa,f1,10.5,0.25\nbb,f2,3,0\naa,f1,2.0000015,1\naa,f1,61,2\n").unwrap();
        assert_eq!(functions.len(), 2);
        let Source::Exact(first) = &functions[0].source else { panic!("exact") };
        let times: Vec<u64> = first.iter().map(|invocation| invocation.at_ns).collect();
        assert_eq!(times, [1_000_002_000, 10_250_000_000]);
        assert_eq!(first[1].work, Work { runtime_ms: 250, memory_mib: 200 });
        let Source::Exact(second) = &functions[1].source else { panic!("exact") };
        assert_eq!(second[0].work.runtime_ms, 1, "nothing takes no time");
    }

    #[test]
    fn what_is_outside_or_together_is_left_out_or_moved_and_counted() {
        let rows = "a,f,5,9\na,f,5,1\na,f,5,1\nb,f,5,1\na,f,5,0.999999\na,f,500,1\na,f,501,1\n";
        let all = read_with(rows, false).unwrap();
        assert_eq!((all.before, all.after, all.moved), (1, 2, 2));
        let Source::Exact(first) = &all.functions[0].source else { panic!("exact") };
        let times: Vec<u64> = first.iter().map(|invocation| invocation.at_ns / 1000).collect();
        assert_eq!(times, [4_000_000, 4_000_001, 4_000_002], "the one behind has to move, too");
        assert_eq!(all.notes().len(), 3, "{:?}", all.notes());
        let whole = read_with("a,f,5,1\n", false).unwrap();
        assert_eq!((whole.before, whole.after, whole.moved, whole.notes().len()), (0, 0, 0, 0));
    }

    #[test]
    fn what_cannot_be_is_named_by_line() {
        for (rows, said) in [
            ("a,f,5,1\na,f,5,1\n", "trace.csv:3: begins in the same microsecond as line 2"),
            ("a,f,5,9\n", "trace.csv:2: column 4 (\"duration\"): 9 s long"),
            ("a,f,-5,9\n", "trace.csv:2: column 3"),
            ("a,f,5,x\n", "trace.csv:2: column 4"),
            ("a,f,5\n", "trace.csv:2: "),
            ("a,f,500,1\n", "no invocation ends within 1 minutes"),
        ] {
            let error = read_text(rows).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

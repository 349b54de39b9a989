//! Traces of single requests, as Azure's of 2021: `app,func,end_timestamp,duration`.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Converted, Window};
use crate::arrivals::whole_nanos;
use crate::output::field;
use crate::trace::TraceError;
use crate::trace::table::{Line, Table};
use crate::trace::whole::Whole;

/// IBM's timestamps begin at 4:59:59 of the first day.
///
/// # Source
/// invitro `sampler/preprocessIBM2026.py`.
const IBM_ZERO_S: f64 = 17_999.0;
/// The most invocations of a window: each is held in memory.
const MOST: usize = 100_000_000;

/// Invocations gathered so far.
#[derive(Debug, Default)]
struct Events {
    names: Vec<(String, String)>,
    index: HashMap<(String, String), usize>,
    /// End, begin (both in microseconds), function.
    all: Vec<(u64, u64, usize)>,
    /// By function and microsecond at which one of its invocations begins: from where on to look for
    /// a free one.
    begun: HashMap<(usize, u64), u64>,
    moved: u64,
}

impl Events {
    /// Adds an invocation of a function that begins `begin_us` into the window.
    fn add(
        &mut self,
        app: &str,
        func: &str,
        begin_us: u64,
        lasted_us: u64,
    ) -> Result<(), TraceError> {
        if self.all.len() == MOST {
            let text = format!("more than {MOST} invocations: choose a shorter window");
            return Err(TraceError::Absurd(text));
        }
        let key = (app.to_owned(), func.to_owned());
        let index = *self.index.entry(key).or_insert_with_key(|key| {
            self.names.push(key.clone());
            self.names.len() - 1
        });
        // The timestamps are rounded; two that fall together would be one.
        let begin_us = self.place(index, begin_us);
        let end_us = begin_us.checked_add(lasted_us).ok_or_else(|| {
            TraceError::Absurd(format!("an invocation of {func} lasts {lasted_us} microseconds"))
        })?;
        self.all.push((end_us, begin_us, index));
        Ok(())
    }

    /// The first free microsecond of a function from this one on, which is taken then. Those that were
    /// passed on the way lead there at once from now on.
    fn place(&mut self, index: usize, wanted: u64) -> u64 {
        let (mut at, mut passed) = (wanted, Vec::new());
        while let Some(next) = self.begun.get(&(index, at)) {
            passed.push(at);
            at = *next;
        }
        for from in passed {
            self.begun.insert((index, from), at + 1);
        }
        self.begun.insert((index, at), at + 1);
        self.moved += u64::from(at != wanted);
        at
    }

    fn write(mut self, from: &Path, to: &Path) -> Result<Converted, TraceError> {
        if self.all.is_empty() {
            let problem = "no invocation begins in the window".to_owned();
            return Err(TraceError::File { path: from.to_owned(), problem });
        }
        self.all.sort_unstable();
        let failed = |source| TraceError::Write { path: to.to_owned(), source };
        let mut out = Whole::begin(to).map_err(failed)?;
        let mut put = || {
            writeln!(out, "app,func,end_timestamp,duration")?;
            for (end, begin, index) in &self.all {
                let (app, func) = &self.names[*index];
                let seconds = |us: u64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
                let (app, func) = (field(app), field(func));
                writeln!(out, "{app},{func},{},{}", seconds(*end), seconds(end - begin))?;
            }
            Ok(())
        };
        put().and_then(|()| out.done()).map_err(failed)?;
        Ok(Converted {
            functions: self.names.len(),
            invocations: self.all.len() as u64,
            left_out: 0,
            moved: self.moved,
        })
    }
}

/// Microseconds into the window, of a moment in it.
fn within(window: Window, at_s: f64) -> Option<u64> {
    let (from, to) = (window.start_s as f64, window.end_s() as f64);
    (from..to).contains(&at_s).then(|| micros(at_s - from))
}

fn micros(seconds: f64) -> u64 {
    whole_nanos(seconds * 1e6)
}

/// Converts Huawei's request tables of 2025. A function is `funcName---userID---poolName`, as in the
/// published time series; an invocation ends at `time_worker` and lasts `totalCost_worker`.
///
/// # Errors
/// By file, line and column; when nothing begins in the window; when the file cannot be written.
pub fn huawei_requests(
    files: &[PathBuf],
    window: Window,
    to: &Path,
) -> Result<Converted, TraceError> {
    let mut events = Events::default();
    for path in files {
        let table = Table::open(path)?;
        let [time, cost] = [table.column("time_worker")?, table.column("totalCost_worker")?];
        let [func, user] = [table.column("funcName")?, table.column("userID")?];
        let pod = table.column("podID")?;
        table.each(|line| {
            let (ended, lasted) = (line.amount(time)?, line.amount(cost)?);
            let Some(begin_us) = within(window, ended - lasted) else { return Ok(()) };
            let [func, user] = [named(line, func)?, named(line, user)?];
            let pool = named(line, pod)?;
            let pool = pool.rsplit_once('-').map_or(pool, |(pool, _)| pool);
            events.add(user, &format!("{func}---{user}---{pool}"), begin_us, micros(lasted))
        })?;
    }
    events.write(files.first().map_or(Path::new(""), PathBuf::as_path), to)
}

/// Converts IBM's weekly traffic, written as CSV from the published pickles: a line per application,
/// `InvocationTimes` (seconds) and `AppExecTimes` (milliseconds) as lists.
///
/// # Errors
/// As [`huawei_requests`]; also when the two lists are not of the same length.
pub fn ibm(files: &[PathBuf], window: Window, to: &Path) -> Result<Converted, TraceError> {
    let mut events = Events::default();
    for path in files {
        let table = Table::open(path)?;
        let [space, app] = [table.column("NamespaceHash")?, table.column("AppHash")?];
        let [times, took] = [table.column("InvocationTimes")?, table.column("AppExecTimes")?];
        table.each(|line| {
            let (begins, lasts) = (list(line, times)?, list(line, took)?);
            if begins.len() != lasts.len() {
                let problem =
                    format!("{} values, but {} invocation times", lasts.len(), begins.len());
                return Err(line.wrong(took, &problem));
            }
            let (space, app) = (named(line, space)?, named(line, app)?);
            for (begin, lasted_ms) in begins.iter().zip(&lasts) {
                if let Some(begin_us) = within(window, begin - IBM_ZERO_S) {
                    events.add(space, app, begin_us, micros(lasted_ms / 1e3))?;
                }
            }
            Ok(())
        })?;
    }
    events.write(files.first().map_or(Path::new(""), PathBuf::as_path), to)
}

fn named<'a>(line: &'a Line<'_>, column: usize) -> Result<&'a str, TraceError> {
    match line.text(column) {
        "" => Err(line.wrong(column, "is empty")),
        text => Ok(text),
    }
}

/// `[1.0, 2.5]`, as pandas writes a list.
fn list(line: &Line<'_>, column: usize) -> Result<Vec<f64>, TraceError> {
    let text = line.text(column);
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let inner = inner.ok_or_else(|| line.wrong(column, "is no list [a, b, …]"))?.trim();
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    let value = |(at, text): (usize, &str)| {
        let value: Option<f64> =
            text.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0);
        value.ok_or_else(|| {
            let problem =
                format!("value {} of the list, {:?}, is no number from 0 on", at + 1, text.trim());
            line.wrong(column, &problem)
        })
    };
    inner.split(',').enumerate().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::azure2021;
    use crate::trace::{Function, Source};

    fn window(start_s: u64, minutes: u64) -> Window {
        Window { start_s, minutes }
    }

    type Convert = fn(&[PathBuf], Window, &Path) -> Result<Converted, TraceError>;

    fn run(
        convert: Convert,
        text: &str,
        window: Window,
    ) -> Result<(Converted, Vec<Function>), TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("requests.csv"), dir.path().join("trace.csv"));
        std::fs::write(&from, text).unwrap();
        let done = convert(&[from], window, &to)?;
        Ok((done, azure2021::read(&to, window.minutes, true)?.functions))
    }

    fn begins(function: &Function) -> Vec<u64> {
        let Source::Exact(all) = &function.source else { panic!("exact") };
        all.iter().map(|one| one.at_ns / 1000).collect()
    }

    const HUAWEI: &str =
        "time_worker,time_frontend,requestID,clusterName,funcName,podID,userID,totalCost_worker\n";

    #[test]
    fn huaweis_requests_become_exact_arrivals() {
        let rows = "120.5,120.6,a,1,296,pool22-300-128-0000618412,224,0.25\n\
            120.5,120.6,b,1,296,pool22-300-128-0000000007,224,0.25\n\
            130,130,c,1,296,pool24-600-512-0000000001,224,0.001\n\
            10,10,d,1,296,pool22-300-128-0000000007,224,0.25\n\
            500,500,e,1,296,pool22-300-128-0000000007,224,0.25\n";
        let (done, functions) =
            run(huawei_requests, &format!("{HUAWEI}{rows}"), window(60, 2)).unwrap();
        assert_eq!((done.functions, done.invocations, done.moved), (2, 3, 1));
        assert_eq!(begins(&functions[0]), [60_250_000, 60_250_001], "two at once are two");
        assert_eq!(begins(&functions[1]), [69_999_000]);
        for (row, said) in [
            ("x,1,a,1,f,p-1,u,1\n", "requests.csv:2: column 1"),
            ("9,1,a,1,f,p-1,u,-1\n", "requests.csv:2: column 8"),
            ("99,1,a,1,f,p-1,,1\n", "requests.csv:2: column 7 (\"userid\"): is empty"),
            ("99,1,a\n", "requests.csv:2"),
            ("9,1,a,1,f,p-1,u,1\n", "no invocation begins in the window"),
        ] {
            let error = run(huawei_requests, &format!("{HUAWEI}{row}"), window(60, 2)).unwrap_err();
            assert!(error.to_string().contains(said), "{error} for {said}");
        }
    }

    #[test]
    fn ibms_lists_become_exact_arrivals() {
        const HEAD: &str = "NamespaceHash,AppHash,InvocationTimes,AppExecTimes\n";
        let rows =
            "n,a,\"[17999, 18000.5, 18100]\",\"[3, 5, 7]\"\nn,b,[],[]\nm,b,[18010],\"[4000]\"\n";
        let (done, functions) = run(ibm, &format!("{HEAD}{rows}"), window(0, 1)).unwrap();
        assert_eq!((done.functions, done.invocations), (2, 3));
        assert_eq!(
            (begins(&functions[0]), begins(&functions[1])),
            (vec![0, 1_500_000], vec![11_000_000])
        );
        for (row, said) in [
            (
                "n,a,\"[1, x]\",\"[1, 2]\"\n",
                "requests.csv:2: column 3 (\"invocationtimes\"): value 2 of the list",
            ),
            ("n,a,\"[1, 2]\",[1]\n", "column 4 (\"appexectimes\"): 1 values, but 2"),
            ("n,a,[1],[-1]\n", "column 4"),
            ("n,a,1,[1]\n", "is no list"),
            ("n,a,[1],[1]\n", "no invocation"),
        ] {
            let error = run(ibm, &format!("{HEAD}{row}"), window(0, 1)).unwrap_err();
            assert!(error.to_string().contains(said), "{error} for {said}");
        }
    }
}

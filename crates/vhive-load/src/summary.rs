//! What a run's rows come to: HDR histograms of times, counts of outcomes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::engine::Ran;
use crate::row::{Outcome, Row};
use crate::wire::GENERATOR;

/// A send later than this is counted as late.
const LATE_NS: u64 = 1_000_000;
/// Functions whose work is further off than this in the median, in per cent, are another load than the
/// one asked for.
pub const FAR_OFF: f64 = 10.0;
/// Kinds of errors that are told apart; the rest is counted together.
const ERRORS: usize = 20;

/// Times of one kind: three digits, up to an hour.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        let made = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        Self(made.expect("the bounds are constant and fit"))
    }
}

impl Times {
    /// Adds a time in nanoseconds; above an hour counts as an hour.
    pub fn add(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The `q`-quantile (0 to 1), in microseconds; absent without times.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        (self.count() > 0).then(|| self.0.value_at_quantile(q) as f64 / 1e3)
    }

    /// Count, mean and quantiles.
    #[must_use]
    pub fn figures(&self) -> Option<Figures> {
        let quantile = |q| self.quantile_us(q);
        Some(Figures {
            count: self.count(),
            mean_us: quantile(0.5).map(|_| self.0.mean() / 1e3)?,
            min_us: self.0.min() as f64 / 1e3,
            p50_us: quantile(0.5)?,
            p90_us: quantile(0.9)?,
            p99_us: quantile(0.99)?,
            p999_us: quantile(0.999)?,
            max_us: self.0.max() as f64 / 1e3,
        })
    }
}

/// A histogram's figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Figures {
    pub count: u64,
    pub mean_us: f64,
    pub min_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// How far the work of functions was from what was asked for, whichever way, in per cent of CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Drift {
    pub count: u64,
    pub p50_percent: f64,
    pub p99_percent: f64,
}

/// Adds up rows as they come.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    /// From send to reply, by outcome; `Ok` are the latencies.
    latency: BTreeMap<&'static str, Times>,
    /// From the intended send to the reply, of successes.
    total: Times,
    /// Sends over connections that were there.
    late: Times,
    over_late: u64,
    connect: Times,
    function: Times,
    /// In thousandths of a per cent, whichever way.
    drift: Times,
    errors: BTreeMap<Box<str>, u64>,
    /// Requests that this host had no means to send.
    own_failures: u64,
    /// Requests that were never sent, for want of a connection.
    never_sent: u64,
    last_done_ns: u64,
}

impl Tally {
    /// Adds a row.
    pub fn add(&mut self, row: &Row) {
        let outcome = row.outcome.as_str();
        *self.counts.entry(outcome).or_default() += 1;
        if row.sent {
            self.latency.entry(outcome).or_default().add(row.latency_ns());
        }
        if row.outcome == Outcome::Ok {
            self.total.add(row.total_ns());
        }
        match row.connect_ns {
            Some(ns) => self.connect.add(ns),
            // What was never sent was not late, but not at all.
            None if row.sent => self.late.add(row.late_ns()),
            None => {}
        }
        self.never_sent += u64::from(!row.sent);
        self.over_late += u64::from(row.sent && row.late_ns() > LATE_NS);
        if let Some(us) = row.function_us {
            self.function.add(us.saturating_mul(1000));
        }
        if let Some(percent) = row.function_drift_percent {
            self.drift.add(crate::arrivals::whole_nanos(percent.abs() * 1e3));
        }
        if let Some(error) = &row.error {
            self.own_failures += u64::from(error.starts_with(GENERATOR));
            let known = self.errors.contains_key(error) || self.errors.len() < ERRORS;
            let name = if known { error.clone() } else { "others".into() };
            *self.errors.entry(name).or_default() += 1;
        }
        self.last_done_ns = self.last_done_ns.max(row.done_ns);
    }

    /// Rows with this outcome.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts.get(outcome.as_str()).copied().unwrap_or_default()
    }

    /// Times of the rows with this outcome.
    #[must_use]
    pub fn latency(&self, outcome: Outcome) -> Option<&Times> {
        self.latency.get(outcome.as_str())
    }

    /// Lateness of sends over connections that were there.
    #[must_use]
    pub const fn late(&self) -> &Times {
        &self.late
    }

    /// From the intended send to the reply, of successes.
    #[must_use]
    pub const fn from_intended(&self) -> &Times {
        &self.total
    }

    /// Requests that the generator had no means to send: no file, no port.
    #[must_use]
    pub const fn own_failures(&self) -> u64 {
        self.own_failures
    }

    /// One of the errors.
    #[must_use]
    pub fn first_error(&self) -> Option<&str> {
        self.errors.keys().next().map(AsRef::as_ref)
    }

    /// Successes, divided by the time from the beginning to the last: the `X` in
    /// the original's `rps<X>_lat.csv`.
    #[must_use]
    pub fn completed_per_second(&self) -> f64 {
        let seconds = self.last_done_ns as f64 / 1e9;
        if seconds > 0.0 { self.count(Outcome::Ok) as f64 / seconds } else { 0.0 }
    }

    /// All of it, with what the run says.
    #[must_use]
    pub fn summary(&self, ran: &Ran) -> Summary {
        let seconds = ran.sending_ns as f64 / 1e9;
        let mut ahead = Times::default();
        ran.opened.ahead_ns.iter().for_each(|ns| ahead.add(*ns));
        Summary {
            planned: (ran.sent + ran.unsent + ran.unfollowed).saturating_sub(ran.retries),
            sent: ran.sent,
            retries: ran.retries,
            unsent: ran.unsent,
            unfollowed: ran.unfollowed,
            outcomes: Outcome::ALL.map(|o| (o.as_str(), self.count(o))).into_iter().collect(),
            sending_seconds: seconds,
            sent_per_second: if seconds > 0.0 { ran.sent as f64 / seconds } else { 0.0 },
            completed_per_second: self.completed_per_second(),
            latency: self.latency(Outcome::Ok).and_then(Times::figures),
            latency_from_intended: self.total.figures(),
            latency_of_errors: self.latency(Outcome::Error).and_then(Times::figures),
            lateness: self.late.figures(),
            over_1ms_late: self.over_late,
            connect_ahead: ahead.figures(),
            connect_for_a_request: self.connect.figures(),
            function: self.function.figures(),
            function_drift: self.drift.figures().map(|figures| Drift {
                count: figures.count,
                p50_percent: figures.p50_us,
                p99_percent: figures.p99_us,
            }),
            starts: BTreeMap::new(),
            starts_unknown: 0,
            records_missed: 0,
            own_failures: self.own_failures,
            never_sent: self.never_sent,
            errors: self.errors.iter().map(|(name, n)| (name.to_string(), *n)).collect(),
            not_opened_ahead: ran.opened.failed.clone(),
            rows_lost: 0,
        }
    }
}

/// A run in figures; written to `summary.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Requests of the schedule, with the steps of its workflows.
    pub planned: u64,
    /// Those that were sent, or tried to, and `retries` of them.
    pub sent: u64,
    /// Steps of workflows that were sent once more because they had failed.
    pub retries: u64,
    /// Those that were not, because the run was stopped.
    pub unsent: u64,
    /// Steps of workflows that were not sent because one before them failed.
    pub unfollowed: u64,
    /// Rows by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// From the beginning to the last send.
    pub sending_seconds: f64,
    /// Sent, divided by that.
    pub sent_per_second: f64,
    /// Successes, divided by the time to the last reply.
    pub completed_per_second: f64,
    /// From send to reply, of successes.
    pub latency: Option<Figures>,
    /// From the intended send to the reply, of successes.
    pub latency_from_intended: Option<Figures>,
    /// From send to reply, of errors.
    pub latency_of_errors: Option<Figures>,
    /// From the intended to the actual send, over connections that were there.
    pub lateness: Option<Figures>,
    /// Sends more than 1 ms late, those that had to connect first among them.
    pub over_1ms_late: u64,
    /// Setting up connections before the run.
    pub connect_ahead: Option<Figures>,
    /// … for a request that found none free.
    pub connect_for_a_request: Option<Figures>,
    /// What functions say they took.
    pub function: Option<Figures>,
    /// How far off they say that their work was from what was asked for.
    pub function_drift: Option<Drift>,
    /// Latency by how the instance was started, where that is known.
    pub starts: BTreeMap<String, Figures>,
    /// Replies of which it was asked how the instance was started, and is not known: the node had
    /// forgotten, or keeps no record of such requests.
    pub starts_unknown: u64,
    /// How often the node was asked for its records in vain.
    pub records_missed: u64,
    /// Errors that are the generator's own: this host had no file or port left for a connection.
    pub own_failures: u64,
    /// Requests among them, and among time-outs and the unfinished, that found no connection and were never
    /// sent: in no latency and no lateness.
    pub never_sent: u64,
    /// Errors by their text.
    pub errors: BTreeMap<String, u64>,
    /// Connections that could not be made ahead, and why.
    pub not_opened_ahead: Vec<String>,
    /// Rows that could not be written, of the file that lacks most.
    pub rows_lost: u64,
}

impl Summary {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let counts: Vec<String> =
            self.outcomes.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let unsent =
            if self.unsent > 0 { format!(", {} not sent", self.unsent) } else { String::new() };
        put(
            &mut out,
            format_args!(
                "requests   {} planned, {} sent{unsent}: {}",
                self.planned,
                self.sent,
                counts.join(", ")
            ),
        );
        put(
            &mut out,
            format_args!(
                "rate       {:.2}/s sent over {:.2} s, {:.2}/s completed",
                self.sent_per_second, self.sending_seconds, self.completed_per_second
            ),
        );
        put(
            &mut out,
            format_args!(
                "{:<26} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                "", "COUNT", "P50", "P90", "P99", "P99.9", "MAX"
            ),
        );
        let lines = [
            ("latency", &self.latency),
            ("  from the intended send", &self.latency_from_intended),
            ("  of errors", &self.latency_of_errors),
            ("send lateness", &self.lateness),
            ("connecting ahead", &self.connect_ahead),
            ("connecting for a request", &self.connect_for_a_request),
            ("function's own time", &self.function),
        ];
        for (name, figures) in lines {
            if let Some(figures) = figures {
                line(&mut out, name, figures);
            }
        }
        for (kind, figures) in &self.starts {
            line(&mut out, &format!("  start: {kind}"), figures);
        }
        if let Some(Drift { p50_percent, p99_percent, .. }) = self.function_drift {
            put(
                &mut out,
                format_args!(
                    "drift      {p50_percent:.1} % at the median, {p99_percent:.1} % p99, of the functions' work"
                ),
            );
            if p50_percent > FAR_OFF {
                let text = "the functions' work is not what was asked for: let them calibrate themselves again";
                put(&mut out, format_args!("warning    {text}"));
            }
        }
        if self.over_1ms_late > 0 {
            put(
                &mut out,
                format_args!("late       {} sends more than 1 ms late", self.over_1ms_late),
            );
        }
        if self.unfollowed > 0 || self.retries > 0 {
            let text = "steps not sent, because one before them failed";
            let (left, again) = (self.unfollowed, self.retries);
            put(&mut out, format_args!("workflows  {left} {text}, {again} sent once more"));
        }
        for (error, count) in &self.errors {
            put(&mut out, format_args!("error      {count} × {error}"));
        }
        if self.never_sent > 0 {
            let text = "requests found no connection, and were never sent";
            put(&mut out, format_args!("warning    {} {text}", self.never_sent));
        }
        if self.own_failures > 0 {
            let text = "errors are the generator's own: this host had no means to send them";
            put(&mut out, format_args!("warning    {} {text}", self.own_failures));
        }
        for why in &self.not_opened_ahead {
            put(&mut out, format_args!("warning    {why}"));
        }
        if self.starts_unknown > 0 {
            let text = "replies, the start of whose instance the node did not tell";
            put(&mut out, format_args!("warning    {} {text}", self.starts_unknown));
        }
        if self.records_missed > 0 {
            let text = "times the node did not tell its records";
            put(&mut out, format_args!("warning    {} {text}", self.records_missed));
        }
        if self.rows_lost > 0 {
            put(&mut out, format_args!("warning    {} rows could not be written", self.rows_lost));
        }
        out
    }
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}

fn line(out: &mut String, name: &str, figures: &Figures) {
    let Figures { count, p50_us, p90_us, p99_us, p999_us, max_us, .. } = *figures;
    let [a, b, c, d, e] = [p50_us, p90_us, p99_us, p999_us, max_us].map(span);
    put(out, format_args!("{name:<26} {count:>9} {a:>9} {b:>9} {c:>9} {d:>9} {e:>9}"));
}

fn span(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.1}us"),
        us if us < 1e6 => format!("{:.2}ms", us / 1e3),
        us => format!("{:.2}s", us / 1e6),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(number: u64, outcome: Outcome) -> Row {
        Row {
            number,
            target: 0,
            intended_ns: number * 1000,
            sent_ns: number * 1000 + 10,
            sent: true,
            connect_ns: None,
            first_byte_ns: Some(number * 1000 + 500),
            done_ns: number * 1000 + 600,
            outcome,
            status: Some(200),
            grpc_status: None,
            error: (outcome == Outcome::Error).then(|| "status 503".into()),
            id: Some("an,id\"".into()),
            body_bytes: 3,
            work: None,
            nth: 0,
            flow_ns: None,
            function_us: Some(number),
            function_memory_kib: None,
            function_drift_percent: None,
        }
    }

    #[test]
    fn outcomes_are_counted_and_timed_apart() {
        let mut tally = Tally::default();
        for (number, outcome) in [Outcome::Ok, Outcome::Ok, Outcome::Error].into_iter().enumerate()
        {
            tally.add(&row(number as u64, outcome));
        }
        let mut slow = row(9, Outcome::Timeout);
        (slow.sent_ns, slow.done_ns, slow.connect_ns) = (5_000_000, 900_000_000, Some(4_000_000));
        tally.add(&slow);
        assert_eq!(Outcome::ALL.map(|outcome| tally.count(outcome)), [2, 1, 1, 0]);
        let ok = tally.latency(Outcome::Ok).and_then(Times::figures).unwrap();
        assert_eq!((ok.count, ok.max_us), (2, 0.59));
        assert_eq!((tally.late().count(), tally.over_late), (3, 1), "who connects is apart");
        assert_eq!(tally.completed_per_second(), 2.0 / 0.9);
    }

    #[test]
    fn drift_counts_whichever_way_and_far_off_is_warned_of() {
        let text = |drifts: [f64; 3]| {
            let mut tally = Tally::default();
            for (number, drift) in (0..).zip(drifts) {
                let mut row = row(number, Outcome::Ok);
                row.function_drift_percent = Some(drift);
                tally.add(&row);
            }
            let (clock, opened) = (crate::Clock::start(), crate::Opened::default());
            let (unsent, retries, unfollowed) = (0, 0, 0);
            let (sending_ns, whole_ns, sent) = (1, 1, 3);
            let ran =
                Ran { clock, sent, retries, unsent, unfollowed, sending_ns, whole_ns, opened };
            let summary = tally.summary(&ran);
            let drift = summary.function_drift.unwrap();
            assert_eq!(drift.count, 3);
            ((drift.p50_percent * 10.0).round(), summary.text())
        };
        let (median, told) = text([-1.5, 0.5, 80.0]);
        assert!((median - 15.0).abs() < 1e-9 && !told.contains("asked for"), "{median} {told}");
        assert!(told.contains("drift      1.5 % at the median, 80"), "{told}");
        let (median, told) = text([-25.0, -20.0, -30.0]);
        assert!((median - 250.0).abs() < 1e-9 && told.contains("not what was asked for"), "{told}");
    }

    #[test]
    fn what_was_never_sent_has_no_time() {
        let mut tally = Tally::default();
        let mut never = row(1, Outcome::Error);
        (never.sent, never.sent_ns, never.done_ns) = (false, 30_000_000_000, 30_000_000_000);
        tally.add(&never);
        tally.add(&row(2, Outcome::Error));
        assert_eq!((tally.count(Outcome::Error), tally.never_sent), (2, 1));
        assert_eq!(tally.latency(Outcome::Error).map(Times::count), Some(1));
        assert_eq!((tally.late().count(), tally.over_late), (1, 0));
    }

    #[test]
    fn nothing_has_no_figures() {
        assert_eq!(Times::default().figures(), None);
        assert_eq!(Tally::default().completed_per_second(), 0.0);
    }
}

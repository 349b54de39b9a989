//! The knee: the highest rate whose p99 stays within a factor of the unloaded one.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde::Serialize;

use crate::arrivals::{Arrivals, ScheduleError, at_rate};
use crate::clock::nanos;
use crate::engine::{Load, Ran, RunError, closed_loop, open_loop, resolved};
use crate::row::{Outcome, Row, Shot};
use crate::steps::StepRows;
use crate::stop::Stop;
use crate::summary::Tally;

/// Share of requests that may fail at a rate that counts as sustained.
const MOST_FAILED: f64 = 0.001;
/// Lateness of the generator's own sends, p99, above which a rate says nothing of the function.
const MOST_LATE_US: f64 = 1000.0;

/// A p99 of fewer is but the longest.
pub const FEW: u64 = 100;
/// Something is sent so many times as long as asked for, at most, for want of replies.
const LONGER: u32 = 20;
/// Between two requests of a warm-up.
const WARM_UP_GAP: Duration = Duration::from_millis(50);

/// Which rates are tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    next: Option<f64>,
    good: Option<f64>,
    bad: Option<f64>,
    most: f64,
    precision: f64,
}

impl Search {
    /// Doubles from `from` until a rate fails or `most` holds; then halves the interval until it
    /// is narrower than `precision` (a share of the rate).
    #[must_use]
    pub fn new(from: f64, most: f64, precision: f64) -> Self {
        let precision = precision.max(0.001);
        Self { next: Some(from.min(most)), good: None, bad: None, most, precision }
    }

    /// The rate to try next; none when the knee is known.
    #[must_use]
    pub const fn next(&self) -> Option<f64> {
        self.next
    }

    /// The highest rate that held, if one did.
    #[must_use]
    pub const fn knee(&self) -> Option<f64> {
        self.good
    }

    /// Takes in how the rate [`Search::next`] went.
    pub fn tell(&mut self, held: bool) {
        let Some(rate) = self.next.take() else { return };
        *(if held { &mut self.good } else { &mut self.bad }) = Some(rate);
        self.next = match (self.good, self.bad) {
            (Some(good), None) => (good < self.most).then_some((good * 2.0).min(self.most)),
            (Some(good), Some(bad)) => {
                (bad - good > good * self.precision).then_some((good + bad) / 2.0)
            }
            // Nothing held yet: try less, but not for ever.
            (None, Some(bad)) => (bad > self.most / 1e6).then_some(bad / 2.0),
            (None, None) => None,
        };
    }
}

/// Why a rate did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It did.
    Held,
    /// The p99 is above the factor.
    TooSlow,
    /// Requests failed.
    Failed,
    /// The generator was late itself.
    GeneratorLate,
    /// It had no file or port left for a connection.
    GeneratorFailed,
}

impl Verdict {
    /// Whether it says nothing of the function.
    const fn is_generators(self) -> bool {
        matches!(self, Self::GeneratorLate | Self::GeneratorFailed)
    }
}

/// How one rate went.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Requests per second.
    pub rate: f64,
    /// Requests sent.
    pub sent: u64,
    /// Of those, without success.
    pub failed: u64,
    /// Median of the successes, in µs, from the intended send.
    pub p50_us: Option<f64>,
    /// 99th percentile likewise.
    pub p99_us: Option<f64>,
    /// 99th percentile of the sends' lateness, in µs.
    pub late_p99_us: Option<f64>,
    /// What that means.
    pub verdict: Verdict,
}

/// A sweep's result.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// p99 of one client, in µs.
    pub unloaded_p99_us: f64,
    /// Of so many replies.
    pub unloaded_replies: u64,
    /// The factor.
    pub within: f64,
    /// The highest rate that held.
    pub knee: Option<f64>,
    /// Every rate tried, in that order.
    pub steps: Vec<Step>,
    /// Whether it was stopped before the knee was known.
    pub stopped: bool,
    /// Of which names another than the first address was taken, and why.
    pub instead: Vec<String>,
}

/// What a sweep needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// First rate, and the highest that is tried.
    pub rates: (f64, f64),
    /// How the gaps are made.
    pub arrivals: Arrivals,
    /// How long each rate is sent, at least.
    pub time: Duration,
    /// Replies that the unloaded p99 is of, at least, and half of those that a rate's is; for that many it
    /// is sent for longer, up to twenty times.
    pub replies: u64,
    /// Requests to each endpoint before anything is measured: the first is a cold start.
    pub warm_up: u64,
    /// What is waited for after these.
    pub settle: Duration,
    /// p99 may be so many times the unloaded one.
    pub within: f64,
    /// How exactly the knee is wanted, as a share.
    pub precision: f64,
    /// Of Poisson arrivals.
    pub seed: u64,
}

/// Why a sweep ends without result.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A run could not begin.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A rate makes no sense.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// One client alone gets no reply.
    #[error("no request of one client alone succeeded: {0}")]
    Unloaded(String),
}

/// Warms every endpoint up, measures one client alone, then rates until the knee is known; one that does not hold is
/// tried once more. `tell` is called with each; `rows` gets every row but those of the warm-up, and is left by
/// an error.
///
/// # Errors
/// When nothing can be sent or nothing succeeds.
pub async fn sweep(
    load: &Load,
    plan: &Plan,
    stop: &Stop,
    rows: &mut Option<StepRows>,
    mut tell: impl FnMut(&Step),
) -> Result<Sweep, SweepError> {
    // Every rate is sent to those of whom the unloaded time is.
    let (load, instead) = resolved(load, stop).await?;
    let load = &load;
    warm_up(load, plan, stop).await?;
    let (tally, mut rounds) = (alone(load, plan, stop, rows).await?, 0);
    let unloaded = tally.latency(Outcome::Ok).and_then(|times| times.quantile_us(0.99));
    let why = || tally.first_error().unwrap_or("none was sent").to_owned();
    let unloaded_p99_us = unloaded.ok_or_else(|| SweepError::Unloaded(why()))?;
    let unloaded_replies = tally.count(Outcome::Ok);
    let mut search = Search::new(plan.rates.0, plan.rates.1, plan.precision);
    let (mut steps, mut tried) = (Vec::new(), None);
    while let Some(rate) = search.next().filter(|_| !stop.is_asked()) {
        let time = plan.time_of(rate);
        let arrivals = at_rate(plan.arrivals, rate, time, plan.seed.wrapping_add(rounds))?;
        let shots = round_robin(&arrivals, load.targets.len());
        let send = |out| open_loop(load, shots, out, stop);
        let ran = tallied((Some(rate), rounds), rows, Tally::default(), send).await;
        let (tally, ran) = match ran {
            Err(RunError::Stopped) => break,
            done => done?,
        };
        if ran.unsent > 0 {
            break;
        }
        let step = judge(rate, &tally, &ran, unloaded_p99_us * plan.within);
        tell(&step);
        let verdict = step.verdict;
        steps.push(step);
        rounds += 1;
        if verdict != Verdict::Held && tried.replace(rate) != Some(rate) {
            // Once more: what else the machine does may have been the reason, or instances that had to
            // start for this rate.
            continue;
        }
        search.tell(verdict == Verdict::Held);
        if verdict.is_generators() {
            // Faster than the generator is nothing that it can measure.
            search.most = rate;
        }
    }
    let (knee, stopped) = (search.knee(), search.next().is_some());
    let within = plan.within;
    Ok(Sweep { unloaded_p99_us, unloaded_replies, within, knee, steps, stopped, instead })
}

impl Plan {
    /// How long so many endpoints are warmed up.
    #[must_use]
    pub fn warm_up_time(&self, endpoints: usize) -> Duration {
        let count = (endpoints as u64).saturating_mul(self.warm_up);
        WARM_UP_GAP.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// How long a rate is sent: enough for its p99 to be one, but not for ever.
    fn time_of(&self, rate: f64) -> Duration {
        let wanted = Duration::try_from_secs_f64(2.0 * self.replies as f64 / rate);
        let most = self.time.saturating_mul(LONGER);
        wanted.unwrap_or(most).min(most).max(self.time)
    }
}

/// Sends to each endpoint; nothing of it is counted.
async fn warm_up(load: &Load, plan: &Plan, stop: &Stop) -> Result<(), RunError> {
    if plan.warm_up == 0 {
        return Ok(());
    }
    let gap_ns = nanos(WARM_UP_GAP);
    let endpoints = 0..u32::try_from(load.targets.len()).unwrap_or(u32::MAX);
    let targets = (0..plan.warm_up).flat_map(|_| endpoints.clone());
    let shots = (0_u64..).zip(targets).map(|(nth, target)| Shot {
        at_ns: nth.saturating_mul(gap_ns),
        target,
        work: None,
        nth: 0,
    });
    open_loop(load, shots, channel().0, stop).await?;
    tokio::select! {
        () = tokio::time::sleep(plan.settle) => {}
        () = stop.asked() => {}
    }
    Ok(())
}

/// One client alone, until there are enough replies.
async fn alone(
    load: &Load,
    plan: &Plan,
    stop: &Stop,
    rows: &mut Option<StepRows>,
) -> Result<Tally, RunError> {
    let mut all = Tally::default();
    for round in 0..LONGER {
        let send = |out| closed_loop(load, 1, plan.time, out, stop);
        (all, _) = tallied((None, u64::from(round)), rows, all, send).await?;
        let ok = all.count(Outcome::Ok);
        // A client that gets no reply at all gets none by waiting.
        if ok >= plan.replies || ok == 0 || stop.is_asked() {
            break;
        }
    }
    Ok(all)
}

fn judge(rate: f64, tally: &Tally, ran: &Ran, most_us: f64) -> Step {
    let ok = tally.count(Outcome::Ok);
    let [p50_us, p99_us] = [0.5, 0.99].map(|q| tally.from_intended().quantile_us(q));
    let late_p99_us = tally.late().quantile_us(0.99);
    let failed = ran.sent - ok.min(ran.sent);
    let verdict = if tally.own_failures() as f64 > ran.sent as f64 * MOST_FAILED {
        Verdict::GeneratorFailed
    } else if failed as f64 > ran.sent as f64 * MOST_FAILED {
        Verdict::Failed
    } else if late_p99_us.is_some_and(|us| us > MOST_LATE_US) {
        Verdict::GeneratorLate
    } else if p99_us.is_none_or(|us| us > most_us) {
        Verdict::TooSlow
    } else {
        Verdict::Held
    };
    Step { rate, sent: ran.sent, failed, p50_us, p99_us, late_p99_us, verdict }
}

/// Shots at these times, to so many targets in turn.
#[must_use]
pub fn round_robin(arrivals: &[u64], targets: usize) -> Vec<Shot> {
    let targets = targets.max(1);
    let shot = |(index, at_ns): (usize, &u64)| {
        let target = u32::try_from(index % targets).unwrap_or(0);
        Shot { at_ns: *at_ns, target, work: None, nth: 0 }
    };
    arrivals.iter().enumerate().map(shot).collect()
}

/// Runs, and adds its rows up with those that there are; they are written, too, with their rate and try.
async fn tallied<F: Future<Output = Result<Ran, RunError>>>(
    of: (Option<f64>, u64),
    written: &mut Option<StepRows>,
    mut tally: Tally,
    run: impl FnOnce(Sender<Vec<Row>>) -> F,
) -> Result<(Tally, Ran), RunError> {
    let (out, rows) = channel::<Vec<Row>>();
    let mut steps = written.take();
    let adds = std::thread::spawn(move || {
        for batch in rows {
            batch.iter().for_each(|row| tally.add(row));
            if let Some(steps) = &mut steps {
                steps.add(of, &batch);
            }
        }
        (tally, steps)
    });
    let ran = run(out).await;
    let (tally, steps) = adds.join().expect("adding does not panic");
    *written = steps;
    Ok((tally, ran?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(knee: f64, from: f64, most: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(from, most, 0.05);
        let mut tried = 0;
        while let Some(rate) = search.next() {
            search.tell(rate <= knee);
            tried += 1;
        }
        (search.knee(), tried)
    }

    #[test]
    fn a_rate_is_sent_until_its_p99_is_one() {
        let plan = Plan {
            rates: (1.0, 1.0),
            arrivals: Arrivals::Fixed,
            time: Duration::from_secs(5),
            replies: 100,
            warm_up: 0,
            settle: Duration::ZERO,
            within: 3.0,
            precision: 0.1,
            seed: 1,
        };
        for (rate, seconds) in [(1000.0, 5), (40.0, 5), (10.0, 20), (0.1, 100), (0.0, 100)] {
            assert_eq!(plan.time_of(rate), Duration::from_secs(seconds), "{rate}");
        }
        assert_eq!(plan.warm_up_time(2000), Duration::ZERO);
        let warm = Plan { warm_up: 2, ..plan.clone() };
        assert_eq!(warm.warm_up_time(2000), Duration::from_secs(200));
        let absurd = Plan { warm_up: u64::MAX, ..plan };
        assert!(absurd.warm_up_time(2000) > Duration::from_secs(3600), "no overflow");
    }

    #[test]
    fn the_most_is_the_knee_where_it_holds() {
        assert_eq!(find(1e9, 10.0, 100.0).0, Some(100.0));
        assert_eq!(find(0.0, 10.0, 100.0).0, None);
    }

    proptest! {
        #[test]
        fn the_knee_is_found_to_its_precision(knee in 1.0_f64..100_000.0, from in 1.0_f64..1000.0) {
            let (found, tried) = find(knee, from, 200_000.0);
            let found = found.unwrap();
            prop_assert!(found <= knee && knee <= found * 1.051, "{found} for {knee}");
            prop_assert!(tried < 40);
        }
    }
}

//! RPS mode: one warm function at a rate, and as many cold ones as it takes for each to be
//! invoked once per cool-down.
//!
//! # Source
//! invitro `pkg/generator/rps.go`.

use super::{Function, Invocation, Source, TraceError};
use crate::arrivals::whole_nanos;
use crate::call::Work;

/// The most functions and invocations of this mode.
const MOST: f64 = 1e8;

/// What it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rps {
    /// All invocations per second.
    pub target: f64,
    /// Per cent of them that shall be cold.
    pub cold_percent: f64,
    /// How long a function must not be invoked to be cold again, in seconds.
    pub cooldown_s: f64,
    /// What each does.
    pub work: Work,
}

/// The functions of an experiment of so many minutes: the warm one first.
///
/// # Errors
/// When the numbers make no experiment.
pub fn functions(rps: &Rps, minutes: u64) -> Result<Vec<Function>, TraceError> {
    let absurd = |text: String| Err(TraceError::Absurd(text));
    if !(rps.target > 0.0 && rps.target * minutes as f64 * 60.0 <= MOST) {
        return absurd(format!("RpsTarget {} over {minutes} minutes is no load", rps.target));
    }
    if !(0.0..=100.0).contains(&rps.cold_percent) {
        return absurd(format!(
            "RpsColdStartRatioPercentage {} is no percentage",
            rps.cold_percent
        ));
    }
    let cold = rps.target * rps.cold_percent / 100.0;
    let warm = rps.target - cold;
    if cold > 0.0 && !(rps.cooldown_s > 0.0 && cold * rps.cooldown_s <= 1e6) {
        return absurd(format!("RpsCooldownSeconds {} makes no cold starts", rps.cooldown_s));
    }
    let end_us = minutes as f64 * 60e6;
    let mut all = Vec::new();
    if warm > 0.0 {
        let name = "warm-function-0".to_owned();
        all.push(Function { name, source: series(0.0, 1e6 / warm, end_us, rps.work) });
    }
    let count = whole_nanos((cold * rps.cooldown_s).ceil());
    for i in 0..count {
        // Whole microseconds and seconds, as the original cuts them.
        let batch = if cold >= 1.0 {
            let whole = whole_nanos(cold.floor()).max(1);
            ((i % whole) as f64 * 1e6 / cold).floor()
        } else {
            0.0
        };
        let offset = batch + (i as f64 / cold).floor() * 1e6;
        let every_s = if cold >= 1.0 { rps.cooldown_s } else { count as f64 / cold };
        let name = format!("cold-function-{i}");
        all.push(Function { name, source: series(offset, every_s * 1e6, end_us, rps.work) });
    }
    Ok(all)
}

/// From `offset` on, in even steps; what falls behind the end is left out, where the original
/// would break.
fn series(offset_us: f64, every_us: f64, end_us: f64, work: Work) -> Source {
    let at = |n: u64| offset_us + every_us * n as f64;
    let times = (0_u64..).map(at).take_while(|us| *us < end_us);
    Source::Exact(times.map(|us| Invocation { at_ns: whole_nanos(us * 1e3), work }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { runtime_ms: 10, memory_mib: 20 };

    fn times(function: &Function) -> Vec<u64> {
        let Source::Exact(all) = &function.source else { panic!("exact") };
        all.iter().map(|invocation| invocation.at_ns / 1_000_000).collect()
    }

    #[test]
    fn warm_and_cold_share_the_rate() {
        let rps = Rps { target: 10.0, cold_percent: 20.0, cooldown_s: 10.0, work: WORK };
        let all = functions(&rps, 1).unwrap();
        // 2 cold starts a second, each function one in 10 s: 20 functions.
        assert_eq!(all.len(), 1 + 20);
        let warm = times(&all[0]);
        assert_eq!((warm.len(), warm[0], warm[1]), (480, 0, 125));
        assert_eq!(times(&all[1]), [0, 10_000, 20_000, 30_000, 40_000, 50_000]);
        assert_eq!(times(&all[2])[..2], [500, 10_500], "half a second into the batch");
        assert_eq!(times(&all[3])[0], 1_000, "the next batch");
        let cold: usize = all[1..].iter().map(|function| times(function).len()).sum();
        assert_eq!(cold, 120);
    }

    #[test]
    fn slow_cold_starts_are_spread() {
        let rps = Rps { target: 0.5, cold_percent: 100.0, cooldown_s: 10.0, work: WORK };
        let all = functions(&rps, 1).unwrap();
        assert_eq!(all.len(), 5);
        assert_eq!(
            (times(&all[0]), times(&all[4])),
            (
                vec![0, 10_000, 20_000, 30_000, 40_000, 50_000],
                vec![8_000, 18_000, 28_000, 38_000, 48_000, 58_000]
            )
        );
    }

    #[test]
    fn absurd_numbers_are_named() {
        let fine = Rps { target: 1.0, cold_percent: 50.0, cooldown_s: 1.0, work: WORK };
        for (bad, said) in [
            (Rps { target: 0.0, ..fine }, "RpsTarget"),
            (Rps { target: f64::NAN, ..fine }, "RpsTarget"),
            (Rps { cold_percent: 101.0, ..fine }, "RpsColdStartRatioPercentage"),
            (Rps { cooldown_s: 0.0, ..fine }, "RpsCooldownSeconds"),
        ] {
            assert!(functions(&bad, 1).unwrap_err().to_string().contains(said));
        }
    }
}

//! From functions to shots, one unit of time after the other.

use crate::rng::Rng;
use crate::row::Shot;

use super::{Distribution, Function, Source, Unit};

/// What is to be sent when: the same for the same seed, whatever else is in the trace.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The functions; shots refer to them by index.
    pub functions: Vec<Function>,
    /// What a column is.
    pub unit: Unit,
    /// First column that is sent.
    pub first: usize,
    /// Columns that are sent.
    pub units: usize,
    /// How moments within a unit are drawn.
    pub distribution: Distribution,
    /// Of everything that is drawn.
    pub seed: u64,
    /// What of the trace is not as it is written there, for people.
    pub notes: Vec<String>,
}

impl Plan {
    /// Shots in the order of their times, which count from the beginning of column `first`. Only
    /// those of one unit are in memory at a time.
    #[must_use]
    pub fn shots(&self) -> Shots<'_> {
        let part = |index: usize| 2 * index as u64;
        let count = self.functions.len();
        Shots {
            plan: self,
            gaps: (0..count).map(|index| Rng::of_part(self.seed, part(index))).collect(),
            work: (0..count).map(|index| Rng::of_part(self.seed, part(index) + 1)).collect(),
            next: vec![0; count],
            unit: 0,
            ready: Vec::new().into_iter(),
        }
    }

    /// Invocations of a function in each unit that is sent, as the trace has them.
    #[must_use]
    pub fn counts(&self, function: usize) -> Vec<u64> {
        let Some(function) = self.functions.get(function) else { return Vec::new() };
        let mut counts = vec![0; self.units];
        match &function.source {
            Source::Counts { counts: all, .. } => {
                for (into, count) in counts.iter_mut().zip(all.iter().skip(self.first)) {
                    *into = u64::from(*count);
                }
            }
            Source::Exact(all) => {
                for invocation in all {
                    let unit = usize::try_from(invocation.at_ns / self.unit.ns());
                    let unit = unit.ok().and_then(|unit| unit.checked_sub(self.first));
                    if let Some(count) = unit.and_then(|unit| counts.get_mut(unit)) {
                        *count += 1;
                    }
                }
            }
        }
        counts
    }

    /// Invocations in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        (0..self.functions.len()).map(|function| self.counts(function).iter().sum::<u64>()).sum()
    }

    /// Instances that a function's first minute keeps busy, by Little's law: what to start with.
    ///
    /// # Source
    /// invitro `pkg/driver`: rate × mean runtime of the profiling minute, rounded up.
    #[must_use]
    pub fn initial_scale(&self, function: usize) -> u64 {
        let busy = || Some(self.rate(function)? * self.runtime_s(function)?);
        crate::arrivals::whole_nanos(busy().unwrap_or(0.0).ceil())
    }

    /// A function's invocations a second in the first minute, of a trace that counts them.
    #[must_use]
    pub fn rate(&self, function: usize) -> Option<f64> {
        let (counts, _) = self.counted(function)?;
        let first = f64::from(counts.first().copied().unwrap_or_default());
        Some(first / self.unit.length().as_secs_f64())
    }

    /// Its mean runtime in seconds, likewise.
    #[must_use]
    pub fn runtime_s(&self, function: usize) -> Option<f64> {
        self.counted(function).map(|(_, stats)| stats.mean_runtime_ms / 1e3)
    }

    fn counted(&self, function: usize) -> Option<(&[u32], &super::draw::Stats)> {
        match &self.functions.get(function)?.source {
            Source::Counts { counts, stats } => Some((counts, stats)),
            Source::Exact(_) => None,
        }
    }
}

/// The shots of a plan.
#[derive(Debug)]
pub struct Shots<'a> {
    plan: &'a Plan,
    gaps: Vec<Rng>,
    work: Vec<Rng>,
    /// Of functions with known times: the first that is not sent yet.
    next: Vec<usize>,
    unit: usize,
    ready: std::vec::IntoIter<Shot>,
}

impl Shots<'_> {
    /// Makes the next unit's.
    fn fill(&mut self) {
        let plan = self.plan;
        let ns = plan.unit.ns();
        let column = plan.first + self.unit;
        let begin = ns.saturating_mul(self.unit as u64);
        let mut all = Vec::new();
        for (index, function) in plan.functions.iter().enumerate() {
            let target = u32::try_from(index).unwrap_or(u32::MAX);
            match &function.source {
                Source::Counts { counts, stats } => {
                    let count = counts.get(column).copied().unwrap_or_default();
                    let moments = plan.distribution.moments(count, ns, &mut self.gaps[index]);
                    for (nth, at) in (0..).zip(moments) {
                        let work = Some(stats.draw(&mut self.work[index]));
                        all.push(Shot { at_ns: begin + at, target, work, nth });
                    }
                }
                Source::Exact(invocations) => {
                    let from = ns.saturating_mul(column as u64);
                    let rest = &invocations[self.next[index]..];
                    let before = rest.partition_point(|one| one.at_ns < from);
                    let within = rest.partition_point(|one| one.at_ns < from.saturating_add(ns));
                    self.next[index] += within;
                    for (nth, one) in (0..).zip(&rest[before..within]) {
                        let at_ns = begin + (one.at_ns - from);
                        all.push(Shot { at_ns, target, work: Some(one.work), nth });
                    }
                }
            }
        }
        // Functions that begin together keep the trace's order.
        all.sort_by_key(|shot| shot.at_ns);
        self.unit += 1;
        self.ready = all.into_iter();
    }
}

impl Iterator for Shots<'_> {
    type Item = Shot;

    fn next(&mut self) -> Option<Shot> {
        loop {
            if let Some(shot) = self.ready.next() {
                return Some(shot);
            }
            if self.unit == self.plan.units {
                return None;
            }
            self.fill();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::call::Work;
    use crate::trace::Invocation;
    use crate::trace::draw::tests::stats;

    fn plan(counts: Vec<Vec<u32>>, distribution: &str, seed: u64) -> Plan {
        let units = counts.iter().map(Vec::len).max().unwrap_or(0);
        let function = |(index, counts): (usize, Vec<u32>)| Function {
            name: format!("f{index}"),
            source: Source::Counts { counts, stats: stats() },
        };
        Plan {
            functions: counts.into_iter().enumerate().map(function).collect(),
            unit: Unit::Minute,
            first: 0,
            units,
            distribution: distribution.parse().unwrap(),
            seed,
            notes: Vec::new(),
        }
    }

    fn counted(plan: &Plan) -> Vec<Vec<u64>> {
        let mut counts = vec![vec![0; plan.units]; plan.functions.len()];
        for shot in plan.shots() {
            let unit = usize::try_from(shot.at_ns / plan.unit.ns()).unwrap();
            counts[usize::try_from(shot.target).unwrap()][unit] += 1;
        }
        counts
    }

    #[test]
    fn a_functions_shots_do_not_depend_on_its_neighbours() {
        let alone = plan(vec![vec![7, 3]], "exponential_shift", 9);
        let together = plan(vec![vec![7, 3], vec![50, 50]], "exponential_shift", 9);
        let of_first: Vec<Shot> = together.shots().filter(|shot| shot.target == 0).collect();
        assert_eq!(alone.shots().collect::<Vec<_>>(), of_first);
    }

    #[test]
    fn columns_before_the_first_are_left_out() {
        let mut plan = plan(vec![vec![5, 0, 2]], "equidistant", 1);
        (plan.first, plan.units) = (1, 2);
        let work = Work { runtime_ms: 1, memory_mib: 1 };
        let times = [59, 60, 100, 120, 180].map(|s| Invocation { at_ns: s * 1_000_000_000, work });
        let source = Source::Exact(times.to_vec());
        plan.functions.push(Function { name: "exact".to_owned(), source });
        let shots: Vec<(u64, u32, u32)> =
            plan.shots().map(|shot| (shot.at_ns / 1_000_000_000, shot.target, shot.nth)).collect();
        assert_eq!(shots, [(0, 1, 0), (40, 1, 1), (60, 0, 0), (60, 1, 0), (89, 0, 1)]);
        assert_eq!((plan.counts(0), plan.counts(1)), (vec![0, 2], vec![2, 1]));
        assert_eq!(plan.total(), 5);
    }

    #[test]
    fn the_first_minute_says_how_many_instances_to_begin_with() {
        // 120 a minute of 30 ms each: 0.06 busy.
        assert_eq!(plan(vec![vec![120]], "uniform", 0).initial_scale(0), 1);
        assert_eq!(plan(vec![vec![6000]], "uniform", 0).initial_scale(0), 3);
        assert_eq!(plan(vec![vec![0]], "uniform", 0).initial_scale(0), 0);
    }

    proptest! {
        #[test]
        fn arrivals_per_minute_and_function_are_the_traces(
            counts in prop::collection::vec(prop::collection::vec(0_u32..60, 4), 1..6),
            seed: u64,
            which in 0_usize..5,
        ) {
            let names =
                ["exponential", "exponential_shift", "uniform", "uniform_shift", "equidistant"];
            let plan = plan(counts.clone(), names[which], seed);
            let wanted: Vec<Vec<u64>> =
                counts.iter().map(|all| all.iter().map(|n| u64::from(*n)).collect()).collect();
            prop_assert_eq!(counted(&plan), wanted);
            let shots: Vec<Shot> = plan.shots().collect();
            prop_assert!(shots.windows(2).all(|two| two[0].at_ns <= two[1].at_ns));
            prop_assert_eq!(&shots, &plan.shots().collect::<Vec<_>>());
            prop_assert_eq!(shots.len() as u64, plan.total());
        }
    }
}

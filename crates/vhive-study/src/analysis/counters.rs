//! Host counters as measures.

use vhive_api::Counter;

use crate::row::Row;

/// Name, unit, and how many of the counter's units one of it is.
const fn look(counter: Counter) -> (&'static str, &'static str, f64) {
    const MIB: f64 = 1_048_576.0;
    match counter {
        Counter::CpuUs => ("CPU", "ms", 1e3),
        Counter::UserUs => ("user CPU", "ms", 1e3),
        Counter::SystemUs => ("system CPU", "ms", 1e3),
        Counter::MinorFaults => ("minor faults", "faults", 1.0),
        Counter::MajorFaults => ("major faults", "faults", 1.0),
        Counter::ReadBytes => ("read", "MiB", MIB),
        Counter::WrittenBytes => ("written", "MiB", MIB),
        Counter::ContextSwitches => ("context switches", "times", 1.0),
        Counter::Migrations => ("migrations", "times", 1.0),
        Counter::Cycles => ("cycles", "million", 1e6),
        Counter::Instructions => ("instructions", "million", 1e6),
        Counter::CacheReferences => ("cache references", "thousand", 1e3),
        Counter::CacheMisses => ("cache misses", "thousand", 1e3),
        Counter::Branches => ("branches", "thousand", 1e3),
        Counter::BranchMisses => ("branch misses", "thousand", 1e3),
        Counter::FrontendStalls => ("front-end stalls", "million", 1e6),
        Counter::BackendStalls => ("back-end stalls", "million", 1e6),
        Counter::Slots => ("slots", "million", 1e6),
        Counter::Retiring => ("retiring", "% of slots", 1.0),
        Counter::BadSpeculation => ("bad speculation", "% of slots", 1.0),
        Counter::FrontendBound => ("front-end bound", "% of slots", 1.0),
        Counter::BackendBound => ("back-end bound", "% of slots", 1.0),
        Counter::HeavyOperations => ("heavy operations", "% of slots", 1.0),
        Counter::BranchMispredicts => ("branch mispredicts", "% of slots", 1.0),
        Counter::FetchLatency => ("fetch latency", "% of slots", 1.0),
        Counter::MemoryBound => ("memory bound", "% of slots", 1.0),
    }
}

/// What is called by this name in reports, and its unit.
pub(crate) const fn name_of(counter: Counter) -> (&'static str, &'static str) {
    let (name, unit, _) = look(counter);
    (name, unit)
}

/// A row's counter in the unit of its measure; none where the host did not count it.
pub(crate) fn value(row: &Row, counter: Counter) -> Option<f64> {
    let counters = row.counters.as_ref()?;
    if counter.is_topdown() {
        return Some(counters.share(counter)? * 100.0);
    }
    Some(counters.get(counter)? as f64 / look(counter).2)
}

/// Level 2 of TopDown that no event counts: names, and of what whole each is what a part leaves.
///
/// # Source
/// Linux `tools/perf/Documentation/topdown.txt`: the other four nodes are differences.
pub(crate) const RESTS: [(&str, Counter, Counter); 4] = [
    ("light operations", Counter::Retiring, Counter::HeavyOperations),
    ("machine clears", Counter::BadSpeculation, Counter::BranchMispredicts),
    ("fetch bandwidth", Counter::FrontendBound, Counter::FetchLatency),
    ("core bound", Counter::BackendBound, Counter::MemoryBound),
];

/// What a part leaves of its whole, in % of slots; none where the host did not count both. Estimates, of
/// which the part may be a little more than the whole: then nothing is left.
pub(crate) fn rest(row: &Row, whole: Counter, part: Counter) -> Option<f64> {
    Some((value(row, whole)? - value(row, part)?).max(0.0))
}

/// Instructions per cycle.
pub(crate) const PER_CYCLE: (&str, &str) = ("instructions per cycle", "");

/// Of a row.
pub(crate) fn per_cycle(row: &Row) -> Option<f64> {
    let counters = row.counters.as_ref()?;
    let cycles = counters.get(Counter::Cycles).filter(|cycles| *cycles > 0)?;
    Some(counters.get(Counter::Instructions)? as f64 / cycles as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::fixture;

    #[test]
    fn what_is_left_of_a_whole_needs_both() {
        let mut row = fixture().rows.remove(0);
        row.counters = Some(
            [
                (Counter::Slots, 1000),
                (Counter::Retiring, 400),
                (Counter::HeavyOperations, 150),
                (Counter::BadSpeculation, 20),
                (Counter::BranchMispredicts, 21),
                (Counter::FrontendBound, 300),
                (Counter::MemoryBound, 100),
            ]
            .into_iter()
            .collect(),
        );
        let found = RESTS.map(|(_, whole, part)| rest(&row, whole, part));
        assert_eq!(found, [Some(25.0), Some(0.0), None, None]);
    }

    #[test]
    fn shares_need_slots_and_absent_counters_have_no_value() {
        let mut row = fixture().rows.remove(0);
        assert_eq!(value(&row, Counter::CpuUs), None);
        row.counters = Some(
            [(Counter::CpuUs, 2500), (Counter::Retiring, 30), (Counter::Cycles, 0)]
                .into_iter()
                .collect(),
        );
        assert_eq!(value(&row, Counter::CpuUs), Some(2.5));
        assert_eq!(value(&row, Counter::Retiring), None, "of how many?");
        assert_eq!(per_cycle(&row), None);
        row.counters.as_mut().expect("set").0.insert(Counter::Slots, 120);
        assert_eq!(value(&row, Counter::Retiring), Some(25.0));
        let mut names: Vec<&str> = Counter::ALL.map(|counter| name_of(counter).0).to_vec();
        names.extend(RESTS.map(|(name, ..)| name));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len() + RESTS.len());
    }
}

//! In which order a study measures. Pure.

use vhive_api::RuntimeName;

use crate::analysis::Key;
use crate::plan::{Kind, Plan};
use crate::row::StudyName;

/// One measurement to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is measured.
    pub key: Key,
    /// Counts from 1.
    pub repetition: u32,
    /// Whether the next step uses the instance that this one started.
    pub leave: bool,
    /// Whether this step uses the instance that the last one started.
    pub follows: bool,
}

/// Every step of a study of cold starts: in each repetition all functions, of each all kinds in
/// turn, beginning with another one each time, so that neither drift nor position favours a kind.
/// A warm invocation comes right after the boot whose instance it uses.
#[must_use]
pub fn cold_start(plan: &Plan) -> Vec<Step> {
    varied(plan, &[None])
}

/// Every step of a study of sandboxes: likewise, and of each function all runtimes in turn,
/// beginning with another one each time.
#[must_use]
pub fn runtimes(plan: &Plan, runtimes: &[RuntimeName]) -> Vec<Step> {
    let runtimes: Vec<Option<RuntimeName>> = runtimes.iter().copied().map(Some).collect();
    varied(plan, &runtimes)
}

/// Throughputs of one repetition: every function in every runtime, in turns.
#[must_use]
pub fn loads(plan: &Plan, runtimes: &[RuntimeName], repetition: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    let input = plan.inputs.measure.first().unwrap_or(&plan.inputs.prepare);
    for function in &plan.runtimes.load {
        for runtime in turned(runtimes, repetition) {
            let (function, input) = (function.clone(), input.clone());
            let (runtime, level) = (Some(runtime), plan.runtimes.connections);
            let key = Key { function, runtime, kind: Kind::Boot, input, level };
            steps.push(Step { key, repetition, leave: false, follows: false });
        }
    }
    steps
}

fn varied(plan: &Plan, runtimes: &[Option<RuntimeName>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for repetition in 1..=plan.repetitions {
        for function in &plan.functions {
            for runtime in turned(runtimes, repetition) {
                steps.extend(kinds(plan, (function, runtime), repetition));
            }
        }
    }
    steps
}

/// All, beginning with another one in each repetition.
fn turned<T: Copy>(all: &[T], repetition: u32) -> Vec<T> {
    let mut all = all.to_vec();
    let turn = (repetition as usize).saturating_sub(1) % all.len().max(1);
    all.rotate_left(turn);
    all
}

/// One function's steps of one repetition, all kinds in turn.
fn kinds(
    plan: &Plan,
    (function, runtime): (&str, Option<RuntimeName>),
    repetition: u32,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut kinds = plan.kinds.clone();
    let both = kinds.contains(&Kind::Boot) && kinds.contains(&Kind::Warm);
    kinds.retain(|kind| !(both && *kind == Kind::Warm));
    for kind in turned(&kinds, repetition) {
        for input in inputs(plan, kind) {
            let step = |kind| {
                let (function, input) = (function.to_owned(), input.clone());
                let key = Key { function, runtime, kind, input, level: 1 };
                Step { key, repetition, leave: false, follows: false }
            };
            let pair = both && kind == Kind::Boot;
            steps.push(Step { leave: pair, ..step(kind) });
            if pair {
                steps.push(Step { follows: true, ..step(Kind::Warm) });
            }
        }
    }
    steps
}

/// Every step of a study of concurrent starts: in each repetition every function and kind, of each
/// all levels, upwards and downwards by turns.
#[must_use]
pub fn parallel(plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    for repetition in 1..=plan.repetitions {
        for function in &plan.functions {
            for kind in plan.kinds.iter().copied() {
                let mut levels = levels(StudyName::Parallel, plan.most_parallel);
                if repetition % 2 == 0 {
                    levels.reverse();
                }
                for level in levels {
                    for input in inputs(plan, kind) {
                        let (function, input) = (function.clone(), input.clone());
                        let key = Key { function, runtime: None, kind, input, level };
                        steps.push(Step { key, repetition, leave: false, follows: false });
                    }
                }
            }
        }
    }
    steps
}

/// The inputs with which a kind is measured.
#[must_use]
pub fn inputs(plan: &Plan, kind: Kind) -> Vec<String> {
    let prepare = &plan.inputs.prepare;
    if kind == Kind::Record {
        return vec![prepare.clone()];
    }
    let mut inputs = plan.inputs.measure.clone();
    if kind.prefetches() && plan.inputs.same && !inputs.contains(prepare) {
        inputs.push(prepare.clone());
    }
    inputs
}

/// The numbers of concurrent invocations: powers of two, and the most itself.
#[must_use]
pub fn levels(study: StudyName, most: u32) -> Vec<u32> {
    if study != StudyName::Parallel {
        return vec![1];
    }
    let powers = std::iter::successors(Some(1_u32), |n| n.checked_mul(2));
    let mut levels: Vec<u32> = powers.take_while(|n| *n < most).collect();
    levels.push(most);
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            functions: vec!["f".to_owned(), "g".to_owned()],
            kinds: vec![Kind::Boot, Kind::Warm, Kind::Snapshot, Kind::Reap],
            repetitions: 3,
            ..Plan::default()
        }
    }

    #[test]
    fn every_kind_is_measured_as_often_as_planned_and_no_kind_always_first() {
        let steps = cold_start(&plan());
        let count = |kind, input: &str| {
            steps.iter().filter(|s| s.key.kind == kind && s.key.input == input).count()
        };
        assert_eq!(count(Kind::Boot, "replay"), 6);
        assert_eq!(count(Kind::Warm, "replay"), 6);
        assert_eq!(count(Kind::Reap, "replay"), 6);
        assert_eq!(count(Kind::Reap, "record"), 6, "also with the recorded input");
        assert_eq!(count(Kind::Snapshot, "record"), 0);
        let first: Vec<Kind> = (1..=3)
            .filter_map(|repetition| steps.iter().find(|s| s.repetition == repetition))
            .map(|step| step.key.kind)
            .collect();
        assert_eq!(first, [Kind::Boot, Kind::Snapshot, Kind::Reap]);
    }

    #[test]
    fn warm_follows_its_boot() {
        let steps = cold_start(&plan());
        for (at, step) in steps.iter().enumerate() {
            if step.key.kind == Kind::Warm {
                let before = &steps[at - 1];
                assert_eq!(
                    (before.key.kind, &before.key.function),
                    (Kind::Boot, &step.key.function)
                );
                assert!(before.leave && step.follows);
            }
        }
        let alone = cold_start(&Plan { kinds: vec![Kind::Warm], ..plan() });
        assert!(alone.iter().all(|step| !step.follows));
    }

    #[test]
    fn every_runtime_is_measured_as_often_and_none_is_always_first() {
        let names = [RuntimeName::Qemu, RuntimeName::Runc];
        let steps = runtimes(&plan(), &names);
        assert_eq!(steps.len(), 2 * cold_start(&plan()).len());
        for name in names {
            let boots = steps.iter().filter(|step| step.key.kind == Kind::Boot);
            assert_eq!(boots.filter(|step| step.key.runtime == Some(name)).count(), 6);
        }
        let first = |repetition| {
            let step = steps.iter().find(|step| step.repetition == repetition);
            step.and_then(|step| step.key.runtime)
        };
        assert_eq!((first(1), first(2)), (Some(names[0]), Some(names[1])));
        let loads: Vec<_> = (1..=2).flat_map(|n| loads(&plan(), &names, n)).collect();
        let order: Vec<_> = loads.iter().filter_map(|step| step.key.runtime).collect();
        let functions = plan().runtimes.load.len();
        let there = [names[0], names[1]].repeat(functions);
        let back = [names[1], names[0]].repeat(functions);
        assert_eq!(order, [there, back].concat());
        assert!(loads.iter().all(|step| step.key.level == plan().runtimes.connections));
    }

    #[test]
    fn levels_are_powers_of_two_and_the_most() {
        let of = |most| levels(StudyName::Parallel, most);
        assert_eq!(of(1), [1]);
        assert_eq!(of(8), [1, 2, 4, 8]);
        assert_eq!(of(12), [1, 2, 4, 8, 12]);
        assert_eq!(levels(StudyName::ColdStart, 12), [1]);
    }
}

//! Start kinds against each other, over all functions.

use vhive_api::RuntimeName;

use crate::plan::{Kind, Plan};
use crate::schedule::inputs;
use crate::stats::{self, Ratio};

use super::series::Series;

/// One kind against another.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// In which sandbox, where the study varies it.
    pub runtime: Option<RuntimeName>,
    /// The faster one, as expected.
    pub fast: Kind,
    /// What it is compared with.
    pub slow: Kind,
    /// Input of both.
    pub input: String,
    /// Which measure.
    pub measure: &'static str,
    /// How many times as long the slow one takes, or as much memory: geometric mean over the functions.
    pub ratio: Ratio,
    /// The same for each function.
    pub functions: Vec<(String, f64)>,
}

/// What is compared: fast, slow, measure.
const PAIRS: [(Kind, Kind, &str); 11] = [
    (Kind::Snapshot, Kind::Boot, "total"),
    (Kind::Reap, Kind::Boot, "total"),
    (Kind::Reap, Kind::Snapshot, "total"),
    (Kind::Reap, Kind::Lazy, "total"),
    (Kind::Reap, Kind::ReapSerial, "total"),
    (Kind::Reap, Kind::FaultAround, "total"),
    (Kind::Snapshot, Kind::Record, "total"),
    (Kind::Reap, Kind::Snapshot, "memory wait"),
    (Kind::Reap, Kind::Lazy, "memory wait"),
    (Kind::Snapshot, Kind::Boot, "RSS"),
    (Kind::Reap, Kind::Boot, "RSS"),
];

pub(super) fn comparisons(series: &[Series], plan: &Plan) -> Vec<Comparison> {
    let mut found = Vec::new();
    let mut runtimes: Vec<Option<RuntimeName>> = Vec::new();
    for runtime in series.iter().map(|s| s.key.runtime) {
        if !runtimes.contains(&runtime) {
            runtimes.push(runtime);
        }
    }
    for runtime in runtimes {
        let of: Vec<&Series> = series.iter().filter(|s| s.key.runtime == runtime).collect();
        for (fast, slow, measure) in PAIRS {
            for input in inputs(plan, fast) {
                let compared = compare(&of, plan, (fast, slow), (&input, measure));
                found.extend(compared.map(|one| Comparison { runtime, ..one }));
            }
        }
    }
    found
}

fn compare(
    series: &[&Series],
    plan: &Plan,
    (fast, slow): (Kind, Kind),
    (input, measure): (&str, &'static str),
) -> Option<Comparison> {
    let values = |function: &str, kind: Kind| {
        let found = series.iter().find(|s| {
            s.key.function == function
                && s.key.kind == kind
                && s.key.input == input
                && s.key.level == 1
        });
        let values = found.and_then(|s| s.measure(measure)).map(|m| m.values.as_slice());
        values.filter(|values| stats::median(values).is_some_and(|median| median > 0.0))
    };
    let functions = plan.functions.iter().filter(|name| !plan.not_in_means.contains(name));
    let pairs: Vec<(&String, &[f64], &[f64])> = functions
        .filter_map(|name| Some((name, values(name, slow)?, values(name, fast)?)))
        .collect();
    let samples: Vec<(&[f64], &[f64])> = pairs.iter().map(|(_, a, b)| (*a, *b)).collect();
    let ratio = stats::ratio(&samples, plan.seed)?;
    let each = |(name, a, b): &(&String, &[f64], &[f64])| {
        Some(((*name).clone(), stats::median(a)? / stats::median(b)?))
    };
    let functions = pairs.iter().filter_map(each).collect();
    Some(Comparison {
        runtime: None,
        fast,
        slow,
        input: input.to_owned(),
        measure,
        ratio,
        functions,
    })
}

/// Faults that prefetching left, as shares of the pages recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultsLeft {
    /// The kind that prefetches.
    pub kind: Kind,
    /// Whether the input was the recorded one.
    pub same_input: bool,
    /// Name of the input.
    pub input: String,
    /// Mean over the functions.
    pub mean: f64,
    /// The function with the greatest share, and that.
    pub worst: (String, f64),
    /// Functions.
    pub n: usize,
}

pub(super) fn faults_left(series: &[Series], plan: &Plan) -> Vec<FaultsLeft> {
    let mut found = Vec::new();
    for kind in plan.kinds.iter().copied().filter(|kind| kind.prefetches()) {
        for input in inputs(plan, kind) {
            let shares: Vec<(String, f64)> = plan
                .functions
                .iter()
                .filter(|name| !plan.not_in_means.contains(name))
                .filter_map(|name| {
                    let of = |kind: Kind, input: &str| {
                        series.iter().find(|s| {
                            s.key.function == *name && s.key.kind == kind && s.key.input == input
                        })
                    };
                    let recorded = of(Kind::Record, &plan.inputs.prepare)?.median("faults")?;
                    let left = of(kind, &input)?.median("faults")?;
                    (recorded > 0.0).then(|| (name.clone(), left / recorded))
                })
                .collect();
            let worst = shares.iter().max_by(|a, b| a.1.total_cmp(&b.1)).cloned();
            let Some(worst) = worst else { continue };
            let mean = shares.iter().map(|(_, share)| share).sum::<f64>() / shares.len() as f64;
            let same_input = input == plan.inputs.prepare;
            found.push(FaultsLeft { kind, same_input, input, mean, worst, n: shares.len() });
        }
    }
    found
}

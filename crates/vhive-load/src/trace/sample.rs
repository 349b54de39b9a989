//! A small trace that stands for a large one: of random subsets, the one whose functions are
//! distributed most like all of them.
//!
//! # Source
//! Ustiugov et al., *Enabling In-Vitro Serverless Systems Research* (2023); invitro `sampler/`.

use std::collections::HashSet;
use std::path::Path;

use super::table::Table;
use super::whole::{Whole, all_done};
use super::{Function, Source, TraceError};
use crate::rng::Rng;

/// Two figures of a function: how often it is invoked, and what that uses.
type Weight = [f64; 2];

/// How a subset was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Indices of the functions, rising.
    pub functions: Vec<usize>,
    /// Sum of the two distances.
    pub distance: f64,
}

/// The area between the distribution functions of two samples, each divided by `scale`.
///
/// # Source
/// Wasserstein's first distance in one dimension.
#[must_use]
pub fn wasserstein(a: &[f64], b: &[f64], scale: f64) -> f64 {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    let (a, b) = (sorted(a), sorted(b));
    if a.is_empty() || b.is_empty() || scale <= 0.0 {
        return 0.0;
    }
    // Quantile by quantile: both are constant between the borders of either's steps.
    let (mut area, mut at, mut i, mut j) = (0.0, 0.0, 0, 0);
    while i < a.len() && j < b.len() {
        let (next_a, next_b) = ((i + 1) as f64 / a.len() as f64, (j + 1) as f64 / b.len() as f64);
        let next = next_a.min(next_b);
        area += (next - at) * (a[i] - b[j]).abs() / scale;
        at = next;
        i += usize::from(next_a <= next);
        j += usize::from(next_b <= next);
    }
    area
}

/// The best of `trials` random subsets of `size` functions: that which is most like the original,
/// whether those functions are all of it or some.
///
/// # Errors
/// When there are not so many functions, or none is asked for.
pub fn choose(
    (functions, original): (&[Function], &[Function]),
    size: usize,
    trials: u32,
    seed: u64,
) -> Result<Sample, TraceError> {
    if size == 0 || trials == 0 || size > functions.len() {
        let text =
            format!("cannot choose {size} of {} functions in {trials} trials", functions.len());
        return Err(TraceError::Absurd(text));
    }
    let weights: Vec<Weight> = functions.iter().map(weight).collect();
    let of_original: Vec<Weight> = original.iter().map(weight).collect();
    let all: [Vec<f64>; 2] = [0, 1].map(|figure| of_original.iter().map(|w| w[figure]).collect());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let scales = [mean(&all[0]), mean(&all[1])];
    let mut best: Option<Sample> = None;
    for trial in 0..trials {
        let chosen = subset(functions.len(), size, &mut Rng::of_part(seed, trial.into()));
        let of =
            |figure: usize| -> Vec<f64> { chosen.iter().map(|at| weights[*at][figure]).collect() };
        let distance = [0, 1].map(|figure| wasserstein(&of(figure), &all[figure], scales[figure]));
        let distance = distance.iter().sum();
        if best.as_ref().is_none_or(|best| distance < best.distance) {
            best = Some(Sample { functions: chosen, distance });
        }
    }
    best.ok_or_else(|| TraceError::Absurd("no trial".to_owned()))
}

/// Invocations, and the memory-time that they use at the median.
fn weight(function: &Function) -> Weight {
    match &function.source {
        Source::Counts { counts, stats } => {
            let invocations: f64 = counts.iter().map(|count| f64::from(*count)).sum();
            let each = stats.mean_runtime_ms * stats.memory.median() as f64;
            [invocations, invocations * each]
        }
        Source::Exact(all) => {
            let each = |work: crate::Work| f64::from(work.runtime_ms) * f64::from(work.memory_mib);
            [all.len() as f64, all.iter().map(|one| each(one.work)).sum()]
        }
    }
}

/// `size` different numbers below `count`, rising.
fn subset(count: usize, size: usize, rng: &mut Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    for place in 0..size {
        let with = usize::try_from(rng.between(place as u64, count as u64)).unwrap_or(place);
        all.swap(place, with);
    }
    all.truncate(size);
    all.sort_unstable();
    all
}

/// Copies the lines of the chosen functions from a trace of 2019 into `to`, which is made.
///
/// # Errors
/// When files cannot be read or written.
pub fn write(from: &Path, to: &Path, sample: &Sample) -> Result<(), TraceError> {
    let unwritten = |path: &Path| {
        let path = path.to_owned();
        move |source| TraceError::Write { path, source }
    };
    std::fs::create_dir_all(to).map_err(unwritten(to))?;
    let chosen: HashSet<usize> = sample.functions.iter().copied().collect();
    let (mut keys, mut files) = (HashSet::new(), Vec::new());
    for name in ["invocations.csv", "durations.csv", "memory.csv"] {
        let (source, target) = (from.join(name), to.join(name));
        let table = Table::open(&source)?;
        let hash = table.column("HashFunction")?;
        let file = Whole::begin(&target).map_err(unwritten(&target))?;
        let mut out = csv::Writer::from_writer(file);
        let told = |error: csv::Error| unwritten(&target)(error.into());
        out.write_record(table.as_they_are()).map_err(told)?;
        let mut index = 0;
        table.each(|line| {
            let key = line.text(hash);
            let keep = if name == "invocations.csv" {
                let keep = chosen.contains(&index);
                if keep {
                    keys.insert(key.to_owned());
                }
                keep
            } else {
                keys.contains(key)
            };
            index += 1;
            if keep { out.write_record(line.fields()).map_err(told) } else { Ok(()) }
        })?;
        let out = out.into_inner().map_err(|error| unwritten(&target)(error.into_error()))?;
        files.push(out);
    }
    let invocations = files.remove(0);
    all_done(files, invocations).map_err(unwritten(to))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::azure2019::{self, read};
    use crate::trace::synth::{Mode, Synth};

    #[test]
    fn distances_are_areas() {
        assert_eq!(wasserstein(&[0.0, 1.0], &[0.0, 1.0], 1.0), 0.0);
        assert_eq!(wasserstein(&[0.0], &[3.0], 1.0), 3.0);
        assert_eq!(wasserstein(&[0.0, 0.0, 3.0, 3.0], &[0.0, 3.0], 3.0), 0.0);
        assert!((wasserstein(&[0.0, 1.0, 3.0], &[5.0, 6.0, 8.0], 1.0) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn more_trials_come_closer_and_the_files_hold_what_was_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("all");
        let synth = Synth {
            functions: 50,
            beginning: 1,
            target: 1,
            step: 1,
            minutes: 1,
            runtime_ms: 5,
            memory_mib: 6,
            mode: Mode::Normal,
            invocations: None,
            seed: 1,
        };
        synth.write(&from).unwrap();
        // Every function another count: the first minute's column is spoilt on purpose.
        let path = from.join("invocations.csv");
        let text = std::fs::read_to_string(&path).unwrap();
        let edited: Vec<String> = text
            .lines()
            .enumerate()
            .map(|(n, line)| line.replacen(",http,60,", &format!(",http,{},", n * n), 1))
            .collect();
        std::fs::write(&path, edited.join("\n")).unwrap();
        let functions = read(&from, 2).unwrap();
        let of_all = |size, trials| choose((&functions, &functions), size, trials, 7);
        let one = of_all(10, 1).unwrap();
        let many = of_all(10, 200).unwrap();
        assert!(many.distance <= one.distance, "{} {}", many.distance, one.distance);
        assert_eq!(many, of_all(10, 200).unwrap(), "the seed reproduces");
        // Like the few that are invoked most, rather than like all.
        let most = choose((&functions, &functions[40..]), 10, 200, 7).unwrap();
        let sum = |sample: &Sample| sample.functions.iter().sum::<usize>();
        assert!(sum(&most) > sum(&many), "{most:?} {many:?}");
        let to = dir.path().join("few");
        write(&from, &to, &many).unwrap();
        let few = read(&to, 2).unwrap();
        assert_eq!(few.len(), 10);
        for (chosen, written) in many.functions.iter().zip(&few) {
            assert_eq!(functions[*chosen].source, written.source);
        }
        assert_eq!(of_all(50, 1).unwrap().distance, 0.0, "all of them");
        assert!(of_all(51, 1).is_err() && of_all(0, 1).is_err());
    }

    #[test]
    fn quotes_a_byte_order_mark_and_empty_lines_are_no_matter() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("all"), dir.path().join("few"));
        azure2019::tests::write(&make(&from), |_, text| {
            let text =
                text.replace("HashOwner,HashApp,HashFunction", "HashFunction,HashOwner,HashApp");
            let line = |line: &str| match line.split(',').collect::<Vec<_>>().as_slice() {
                [owner, app, function, rest @ ..] if *owner != "HashFunction" => {
                    format!("\"{function}\",\"an, owner: {owner}\",{app},{}\n\n", rest.join(","))
                }
                _ => format!("\u{feff}{line}\n"),
            };
            text.lines().map(line).collect()
        });
        let functions = read(&from, 2).unwrap();
        let chosen = Sample { functions: vec![1], distance: 0.0 };
        write(&from, &to, &chosen).unwrap();
        let few = read(&to, 2).unwrap();
        assert_eq!((few.len(), &few[0].source), (1, &functions[1].source));
    }

    fn make(dir: &Path) -> std::path::PathBuf {
        std::fs::create_dir(dir).unwrap();
        dir.to_owned()
    }

    proptest! {
        #[test]
        fn a_distance_is_symmetric_and_that_of_the_means_at_least(
            a in prop::collection::vec(0.0_f64..100.0, 1..20),
            b in prop::collection::vec(0.0_f64..100.0, 1..20),
        ) {
            let (there, back) = (wasserstein(&a, &b, 1.0), wasserstein(&b, &a, 1.0));
            prop_assert!((there - back).abs() < 1e-9);
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            prop_assert!(there + 1e-9 >= (mean(&a) - mean(&b)).abs());
        }
    }
}

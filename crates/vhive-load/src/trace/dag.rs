//! Workflows made of a trace's functions: each function is a step of at most one.
//!
//! A workflow is begun as often, and when, as the trace invokes its first function; what the other
//! functions are invoked for in the trace counts no more, and each runs as long and uses as much
//! memory as its own percentiles say.
//!
//! # Source
//! invitro `pkg/generator/dag_generation.go` and `docs/configuration.md`. The original's code gives
//! every workflow the arrivals of the trace's first function, its documentation those of the
//! workflow's own; this is the latter.

use std::collections::VecDeque;
use std::path::Path;

use super::draw::Stats;
use super::table::Table;
use super::{Plan, Source, TraceError};
use crate::flow::{Flow, Flows, Step};
use crate::rng::Rng;

/// How often a size that is too large for the trace is drawn again.
const TRIES: u32 = 10;
/// What is drawn from the seed for workflows: their sizes and shapes, and what their steps do.
const SHAPES: u64 = 0x0064_6167;
const WORK: u64 = 0x0077_6f72_6b00;

/// How large workflows are.
#[derive(Clone, Debug, PartialEq)]
pub enum Size {
    /// All alike.
    Fixed(usize, usize),
    /// Width and depth drawn by the shares of a table.
    Drawn(Shares),
}

/// Values and the per cent of workflows that have at most that one.
type Steps = Vec<(usize, f64)>;

/// How many workflows have at most which width and depth.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    widths: Steps,
    depths: Steps,
}

impl Shares {
    /// Reads `dag_structure.csv`: `Width`, `WidthPercentile`, `Depth`, `DepthPercentile`.
    ///
    /// # Errors
    /// By line and column; also when shares fall, or do not reach 100 %.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let table = Table::open(path)?;
        let columns =
            |value, share| Ok::<_, TraceError>([table.column(value)?, table.column(share)?]);
        let (width, depth) =
            (columns("Width", "WidthPercentile")?, columns("Depth", "DepthPercentile")?);
        let mut all = Self { widths: Vec::new(), depths: Vec::new() };
        table.each(|line| {
            for ([value, share], steps) in [(width, &mut all.widths), (depth, &mut all.depths)] {
                // Behind the hundredth per cent a column is padded.
                if steps.last().is_some_and(|(_, percent)| *percent == 100.0) {
                    continue;
                }
                let size: usize = line.parse(value, "number")?;
                let percent: f64 =
                    line.text(share).trim_end_matches('%').parse().map_err(|_| {
                        line.wrong(share, &format!("{:?} is no per cent", line.text(share)))
                    })?;
                let before = steps.last().map_or(0.0, |(_, percent)| *percent);
                if !(before..=100.0).contains(&percent) {
                    return Err(line.wrong(share, "the shares fall, or are above 100 %"));
                }
                if size == 0 {
                    return Err(line.wrong(value, "must be at least 1"));
                }
                steps.push((size, percent));
            }
            Ok(())
        })?;
        for (steps, name) in [(&all.widths, "WidthPercentile"), (&all.depths, "DepthPercentile")] {
            if steps.last().is_none_or(|(_, percent)| *percent != 100.0) {
                let problem = format!("{name} does not reach 100 %");
                return Err(TraceError::File { path: path.to_owned(), problem });
            }
        }
        Ok(all)
    }

    /// A size that so many functions are enough for.
    fn draw(&self, functions: usize, rng: &mut Rng) -> (usize, usize) {
        for _ in 0..=TRIES {
            let mut of = |steps: &Steps| {
                let percent = rng.unit() * 100.0;
                let at = steps.iter().find(|(_, share)| *share >= percent).or(steps.last());
                at.map_or(1, |(size, _)| *size)
            };
            let (depth, width) = (of(&self.depths), of(&self.widths));
            if most(width, depth) <= functions {
                return (width, depth);
            }
        }
        (1, functions)
    }
}

/// Functions that a workflow of a size may need.
const fn most(width: usize, depth: usize) -> usize {
    depth.saturating_sub(1).saturating_mul(width).saturating_add(1)
}

/// Makes workflows of functions 0, 1, 2 … until those that are left may not be enough for one more.
///
/// # Errors
/// When they are not enough for the first.
pub fn flows(size: &Size, functions: usize, seed: u64) -> Result<Vec<Flow>, TraceError> {
    let mut rng = Rng::of_part(seed, SHAPES);
    let (mut all, mut used) = (Vec::new(), 0);
    loop {
        let (width, depth) = match size {
            Size::Fixed(width, depth) => (*width, *depth),
            Size::Drawn(shares) => shares.draw(functions, &mut rng),
        };
        if width == 0 || depth == 0 {
            return Err(TraceError::Absurd("Width and Depth must be at least 1".to_owned()));
        }
        if functions - used < most(width, depth) {
            break;
        }
        let steps = grow(width, depth, used, &mut rng);
        used += steps.len();
        let flow = Flow::new(steps);
        all.push(flow.ok_or_else(|| TraceError::Absurd("a workflow is no tree".to_owned()))?);
    }
    if all.is_empty() {
        let text = format!("{functions} functions are not enough for one workflow of that size");
        return Err(TraceError::Absurd(text));
    }
    Ok(all)
}

/// A tree whose levels do not get narrower: from one step to `width` at the last level. Each step
/// has a next one, down to the last level; what a level has more than the one above it branches off
/// from steps of that one, how many from which is drawn.
fn grow(width: usize, depth: usize, first: usize, rng: &mut Rng) -> Vec<Step> {
    let levels = levels(width, depth, rng);
    let target = |step: usize| u32::try_from(first + step).unwrap_or(u32::MAX);
    let mut steps = vec![Step { target: target(0), ..Step::default() }];
    let mut level: VecDeque<usize> = VecDeque::from([0]);
    for (below, wide) in (1_u32..).zip(&levels[1..]) {
        let mut more = wide - level.len();
        let mut next = VecDeque::new();
        while let Some(at) = level.pop_front() {
            let mut add = |steps: &mut Vec<Step>| {
                steps.push(Step { target: target(steps.len()), depth: below, ..Step::default() });
                next.push_back(steps.len() - 1);
                steps.len() - 1
            };
            steps[at].then = Some(add(&mut steps));
            // The last step of a level takes what is left.
            let here = if level.is_empty() { more } else { upto(more, rng) };
            more -= here;
            steps[at].branches = (0..here).map(|_| add(&mut steps)).collect();
        }
        level = next;
    }
    steps
}

/// Steps per level.
fn levels(width: usize, depth: usize, rng: &mut Rng) -> Vec<usize> {
    let mut all = vec![1];
    for _ in 1..depth.saturating_sub(1) {
        let last = all[all.len() - 1];
        all.push(last + upto(width - last, rng));
    }
    if depth > 1 {
        all.push(width);
    }
    all
}

/// 0 to `most`, each as likely.
fn upto(most: usize, rng: &mut Rng) -> usize {
    usize::try_from(rng.between(0, most as u64 + 1)).unwrap_or(most)
}

/// Leaves only the workflows' first functions to be invoked by themselves, and gives what the steps
/// behind them do: drawn by seed, function and how often the workflow was begun before.
///
/// # Errors
/// When a function's times are known rather than counted: there is nothing to draw from.
pub fn set(plan: &mut Plan, flows: &[Flow]) -> Result<Flows, TraceError> {
    let mut stats: Vec<Stats> = Vec::with_capacity(plan.functions.len());
    let entries: Vec<u32> = flows.iter().map(Flow::entry).collect();
    for (index, function) in (0_u32..).zip(&mut plan.functions) {
        let Source::Counts { counts, stats: own } = &mut function.source else {
            let text = format!("{}: workflows are made of counted invocations", function.name);
            return Err(TraceError::Absurd(text));
        };
        if entries.binary_search(&index).is_err() {
            counts.iter_mut().for_each(|count| *count = 0);
        }
        stats.push(own.clone());
    }
    let seed = plan.seed;
    let work = move |target: u32, nth: u64| {
        let own = stats.get(usize::try_from(target).ok()?)?;
        let of_function = Rng::of_part(seed ^ WORK, target.into()).bits();
        Some(own.draw(&mut Rng::of_part(of_function, nth)))
    };
    Ok(Flows::new(flows.to_vec(), Box::new(work)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    /// The original's sample, byte order mark and padding included.
    const SAMPLE: &str = "\u{feff}Width,WidthPercentile,Depth,DepthPercentile,TotalNodes,TotalNodes\n\
        1,0.00%,1,0.00%,2,0.00%\n1,78.66%,1,12.51%,2,55.98%\n2,92.13%,2,67.96%,3,79.20%\n\
        3,95.24%,3,86.84%,4,86.63%\n4,100.00%,4,100.00%,5,100.00%\n9,1.00%,x,,,\n";

    fn read(text: &str) -> Result<Shares, TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dag_structure.csv");
        std::fs::write(&path, text).unwrap();
        Shares::read(&path)
    }

    #[test]
    fn sizes_are_drawn_by_their_shares() {
        let shares = read(SAMPLE).unwrap();
        let mut rng = Rng::new(11);
        let n = 20_000;
        let all: Vec<(usize, usize)> = (0..n).map(|_| shares.draw(1000, &mut rng)).collect();
        let share = |fits: &dyn Fn(&(usize, usize)) -> bool| {
            all.iter().filter(|size| fits(size)).count() as f64 / f64::from(n)
        };
        assert!((share(&|(width, _)| *width == 1) - 0.7866).abs() < 0.02);
        assert!((share(&|(_, depth)| *depth == 2) - 0.5545).abs() < 0.02);
        assert!((share(&|(_, depth)| *depth == 4) - 0.1316).abs() < 0.02);
        assert!((0..100).all(|_| {
            let (width, depth) = shares.draw(3, &mut rng);
            most(width, depth) <= 3
        }));
    }

    #[test]
    fn mistakes_in_a_table_of_sizes_have_a_line_and_a_column() {
        let spoilt = |from: &str, to: &str| SAMPLE.replace(from, to);
        for (text, said) in [
            ("Width,Depth\n1,1\n".to_owned(), "no column \"WidthPercentile\""),
            (spoilt("92.13%", "many"), "dag_structure.csv:4: column 2"),
            (spoilt("67.96%", "7.96%"), "dag_structure.csv:4: column 4"),
            (spoilt("\n3,95", "\n0,95"), "dag_structure.csv:5: column 1"),
            (spoilt("4,100.00%,4,", "4,99.00%,4,"), "dag_structure.csv:7: column 2"),
            (
                spoilt("4,100.00%,4,100.00%,5,100.00%\n9,1.00%,x,,,\n", ""),
                "WidthPercentile does not reach 100",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{error} for {said}");
        }
    }

    #[test]
    fn functions_are_used_once_and_too_few_are_named() {
        let all = flows(&Size::Fixed(2, 3), 20, 4).unwrap();
        let mut targets: Vec<u32> =
            all.iter().flat_map(|flow| flow.steps().iter().map(|step| step.target)).collect();
        let count = targets.len();
        targets.sort_unstable();
        targets.dedup();
        assert_eq!(targets.len(), count);
        assert!((16..=20).contains(&count), "less than one workflow is left over: {count}");
        assert_eq!(flows(&Size::Fixed(1, 1), 3, 0).unwrap().len(), 3);
        for (size, functions) in
            [(Size::Fixed(5, 5), 20), (Size::Fixed(0, 1), 9), (Size::Fixed(1, 0), 9)]
        {
            assert!(flows(&size, functions, 0).is_err());
        }
    }

    proptest! {
        #[test]
        fn trees_have_the_width_and_depth_asked_for(
            width in 1_usize..9, depth in 1_usize..9, seed: u64,
        ) {
            let functions = most(width, depth);
            let all = flows(&Size::Fixed(width, depth), functions, seed).unwrap();
            let flow = &all[0];
            prop_assert_eq!(&all, &flows(&Size::Fixed(width, depth), functions, seed).unwrap());
            let wide = if depth == 1 { 1 } else { width };
            prop_assert_eq!(flow.depth_and_width(), (u32::try_from(depth).unwrap(), wide));
            let last = u32::try_from(depth).unwrap() - 1;
            for step in flow.steps() {
                prop_assert_eq!(step.then.is_none(), step.depth == last, "chains reach the last level");
                for next in step.then.iter().chain(&step.branches) {
                    prop_assert_eq!(flow.steps()[*next].depth, step.depth + 1);
                }
            }
        }
    }
}

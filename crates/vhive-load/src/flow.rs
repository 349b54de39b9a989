//! Requests that follow one another: a workflow is sent step by step, each once the one before has
//! succeeded.
//!
//! ```text
//!   at its time ──► step 0 ──ok──► step 1 ──ok──► step 2        one chain
//!                              └─► step 3 ──ok──► step 4        a branch: a chain of its own
//! ```
//!
//! # Source
//! invitro `pkg/driver/trace_driver.go`, `invokeFunction`: a chain tries one failed step again, once;
//! at the second failure it ends there, and the other chains go on.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use crate::call::Work;
use crate::collect::{Collector, Held};
use crate::row::{Outcome, Shot};
use crate::stop::Stop;
use crate::wire::Wires;

/// One request of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Index of its target.
    pub target: u32,
    /// How many steps are before it.
    pub depth: u32,
    /// The step that goes on with its chain.
    pub then: Option<usize>,
    /// Steps that begin chains of their own.
    pub branches: Vec<usize>,
}

/// The steps of a workflow, a tree; the first one is sent at its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow(Vec<Step>);

impl Flow {
    /// `None` without steps, or when a step is not behind the one that leads to it.
    #[must_use]
    pub fn new(steps: Vec<Step>) -> Option<Self> {
        let next = |step: &Step| step.then.into_iter().chain(step.branches.clone());
        let rises = |(at, step): (usize, &Step)| next(step).all(|to| to > at && to < steps.len());
        let fits = !steps.is_empty() && steps.iter().enumerate().all(rises);
        fits.then_some(Self(steps))
    }

    /// Its steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The target that begins it.
    #[must_use]
    pub fn entry(&self) -> u32 {
        self.0[0].target
    }

    /// The most steps one behind another, and the most at the same depth.
    #[must_use]
    pub fn depth_and_width(&self) -> (u32, usize) {
        let mut at: HashMap<u32, usize> = HashMap::new();
        self.0.iter().for_each(|step| *at.entry(step.depth).or_default() += 1);
        let depth = self.0.iter().map(|step| step.depth + 1).max().unwrap_or(0);
        (depth, at.into_values().max().unwrap_or(0))
    }

    /// Steps that come behind this one.
    fn behind(&self, step: usize) -> u64 {
        let (mut count, mut left) = (0, vec![step]);
        while let Some(at) = left.pop() {
            let step = &self.0[at];
            left.extend(step.then.iter().chain(&step.branches));
            count += 1;
        }
        count - 1
    }
}

/// What step number so and so of a target shall do, by how often its workflow was begun before.
pub type WorkOf = Box<dyn Fn(u32, u64) -> Option<Work> + Send + Sync>;

/// The workflows of a run. A shot at a target that begins none is a single request.
pub struct Flows {
    by_entry: HashMap<u32, Flow>,
    work: WorkOf,
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("by_entry", &self.by_entry).finish_non_exhaustive()
    }
}

impl Flows {
    /// These; of several with the same entry the last one counts.
    #[must_use]
    pub fn new(all: Vec<Flow>, work: WorkOf) -> Self {
        Self { by_entry: all.into_iter().map(|flow| (flow.entry(), flow)).collect(), work }
    }
}

/// Sends what follows.
#[derive(Debug)]
pub(crate) struct Walker {
    pub(crate) flows: Flows,
    pub(crate) collector: Arc<Collector>,
    pub(crate) wires: Arc<Wires>,
    pub(crate) stop: Stop,
    /// The number of the next request.
    pub(crate) numbers: AtomicU64,
    /// Steps that were not sent because one before them failed.
    pub(crate) unfollowed: AtomicU64,
    /// Steps that were not sent because the run was stopped.
    pub(crate) unsent: AtomicU64,
    /// Steps that were sent once more.
    pub(crate) retries: AtomicU64,
}

/// One workflow under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// The shot that began it.
    shot: Shot,
    /// How many of its kind were begun before.
    nth: u64,
}

impl Walker {
    /// Sends a shot, and later what follows it. `begun` counts shots by target.
    pub(crate) fn send(self: &Arc<Self>, shot: Shot, begun: &mut HashMap<u32, u64>) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.collector.begin(number, shot);
        if self.flows.by_entry.contains_key(&shot.target) {
            let count = begun.entry(shot.target).or_default();
            let (told, ended) = oneshot::channel();
            pending.told = Some(told);
            self.go_on(Begun { shot, nth: *count }, 0, (ended, self.collector.hold()));
            *count += 1;
        }
        self.wires.send(pending);
    }

    /// How many steps a shot at a target is.
    pub(crate) fn steps(&self, target: u32) -> u64 {
        self.flows.by_entry.get(&target).map_or(1, |flow| flow.steps().len() as u64)
    }

    /// Goes on with a chain whose step `at` is under way.
    fn go_on(self: &Arc<Self>, begun: Begun, at: usize, under_way: UnderWay) {
        let chain = Arc::clone(self).chain(begun, at, under_way);
        // Boxed: the chain begins others like itself.
        let chain: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(chain);
        tokio::spawn(chain);
    }

    async fn chain(self: Arc<Self>, begun: Begun, mut at: usize, (mut ended, held): UnderWay) {
        let Some(flow) = self.flows.by_entry.get(&begun.shot.target) else { return };
        let mut may_retry = true;
        loop {
            let mut is_retry = false;
            // Whoever gives a request up tells that it is unfinished.
            let outcome = ended.await.unwrap_or(Outcome::Unfinished);
            let next = match outcome {
                Outcome::Ok => {
                    for branch in &flow.steps()[at].branches {
                        if let Some(ended) = self.step(begun, flow, *branch, false) {
                            self.go_on(begun, *branch, (ended, self.collector.hold()));
                        }
                    }
                    flow.steps()[at].then
                }
                Outcome::Error | Outcome::Timeout if may_retry => {
                    (may_retry, is_retry) = (false, true);
                    Some(at)
                }
                Outcome::Error | Outcome::Timeout | Outcome::Unfinished => {
                    self.unfollowed.fetch_add(flow.behind(at), Ordering::Relaxed);
                    None
                }
            };
            let send = |next| Some((next, self.step(begun, flow, next, is_retry)?));
            let sent = next.and_then(send);
            let Some((next, reply)) = sent else { break };
            (at, ended) = (next, reply);
        }
        drop(held);
    }

    /// Sends a step now; `None` when the run is to stop.
    fn step(
        &self,
        begun: Begun,
        flow: &Flow,
        at: usize,
        is_retry: bool,
    ) -> Option<oneshot::Receiver<Outcome>> {
        if self.stop.is_asked() {
            // What failed was sent; only its second try is left out.
            let left = u64::from(!is_retry) + flow.behind(at);
            self.unsent.fetch_add(left, Ordering::Relaxed);
            return None;
        }
        self.retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
        let target = flow.steps()[at].target;
        // The first step's work is its shot's.
        let work = if at == 0 { begun.shot.work } else { (self.flows.work)(target, begun.nth) };
        let at_ns = self.collector.clock().now_ns();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let shot = Shot { at_ns, target, work, nth: begun.shot.nth };
        let mut pending = self.collector.begin(number, shot);
        pending.flow_ns = Some(begun.shot.at_ns);
        let (told, ended) = oneshot::channel();
        pending.told = Some(told);
        self.wires.send(pending);
        Some(ended)
    }
}

/// A request's end, and what keeps the run from ending before.
type UnderWay = (oneshot::Receiver<Outcome>, Held);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_a_tree_whose_steps_rise() {
        let step = |then, branches: &[usize]| Step {
            target: 0,
            depth: 0,
            then,
            branches: branches.to_vec(),
        };
        let flow = Flow::new(vec![
            step(Some(1), &[2]),
            step(None, &[]),
            step(Some(3), &[]),
            step(None, &[]),
        ]);
        let flow = flow.expect("a tree");
        assert_eq!([0, 1, 2, 3].map(|at| flow.behind(at)), [3, 0, 1, 0]);
        for bad in
            [vec![], vec![step(Some(0), &[])], vec![step(Some(1), &[])], vec![step(None, &[7])]]
        {
            assert_eq!(Flow::new(bad), None);
        }
    }
}

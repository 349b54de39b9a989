//! Policies against each other in virtual time: `vhive study simulate`.
//!
//! ```text
//!   trace ──► Workload ─┐            ┌─ alone: function by function, on all CPUs
//!   records ──► Starts ─┼─► Cell ────┤
//!   policies ───────────┘  (one per  └─ together: nodes of limited memory, in one order
//!                          function)         │
//!                                            ▼
//!                     rows.jsonl, simulation.json ──► report
//! ```
//!
//! | file | what |
//! |---|---|
//! | `plan.rs` | what is simulated |
//! | `workload.rs`, `counts.rs` | which invocations come |
//! | `starts.rs` | how long starts take, from measured records |
//! | `cell.rs`, `cell/*.rs`, `free.rs`, `meter.rs` | one function: queue, instances, their starts, the policy that is asked |
//! | `alone.rs`, `together.rs`, `turns.rs`, `events.rs` | time, and what surrounds functions |
//! | `tally.rs`, `histogram.rs` | what adds up |
//! | `result.rs`, `writer.rs` | rows and facts, and their files |
//!
//! What decides is `vhive-policy`, which the node runs too. What the node does with a decision is
//! modelled here; how well, is measured (`sim-vs-live`).

mod alone;
mod cell;
mod counts;
mod events;
mod free;
mod histogram;
mod meter;
mod plan;
mod result;
mod starts;
mod tally;
mod together;
mod turns;
mod workload;
mod writer;

#[cfg(test)]
mod tests;

pub use plan::{
    ClusterPlan, FunctionPlan, Memory, PolicyPlan, SIMULATE, SimPlan, TraceKind, TracePlan,
};
pub use result::{Latency, Minute, Outcome, SIMULATION, SimFacts, Simulation};
pub use starts::{Measured, Profile, Starts, StartsError};
pub use workload::{Workload, WorkloadError};
pub use writer::{BeginError, SimWriter};

use std::convert::Infallible;

use cell::Common;
use together::{Nodes, TurnsOf};
pub use vhive_policy::placement::Placement;

/// Memory in bytes of a node that has no limit.
const UNLIMITED: u64 = 1 << 60;

/// One policy, and where its instances go.
struct Job {
    policy: String,
    common: Common,
    placement: Option<Placement>,
}

/// Simulates every policy of a plan (and every placement, on nodes). `tell` gets each as it is
/// done, in the plan's order.
pub fn simulate(
    plan: &SimPlan,
    inputs: (&Workload, &Starts),
    mut tell: impl FnMut(&Outcome),
) -> Vec<Outcome> {
    let mut all = Vec::new();
    let done = simulate_rest(plan, inputs, 0, |outcome| {
        tell(&outcome);
        all.push(outcome);
        Ok::<(), Infallible>(())
    });
    let Ok(()) = done;
    all
}

/// Likewise without the first so many, which are `done`. What `tell` cannot take ends it: those that
/// follow are not begun.
///
/// # Errors
/// What `tell` says.
pub fn simulate_rest<E>(
    plan: &SimPlan,
    (workload, starts): (&Workload, &Starts),
    done: usize,
    mut tell: impl FnMut(Outcome) -> Result<(), E>,
) -> Result<(), E> {
    let threads = match plan.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let cluster = &plan.cluster;
    let turns = TurnsOf { each: cluster.start_threads, most: cell::nanos(cluster.start_turn.0) };
    // Functions touch each other through a node's memory, or its turns.
    let coupled = cluster.nodes > 0 || turns.each > 0;
    let run = |job: &Job| {
        let tally = if coupled {
            let (count, memory) = match cluster.nodes {
                0 => (1, UNLIMITED),
                nodes => (nodes, cluster.memory.0),
            };
            let placement = job.placement.unwrap_or(Placement::FirstFit);
            let nodes = Nodes { count, memory, placement, turns };
            together::run(&job.common, (workload, starts), plan.seed, nodes)
        } else {
            alone::run(&job.common, (workload, starts), plan.seed, threads)
        };
        Outcome::of(&tally, job.policy.clone(), job.placement, plan.cluster.nodes)
    };
    // Where nothing couples functions a run takes all threads, else one.
    let at_a_time = if coupled { threads } else { 1 };
    let all = jobs(plan, workload.begins(starts));
    for jobs in all.get(done..).unwrap_or_default().chunks(at_a_time.max(1)) {
        std::thread::scope(|scope| {
            let running: Vec<_> = jobs.iter().map(|job| scope.spawn(|| run(job))).collect();
            running.into_iter().try_for_each(|one| match one.join() {
                Ok(outcome) => tell(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
    }
    Ok(())
}

/// Labels of all outcomes that a plan has, in their order.
fn labels(plan: &SimPlan) -> Vec<String> {
    let of = |policy: &PolicyPlan| {
        let label = policy.label();
        let on = move |placement: Option<Placement>| result::label(&label, placement);
        placements(plan).into_iter().map(on).collect::<Vec<_>>()
    };
    plan.policies.iter().flat_map(of).collect()
}

fn placements(plan: &SimPlan) -> Vec<Option<Placement>> {
    match plan.cluster.nodes {
        0 => vec![None],
        _ => plan.cluster.placements.iter().copied().map(Some).collect(),
    }
}

fn jobs(plan: &SimPlan, begins: cell::Ns) -> Vec<Job> {
    let placements = placements(plan);
    let job = |policy: &PolicyPlan, placement: Option<Placement>| Job {
        policy: policy.label(),
        common: Common {
            rules: policy.rules(plan.function.concurrency),
            tick: plan.tick.0,
            late: cell::nanos(plan.late.0),
            begins,
            leaves_out: true,
            function: policy.function(&plan.function),
        },
        placement,
    };
    let of = |policy| placements.iter().map(move |placement| job(policy, *placement));
    plan.policies.iter().flat_map(of).collect()
}

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
//! | `result.rs` | rows and facts |
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

#[cfg(test)]
mod tests;

pub use plan::{
    ClusterPlan, FunctionPlan, Memory, PolicyPlan, SIMULATE, SimPlan, TraceKind, TracePlan,
};
pub use result::{Latency, Minute, Outcome, SIMULATION, SimFacts, Simulation};
pub use starts::{Measured, Profile, Starts, StartsError};
pub use workload::{Workload, WorkloadError};

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
    (workload, starts): (&Workload, &Starts),
    mut tell: impl FnMut(&Outcome),
) -> Vec<Outcome> {
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
    let mut outcomes = Vec::new();
    for jobs in jobs(plan, workload.begins(starts)).chunks(at_a_time.max(1)) {
        std::thread::scope(|scope| {
            let running: Vec<_> = jobs.iter().map(|job| scope.spawn(|| run(job))).collect();
            for one in running {
                match one.join() {
                    Ok(outcome) => {
                        tell(&outcome);
                        outcomes.push(outcome);
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    outcomes
}

fn jobs(plan: &SimPlan, begins: cell::Ns) -> Vec<Job> {
    let placements: Vec<Option<Placement>> = match plan.cluster.nodes {
        0 => vec![None],
        _ => plan.cluster.placements.iter().copied().map(Some).collect(),
    };
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

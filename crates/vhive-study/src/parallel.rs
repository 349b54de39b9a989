//! The study of concurrent cold starts of one function.

use std::sync::Arc;

use tokio::task::JoinSet;
use vhive_api::{HostCounters, InvocationRecord, RuntimeName};

use crate::cold_start::blank;
use crate::function::Variant;
use crate::http::{ApiError, Reply};
use crate::plan::Kind;
use crate::schedule::{self, Step};
use crate::session::{Session, StudyError, chain};
use crate::target::Counted;

/// Prepares every function and kind, then sends 1, 2, 4 … invocations at once. One row each.
///
/// # Errors
/// What ended it early.
pub async fn run(session: &mut Session) -> Result<(), StudyError> {
    if let Some(kind) =
        session.plan.kinds.iter().find(|kind| matches!(kind, Kind::Warm | Kind::Record))
    {
        return Err(StudyError::Plan(format!("kinds: {kind} starts cannot be concurrent")));
    }
    let most = session.plan.most_parallel;
    let mut unfit = Vec::new();
    for function in session.plan.functions.clone() {
        for kind in session.plan.kinds.clone() {
            let what = Variant { function: &function, kind, runtime: None };
            if let Err(why) = session.prepare(what, most.max(2)).await? {
                session.note(format!("{what} is not measured: {why}."))?;
                unfit.push((function.clone(), kind));
            }
        }
    }
    session.keep_accelerators().await?;
    for step in schedule::parallel(&session.plan) {
        if !unfit.contains(&(step.key.function.clone(), step.key.kind)) {
            measure(session, &step).await?;
        }
    }
    session.finish()
}

async fn measure(session: &mut Session, step: &Step) -> Result<(), StudyError> {
    let what = step.key.variant();
    session.empty(what).await?;
    let cache = session.drop_cache().await?;
    let service: Arc<str> = what.service().into();
    let request = Arc::new(session.function(what.function)?.request(&step.key.input)?.clone());
    let deadline = session.step_deadline();
    let begun = blank(session, step, cache);
    let mut waves: JoinSet<(Result<Reply, ApiError>, Option<InvocationRecord>)> = JoinSet::new();
    for _ in 0..step.key.level {
        let (target, service) = (session.target.clone(), Arc::clone(&service));
        let request = Arc::clone(&request);
        waves.spawn(async move { (target.invoke(&service, &request, deadline).await, None) });
    }
    let mut replies = waves.join_all().await;
    let counted = session.counted_each(&service).await?;
    let footprint = session.target.footprint(&service, deadline).await;
    let footprint = footprint.map_err(|source| StudyError::Node {
        doing: format!("cannot ask about {service}"),
        source,
    })?;
    for (reply, record) in &mut replies {
        if let Ok(reply) = reply {
            let found = session.target.record(&service, reply, deadline).await;
            *record = found.map_err(|source| StudyError::Node {
                doing: format!("cannot ask for records of {service}"),
                source,
            })?;
        }
    }
    let records = replies.iter().map(|(_, record)| record.as_ref());
    let used = of_each(&counted, &records.collect::<Vec<_>>());
    for ((reply, record), used) in replies.into_iter().zip(used) {
        let mut row = begun.clone();
        session.order += 1;
        row.order = session.order;
        row.rss_bytes = footprint.rss;
        row.pss_bytes = footprint.pss;
        row.guest_bytes = footprint.guest;
        row.counters = used;
        match reply {
            Err(error) => row.error = Some(chain(&error)),
            Ok(reply) => {
                row.client_us = Some(reply.took_us);
                let simulated = record.as_ref().is_some_and(|r| r.runtime == RuntimeName::Sim);
                if !reply.status.is_success() {
                    row.error = Some(format!("status {}", reply.status.as_u16()));
                } else if session.plan.check_replies && !simulated {
                    row.error = request.differs(&reply.body);
                }
            }
        }
        row.record = record;
        session.keep(&row)?;
    }
    session.empty(what).await
}

/// What the instance of each invocation has used of the host; of one that has served several of them, nobody
/// knows for which.
fn of_each(
    counted: &[Counted],
    records: &[Option<&InvocationRecord>],
) -> Vec<Option<HostCounters>> {
    let sandbox = |record: &Option<&InvocationRecord>| {
        record.and_then(|record| record.sandbox.as_ref()).map(|id| id.as_str().to_owned())
    };
    let all: Vec<Option<String>> = records.iter().map(sandbox).collect();
    let used = |mine: &Option<String>| {
        let served = all.iter().filter(|other| *other == mine).count();
        let mine = mine.as_ref().filter(|_| served == 1)?;
        let used = counted.iter().find(|one| one.sandbox == *mine)?.since_start();
        (!used.is_empty()).then_some(used)
    };
    all.iter().map(used).collect()
}

#[cfg(test)]
mod tests {
    use vhive_api::{Counter, SandboxId};

    use super::*;
    use crate::analysis::tests::fixture;

    #[test]
    fn each_invocation_has_what_its_own_instance_has_used() {
        let record = fixture().rows.into_iter().find_map(|row| row.record).expect("a record");
        let of = |sandbox: Option<&SandboxId>| InvocationRecord {
            sandbox: sandbox.cloned(),
            ..record.clone()
        };
        let ids: [SandboxId; 4] = std::array::from_fn(|_| SandboxId::random());
        // The second instance has served two, of one record nobody knows, the third is gone, and of the
        // fourth nothing was counted.
        let records =
            [Some(&ids[0]), Some(&ids[1]), Some(&ids[1]), None, Some(&ids[2]), Some(&ids[3])];
        let records = records.map(of);
        let counted = [(3, 10), (0, 7), (1, 8)].map(|(at, us)| Counted {
            sandbox: ids[at].as_str().to_owned(),
            counters: [(Counter::CpuUs, us), (Counter::Cycles, 5)].into_iter().collect(),
        });
        let mut counted = counted.to_vec();
        counted[0].counters.0.remove(&Counter::CpuUs);
        let all: Vec<_> = records.iter().map(Some).chain([None]).collect();
        let used = of_each(&counted, &all);
        let cpu =
            |used: &Option<HostCounters>| used.as_ref().and_then(|all| all.get(Counter::CpuUs));
        assert_eq!(
            used.iter().map(cpu).collect::<Vec<_>>(),
            [Some(7), None, None, None, None, None, None]
        );
        let events = used.iter().flatten().filter(|all| all.get(Counter::Cycles).is_some());
        assert_eq!(events.count(), 0, "events are counted from the look on");
        assert!(used[5].is_none(), "nothing is no zero");
    }
}

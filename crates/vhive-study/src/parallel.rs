//! The study of concurrent cold starts of one function.

use std::sync::Arc;

use tokio::task::JoinSet;
use vhive_api::{InvocationRecord, RuntimeName};

use crate::cold_start::blank;
use crate::function::Variant;
use crate::http::{ApiError, Reply};
use crate::plan::Kind;
use crate::schedule::{self, Step};
use crate::session::{Session, StudyError, chain};

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
    for (reply, record) in replies {
        let mut row = begun.clone();
        session.order += 1;
        row.order = session.order;
        row.rss_bytes = footprint.rss;
        row.pss_bytes = footprint.pss;
        row.guest_bytes = footprint.guest;
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

//! The study of cold starts: functions × start kinds × repetitions, one at a time.

use vhive_api::RuntimeName;

use crate::analysis::Key;
use crate::function::Variant;
use crate::host::load_average;
use crate::plan::{Cache, Kind};
use crate::row::{Row, StudyName};
use crate::schedule::{self, Step};
use crate::session::{Session, StudyError, chain};

/// Prepares every function and kind, then measures in turns. The rows are in the session's
/// directory.
///
/// # Errors
/// What ended it early; kinds that cannot be prepared, and invocations that fail, do not.
pub async fn run(session: &mut Session) -> Result<(), StudyError> {
    let mut unfit = Vec::new();
    for function in session.plan.functions.clone() {
        for kind in session.plan.kinds.clone() {
            let what = Variant { function: &function, kind, runtime: None };
            if let Err(why) = session.prepare(what, 1).await? {
                session.note(format!("{what} is not measured: {why}."))?;
                unfit.push((function.clone(), kind));
            } else if session.study == StudyName::Pages && kind == Kind::Reap {
                session.keep_working_set(&function).await?;
            }
        }
    }
    session.keep_accelerators().await?;
    for step in schedule::cold_start(&session.plan) {
        if !unfit.contains(&(step.key.function.clone(), step.key.kind)) {
            measure(session, &step).await?;
        }
    }
    session.finish()
}

/// Measures until it is served as asked for, at most as often as the plan says; every attempt is a
/// row.
pub(crate) async fn measure(session: &mut Session, step: &Step) -> Result<(), StudyError> {
    for attempt in 1..=session.plan.attempts {
        let cache = set_up(session, step, attempt).await?;
        let mut row = invoke(session, step, cache).await?;
        row.attempt = attempt;
        session.order += 1;
        row.order = session.order;
        session.keep(&row)?;
        let good = row.left_out().is_none();
        if !(step.leave && good) {
            session.empty(step.key.variant()).await?;
        }
        if good {
            break;
        }
    }
    Ok(())
}

/// Makes the next invocation one of the wanted kind; says what was done to the page cache.
async fn set_up(
    session: &mut Session,
    step: &Step,
    attempt: u32,
) -> Result<&'static str, StudyError> {
    let what = step.key.variant();
    let (function, kind) = (what.function, what.kind);
    match kind {
        Kind::Warm => {
            if !(step.follows && attempt == 1) {
                // A failure shows in the measurement itself.
                drop(session.rehearse(what).await?);
            }
            return Ok(Cache::Keep.as_str());
        }
        Kind::Record if attempt == 1 => {
            // A revision that has no working set yet.
            let applied = session.apply(what, 1).await;
            applied.map_err(|source| StudyError::Node {
                doing: format!("cannot apply {}", session.service(what)),
                source,
            })?;
            drop(session.rehearse(what).await?);
        }
        // Prefetching another input missed so much that the node wants to record again; what is
        // recorded shall be the stated input.
        _ if kind.prefetches() => {
            session.switch(what).await?;
            let service = session.service(what);
            let asked = session.target.will_record(&service, session.step_deadline()).await;
            let again = asked.map_err(|source| StudyError::Node {
                doing: format!("cannot ask for the snapshot of {service}"),
                source,
            })?;
            if again {
                if let Err(why) = session.prepare(what, 1).await? {
                    session
                        .note(format!("{function} {kind} could not be recorded again: {why}."))?;
                } else if session.study == StudyName::Pages {
                    session.keep_working_set(function).await?;
                }
            }
        }
        _ => session.switch(what).await?,
    }
    session.empty(what).await?;
    session.drop_cache().await
}

/// Sends the measured invocation and collects everything about it.
async fn invoke(session: &Session, step: &Step, cache: &'static str) -> Result<Row, StudyError> {
    let mut row = blank(session, step, cache);
    let service = session.service(step.key.variant());
    let request = session.function(&step.key.function)?.request(&step.key.input)?;
    let deadline = session.step_deadline();
    let failed = |source| StudyError::Node { doing: format!("cannot ask about {service}"), source };
    // What a warm instance has used before is not this invocation's.
    let before = match step.key.kind {
        Kind::Warm => session.counted(&service).await?,
        _ => None,
    };
    let reply = match session.target.invoke(&service, request, deadline).await {
        Ok(reply) => reply,
        Err(error) => {
            row.error = Some(chain(&error));
            return Ok(row);
        }
    };
    row.client_us = Some(reply.took_us);
    let after = session.counted(&service).await?;
    row.counters = match step.key.kind {
        Kind::Warm => after.zip(before).and_then(|(after, before)| after.since(&before)),
        _ => after.map(|after| after.since_start()),
    };
    row.record = session.target.record(&service, &reply, deadline).await.map_err(failed)?;
    let simulated = row.record.as_ref().is_some_and(|r| r.runtime == RuntimeName::Sim);
    if !reply.status.is_success() {
        let said: String = String::from_utf8_lossy(&reply.body).trim().chars().take(200).collect();
        row.error = Some(format!("status {}: {said}", reply.status.as_u16()));
    } else if session.plan.check_replies && !simulated {
        row.error = request.differs(&reply.body);
    }
    let footprint = session.target.footprint(&service, deadline).await.map_err(failed)?;
    row.rss_bytes = footprint.rss;
    row.pss_bytes = footprint.pss;
    row.guest_bytes = footprint.guest;
    Ok(row)
}

/// A row of a step before anything is known.
pub(crate) fn blank(session: &Session, step: &Step, cache: &str) -> Row {
    let Key { function, runtime, kind, input, level } = step.key.clone();
    Row {
        study: session.study,
        function,
        runtime,
        kind,
        repetition: step.repetition,
        order: 0,
        attempt: 1,
        input,
        recorded: kind.prefetches().then(|| session.plan.inputs.prepare.clone()),
        cache: cache.to_owned(),
        level,
        load: load_average(),
        client_us: None,
        rss_bytes: None,
        pss_bytes: None,
        guest_bytes: None,
        counters: None,
        error: None,
        record: None,
    }
}

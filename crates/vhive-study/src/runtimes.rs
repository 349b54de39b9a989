//! The study of sandboxes: the same functions in every runtime, in turns.

use vhive_api::RuntimeName;

use crate::cold_start;
use crate::density::{self, DensityError};
use crate::function::Variant;
use crate::host::load_average;
use crate::load::{self, Load};
use crate::plan::Kind;
use crate::schedule::{self, Step};
use crate::session::{Session, StudyError, chain};

/// Finds the runtimes that work, prepares every function in each, then measures in turns: starts
/// and warm requests, throughputs, and at last densities.
///
/// # Errors
/// What ended it early; what a runtime does not do, and invocations that fail, do not.
pub async fn run(session: &mut Session) -> Result<(), StudyError> {
    let mut unfit = Vec::new();
    let runtimes = prepare(session, &mut unfit).await?;
    if runtimes.is_empty() {
        return Err(StudyError::Plan("no runtime of this node works; see `vhive doctor`".into()));
    }
    session.keep_runtimes(&runtimes)?;
    session.keep_accelerators().await?;
    let steps = schedule::runtimes(&session.plan, &runtimes);
    for repetition in 1..=session.plan.repetitions {
        for step in steps.iter().filter(|step| step.repetition == repetition) {
            if !unfit.contains(&(step.key.function.clone(), step.key.runtime, step.key.kind)) {
                cold_start::measure(session, step).await?;
            }
        }
        for step in schedule::loads(&session.plan, &runtimes, repetition) {
            if !unfit.contains(&(step.key.function.clone(), step.key.runtime, Kind::Boot)) {
                throughput(session, &step).await?;
            }
        }
    }
    densities(session, &runtimes).await?;
    session.finish()
}

type Unfit = Vec<(String, Option<RuntimeName>, Kind)>;

/// Puts every service on the node; says which runtimes work, and notes what does not.
async fn prepare(session: &mut Session, unfit: &mut Unfit) -> Result<Vec<RuntimeName>, StudyError> {
    let mut wanted = session.plan.runtimes.names.clone();
    if wanted.is_empty() {
        wanted = session.target.runtimes();
        wanted.retain(|name| *name != RuntimeName::Sim);
    }
    let mut functions = session.plan.functions.clone();
    let loaded = session.plan.runtimes.load.iter().filter(|name| !functions.contains(name));
    let loaded: Vec<String> = loaded.cloned().collect();
    let also = functions.len();
    functions.extend(loaded);
    let mut kinds = vec![Kind::Boot];
    kinds.extend(session.plan.kinds.iter().filter(|kind| !matches!(kind, Kind::Boot | Kind::Warm)));
    let mut work = Vec::new();
    for runtime in wanted {
        let mut works = false;
        let (mut refused, mut restores) = (None, true);
        for (at, function) in functions.iter().enumerate() {
            for kind in kinds.iter().copied() {
                if at >= also && kind != Kind::Boot || (kind.restores() && !restores) {
                    unfit.push((function.clone(), Some(runtime), kind));
                    continue;
                }
                let what = Variant { function, kind, runtime: Some(runtime) };
                match session.prepare(what, 1).await? {
                    Ok(()) => works = true,
                    Err(why) => {
                        unfit.push((function.clone(), Some(runtime), kind));
                        if kind == Kind::Boot {
                            unfit.push((function.clone(), Some(runtime), Kind::Warm));
                        }
                        if kind.restores() && why.ends_with("restores no snapshots") {
                            restores = false;
                            session.note(format!("{runtime}: nothing is restored: {why}."))?;
                        } else {
                            session.note(format!("{what} is not measured: {why}."))?;
                            refused.get_or_insert(why);
                        }
                    }
                }
                // One whose first boot fails is not offered here, whatever the function.
                if at == 0 && kind == Kind::Boot && !works {
                    break;
                }
            }
            if !works {
                break;
            }
        }
        if works {
            work.push(runtime);
        }
    }
    Ok(work)
}

/// A closed loop over one instance that has just replied once.
async fn throughput(session: &mut Session, step: &Step) -> Result<(), StudyError> {
    let what = step.key.variant();
    let Some(runtime) = what.runtime else { return Ok(()) };
    let service = what.service();
    let busy = load_average();
    if let Err(why) = session.rehearse(what).await? {
        session.note(format!("The throughput of {what} is not measured: {why}."))?;
        return Ok(());
    }
    let request = session.function(what.function)?.request(&step.key.input)?.clone();
    let (plan, part) = (&session.plan, &session.plan.runtimes);
    let looped = load::Loop {
        service: service.clone(),
        request,
        check: plan.check_replies && runtime != RuntimeName::Sim,
        connections: part.connections,
        length: part.load_for.0,
        patience: plan.step_deadline.0,
    };
    let connections = part.connections;
    let before = session.counted(&service).await?;
    let done = load::run(&session.target, looped).await;
    let done = done.map_err(|source| StudyError::Node {
        doing: format!("cannot send requests to {service}"),
        source,
    })?;
    let after = session.counted(&service).await?;
    let counters = after.zip(before).and_then(|(after, before)| after.since(&before));
    let (median_us, p99_us) = done.quantiles().unzip();
    session.keep_load(Load {
        function: what.function.to_owned(),
        runtime,
        repetition: step.repetition,
        order: 0,
        connections,
        seconds: done.seconds,
        replies: done.times_us.len() as u64,
        failures: done.failures,
        first_failure: done.first_failure,
        median_us,
        p99_us,
        load: busy,
        counters,
    })?;
    session.empty(what).await
}

async fn densities(session: &mut Session, runtimes: &[RuntimeName]) -> Result<(), StudyError> {
    let part = session.plan.runtimes.clone();
    let Some(limit) = part.density else { return Ok(()) };
    let function = match session.function(&part.density_function) {
        Ok(known) => known.clone(),
        Err(_) => {
            let (dir, name) = (&session.plan.functions_dir, &part.density_function);
            crate::function::Function::load(dir, name)?
        }
    };
    // Every sandbox of the node's counts.
    session.clean().await?;
    for runtime in runtimes.iter().copied() {
        session.say(&format!("filling {limit} with {} in {runtime}", function.name));
        let edition = session.edition();
        let patience = part.density_deadline.0;
        let wanted =
            density::Wanted { function: &function, runtime, limit, patience, edition: &edition };
        match density::fill(&session.target, &wanted).await {
            Ok(density) => session.keep_density(&density)?,
            Err(DensityError::Node(source)) => {
                let doing = format!("cannot fill {limit} with {} in {runtime}", function.name);
                return Err(StudyError::Node { doing, source });
            }
            Err(error) => {
                let why = chain(&error);
                session.note(format!("The density of {runtime} is not measured: {why}."))?;
            }
        }
    }
    Ok(())
}

//! `vhive load experiments`: many experiments one after the other; a run that was killed goes on
//! where it was.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use vhive_load::Stop;
use vhive_load::trace::multi::{Experiment, Given, Multi};

use super::args::MultiArgs;
use super::trace::{Replay, planned, rows_dir};
use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;

/// Runs what is not finished yet. Exit code 1 when an experiment failed.
///
/// # Errors
/// When the studies, or any experiment's configuration or trace, cannot be used: before the first is
/// run.
pub(crate) async fn run(
    global: &Global,
    config: &Config,
    args: MultiArgs,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let multi = Multi::read(&args.studies)?;
    multi.without_effect().iter().for_each(|text| output::note(format!("without effect: {text}")));
    let all = multi.experiments(&args.studies)?;
    for one in &all {
        planned(&one.config).with_context(|| format!("experiment {}", one.name))?;
    }
    if !args.dry_run {
        // It may make what the experiments are given.
        script(&multi.pre_script).context("PreScript")?;
    }
    let others = args.to.given();
    let mut given = all.iter().map(|one| given(one, &others)).collect::<Result<Vec<_>, _>>()?;
    let bad = |one: &Experiment| match (args.retry_above, one.failed_share()) {
        (Some(most), Some(share)) => share > most,
        _ => false,
    };
    let waits: Vec<bool> = all
        .iter()
        .zip(&given)
        .map(|(one, given)| args.again || !one.is_done(given) || bad(one))
        .collect();
    if args.dry_run {
        show(global, &all, &waits)?;
        return Ok(ExitCode::SUCCESS);
    }
    let left = waits.iter().filter(|waits| **waits).count();
    if left < all.len() {
        output::note(format!(
            "{} of {} experiments were finished before",
            all.len() - left,
            all.len()
        ));
    }
    let (mut failed, mut skipped_study) = (0, None);
    for (number, (one, given)) in all.iter().zip(&mut given).enumerate() {
        let study = one.name.split('/').next().unwrap_or_default();
        if !waits[number] || skipped_study == Some(study) {
            continue;
        }
        output::note(format!("[{}/{}] {}", number + 1, all.len(), one.name));
        let replay =
            Replay { global, config, to: &args.to, experiment: &one.config, failures: Vec::new() };
        let tries = if args.fail_fast { 1 } else { 2 };
        if !attempt(&replay, (one, given), tries, stop).await? {
            if stop.is_asked() {
                bail!("stopped; run it again to go on with {}", one.name);
            }
            failed += 1;
            skipped_study = Some(study);
            output::note(format!("{} failed; the rest of its study is left out", one.name));
        }
    }
    script(&multi.post_script).context("PostScript")?;
    let finished = || all.iter().zip(&given).filter(|(one, given)| one.is_done(given));
    for (one, _) in finished() {
        let share = one.failed_share().unwrap_or_default();
        if share > 0.0 {
            output::line(format!("{}: {:.2} % of the requests failed", one.name, 100.0 * share));
        }
    }
    output::line(format!("{} experiments finished", finished().count()));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an experiment is given, as it is now.
fn given(one: &Experiment, others: &Value) -> anyhow::Result<Given> {
    one.given(others).with_context(|| format!("cannot read the trace of {}", one.name))
}

/// Whether it was finished within so many tries; `now` becomes what it was given then.
async fn attempt(
    replay: &Replay<'_>,
    (one, now): (&Experiment, &mut Given),
    tries: u32,
    stop: &Stop,
) -> anyhow::Result<bool> {
    for _ in 0..tries {
        one.begin().with_context(|| format!("cannot begin {}", one.name))?;
        let ran = async {
            script(&one.pre_script).context("PreScript")?;
            *now = given(one, &replay.to.given())?;
            let ran = replay.run(stop).await;
            let after = script(&one.post_script).context("PostScript");
            if let (Err(_), Err(why)) = (&ran, &after) {
                output::note(format!("{why:#}"));
            }
            // What is wrong with the run itself comes first.
            let code = ran?;
            after.map(|()| code)
        };
        let ran = ran.await;
        if stop.is_asked() {
            // Half an experiment is none.
            return Ok(false);
        }
        match ran {
            Ok(_) => {
                let share = failed_share(one)
                    .with_context(|| format!("cannot tell what of {} failed", one.name))?;
                one.set_done(now, share)
                    .with_context(|| format!("cannot say that {} is finished", one.name))?;
                return Ok(true);
            }
            Err(error) => output::print_error(&error.context(format!("experiment {}", one.name))),
        }
    }
    Ok(false)
}

/// Which share of its requests has not succeeded, as its summary says.
fn failed_share(one: &Experiment) -> anyhow::Result<f64> {
    let path = rows_dir(&one.config).join(super::SUMMARY);
    let summary: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let outcomes = summary["outcomes"].as_object().context("a summary without outcomes")?;
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let all: u64 = outcomes.values().map(count).sum();
    let good = outcomes.get("ok").map_or(0, count);
    Ok(if all > 0 { all.saturating_sub(good) as f64 / all as f64 } else { 0.0 })
}

fn show(global: &Global, all: &[Experiment], waits: &[bool]) -> anyhow::Result<()> {
    if global.output == Format::Json {
        let one = |(one, waits): (&Experiment, &bool)| {
            let (out, share) = (&one.config.output_path_prefix, one.failed_share());
            json!({ "name": one.name, "out": out, "finished": !waits, "failed_share": share })
        };
        return output::json(&all.iter().zip(waits).map(one).collect::<Vec<_>>());
    }
    for (one, waits) in all.iter().zip(waits) {
        let state = if *waits { "to run" } else { "finished" };
        output::line(format!("{state:<9} {}", one.name));
    }
    Ok(())
}

/// Runs a script, if there is one, by a shell; its output goes to standard error.
fn script(text: &str) -> anyhow::Result<()> {
    if text.trim().is_empty() {
        return Ok(());
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", text]).stdin(Stdio::null()).stdout(std::io::stderr());
    let status = shell.status().context("cannot run a shell")?;
    if !status.success() {
        bail!("{text:?} failed: {status}");
    }
    Ok(())
}

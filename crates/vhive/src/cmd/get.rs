//! `vhive get`: lists services, instances or invocation records.

use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::Value;
use vhive_api::{InvocationRecord, MemoryFigures, Phase, PhaseSpan};

use super::{Context, services_path};
use crate::cli::Format;
use crate::output;

/// Arguments of `vhive get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to list.
    #[arg(value_enum)]
    kind: Kind,
    /// Only of this service.
    #[arg(long, short)]
    service: Option<String>,
    /// At most so many records, the newest.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Services with their state.
    #[value(alias = "service", alias = "ksvc")]
    Services,
    /// Invocation records, newest last.
    #[value(alias = "record")]
    Records,
    /// The node itself: version, addresses, runtimes, limits.
    Node,
}

/// Lists.
///
/// # Errors
/// When the node does not answer.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    match args.kind {
        Kind::Services => services(context).await?,
        Kind::Records => records(context, args).await?,
        Kind::Node => node(context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn services(context: &Context) -> anyhow::Result<()> {
    let list: Value = context.client.get(&services_path(context.global.namespace())).await?;
    if context.global.output == Format::Json {
        return output::json(&list);
    }
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let text = |p: &str| item.pointer(p).and_then(Value::as_str).unwrap_or("-").to_owned();
            let conditions = item.pointer("/status/conditions").and_then(Value::as_array);
            let ready = conditions
                .and_then(|all| all.iter().find(|c| c["type"] == "Ready"))
                .map_or("Unknown", |c| c["status"].as_str().unwrap_or("Unknown"));
            vec![
                text("/metadata/name"),
                text("/status/url"),
                text("/status/latestReadyRevisionName"),
                ready.to_owned(),
            ]
        })
        .collect();
    output::line(output::table(&["NAME", "URL", "LATEST READY", "READY"], &rows));
    Ok(())
}

async fn records(context: &Context, args: &Args) -> anyhow::Result<()> {
    let records = fetch(context, args.service.as_deref(), args.limit).await?;
    if context.global.output == Format::Json {
        return output::json(&records);
    }
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            let start = record.start.map_or("-", vhive_api::StartKind::as_str);
            vec![
                record.at.to_string(),
                record.service.clone(),
                start.to_owned(),
                record.status.to_string(),
                length(record, Phase::Total),
                length(record, Phase::Start),
                length(record, Phase::Request),
            ]
        })
        .collect();
    let headings = ["AT", "SERVICE", "START", "STATUS", "TOTAL", "START TIME", "REQUEST"];
    output::line(output::table(&headings, &rows));
    Ok(())
}

async fn node(context: &Context) -> anyhow::Result<()> {
    let node: Value = context.client.get("/vhive/v1/node").await?;
    if context.global.output == Format::Json {
        return output::json(&node);
    }
    for (key, value) in node.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        output::line(format!("{key:16} {text}"));
    }
    Ok(())
}

fn length(record: &InvocationRecord, phase: Phase) -> String {
    let span = record.phases.iter().find(|span| span.phase == phase);
    span.map_or_else(|| "-".to_owned(), |span| output::micros(span.length_us))
}

async fn fetch(
    context: &Context,
    service: Option<&str>,
    limit: usize,
) -> anyhow::Result<Vec<InvocationRecord>> {
    let namespace = context.global.namespace();
    let mut path = format!("/vhive/v1/records?namespace={namespace}&limit={limit}");
    if let Some(service) = service {
        path.push_str(&format!("&service={service}"));
    }
    context.client.get(&path).await
}

/// The record of one invocation, if the node still has it. It is written once the whole reply has
/// been, which may be a moment after the client has it.
///
/// # Errors
/// When the node does not answer.
pub(crate) async fn record_by_id(
    context: &Context,
    service: &str,
    id: &str,
) -> anyhow::Result<Option<InvocationRecord>> {
    for _ in 0..TRIES {
        let records = fetch(context, Some(service), 256).await?;
        let found = records.into_iter().rev().find(|record| record.id.as_str() == id);
        if found.is_some() {
            return Ok(found);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(None)
}

/// How often a record that is not there yet is asked for, and the pause before the next time.
const TRIES: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// A record as an indented list of its phases.
pub(crate) fn trace(record: &InvocationRecord) -> String {
    let start = record.start.map_or("not started", vhive_api::StartKind::as_str);
    let mut text = format!("invocation {} ({start})\n{}", record.id, phases(&record.phases));
    if let Some(figures) = &record.memory {
        text.push_str(&format!("\n  {}", memory(figures)));
    }
    if let Some(why) = &record.fallback {
        text.push_str(&format!("\n  not as its policy wants: {why}"));
    }
    text
}

/// How a restored guest's memory arrived, in one line.
pub(crate) fn memory(figures: &MemoryFigures) -> String {
    let mut text = format!("memory by {}", figures.mode);
    if let Some(policy) = figures.prefetch {
        text.push_str(&format!(" ({policy})"));
    }
    if figures.prefetched_pages + figures.zero_pages > 0 {
        let mib = figures.prefetched_bytes as f64 / f64::from(1 << 20);
        let took = output::micros(figures.prefetch_us);
        text.push_str(&format!(", {} pages prefetched", figures.prefetched_pages));
        text.push_str(&format!(" ({mib:.1} MiB in {took})"));
    }
    if let Some(faults) = figures.faults {
        let wait = output::micros(figures.wait_us);
        text.push_str(&format!(", {faults} faults, waited {wait}"));
    }
    text
}

/// Phases as an indented list, one a line.
pub(crate) fn phases(spans: &[PhaseSpan]) -> String {
    let lines = spans.iter().map(|PhaseSpan { phase, begin_us, length_us }| {
        let depth = std::iter::successors(phase.parent(), |p| p.parent()).count();
        let name = format!("{}{}", "  ".repeat(depth), phase.as_str());
        let begin = *begin_us as f64 / 1e3;
        format!("  {name:22} {:>10}  from {begin:.1} ms", output::micros(*length_us))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use vhive_api::{MemoryMode, PrefetchPolicy};

    use super::*;

    #[test]
    fn memory_is_one_line() {
        let mut figures = MemoryFigures::new(MemoryMode::File, None);
        assert_eq!(memory(&figures), "memory by file");
        figures.mode = MemoryMode::Prefetch;
        figures.prefetch = Some(PrefetchPolicy::ReapPipelined);
        (figures.prefetched_pages, figures.prefetched_bytes) = (512, 2 << 20);
        (figures.prefetch_us, figures.faults, figures.wait_us) = (4_200, Some(3), 150);
        let text = "memory by prefetch (reap-pipelined), 512 pages prefetched (2.0 MiB in 4.2 ms), \
                    3 faults, waited 150 us";
        assert_eq!(memory(&figures), text);
    }
}

//! `vhive describe`: one service with its instances, its last start and its console.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;
use vhive_api::{MemoryFigures, PhaseSpan};

use super::{Context, get};
use crate::cli::Format;
use crate::output;

/// Arguments of `vhive describe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service.
    name: String,
}

/// The part of the node's answer that is shown to people; `-o json` shows all of it.
#[derive(Debug, Deserialize)]
struct Described {
    service: Value,
    revision: Value,
    ready: u32,
    starting: u32,
    in_flight: u64,
    queued: u64,
    instances: Vec<Value>,
    last_start: Option<Start>,
    last_failure: Option<Failure>,
    no_snapshot: Option<NotTaken>,
}

#[derive(Debug, Deserialize)]
struct NotTaken {
    why: String,
    again_in_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Start {
    kind: String,
    at: String,
    length_us: u64,
    attempts: u32,
    phases: Vec<PhaseSpan>,
    sandbox: String,
    fallback: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    at: String,
    error: String,
    console: Vec<String>,
}

/// Shows it.
///
/// # Errors
/// [`crate::exit::Exit::NotFound`], or when the node does not answer.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let namespace = context.global.namespace();
    let path = format!(
        "/vhive/v1/namespaces/{namespace}/services/{}/describe?footprint=true&counters=basic",
        args.name
    );
    let answer: Value = context.client.get(&path).await?;
    if context.global.output == Format::Json {
        output::json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let described: Described = serde_json::from_value(answer)?;
    print(&described);
    Ok(ExitCode::SUCCESS)
}

/// Why there is no snapshot, if one has been tried to take.
fn not_taken(why: Option<&NotTaken>) -> String {
    why.map_or_else(String::new, |NotTaken { why, again_in_s }| {
        let next = match again_in_s {
            Some(seconds) => format!("next try in {seconds} s"),
            None => "tried again at the next occasion".to_owned(),
        };
        format!(" (not taken: {why}; {next})")
    })
}

fn print(described: &Described) {
    let text = |value: &Value, at: &str| {
        value.pointer(at).map_or_else(
            || "-".to_owned(),
            |found| found.as_str().map_or_else(|| found.to_string(), str::to_owned),
        )
    };
    let (service, revision) = (&described.service, &described.revision);
    for (label, value) in [
        ("name", text(service, "/metadata/name")),
        ("url", text(service, "/status/url")),
        ("revision", text(revision, "/key/name")),
        ("image", text(revision, "/image")),
        ("runtime", text(revision, "/runtime")),
        ("snapshots", text(revision, "/snapshot") + &not_taken(described.no_snapshot.as_ref())),
        ("ready", described.ready.to_string()),
        ("starting", described.starting.to_string()),
        ("in flight", described.in_flight.to_string()),
        ("queued", described.queued.to_string()),
    ] {
        output::line(format!("{label:14}{value}"));
    }
    if !described.instances.is_empty() {
        let rows: Vec<Vec<String>> = described
            .instances
            .iter()
            .map(|instance| {
                let mib = |name: &str| {
                    let bytes = instance[name].as_u64();
                    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20))
                };
                vec![
                    text(instance, "/sandbox"),
                    text(instance, "/state"),
                    text(instance, "/leases"),
                    text(instance, "/endpoint"),
                    mib("memory_bytes"),
                    mib("pss_bytes"),
                    instance["counters"]["cpu_us"]
                        .as_u64()
                        .map_or_else(|| "-".to_owned(), output::micros),
                    text(instance, "/since"),
                ]
            })
            .collect();
        let headings =
            ["INSTANCE", "STATE", "REQUESTS", "ENDPOINT", "RSS", "PSS", "CPU TIME", "SINCE"];
        output::line(format!("\n{}", output::table(&headings, &rows)));
    }
    if let Some(start) = &described.last_start {
        let length = output::micros(start.length_us);
        output::line(format!("\nlast start: by {} in {length}, at {}", start.kind, start.at));
        if start.attempts > 1 {
            output::line(format!("  (in {} attempts)", start.attempts));
        }
        output::line(get::phases(&start.phases));
        let came = described.instances.iter().find(|one| one["sandbox"] == *start.sandbox);
        let figures = came.and_then(|one| MemoryFigures::deserialize(&one["paging"]).ok());
        if let Some(figures) = figures {
            output::line(format!("  {} (up to now)", get::memory(&figures)));
        }
        if let Some(why) = &start.fallback {
            output::line(format!("  not as its policy wants: {why}"));
        }
    }
    if let Some(failure) = &described.last_failure {
        output::line(format!("\nlast failure at {}: {}", failure.at, failure.error));
        output::line("  console:");
        for line in &failure.console {
            output::line(format!("  | {line}"));
        }
    }
}

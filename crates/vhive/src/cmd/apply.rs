//! `vhive apply`: creates or updates the objects in YAML files.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use http::Method;
use serde_json::Value;

use super::Context;
use super::objects::{objects_in, path_of, place_of, text};
use crate::exit::Exit;
use crate::output;

/// Arguments of `vhive apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON file with Services, Configurations, Routes, ConfigMaps, Secrets, Brokers, Triggers
    /// and Namespaces; `-` for standard input.
    #[arg(long, short, required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
}

/// Applies every document of every file, in order.
///
/// # Errors
/// The first document that is refused, by file and field path; earlier ones stay applied.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let mut applied = Vec::new();
    for path in &args.filename {
        let shown = path.display();
        for document in objects_in(path)? {
            let done = apply(context, document).await;
            applied.push(done.with_context(|| format!("{shown} is not applied"))?);
        }
    }
    match context.global.output {
        crate::cli::Format::Json => output::json(&applied)?,
        crate::cli::Format::Table => {
            for object in &applied {
                let kind = text(object, "/kind").to_lowercase();
                let name = text(object, "/metadata/name");
                let urls = ["/status/url", "/status/address/url", "/status/subscriberUri"];
                let url = urls.into_iter().map(|at| text(object, at)).find(|url| !url.is_empty());
                let line = format!("{kind}/{name} applied  {}", url.unwrap_or_default());
                output::line(line.trim_end());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who it is that changes fields.
const MANAGER: &str = "fieldManager=vhive";

async fn apply(context: &Context, mut document: Value) -> anyhow::Result<Value> {
    let (kind, namespace, name) = place_of(&document, context.global.namespace())?;
    // What is no kind is refused by the node, which says so.
    let path = path_of(&kind, &namespace);
    let existing: anyhow::Result<Value> = context.client.get(&format!("{path}/{name}")).await;
    match existing {
        Ok(old) => {
            let version = old.pointer("/metadata/resourceVersion").cloned();
            if let (Some(metadata), Some(version)) = (document.get_mut("metadata"), version) {
                metadata["resourceVersion"] = version;
            }
            let path = format!("{path}/{name}?{MANAGER}");
            context.client.json(Method::PUT, &path, Some(&document)).await
        }
        Err(error) if matches!(error.downcast_ref(), Some(Exit::NotFound(_))) => {
            let path = format!("{path}?{MANAGER}");
            context.client.json(Method::POST, &path, Some(&document)).await
        }
        Err(error) => Err(error),
    }
}

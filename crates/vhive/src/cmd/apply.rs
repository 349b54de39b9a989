//! `vhive apply`: creates or updates the services, brokers, triggers, config maps and secrets in
//! YAML files.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;

use super::{Context, services_path};
use crate::exit::Exit;
use crate::output;

/// Arguments of `vhive apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML or JSON file with Services, ConfigMaps, Secrets, Brokers and Triggers; `-` for standard
    /// input.
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
        let text = read(path).with_context(|| format!("cannot read {shown}"))?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("{shown} is not YAML"))?;
        if documents.iter().all(Value::is_null) {
            bail!("{shown} holds no object");
        }
        for document in documents.into_iter().filter(|d| !d.is_null()) {
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

fn read(path: &std::path::Path) -> std::io::Result<String> {
    if path.as_os_str() != "-" {
        return std::fs::read_to_string(path);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// Who it is that changes fields.
const MANAGER: &str = "fieldManager=vhive";

async fn apply(context: &Context, mut document: Value) -> anyhow::Result<Value> {
    let name = text(&document, "/metadata/name").to_owned();
    if name.is_empty() {
        bail!("metadata.name: missing");
    }
    let given = text(&document, "/metadata/namespace");
    let namespace = if given.is_empty() { context.global.namespace() } else { given }.to_owned();
    let eventing = format!("/apis/eventing.knative.dev/v1/namespaces/{namespace}");
    let serving = format!("/apis/serving.knative.dev/v1/namespaces/{namespace}");
    let path = match text(&document, "/kind") {
        "ConfigMap" => format!("/api/v1/namespaces/{namespace}/configmaps"),
        "Secret" => format!("/api/v1/namespaces/{namespace}/secrets"),
        "Configuration" => format!("{serving}/configurations"),
        "Route" => format!("{serving}/routes"),
        "Broker" => format!("{eventing}/brokers"),
        "Trigger" => format!("{eventing}/triggers"),
        // What is none is refused by the node, which says so.
        _ => services_path(&namespace),
    };
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

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

//! `vhive evict`: stops a service's idle instances now.

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::Context;
use crate::cli::Format;
use crate::output;

/// Arguments of `vhive evict`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service.
    name: String,
}

/// Stops them; returns when they are gone and what was to be done behind their replies is done.
///
/// # Errors
/// [`crate::exit::Exit::NotFound`] or the node's message.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let namespace = context.global.namespace();
    let path = format!("/vhive/v1/namespaces/{namespace}/services/{}/evict", args.name);
    let done: Value = context.client.json(Method::POST, &path, None).await?;
    match context.global.output {
        Format::Json => output::json(&done)?,
        Format::Table => output::line(format!("{} instance(s) stopped", done["evicted"])),
    }
    Ok(ExitCode::SUCCESS)
}

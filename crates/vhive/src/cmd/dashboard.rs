//! `vhive dashboard`: where the node's dashboard is.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::Context;
use super::kubeconfig::read;
use crate::cli::Format;
use crate::output;

/// Arguments of `vhive dashboard`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Prints the dashboard's address. The token is in its fragment, which browsers do not send.
///
/// # Errors
/// The node does not answer, or its token cannot be read.
pub(crate) async fn run(context: &Context, _: &Args) -> anyhow::Result<ExitCode> {
    let node: Value = context.client.get("/vhive/v1/node").await?;
    let text = |field: &str| node[field].as_str().unwrap_or_default();
    let token = read(&PathBuf::from(text("state_dir")).join("api.token"))?;
    let url = format!("http://{}/dashboard#token={}", text("api"), token.trim());
    match context.global.output {
        Format::Json => output::json(&json!({"url": url}))?,
        Format::Table => output::line(&url),
    }
    Ok(ExitCode::SUCCESS)
}

//! `vhive kubeconfig`: what kubectl and other clients of Kubernetes need to talk to the node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Context;
use crate::cli::Format;
use crate::output;

/// Arguments of `vhive kubeconfig`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Prints a kubeconfig with address, certificate and token of the node.
///
/// # Errors
/// The node does not answer, or its files cannot be read.
pub(crate) async fn run(context: &Context, _: &Args) -> anyhow::Result<ExitCode> {
    let node: Value = context.client.get("/vhive/v1/node").await?;
    let text = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
    let state_dir = PathBuf::from(text("state_dir"));
    let certificate = read(&state_dir.join("api.ca.crt"))?;
    let token = read(&state_dir.join("api.token"))?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "vhive",
            "cluster": {
                "server": format!("https://{}", text("api")),
                "certificate-authority-data": STANDARD.encode(certificate),
            },
        }],
        "users": [{"name": "vhive", "user": {"token": token.trim()}}],
        "contexts": [{
            "name": "vhive",
            "context": {
                "cluster": "vhive",
                "user": "vhive",
                "namespace": context.global.namespace(),
            },
        }],
        "current-context": "vhive",
    });
    match context.global.output {
        Format::Json => output::json(&config)?,
        Format::Table => output::line(serde_saphyr::to_string(&config)?.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file of the node's.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!("cannot read {}; run this as the node's user, on its host", path.display())
    })
}

//! `vhive delete`: deletes services.

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::{Context, services_path};
use crate::output;

/// Arguments of `vhive delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of services.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Deletes each, in order; stops at the first that cannot be deleted.
///
/// # Errors
/// [`crate::exit::Exit::NotFound`] or the node's message.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    for name in &args.names {
        let path = format!("{}/{name}", services_path(context.global.namespace()));
        let _: Value = context.client.json(Method::DELETE, &path, None).await?;
        output::line(format!("service/{name} deleted"));
    }
    Ok(ExitCode::SUCCESS)
}

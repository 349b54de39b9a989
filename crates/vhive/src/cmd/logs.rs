//! `vhive logs`: prints what a service's instances wrote.

use std::process::ExitCode;

use anyhow::bail;
use http::Method;
use http_body_util::BodyExt as _;
use serde::Deserialize;

use super::Context;
use crate::cli::Format;
use crate::client;
use crate::exit::Exit;
use crate::output;

/// Arguments of `vhive logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service.
    name: String,
    /// Go on as new lines come.
    #[arg(long, short)]
    follow: bool,
}

#[derive(Debug, Deserialize)]
struct LogLine {
    sandbox: String,
    stream: String,
    text: String,
}

/// Prints the lines that are kept, and with `--follow` new ones until interrupted.
///
/// # Errors
/// [`Exit::NotFound`], or what broke the stream.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let namespace = context.global.namespace();
    let path = format!(
        "/vhive/v1/namespaces/{namespace}/services/{}/logs?follow={}",
        args.name, args.follow
    );
    let reply = context.client.send(Method::GET, &path, None).await?;
    if reply.status() == http::StatusCode::NOT_FOUND {
        return Err(Exit::NotFound(format!("no service {} in {namespace}", args.name)).into());
    }
    if !reply.status().is_success() {
        let status = reply.status();
        let text = client::read_whole(reply.into_body()).await?;
        bail!("{status}: {}", String::from_utf8_lossy(&text));
    }
    let mut body = reply.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            pending.extend_from_slice(&data);
        }
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            print(context.global.output, &line)?;
        }
    }
    if !pending.is_empty() {
        print(context.global.output, &pending)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(format: Format, line: &[u8]) -> anyhow::Result<()> {
    if format == Format::Json {
        output::line(String::from_utf8_lossy(line).trim_end());
        return Ok(());
    }
    let line: LogLine = serde_json::from_slice(line)?;
    let sandbox: String = line.sandbox.chars().take(8).collect();
    output::line(format!("{sandbox} {:7} {}", line.stream, line.text));
    Ok(())
}

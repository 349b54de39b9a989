//! `vhive delete`: deletes objects by name, or those in YAML files.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use http::Method;
use serde_json::Value;

use super::Context;
use super::objects::{kind_of, objects_in, path_of, place_of};
use crate::exit::Exit;
use crate::output;

/// Arguments of `vhive delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of services, or KIND/NAME of anything that can be applied, or of a revision.
    #[arg(required_unless_present = "filename", value_name = "NAME|KIND/NAME")]
    names: Vec<String>,
    /// YAML or JSON file with the objects to delete; `-` for standard input.
    #[arg(long, short, value_name = "FILE", conflicts_with = "names")]
    filename: Vec<PathBuf>,
    /// Leaves services' snapshots for whoever makes the same again.
    #[arg(long)]
    keep_snapshots: bool,
}

/// Deletes each: by name in order, stopping at the first that cannot be deleted; those of files
/// from the last to the first, passing over what is not there.
///
/// # Errors
/// [`Exit::NotFound`] or the node's message.
pub(crate) async fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    for name in &args.names {
        let (kind, name) = match name.split_once('/') {
            Some((kind, name)) => (kind_of(kind)?, name),
            None => ("Service", name.as_str()),
        };
        delete(context, args, (kind, context.global.namespace(), name)).await?;
    }
    let mut absent = None;
    for path in args.filename.iter().rev() {
        let shown = path.display();
        for object in objects_in(path)?.iter().rev() {
            let done = async {
                let (kind, namespace, name) = place_of(object, context.global.namespace())?;
                delete(context, args, (kind_of(&kind)?, &namespace, &name)).await
            };
            match done.await {
                Err(error) if matches!(error.downcast_ref(), Some(Exit::NotFound(_))) => {
                    output::line(format!("{error}"));
                    absent = Some(error);
                }
                done => done.with_context(|| format!("{shown} is not deleted"))?,
            }
        }
    }
    absent.map_or(Ok(ExitCode::SUCCESS), Err)
}

async fn delete(
    context: &Context,
    args: &Args,
    (kind, namespace, name): (&str, &str, &str),
) -> anyhow::Result<()> {
    let how = if args.keep_snapshots { "?keepSnapshots=true" } else { "" };
    let path = format!("{}/{name}{how}", path_of(kind, namespace));
    let _: Value = context.client.json(Method::DELETE, &path, None).await?;
    output::line(format!("{}/{name} deleted", kind.to_lowercase()));
    Ok(())
}

//! `vhive image`: pulls, imports, builds, lists and removes images.

use std::path::PathBuf;
use std::process::ExitCode;

use vhive_image::{Image, ImageStore, Progress, PullOptions};

use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;

/// Arguments of `vhive image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Downloads an image from its registry.
    Pull {
        /// Reference, e.g. `registry.example/app:1`.
        reference: String,
        /// Speak plain HTTP to registries that are not on loopback, too.
        #[arg(long)]
        plain_http: bool,
    },
    /// Reads an image from an OCI layout directory or a `docker save` archive.
    Import {
        /// Directory or archive.
        source: PathBuf,
        /// Name it gets, e.g. `dev.local/app:latest`; an archive with one image has its own.
        #[arg(long)]
        name: Option<String>,
    },
    /// Builds the image of a recipe, a directory with `image.toml`.
    Build {
        /// The directory.
        recipe: PathBuf,
        /// Name it gets instead of the recipe's.
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists the images in the store.
    Ls,
    /// Removes a name, and the image when it was the last name.
    Rm {
        /// Name or manifest digest.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Does it on the state directory's store; a node may be running on it.
///
/// # Errors
/// What could not be had, understood or stored; nothing half-made is left.
pub(crate) async fn run(global: &Global, config: &Config, args: Args) -> anyhow::Result<ExitCode> {
    let store = ImageStore::open(config.images_dir())?;
    let progress = Progress::to(|step| output::note(step));
    let image = match args.verb {
        Verb::Pull { reference, plain_http } => {
            let options = PullOptions { plain_http, progress, ..PullOptions::default() };
            store.pull(&reference, &options).await?
        }
        Verb::Import { source, name } => store.import(&source, name.as_deref()).await?,
        Verb::Build { recipe, name } => store.build(recipe, name.as_deref(), progress).await?,
        Verb::Ls => {
            let images = store.list()?;
            print(global.output, &images)?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Rm { images } => {
            for image in images {
                let removed = store.remove(&image)?;
                let mib = removed.bytes >> 20;
                output::line(format!("removed {}, {mib} MiB freed", removed.names.join(", ")));
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    if matches!(global.output, Format::Table) {
        output::note(format!("{} is ready", image.name));
    }
    // What a node will need is made now, not on a request's way.
    store.rootfs(&image.digest).await?;
    print(global.output, &[image])?;
    Ok(ExitCode::SUCCESS)
}

fn print(format: Format, images: &[Image]) -> anyhow::Result<()> {
    if format == Format::Json {
        let rows: Vec<serde_json::Value> = images
            .iter()
            .map(|image| {
                serde_json::json!({
                    "name": image.name, "digest": image.digest, "bytes": image.bytes,
                    "created": image.created, "layers": image.layers.len(),
                })
            })
            .collect();
        return output::json(&rows);
    }
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            let digest: String = image.digest.hex().chars().take(12).collect();
            let layers = image.layers.len().to_string();
            vec![image.name.clone(), digest, layers, format!("{} MiB", image.bytes >> 20)]
        })
        .collect();
    output::line(output::table(&["NAME", "DIGEST", "LAYERS", "SIZE"], &rows));
    Ok(())
}

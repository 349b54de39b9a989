//! `vhive kernel`: installs or shows the kernel that microVM guests run.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use vhive_sandbox::kernel::{GuestKernel, KernelStore};

use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;

/// Arguments of `vhive kernel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Installs a guest kernel: Debian's `linux-image-cloud-amd64` (downloaded by apt, never
    /// installed on the host), or a given one.
    Install {
        /// A vmlinuz or vmlinux to use instead of Debian's.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Directory of its modules, like /lib/modules/VERSION; without it, everything that the
        /// guest needs must be built in.
        #[arg(long, value_name = "DIR", requires = "from")]
        modules: Option<PathBuf>,
    },
    /// Shows the kernel in use.
    Show,
}

/// Installs or shows.
///
/// # Errors
/// What could not be downloaded, understood or stored; the kernel in use stays in use.
pub(crate) fn run(global: &Global, config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let store = KernelStore::open(config.kernels_dir())?;
    let mut progress = |what: &str| output::note(what);
    let kernel = match &args.verb {
        Verb::Show => store.current()?,
        Verb::Install { from: None, .. } => store.install_from_apt(&mut progress)?,
        Verb::Install { from: Some(kernel), modules } => {
            store.install_from(kernel, modules.as_deref(), &mut progress)?
        }
    };
    print(global.output, &kernel)?;
    Ok(ExitCode::SUCCESS)
}

fn print(format: Format, kernel: &GuestKernel) -> anyhow::Result<()> {
    let GuestKernel { digest, release, source, vmlinux, initramfs } = kernel;
    if format == Format::Json {
        return output::json(&json!({
            "digest": digest, "release": release, "source": source,
            "vmlinux": vmlinux, "initramfs": initramfs,
        }));
    }
    output::line(format!("{release}  from {source}"));
    output::line(format!("{digest}"));
    Ok(())
}

//! `vhive completions`: prints a shell's completion script.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Arguments of `vhive completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell.
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Args) -> ExitCode {
    let mut command = crate::cli::Cli::command();
    clap_complete::generate(args.shell, &mut command, "vhive", &mut std::io::stdout());
    ExitCode::SUCCESS
}

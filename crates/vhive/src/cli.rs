//! The grammar of the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// Runs functions in microVMs, and says where each millisecond went.
#[derive(Debug, Parser)]
#[command(name = "vhive", version = env!("VHIVE_VERSION"), about, after_help = crate::exit::HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line; that of `load` and `deploy` may have the originals' flags with one dash, and
/// that of `load` name a file with more.
///
/// # Errors
/// When that file cannot be used.
pub(crate) fn arguments(all: impl Iterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let all: Vec<OsString> = all.collect();
    let texts: Option<Vec<String>> =
        all.iter().map(|arg| arg.to_str().map(str::to_owned)).collect();
    match texts {
        Some(texts) if texts.iter().any(|arg| arg == "load" || arg == "deploy") => {
            let texts = cmd::load::with_plan(vhive_load::flags::two_dashes(texts))?;
            Ok(texts.into_iter().map(OsString::from).collect())
        }
        _ => Ok(all),
    }
}

/// What every sub-command understands.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Where the node keeps services, images, kernels and records.
    #[arg(long, global = true, env = "VHIVE_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Configuration file; `vhive node --print-config` shows the default one.
    #[arg(long, global = true, env = "VHIVE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How to print results.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Namespace of services; `default` unless given.
    #[arg(long, short, global = true)]
    pub(crate) namespace: Option<String>,
    /// Log filter, e.g. `debug` or `vhive_node=debug`.
    #[arg(long, global = true, env = "VHIVE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// The whole command line, with what a plan's file adds to it.
    #[arg(skip)]
    pub(crate) words: Vec<String>,
}

impl Global {
    /// The namespace that is meant.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Checks the host: each runtime yes or no, why, and the fix.
    Doctor(cmd::doctor::Args),
    /// Installs or shows the kernel that microVM guests run.
    Kernel(cmd::kernel::Args),
    /// Pulls, imports, builds, lists and removes images.
    Image(cmd::image::Args),
    /// Runs a node: API, gateway, autoscaler and sandboxes, until a signal.
    Node(cmd::node::Args),
    #[command(flatten)]
    Client(ClientCommand),
    /// Sends requests to functions at a rate, in a closed loop, or as a trace says.
    #[command(subcommand)]
    Load(Box<cmd::load::Command>),
    /// Deploys the services that a file of functions lists: the same as `load deploy`.
    Deploy(cmd::load::DeployArgs),
    /// Measures on a running node, and reports.
    #[command(subcommand)]
    Study(cmd::study::Study),
    /// Makes the report of a study, a simulation or a run of `load` from its raw rows.
    Report(cmd::report::Args),
    /// Prints shell completions.
    Completions(cmd::completions::Args),
}

/// What to ask of a running node.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Creates or updates the services, brokers and triggers in YAML files.
    Apply(cmd::apply::Args),
    /// Lists services, instances or invocation records.
    Get(cmd::get::Args),
    /// Shows one service with its last start's phases and console.
    Describe(cmd::describe::Args),
    /// Deletes services and other objects.
    Delete(cmd::delete::Args),
    /// Sends one request to a service and shows the reply.
    Invoke(cmd::invoke::Args),
    /// Stops a service's idle instances now, so that its next request starts cold.
    Evict(cmd::evict::Args),
    /// Lists, makes, removes, exports and imports snapshots.
    Snapshot(cmd::snapshot::Args),
    /// Prints the address of the node's dashboard, for a browser.
    Dashboard(cmd::dashboard::Args),
    /// Prints the configuration with which kubectl, kn and other clients reach the node.
    Kubeconfig(cmd::kubeconfig::Args),
    /// Prints what a service's instances wrote.
    Logs(cmd::logs::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn options_that_take_a_value_are_known_to_who_looks_for_the_command() {
        let command = Cli::command();
        let takes = |arg: &&clap::Arg| arg.is_global_set() && arg.get_action().takes_values();
        let mut names: Vec<String> = Vec::new();
        for arg in command.get_arguments().filter(takes) {
            names.extend(arg.get_long().map(str::to_owned));
            names.extend(arg.get_short().map(String::from));
        }
        names.sort();
        let mut known = vhive_load::flags::WITH_VALUE.map(str::to_owned);
        known.sort();
        assert_eq!(names, known);
    }
}

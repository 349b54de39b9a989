//! One file per sub-command, each with its `Args` and a `run`.

pub(crate) mod apply;
pub(crate) mod completions;
pub(crate) mod dashboard;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod doctor;
pub(crate) mod evict;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod invoke;
pub(crate) mod kernel;
pub(crate) mod kubeconfig;
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod node;
mod objects;
pub(crate) mod report;
pub(crate) mod snapshot;
pub(crate) mod study;

use std::process::ExitCode;

use crate::cli::{Cli, ClientCommand, Command, Global};
use crate::client::Client;
use crate::config::Config;

/// What the client sub-commands share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The command line's common part.
    pub(crate) global: Global,
    /// The node.
    pub(crate) client: Client,
}

/// Runs the sub-command.
///
/// # Errors
/// Whatever the sub-command says.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = Config::load(&cli.global)?;
    match cli.command {
        Command::Completions(args) => Ok(completions::run(&args)),
        Command::Doctor(args) => doctor::run(&cli.global, &config, &args),
        Command::Kernel(args) => kernel::run(&cli.global, &config, &args),
        Command::Image(args) => on_one_thread(image::run(&cli.global, &config, args)),
        Command::Node(args) => node::run(&cli.global, config, &args),
        Command::Load(command) => on_one_thread(load::run(&cli.global, &config, *command)),
        Command::Deploy(args) => {
            let command = load::Command::Deploy(args);
            on_one_thread(load::run(&cli.global, &config, command))
        }
        Command::Study(study) => on_one_thread(study::run(&cli.global, &config, study)),
        Command::Report(args) => report::run(&cli.global, &args),
        Command::Client(command) => {
            let client = Client::new(config.api_socket());
            let context = Context { global: cli.global, client };
            on_one_thread(run_client(&context, command))
        }
    }
}

async fn run_client(context: &Context, command: ClientCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClientCommand::Apply(args) => apply::run(context, &args).await,
        ClientCommand::Get(args) => get::run(context, &args).await,
        ClientCommand::Describe(args) => describe::run(context, &args).await,
        ClientCommand::Delete(args) => delete::run(context, &args).await,
        ClientCommand::Invoke(args) => invoke::run(context, args).await,
        ClientCommand::Evict(args) => evict::run(context, &args).await,
        ClientCommand::Snapshot(args) => snapshot::run(context, args).await,
        ClientCommand::Dashboard(args) => dashboard::run(context, &args).await,
        ClientCommand::Kubeconfig(args) => kubeconfig::run(context, &args).await,
        ClientCommand::Logs(args) => logs::run(context, &args).await,
    }
}

fn on_one_thread(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A name that is still being looked up is waited for no more.
    runtime.shutdown_background();
    done
}

/// The API path of a namespace's services.
pub(crate) fn services_path(namespace: &str) -> String {
    format!("/apis/serving.knative.dev/v1/namespaces/{namespace}/services")
}

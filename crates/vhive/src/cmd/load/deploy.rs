//! `vhive load deploy`: services from the original's `functions.json`, through the node's API.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use http::Method;
use serde::Serialize;
use serde_json::Value;
use vhive_load::Endpoint;
use vhive_load::deploy::{Api, Deployment, Done, Gone, Mark, Wanted, read, without};
use vhive_load::output::write_json;
use vhive_load::trace::Config as Experiment;

use super::args::DeployArgs;
use super::stop_on_signals;
use super::trace::planned;
use crate::cli::Global;
use crate::client::{Client, read_whole};
use crate::cluster::{Access, Cluster};
use crate::config::Config;
use crate::output;

impl Api for Client {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let told = |error: anyhow::Error| format!("{error:#}");
        let reply = self.send(method, path, body).await.map_err(told)?;
        let status = reply.status().as_u16();
        let bytes = read_whole(reply.into_body()).await.map_err(told)?;
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
    }
}

impl Api for Cluster {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        Self::call(self, method, path, body).await.map_err(|error| format!("{error:#}"))
    }
}

/// Deploys, or deletes what was deployed. Exit code 1 when any service fails.
///
/// # Errors
/// When the file of functions, the node or the cluster cannot be used at all.
pub(crate) async fn run(
    global: &Global,
    config: &Config,
    args: DeployArgs,
) -> anyhow::Result<ExitCode> {
    let mut wanted = match read(&args.json, &args.path) {
        // What was deployed is found by its label.
        Err(why) if args.delete => {
            let why = anyhow::Error::new(why);
            output::note(format!("only what carries the label is deleted: {why:#}"));
            Vec::new()
        }
        read => read?,
    };
    if let Some(path) = &args.experiment {
        begin_with(&mut wanted, path)?;
    }
    let mark = Mark::of(&args.json);
    let mut deployment = Deployment {
        mark: mark.with_context(|| format!("cannot find {}", args.json.display()))?,
        namespace: global.namespace().to_owned(),
        concurrency: args.concurrency,
        patience: args.timeout.0,
        domain: args.gateway_url.clone(),
        gateway: None,
    };
    let Some(path) = &args.kubeconfig else {
        let client = Client::new(config.api_socket());
        deployment.gateway = deployment.find_gateway(&client).await.map_err(anyhow::Error::msg)?;
        return through(&client, &args, &deployment, &wanted).await;
    };
    let access = Access::read(path, args.context.as_deref())?;
    if let Some(namespace) = access.namespace.clone().filter(|_| global.namespace.is_none()) {
        deployment.namespace = namespace;
    }
    let cluster = Cluster::new(&access)?;
    let gateway = deployment.find_gateway(&cluster).await.map_err(anyhow::Error::msg);
    deployment.gateway = gateway.context(access.server)?;
    through(&cluster, &args, &deployment, &wanted).await
}

/// As many instances as the functions that a service stands for in an experiment keep busy in the
/// minute before the warm-up.
fn begin_with(wanted: &mut [Wanted], experiment: &Path) -> anyhow::Result<()> {
    let experiment = Experiment::read(experiment)?;
    if experiment.warmup_duration == 0 {
        bail!("WarmupDuration is 0, so the experiment says not how many instances to begin with");
    }
    let planned = planned(&experiment)?;
    planned.tell();
    let busy = planned.busy();
    if busy.iter().all(Option::is_none) {
        output::note("without effect: --experiment: its trace has no minute before the warm-up");
    }
    let scales = scales(&busy, wanted.len());
    for (wanted, scale) in wanted.iter_mut().zip(scales) {
        wanted.initial_scale = scale;
    }
    Ok(())
}

/// Instances of each service, which stands for the functions that `load trace` gives to it.
fn scales(busy: &[Option<f64>], services: usize) -> Vec<u64> {
    let of = |service| busy.iter().skip(service).step_by(services.max(1)).flatten();
    (0..services).map(|service| whole(of(service).sum::<f64>().ceil())).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(number: f64) -> u64 {
    number as u64
}

async fn through(
    api: &impl Api,
    args: &DeployArgs,
    deployment: &Deployment,
    wanted: &[Wanted],
) -> anyhow::Result<ExitCode> {
    if args.delete {
        return delete(api, args, deployment, wanted).await;
    }
    let stop = stop_on_signals("stopping: what is ready so far is written")?;
    let tell = |(name, done): &Done<Endpoint>| match done {
        Ok(endpoint) => output::line(format!("service/{name} ready  {}", endpoint.hostname)),
        Err(why) => output::note(format!("service/{name} failed: {why}")),
    };
    let done = deployment.deploy(api, wanted, &stop, tell).await;
    if done.len() < wanted.len() {
        output::note(format!("stopped: {} services were not begun", wanted.len() - done.len()));
    }
    let ready: Vec<Endpoint> = done.into_iter().filter_map(|(_, done)| done.ok()).collect();
    let eventing = ready.iter().filter(|endpoint| endpoint.eventing).count();
    if eventing > 0 {
        output::note(format!(
            "{eventing} of them answer by events (`eventing`), which `vhive load` does not wait for: it takes a \
             list without them"
        ));
    }
    write(&args.endpoints, &ready)?;
    output::line(format!("{} of {} in {}", ready.len(), wanted.len(), args.endpoints.display()));
    Ok(if ready.len() == wanted.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn delete(
    client: &impl Api,
    args: &DeployArgs,
    deployment: &Deployment,
    wanted: &[Wanted],
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let done = deployment.delete(client, wanted).await.map_err(anyhow::Error::msg);
    let done = done.context("cannot list the services")?;
    // A list that was read names services.
    if wanted.is_empty() && done.is_empty() {
        bail!(
            "nothing carries the label of {}, which cannot be read: is it the path that was deployed from?",
            args.json.display()
        );
    }
    let mut gone = Vec::new();
    for (name, result) in done {
        match result {
            Ok(one) => {
                let what = if one.was_there { "deleted" } else { "is not there" };
                output::line(format!("service/{name} {what}"));
                gone.push(one);
            }
            Err(why) => {
                code = ExitCode::FAILURE;
                output::note(format!("service/{name}: {why}"));
            }
        }
    }
    forget(&args.endpoints, &gone)?;
    Ok(code)
}

/// Takes what is gone out of the list of endpoints, if there is one.
fn forget(path: &Path, gone: &[Gone]) -> anyhow::Result<()> {
    let text = std::fs::read(path).unwrap_or_default();
    let list: Value = serde_json::from_slice(&text).unwrap_or_default();
    let Some(left) = without(&list, gone) else { return Ok(()) };
    write(path, &left)?;
    output::line(format!("what is gone was taken out of {}", path.display()));
    Ok(())
}

/// By rename: an invoker never reads half a list.
fn write(path: &Path, endpoints: &impl Serialize) -> anyhow::Result<()> {
    let draft = path.with_extension("json.part");
    write_json(&draft, endpoints)?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A platform without services.
    struct Nothing;

    impl Api for Nothing {
        async fn call(
            &self,
            _: Method,
            path: &str,
            _: Option<&Value>,
        ) -> Result<(u16, Value), String> {
            let is_list = path.contains("labelSelector");
            Ok((if is_list { 200 } else { 404 }, serde_json::json!({ "items": [] })))
        }
    }

    #[test]
    fn a_list_that_is_not_there_and_of_which_nothing_is_deployed_is_an_error() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: DeployArgs,
        }
        let dir = tempfile::tempdir().expect("a directory");
        let [json, endpoints] =
            ["functions.jsn", "e.json"].map(|name| dir.path().join(name).display().to_string());
        let words = ["x", "--delete", "--json", &json, "--endpoints", &endpoints];
        let Line { args } = clap::Parser::parse_from(words);
        let deployment = Deployment {
            mark: Mark::of(&args.json).expect("its directory is there"),
            namespace: "default".to_owned(),
            concurrency: 1,
            patience: args.timeout.0,
            domain: None,
            gateway: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let error = runtime.block_on(delete(&Nothing, &args, &deployment, &[]));
        let error = error.expect_err("a mistyped name").to_string();
        assert!(error.contains("functions.jsn") && error.contains("the path that"), "{error}");
        // What is listed and gone already is none.
        let listed = Wanted {
            name: "a-0".to_owned(),
            manifest: "a.yaml".into(),
            initial_scale: 0,
            eventing: false,
        };
        let done = runtime.block_on(delete(&Nothing, &args, &deployment, &[listed]));
        assert!(done.is_ok(), "{done:?}");
    }

    #[test]
    fn a_service_begins_with_what_its_functions_keep_busy_together() {
        // 10,000 functions that are nearly always idle, in turn over five services.
        let idle = vec![Some(0.001); 10_000];
        assert_eq!(scales(&idle, 5), [2; 5]);
        assert_eq!(scales(&[Some(1.5), None, Some(0.75)], 2), [3, 0]);
        assert_eq!(scales(&[None], 2), [0, 0]);
    }
}

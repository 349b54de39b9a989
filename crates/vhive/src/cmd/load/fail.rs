//! Failures made on purpose: those of the command line, and what stops a service's instances.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Method;
use serde_json::Value;
use vhive_load::Load;
use vhive_load::inject::{Failure, Injected, Injector, Stop};
use vhive_load::output::write_json;

use crate::cli::Global;
use crate::client::Client;
use crate::config::Config;
use crate::output;

/// What came of each, beside the run's other files.
pub(super) const FILE: &str = "failures.json";

/// Waits for the failures of a run.
#[derive(Debug)]
pub(super) struct Failures {
    injector: Injector,
    file: PathBuf,
}

impl Failures {
    /// Begins to wait; none without failures. `dir` is that of the run's files: there stands what is to
    /// happen, should the run be killed.
    pub(super) fn begin(
        (global, config): (&Global, &Config),
        failures: Vec<Failure>,
        load: &Load,
        dir: &Path,
    ) -> Option<Self> {
        if failures.is_empty() {
            return None;
        }
        let (socket, namespace) = (config.api_socket(), global.namespace().to_owned());
        let stop: Stop = Arc::new(move |service: &str| evict(&socket, &namespace, service));
        let injector = Injector::begin(failures, &load.clock, &stop);
        let file = dir.join(FILE);
        // The end writes it once more, and fails if it cannot.
        if let Err(error) = write_json(&file, &injector.planned()) {
            output::note(format!("{:#}", anyhow::Error::new(error)));
        }
        Some(Self { injector, file })
    }

    /// The run has ended; writes what came of each. `false` when one did not work.
    pub(super) fn end(self) -> anyhow::Result<bool> {
        let all = self.injector.end();
        for Injected { at_s, what, begun_us, error, .. } in &all {
            match (begun_us, error) {
                (_, Some(why)) => output::note(format!("failure at {at_s} s ({what}): {why}")),
                (None, None) => {
                    output::note(format!("failure at {at_s} s ({what}): the run ended before"))
                }
                (Some(_), None) => {}
            }
        }
        write_json(&self.file, &all)?;
        output::note(format!("failures in {}", self.file.display()));
        Ok(all.iter().all(|one| one.error.is_none() && one.begun_us.is_some()))
    }
}

/// Stops a service's idle instances; called on a thread of its own.
fn evict(socket: &Path, namespace: &str, service: &str) -> Result<String, String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let path = format!("/vhive/v1/namespaces/{namespace}/services/{service}/evict");
    let client = Client::new(socket);
    let done: Value = runtime.block_on(client.json(Method::POST, &path, None)).map_err(told)?;
    match done["evicted"].as_u64() {
        Some(0) => Err(format!("no instance of {service} was idle, so none was stopped")),
        _ => Ok(format!("{} instances stopped", done["evicted"])),
    }
}

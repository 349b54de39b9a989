//! What stands beside the figures of a run of `vhive load`, in its `summary.json`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vhive_load::pin::{PinError, pin};

use crate::host::{Host, load_average};

/// Facts of a run; a summary of an earlier program has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunFacts {
    /// Version of the program.
    pub vhive: Option<String>,
    /// The command line, without the program.
    pub command: Vec<String>,
    /// The generator's host.
    pub host: Host,
    /// When it began, wall clock, UTC.
    pub began: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The one-minute load average before it began.
    pub load_before: Option<f64>,
    /// And after it ended.
    pub load_after: Option<f64>,
}

impl RunFacts {
    /// Facts of a run that is about to begin; keeps this process to some CPUs, if told to. `revision` is
    /// what the program was built from.
    ///
    /// # Errors
    /// When a CPU cannot be used; nothing has changed then.
    pub fn begin(
        command: Vec<String>,
        cpus: Option<&vhive_api::Cpus>,
        revision: Option<&str>,
    ) -> Result<Self, PinError> {
        let mut host = Host::look(revision);
        if let Some(cpus) = cpus {
            pin(cpus)?;
            host.kept_to = Some(cpus.clone());
        }
        Ok(Self {
            vhive: Some(env!("CARGO_PKG_VERSION").to_owned()),
            command,
            host,
            began: Some(Timestamp::now()),
            ended: None,
            load_before: load_average(),
            load_after: None,
        })
    }

    /// The same at the end of the run.
    #[must_use]
    pub fn end(self) -> Self {
        Self { ended: Some(Timestamp::now()), load_after: load_average(), ..self }
    }
}

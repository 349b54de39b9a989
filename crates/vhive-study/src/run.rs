//! What stands beside the figures of a run of `vhive load`, in its `summary.json`.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vhive_load::pin::{PinError, pin};

use crate::host::{Host, load_average};
use crate::row::{ResultError, text};

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

    /// Those of a summary.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, ResultError> {
        let content = |source| ResultError::Content { path: path.to_owned(), line: 1, source };
        serde_json::from_str(&text(path)?).map_err(content)
    }

    /// Whether the run ended before its time: whoever killed it left its rows.
    #[must_use]
    pub const fn is_cut_short(&self) -> bool {
        self.vhive.is_some() && self.ended.is_none()
    }

    /// The same at the end of the run.
    #[must_use]
    pub fn end(self) -> Self {
        Self { ended: Some(Timestamp::now()), load_after: load_average(), ..self }
    }
}

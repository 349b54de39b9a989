//! The original's `functions.json`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Which services, from a file of functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `<function>-<index>`.
    pub name: String,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Instances that it begins with; 0 leaves that to the manifest.
    pub initial_scale: u64,
    /// Whether it answers by an event, which its endpoint says, too.
    pub eventing: bool,
}

/// Why a file of functions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FunctionsError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("{path} is no list of functions")]
    Json {
        /// The file.
        path: PathBuf,
        /// The unknown key or bad value, by line and column.
        source: serde_json::Error,
    },
    /// What it lists makes no sense.
    #[error("{path}: {problem}")]
    Absurd {
        /// The file.
        path: PathBuf,
        /// What.
        problem: String,
    },
}

/// The most services of one file.
const MOST: u64 = 100_000;

/// Reads a file of functions; manifests are in `dir`.
///
/// # Errors
/// When it cannot be read, is malformed, or lists nothing.
pub fn read(path: &Path, dir: &Path) -> Result<Vec<Wanted>, FunctionsError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        functions: Vec<Function>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Function {
        name: String,
        file: String,
        count: u64,
        #[serde(default)]
        eventing: bool,
        #[serde(default, rename = "applyScript")]
        _apply_script: Option<String>,
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| FunctionsError::Read { path: path.to_owned(), source })?;
    let file: File = serde_json::from_str(&text)
        .map_err(|source| FunctionsError::Json { path: path.to_owned(), source })?;
    let absurd = |problem| FunctionsError::Absurd { path: path.to_owned(), problem };
    let total = file.functions.iter().fold(0_u64, |sum, one| sum.saturating_add(one.count));
    if total == 0 || total > MOST {
        return Err(absurd(format!("{total} services; 1 to {MOST} can be deployed")));
    }
    let mut all: Vec<Wanted> = Vec::new();
    for Function { name, file, count, eventing, .. } in file.functions {
        for index in 0..count {
            let (name, manifest) = (format!("{name}-{index}"), dir.join(&file));
            all.push(Wanted { name, manifest, initial_scale: 0, eventing });
        }
    }
    let mut names: Vec<&str> = all.iter().map(|wanted| wanted.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|two| two[0] == two[1]) {
        return Err(absurd(format!("the service {} is listed twice", twice[0])));
    }
    Ok(all)
}

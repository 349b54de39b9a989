//! Many experiments one after the other: studies that vary trace and keys of a base configuration.
//!
//! ```text
//!  study ──► its traces ──► its sweep (grid: all with all; linear: first with first) ──► experiments
//! ```
//!
//! Where an experiment's files go is derived from the study and what is varied, never from the time: a
//! run that was killed finds what it had finished, and goes on with the rest.
//!
//! # Source
//! invitro `tools/multi_loader`, `docs/multi_loader.md`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Config;
use super::config::ConfigError;
use crate::deploy::fnv;
use crate::fingerprint;

/// The most experiments of one file.
const MOST: usize = 10_000;
/// What says that an experiment is finished, and what it was run with.
const DONE: &str = "done.json";

/// The original's file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the original's keys")]
pub struct Multi {
    pub studies: Vec<Study>,
    pub base_config_path: PathBuf,
    pub iat_generation: bool,
    pub generated: bool,
    pub pre_script: String,
    pub post_script: String,
    pub master_node: String,
    pub auto_scaler_node: String,
    pub activator_node: String,
    pub loader_node: String,
    pub worker_nodes: Vec<String>,
    pub metrics: Vec<String>,
}

/// One study of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the original's keys")]
pub struct Study {
    pub name: String,
    pub config: Map<String, Value>,
    pub traces_dir: String,
    pub traces_format: String,
    pub trace_values: Vec<Value>,
    pub output_dir: String,
    pub verbosity: String,
    pub iat_generation: bool,
    pub generated: bool,
    pub pre_script: String,
    pub post_script: String,
    pub sweep: Vec<Sweep>,
    pub sweep_type: String,
}

/// What a study varies.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the original's keys")]
pub struct Sweep {
    pub field: String,
    pub values: Vec<Value>,
    pub format: String,
}

/// Why experiments cannot be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum MultiError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is no configuration of experiments")]
    Json {
        /// The file.
        path: PathBuf,
        /// The unknown key or bad value, by line and column.
        source: serde_json::Error,
    },
    /// What a file says makes no experiments.
    #[error("{path}: {problem}")]
    Absurd {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An experiment's configuration cannot be followed.
    #[error("experiment {name}")]
    Config {
        /// The experiment.
        name: String,
        /// Why.
        source: ConfigError,
    },
}

/// One experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// Study, trace and what is varied.
    pub name: String,
    /// Its whole configuration.
    pub config: Config,
    /// Run by a shell before it; empty for none.
    pub pre_script: String,
    /// Run by a shell after it; empty for none.
    pub post_script: String,
    /// The configuration as it is compared with an earlier run's.
    merged: Value,
}

impl Multi {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or asks for what is not offered.
    pub fn read(path: &Path) -> Result<Self, MultiError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| MultiError::Read { path: path.to_owned(), source })?;
        let multi: Self = serde_json::from_str(&text)
            .map_err(|source| MultiError::Json { path: path.to_owned(), source })?;
        let absurd = |problem: &str| {
            Err(MultiError::Absurd { path: path.to_owned(), problem: problem.to_owned() })
        };
        if multi.studies.is_empty() {
            return absurd("Studies: there is none");
        }
        let iat = |study: &Study| study.iat_generation || study.generated;
        if multi.iat_generation || multi.generated || multi.studies.iter().any(iat) {
            return absurd("IatGeneration, Generated: use `vhive load trace` for one experiment");
        }
        Ok(multi)
    }

    /// Keys that are understood, set, and have no effect here, with the reason.
    #[must_use]
    pub fn without_effect(&self) -> Vec<&'static str> {
        let nodes =
            [&self.master_node, &self.auto_scaler_node, &self.activator_node, &self.loader_node];
        let has_nodes = nodes.iter().any(|node| !node.is_empty()) || !self.worker_nodes.is_empty();
        let verbose = self.studies.iter().any(|study| !study.verbosity.is_empty());
        let all = [
            (has_nodes, "MasterNode and the other nodes: nothing is logged in to"),
            (!self.metrics.is_empty(), "Metrics: collect them in a PostScript"),
            (verbose, "Verbosity: see --log"),
        ];
        all.iter().filter(|(set, _)| *set).map(|(_, text)| *text).collect()
    }

    /// All experiments, in order. `path` is the file's, for messages.
    ///
    /// # Errors
    /// When the base or a directory of traces cannot be read, a sweep makes no sense, an experiment's
    /// configuration cannot be followed, or two would write the same files.
    pub fn experiments(&self, path: &Path) -> Result<Vec<Experiment>, MultiError> {
        let base = &self.base_config_path;
        let text = std::fs::read_to_string(base)
            .map_err(|source| MultiError::Read { path: base.clone(), source })?;
        let base: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|source| MultiError::Json { path: base.clone(), source })?;
        let mut all: Vec<Experiment> = Vec::new();
        for study in &self.studies {
            let absurd = |problem: String| {
                let problem = format!("study {:?}: {problem}", study.name);
                MultiError::Absurd { path: path.to_owned(), problem }
            };
            study.check().map_err(absurd)?;
            for (trace, named) in study.traces()? {
                for choice in study.choices().map_err(absurd)? {
                    all.push(study.experiment(&base, trace.as_deref(), &named, &choice)?);
                    if all.len() > MOST {
                        return Err(absurd(format!("more than {MOST} experiments")));
                    }
                }
            }
        }
        let mut places: Vec<&Path> =
            all.iter().map(|one| one.config.output_path_prefix.as_path()).collect();
        places.sort_unstable();
        if let Some(two) = places.windows(2).find(|two| two[0] == two[1]) {
            let problem = format!("two experiments would write to {}", two[0].display());
            return Err(MultiError::Absurd { path: path.to_owned(), problem });
        }
        Ok(all)
    }
}

/// One value of each sweep.
type Choice<'a> = Vec<(&'a Sweep, &'a Value)>;

impl Study {
    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || safe(&self.name) != self.name {
            return Err("Name: must be there, of letters, digits, `.`, `_` and `-`".to_owned());
        }
        if self.config.contains_key("Platform") {
            return Err("Config: Platform is the base configuration's".to_owned());
        }
        if !self.traces_format.is_empty() && !self.traces_format.contains("{}") {
            return Err("TracesFormat: has no {}".to_owned());
        }
        for sweep in &self.sweep {
            let Sweep { field, values, format } = sweep;
            if matches!(
                field.as_str(),
                "" | "TracePath" | "OutputDir" | "Platform" | "OutputPathPrefix"
            ) {
                return Err(format!("Sweep: {field:?} cannot be varied"));
            }
            if values.is_empty() {
                return Err(format!("Sweep: {field} has no values"));
            }
            if !format.is_empty() && !format.contains("{}") {
                return Err(format!("Sweep: the format of {field} has no {{}}"));
            }
        }
        Ok(())
    }

    /// Path and name of each trace; no path where the configuration names it.
    fn traces(&self) -> Result<Vec<(Option<String>, String)>, MultiError> {
        if !self.traces_dir.is_empty() {
            let unread =
                |source| MultiError::Read { path: PathBuf::from(&self.traces_dir), source };
            let entries: Result<Vec<_>, _> =
                std::fs::read_dir(&self.traces_dir).map_err(unread)?.collect();
            let mut names: Vec<String> = entries
                .map_err(unread)?
                .iter()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            let path = |name: String| (Some(format!("{}/{name}", self.traces_dir)), name);
            return Ok(names.into_iter().map(path).collect());
        }
        if !self.traces_format.is_empty() && !self.trace_values.is_empty() {
            let path = |value: &Value| {
                let path = self.traces_format.replace("{}", &plain(value));
                let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
                (Some(path.clone()), name.into_owned())
            };
            return Ok(self.trace_values.iter().map(path).collect());
        }
        Ok(vec![(None, self.name.clone())])
    }

    /// What is varied together; one empty choice without a sweep.
    fn choices(&self) -> Result<Vec<Choice<'_>>, String> {
        let values = |sweep: &Sweep| sweep.values.len();
        match self.sweep_type.as_str() {
            "" | "grid" => {
                let count = self.sweep.iter().map(values).try_fold(1_usize, usize::checked_mul);
                if count.is_none_or(|count| count > MOST) {
                    return Err(format!("Sweep: more than {MOST} experiments"));
                }
                let mut all: Vec<Choice<'_>> = vec![Vec::new()];
                for sweep in &self.sweep {
                    let mut more = Vec::with_capacity(all.len() * sweep.values.len());
                    for choice in &all {
                        let with = |value| [&choice[..], &[(sweep, value)]].concat();
                        more.extend(sweep.values.iter().map(with));
                    }
                    all = more;
                }
                Ok(all)
            }
            "linear" => {
                let count = self.sweep.first().map_or(1, values);
                if self.sweep.iter().any(|sweep| values(sweep) != count) {
                    return Err("Sweep: all need as many values, to be linear".to_owned());
                }
                let nth =
                    |n: usize| self.sweep.iter().map(|sweep| (sweep, &sweep.values[n])).collect();
                Ok((0..count).map(nth).collect())
            }
            other => Err(format!("SweepType: {other:?} is neither `grid` nor `linear`")),
        }
    }

    fn experiment(
        &self,
        base: &Map<String, Value>,
        trace: Option<&str>,
        named: &str,
        choice: &[(&Sweep, &Value)],
    ) -> Result<Experiment, MultiError> {
        let mut merged = base.clone();
        merged.extend(self.config.clone());
        if let Some(trace) = trace {
            merged.insert("TracePath".to_owned(), json!(trace));
        }
        let (mut pre_script, mut post_script) = (self.pre_script.clone(), self.post_script.clone());
        let mut part = safe(named);
        for (sweep, value) in choice {
            part.push_str(&safe(&format!("_{}_{}", sweep.field, plain(value))));
            let formatted = || sweep.format.replace("{}", &plain(value));
            let value = if sweep.format.is_empty() { (*value).clone() } else { json!(formatted()) };
            match sweep.field.as_str() {
                "PreScript" => pre_script = plain(&value),
                "PostScript" => post_script = plain(&value),
                field => drop(merged.insert(field.to_owned(), value)),
            }
        }
        let part = short(part);
        let out = match (
            self.output_dir.as_str(),
            merged.get("OutputPathPrefix").and_then(Value::as_str),
        ) {
            // As the original: without traces of its own, a study goes where its configuration says.
            (_, Some(prefix))
                if trace.is_none() && self.config.contains_key("OutputPathPrefix") =>
            {
                Path::new(prefix).parent().map(Path::to_owned).unwrap_or_default()
            }
            ("", _) => PathBuf::from("data/out"),
            (dir, _) => PathBuf::from(dir),
        };
        let prefix = out.join(&self.name).join(&part).join("experiment");
        merged.insert("OutputPathPrefix".to_owned(), json!(prefix));
        let name = format!("{}/{part}", self.name);
        let text = Value::Object(merged.clone()).to_string();
        let config = Config::parse(&text, Path::new(&name))
            .map_err(|source| MultiError::Config { name: name.clone(), source })?;
        let merged = json!({ "config": merged, "pre": pre_script, "post": post_script });
        Ok(Experiment { name, config, pre_script, post_script, merged })
    }
}

/// What an experiment is run with; a result of something else is not its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Given(Value);

/// That an experiment is finished.
#[derive(Debug, Deserialize, Serialize)]
struct Done {
    given: Value,
    failed_share: f64,
}

impl Experiment {
    fn mark(&self) -> PathBuf {
        self.config.output_dir().join(DONE)
    }

    /// What it was run with besides its configuration: the trace's files, as they are now, and `others`
    /// (endpoints, options), which the caller knows.
    ///
    /// # Errors
    /// When a file of the trace cannot be read.
    pub fn given(&self, others: &Value) -> io::Result<Given> {
        let mut trace = Map::new();
        for path in self.config.trace_files() {
            let word = fingerprint(&path)?;
            trace.insert(path.to_string_lossy().into_owned(), json!(word));
        }
        let Self { merged, .. } = self;
        Ok(Given(json!({ "experiment": merged, "trace": trace, "others": others })))
    }

    /// Whether an earlier run has finished it, given the same: configuration, scripts, trace and the rest.
    #[must_use]
    pub fn is_done(&self, given: &Given) -> bool {
        self.done().is_some_and(|done| done.given == given.0)
    }

    /// Which share of the requests failed when it was finished.
    #[must_use]
    pub fn failed_share(&self) -> Option<f64> {
        self.done().map(|done| done.failed_share)
    }

    fn done(&self) -> Option<Done> {
        serde_json::from_slice(&std::fs::read(self.mark()).ok()?).ok()
    }

    /// It has been finished; its files are whole.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn set_done(&self, given: &Given, failed_share: f64) -> io::Result<()> {
        let draft = self.mark().with_extension("json.part");
        let done = Done { given: given.0.clone(), failed_share };
        std::fs::write(&draft, serde_json::to_vec(&done)?)?;
        std::fs::rename(draft, self.mark())
    }

    /// It is about to be run: what an earlier run has finished counts no more.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.config.output_dir())?;
        match std::fs::remove_file(self.mark()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A value without the quotes of a string.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// As a file's name.
fn safe(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let safe: String = text.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if safe.trim_matches('.').is_empty() { "_".repeat(safe.len()) } else { safe }
}

/// The most of a name that is kept: a directory's may have 255 bytes.
const MOST_NAME: usize = 200;

/// A name that a directory can have: of a longer one, its beginning and a word for the whole.
fn short(mut name: String) -> String {
    if name.len() > MOST_NAME {
        let word = format!("-{:016x}", fnv(name.as_bytes()));
        // It is `safe`, so each character is a byte.
        name.truncate(MOST_NAME - word.len());
        name.push_str(&word);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        r#"{"Seed": 1, "TracePath": "RPS", "RpsTarget": 1, "ExperimentDuration": 2}"#;

    /// `studies` is the text between the brackets; `DIR` in it is the test's directory.
    fn unpack(studies: &str) -> Result<(tempfile::TempDir, Vec<Experiment>), String> {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("base.json"), BASE).unwrap();
        for trace in ["b", "a"] {
            std::fs::create_dir_all(at("traces").join(trace)).unwrap();
        }
        let text = format!("{{\"Studies\":[{studies}],\"BaseConfigPath\":\"DIR/base.json\"}}");
        std::fs::write(at("multi.json"), text.replace("DIR", &dir.path().to_string_lossy()))
            .unwrap();
        let told = |error: MultiError| {
            let first: &dyn std::error::Error = &error;
            let chain = std::iter::successors(Some(first), |error| error.source());
            chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        };
        let multi = Multi::read(&at("multi.json")).map_err(told)?;
        let all = multi.experiments(&at("multi.json")).map_err(told)?;
        Ok((dir, all))
    }

    #[test]
    fn a_grid_is_all_with_all_and_a_line_is_first_with_first() {
        let sweep = r#""Sweep":[{"Field":"RpsTarget","Values":[1,2]},
            {"Field":"PreScript","Values":["x","y"],"Format":"echo {}"}]"#;
        let (dir, grid) =
            unpack(&format!(r#"{{"Name":"s","OutputDir":"DIR/out",{sweep}}}"#)).unwrap();
        let told: Vec<_> =
            grid.iter().map(|one| (one.config.rps_target, one.pre_script.as_str())).collect();
        assert_eq!(told, [(1.0, "echo x"), (1.0, "echo y"), (2.0, "echo x"), (2.0, "echo y")]);
        let wanted = dir.path().join("out/s/s_RpsTarget_1_PreScript_x/experiment");
        assert_eq!(grid[0].config.output_path_prefix, wanted);
        assert_eq!(
            (grid[3].config.seed, grid[3].config.experiment_duration),
            (1, 2),
            "from the base"
        );
        let line = format!(r#"{{"Name":"s","SweepType":"linear",{sweep}}}"#);
        let (_dir, line) = unpack(&line).unwrap();
        let told: Vec<_> =
            line.iter().map(|one| (one.config.rps_target, one.pre_script.as_str())).collect();
        assert_eq!(told, [(1.0, "echo x"), (2.0, "echo y")]);
        assert!(line[0].config.output_path_prefix.starts_with("data/out/s"));
    }

    #[test]
    fn a_name_that_is_too_long_for_a_directory_is_cut_and_stays_its_own() {
        let script = "x".repeat(300);
        let study = format!(
            r#"{{"Name":"s","OutputDir":"DIR/out","Sweep":[
                {{"Field":"PreScript","Values":["{script}a","{script}b"]}}]}}"#
        );
        let (_dir, all) = unpack(&study).unwrap();
        assert!(all.iter().all(|one| one.name.len() == 2 + 200), "{}", all[0].name);
        assert_ne!(all[0].name, all[1].name);
        let given = |one: &Experiment| one.given(&Value::Null).unwrap();
        for one in &all {
            one.begin().unwrap();
            assert!(!one.is_done(&given(one)));
            one.set_done(&given(one), 0.0).unwrap();
        }
        assert!(all.iter().all(|one| one.is_done(&given(one))));
    }

    #[test]
    fn traces_come_from_a_directory_or_a_format() {
        let (dir, all) =
            unpack(r#"{"Name":"d","TracesDir":"DIR/traces","Config":{"Seed":9}}"#).unwrap();
        let paths: Vec<_> = all.iter().map(|one| one.config.trace_path.clone()).collect();
        assert_eq!(paths, [dir.path().join("traces/a"), dir.path().join("traces/b")]);
        assert_eq!((all[0].name.as_str(), all[0].config.seed), ("d/a", 9));
        let values = r#"{"Name":"f","TracesFormat":"t/example_{}_test","TraceValues":["1",2,3.1]}"#;
        let (_dir, all) = unpack(values).unwrap();
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["f/example_1_test", "f/example_2_test", "f/example_3.1_test"]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (study, said) in [
            ("", "there is none"),
            (r#"{"Name":""}"#, "Name"),
            (r#"{"Name":"../x"}"#, "Name"),
            (r#"{"Name":"s","Swep":[]}"#, "Swep"),
            (r#"{"Name":"s","Config":{"Sede":1}}"#, "Sede"),
            (r#"{"Name":"s","Config":{"Platform":"Knative"}}"#, "Platform"),
            (r#"{"Name":"s","TracesFormat":"x","TraceValues":[1]}"#, "TracesFormat"),
            (r#"{"Name":"s","TracesDir":"DIR/none"}"#, "none"),
            (r#"{"Name":"s","Sweep":[{"Field":"TracePath","Values":["x"]}]}"#, "TracePath"),
            (r#"{"Name":"s","Sweep":[{"Field":"Seed"}]}"#, "Seed has no values"),
            (r#"{"Name":"s","Sweep":[{"Field":"Seed","Values":[1],"Format":"x"}]}"#, "has no {}"),
            (r#"{"Name":"s","Sweep":[{"Field":"Seed","Values":["x"]}]}"#, "s/s_Seed_x"),
            (r#"{"Name":"s","SweepType":"spiral"}"#, "spiral"),
            (
                r#"{"Name":"s","SweepType":"linear","Sweep":[{"Field":"Seed","Values":[1,2]},
                {"Field":"RpsTarget","Values":[1]}]}"#,
                "linear",
            ),
            (r#"{"Name":"s"},{"Name":"s"}"#, "two experiments would write"),
            (r#"{"Name":"s","Generated":true}"#, "Generated"),
        ] {
            let error = unpack(study).unwrap_err();
            assert!(error.contains(said), "{error} for {said}");
        }
    }

    #[test]
    fn what_is_done_is_known_until_what_it_was_run_with_changes() {
        let study = |seed: u32| {
            format!(
                r#"{{"Name":"s","OutputDir":"DIR/out","TracesDir":"DIR/traces",
                "Config":{{"Seed":{seed}}}}}"#
            )
        };
        let (dir, all) = unpack(&study(1)).unwrap();
        let one = &all[0];
        let invocations = dir.path().join("traces/a/invocations.csv");
        std::fs::write(&invocations, "1").unwrap();
        let endpoints = json!({ "endpoints": "3 bytes" });
        let given = || one.given(&endpoints).unwrap();
        assert!(!one.is_done(&given()));
        one.begin().unwrap();
        one.set_done(&given(), 0.25).unwrap();
        assert!(one.is_done(&given()) && one.failed_share() == Some(0.25));
        assert!(!one.is_done(&one.given(&json!({})).unwrap()), "other endpoints");
        std::fs::write(&invocations, "2").unwrap();
        assert!(!one.is_done(&given()), "another trace at the same place");
        std::fs::write(&invocations, "1").unwrap();
        std::fs::write(dir.path().join("traces/a/notes.txt"), "x").unwrap();
        assert!(one.is_done(&given()), "the same, written again; what is not read does not matter");
        let (_other, changed) = unpack(&study(2)).unwrap();
        let mut changed = changed[0].clone();
        changed.config.output_path_prefix.clone_from(&one.config.output_path_prefix);
        assert!(!changed.is_done(&changed.given(&endpoints).unwrap()), "done with another seed");
        let mark = one.mark();
        std::fs::write(&mark, "{").unwrap();
        assert!(!one.is_done(&given()), "half a mark is none");
        one.begin().unwrap();
        assert!(!mark.exists());
    }
}

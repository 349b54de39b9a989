//! The original loader's configuration file.
//!
//! # Source
//! invitro `pkg/config/parser.go`, `docs/configuration.md`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::rps::Rps;
use super::{
    Distribution, Function, MOST_UNITS, Plan, TraceError, Unit, azure2019, azure2021, dag, rps,
};
use crate::arrivals::whole_nanos;
use crate::call::{Protocol, Work};
use crate::files_of_trace;
use crate::flow::Flow;

/// Its keys, all of them; unknown ones are refused by name. What is missing is the original's
/// zero value, but for what its samples hold.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
#[expect(missing_docs, clippy::struct_excessive_bools, reason = "the original's keys")]
pub struct Config {
    pub seed: u64,
    pub platform: String,
    pub invoke_protocol: String,
    #[serde(rename = "YAMLSelector")]
    pub yaml_selector: String,
    pub endpoint_port: u16,
    pub rps_target: f64,
    pub rps_cold_start_ratio_percentage: f64,
    pub rps_cooldown_seconds: f64,
    pub rps_runtime_ms: u32,
    #[serde(rename = "RpsMemoryMB")]
    pub rps_memory_mb: u32,
    pub rps_iteration_multiplier: u32,
    pub trace_path: PathBuf,
    pub granularity: String,
    pub output_path_prefix: PathBuf,
    #[serde(rename = "IATDistribution")]
    pub iat_distribution: String,
    #[serde(rename = "CPULimit")]
    pub cpu_limit: String,
    pub experiment_duration: usize,
    pub warmup_duration: usize,
    pub is_partially_panic: bool,
    pub enable_zipkin_tracing: bool,
    pub enable_metrics_scrapping: bool,
    pub metric_scraping_period_seconds: u32,
    pub autoscaling_metric: String,
    #[serde(rename = "GRPCConnectionTimeoutSeconds")]
    pub grpc_connection_timeout_seconds: u64,
    #[serde(rename = "GRPCFunctionTimeoutSeconds")]
    pub grpc_function_timeout_seconds: u64,
    #[serde(rename = "DAGMode")]
    pub dag_mode: bool,
    #[serde(rename = "EnableDAGDataset")]
    pub enable_dag_dataset: bool,
    pub width: u32,
    pub depth: u32,
    #[serde(rename = "VSwarm")]
    pub v_swarm: bool,
    pub dirigent_config_path: String,
    /// Ours, and not of the file: whether a trace of exact times is refused for what cannot be.
    #[serde(skip)]
    pub strict: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 42,
            platform: "Knative".to_owned(),
            invoke_protocol: String::new(),
            yaml_selector: String::new(),
            endpoint_port: 80,
            rps_target: 0.0,
            rps_cold_start_ratio_percentage: 0.0,
            rps_cooldown_seconds: 0.0,
            rps_runtime_ms: 0,
            rps_memory_mb: 0,
            rps_iteration_multiplier: 0,
            trace_path: PathBuf::from("data/traces/example"),
            granularity: "minute".to_owned(),
            output_path_prefix: PathBuf::from("data/out/experiment"),
            iat_distribution: "exponential".to_owned(),
            cpu_limit: String::new(),
            experiment_duration: 1,
            warmup_duration: 0,
            is_partially_panic: false,
            enable_zipkin_tracing: false,
            enable_metrics_scrapping: false,
            metric_scraping_period_seconds: 15,
            autoscaling_metric: String::new(),
            grpc_connection_timeout_seconds: 0,
            grpc_function_timeout_seconds: 0,
            dag_mode: false,
            enable_dag_dataset: false,
            width: 0,
            depth: 0,
            v_swarm: false,
            dirigent_config_path: String::new(),
            strict: false,
        }
    }
}

/// What `TracePath` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Counts,
    Exact,
    Rps,
}

/// Why a configuration cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("{path} is no configuration of the loader")]
    Json {
        /// The file.
        path: PathBuf,
        /// The unknown key or bad value, by line and column.
        source: serde_json::Error,
    },
    /// A key asks for something that is not offered.
    #[error("{key}: {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// Why not.
        problem: String,
    },
    /// The trace is at fault.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or asks for what is not offered.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Understands a text that is, or is to be, the file's.
    ///
    /// # Errors
    /// When it has an unknown key, or asks for what is not offered.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(text)
            .map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what would be another experiment than the one asked for.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |key, problem: &str| Err(ConfigError::Key { key, problem: problem.to_owned() });
        if !self.platform.eq_ignore_ascii_case("knative") {
            return refuse(
                "Platform",
                "only Knative's way is spoken, by vHive's node or a cluster",
            );
        }
        if self.dag_mode && self.form() != Form::Counts {
            return refuse("DAGMode", "workflows are made of a trace of Azure Functions 2019");
        }
        if self.dag_mode && !self.enable_dag_dataset && (self.width == 0 || self.depth == 0) {
            return refuse("Width, Depth", "must be at least 1");
        }
        if self.v_swarm {
            return refuse("VSwarm", "mapping to vSwarm's functions is not offered");
        }
        if !self.dirigent_config_path.is_empty() {
            return refuse("DirigentConfigPath", "Dirigent is not spoken");
        }
        let columns = self.columns();
        if self.experiment_duration == 0 || columns > MOST_UNITS {
            return refuse("ExperimentDuration", "must be at least 1, and a day at most");
        }
        if self.patience() > crate::LONGEST {
            return refuse("GRPCFunctionTimeoutSeconds", "must be ten years at most");
        }
        self.unit()?;
        self.protocol()?;
        self.distribution()?;
        Ok(())
    }

    /// Keys that are understood, set, and have no effect here, with the reason.
    #[must_use]
    pub fn without_effect(&self) -> Vec<&'static str> {
        let all = [
            (self.enable_zipkin_tracing, "EnableZipkinTracing: spans are not offered"),
            (self.enable_metrics_scrapping, "EnableMetricsScrapping: see the node's /metrics"),
            (!self.yaml_selector.is_empty(), "YAMLSelector: the deployer is told the manifests"),
            (!self.cpu_limit.is_empty(), "CPULimit: set limits in the manifests that you deploy"),
            (self.is_partially_panic, "IsPartiallyPanic: set annotations where you deploy"),
            (
                !self.autoscaling_metric.is_empty() && self.autoscaling_metric != "concurrency",
                "AutoscalingMetric: set annotations where you deploy",
            ),
            (
                self.grpc_connection_timeout_seconds > 0,
                "GRPCConnectionTimeoutSeconds: a connection is part of the function's time-out",
            ),
            (
                self.rps_iteration_multiplier > 0,
                "RpsIterationMultiplier: the functions calibrate themselves",
            ),
        ];
        all.iter().filter(|(set, _)| *set).map(|(_, text)| *text).collect()
    }

    /// Units that are sent: warm-up and experiment.
    const fn units(&self) -> usize {
        self.warmup_duration.saturating_add(self.experiment_duration)
    }

    /// Units of the trace that are read: of counts, with a warm-up, the first only says how many
    /// instances to begin with.
    fn columns(&self) -> usize {
        let profiles = self.warmup_duration > 0 && self.form() == Form::Counts;
        self.units().saturating_add(usize::from(profiles))
    }

    /// What a column is.
    ///
    /// # Errors
    /// An unknown granularity.
    pub fn unit(&self) -> Result<Unit, ConfigError> {
        match self.granularity.as_str() {
            "minute" | "" => Ok(Unit::Minute),
            "second" => Ok(Unit::Second),
            other => {
                let problem = format!("{other:?} is neither `minute` nor `second`");
                Err(ConfigError::Key { key: "Granularity", problem })
            }
        }
    }

    /// What the functions speak.
    ///
    /// # Errors
    /// An unknown protocol.
    pub fn protocol(&self) -> Result<Option<Protocol>, ConfigError> {
        match self.invoke_protocol.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|problem| ConfigError::Key {
                key: "InvokeProtocol",
                problem: format!("{text:?}: {problem}"),
            }),
        }
    }

    fn distribution(&self) -> Result<Distribution, ConfigError> {
        let bad = |problem| ConfigError::Key { key: "IATDistribution", problem };
        self.iat_distribution.parse().map_err(bad)
    }

    /// The most that a request may take.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        match self.grpc_function_timeout_seconds {
            // The original's documented default.
            0 => Duration::from_secs(90),
            seconds => Duration::from_secs(seconds),
        }
    }

    /// The warm-up's length.
    ///
    /// # Errors
    /// An unknown granularity.
    pub fn warmup(&self) -> Result<Duration, ConfigError> {
        let units = u32::try_from(self.warmup_duration).unwrap_or(u32::MAX);
        Ok(self.unit()?.length() * units)
    }

    /// Reads the trace.
    ///
    /// # Errors
    /// Of the trace, by file, line and column.
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        let unit = self.unit()?;
        let (columns, units) = (self.columns(), self.units());
        let first = columns - units;
        let minutes = (unit.length().as_secs() * columns as u64).div_ceil(60);
        let mut notes = Vec::new();
        let functions: Vec<Function> = match self.form() {
            Form::Rps => rps::functions(&self.rps(), minutes)?,
            Form::Exact => {
                let exact = azure2021::read(&self.trace_path, minutes, self.strict)?;
                notes = exact.notes();
                exact.functions
            }
            Form::Counts => azure2019::read(&self.trace_path, columns)?,
        };
        let distribution = self.distribution()?;
        Ok(Plan { functions, unit, first, units, distribution, seed: self.seed, notes })
    }

    fn form(&self) -> Form {
        if self.trace_path.as_os_str() == "RPS" {
            return Form::Rps;
        }
        // By what it is; the published file of 2021 ends in `.txt`. Of what is not there, the name says
        // what it was to be.
        let is_dir = match std::fs::metadata(&self.trace_path) {
            Ok(there) => there.is_dir(),
            Err(_) => self.trace_path.extension().is_none_or(|end| end != "csv" && end != "txt"),
        };
        if is_dir { Form::Counts } else { Form::Exact }
    }

    /// The files that the plan and its workflows are made of.
    #[must_use]
    pub fn trace_files(&self) -> Vec<PathBuf> {
        match self.form() {
            Form::Rps => Vec::new(),
            Form::Exact | Form::Counts => files_of_trace(&self.trace_path),
        }
    }

    /// The workflows that a trace of so many functions is made into; none without `DAGMode`.
    ///
    /// # Errors
    /// Of the table of sizes, by file, line and column; when there are too few functions.
    pub fn flows(&self, functions: usize) -> Result<Vec<Flow>, ConfigError> {
        if !self.dag_mode {
            return Ok(Vec::new());
        }
        let whole = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
        let size = if self.enable_dag_dataset {
            dag::Size::Drawn(dag::Shares::read(&self.trace_path.join("dag_structure.csv"))?)
        } else {
            dag::Size::Fixed(whole(self.width), whole(self.depth))
        };
        Ok(dag::flows(&size, functions, self.seed)?)
    }

    fn rps(&self) -> Rps {
        Rps {
            target: self.rps_target,
            cold_percent: self.rps_cold_start_ratio_percentage,
            cooldown_s: self.rps_cooldown_seconds,
            work: Work { runtime_ms: self.rps_runtime_ms, memory_mib: self.rps_memory_mb },
        }
    }

    /// `<prefix>_duration_<minutes>.csv`, as the original names it.
    #[must_use]
    pub fn output(&self, name: &str) -> PathBuf {
        let mut path = self.output_path_prefix.clone().into_os_string();
        path.push(format!("_{name}_{}.csv", self.experiment_duration));
        path.into()
    }

    /// The directory that is in.
    #[must_use]
    pub fn output_dir(&self) -> PathBuf {
        let parent = self.output_path_prefix.parent().map(Path::to_owned).unwrap_or_default();
        if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent }
    }

    /// How late in the run the execution phase begins, in nanoseconds.
    ///
    /// # Errors
    /// An unknown granularity.
    pub fn execution_from_ns(&self) -> Result<u64, ConfigError> {
        Ok(whole_nanos(self.warmup()?.as_secs_f64() * 1e9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    /// The original's `config_knative_trace.json`, in its shape.
    const SAMPLE: &str = r#"{
      "Seed": 42, "Platform": "Knative", "InvokeProtocol" : "grpc", "YAMLSelector": "container",
      "EndpointPort": 80, "TracePath": "data/traces/example", "Granularity": "minute",
      "OutputPathPrefix": "data/out/experiment", "IATDistribution": "exponential",
      "CPULimit": "1vCPU", "ExperimentDuration": 2, "WarmupDuration": 3,
      "IsPartiallyPanic": false, "EnableZipkinTracing": false, "EnableMetricsScrapping": false,
      "MetricScrapingPeriodSeconds": 15, "AutoscalingMetric": "concurrency",
      "GRPCConnectionTimeoutSeconds": 15, "GRPCFunctionTimeoutSeconds": 900,
      "DAGMode": false, "EnableDAGDataset": true, "Width": 2, "Depth": 2
    }"#;

    #[test]
    fn the_originals_sample_is_understood() {
        let config = read(SAMPLE).unwrap();
        assert_eq!((config.columns(), config.patience()), (6, Duration::from_secs(900)));
        assert_eq!(config.protocol().unwrap(), Some(Protocol::Grpc));
        assert_eq!(config.output("duration"), Path::new("data/out/experiment_duration_2.csv"));
        assert_eq!(config.warmup().unwrap(), Duration::from_secs(180));
        let told = config.without_effect();
        for key in ["YAMLSelector", "CPULimit", "GRPCConnectionTimeoutSeconds"] {
            assert!(told.iter().any(|text| text.starts_with(key)), "{key} in {told:?}");
        }
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn unknown_keys_and_what_is_not_offered_are_refused_by_name() {
        for (text, said) in [
            (r#"{"Sede": 1}"#, "Sede"),
            (r#"{"Platform": "dirigent"}"#, "Platform"),
            (r#"{"DAGMode": true, "TracePath": "RPS"}"#, "DAGMode"),
            (r#"{"DAGMode": true, "Width": 2}"#, "Depth"),
            (r#"{"VSwarm": true}"#, "VSwarm"),
            (r#"{"ExperimentDuration": 0}"#, "ExperimentDuration"),
            (r#"{"ExperimentDuration": -1}"#, "-1"),
            (r#"{"Granularity": "hour"}"#, "Granularity"),
            (r#"{"IATDistribution": "normal"}"#, "IATDistribution"),
            (r#"{"InvokeProtocol": "smtp"}"#, "InvokeProtocol"),
        ] {
            let error = read(text).unwrap_err();
            let chain = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(chain.contains(said), "{chain} for {said}");
        }
    }

    #[test]
    fn a_warm_up_reads_one_minute_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        azure2019::tests::write(dir.path(), |_, text| text);
        let text = format!(
            r#"{{"TracePath": {:?}, "WarmupDuration": 1, "ExperimentDuration": 1,
                "Granularity": "second", "IATDistribution": "equidistant"}}"#,
            dir.path()
        );
        let config = read(&text).unwrap();
        let plan = config.plan().unwrap();
        assert_eq!((plan.first, plan.units, plan.total()), (1, 2, 2 + 1 + 70));
        assert_eq!(config.execution_from_ns().unwrap(), 1_000_000_000);
    }

    #[test]
    fn a_warm_up_of_known_times_sends_no_minute_more() {
        let dir = tempfile::tempdir().unwrap();
        let exact = dir.path().join("trace.csv");
        let lines: String = (0..5).map(|minute| format!("a,f,{}.5,0.5\n", 60 * minute)).collect();
        std::fs::write(&exact, format!("app,func,end_timestamp,duration\n{lines}")).unwrap();
        for (path, per_minute) in [(Path::new("RPS"), 120), (exact.as_path(), 1)] {
            let text = format!(
                r#"{{"TracePath": {path:?}, "WarmupDuration": 1, "ExperimentDuration": 1,
                    "RpsTarget": 2, "RpsRuntimeMs": 1, "RpsMemoryMB": 1}}"#
            );
            let config = read(&text).unwrap();
            let plan = config.plan().unwrap();
            assert_eq!((plan.first, plan.units), (0, 2), "{path:?}");
            assert_eq!(plan.counts(0), [per_minute, per_minute], "{path:?}");
            let from = config.execution_from_ns().unwrap();
            let (before, after): (Vec<_>, Vec<_>) =
                plan.shots().partition(|shot| shot.at_ns < from);
            assert_eq!([before.len() as u64, after.len() as u64], [per_minute, per_minute]);
        }
    }

    #[test]
    fn a_file_is_told_from_a_directory_by_looking_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let form = |path: &Path| Config { trace_path: path.to_owned(), ..Config::default() }.form();
        // The published name of the trace of 2021.
        let file = dir.path().join("AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt");
        let plain = dir.path().join("trace");
        for path in [&file, &plain] {
            std::fs::write(path, "app,func,end_timestamp,duration\na,f,5,1\n").unwrap();
            assert_eq!(form(path), Form::Exact);
        }
        let config = Config { trace_path: file, ..Config::default() };
        assert_eq!(config.plan().unwrap().total(), 1);
        let named = dir.path().join("trace.csv");
        std::fs::create_dir(&named).unwrap();
        assert_eq!(form(&named), Form::Counts);
        azure2019::tests::write(&named, |_, text| text);
        let config = Config { trace_path: named, ..Config::default() };
        assert_eq!(config.plan().unwrap().total(), 5 + 1);
        for (none, wanted) in [
            ("x.csv", Form::Exact),
            ("x.txt", Form::Exact),
            ("x", Form::Counts),
            ("RPS", Form::Rps),
        ] {
            assert_eq!(form(Path::new(none)), wanted, "{none}");
        }
    }

    #[test]
    fn a_time_out_longer_than_any_run_is_refused() {
        let text = |seconds: u64| format!(r#"{{"GRPCFunctionTimeoutSeconds": {seconds}}}"#);
        assert_eq!(read(&text(900)).unwrap().patience(), Duration::from_secs(900));
        for seconds in [u64::MAX, 315_360_001] {
            let error = read(&text(seconds)).unwrap_err().to_string();
            assert!(error.contains("GRPCFunctionTimeoutSeconds"), "{error}");
        }
    }

    #[test]
    fn absurd_durations_are_refused() {
        for text in [
            format!(r#"{{"WarmupDuration": {}}}"#, usize::MAX),
            format!(r#"{{"ExperimentDuration": {0}, "WarmupDuration": {0}}}"#, usize::MAX),
        ] {
            assert!(read(&text).unwrap_err().to_string().contains("ExperimentDuration"));
        }
    }
}

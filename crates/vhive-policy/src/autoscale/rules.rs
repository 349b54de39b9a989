//! Everything that a revision and the node's configuration say about scaling.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::Span;

/// What is counted to see how much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Requests in flight or waiting, averaged over time.
    #[default]
    Concurrency,
    /// Requests that came, per second.
    Rps,
}

/// How the seconds of a window become one figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// All alike.
    #[default]
    Linear,
    /// The newest most, each older one less by the same factor.
    WeightedExponential,
}

/// Which policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// Knative's autoscaler.
    #[default]
    Kpa,
    /// An instance is kept for a fixed time after its last use.
    Fixed,
    /// When an instance is there is learnt from the revision's idle times.
    Histogram,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kpa => "kpa",
            Self::Fixed => "fixed",
            Self::Histogram => "histogram",
        })
    }
}

impl FromStr for PolicyKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "kpa" => Ok(Self::Kpa),
            "fixed" => Ok(Self::Fixed),
            "histogram" => Ok(Self::Histogram),
            _ => Err("must be kpa, fixed or histogram"),
        }
    }
}

/// What a revision and the node's configuration say about scaling. Kept in the store: a field that
/// came later has a default, so that what an earlier version wrote can be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Load per instance to aim at, utilisation already applied; at least 0.01.
    pub target: f64,
    /// Most load per instance, before utilisation.
    #[serde(default = "default_total")]
    pub total: f64,
    /// What load is.
    #[serde(default)]
    pub metric: Metric,
    /// How it is averaged.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Fewest instances.
    pub min: u32,
    /// Most instances; 0 = no limit.
    pub max: u32,
    /// Instances to start when the revision is made; 0 = wait for the first request.
    pub initial: u32,
    /// Fewest instances while there is demand; 0 or 1 = no more than it needs.
    #[serde(default)]
    pub activation: u32,
    /// Load for which there shall be room beyond what is there; -1 = without end. The gateway is
    /// always in the path and absorbs bursts, so this is only reported.
    #[serde(default = "default_burst_capacity")]
    pub burst_capacity: f64,
    /// Stable window.
    pub window: Span,
    /// Panic window in per cent of the stable one, 1 to 100.
    pub panic_window_percent: f64,
    /// Load of the ready instances, in per cent of their target, from which on it panics.
    pub panic_threshold_percent: f64,
    /// Whether the last instance may go.
    #[serde(default = "default_scale_to_zero")]
    pub scale_to_zero: bool,
    /// How long the last instance stays beyond the stable window, at least.
    #[serde(default = "default_grace")]
    pub grace: Span,
    /// Likewise, as the revision says.
    pub retention: Span,
    /// How long a decision to have fewer instances is held back.
    pub scale_down_delay: Span,
    /// Most instances wanted per ready one in one decision.
    pub max_up_rate: f64,
    /// Most ready instances per wanted one in one decision.
    pub max_down_rate: f64,
    /// Which policy decides.
    #[serde(default)]
    pub policy: PolicyKind,
    /// How long an unused instance is kept, by the policies other than Knative's.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: Span,
}

fn default_total() -> f64 {
    100.0
}

fn default_burst_capacity() -> f64 {
    211.0
}

fn default_scale_to_zero() -> bool {
    true
}

fn default_grace() -> Span {
    Span(Duration::ZERO)
}

fn default_keep_alive() -> Span {
    Span(Duration::from_secs(600))
}

const SECOND: Duration = Duration::from_secs(1);
/// Shortest stretch, for which there is no need.
const SMALLEST: Duration = Duration::from_millis(1);
/// The shortest stable window that Knative allows.
const SHORTEST: Duration = Duration::from_secs(6);

impl Rules {
    /// Length of the stretches of time that a window consists of: a second, as Knative's. Windows
    /// that are shorter than Knative allows have six stretches.
    #[must_use]
    pub fn bucket(&self) -> Duration {
        if self.window.0 >= SHORTEST {
            return SECOND;
        }
        let nanos = self.window.0.as_nanos().div_ceil(6);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).max(SMALLEST)
    }

    /// The window over which a burst is noticed: whole stretches, at least one.
    #[must_use]
    pub fn panic_window(&self) -> Duration {
        let bucket = self.bucket();
        let window = self.window.0.mul_f64(self.panic_window_percent.clamp(1.0, 100.0) / 100.0);
        let buckets = (window.as_secs_f64() / bucket.as_secs_f64()).round().clamp(1.0, 3600.0);
        bucket.mul_f64(buckets)
    }

    /// How long the last instance stays once the stable window is empty.
    #[must_use]
    pub fn hold(&self) -> Duration {
        self.grace.0.max(self.retention.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 of the store wrote it, before there were policies.
    const OLD: &str = r#"{"target":70.0,"min":0,"max":3,"initial":0,"window":"60s",
        "panic_window_percent":10.0,"panic_threshold_percent":200.0,"retention":"5s",
        "scale_down_delay":"0us","max_up_rate":1000.0,"max_down_rate":2.0}"#;

    #[test]
    fn rules_of_an_earlier_store_are_read_with_defaults() {
        let rules: Rules = serde_json::from_str(OLD).expect("read");
        assert_eq!(rules.policy, PolicyKind::Kpa);
        assert_eq!(rules.metric, Metric::Concurrency);
        assert_eq!(rules.hold(), Duration::from_secs(5));
        assert!(rules.scale_to_zero);
        let again = serde_json::to_string(&rules).expect("written");
        assert_eq!(serde_json::from_str::<Rules>(&again).expect("read"), rules);
    }

    #[test]
    fn windows_consist_of_whole_stretches() {
        let mut rules: Rules = serde_json::from_str(OLD).expect("read");
        // window, per cent → stretch, panic window, in milliseconds.
        for (window, percent, bucket, panic) in [
            (60_000, 10.0, 1000, 6000),
            (6_000, 10.0, 1000, 1000),  // 0.6 s becomes 1 s
            (64_000, 10.0, 1000, 6000), // 6.4 s becomes 6 s
            (65_000, 10.0, 1000, 7000), // 6.5 s becomes 7 s
            (60_000, 1.0, 1000, 1000),
            (300, 10.0, 50, 50),
            (300, 50.0, 50, 150),
        ] {
            rules.window = Span(Duration::from_millis(window));
            rules.panic_window_percent = percent;
            assert_eq!(rules.bucket(), Duration::from_millis(bucket), "{window}");
            assert_eq!(rules.panic_window(), Duration::from_millis(panic), "{window} {percent}");
        }
    }
}

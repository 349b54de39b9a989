//! `[serving.autoscale]`.

use std::time::Duration;

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use vhive_api::Span;

use super::ConfigError;
use crate::autoscale::PolicyKind;

/// Longest window, delay and retention, as Knative has it.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Longest keep-alive.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Whose defaults hold for what the section does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Those of a node where the gateway is always in the path.
    #[default]
    Vhive,
    /// Knative's, also where a node could do better: for comparisons with a cluster.
    Knative,
}

/// How the number of instances follows the demand. Names and defaults as in Knative's
/// `config-autoscaler`, but for those that say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct AutoscaleConfig {
    /// Whose defaults hold for the other keys.
    pub profile: Profile,
    /// How often it decides while anything runs; a queue that forms makes it decide at once.
    pub tick: Span,
    /// Stable window.
    pub stable_window: Span,
    /// Panic window in per cent of the stable one.
    pub panic_window_percent: f64,
    /// Load at which it panics, in per cent of the target.
    pub panic_threshold_percent: f64,
    /// Target concurrency of revisions without `containerConcurrency`.
    pub target_concurrency: f64,
    /// Target requests per second of revisions that scale by them.
    pub target_rps: f64,
    /// Which part of the target or of `containerConcurrency` to aim at, in per cent.
    pub target_percent: f64,
    /// Load for which there shall be room beyond what is there; -1 = without end. Only reported:
    /// the gateway is always in the path.
    pub target_burst_capacity: f64,
    /// Most instances wanted per ready one in one decision.
    pub max_scale_up_rate: f64,
    /// Most ready instances per wanted one in one decision.
    pub max_scale_down_rate: f64,
    /// Whether the last instance may go.
    pub scale_to_zero: bool,
    /// How long the last instance outlives the last request beyond the window, at least. Zero
    /// where Knative has 30 s: the gateway is always in the path, so nothing needs to be waited
    /// for.
    pub scale_to_zero_grace: Span,
    /// Likewise, for revisions that do not say.
    pub scale_to_zero_retention: Span,
    /// Instances started when a revision is made. Zero where Knative has 1: the first request
    /// starts the first instance.
    pub initial_scale: u32,
    /// Fewest instances of revisions that do not say.
    pub min_scale: u32,
    /// Most instances of revisions that do not say; 0 = no limit.
    pub max_scale: u32,
    /// The most that a revision may say; 0 = anything.
    pub max_scale_limit: u32,
    /// How long a decision to have fewer instances is held back.
    pub scale_down_delay: Span,
    /// Which policy decides, without `vhive.dev/scaling-policy`.
    pub policy: PolicyKind,
    /// How long policies other than Knative's keep an unused instance, without
    /// `vhive.dev/keep-alive`.
    pub keep_alive: Span,
}

impl Default for AutoscaleConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Vhive,
            tick: Span(Duration::from_secs(1)),
            stable_window: Span(Duration::from_secs(60)),
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            target_concurrency: 100.0,
            target_rps: 200.0,
            target_percent: 70.0,
            target_burst_capacity: 211.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_to_zero: true,
            scale_to_zero_grace: Span(Duration::ZERO),
            scale_to_zero_retention: Span(Duration::ZERO),
            initial_scale: 0,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
            scale_down_delay: Span(Duration::ZERO),
            policy: PolicyKind::Kpa,
            keep_alive: Span(Duration::from_secs(600)),
        }
    }
}

impl Serialize for AutoscaleConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// What the section says, over its profile's defaults.
impl<'de> Deserialize<'de> for AutoscaleConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let said = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let profile = said.get("profile").map(Profile::deserialize).transpose();
        let defaults = Self::of(profile.map_err(D::Error::custom)?.unwrap_or_default());
        let mut all = serde_json::to_value(&defaults).map_err(D::Error::custom)?;
        if let Some(all) = all.as_object_mut() {
            all.extend(said);
        }
        Self::deserialize(all).map_err(D::Error::custom)
    }
}

impl AutoscaleConfig {
    /// A profile's defaults.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let ours = Self { profile, ..Self::default() };
        match profile {
            Profile::Vhive => ours,
            Profile::Knative => Self {
                tick: Span(Duration::from_secs(2)),
                scale_to_zero_grace: Span(Duration::from_secs(30)),
                initial_scale: 1,
                ..ours
            },
        }
    }

    /// Checks everything that types cannot say.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value that is out of range.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError { key, reason: reason.to_owned() });
        if self.tick.0 < Duration::from_millis(10) {
            return wrong("autoscale.tick", "must be at least 10ms");
        }
        if !(self.tick.0..=HOUR).contains(&self.stable_window.0) {
            return wrong("autoscale.stable_window", "must be from one tick to 1h");
        }
        if self.scale_down_delay.0 > HOUR {
            return wrong("autoscale.scale_down_delay", "must be at most 1h");
        }
        if self.keep_alive.0 < self.tick.0 || self.keep_alive.0 > DAY {
            return wrong("autoscale.keep_alive", "must be from one tick to 24h");
        }
        let burst = self.target_burst_capacity;
        if !(burst == -1.0 || (0.0..=1e9).contains(&burst)) {
            return wrong("autoscale.target_burst_capacity", "must be -1 or at least 0");
        }
        let (min, max, limit) = (self.min_scale, self.max_scale, self.max_scale_limit);
        if max > 0 && min > max {
            return wrong("autoscale.min_scale", "must not exceed max_scale");
        }
        if limit > 0 && !(1..=limit).contains(&max) {
            return wrong("autoscale.max_scale", "must be from 1 to max_scale_limit");
        }
        for (key, value, range) in [
            ("autoscale.panic_window_percent", self.panic_window_percent, 1.0..=100.0),
            ("autoscale.panic_threshold_percent", self.panic_threshold_percent, 110.0..=1000.0),
            ("autoscale.target_concurrency", self.target_concurrency, 0.01..=1e6),
            ("autoscale.target_rps", self.target_rps, 0.01..=1e6),
            ("autoscale.target_percent", self.target_percent, 1.0..=100.0),
            ("autoscale.max_scale_up_rate", self.max_scale_up_rate, 1.01..=1e6),
            ("autoscale.max_scale_down_rate", self.max_scale_down_rate, 1.01..=1e6),
        ] {
            if !range.contains(&value) {
                let reason = format!("must be from {} to {}", range.start(), range.end());
                return Err(ConfigError { key, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_says_what_the_section_does_not() {
        let read = |text: &str| serde_json::from_str::<AutoscaleConfig>(text);
        assert_eq!(read("{}").unwrap(), AutoscaleConfig::default());
        let knative = read(r#"{"profile": "knative"}"#).unwrap();
        assert_eq!((knative.initial_scale, knative.tick), (1, Span(Duration::from_secs(2))));
        assert_eq!(knative.scale_to_zero_grace, Span(Duration::from_secs(30)));
        assert_eq!(knative, AutoscaleConfig::of(Profile::Knative));
        let mixed = read(r#"{"initial_scale": 0, "profile": "knative", "tick": "1s"}"#).unwrap();
        let tick = Span(Duration::from_secs(1));
        assert_eq!(mixed, AutoscaleConfig { initial_scale: 0, tick, ..knative });
        let written = serde_json::to_string(&mixed).unwrap();
        assert_eq!(read(&written).unwrap(), mixed);
        for (text, why) in [
            (r#"{"profile": "other"}"#, "unknown variant `other`"),
            (r#"{"tock": "1s"}"#, "unknown field `tock`"),
            (r#"{"tick": 1}"#, "invalid type"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        let refused = |change: fn(&mut AutoscaleConfig)| {
            let mut config = AutoscaleConfig::default();
            change(&mut config);
            config.validate().expect_err("out of range").key
        };
        assert_eq!(AutoscaleConfig::default().validate(), Ok(()));
        assert_eq!(refused(|c| c.target_percent = f64::NAN), "autoscale.target_percent");
        assert_eq!(refused(|c| c.target_rps = 0.0), "autoscale.target_rps");
        assert_eq!(refused(|c| c.stable_window = Span(DAY)), "autoscale.stable_window");
        let burst = "autoscale.target_burst_capacity";
        assert_eq!(refused(|c| c.target_burst_capacity = -0.5), burst);
        assert_eq!(refused(|c| c.target_burst_capacity = f64::NAN), burst);
        assert_eq!(refused(|c| c.max_scale_limit = 5), "autoscale.max_scale");
        assert_eq!(refused(|c| (c.min_scale, c.max_scale) = (3, 2)), "autoscale.min_scale");
        assert_eq!(refused(|c| c.keep_alive = Span(Duration::ZERO)), "autoscale.keep_alive");
    }
}

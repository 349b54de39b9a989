//! `autoscaling.knative.dev/…`, and what of vHive's own annotations concerns scaling.

use std::time::Duration;

use vhive_api::Span;

use super::annotations::{instances, number, set, span};
use super::cursor::Cursor;
use crate::autoscale::{Aggregation, Metric, PolicyKind, Rules};
use crate::config::{AutoscaleConfig, DAY, HOUR};

/// The spellings that Knative accepts besides, and which goes before them.
const ALIASES: [(&str, &str); 10] = [
    ("initialScale", "initial-scale"),
    ("maxScale", "max-scale"),
    ("metricAggregationAlgorithm", "metric-aggregation-algorithm"),
    ("minScale", "min-scale"),
    ("panicThresholdPercentage", "panic-threshold-percentage"),
    ("panicWindowPercentage", "panic-window-percentage"),
    ("scaleDownDelay", "scale-down-delay"),
    ("scaleToZeroPodRetentionPeriod", "scale-to-zero-pod-retention-period"),
    ("targetBurstCapacity", "target-burst-capacity"),
    ("targetUtilizationPercentage", "target-utilization-percentage"),
];

/// The rules of a template as far as they have been read.
pub(super) struct Autoscaling<'a, 'd> {
    defaults: &'a AutoscaleConfig,
    rules: Rules,
    target: Option<f64>,
    utilisation: f64,
    activation: Option<Cursor<'d>>,
    max: Option<Cursor<'d>>,
    metric: Option<Cursor<'d>>,
}

impl<'a, 'd> Autoscaling<'a, 'd> {
    pub(super) fn new(defaults: &'a AutoscaleConfig) -> Self {
        let rules = Rules {
            target: 1.0,
            total: 1.0,
            metric: Metric::Concurrency,
            aggregation: Aggregation::Linear,
            min: defaults.min_scale,
            max: defaults.max_scale,
            initial: defaults.initial_scale,
            activation: 0,
            burst_capacity: defaults.target_burst_capacity,
            window: defaults.stable_window,
            panic_window_percent: defaults.panic_window_percent,
            panic_threshold_percent: defaults.panic_threshold_percent,
            scale_to_zero: defaults.scale_to_zero,
            grace: defaults.scale_to_zero_grace,
            retention: defaults.scale_to_zero_retention,
            scale_down_delay: defaults.scale_down_delay,
            max_up_rate: defaults.max_scale_up_rate,
            max_down_rate: defaults.max_scale_down_rate,
            policy: defaults.policy,
            keep_alive: defaults.keep_alive,
        };
        let utilisation = defaults.target_percent;
        Self {
            defaults,
            rules,
            target: None,
            utilisation,
            activation: None,
            max: None,
            metric: None,
        }
    }

    /// Reads one of Knative's annotations. `spelt` says whether there is one of a name, too.
    pub(super) fn take(
        &mut self,
        name: &str,
        (entry, text): (&Cursor<'d>, &str),
        spelt: impl Fn(&str) -> bool,
    ) {
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name, |(_, name)| name);
        if alias.is_some() && spelt(name) {
            return;
        }
        let rules = &mut self.rules;
        match name {
            "class" if text == "kpa.autoscaling.knative.dev" => {}
            "class" => entry.unsupported("only kpa.autoscaling.knative.dev is supported"),
            "metric" => {
                self.metric = Some(entry.clone());
                match text {
                    "concurrency" => rules.metric = Metric::Concurrency,
                    "rps" => rules.metric = Metric::Rps,
                    "cpu" | "memory" => {
                        entry.unsupported("only `concurrency` and `rps` are supported");
                    }
                    _ => entry.invalid("must be `concurrency` or `rps`"),
                }
            }
            "min-scale" => set(&mut rules.min, instances(entry, text)),
            "max-scale" => {
                set(&mut rules.max, instances(entry, text));
                self.max = Some(entry.clone());
            }
            "initial-scale" => set(&mut rules.initial, instances(entry, text)),
            "activation-scale" => {
                set(&mut rules.activation, instances(entry, text));
                self.activation = Some(entry.clone());
            }
            "target" => self.target = number(entry, text, 0.01, 1e6).or(self.target),
            "target-utilization-percentage" => {
                set(&mut self.utilisation, number(entry, text, 1.0, 100.0));
            }
            "target-burst-capacity" => match text.parse() {
                Ok(capacity) if capacity == -1.0 || (0.0..=1e9).contains(&capacity) => {
                    rules.burst_capacity = capacity;
                }
                _ => entry.invalid("must be -1 or a number from 0 on, in quotes"),
            },
            "metric-aggregation-algorithm" => match text {
                "linear" => rules.aggregation = Aggregation::Linear,
                "weighted-exponential" | "weightedExponential" => {
                    rules.aggregation = Aggregation::WeightedExponential;
                }
                _ => entry.invalid("must be `linear` or `weighted-exponential`"),
            },
            "window" => {
                set(&mut rules.window, seconds(entry, text, Duration::from_secs(6)));
            }
            "panic-window-percentage" => {
                set(&mut rules.panic_window_percent, number(entry, text, 1.0, 100.0));
            }
            "panic-threshold-percentage" => {
                set(&mut rules.panic_threshold_percent, number(entry, text, 110.0, 1000.0));
            }
            "scale-to-zero-pod-retention-period" => {
                set(&mut rules.retention, span(entry, text, Duration::ZERO, HOUR));
            }
            "scale-down-delay" => {
                set(&mut rules.scale_down_delay, seconds(entry, text, Duration::ZERO));
            }
            _ => entry.unknown("unknown annotation"),
        }
    }

    /// Reads `vhive.dev/scaling-policy`.
    pub(super) fn policy(&mut self, entry: &Cursor<'_>, text: &str) {
        match text.parse() {
            Ok(policy) => self.rules.policy = policy,
            Err(reason) => entry.invalid(reason),
        }
    }

    /// Reads `vhive.dev/keep-alive`.
    pub(super) fn keep_alive(&mut self, entry: &Cursor<'_>, text: &str, least: Duration) {
        set(&mut self.rules.keep_alive, span(entry, text, least, DAY));
    }

    /// Checks what concerns several annotations, and works out the target.
    pub(super) fn finish(
        self,
        annotations: Option<&Cursor<'_>>,
        concurrency: u32,
        own_window: Option<Span>,
    ) -> Rules {
        let Self { defaults, mut rules, target, utilisation, .. } = self;
        rules.window = own_window.unwrap_or(rules.window);
        let (min, max, activation) = (rules.min, rules.max, rules.activation);
        if max > 0
            && min > max
            && let Some(cursor) = annotations
        {
            cursor.invalid(format!("min-scale {min} exceeds max-scale {max}"));
        }
        let limit = defaults.max_scale_limit;
        if let Some(entry) = self.max.filter(|_| limit > 0 && !(1..=limit).contains(&max)) {
            entry.invalid(format!("must be from 1 to {limit}, the most that this node allows"));
        }
        if let Some(entry) = self.activation {
            if activation < 2 {
                entry.invalid("must be at least 2; without it there is at least 1");
            } else if activation < min || (max > 0 && activation > max) {
                entry.invalid(format!("must lie between min-scale {min} and max-scale {max}"));
            }
        }
        if let Some(entry) = self.metric
            && rules.metric != Metric::Concurrency
            && rules.policy != PolicyKind::Kpa
        {
            entry.invalid(format!("scaling policy {} goes by concurrency", rules.policy));
        }
        if max > 0 {
            rules.initial = rules.initial.min(max);
        }
        let hard = f64::from(concurrency);
        rules.total = match (rules.metric, target) {
            (Metric::Concurrency, Some(target)) if concurrency > 0 => target.min(hard),
            (_, Some(target)) => target,
            (Metric::Concurrency, None) if concurrency > 0 => hard,
            (Metric::Concurrency, None) => defaults.target_concurrency,
            (Metric::Rps, None) => defaults.target_rps,
        };
        rules.target = (rules.total * utilisation / 100.0).max(0.01);
        rules
    }
}

/// A time span of whole seconds, up to an hour.
fn seconds(entry: &Cursor<'_>, text: &str, least: Duration) -> Option<Span> {
    let found = span(entry, text, least, HOUR)?;
    if found.0.subsec_nanos() > 0 {
        entry.invalid("must be whole seconds");
        return None;
    }
    Some(found)
}

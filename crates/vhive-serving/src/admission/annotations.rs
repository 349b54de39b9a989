//! The annotations of a template that mean something. The table for users is in
//! `docs/design/serving.md`.

use std::str::FromStr;
use std::time::Duration;

use vhive_api::guest::Hooks;
use vhive_api::{ParsePolicyError, PrefetchPolicy, SnapshotPolicy, Span};

use super::cursor::Cursor;
use super::{PREFIX, quantity};
use crate::autoscale::Rules;
use crate::config::Config;

const KNATIVE: &str = "autoscaling.knative.dev/";

/// What the annotations say, with the configuration's defaults.
pub(super) struct Scaling {
    pub(super) target: f64,
    pub(super) rules: Rules,
    pub(super) queue_depth: u32,
    pub(super) snapshot: SnapshotPolicy,
    pub(super) prefetch: PrefetchPolicy,
    pub(super) hooks: Hooks,
}

/// Reads the annotations of a template. `concurrency` is its `containerConcurrency`.
pub(super) fn read(annotations: Option<&Cursor<'_>>, concurrency: u32, config: &Config) -> Scaling {
    let defaults = &config.autoscale;
    let mut target = None;
    let mut utilisation = defaults.target_percent;
    let mut queue_depth = config.defaults.queue_depth;
    let mut snapshot = config.defaults.snapshot_policy;
    let mut prefetch = config.defaults.prefetch_policy;
    let mut hooks = Hooks::default();
    let mut rules = Rules {
        target: 1.0,
        min: 0,
        max: 0,
        initial: defaults.initial_scale,
        window: defaults.stable_window,
        panic_window_percent: defaults.panic_window_percent,
        panic_threshold_percent: defaults.panic_threshold_percent,
        retention: Span(defaults.scale_to_zero_retention.0.max(defaults.scale_to_zero_grace.0)),
        scale_down_delay: defaults.scale_down_delay,
        max_up_rate: defaults.max_scale_up_rate,
        max_down_rate: defaults.max_scale_down_rate,
    };
    let mut own_window = None;
    for (name, entry) in annotations.map(Cursor::entries).unwrap_or_default() {
        let Some(text) = entry.text() else { continue };
        if let Some(name) = name.strip_prefix(KNATIVE) {
            match name {
                "class" if text == "kpa.autoscaling.knative.dev" => {}
                "class" => entry.unsupported("only kpa.autoscaling.knative.dev is supported"),
                "metric" if text == "concurrency" => {}
                "metric" => entry.unsupported("only `concurrency` is supported"),
                "min-scale" | "minScale" => set(&mut rules.min, instances(&entry, text)),
                "max-scale" | "maxScale" => set(&mut rules.max, instances(&entry, text)),
                "initial-scale" | "initialScale" => {
                    set(&mut rules.initial, instances(&entry, text));
                }
                "target" => target = number(&entry, text, 0.01, 1e6).or(target),
                "target-utilization-percentage" | "targetUtilizationPercentage" => {
                    set(&mut utilisation, number(&entry, text, 1.0, 100.0));
                }
                "window" => {
                    let span = span(&entry, text, Duration::from_secs(6), HOUR);
                    set(&mut rules.window, span);
                }
                "panic-window-percentage" | "panicWindowPercentage" => {
                    set(&mut rules.panic_window_percent, number(&entry, text, 1.0, 100.0));
                }
                "panic-threshold-percentage" | "panicThresholdPercentage" => {
                    set(&mut rules.panic_threshold_percent, number(&entry, text, 110.0, 1000.0));
                }
                "scale-to-zero-pod-retention-period" | "scaleToZeroPodRetentionPeriod" => {
                    if let Some(Span(span)) = span(&entry, text, Duration::ZERO, HOUR) {
                        rules.retention = Span(span.max(defaults.scale_to_zero_grace.0));
                    }
                }
                "scale-down-delay" => {
                    let span = span(&entry, text, Duration::ZERO, HOUR);
                    set(&mut rules.scale_down_delay, span);
                }
                "target-burst-capacity" | "targetBurstCapacity" => entry
                    .unsupported("the gateway is always in the path, so it always absorbs bursts"),
                "activation-scale" | "metric-aggregation-algorithm" => {
                    entry.unsupported("not supported yet");
                }
                _ => entry.unknown("unknown annotation"),
            }
        } else if let Some(name) = name.strip_prefix(PREFIX) {
            match name {
                "queue-depth" => set(&mut queue_depth, whole(&entry, text, 0, 1_000_000)),
                "snapshot-policy" => set(&mut snapshot, policy(&entry, text)),
                "prefetch-policy" => set(&mut prefetch, policy(&entry, text)),
                "before-snapshot" => hooks.before_snapshot = path(&entry, text),
                "after-restore" => hooks.after_restore = path(&entry, text),
                "window" => own_window = span(&entry, text, defaults.tick.0, HOUR),
                _ => entry.unknown("unknown annotation"),
            }
        }
    }
    rules.window = own_window.unwrap_or(rules.window);
    if rules.max > 0
        && rules.min > rules.max
        && let Some(cursor) = annotations
    {
        cursor.invalid(format!("min-scale {} exceeds max-scale {}", rules.min, rules.max));
    }
    if rules.max > 0 {
        rules.initial = rules.initial.min(rules.max);
    }
    let limit = f64::from(concurrency);
    let total = match target {
        Some(target) if concurrency > 0 => target.min(limit),
        Some(target) => target,
        None if concurrency > 0 => limit,
        None => defaults.target_concurrency,
    };
    rules.target = (total * utilisation / 100.0).max(0.01);
    Scaling { target: total, rules, queue_depth, snapshot, prefetch, hooks }
}

const HOUR: Duration = Duration::from_secs(3600);

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn instances(entry: &Cursor<'_>, text: &str) -> Option<u32> {
    whole(entry, text, 0, 100_000)
}

fn whole(entry: &Cursor<'_>, text: &str, low: u32, high: u32) -> Option<u32> {
    let number = text.parse().ok().filter(|n| (low..=high).contains(n));
    if number.is_none() {
        entry.invalid(format!("must be a whole number from {low} to {high}, in quotes"));
    }
    number
}

fn number(entry: &Cursor<'_>, text: &str, low: f64, high: f64) -> Option<f64> {
    let number = text.parse().ok().filter(|n| (low..=high).contains(n));
    if number.is_none() {
        entry.invalid(format!("must be a number from {low} to {high}, in quotes"));
    }
    number
}

fn path(entry: &Cursor<'_>, text: &str) -> Option<String> {
    let good =
        text.starts_with('/') && text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic());
    if !good {
        entry.invalid("must be a path beginning with a slash, at most 256 characters".to_owned());
    }
    good.then(|| text.to_owned())
}

fn policy<T: FromStr<Err = ParsePolicyError>>(entry: &Cursor<'_>, text: &str) -> Option<T> {
    text.parse().map_err(|error: ParsePolicyError| entry.invalid(error.to_string())).ok()
}

fn span(entry: &Cursor<'_>, text: &str, low: Duration, high: Duration) -> Option<Span> {
    match quantity::duration(text) {
        Ok(span) if (low..=high).contains(&span) => return Some(Span(span)),
        Ok(_) => entry.invalid(format!("must be from {} to {}", Span(low), Span(high))),
        Err(error) => entry.invalid(error.to_string()),
    }
    None
}

//! The annotations of a template that mean something. The table for users is in
//! `docs/design/serving.md`.

use std::str::FromStr;
use std::time::Duration;

use vhive_api::guest::Hooks;
use vhive_api::{Calls, ParsePolicyError, PrefetchPolicy, SnapshotAt, SnapshotPolicy, Span};

use super::autoscaling::Autoscaling;
use super::calls::{self, Place};
use super::cursor::Cursor;
use super::{PREFIX, quantity};
use crate::autoscale::Rules;
use crate::config::{Config, HOUR};

/// What begins a hook that is a command.
const COMMAND: &str = "exec:";

pub(super) const KNATIVE: &str = "autoscaling.knative.dev/";

/// What the annotations say, with the configuration's defaults.
pub(super) struct Scaling {
    pub(super) target: f64,
    pub(super) rules: Rules,
    pub(super) queue_depth: u32,
    pub(super) snapshot: SnapshotPolicy,
    pub(super) snapshot_at: SnapshotAt,
    pub(super) prefetch: PrefetchPolicy,
    pub(super) hooks: Hooks,
    pub(super) calls: Calls,
}

/// Reads the annotations of a template in a namespace. `concurrency` is its `containerConcurrency`.
pub(super) fn read(
    annotations: Option<&Cursor<'_>>,
    (namespace, concurrency): (&str, u32),
    config: &Config,
) -> Scaling {
    let place = Place { namespace, domain: &config.gateway.domain };
    let defaults = &config.autoscale;
    let mut queue_depth = config.defaults.queue_depth;
    let mut snapshot = config.defaults.snapshot_policy;
    let mut snapshot_at = SnapshotAt::default();
    let mut prefetch = config.defaults.prefetch_policy;
    let mut hooks = Hooks::default();
    let mut calls = Calls::default();
    let mut autoscaling = Autoscaling::new(defaults);
    let mut own_window = None;
    let entries = annotations.map(Cursor::entries).unwrap_or_default();
    for (name, entry) in &entries {
        let Some(text) = entry.text() else { continue };
        if let Some(name) = name.strip_prefix(KNATIVE) {
            let spelt = |name: &str| entries.iter().any(|(other, _)| is_knative(other, name));
            autoscaling.take(name, (entry, text), spelt);
        } else if let Some(name) = name.strip_prefix(PREFIX) {
            match name {
                "queue-depth" => set(&mut queue_depth, whole(entry, text, 0, 1_000_000)),
                "snapshot-policy" => set(&mut snapshot, policy(entry, text)),
                "snapshot-at" => set(&mut snapshot_at, policy(entry, text)),
                "prefetch-policy" => set(&mut prefetch, policy(entry, text)),
                "before-snapshot" => hooks.before_snapshot = hook(entry, text),
                "after-restore" => hooks.after_restore = hook(entry, text),
                "sink" => calls::sink(entry, text, place, &mut calls),
                "calls" => calls::calls(entry, text, place, &mut calls),
                "window" => own_window = span(entry, text, defaults.tick.0, HOUR),
                "scaling-policy" => autoscaling.policy(entry, text),
                "keep-alive" => autoscaling.keep_alive(entry, text, defaults.tick.0),
                _ => entry.unknown("unknown annotation"),
            }
        }
    }
    let rules = autoscaling.finish(annotations, concurrency, own_window);
    let target = rules.total;
    Scaling { target, rules, queue_depth, snapshot, snapshot_at, prefetch, hooks, calls }
}

fn is_knative(annotation: &str, name: &str) -> bool {
    annotation.strip_prefix(KNATIVE) == Some(name)
}

pub(super) fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

pub(super) fn instances(entry: &Cursor<'_>, text: &str) -> Option<u32> {
    whole(entry, text, 0, 100_000)
}

pub(super) fn whole(entry: &Cursor<'_>, text: &str, low: u32, high: u32) -> Option<u32> {
    let number = text.parse().ok().filter(|n| (low..=high).contains(n));
    if number.is_none() {
        entry.invalid(format!("must be a whole number from {low} to {high}, in quotes"));
    }
    number
}

pub(super) fn number(entry: &Cursor<'_>, text: &str, low: f64, high: f64) -> Option<f64> {
    let number = text.parse().ok().filter(|n| (low..=high).contains(n));
    if number.is_none() {
        entry.invalid(format!("must be a number from {low} to {high}, in quotes"));
    }
    number
}

fn hook(entry: &Cursor<'_>, text: &str) -> Option<String> {
    let path = || text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic());
    let command = |rest: &str| {
        !rest.trim().is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    };
    let good = text.len() <= 256 && (path() || text.strip_prefix(COMMAND).is_some_and(command));
    if !good {
        entry.invalid(
            "must be a path beginning with a slash, or `exec:` and a command with its arguments; \
             at most 256 characters",
        );
    }
    good.then(|| text.to_owned())
}

fn policy<T: FromStr<Err = ParsePolicyError>>(entry: &Cursor<'_>, text: &str) -> Option<T> {
    text.parse().map_err(|error: ParsePolicyError| entry.invalid(error.to_string())).ok()
}

pub(super) fn span(entry: &Cursor<'_>, text: &str, low: Duration, high: Duration) -> Option<Span> {
    match quantity::duration(text) {
        Ok(span) if (low..=high).contains(&span) => return Some(Span(span)),
        Ok(_) => entry.invalid(format!("must be from {} to {}", Span(low), Span(high))),
        Err(error) => entry.invalid(error.to_string()),
    }
    None
}

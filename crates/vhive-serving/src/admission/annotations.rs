//! The annotations of a template that mean something. The table for users is in
//! `docs/design/serving.md`.

use std::str::FromStr;
use std::time::Duration;

use vhive_api::guest::Hooks;
use vhive_api::{
    Calls, GuestName, ParsePolicyError, PrefetchPolicy, RuntimeName, SnapshotAt, SnapshotPolicy,
    Span,
};

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
    pub(super) guest: GuestName,
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
    let mut guest = GuestName::default();
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
                "guest" => set(&mut guest, read_guest(entry, text)),
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
    Scaling { target, rules, queue_depth, snapshot, snapshot_at, prefetch, hooks, calls, guest }
}

fn read_guest(entry: &Cursor<'_>, text: &str) -> Option<GuestName> {
    match text {
        "linux" => Some(GuestName::Linux),
        "nano" => Some(GuestName::Nano),
        _ => {
            entry.invalid("must be linux or nano".to_owned());
            None
        }
    }
}

/// Refuses what a guest without an operating system would not heed: annotations of the template, and
/// fields of its container.
pub(super) fn refuse_for_nano(
    runtime: Option<RuntimeName>,
    annotations: Option<&Cursor<'_>>,
    container: &Cursor<'_>,
) {
    for (name, entry) in annotations.map(Cursor::entries).unwrap_or_default() {
        match name.strip_prefix(PREFIX) {
            Some("guest") if !runtime.is_some_and(RuntimeName::is_machine) => {
                entry.invalid("only virtual machines boot it: qemu, firecracker".to_owned());
            }
            Some("before-snapshot" | "after-restore" | "sink" | "calls") => {
                entry.unsupported("not supported: the guest nano is not told of it");
            }
            _ => {}
        }
    }
    for field in ["command", "args", "env", "envFrom", "workingDir", "volumeMounts"] {
        if let Some(field) = container.get(field) {
            field.unsupported("not supported: the guest nano runs no program of the image's");
        }
    }
    for probe in ["readinessProbe", "startupProbe", "livenessProbe"] {
        let Some(probe) = container.get(probe) else { continue };
        if let Some(exec) = probe.get("exec") {
            exec.unsupported("not supported: nothing can be run in the guest nano");
        }
        if let Some(grpc) = probe.get("grpc") {
            grpc.unsupported("not supported: the guest nano speaks HTTP/1.1 alone");
        }
    }
    let ports = container.get("ports").map(|ports| ports.items()).unwrap_or_default();
    for name in ports.iter().filter_map(|port| port.get("name")) {
        if name.value() == "h2c" {
            name.unsupported("not supported: the guest nano speaks HTTP/1.1 alone");
        }
    }
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

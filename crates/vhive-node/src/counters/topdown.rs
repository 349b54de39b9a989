//! Which events make up TopDown on this host's processor, and of what they are multiples.
//!
//! Intel's are named by the kernel, in `/sys/bus/event_source/devices/cpu/events`; AMD's, from Zen 4
//! on, are not, and are told by family and model.
//!
//! # Source
//! A. Yasin, "A Top-Down method for performance analysis and counters architecture", 2014; Linux
//! `arch/x86/events/intel/core.c` (`topdown-*`), `tools/perf/pmu-events/arch/x86/amdzen4` and
//! `amdzen5` (`pipeline.json`).

use std::fs;
use std::path::Path;

use vhive_api::Counter;

/// Times an event counts for a counter.
pub(super) type Adds = &'static [(Counter, i64)];

/// The events of a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Configurations of raw events, by how much one occurrence is multiplied, and for what it
    /// counts.
    pub(super) events: Vec<(u64, i64, Adds)>,
    /// Whether the first must lead the others as a group.
    pub(super) grouped: bool,
}

/// Of Ice Lake and later. The second level came with Sapphire Rapids.
const METRICS: [(&str, Adds); 9] = [
    ("slots", &[(Counter::Slots, 1)]),
    ("topdown-retiring", &[(Counter::Retiring, 1)]),
    ("topdown-bad-spec", &[(Counter::BadSpeculation, 1)]),
    ("topdown-fe-bound", &[(Counter::FrontendBound, 1)]),
    ("topdown-be-bound", &[(Counter::BackendBound, 1)]),
    ("topdown-heavy-ops", &[(Counter::HeavyOperations, 1)]),
    ("topdown-br-mispredict", &[(Counter::BranchMispredicts, 1)]),
    ("topdown-fetch-lat", &[(Counter::FetchLatency, 1)]),
    ("topdown-mem-bound", &[(Counter::MemoryBound, 1)]),
];

/// How many of those there are at least.
const FIRST_LEVEL: usize = 5;

/// Before: what the back end left empty is what remains.
const BUBBLES: [(&str, Adds); 5] = [
    ("topdown-total-slots", &[(Counter::Slots, 1), (Counter::BackendBound, 1)]),
    ("topdown-fetch-bubbles", &[(Counter::FrontendBound, 1), (Counter::BackendBound, -1)]),
    ("topdown-slots-retired", &[(Counter::Retiring, 1), (Counter::BadSpeculation, -1)]),
    ("topdown-slots-issued", &[(Counter::BadSpeculation, 1), (Counter::BackendBound, -1)]),
    ("topdown-recovery-bubbles", &[(Counter::BadSpeculation, 1), (Counter::BackendBound, -1)]),
];

/// Event and unit mask, and for what they count; the last but one once per cycle.
const ZEN: [(u64, Adds); 6] = [
    (0x0076, &[(Counter::Slots, 1)]),
    (zen(0x1a0, 0x01), &[(Counter::FrontendBound, 1)]),
    (zen(0x1a0, 0x1e), &[(Counter::BackendBound, 1)]),
    (zen(0x0aa, 0x07), &[(Counter::BadSpeculation, 1)]),
    (zen(0x0c1, 0x00), &[(Counter::Retiring, 1), (Counter::BadSpeculation, -1)]),
    (zen(0x1c2, 0x00), &[(Counter::HeavyOperations, 1)]),
];

/// An event with its unit mask as the processor's registers have them.
const fn zen(event: u64, mask: u64) -> u64 {
    (event & 0xff) | (mask << 8) | ((event >> 8) << 32)
}

/// What this processor offers; `pmu` is where the kernel describes it.
///
/// # Errors
/// Why there is no TopDown.
pub(super) fn recipe(pmu: &Path, cpuinfo: &str) -> Result<Recipe, String> {
    let named = |events: &[(&'static str, Adds)]| -> Vec<(u64, i64, Adds)> {
        let known = events.iter().map_while(|(name, adds)| {
            let (config, scale) = event(pmu, name)?;
            Some((config, scale, *adds))
        });
        known.collect()
    };
    let events = named(&METRICS);
    if events.len() >= FIRST_LEVEL {
        let whole = if events.len() == METRICS.len() { METRICS.len() } else { FIRST_LEVEL };
        let events = events.into_iter().take(whole).collect();
        return Ok(Recipe { events, grouped: true });
    }
    let events = named(&BUBBLES);
    if events.len() == BUBBLES.len() {
        return Ok(Recipe { events, grouped: false });
    }
    let Some(width) = dispatch_width(cpuinfo) else {
        return Err(
            "the kernel names no TopDown events of this processor, and it is no AMD Zen 4 or 5"
                .to_owned(),
        );
    };
    let width_of = |adds: Adds| if adds[0].0 == Counter::Slots { width } else { 1 };
    let mut events: Vec<(u64, i64, Adds)> =
        ZEN.iter().map(|(config, adds)| (*config, width_of(adds), *adds)).collect();
    // Cycles in which not one of the slots was filled.
    let all_slots = zen(0x1a0, 0x01) | (width.unsigned_abs() << 24);
    events.push((all_slots, width, &[(Counter::FetchLatency, 1)]));
    Ok(Recipe { events, grouped: false })
}

/// Operations that an AMD processor dispatches in a cycle; none if its events are not known.
fn dispatch_width(cpuinfo: &str) -> Option<i64> {
    let field = |name: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.split(':').next().is_some_and(|n| n.trim() == name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let number = |name: &str| -> Option<u32> { field(name)?.parse().ok() };
    if field("vendor_id")? != "AuthenticAMD" {
        return None;
    }
    match (number("cpu family")?, number("model")?) {
        (0x19, 0x10..=0x1f | 0x60..=0xaf) => Some(6),
        (0x1a, _) => Some(8),
        _ => None,
    }
}

/// Configuration and scale of an event that the kernel names; none if it does not, or by terms
/// that are not known here.
///
/// # Source
/// `Documentation/ABI/testing/sysfs-bus-event_source-devices-events`; Intel SDM vol. 3B,
/// `IA32_PERFEVTSELx`.
fn event(pmu: &Path, name: &str) -> Option<(u64, i64)> {
    let read = |file: &str| fs::read_to_string(pmu.join("events").join(file)).ok();
    let mut config = 0;
    for term in read(name)?.trim().split(',') {
        let (term, value) = term.split_once('=').unwrap_or((term, "1"));
        let value = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => value.parse().ok()?,
        };
        let (most, shift) = match term {
            "event" => (0xff, 0),
            "umask" => (0xff, 8),
            "edge" => (1, 18),
            "any" => (1, 21),
            "inv" => (1, 23),
            "cmask" => (0xff, 24),
            _ => return None,
        };
        config |= Some(value).filter(|value| *value <= most)? << shift;
    }
    let scale = match read(&format!("{name}.scale")) {
        None => 1,
        Some(text) => text.trim().parse().ok().filter(|scale| (1..=64).contains(scale))?,
    };
    Some((config, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pmu(events: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("events")).expect("made");
        for (name, text) in events {
            fs::write(dir.path().join("events").join(name), text).expect("written");
        }
        dir
    }

    const ICE_LAKE: [(&str, &str); 5] = [
        ("slots", "event=0x00,umask=0x4\n"),
        ("topdown-retiring", "event=0x00,umask=0x80\n"),
        ("topdown-bad-spec", "event=0x00,umask=0x81\n"),
        ("topdown-fe-bound", "event=0x00,umask=0x82\n"),
        ("topdown-be-bound", "event=0x00,umask=0x83\n"),
    ];

    #[test]
    fn intels_metrics_are_led_by_the_slots() {
        let recipe = recipe(pmu(&ICE_LAKE).path(), "").expect("offered");
        assert!(recipe.grouped);
        let configs: Vec<u64> = recipe.events.iter().map(|(config, ..)| *config).collect();
        assert_eq!(configs, [0x400, 0x8000, 0x8100, 0x8200, 0x8300]);
    }

    #[test]
    fn the_second_level_is_taken_whole_or_not_at_all() {
        let mut events = ICE_LAKE.to_vec();
        events.push(("topdown-heavy-ops", "event=0x00,umask=0x84\n"));
        let some = recipe(pmu(&events).path(), "").expect("offered");
        assert_eq!(some.events.len(), FIRST_LEVEL);
        events.push(("topdown-br-mispredict", "event=0x00,umask=0x85\n"));
        events.push(("topdown-fetch-lat", "event=0x00,umask=0x86\n"));
        events.push(("topdown-mem-bound", "event=0x00,umask=0x87\n"));
        let all = recipe(pmu(&events).path(), "").expect("offered");
        assert_eq!(all.events.len(), METRICS.len());
    }

    #[test]
    fn categories_of_the_first_level_add_up_to_the_slots() {
        let skylake = pmu(&[
            ("topdown-total-slots", "event=0x3c,umask=0x0,any=1\n"),
            ("topdown-total-slots.scale", "2\n"),
            ("topdown-slots-issued", "event=0xe,umask=0x1\n"),
            ("topdown-slots-retired", "event=0xc2,umask=0x2\n"),
            ("topdown-fetch-bubbles", "event=0x9c,umask=0x1\n"),
            ("topdown-recovery-bubbles", "event=0xd,umask=0x1,any=1\n"),
            ("topdown-recovery-bubbles.scale", "2\n"),
        ]);
        let recipe = recipe(skylake.path(), "").expect("offered");
        let first = [
            Counter::Retiring,
            Counter::BadSpeculation,
            Counter::FrontendBound,
            Counter::BackendBound,
        ];
        // Whatever the events count, the categories' sum must be that of the slots.
        for (at, (_, scale, adds)) in recipe.events.iter().enumerate() {
            let of = |wanted: &[Counter]| -> i64 {
                adds.iter().filter(|(c, _)| wanted.contains(c)).map(|(_, n)| n * scale).sum()
            };
            assert_eq!(of(&first), of(&[Counter::Slots]), "event {at}");
        }
        assert_eq!(recipe.events[0].0, 0x3c | (1 << 21));
        assert_eq!(recipe.events[0].1, 2);
    }

    #[test]
    fn zen_4_and_5_are_told_by_family_and_model() {
        let empty = pmu(&[]);
        let cpu = |family: u32, model: u32| {
            format!(
                "vendor_id\t: AuthenticAMD\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: x\n"
            )
        };
        let zen4 = recipe(empty.path(), &cpu(25, 17)).expect("Genoa");
        assert_eq!(zen4.events[0], (0x76, 6, ZEN[0].1));
        assert_eq!(zen4.events[1].0, 0x1_0000_01a0);
        assert_eq!(zen4.events.last().expect("latency").0, 0x1_0600_01a0);
        assert_eq!(recipe(empty.path(), &cpu(26, 2)).expect("Turin").events[0].1, 8);
        assert!(recipe(empty.path(), &cpu(25, 1)).is_err(), "Milan");
        assert!(recipe(empty.path(), "").is_err());
    }

    #[test]
    fn strange_descriptions_are_no_events() {
        for text in ["", "event=x", "event=0x100", "ldlat=3,event=1", "config1=0x3"] {
            assert_eq!(event(pmu(&[("slots", text)]).path(), "slots"), None, "{text:?}");
        }
        let scaled = pmu(&[("slots", "event=1"), ("slots.scale", "0.5")]);
        assert_eq!(event(scaled.path(), "slots"), None);
    }
}

//! Every start that the rows need, in turns.

use std::collections::BTreeMap;

use anyhow::Result;
use vhive_api::StartKind;
use vhive_tests::input::{RECORD, REPLAY, THIRD};

use crate::ground::{Files, Ground, Sample};

/// How a start is made, and under which conditions it is measured. Unless said otherwise the
/// snapshots' files are not in the page cache and the readahead is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    /// By boot, with the input that is recorded.
    Boot,
    /// Recording.
    Record,
    /// Paged by the kernel, with the recorded input.
    VanillaSame,
    /// Prefetched, with the recorded input.
    ReapSame,
    /// Paged by the kernel, with the other input.
    Vanilla,
    /// Prefetched, with the other input.
    Reap,
    /// Served fault by fault by the pager, with the other input.
    Lazy,
    /// Paged by the kernel from its page cache, with the other input.
    VanillaCached,
    /// As `Vanilla`, with the host's readahead.
    VanillaHost,
    /// As `Reap`, with the host's readahead.
    ReapHost,
    /// The first recording of a snapshot that is recorded twice.
    FirstOfTwo,
    /// Prefetched, with the other input, what was recorded with two more inputs.
    ReapMerged,
}

/// All samples of a function.
pub(crate) type Samples = BTreeMap<Series, Vec<Sample>>;

/// Starts a function in every way, `repetitions` times.
pub(crate) fn function(ground: &Ground, function: &str, repetitions: u32) -> Result<Samples> {
    let name = function.replace('_', "-");
    let (vanilla, lazy) = (format!("{name}-vanilla"), format!("{name}-lazy"));
    let host = ground.readahead.before().to_owned();
    let mut samples = Samples::new();
    let boot = |service: &str, policy: &str, samples: &mut Samples| {
        ground.apply(function, service, &[("vhive.dev/snapshot-policy", policy)])?;
        let booted =
            ground.cold((function, service), RECORD, Files::Cold(&host), StartKind::Boot)?;
        samples.entry(Series::Boot).or_default().push(booted);
        anyhow::Ok(())
    };
    boot(&vanilla, "vanilla", &mut samples)?;
    boot(&lazy, "lazy", &mut samples)?;
    for repetition in 1..=repetitions {
        // A revision of its own, because a snapshot is recorded once.
        let reap = format!("{name}-reap-{repetition}");
        boot(&reap, "reap", &mut samples)?;
        let mut start = |series, service: &str, input, files, kind| {
            let sample = ground.cold((function, service), input, files, kind)?;
            samples.entry(series).or_default().push(sample);
            anyhow::Ok(())
        };
        let (off, host) = (Files::Cold("0"), Files::Cold(&host));
        start(Series::VanillaSame, &vanilla, RECORD, off, StartKind::Snapshot)?;
        start(Series::Record, &reap, RECORD, off, StartKind::Record)?;
        start(Series::ReapSame, &reap, RECORD, off, StartKind::Reap)?;
        start(Series::Vanilla, &vanilla, REPLAY, off, StartKind::Snapshot)?;
        start(Series::VanillaCached, &vanilla, REPLAY, Files::AsTheyAre, StartKind::Snapshot)?;
        start(Series::Reap, &reap, REPLAY, off, StartKind::Reap)?;
        start(Series::Lazy, &lazy, REPLAY, off, StartKind::Lazy)?;
        start(Series::VanillaHost, &vanilla, REPLAY, host, StartKind::Snapshot)?;
        start(Series::ReapHost, &reap, REPLAY, host, StartKind::Reap)?;
        ground.forget(&reap)?;
        if repetition == 1 {
            merged(ground, function, &mut samples)?;
        }
    }
    ground.forget(&vanilla)?;
    ground.forget(&lazy)?;
    Ok(samples)
}

/// Records with one input, then with a third one what the first had missed, and measures the other.
fn merged(ground: &Ground, function: &str, samples: &mut Samples) -> Result<()> {
    let Some(ground) = ground.merging.as_deref() else { return Ok(()) };
    let service = format!("{}-merged", function.replace('_', "-"));
    ground.apply(function, &service, &[("vhive.dev/snapshot-policy", "reap")])?;
    let start = |input, kind| ground.cold((function, &service), input, Files::Cold("0"), kind);
    start(RECORD, StartKind::Boot)?;
    samples.entry(Series::FirstOfTwo).or_default().push(start(RECORD, StartKind::Record)?);
    start(THIRD, StartKind::Reap)?;
    // Unless the first recording happened to have all that the third input needs.
    if ground.will_record(&service)? {
        start(THIRD, StartKind::Record)?;
    }
    samples.entry(Series::ReapMerged).or_default().push(start(REPLAY, StartKind::Reap)?);
    ground.forget(&service)
}

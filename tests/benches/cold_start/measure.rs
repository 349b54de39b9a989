//! Every start that the rows need, in turns.

use std::collections::BTreeMap;

use anyhow::Result;
use vhive_api::StartKind;

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
            ground.cold((function, service), "record", Files::Cold(&host), StartKind::Boot)?;
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
        start(Series::VanillaSame, &vanilla, "record", off, StartKind::Snapshot)?;
        start(Series::Record, &reap, "record", off, StartKind::Record)?;
        start(Series::ReapSame, &reap, "record", off, StartKind::Reap)?;
        start(Series::Vanilla, &vanilla, "replay", off, StartKind::Snapshot)?;
        start(Series::VanillaCached, &vanilla, "replay", Files::AsTheyAre, StartKind::Snapshot)?;
        start(Series::Reap, &reap, "replay", off, StartKind::Reap)?;
        start(Series::Lazy, &lazy, "replay", off, StartKind::Lazy)?;
        start(Series::VanillaHost, &vanilla, "replay", host, StartKind::Snapshot)?;
        start(Series::ReapHost, &reap, "replay", host, StartKind::Reap)?;
        ground.forget(&reap)?;
    }
    ground.forget(&vanilla)?;
    ground.forget(&lazy)?;
    Ok(samples)
}

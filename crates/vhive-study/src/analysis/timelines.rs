//! When a guest missed its memory: of each series, one start.

use crate::row::{Row, StudyResult};

use super::series::{Key, Series};

/// The faults of one start.
#[derive(Clone, Debug)]
pub struct StartFaults {
    /// Which series it stands for.
    pub key: Key,
    /// Kind, and input where it must be told.
    pub label: String,
    /// Starts of the series that have a timeline.
    pub n: usize,
    /// When the reply was complete, in milliseconds since the memory was attached.
    pub reply_ms: f64,
    /// All faults up to then.
    pub faults: u64,
    /// Of every so many of them, one is here.
    pub every: u32,
    /// In the order of time.
    pub points: Vec<FaultPoint>,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultPoint {
    /// Since the memory was attached.
    pub ms: f64,
    /// Number of the page.
    pub page: u32,
    /// Whether prefetching was about to bring it.
    pub awaited: bool,
}

/// Of each series whose rows have timelines, the start whose total is the median (the lower one).
pub(super) fn all(result: &StudyResult, series: &[Series]) -> Vec<StartFaults> {
    let of = |one: &Series| {
        let key = &one.key;
        let ours = |row: &&Row| {
            (&row.function, row.runtime, row.kind, &row.input, row.level)
                == (&key.function, key.runtime, key.kind, &key.input, key.level)
        };
        let rows = result.rows.iter().filter(ours).filter(|row| row.left_out().is_none());
        let mut found: Vec<(u64, StartFaults)> = rows.filter_map(|row| start(row, one)).collect();
        found.sort_by_key(|(total, _)| *total);
        let n = found.len();
        let (_, mut median) = found.into_iter().nth(n.saturating_sub(1) / 2)?;
        median.n = n;
        Some(median)
    };
    series.iter().filter_map(of).collect()
}

fn start(row: &Row, series: &Series) -> Option<(u64, StartFaults)> {
    let total = row.total_us()?;
    let record = row.record.as_ref()?;
    let timeline = record.fault_timeline.as_ref()?;
    let point = |awaited: bool| {
        move |at: &vhive_api::FaultAt| FaultPoint { ms: f64::from(at.0) / 1e3, page: at.1, awaited }
    };
    let residual = timeline.residual.iter().map(point(false));
    let mut points: Vec<_> = residual.chain(timeline.awaited.iter().map(point(true))).collect();
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let last = points.last().map_or(0.0, |point| point.ms);
    let faults = record.memory.and_then(|memory| memory.faults).unwrap_or(points.len() as u64);
    let found = StartFaults {
        key: series.key.clone(),
        label: series.label.clone(),
        n: 0,
        reply_ms: ((total as f64 - timeline.attached_us as f64) / 1e3).max(last),
        faults,
        every: timeline.every.max(1),
        points,
    };
    Some((total, found))
}

//! What the records that are kept in memory say of the last minutes. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use vhive_api::{InvocationRecord, Phase};

/// How far back the figures of a service reach, and those of the moment, in seconds.
const MINUTE: i64 = 60;
const MOMENT: i64 = 2;

/// Time from a request's head to its reply's last byte, over some requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Latency {
    /// How many requests.
    requests: usize,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

impl Latency {
    fn of(mut lengths: Vec<u64>) -> Self {
        lengths.sort_unstable();
        let at = |percent: usize| {
            // Nearest rank: the least that so many per cent do not exceed.
            let rank = (lengths.len() * percent).div_ceil(100);
            lengths.get(rank.checked_sub(1)?).copied()
        };
        Self { requests: lengths.len(), p50_us: at(50), p99_us: at(99) }
    }
}

/// One second of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Second {
    /// Seconds since 1970.
    at: i64,
    #[serde(flatten)]
    latency: Latency,
}

/// When an invocation ended, and how long it took, in microseconds.
fn end(record: &InvocationRecord) -> (i64, u64) {
    let total = record.phases.iter().find(|span| span.phase == Phase::Total);
    let length = total.map_or(0, |span| span.length_us);
    let began = record.at.as_microsecond();
    (began.saturating_add(i64::try_from(length).unwrap_or(i64::MAX)), length)
}

/// Latencies of late: of all requests in the last seconds, and by service in the last minute.
#[derive(Debug, Default)]
pub(super) struct Lately<'a> {
    pub(super) now: Latency,
    pub(super) minute: Latency,
    by_service: HashMap<(&'a str, &'a str), Latency>,
}

impl<'a> Lately<'a> {
    pub(super) fn of(records: &'a [Arc<InvocationRecord>], now: Timestamp) -> Self {
        let now = now.as_microsecond();
        let (mut moment, mut minute) = (Vec::new(), Vec::new());
        let mut by_service: HashMap<_, Vec<u64>> = HashMap::new();
        for record in records {
            let (ended, length) = end(record);
            let ago = now.saturating_sub(ended);
            if ago <= MOMENT * 1_000_000 {
                moment.push(length);
            }
            if ago <= MINUTE * 1_000_000 {
                minute.push(length);
                let service = (record.namespace.as_str(), record.service.as_str());
                by_service.entry(service).or_default().push(length);
            }
        }
        let by_service = by_service.into_iter().map(|(key, all)| (key, Latency::of(all)));
        Self {
            now: Latency::of(moment),
            minute: Latency::of(minute),
            by_service: by_service.collect(),
        }
    }

    pub(super) fn service(&self, namespace: &str, name: &str) -> Latency {
        self.by_service.get(&(namespace, name)).copied().unwrap_or_default()
    }
}

/// The past, second by second; those without a request are left out.
#[derive(Debug, Serialize)]
pub(super) struct History {
    /// The first second, since 1970.
    since: i64,
    seconds: Vec<Second>,
}

/// The last seconds that are over and of which every record is kept: `full` says that older ones
/// have made room.
pub(super) fn history(
    records: &[Arc<InvocationRecord>],
    full: bool,
    now: Timestamp,
    most: i64,
) -> History {
    let this = now.as_second();
    let mut from = this.saturating_sub(most);
    if full && let Some(oldest) = records.first() {
        from = from.max(end(oldest).0.div_euclid(1_000_000).saturating_add(1));
    }
    let mut by_second: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for record in records {
        let (ended, length) = end(record);
        let second = ended.div_euclid(1_000_000);
        if (from..this).contains(&second) {
            by_second.entry(second).or_default().push(length);
        }
    }
    let seconds = by_second.into_iter().map(|(at, all)| Second { at, latency: Latency::of(all) });
    History { since: from, seconds: seconds.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(service: &str, second: i64, length_us: u64) -> Arc<InvocationRecord> {
        let at = Timestamp::from_second(second).unwrap();
        let record = json!({
            "version": vhive_api::RECORD_VERSION,
            "id": "00000000000000ff",
            "at": at,
            "namespace": "default",
            "service": service,
            "revision": format!("{service}-00001"),
            "runtime": "sim",
            "sandbox": null,
            "start": "warm",
            "outcome": "replied",
            "status": 200,
            "request_bytes": 0,
            "response_bytes": 0,
            "phases": [{"phase": "total", "begin_us": 0, "length_us": length_us}],
            "guest_clock_error_us": null,
            "fallback": null,
            "error": null,
        });
        Arc::new(serde_json::from_value(record).unwrap())
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(Latency::of(Vec::new()), Latency::default());
        let hundred = Latency::of((1..=100).rev().collect());
        assert_eq!((hundred.p50_us, hundred.p99_us), (Some(50), Some(99)));
        let one = Latency::of(vec![7]);
        assert_eq!((one.requests, one.p50_us, one.p99_us), (1, Some(7), Some(7)));
    }

    #[test]
    fn only_the_last_minute_counts_and_each_service_for_itself() {
        let records = [record("a", 900, 5), record("a", 950, 10), record("b", 999, 20)];
        let lately = Lately::of(&records, Timestamp::from_second(1000).unwrap());
        assert_eq!(lately.service("default", "a"), Latency::of(vec![10]));
        assert_eq!(lately.service("default", "none"), Latency::default());
        assert_eq!(lately.now, Latency::of(vec![20]));
        assert_eq!(lately.minute, Latency::of(vec![10, 20]));
    }

    #[test]
    fn seconds_of_which_records_are_missing_are_not_shown() {
        let records = [record("a", 990, 5), record("a", 995, 10), record("a", 1000, 20)];
        let now = Timestamp::from_second(1000).unwrap();
        let at = |full, most| -> Vec<i64> {
            let history = history(&records, full, now, most);
            history.seconds.iter().map(|second| second.at).collect()
        };
        assert_eq!(at(false, 300), [990, 995], "the present second is not over");
        assert_eq!(at(true, 300), [995], "some of the oldest second's are gone");
        assert_eq!(at(false, 7), [995]);
    }
}

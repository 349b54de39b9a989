//! Which revisions that serve nothing any more are removed. Pure.
//!
//! # Source
//! Knative Serving, `config/core/configmaps/gc.yaml`: what it calls active is called routed here.

use std::time::Duration;

use jiff::Timestamp;

use crate::config::RetentionConfig;

/// What is known of one revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) name: &'a str,
    pub(crate) created: Timestamp,
    /// Since when no request can reach it; none while one can, and for the latest revision.
    pub(crate) idle_since: Option<Timestamp>,
}

/// The revisions to remove, least recently used first: those that are old beyond both bounds of
/// age while more than the least number are kept, and the oldest beyond the most.
pub(crate) fn expired<'a>(
    all: &[Candidate<'a>],
    now: Timestamp,
    config: &RetentionConfig,
) -> Vec<&'a str> {
    let mut idle: Vec<_> = all.iter().filter_map(|one| Some((one.idle_since?, one))).collect();
    idle.sort_by_key(|(since, one)| (*since, one.created));
    // A clock that was set back makes nothing old.
    let age = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
    let mut kept = idle.len();
    let mut gone = Vec::new();
    for (since, one) in idle {
        let stale = age(one.created) > config.since_created.0 && age(since) > config.since_routed.0;
        if kept > config.max_idle || (kept > config.min_idle && stale) {
            gone.push(one.name);
            kept -= 1;
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan as _;
    use std::time::Duration;
    use vhive_api::Span;

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn hours(n: u64) -> Span {
        Span(Duration::from_secs(n * 3600))
    }

    /// Six revisions, made ten hours apart, the last an hour ago and in use; each of the others
    /// lost its requests when the next one came.
    fn candidates(now: Timestamp) -> Vec<Candidate<'static>> {
        let at = |n: i64| now - (1 + 10 * (5 - n)).hours();
        let each = NAMES.iter().zip(0..).map(|(name, n)| Candidate {
            name,
            created: at(n),
            idle_since: (n < 5).then(|| at(n + 1)),
        });
        each.collect()
    }

    #[test]
    fn both_ages_and_the_least_number_count() {
        let now = Timestamp::UNIX_EPOCH + 100_000.hours();
        let all = candidates(now);
        let config = |min_idle, max_idle| RetentionConfig {
            since_created: hours(30),
            since_routed: hours(15),
            min_idle,
            max_idle,
        };
        // a is 51 h old, b 41, c 31; idle for 41, 31 and 21.
        assert_eq!(expired(&all, now, &config(0, 1000)), ["a", "b", "c"]);
        assert_eq!(expired(&all, now, &config(3, 1000)), ["a", "b"]);
        assert_eq!(expired(&all, now, &config(20, 1000)), Vec::<&str>::new());
        assert_eq!(expired(&all, now, &config(0, 1)), ["a", "b", "c", "d"]);
        let young = RetentionConfig { since_routed: hours(35), ..config(0, 1000) };
        assert_eq!(expired(&all, now, &young), ["a"]);
        assert_eq!(expired(&all, now, &RetentionConfig::default()), Vec::<&str>::new());
    }
}

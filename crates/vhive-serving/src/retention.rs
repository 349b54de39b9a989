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

/// When the first revision goes if nothing changes; none if none ever does. As many as are in the way of
/// other bounds go with the next change.
pub(crate) fn next_expiry(all: &[Candidate<'_>], config: &RetentionConfig) -> Option<Timestamp> {
    let idle = || all.iter().filter_map(|one| Some((one.idle_since?, one)));
    if idle().count() <= config.min_idle {
        return None;
    }
    let at = idle().filter_map(|(since, one)| {
        // Beyond both bounds, and not at them.
        let created = one.created.checked_add(config.since_created.0).ok()?;
        let routed = since.checked_add(config.since_routed.0).ok()?;
        created.max(routed).checked_add(Duration::from_millis(1)).ok()
    });
    at.min()
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

    #[test]
    fn at_the_next_expiry_something_goes_and_not_before() {
        let now = Timestamp::UNIX_EPOCH + 100_000.hours();
        let all = candidates(now);
        let config = |min_idle| RetentionConfig {
            since_created: hours(70),
            since_routed: hours(50),
            min_idle,
            max_idle: 1000,
        };
        // a was made 51 h ago and has idled for 41.
        let at = next_expiry(&all, &config(2)).unwrap();
        assert_eq!(at, now + 19.hours() + 1.millisecond());
        assert_eq!(expired(&all, at, &config(2)), ["a"]);
        assert_eq!(expired(&all, at - 1.millisecond(), &config(2)), Vec::<&str>::new());
        assert_eq!(next_expiry(&all, &config(5)), None, "five idle ones are kept");
        let never = RetentionConfig { since_routed: Span(Duration::MAX), ..config(0) };
        assert_eq!(next_expiry(&all, &never), None);
    }
}

//! Which revision a request goes to: what a service asks for, and what that means now. Pure.
//!
//! # Source
//! Knative Serving, `specs/serving/knative-api-specification-1.0.md`, `TrafficTarget`; a service's
//! traffic moves only once every revision that it names has been ready.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One entry of `spec.traffic`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name of the revision; none for the latest one that is ready.
    pub revision: Option<String>,
    /// Of which configuration that is the latest; none in a service, which has one.
    #[serde(default)]
    pub configuration: Option<String>,
    /// Share of the requests in per cent; all of them together are 100.
    pub percent: u32,
    /// Under which name the revision answers besides.
    pub tag: Option<String>,
}

impl Target {
    /// All requests to the latest revision, which is what no `spec.traffic` means.
    #[must_use]
    pub fn latest() -> Self {
        Self { percent: 100, ..Self::default() }
    }
}

/// A target whose revision is known: one entry of `status.traffic`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// Name of the revision.
    pub revision: String,
    /// Whether it is there because it is the latest one.
    pub latest: bool,
    /// As in [`Target`].
    pub percent: u32,
    /// As in [`Target`].
    pub tag: Option<String>,
}

/// What is known of one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it has ever been ready.
    pub ready: bool,
}

/// Why traffic stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// A revision that is named does not exist.
    #[error("revision {0:?} referenced in traffic not found")]
    Missing(String),
    /// A revision that is named has never been ready.
    #[error("revision {0:?} is not yet ready")]
    NotReady(String),
    /// No revision has ever been ready.
    #[error("no revision is ready yet")]
    NoneReady,
    /// A configuration that is named does not exist.
    #[error("configuration {0:?} referenced in traffic not found")]
    NoConfiguration(String),
    /// No revision of a configuration that is named has ever been ready.
    #[error("configuration {0:?} is waiting for a revision to become ready")]
    NotConfigured(String),
}

/// Says where a service's requests go. `revisions` are its own, in the order of their making.
///
/// # Errors
/// [`Held`] for the first target that cannot be followed; requests go on as before.
pub fn assign(targets: &[Target], revisions: &[Known<'_>]) -> Result<Vec<Assigned>, Held> {
    let latest = revisions.iter().rev().find(|known| known.ready);
    let latest = latest.map(|known| known.name.to_owned());
    follow(
        targets,
        |_| latest.clone().ok_or(Held::NoneReady),
        |wanted| revisions.iter().find(|known| known.name == wanted).map(|known| known.ready),
    )
}

/// Says where requests go: `latest` knows the latest revision that is ready, of a configuration if
/// one is named, and `ready` whether a revision has ever been, if there is one of that name.
///
/// # Errors
/// [`Held`] for the first target that cannot be followed; requests go on as before.
pub fn follow(
    targets: &[Target],
    latest: impl Fn(Option<&str>) -> Result<String, Held>,
    ready: impl Fn(&str) -> Option<bool>,
) -> Result<Vec<Assigned>, Held> {
    let assigned = targets.iter().map(|target| {
        let revision = match &target.revision {
            None => latest(target.configuration.as_deref())?,
            Some(wanted) => match ready(wanted) {
                None => return Err(Held::Missing(wanted.clone())),
                Some(false) => return Err(Held::NotReady(wanted.clone())),
                Some(true) => wanted.clone(),
            },
        };
        Ok(Assigned {
            revision,
            latest: target.revision.is_none(),
            percent: target.percent,
            tag: target.tag.clone(),
        })
    });
    assigned.collect()
}

/// The targets of a `spec` that has been admitted.
#[must_use]
pub fn targets(spec: &Value) -> Vec<Target> {
    let text = |target: &Value, field: &str| {
        target.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let listed = spec.get("traffic").and_then(Value::as_array).into_iter().flatten();
    let targets = listed.map(|target| Target {
        revision: text(target, "revisionName"),
        configuration: text(target, "configurationName"),
        percent: target
            .get("percent")
            .and_then(Value::as_u64)
            .and_then(|percent| percent.try_into().ok())
            .unwrap_or(0),
        tag: text(target, "tag"),
    });
    let targets: Vec<Target> = targets.collect();
    if targets.is_empty() { vec![Target::latest()] } else { targets }
}

/// The index of the share that `random` falls into; none if nothing has a share.
///
/// Every value of `random` is as likely as any other, so each share gets its part of them all: its per
/// cent, or more where others have gone.
#[must_use]
pub fn pick(percents: impl IntoIterator<Item = u32> + Clone, random: u64) -> Option<usize> {
    let all: u64 = percents.clone().into_iter().map(u64::from).sum();
    // The high bits of a product scale without a division and, to one part in 2^57, without bias.
    let mark = (u128::from(random) * u128::from(all)) >> 64;
    let mut upto = 0;
    percents.into_iter().position(|percent| {
        upto += u128::from(percent);
        mark < upto
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(name: &str, ready: bool) -> Known<'_> {
        Known { name, ready }
    }

    fn to(revision: Option<&str>, percent: u32) -> Target {
        Target { revision: revision.map(str::to_owned), percent, ..Target::default() }
    }

    #[test]
    fn the_latest_is_the_latest_that_is_ready() {
        let revisions = [known("a-00001", true), known("a-00002", true), known("a-00003", false)];
        let assigned = assign(&[Target::latest()], &revisions).unwrap();
        assert_eq!((assigned[0].revision.as_str(), assigned[0].latest), ("a-00002", true));
        assert_eq!(assign(&[Target::latest()], &revisions[2..]), Err(Held::NoneReady));
    }

    #[test]
    fn traffic_waits_for_every_revision_that_it_names() {
        let revisions = [known("a-00001", true), known("a-00002", false)];
        let split = [to(Some("a-00001"), 90), to(Some("a-00002"), 10)];
        assert_eq!(assign(&split, &revisions), Err(Held::NotReady("a-00002".to_owned())));
        let gone = [to(Some("a-00007"), 100)];
        assert_eq!(assign(&gone, &revisions), Err(Held::Missing("a-00007".to_owned())));
        let tagged = Target { tag: Some("old".to_owned()), ..to(Some("a-00001"), 0) };
        let assigned = assign(&[Target::latest(), tagged], &revisions).unwrap();
        assert_eq!(assigned[1].tag.as_deref(), Some("old"));
    }

    #[test]
    fn shares_are_exact_at_their_edges() {
        let shares = [10, 0, 90];
        // The smallest value whose mark is `percent`.
        let first = |percent: u128| u64::try_from((percent << 64).div_ceil(100)).unwrap();
        for (random, index) in [(0, 0), (first(10) - 1, 0), (first(10), 2), (u64::MAX, 2)] {
            assert_eq!(pick(shares, random), Some(index), "{random}");
        }
        assert_eq!(pick([], 7), None);
        assert_eq!(pick([0], 7), None);
        assert_eq!(pick([0, 0], u64::MAX), None);
    }

    #[test]
    fn those_that_are_left_share_what_the_others_had() {
        // 40 have gone; the others are 1 : 2 as before.
        let shares = [20, 0, 40];
        let step = u64::MAX / 9000;
        let mut hits = [0_u32; 3];
        for n in 0..9000 {
            hits[pick(shares, n * step).expect("everybody gets somewhere")] += 1;
        }
        assert!(hits[1] == 0 && hits[0].abs_diff(3000) <= 1, "{hits:?}");
        assert_eq!(pick(shares, u64::MAX), Some(2));
    }

    proptest! {
        #[test]
        fn whoever_is_picked_has_a_share(random: u64, cut in 0..=100_u32) {
            let shares = [cut, 100 - cut];
            let index = pick(shares, random).expect("they make up 100");
            prop_assert!(shares[index] > 0);
        }

        #[test]
        fn each_gets_its_part(cut in 0..=100_u32) {
            let step = u64::MAX / 10_000;
            let hits = (0..10_000).filter(|n| pick([cut, 100 - cut], n * step) == Some(0)).count();
            let wanted = usize::try_from(cut * 100).unwrap();
            prop_assert!(hits.abs_diff(wanted) <= 1, "{hits} of 10,000 at {cut} %");
        }
    }
}

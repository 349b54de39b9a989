//! What every policy is asked, and what it answers.

use std::fmt;
use std::time::Duration;

use super::{Fixed, Histogram, Kpa, Metric, Moment, PolicyKind, Rules, Sample};

/// Least time between two looks at a revision, however many requests queue up.
pub const BREATH: Duration = Duration::from_millis(20);

/// How many instances there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Instances that serve.
    pub ready: u32,
    /// Instances being started.
    pub starting: u32,
    /// Whether any request can be routed to the revision.
    pub reachable: bool,
}

/// What a policy wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Instances; none: as many as were wanted before.
    pub want: Option<u32>,
    /// When to ask again if no request comes before; none: not before a request comes. With
    /// requests in flight there is always a time.
    pub again: Option<Moment>,
    /// What it was decided from, where a policy goes by averages.
    pub figures: Option<Figures>,
}

/// What was decided from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// What the averages are of.
    pub metric: Metric,
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// Load per instance that is aimed at.
    pub target: f64,
    /// Whether it panics.
    pub panicking: bool,
    /// [`excess_burst_capacity`](super::excess_burst_capacity).
    pub excess: f64,
}

/// Decides for one revision how many instances there should be. It neither waits nor reads a clock:
/// the same samples and moments give the same decisions.
///
/// The caller takes a sample and asks: at the moment that the last decision names, whenever a
/// request comes while none is in flight, and as often as it likes besides.
pub trait Policy: fmt::Debug + Send {
    /// Takes what was seen since the last sample.
    fn observe(&mut self, sample: &Sample);

    /// Decides. `now` is not before the end of the last sample.
    fn decide(&mut self, now: Moment, pool: &Pool) -> Decision;

    /// Until when it would answer as it just did, if until then no request comes or is done, and the
    /// instances stay as they were when it was asked; none if that is not known. Moments before that
    /// can be left out. If something happens before, what was seen up to the last of those moments is
    /// made up for: it observes that, and is asked as of that moment.
    fn steady(&self) -> Option<Moment> {
        None
    }

    /// How much there was to do up to now, and how many instances there are, counts no more.
    fn forget(&mut self);

    /// Whether it has learnt what it would miss if it were made anew for the next request.
    fn learns(&self) -> bool {
        false
    }
}

/// Makes the policy that the rules name. `tick` is how often it is to be asked while there is
/// anything to follow.
#[must_use]
pub fn policy(rules: &Rules, tick: Duration, now: Moment) -> Box<dyn Policy> {
    match rules.policy {
        PolicyKind::Kpa => Box::new(Kpa::new(rules, tick, now)),
        PolicyKind::Fixed => Box::new(Fixed::new(rules, tick)),
        PolicyKind::Histogram => Box::new(Histogram::new(rules, tick)),
    }
}

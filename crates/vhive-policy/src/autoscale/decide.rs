//! Knative's arithmetic for one tick: from averages to a number of instances.

use super::{Moment, Rules};

/// What one decision is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// When.
    pub now: Moment,
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// Instances that serve.
    pub ready: u32,
    /// Whether any request can be routed to the revision.
    pub reachable: bool,
}

/// Whether the scaler panics, and the most that it has wanted since. While it panics it never wants
/// fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Panic {
    /// When the threshold was last exceeded; none when it does not panic.
    pub since: Option<Moment>,
    /// The most instances wanted since it began.
    pub most: u32,
}

impl Panic {
    /// The state of a scaler that does not know a revision's past. With more than one instance it
    /// panics, because they may be needed.
    #[must_use]
    pub fn beginning(ready: u32, now: Moment) -> Self {
        Self { since: (ready > 1).then_some(now), most: ready }
    }
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Instances wanted, before anything that bounds or delays them.
    pub want: u32,
    /// The state from now on.
    pub panic: Panic,
}

/// Says how many instances there should be, and whether it panics from now on.
#[must_use]
pub fn decide(rules: &Rules, load: &Load, panic: Panic) -> Decided {
    let ready = f64::from(load.ready.max(1));
    let most = up(rules.max_up_rate * ready);
    let least = if load.reachable { down(ready / rules.max_down_rate) } else { 0.0 };
    let for_stable = up(load.stable / rules.target);
    let for_panic = up(load.panic / rules.target);
    let within_rates = |wanted: f64| {
        let bounded = count(wanted.max(least).min(most));
        let active = rules.activation > 1 && wanted > 0.0;
        if active { bounded.max(rules.activation) } else { bounded }
    };
    let (stable, panicking) = (within_rates(for_stable), within_rates(for_panic));

    let panic = match panic.since {
        _ if exceeds(rules, load) => Panic { since: Some(load.now), ..panic },
        Some(since) if since + rules.window.0 < load.now => Panic::default(),
        _ => panic,
    };
    if panic.since.is_none() {
        return Decided { want: stable, panic };
    }
    let want = panic.most.max(stable).max(panicking);
    Decided { want, panic: Panic { most: want, ..panic } }
}

/// Whether the load of the panic window exceeds the panic threshold.
pub(super) fn exceeds(rules: &Rules, load: &Load) -> bool {
    let ready = f64::from(load.ready.max(1));
    up(load.panic / rules.target) / ready >= rules.panic_threshold_percent / 100.0
}

/// Load that the ready instances could take on beyond the present one and beyond the burst for which
/// there shall be room; negative: that much is missing. 0 if no room is asked for, -1 if there can
/// never be enough.
#[must_use]
pub fn excess_burst_capacity(rules: &Rules, load: &Load) -> f64 {
    if rules.burst_capacity < 0.0 {
        -1.0
    } else if rules.burst_capacity > 0.0 {
        (f64::from(load.ready) * rules.total - rules.burst_capacity - load.panic).floor()
    } else {
        0.0
    }
}

/// From here on every number is a whole one.
const EXACT: f64 = (1_i64 << 52) as f64;

/// [`f64::floor`] of what is not negative. A simulator rounds many times for each simulated second, and
/// the general way is a call of the C library.
#[expect(clippy::cast_possible_truncation, reason = "checked before")]
fn down(value: f64) -> f64 {
    if (0.0..EXACT).contains(&value) { value as i64 as f64 } else { value.floor() }
}

/// [`f64::ceil`] likewise.
fn up(value: f64) -> f64 {
    let whole = down(value);
    if whole < value { whole + 1.0 } else { whole }
}

/// A number of instances; what is no number is none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32")]
pub(super) fn count(instances: f64) -> u32 {
    instances.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_is_that_of_the_library(small in 0.0..100.0_f64, any in any::<f64>()) {
            for value in [small, small.round(), any].into_iter().filter(|value| !value.is_nan()) {
                prop_assert_eq!(up(value).to_bits(), (value.ceil() + 0.0).to_bits());
                prop_assert_eq!(down(value).to_bits(), (value.floor() + 0.0).to_bits());
            }
        }
    }
}

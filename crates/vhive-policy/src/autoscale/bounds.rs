//! The fewest and the most instances, whatever a policy wants.

use super::{Pool, Rules};

/// The bounds of one revision, and whether its initial scale has been reached.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    min: u32,
    max: u32,
    initial: u32,
    reached: bool,
}

impl Bounds {
    /// The bounds that the rules set.
    #[must_use]
    pub fn new(rules: &Rules) -> Self {
        Self { min: rules.min, max: rules.max, initial: rules.initial, reached: false }
    }

    /// Instances from which on the revision counts as there.
    #[must_use]
    pub fn threshold(&self) -> u32 {
        let initial = if self.reached { 1 } else { self.initial };
        self.min.max(initial).max(1)
    }

    /// The fewest that stay without any demand, once the initial scale has been reached.
    #[must_use]
    pub fn min(&self) -> u32 {
        self.min
    }

    /// Notes how many are there. The initial scale is reached once and then no more asked for.
    pub fn see(&mut self, pool: &Pool) {
        self.reached |= pool.ready >= self.min.max(self.initial);
    }

    /// Puts a number within the bounds. The initial scale is the least until it has been reached,
    /// if it is more than one; without any way for requests to come there is no least.
    #[must_use]
    pub fn apply(&self, want: u32, pool: &Pool) -> u32 {
        let initial = !self.reached && self.initial > 1;
        let min = match (pool.reachable, initial) {
            (false, _) => 0,
            (true, true) => self.min.max(self.initial),
            (true, false) => self.min,
        };
        let want = want.max(min);
        if self.max > 0 { want.min(self.max) } else { want }
    }
}

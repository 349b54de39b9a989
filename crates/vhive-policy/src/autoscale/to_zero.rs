//! When the last instance goes.
//!
//! ```text
//!              ready                 nothing wanted, window over
//!   Activating ─────► Active since ─────────────────────────────► Inactive since ──► 0 after `hold`
//!       ▲               │  ▲                                          │
//!       └── not ready ──┘  └──────────────── wanted ──────────────────┘
//! ```
//!
//! Knative's, with two differences that its own situation does not have. The gateway is always in
//! the path, so nothing is probed before the last instance goes. And where Knative keeps the
//! replica that it cannot get ready until the progress deadline, a start belongs to the node, which
//! bounds it: once none is under way, nothing is held.

use super::{Bounds, Moment, Pool, Rules};

/// What a revision is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Instances are wanted and not there yet.
    Activating,
    /// They have been there since.
    Active(Moment),
    /// None has been wanted since.
    Inactive(Moment),
}

/// Where a revision is on the way to zero; at first it is activating.
#[derive(Clone, Copy, Debug)]
pub struct ToZero {
    phase: Phase,
}

impl Default for ToZero {
    fn default() -> Self {
        Self { phase: Phase::Activating }
    }
}

impl ToZero {
    /// What the revision is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Turns the number that is wanted, already within its bounds, into the one that may be had
    /// now. With it comes when to ask again, if that is all there is to wait for.
    pub fn apply(
        &mut self,
        rules: &Rules,
        bounds: &Bounds,
        want: u32,
        (now, pool, busy_until): (Moment, &Pool, Moment),
    ) -> (u32, Option<Moment>) {
        let there = pool.ready >= bounds.threshold();
        match self.phase {
            Phase::Active(_) if !there && want > 0 => self.phase = Phase::Activating,
            Phase::Activating if there => self.phase = Phase::Active(now),
            Phase::Inactive(_) if there && want > 0 => self.phase = Phase::Active(now),
            Phase::Inactive(_) if want > 0 => self.phase = Phase::Activating,
            _ => {}
        }
        if want > 0 {
            return (want, None);
        }
        if !rules.scale_to_zero {
            return (1, None);
        }
        if pool.ready == 0 && pool.starting == 0 {
            self.phase = Phase::Inactive(now);
            return (0, None);
        }
        if self.phase == Phase::Activating {
            return (1, None);
        }
        if let Phase::Active(since) = self.phase {
            let due = since.max(busy_until) + rules.window.0;
            if now < due {
                return (1, Some(due));
            }
            self.phase = Phase::Inactive(now);
        }
        match self.phase {
            Phase::Inactive(since) if now < since + rules.hold() => {
                (pool.ready.max(1), Some(since + rules.hold()))
            }
            _ => (0, None),
        }
    }
}

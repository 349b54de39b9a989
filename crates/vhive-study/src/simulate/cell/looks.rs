//! When a function's policy is looked at, and which of these looks can be left out.
//!
//! As the node's scaler does it. While nothing happens and the policy says that its answer stays
//! ([`Policy::steady`](vhive_policy::autoscale::Policy::steady)), looks are left out; when something
//! happens, the last of them is made up for. What comes of it is the same as with all of them.

use std::time::Duration;

use vhive_policy::autoscale::{BREATH, Pool, policy};

use super::{Around, Cell, Event, Missing, Ns, nanos};

/// Looks are left out for no longer than this.
const LONGEST: Ns = 24 * 3600 * 1_000_000_000;

impl Cell<'_> {
    /// Instances to have before the first was ready.
    pub(super) fn first(&self) -> u32 {
        let rules = &self.common.rules;
        if self.ever_ready { 0 } else { rules.initial.max(rules.min) }
    }

    /// When it is looked at next.
    pub(in super::super) fn next_look(&self) -> Option<Ns> {
        match (self.due, self.poked) {
            (Some(due), Some(poked)) => Some(due.min(poked)),
            (due, poked) => due.or(poked),
        }
    }

    pub(super) fn poke(&mut self, now: Ns, around: &mut impl Around) {
        if self.poked.is_none() {
            let at = now.saturating_add(nanos(BREATH)).saturating_add(self.common.late);
            self.poked = Some(at);
            around.schedule(at, Event::Look);
        }
    }

    /// A look that was scheduled.
    pub(super) fn look(&mut self, now: Ns, around: &mut impl Around) -> Missing {
        if let Some(first) = self.left_out.take() {
            let count = now.saturating_sub(first) / nanos(self.common.tick).max(1);
            around.tally().looked(count);
        }
        let missing = self.ask(now, self.common.leaves_out, around);
        if let Some(due) = self.due {
            around.schedule(due, Event::Look);
        }
        missing
    }

    /// Something is about to happen: the looks that were left out up to now (one of this very moment
    /// among them, or not) are made up for by the last of them.
    pub(super) fn catch_up(&mut self, now: Ns, including: bool, around: &mut impl Around) {
        let Some(first) = self.left_out.take() else { return };
        let tick = nanos(self.common.tick).max(1);
        let count = match now.checked_sub(first) {
            None => 0,
            Some(since) if including => since / tick + 1,
            Some(since) => since.div_ceil(tick),
        };
        if let Some(before) = count.checked_sub(1) {
            around.tally().looked(before);
            self.ask(first + before * tick, false, around);
        } else {
            self.due = Some(first);
        }
        if let Some(due) = self.due {
            around.schedule(due, Event::Look);
        }
    }

    /// A time of the trace as the policy counts it.
    fn moment(&self, at: Ns) -> Duration {
        Duration::from_nanos(at.saturating_add(self.common.begins))
    }

    /// Asks the policy, does what it says, and notes when to ask again.
    fn ask(&mut self, now: Ns, leaves_out: bool, around: &mut impl Around) -> Missing {
        around.tally().looked(1);
        let common = self.common;
        let moment = self.moment(now);
        let mut asked =
            self.policy.take().unwrap_or_else(|| policy(&common.rules, common.tick, moment));
        let sample = self.meter.sample(now).later(common.begins);
        let leaving = u32::try_from(self.leaving.len()).unwrap_or(u32::MAX);
        let pool = Pool { ready: self.ready + leaving, starting: self.starting, reachable: true };
        asked.observe(&sample);
        let decision = asked.decide(moment, &pool);
        let tick = now.saturating_add(nanos(common.tick));
        let from_ticks = |moment| nanos(moment).saturating_sub(common.begins);
        let mut again = decision.again.map(from_ticks);
        let first = self.first();
        let wanted = decision.want.or(self.wanted).or((first > 0).then_some(first));
        let mut missing = Missing::default();
        let mut same = first == 0 && leaving == 0 && self.starting == 0;
        if let Some(want) = wanted {
            let want = want.max(first);
            self.wanted = Some(want);
            self.resize(want, now, around);
            missing = self.missing();
            same &= self.ready == pool.ready && self.leaving.is_empty() && missing.all == 0;
            if pool.ready + pool.starting > want || first > 0 {
                again = Some(again.map_or(tick, |again| again.min(tick)));
            }
        }
        let quiet = sample.arrivals == 0;
        self.due = match again {
            Some(again) if again <= tick => Some(again.max(now.saturating_add(nanos(BREATH)))),
            again if quiet && self.meter.in_flight() == 0 => {
                self.watched = false;
                again
            }
            _ => Some(tick),
        };
        self.due = self.due.map(|due| due.saturating_add(common.late));
        if leaves_out
            && same
            && let Some(until) = asked.steady()
        {
            self.leave_out(now, from_ticks(until));
        }
        if self.due.is_some() || asked.learns() {
            self.policy = Some(asked);
        } else {
            self.wanted = None;
        }
        missing
    }

    /// Leaves out the looks from the next one on until a moment, where they come with the ticks.
    fn leave_out(&mut self, now: Ns, until: Ns) {
        let (tick, late) = (nanos(self.common.tick), self.common.late);
        let Some(due) = self.due else { return };
        let of_tick = nanos(self.moment(due)).checked_sub(late);
        let with_ticks = tick >= late.saturating_add(nanos(BREATH))
            && of_tick.is_some_and(|at| at.is_multiple_of(tick));
        let until = until.min(now.saturating_add(LONGEST));
        if with_ticks && due < until {
            self.left_out = Some(due);
            self.due = Some(due + (until - due).div_ceil(tick) * tick);
        }
    }
}

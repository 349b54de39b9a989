//! A snapshot that is wanted while no instance is idle, or that none which serves may give: after a
//! while an instance is started for it alone.

use std::time::{Duration, Instant};

use super::{Action, Core, State};

/// Longest time between two instances started for one snapshot.
const MOST: Duration = Duration::from_secs(3600);

/// A snapshot that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    since: Instant,
    /// When an instance is to be started for it.
    until: Instant,
    /// How often that has been asked for.
    asked: u32,
    /// No instance that has served will do.
    alone: bool,
}

impl Core {
    /// A snapshot is wanted of an instance that has served nobody: of one that is started for it. After an
    /// eviction not before the next request, whose instance asks again.
    pub(crate) fn want_alone(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.waits.is_none() && !self.closing && !self.dormant {
            self.waits = Some(Waits { since: now, until: now, asked: 0, alone: true });
            self.look_at_waits(now, out);
        }
    }

    /// There is a snapshot: no other is wanted of who serves. One that is here for its snapshot only tries,
    /// so that whoever waits for it is told that there is one.
    pub(crate) fn saved(&mut self) {
        self.waits = None;
        for instance in self.instances.values_mut().filter(|instance| !instance.passing) {
            instance.due = false;
        }
    }

    /// The revision wants snapshots from now on or not, and if so, of instances that have served nobody or not.
    /// What was wished for under another policy is not any more.
    pub(crate) fn change_policy(&mut self, snapshots: bool, alone: bool) {
        if !snapshots || self.waits.is_some_and(|waits| waits.alone != alone) {
            self.saved();
        }
    }

    /// After an eviction nobody waits for a snapshot of an instance of its own before one is there again.
    pub(super) fn evict_waits(&mut self) {
        self.waits = self.waits.filter(|waits| !waits.alone);
    }

    /// Since when a snapshot is wanted and not there.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        self.waits.map(|waits| waits.since)
    }

    /// The snapshot of an instance that is ready now waits for it to be idle.
    pub(super) fn wait_for_idle(&mut self, now: Instant) {
        let until = now + self.patience;
        self.waits.get_or_insert(Waits { since: now, until, asked: 0, alone: false });
    }

    /// When [`Core::look_at_waits`] is due.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.waits.filter(|waits| !self.sleeps(waits)).map(|waits| waits.until)
    }

    /// Evicted, it starts nothing for the snapshot of who served then.
    fn sleeps(&self, waits: &Waits) -> bool {
        self.dormant && !waits.alone
    }

    /// Asks for an instance if the snapshot has waited long enough; ever more rarely, because one that
    /// cannot be taken costs a start each time.
    pub(super) fn look_at_waits(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(mut waits) = self.waits.filter(|waits| waits.until <= now) else { return };
        if self.closing || self.sleeps(&waits) {
            return;
        }
        let all = || self.instances.values();
        if !waits.alone && !all().any(|i| i.due) {
            // Who should have given it is gone; the next one that boots is asked again.
            self.waits = None;
            return;
        }
        let coming = all().any(|i| i.passing || i.state == State::Snapshotting);
        let longer = 1_u32.checked_shl(waits.asked).and_then(|n| self.patience.checked_mul(n));
        waits.until = now + longer.unwrap_or(MOST).min(MOST);
        if !coming {
            waits.asked += 1;
            out.push(Action::Overdue);
        }
        self.waits = Some(waits);
    }
}

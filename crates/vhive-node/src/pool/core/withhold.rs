//! Decisions about whom to withhold: for a snapshot, or because it says that it is not ready; and whom to
//! start for a snapshot, whom to evict.

use std::time::Instant;

use super::{Action, Core, InstanceNo, Refusal, State};

impl Core {
    /// A snapshot of this instance, which is being started, is wanted.
    pub(crate) fn want_snapshot(&mut self, no: InstanceNo) {
        if let Some(instance) = self.instances.get_mut(&no) {
            instance.due = true;
        }
    }

    /// The same of an instance that has been serving for a while.
    pub(crate) fn want_again(&mut self, no: InstanceNo, now: Instant) {
        if self.instances.contains_key(&no) {
            self.want_snapshot(no);
            self.wait_for_idle(now);
        }
    }

    /// An instance's first reply is out; its slot is about to come back.
    pub(crate) fn replied(&mut self, no: InstanceNo) {
        if let Some(instance) = self.instances.get_mut(&no) {
            instance.replied = true;
        }
    }

    /// An instance says that it is not ready, or that it is again. Who waits may get another one
    /// meanwhile, and this one once it is well.
    pub(crate) fn set_well(
        &mut self,
        no: InstanceNo,
        is_well: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.instances.get(&no).is_none_or(|i| i.unwell != is_well) || self.is_starting(no) {
            return;
        }
        self.forget_free(no);
        let Some(instance) = self.instances.get_mut(&no) else { return };
        instance.unwell = !is_well;
        if is_well && matches!(instance.state, State::Ready | State::Leaving) {
            if !self.waiting.is_empty() {
                self.unmark(no);
            }
            self.serve(no, out);
        }
        self.stop_if_done(no, out);
        self.after_loss(now, out);
    }

    /// Whether something is there or under way that can serve a waiting request. What is unwell may
    /// never be well again.
    pub(super) fn has_capacity(&self) -> bool {
        self.instances.values().any(|instance| match instance.state {
            State::Starting(_) => true,
            State::Broken => false,
            State::Ready | State::Leaving | State::Snapshotting => !instance.unwell,
        })
    }

    /// Starts an instance for nothing but its snapshot, which is taken before it serves anybody.
    pub(crate) fn prepare(
        &mut self,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<InstanceNo, Refusal> {
        if self.closing {
            return Err(Refusal::Closing);
        }
        if let Some(until) = self.failed.closed_until(now) {
            return Err(Refusal::BackingOff(until));
        }
        if self.bounds.max > 0 && self.total() - self.broken >= self.bounds.max {
            return Err(Refusal::AtMax);
        }
        let no = self.start(out);
        if let Some(instance) = self.instances.get_mut(&no) {
            (instance.due, instance.passing) = (true, true);
        }
        Ok(no)
    }

    /// Whether an instance was made by [`Core::prepare`] and has served nobody.
    pub(crate) fn is_prepared(&self, no: InstanceNo) -> bool {
        self.instances.get(&no).is_some_and(|i| i.passing)
    }

    /// A snapshot has been taken, or not. `lost` says that the instance does not go on.
    pub(crate) fn snapshotted(
        &mut self,
        no: InstanceNo,
        lost: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if self.instances.get(&no).is_none_or(|i| i.state != State::Snapshotting) {
            return;
        }
        if lost {
            self.remove(no, out);
            self.after_loss(now, out);
            return;
        }
        self.set_state(no, State::Ready);
        self.serve(no, out);
        self.after_loss(now, out);
    }

    /// Stops what idles, and starts nothing that no request asks for before the next request.
    /// Says how many go.
    pub(crate) fn evict(&mut self, now: Instant, out: &mut Vec<Action>) -> u32 {
        self.dormant = true;
        self.evict_waits();
        let mut gone = 0;
        let all: Vec<InstanceNo> = self.instances.keys().copied().collect();
        for no in all {
            let Some(instance) = self.instances.get_mut(&no) else { continue };
            match instance.state {
                State::Ready if instance.leases == 0 => {
                    self.remove(no, out);
                    gone += 1;
                }
                State::Snapshotting => {
                    instance.passing = true;
                    gone += 1;
                }
                _ => {}
            }
        }
        self.after_loss(now, out);
        gone
    }

    /// Instances that an eviction leaves.
    pub(crate) fn staying(&self) -> u32 {
        self.total() - self.snapshotting
    }

    /// Withholds an idle instance for its snapshot.
    pub(super) fn snapshot(&mut self, no: InstanceNo, out: &mut Vec<Action>) {
        if let Some(instance) = self.instances.get_mut(&no) {
            instance.due = false;
        }
        self.set_state(no, State::Snapshotting);
        out.push(Action::Snapshot(no));
    }
}

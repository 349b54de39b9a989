//! CPU time of a microVM.
//!
//! A machine has whole processors. One that was asked for in whole processors is limited by their
//! number, and its VMM has one more for its own threads. One that was asked for in parts of a
//! processor is limited by a quota, like a container, but only while it serves: not while its kernel
//! boots or its state is loaded or saved, which is the platform's work and which no container has.
//! The quota is for everything that the machine is made of, as that of gVisor is.
//!
//! Why: `docs/decisions/0039-cpu-time-of-machines.md`.

use std::io;
use std::sync::Arc;

use super::{Cgroup, Limits};

/// What a microVM's processes may use, and when.
#[derive(Clone, Debug)]
pub(crate) struct MachineShare {
    cgroup: Arc<Cgroup>,
    /// While it boots, and while it is loaded or saved.
    at_work: u32,
    /// While it serves.
    serving: u32,
}

/// That a machine has its whole time. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Whole<'a>(&'a MachineShare);

impl MachineShare {
    /// Processors of a machine, of which there are only whole ones.
    pub(crate) fn vcpus(cpu_millis: u32) -> u32 {
        cpu_millis.div_ceil(1000).max(1)
    }

    /// What a machine's processes may use before it serves: its processors, and one more for the
    /// VMM's own threads.
    pub(crate) fn at_work(cpu_millis: u32) -> u32 {
        Self::vcpus(cpu_millis).saturating_add(1).saturating_mul(1000)
    }

    /// Of a machine whose group was made with [`Self::at_work`].
    pub(crate) fn new(cgroup: Arc<Cgroup>, cpu_millis: u32) -> Self {
        let at_work = Self::at_work(cpu_millis);
        let in_parts = !cpu_millis.is_multiple_of(1000);
        let serving = if in_parts { cpu_millis } else { at_work };
        Self { cgroup, at_work, serving }
    }

    /// From now on it serves.
    ///
    /// # Errors
    /// Any I/O error.
    pub(crate) fn serve(&self) -> io::Result<()> {
        self.set(self.serving)
    }

    /// Gives it its whole time for as long as the guard is kept. Where that cannot be done it takes
    /// longer.
    pub(crate) fn lift(&self) -> Whole<'_> {
        if let Err(error) = self.set(self.at_work) {
            tracing::warn!(%error, "a machine keeps its CPU limit while it is saved");
        }
        Whole(self)
    }

    fn set(&self, cpu_millis: u32) -> io::Result<()> {
        if self.serving == self.at_work {
            return Ok(());
        }
        self.cgroup.limit(&Limits { cpu_millis: Some(cpu_millis), ..Limits::default() })
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.serve() {
            tracing::warn!(%error, "a machine has no CPU limit any more");
        }
    }
}

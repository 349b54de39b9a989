//! What a simulated run adds up. All of it is whole numbers, so that the order in which functions
//! are simulated, and by how many threads, changes nothing.

use vhive_api::StartKind;

use super::cell::Ns;
use super::histogram::Histogram;

const SECOND: Ns = 1_000_000_000;
/// Of a run that is not longer, in seconds, instances are told second by second.
const MOST_SECONDS: usize = 3600;
/// Seconds of a step of [`Tally::steps`].
pub(super) const STEP: usize = 60;

/// The figures of a run, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// When it ends: what is later is not counted as an instance's life.
    horizon: Ns,
    pub(super) invocations: u64,
    pub(super) warm: u64,
    pub(super) queued: u64,
    /// By [`StartKind::ALL`].
    pub(super) cold: [u64; 6],
    pub(super) refused: u64,
    pub(super) starts: [u64; 6],
    pub(super) evicted: u64,
    pub(super) looks: u64,
    /// Starts waited so long for their turn.
    pub(super) turn_ns: u128,
    /// What invocations waited, and what the first ones of an instance took longer.
    pub(super) added: Histogram,
    pub(super) added_ns: u128,
    pub(super) lived_ns: u128,
    pub(super) worked_ns: u128,
    pub(super) idled_ns: u128,
    /// Bytes times nanoseconds.
    pub(super) memory: u128,
    /// Of these, while an instance held no request.
    pub(super) idle_memory: u128,
    /// Nanoseconds that instances were there in each second; nothing of a long run.
    lived_in: Vec<u64>,
    /// Instances and bytes that are more in each second than in the one before.
    changes: Vec<(i64, i64)>,
    /// Invocations, and cold ones, of each minute.
    pub(super) steps: Vec<(u64, u64)>,
}

impl Tally {
    pub(super) fn new(horizon: Ns) -> Self {
        let seconds = usize::try_from(horizon.div_ceil(SECOND)).unwrap_or(0);
        Self {
            horizon,
            invocations: 0,
            warm: 0,
            queued: 0,
            cold: [0; 6],
            refused: 0,
            starts: [0; 6],
            evicted: 0,
            looks: 0,
            turn_ns: 0,
            added: Histogram::default(),
            added_ns: 0,
            lived_ns: 0,
            worked_ns: 0,
            idled_ns: 0,
            memory: 0,
            idle_memory: 0,
            lived_in: vec![0; if seconds <= MOST_SECONDS { seconds } else { 0 }],
            changes: vec![(0, 0); seconds + 2],
            steps: vec![(0, 0); seconds.div_ceil(STEP)],
        }
    }

    fn step(&mut self, now: Ns) -> Option<&mut (u64, u64)> {
        self.steps.get_mut(usize::try_from(now / SECOND).ok()? / STEP)
    }

    pub(super) fn arrived(&mut self, now: Ns) {
        self.invocations += 1;
        if let Some((all, _)) = self.step(now) {
            *all += 1;
        }
    }

    pub(super) fn warm(&mut self) {
        self.warm += 1;
    }

    pub(super) fn queued(&mut self) {
        self.queued += 1;
    }

    pub(super) fn cold(&mut self, kind: StartKind, now: Ns) {
        self.cold[index(kind)] += 1;
        if let Some((_, cold)) = self.step(now) {
            *cold += 1;
        }
    }

    pub(super) fn refused(&mut self) {
        self.refused += 1;
    }

    pub(super) fn started(&mut self, kind: StartKind) {
        self.starts[index(kind)] += 1;
    }

    pub(super) fn evicted(&mut self) {
        self.evicted += 1;
    }

    /// A policy was asked so many times, or would have been.
    pub(super) fn looked(&mut self, times: u64) {
        self.looks += times;
    }

    pub(super) fn waited_for_turn(&mut self, length: Ns) {
        self.turn_ns += u128::from(length);
    }

    pub(super) fn added(&mut self, length: Ns) {
        self.added.add(length / 1000);
        self.added_ns += u128::from(length);
    }

    /// An instance held requests.
    pub(super) fn worked(&mut self, (from, to): (Ns, Ns)) {
        self.worked_ns += u128::from(to.min(self.horizon).saturating_sub(from));
    }

    /// A ready instance held none.
    pub(super) fn idled(&mut self, (from, to): (Ns, Ns), memory: u64) {
        let length = u128::from(to.min(self.horizon).saturating_sub(from));
        self.idled_ns += length;
        self.idle_memory += length * u128::from(memory);
    }

    /// An instance was there from its start's beginning to its end.
    pub(super) fn lived(&mut self, begun: Ns, ended: Ns, memory: u64) {
        let (begun, ended) = (begun.min(self.horizon), ended.min(self.horizon));
        let length = u128::from(ended - begun);
        self.lived_ns += length;
        self.memory += length * u128::from(memory);
        if length == 0 {
            return;
        }
        let bytes = i64::try_from(memory).unwrap_or(i64::MAX);
        let at = |ns: Ns| usize::try_from(ns).unwrap_or(usize::MAX);
        let first = at(begun / SECOND).min(self.lived_in.len());
        let within = (begun / SECOND..).zip(&mut self.lived_in[first..]);
        for (second, sum) in within.take_while(|(second, _)| second * SECOND < ended) {
            let (from, to) = (second * SECOND, (second + 1) * SECOND);
            *sum += ended.min(to) - begun.max(from);
        }
        for (second, sign) in [(begun / SECOND, 1), (ended.div_ceil(SECOND), -1)] {
            if let Some((instances, memory)) = self.changes.get_mut(at(second)) {
                *instances += sign;
                *memory += sign * bytes;
            }
        }
    }

    /// Instances and bytes that were there in each second, for a moment at least.
    pub(super) fn seconds(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (mut instances, mut bytes) = (0_i64, 0_i64);
        self.changes.iter().map(move |(more, heavier)| {
            instances += more;
            bytes += heavier;
            (u64::try_from(instances).unwrap_or(0), u64::try_from(bytes).unwrap_or(0))
        })
    }

    /// Instances that were there in each second, on the average; nothing of a run of more than an hour.
    pub(super) fn averages(&self) -> Vec<f64> {
        self.lived_in.iter().map(|ns| *ns as f64 / SECOND as f64).collect()
    }

    /// Adds the figures of another part of the same run.
    pub(super) fn merge(&mut self, other: &Self) {
        self.invocations += other.invocations;
        self.warm += other.warm;
        self.queued += other.queued;
        self.refused += other.refused;
        self.evicted += other.evicted;
        self.looks += other.looks;
        self.turn_ns += other.turn_ns;
        self.added.merge(&other.added);
        self.added_ns += other.added_ns;
        self.lived_ns += other.lived_ns;
        self.worked_ns += other.worked_ns;
        self.idled_ns += other.idled_ns;
        self.memory += other.memory;
        self.idle_memory += other.idle_memory;
        for (mine, theirs) in [(&mut self.cold, &other.cold), (&mut self.starts, &other.starts)] {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
        for (mine, theirs) in self.lived_in.iter_mut().zip(&other.lived_in) {
            *mine += theirs;
        }
        for (mine, theirs) in self.changes.iter_mut().zip(&other.changes) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
    }
}

pub(super) fn index(kind: StartKind) -> usize {
    StartKind::ALL.iter().position(|one| *one == kind).unwrap_or(0)
}

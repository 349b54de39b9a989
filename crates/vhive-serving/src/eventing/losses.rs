//! Events that went nowhere, counted until somebody tells of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::kind::Kind;

/// Losses that are told apart at a time; what is beyond is only logged.
const MOST: usize = 1000;

/// Losses of one object and cause that are told apart by their words; more are counted with one of these.
const ALIKE: usize = 10;

/// Whose event it was, and why it was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// No try is left, and there is no dead letter sink.
    Undelivered,
    /// It could not be delivered to the dead letter sink either.
    DeadLetterUndelivered,
    /// It has led to too many others.
    Looped,
}

impl Cause {
    /// As an event's `reason`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Undelivered => "EventDropped",
            Self::DeadLetterUndelivered => "DeadLetterDropped",
            Self::Looped => "EventLooped",
        }
    }
}

/// One sort of loss.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Loss {
    /// Of a broker or a trigger.
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) cause: Cause,
    /// In words.
    pub(crate) message: String,
}

/// Those that nobody has told of yet.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    seen: Mutex<BTreeMap<Loss, u32>>,
    told: Notify,
}

impl Losses {
    /// Counts one; quick, from any thread.
    pub(crate) fn add(&self, loss: Loss) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = Loss { message: String::new(), ..loss.clone() };
        let like = |one: &Loss| {
            (one.kind, &one.namespace, &one.name, one.cause)
                == (loss.kind, &loss.namespace, &loss.name, loss.cause)
        };
        let mut alike = seen.range(&first..).map(|(one, _)| one).take_while(|one| like(one));
        let last = alike.nth(ALIKE - 1).cloned();
        let loss = last.filter(|_| !seen.contains_key(&loss)).unwrap_or(loss);
        if seen.len() < MOST || seen.contains_key(&loss) {
            let count = seen.entry(loss).or_default();
            *count = count.saturating_add(1);
        }
        drop(seen);
        self.told.notify_one();
    }

    /// Waits for losses; each with how often it has happened.
    pub(crate) async fn next(&self) -> BTreeMap<Loss, u32> {
        loop {
            self.told.notified().await;
            let seen =
                std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
            if !seen.is_empty() {
                return seen;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(name: &str, message: &str) -> Loss {
        Loss {
            kind: Kind::Trigger,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            cause: Cause::Undelivered,
            message: message.to_owned(),
        }
    }

    #[tokio::test]
    async fn one_object_with_many_words_leaves_room_for_the_others() {
        let losses = Losses::default();
        for n in 0..2 * MOST {
            losses.add(loss("talks", &format!("status {n:04}")));
        }
        losses.add(loss("quiet", "status 500"));
        losses.add(loss("a", "status 500"));
        let seen = losses.next().await;
        let of = |name: &str| -> Vec<u32> {
            seen.iter().filter(|(loss, _)| loss.name == name).map(|(_, count)| *count).collect()
        };
        assert_eq!((of("a"), of("quiet")), (vec![1], vec![1]));
        let talks = of("talks");
        assert_eq!(talks.len(), ALIKE);
        assert_eq!(talks.iter().sum::<u32>(), 2000, "none is uncounted");
    }
}

//! The task that lets the number of instances follow the demand. It sleeps while nothing runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use vhive_api::RevisionKey;
use vhive_node::Node;

use crate::autoscale::{BREATH, Policy, Pool, policy};
use crate::catalog::{Catalog, Route};
use crate::metrics::Scaled;

/// What the scaler goes by.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// The beginning that policies count from.
    epoch: Instant,
    tick: Duration,
}

/// What is remembered of one revision while it runs; and, if its policy learns, while it rests.
#[derive(Debug)]
struct Watched {
    route: Arc<Route>,
    policy: Box<dyn Policy>,
    /// When to look again; none while it rests.
    due: Option<Instant>,
    wanted: Option<u32>,
    /// Instances seen last, starting ones included.
    there: u32,
}

/// Revisions that want to be looked at before the next tick: woken from zero, or queueing.
#[derive(Debug, Default)]
pub(crate) struct Poke {
    keys: Mutex<Vec<RevisionKey>>,
    forgotten: Mutex<Vec<RevisionKey>>,
    told: Notify,
}

impl Poke {
    /// Asks for a look at a revision.
    pub(crate) fn poke(&self, revision: &RevisionKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(revision.clone());
        self.told.notify_one();
    }

    /// What a revision's requests have been like counts no more from the next look on.
    pub(crate) fn forget(&self, revision: &RevisionKey) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if !forgotten.contains(revision) {
            forgotten.push(revision.clone());
        }
    }

    fn take(&self) -> Vec<RevisionKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_forgotten(&self) -> Vec<RevisionKey> {
        std::mem::take(&mut *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The last whole minute of the wall clock, as an instant. Ticks that are counted from it fall on
/// whole seconds of the clock: a recorded run tells when they were.
fn whole_minute(now: Instant, wall: SystemTime) -> Instant {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since = Duration::new(since.as_secs() % 60, since.subsec_nanos());
    now.checked_sub(since).unwrap_or(now)
}

/// Runs until the task is aborted.
pub(crate) async fn run(node: Node, catalog: Arc<Catalog>, tick: Duration) {
    let clock = Clock { epoch: whole_minute(Instant::now(), SystemTime::now()), tick };
    let mut watched: HashMap<RevisionKey, Watched> = HashMap::new();
    loop {
        let due = watched.values().filter_map(|watched| watched.due).min();
        let ticks = match due {
            None => {
                catalog.poke.told.notified().await;
                false
            }
            Some(at) => tokio::select! {
                () = sleep_until(at) => true,
                () = catalog.poke.told.notified() => false,
            },
        };
        if !ticks {
            // Whatever else happens in this moment is looked at together.
            tokio::time::sleep(BREATH).await;
        }
        let now = Instant::now();
        for revision in catalog.poke.take_forgotten() {
            if let Some(watched) = watched.get_mut(&revision) {
                watched.route.throttle.start_sampling(now);
                watched.policy.forget();
                (watched.wanted, watched.due) = (None, Some(now));
            }
        }
        if ticks {
            watched.retain(|_, watched| {
                let due = watched.due.is_some_and(|due| due <= now);
                watched.is_current(&catalog) && (!due || look(&node, watched, clock, now))
            });
        } else {
            for revision in catalog.poke.take() {
                look_at(&node, &catalog, &mut watched, revision, (clock, now));
            }
        }
    }
}

fn look_at(
    node: &Node,
    catalog: &Catalog,
    watched: &mut HashMap<RevisionKey, Watched>,
    revision: RevisionKey,
    (clock, now): (Clock, Instant),
) {
    let Some(route) = catalog.route(&revision) else {
        watched.remove(&revision);
        return;
    };
    route.throttle.looked_at();
    let same = watched.remove(&revision).filter(|one| Arc::ptr_eq(&one.route, &route));
    let mut one = same.unwrap_or_else(|| Watched::new(route, clock, now));
    if look(node, &mut one, clock, now) {
        watched.insert(revision, one);
    }
}

impl Watched {
    fn new(route: Arc<Route>, clock: Clock, now: Instant) -> Self {
        let policy = policy(&route.rules, clock.tick, now.saturating_duration_since(clock.epoch));
        Self { route, policy, due: Some(now), wanted: None, there: 0 }
    }

    fn is_current(&self, catalog: &Catalog) -> bool {
        let route = catalog.route(&self.route.revision.key);
        route.is_some_and(|route| Arc::ptr_eq(&route, &self.route))
    }
}

/// Decides for one revision and says when to look again; false once nothing of it need be kept
/// until the next request.
fn look(node: &Node, watched: &mut Watched, clock: Clock, now: Instant) -> bool {
    let Some(Next { again, quiet }) = step(node, watched, clock, now) else { return false };
    let tick = now + clock.tick;
    watched.due = match again {
        Some(again) if again <= tick => Some(again.max(now + BREATH)),
        // Nothing came for a while: the next request pokes, unless it is in flight already.
        again if quiet && watched.route.throttle.rest() => again,
        _ => Some(tick),
    };
    watched.due.is_some() || watched.policy.learns()
}

/// What follows a decision.
struct Next {
    /// When its policy is to be asked again, unless a request comes before.
    again: Option<Instant>,
    /// Whether no request has come since the decision before.
    quiet: bool,
}

/// Decides for one revision. None if it is gone.
fn step(node: &Node, watched: &mut Watched, clock: Clock, now: Instant) -> Option<Next> {
    let route = Arc::clone(&watched.route);
    let key = &route.revision.key;
    let counts = node.counts(key)?;
    let sample = route.throttle.sample(clock.epoch, now);
    watched.policy.observe(&sample);
    let pool =
        Pool { ready: counts.ready, starting: counts.starting, reachable: route.is_reachable() };
    let moment = now.saturating_duration_since(clock.epoch);
    let decision = watched.policy.decide(moment, &pool);
    let again = decision.again.and_then(|again| clock.epoch.checked_add(again));
    let quiet = sample.arrivals == 0;
    let first = route.first();
    let wanted = decision.want.or(watched.wanted).or((first > 0).then_some(first));
    let Some(want) = wanted else { return Some(Next { again, quiet }) };
    let want = want.max(first);
    if watched.wanted != Some(want) {
        if watched.wanted.is_some() {
            tracing::info!(revision = %key, want, ready = counts.ready, "scale");
        }
        watched.wanted = Some(want);
    }
    // Said again every time: the pool counts what has ended or was started meanwhile.
    node.resize(key, want);
    route.metrics.scaled(Scaled {
        desired: want,
        pool,
        leaving: counts.leaving,
        figures: decision.figures,
    });
    let there = counts.ready + counts.starting;
    if there < watched.there {
        let living = node.status(key).map(|status| status.instances).unwrap_or_default();
        route.upstreams.retain(|id| living.iter().any(|instance| instance.id == *id));
    }
    watched.there = there;
    // One that never was ready is looked at until it is.
    let excess = (there > want || first > 0).then_some(now + clock.tick);
    Some(Next { again: again.into_iter().chain(excess).min(), quiet })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_from_a_whole_minute_of_the_wall_clock() {
        let now = Instant::now() + Duration::from_secs(120);
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(7 * 60_000 + 12_345);
        assert_eq!(now - whole_minute(now, wall), Duration::from_millis(12_345));
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(whole_minute(now, before), now, "a clock before 1970 says nothing");
    }
}

//! The task that lets the number of instances follow the demand. It sleeps while nothing runs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use vhive_api::RevisionKey;
use vhive_node::Node;

use crate::autoscale::{History, Panic, Seen, decide};
use crate::catalog::{Catalog, Route};

/// Least time between two looks, however many requests queue up.
const BREATH: Duration = Duration::from_millis(20);

/// What is remembered of one revision while it runs.
#[derive(Debug)]
struct Watched {
    route: Arc<Route>,
    history: History,
    panic: Panic,
    /// When the last request was seen.
    busy: Instant,
    wanted: Option<u32>,
    /// Earlier decisions, for the scale-down delay.
    held: VecDeque<(Instant, u32)>,
    initial_reached: bool,
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

/// Runs until the task is aborted.
pub(crate) async fn run(node: Node, catalog: Arc<Catalog>, tick: Duration) {
    let mut watched: HashMap<RevisionKey, Watched> = HashMap::new();
    let mut due = None;
    loop {
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
                *watched = Watched::new(Arc::clone(&watched.route), now);
            }
        }
        if ticks {
            watched.retain(|_, watched| {
                watched.is_current(&catalog)
                    && (step(&node, watched, now) || !watched.route.throttle.rest())
            });
            due = Some(now + tick);
        } else {
            for revision in catalog.poke.take() {
                look_at(&node, &catalog, &mut watched, revision, now);
            }
            due = due.or(Some(now + tick));
        }
        if watched.is_empty() {
            due = None;
        }
    }
}

fn look_at(
    node: &Node,
    catalog: &Catalog,
    watched: &mut HashMap<RevisionKey, Watched>,
    revision: RevisionKey,
    now: Instant,
) {
    let Some(route) = catalog.route(&revision) else {
        watched.remove(&revision);
        return;
    };
    route.throttle.looked_at();
    match watched.get_mut(&revision) {
        Some(one) if Arc::ptr_eq(&one.route, &route) => _ = step(node, one, now),
        _ => _ = watched.insert(revision, Watched::new(route, now)),
    }
}

impl Watched {
    fn new(route: Arc<Route>, now: Instant) -> Self {
        route.throttle.start_sampling(now);
        let initial_reached = route.rules.initial <= route.rules.min;
        Self {
            route,
            history: History::default(),
            panic: Panic::default(),
            busy: now,
            wanted: None,
            held: VecDeque::new(),
            initial_reached,
            there: 0,
        }
    }

    fn is_current(&self, catalog: &Catalog) -> bool {
        let route = catalog.route(&self.route.revision.key);
        route.is_some_and(|route| Arc::ptr_eq(&route, &self.route))
    }
}

/// Decides for one revision; false once there is nothing more to decide until the next request.
fn step(node: &Node, watched: &mut Watched, now: Instant) -> bool {
    let route = Arc::clone(&watched.route);
    let key = &route.revision.key;
    let out_of_reach;
    let rules = if route.is_reachable() {
        &route.rules
    } else {
        out_of_reach = crate::autoscale::Rules { min: 0, ..route.rules.clone() };
        &out_of_reach
    };
    let Some(counts) = node.counts(key) else { return false };
    if let Some((sample, in_flight)) = route.throttle.sample(now) {
        if in_flight > 0 || sample.concurrency > 0.0 {
            watched.busy = now;
        }
        watched.history.add(sample, rules.window.0);
    }
    watched.initial_reached |= counts.ready >= rules.initial;
    let Some(stable) = watched.history.average(rules.window.0, now) else { return true };
    let seen = Seen {
        stable,
        panic: watched.history.average(rules.panic_window(), now).unwrap_or(stable),
        ready: counts.ready,
        idle: now.saturating_duration_since(watched.busy),
    };
    let (mut want, panic) = decide(rules, &seen, watched.panic, now);
    watched.panic = panic;
    if !watched.initial_reached {
        want = want.max(rules.initial);
    }
    want = hold(watched, want, now);
    if watched.wanted != Some(want) {
        if watched.wanted.is_some() {
            tracing::info!(revision = %key, want, ready = counts.ready, "scale");
        }
        watched.wanted = Some(want);
    }
    // Said again at every tick: the pool counts what has ended or was started meanwhile.
    node.resize(key, want);
    let there = counts.ready + counts.starting;
    if there < watched.there {
        let living = node.status(key).map(|status| status.instances).unwrap_or_default();
        route.upstreams.retain(|id| living.iter().any(|instance| instance.id == *id));
    }
    watched.there = there;
    let settled = seen.stable <= 0.0 && want == rules.min && there <= want;
    !settled
}

/// Holds a decision to have fewer instances back for the configured delay.
fn hold(watched: &mut Watched, want: u32, now: Instant) -> u32 {
    let delay = watched.route.rules.scale_down_delay.0;
    if delay.is_zero() {
        return want;
    }
    watched.held.push_back((now, want));
    while watched.held.front().is_some_and(|(at, _)| *at + delay < now) {
        watched.held.pop_front();
    }
    watched.held.iter().map(|(_, want)| *want).max().unwrap_or(want)
}

//! Scenes by name, then any sequence of events against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const FIRST: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

fn core(concurrency: u32, max: u32) -> Core {
    let back_off = BackOff::new(FIRST, Duration::from_secs(60));
    Core::new(Bounds { concurrency, max }, back_off, PATIENCE)
}

/// What one event made the core ask for.
fn ask(event: impl FnOnce(&mut Vec<Action>)) -> Vec<Action> {
    let mut out = Vec::new();
    event(&mut out);
    out
}

#[test]
fn one_start_per_wanted_instance_however_many_wait() {
    for (concurrency, max, waiting, starts) in
        [(1, 0, 5, 5), (10, 0, 5, 1), (10, 0, 21, 3), (0, 0, 500, 1), (1, 3, 200, 3)]
    {
        let (mut core, now) = (core(concurrency, max), Instant::now());
        let out = ask(|out| {
            for _ in 0..waiting {
                assert!(matches!(core.acquire(now, out), Ok(Answer::Waits(_))));
            }
        });
        assert_eq!(out.len(), starts, "{concurrency} {max} {waiting}");
        assert!(out.iter().all(|action| matches!(action, Action::Start(_))));
    }
}

#[test]
fn slots_are_lent_by_load_then_age() {
    let (mut core, now) = (core(2, 0), Instant::now());
    ask(|out| core.resize(2, now, out));
    ask(|out| core.started(0, now, out));
    ask(|out| core.started(1, now, out));
    let mut out = Vec::new();
    let order: Vec<_> = (0..4).map(|_| core.acquire(now, &mut out)).collect();
    assert_eq!(order, [0, 1, 0, 1].map(|no| Ok(Answer::Granted(no))));
    assert_eq!(core.acquire(now, &mut out), Ok(Answer::Waits(0)));
    assert_eq!(ask(|out| core.release(1, now, out)), [Action::Grant(0, 1)]);
}

#[test]
fn a_failed_start_fails_the_waiting_only_if_nothing_else_can_serve_them() {
    let (mut core, now) = (core(1, 0), Instant::now());
    let mut out = Vec::new();
    for _ in 0..3 {
        assert!(core.acquire(now, &mut out).is_ok());
    }
    assert_eq!(ask(|out| core.start_failed(0, now, out)), []);
    assert_eq!(ask(|out| core.start_failed(2, now, out)), []);
    let up = ask(|out| core.started(1, now, out));
    assert_eq!(up, [Action::Grant(0, 1), Action::Start(3), Action::Start(4)]);
    assert_eq!(ask(|out| core.start_failed(3, now, out)), []);
    assert_eq!(ask(|out| core.start_failed(4, now, out)), []);
    assert_eq!(ask(|out| core.release(1, now, out)), [Action::Grant(1, 1)]);
    // Gone, and the next start is not due: the last one waits in vain.
    let out = ask(|out| core.died(1, now, out));
    let until = now + FIRST;
    assert_eq!(out, [Action::Stop(1), Action::Fail(2, Refusal::BackingOff(until))]);
    assert_eq!(core.acquire(now, &mut Vec::new()), Err(Refusal::BackingOff(until)));
    assert_eq!(ask(|out| _ = core.acquire(until, out)), [Action::Start(5)]);
}

#[test]
fn after_a_failure_starts_are_tried_one_at_a_time() {
    let (mut core, now) = (core(1, 0), Instant::now());
    ask(|out| _ = core.acquire(now, out));
    let failed = ask(|out| core.start_failed(0, now, out));
    assert_eq!(failed, [Action::Fail(0, Refusal::StartFailed)]);
    let later = now + FIRST;
    let out = ask(|out| (0..10).for_each(|_| _ = core.acquire(later, out)));
    assert_eq!(out, [Action::Start(1)]);
    // One success, and the rest follow at once.
    let out = ask(|out| core.started(1, later, out));
    assert_eq!(out.iter().filter(|action| matches!(action, Action::Start(_))).count(), 9);
}

#[test]
fn scaling_down_stops_the_idle_and_marks_the_busy() {
    let (mut core, now) = (core(1, 0), Instant::now());
    ask(|out| core.resize(3, now, out));
    (0..3).for_each(|no| _ = ask(|out| core.started(no, now, out)));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(0)));
    assert_eq!(ask(|out| core.resize(0, now, out)), [Action::Stop(2), Action::Stop(1)]);
    // A new request takes the marked one back rather than starting another.
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Stop(0)]);
    ask(|out| core.resize(1, now, out));
    ask(|out| core.started(3, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(3)));
    ask(|out| core.resize(0, now, out));
    let out = ask(|out| assert_eq!(core.acquire(now, out), Ok(Answer::Waits(0))));
    assert_eq!(out, [Action::Start(4)]);
    assert_eq!(ask(|out| core.release(3, now, out)), [Action::Grant(0, 3)]);
    assert_eq!(core.instance(3), Some((crate::pool::InstanceState::Ready, 1)));
}

#[test]
fn an_unwell_instance_keeps_what_it_holds_and_gets_nothing_more_until_it_is_well() {
    let (mut core, now) = (core(2, 2), Instant::now());
    ask(|out| core.resize(1, now, out));
    ask(|out| core.started(0, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(0)));
    assert_eq!(ask(|out| core.set_well(0, false, now, out)), [], "nobody waits");
    assert_eq!(core.instance(0), Some((crate::pool::InstanceState::Unready, 1)));
    // A request gets another one, and the next ones wait for either.
    let out = ask(|out| assert_eq!(core.acquire(now, out), Ok(Answer::Waits(0))));
    assert_eq!(out, [Action::Start(1)]);
    assert_eq!(ask(|out| core.started(1, now, out)), [Action::Grant(0, 1)]);
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(1)));
    let out = ask(|out| assert_eq!(core.acquire(now, out), Ok(Answer::Waits(1))));
    assert_eq!(out, [], "there may be two");
    assert_eq!(ask(|out| core.release(0, now, out)), [], "not to the unwell one");
    assert_eq!(ask(|out| core.set_well(0, true, now, out)), [Action::Grant(1, 0)]);
    // The unwell one goes first, although it is older.
    for no in [0, 1, 1] {
        ask(|out| core.release(no, now, out));
    }
    ask(|out| core.set_well(0, false, now, out));
    assert_eq!(ask(|out| core.resize(1, now, out)), [Action::Stop(0)]);
}

#[test]
fn who_waits_for_an_unwell_instance_is_told_when_the_pool_closes_or_no_other_starts() {
    // Closing: it idles, so it goes, and who waits for it has nothing to wait for.
    let (mut core, now) = (core(1, 1), Instant::now());
    ask(|out| core.resize(1, now, out));
    ask(|out| core.started(0, now, out));
    ask(|out| core.set_well(0, false, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Waits(0)));
    let gone = [Action::Stop(0), Action::Fail(0, Refusal::Closing)];
    assert_eq!(ask(|out| core.close(out)), gone);
    // Closing while it still holds a request, or before it is unwell.
    for unwell_first in [true, false] {
        let mut core = self::core(1, 1);
        ask(|out| _ = core.acquire(now, out));
        ask(|out| core.started(0, now, out));
        assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Waits(1)));
        let mut out = Vec::new();
        if unwell_first {
            core.set_well(0, false, now, &mut out);
            core.close(&mut out);
        } else {
            core.close(&mut out);
            core.set_well(0, false, now, &mut out);
        }
        assert_eq!(out, [Action::Fail(1, Refusal::Closing)], "{unwell_first}");
        assert_eq!(ask(|out| core.release(0, now, out)), [Action::Stop(0)]);
    }
    // Not closing: the other one does not start.
    let mut core = self::core(1, 2);
    ask(|out| core.resize(1, now, out));
    ask(|out| core.started(0, now, out));
    ask(|out| core.set_well(0, false, now, out));
    assert_eq!(ask(|out| _ = core.acquire(now, out)), [Action::Start(1)]);
    let failed = ask(|out| core.start_failed(1, now, out));
    assert_eq!(failed, [Action::Fail(0, Refusal::StartFailed)]);
    assert_eq!(core.acquire(now, &mut Vec::new()), Err(Refusal::BackingOff(now + FIRST)));
    ask(|out| core.set_well(0, true, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(0)));
}

#[test]
fn a_broken_instance_serves_what_it_holds_and_is_replaced() {
    let (mut core, now) = (core(2, 1), Instant::now());
    let mut out = Vec::new();
    for _ in 0..3 {
        assert!(core.acquire(now, &mut out).is_ok());
    }
    ask(|out| core.started(0, now, out));
    assert_eq!(ask(|out| core.broken(0, now, out)), [Action::Start(1)]);
    assert_eq!(ask(|out| core.release(0, now, out)), []);
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Stop(0)]);
    assert_eq!(ask(|out| core.started(1, now, out)), [Action::Grant(2, 1)]);
}

#[test]
fn a_crashing_instance_that_nobody_asked_for_comes_back_ever_more_slowly() {
    let (mut core, mut now) = (core(1, 0), Instant::now());
    assert_eq!(ask(|out| core.resize(1, now, out)), [Action::Start(0)]);
    for (no, secs) in [(0, 1), (1, 2), (2, 4)] {
        ask(|out| core.started(no, now, out));
        assert_eq!(ask(|out| core.died(no, now, out)), [Action::Stop(no)]);
        now += Duration::from_secs(secs);
        assert_eq!(core.poke_at(now - Duration::from_millis(1)), Some(now));
        assert_eq!(ask(|out| core.poke(now, out)), [Action::Start(no + 1)]);
    }
    // Once it has served, the count begins anew.
    ask(|out| core.started(3, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(3)));
    ask(|out| core.release(3, now, out));
    ask(|out| core.died(3, now, out));
    assert_eq!(core.poke_at(now), Some(now + FIRST));
}

#[test]
fn without_room_the_waiting_are_told_unless_room_is_coming() {
    let (mut core, now) = (core(1, 0), Instant::now());
    ask(|out| _ = core.acquire(now, out));
    assert_eq!(ask(|out| core.no_room(0, true, out)), []);
    assert_eq!(ask(|out| core.poke(now, out)), [Action::Start(1)]);
    assert_eq!(ask(|out| core.no_room(1, false, out)), [Action::Fail(0, Refusal::Full)]);
}

#[test]
fn closing_lets_the_lent_finish_and_refuses_the_rest() {
    let (mut core, now) = (core(1, 1), Instant::now());
    ask(|out| _ = core.acquire(now, out));
    ask(|out| core.started(0, now, out));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Waits(1)));
    assert_eq!(ask(|out| core.close(out)), []);
    assert_eq!(core.acquire(now, &mut Vec::new()), Err(Refusal::Closing));
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Grant(1, 0)]);
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Stop(0)]);
    assert_eq!(core.counts(), Counts::default());
}

#[test]
fn a_snapshot_is_taken_of_an_idle_instance_after_its_first_reply() {
    let (mut core, now) = (core(2, 0), Instant::now());
    let mut out = Vec::new();
    for _ in 0..2 {
        assert!(core.acquire(now, &mut out).is_ok());
    }
    core.want_snapshot(0);
    ask(|out| core.started(0, now, out));
    // Given back without a reply, then replied while another is still held.
    assert_eq!(ask(|out| core.release(0, now, out)), []);
    assert_eq!(core.acquire(now, &mut out), Ok(Answer::Granted(0)));
    core.replied(0);
    assert_eq!(ask(|out| core.release(0, now, out)), []);
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Snapshot(0)]);
    // Who comes meanwhile waits for it rather than for another start, and scaling leaves it alone.
    assert_eq!(core.acquire(now, &mut out), Ok(Answer::Waits(2)));
    assert_eq!(ask(|out| core.resize(0, now, out)), []);
    let more = ask(|out| (0..2).for_each(|_| _ = core.acquire(now, out)));
    assert_eq!(more, [Action::Start(1)]);
    let back = ask(|out| core.snapshotted(0, false, now, out));
    assert_eq!(back, [Action::Grant(2, 0), Action::Grant(3, 0)]);
    // Once is enough.
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Grant(4, 0)]);
    assert_eq!(ask(|out| core.release(0, now, out)), []);
}

#[test]
fn one_that_waits_goes_before_the_snapshot_and_a_lost_instance_is_replaced() {
    let (mut core, now) = (core(1, 1), Instant::now());
    let mut out = Vec::new();
    (0..2).for_each(|_| assert!(core.acquire(now, &mut out).is_ok()));
    core.want_snapshot(0);
    ask(|out| core.started(0, now, out));
    core.replied(0);
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Grant(1, 0)]);
    assert_eq!(ask(|out| core.release(0, now, out)), [Action::Snapshot(0)]);
    assert_eq!(core.acquire(now, &mut out), Ok(Answer::Waits(2)));
    let lost = ask(|out| core.snapshotted(0, true, now, out));
    assert_eq!(lost, [Action::Stop(0), Action::Start(1)]);
    assert_eq!(ask(|out| core.started(1, now, out)), [Action::Grant(2, 1)]);
}

#[test]
fn a_prepared_instance_goes_after_its_snapshot_unless_it_is_wanted() {
    let (mut core, now) = (core(1, 2), Instant::now());
    assert_eq!(ask(|out| assert_eq!(core.prepare(now, out), Ok(0))), [Action::Start(0)]);
    assert!(core.is_prepared(0));
    // Whoever waits for it is told by the attempt that there is one already.
    core.saved();
    assert_eq!(ask(|out| core.started(0, now, out)), [Action::Snapshot(0)]);
    assert_eq!(ask(|out| core.snapshotted(0, false, now, out)), [Action::Stop(0)]);
    ask(|out| assert_eq!(core.prepare(now, out), Ok(1)));
    ask(|out| core.started(1, now, out));
    // Who asks meanwhile does not wait for a snapshot, but takes what comes first.
    assert_eq!(ask(|out| _ = core.acquire(now, out)), [Action::Start(2)]);
    assert_eq!(ask(|out| core.snapshotted(1, false, now, out)), [Action::Grant(0, 1)]);
    assert_eq!(core.prepare(now, &mut Vec::new()), Err(Refusal::AtMax));
}

#[test]
fn under_constant_load_an_instance_is_started_for_the_snapshot_that_waits() {
    for concurrency in [1, 2, 0] {
        let (mut core, mut now) = (core(concurrency, 0), Instant::now());
        ask(|out| _ = core.acquire(now, out));
        core.want_snapshot(0);
        assert_eq!(core.waits_since(), None);
        ask(|out| core.started(0, now, out));
        assert_eq!(core.waits_since(), Some(now));
        assert_eq!(core.poke_at(now), Some(now + PATIENCE));
        let began = now;
        // Whenever a slot comes back, somebody else has one or takes it.
        while now < began + PATIENCE {
            assert_eq!(ask(|out| core.poke(now, out)), []);
            let mut out = Vec::new();
            let next = core.acquire(now, &mut out);
            let waits = matches!(next, Ok(Answer::Waits(_)));
            assert_eq!((waits, out.is_empty()), (concurrency == 1, concurrency != 1));
            let begun = out.first().copied();
            core.replied(0);
            let back = ask(|out| core.release(0, now, out));
            assert!(!back.contains(&Action::Snapshot(0)));
            if let Some(Action::Start(no)) = begun {
                // The one that was begun for who waited has come too late.
                ask(|out| core.started(no, now, out));
                ask(|out| core.resize(1, now, out));
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(ask(|out| core.poke(now, out)), [Action::Overdue], "{concurrency}");
        let out = ask(|out| _ = core.prepare(now, out).expect("nothing limits it"));
        let [Action::Start(alone)] = out[..] else { panic!("{out:?}") };
        let again = now + PATIENCE;
        assert_eq!(ask(|out| core.poke(again, out)), [], "it is under way");
        assert_eq!(ask(|out| core.started(alone, now, out)), [Action::Snapshot(alone)]);
        assert_eq!(ask(|out| core.snapshotted(alone, false, now, out)), [Action::Stop(alone)]);
        core.saved();
        assert_eq!((core.waits_since(), core.poke_at(now)), (None, None));
        // The one that serves need not give one any more.
        assert_eq!(ask(|out| core.release(0, now, out)), []);
    }
}

#[test]
fn a_snapshot_that_cannot_be_taken_is_tried_ever_more_rarely() {
    // There may be but one instance, and it is never idle.
    let (mut core, mut now) = (core(1, 1), Instant::now());
    ask(|out| _ = core.acquire(now, out));
    core.want_snapshot(0);
    ask(|out| core.started(0, now, out));
    for pause in [30, 30, 60, 120] {
        let due = core.poke_at(now).expect("it is looked at again");
        assert_eq!(due - now, Duration::from_secs(pause));
        now = due;
        assert_eq!(ask(|out| core.poke(now, out)), [Action::Overdue]);
        assert_eq!(core.prepare(now, &mut Vec::new()), Err(Refusal::AtMax));
    }
    // Who could have given it is gone.
    ask(|out| core.died(0, now, out));
    let due = core.poke_at(now + FIRST).expect("once more");
    assert_eq!(ask(|out| core.poke(due, out)), []);
    assert_eq!(core.waits_since(), None);
}

#[test]
fn a_snapshot_of_who_has_been_asked_nothing_is_taken_of_an_instance_of_its_own() {
    let (mut core, now) = (core(1, 0), Instant::now());
    assert_eq!(ask(|out| core.want_alone(now, out)), [Action::Overdue]);
    assert_eq!(ask(|out| core.want_alone(now, out)), [], "once is enough");
    assert_eq!(ask(|out| _ = core.prepare(now, out)), [Action::Start(0)]);
    // It fails; nobody waits, and yet it is tried again.
    ask(|out| core.start_failed(0, now, out));
    let due = core.poke_at(now + FIRST).expect("it is looked at again");
    assert_eq!(due, now + PATIENCE);
    assert_eq!(ask(|out| core.poke(due, out)), [Action::Overdue]);
    ask(|out| core.close(out));
    assert_eq!(core.poke_at(due), None);
    assert_eq!(ask(|out| core.want_alone(due, out)), []);
}

#[test]
fn a_wish_for_a_snapshot_ends_with_an_eviction_or_another_policy() {
    let (mut core, now) = (core(1, 0), Instant::now());
    let wish = |core: &mut Core| ask(|out| core.want_alone(now, out));
    assert_eq!(wish(&mut core), [Action::Overdue]);
    ask(|out| _ = core.evict(now, out));
    assert_eq!((core.waits_since(), core.poke_at(now)), (None, None));
    // Nor does the reply of one that was serving then wish for it again.
    assert_eq!((wish(&mut core), core.waits_since()), (vec![], None));
    // As the next request does.
    core.dormant = false;
    for (policy, stays) in [((true, true), true), ((true, false), false), ((false, true), false)] {
        wish(&mut core);
        core.change_policy(policy.0, policy.1);
        assert_eq!(core.waits_since().is_some(), stays, "{policy:?}");
    }
    // One that serves is to give it when it idles: while the rest is evicted, nothing is started for that.
    ask(|out| _ = core.acquire(now, out));
    core.want_snapshot(0);
    ask(|out| core.started(0, now, out));
    assert_eq!(core.poke_at(now), Some(now + PATIENCE));
    ask(|out| _ = core.evict(now, out));
    let later = now + 2 * PATIENCE;
    assert_eq!((core.poke_at(now), ask(|out| core.poke(later, out))), (None, vec![]));
    assert_eq!(ask(|out| _ = core.acquire(later, out)), [Action::Start(1)]);
    assert_eq!(core.poke_at(later), Some(now + PATIENCE), "at once");
    assert_eq!(ask(|out| core.poke(later, out)), [Action::Overdue]);
    core.change_policy(false, false);
    assert_eq!(
        (core.waits_since(), ask(|out| core.release(0, later, out))),
        (None, vec![Action::Grant(1, 0)])
    );
}

#[test]
fn what_is_evicted_comes_back_with_the_next_request_only() {
    let (mut core, now) = (core(1, 0), Instant::now());
    ask(|out| core.resize(2, now, out));
    (0..2).for_each(|no| _ = ask(|out| core.started(no, now, out)));
    assert_eq!(core.acquire(now, &mut Vec::new()), Ok(Answer::Granted(0)));
    assert_eq!(ask(|out| assert_eq!(core.evict(now, out), 1)), [Action::Stop(1)]);
    assert_eq!(ask(|out| core.release(0, now, out)), []);
    assert_eq!(ask(|out| assert_eq!(core.evict(now, out), 1)), [Action::Stop(0)]);
    assert_eq!(ask(|out| core.resize(2, now, out)), []);
    let out = ask(|out| _ = core.acquire(now, out));
    assert_eq!(out, [Action::Start(2), Action::Start(3)]);
}

/// An event that the outside may cause; indices are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Acquire,
    Cancel(usize),
    Started(usize),
    StartFailed(usize),
    NoRoom(usize, bool),
    Release(usize),
    Broken(usize),
    Died(usize),
    Resize(u32),
    Pass(u64),
    Well(usize, bool),
    WantSnapshot(usize),
    WantAlone,
    Saved,
    Snapshotted(usize, bool),
    Prepare,
    Evict,
    Close,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => Just(Event::Acquire),
        1 => any::<usize>().prop_map(Event::Cancel),
        4 => any::<usize>().prop_map(Event::Started),
        1 => any::<usize>().prop_map(Event::StartFailed),
        1 => any::<(usize, bool)>().prop_map(|(n, may)| Event::NoRoom(n, may)),
        5 => any::<usize>().prop_map(Event::Release),
        1 => any::<usize>().prop_map(Event::Broken),
        1 => any::<usize>().prop_map(Event::Died),
        2 => (0_u32..6).prop_map(Event::Resize),
        1 => (0_u64..3000).prop_map(Event::Pass),
        2 => any::<(usize, bool)>().prop_map(|(n, well)| Event::Well(n, well)),
        2 => any::<usize>().prop_map(Event::WantSnapshot),
        1 => Just(Event::WantAlone),
        1 => Just(Event::Saved),
        2 => any::<(usize, bool)>().prop_map(|(n, lost)| Event::Snapshotted(n, lost)),
        1 => Just(Event::Prepare),
        1 => Just(Event::Evict),
    ];
    proptest::collection::vec(event, 0..120)
}

/// What an observer of the actions knows.
#[derive(Debug)]
struct Model {
    core: Core,
    bounds: Bounds,
    now: Instant,
    starting: BTreeSet<InstanceNo>,
    up: BTreeMap<InstanceNo, u32>,
    broken: BTreeSet<InstanceNo>,
    unwell: BTreeSet<InstanceNo>,
    /// Being snapshotted.
    saving: BTreeSet<InstanceNo>,
    waiting: BTreeSet<WaiterNo>,
    last_granted: Option<WaiterNo>,
    /// Room is being made; until `poke`, the waiting may have nothing to wait for.
    room_pending: bool,
    want: u32,
    closed: bool,
}

fn nth<T: Copy>(mut of: impl ExactSizeIterator<Item = T>, n: usize) -> Option<T> {
    if of.len() == 0 { None } else { of.nth(n % of.len()) }
}

impl Model {
    fn new(concurrency: u32, max: u32) -> Self {
        Self {
            core: core(concurrency, max),
            bounds: Bounds { concurrency, max },
            now: Instant::now(),
            starting: BTreeSet::new(),
            up: BTreeMap::new(),
            broken: BTreeSet::new(),
            unwell: BTreeSet::new(),
            saving: BTreeSet::new(),
            waiting: BTreeSet::new(),
            last_granted: None,
            room_pending: false,
            want: 0,
            closed: false,
        }
    }

    fn feed(&mut self, event: &Event) {
        let (mut out, now) = (Vec::new(), self.now);
        let mut lost = None;
        match *event {
            Event::Acquire => match self.core.acquire(now, &mut out) {
                Ok(Answer::Granted(no)) => {
                    assert!(self.waiting.is_empty(), "overtook the waiting");
                    self.lend(no);
                }
                Ok(Answer::Waits(waiter)) => assert!(self.waiting.insert(waiter)),
                Err(Refusal::Closing) => assert!(self.closed),
                Err(why) => assert!(matches!(why, Refusal::BackingOff(until) if until > now)),
            },
            Event::Cancel(n) => {
                let Some(waiter) = nth(self.waiting.iter().copied(), n) else { return };
                self.waiting.remove(&waiter);
                self.core.cancel(waiter);
            }
            Event::Started(n) => {
                let Some(no) = nth(self.starting.iter().copied(), n) else { return };
                self.starting.remove(&no);
                self.up.insert(no, 0);
                self.core.started(no, now, &mut out);
            }
            Event::StartFailed(n) => {
                let Some(no) = nth(self.starting.iter().copied(), n) else { return };
                self.starting.remove(&no);
                self.core.start_failed(no, now, &mut out);
            }
            Event::NoRoom(n, may_come) => {
                let Some(no) = nth(self.starting.iter().copied(), n) else { return };
                self.starting.remove(&no);
                self.room_pending |= may_come;
                self.core.no_room(no, may_come, &mut out);
            }
            Event::Release(n) | Event::Broken(n) => {
                let lent = self.up.iter().filter(|(_, leases)| **leases > 0);
                let lent: Vec<InstanceNo> = lent.map(|(no, _)| *no).collect();
                let Some(no) = nth(lent.into_iter(), n) else { return };
                if matches!(event, Event::Broken(_)) {
                    self.broken.insert(no);
                    self.core.broken(no, now, &mut out);
                }
                *self.up.get_mut(&no).unwrap() -= 1;
                if n % 3 > 0 {
                    self.core.replied(no);
                }
                self.core.release(no, now, &mut out);
            }
            Event::Died(n) => {
                let Some(no) = nth(self.up.keys().copied(), n) else { return };
                lost = Some(no);
                self.core.died(no, now, &mut out);
            }
            Event::Well(n, true) => {
                let Some(no) = nth(self.unwell.iter().copied(), n) else { return };
                self.unwell.remove(&no);
                self.core.set_well(no, true, now, &mut out);
            }
            Event::Well(n, false) => {
                let Some(no) = nth(self.up.keys().copied(), n) else { return };
                self.unwell.insert(no);
                self.core.set_well(no, false, now, &mut out);
            }
            Event::WantSnapshot(n) => {
                let Some(no) = nth(self.starting.iter().copied(), n) else { return };
                self.core.want_snapshot(no);
            }
            Event::WantAlone => self.core.want_alone(now, &mut out),
            Event::Saved => self.core.saved(),
            Event::Snapshotted(n, is_lost) => {
                let Some(no) = nth(self.saving.iter().copied(), n) else { return };
                self.saving.remove(&no);
                self.core.snapshotted(no, is_lost, now, &mut out);
            }
            Event::Prepare => match self.core.prepare(now, &mut out) {
                Ok(no) => assert!(self.core.is_prepared(no)),
                Err(Refusal::BackingOff(until)) => assert!(until > now),
                Err(Refusal::Closing) => assert!(self.closed),
                Err(why) => assert_eq!(why, Refusal::AtMax),
            },
            Event::Evict => {
                let gone = self.core.evict(now, &mut out) as usize;
                let stops = out.iter().filter(|action| matches!(action, Action::Stop(_))).count();
                assert_eq!(gone, stops + self.saving.len());
            }
            Event::Resize(want) => {
                self.want = want;
                self.core.resize(want, now, &mut out);
            }
            Event::Close => {
                self.closed = true;
                self.core.close(&mut out);
            }
            Event::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.room_pending = false;
                self.core.poke(self.now, &mut out);
            }
        }
        self.take(&out, lost);
        self.check();
        if out.contains(&Action::Overdue) {
            self.feed(&Event::Prepare);
        }
        if self.closed || matches!(event, Event::StartFailed(_)) {
            assert!(self.waiting.is_empty() || self.can_serve(), "waits for what may never be");
        }
    }

    /// Whether somebody who waits has something to wait for that nothing says will not come.
    fn can_serve(&self) -> bool {
        let mut up = self.up.keys();
        let sound = |no| !self.broken.contains(no) && !self.unwell.contains(no);
        self.room_pending || !self.starting.is_empty() || up.any(sound)
    }

    fn take(&mut self, out: &[Action], lost: Option<InstanceNo>) {
        for action in out {
            match *action {
                Action::Start(no) => assert!(self.starting.insert(no), "number used twice"),
                Action::Grant(waiter, no) => {
                    assert!(self.waiting.remove(&waiter), "granted to one who does not wait");
                    assert!(self.last_granted < Some(waiter), "out of order");
                    self.last_granted = Some(waiter);
                    self.lend(no);
                }
                Action::Fail(waiter, _) => {
                    assert!(self.waiting.remove(&waiter), "failed one who does not wait");
                }
                Action::Overdue => assert!(!self.closed, "asks for what a closed pool refuses"),
                Action::Stop(no) => {
                    let leases = self.up.remove(&no).expect("only what is up is stopped");
                    assert!(leases == 0 || lost == Some(no), "stopped while it serves");
                    self.broken.remove(&no);
                    self.saving.remove(&no);
                    self.unwell.remove(&no);
                }
                Action::Snapshot(no) => {
                    assert_eq!(self.up.get(&no), Some(&0), "a snapshot of what is lent");
                    assert!(self.saving.insert(no) && !self.broken.contains(&no));
                    assert!(!self.unwell.contains(&no), "a snapshot of what is unwell");
                }
            }
        }
    }

    fn lend(&mut self, no: InstanceNo) {
        assert!(!self.broken.contains(&no), "lent a broken instance");
        assert!(!self.saving.contains(&no), "lent while it is snapshotted");
        assert!(!self.unwell.contains(&no), "lent while it is unwell");
        let leases = self.up.get_mut(&no).expect("only what is up is lent");
        *leases += 1;
        assert!(self.bounds.concurrency == 0 || *leases <= self.bounds.concurrency);
    }

    fn check(&self) {
        let counts = self.core.counts();
        assert_eq!(counts.queued as usize, self.waiting.len());
        assert_eq!(counts.starting as usize, self.starting.len());
        assert_eq!(counts.ready as usize, self.up.len() - self.broken.len());
        assert_eq!(counts.leases, self.up.values().sum::<u32>());
        let live = self.up.len() - self.broken.len() + self.starting.len();
        assert!(self.bounds.max == 0 || live <= self.bounds.max as usize, "above max");
        if !self.waiting.is_empty() {
            assert!(live > 0 || self.room_pending, "waits for nothing");
            let withheld = |no| self.saving.contains(no) || self.unwell.contains(no);
            let lendable = |no| !self.broken.contains(no) && !withheld(no);
            let sound = self.up.iter().filter(|(no, _)| lendable(no));
            for (no, leases) in sound {
                let full = self.bounds.concurrency > 0 && *leases >= self.bounds.concurrency;
                assert!(full, "waits although {no} has a free slot");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_sequence_of_events_keeps_the_promises(
        concurrency in 0_u32..4,
        max in 0_u32..4,
        events in events(),
    ) {
        let mut model = Model::new(concurrency, max);
        for event in &events {
            model.feed(event);
        }
        // Whatever came before: if starts succeed and requests end, nobody waits for ever, what is
        // wanted is there, and nothing is left of what is not wanted.
        model.feed(&Event::Pass(61_000));
        model.feed(&Event::Acquire);
        for _ in 0..1000 {
            model.feed(&Event::Pass(61_000));
            model.feed(&Event::Started(0));
            model.feed(&Event::Snapshotted(0, false));
            model.feed(&Event::Well(0, true));
            model.feed(&Event::Release(0));
        }
        prop_assert!(model.waiting.is_empty());
        let wanted = if max == 0 { model.want } else { model.want.min(max) };
        prop_assert!(model.up.len() >= wanted as usize);
        model.feed(&Event::Resize(0));
        prop_assert!(model.up.is_empty() && model.starting.is_empty(), "{:?}", model);
    }

    #[test]
    fn a_closed_pool_empties_itself_although_nothing_gets_well_again(
        concurrency in 0_u32..4,
        max in 0_u32..4,
        before in events(),
        after in events(),
    ) {
        let mut model = Model::new(concurrency, max);
        for event in before.iter().chain([&Event::Close]).chain(&after) {
            model.feed(event);
        }
        while !model.starting.is_empty() {
            model.feed(&Event::Started(0));
        }
        while !model.saving.is_empty() {
            model.feed(&Event::Snapshotted(0, false));
        }
        while model.up.values().any(|leases| *leases > 0) {
            model.feed(&Event::Release(0));
        }
        model.feed(&Event::Pass(61_000));
        prop_assert!(model.waiting.is_empty() && model.up.is_empty(), "{:?}", model);
    }
}

//! Small cases worked out by hand, what must hold for any, and the policies driven directly.

use std::time::Duration;

use proptest::prelude::*;
use vhive_api::{Bytes, SnapshotPolicy, Span, StartKind};
use vhive_load::Work;
use vhive_load::trace::{Function, Invocation, Source};
use vhive_policy::autoscale::{BREATH, PolicyKind, Pool, Rules, Sample, policy};

use super::cell::{Common, Ns, nanos};
use super::starts::One;
use super::together::{Nodes, TurnsOf};
use super::*;
use crate::simulate::tally::Tally;

const SECOND: Ns = 1_000_000_000;
const MIB: u64 = 1 << 20;

/// A function that is called at these milliseconds, for so many milliseconds each.
fn function(calls: &[(u64, u32)], memory_mib: u32) -> Function {
    let all = calls.iter().map(|(at, runtime_ms)| Invocation {
        at_ns: at * 1_000_000,
        work: Work { runtime_ms: *runtime_ms, memory_mib },
    });
    Function { name: "f".to_owned(), source: Source::Exact(all.collect()) }
}

fn workload(functions: Vec<Function>, minutes: usize) -> Workload {
    Workload::of(functions, minutes, "equidistant".parse().expect("a distribution"), 1)
}

/// Starts that take so many seconds by kind, first requests half a second longer than others.
fn starts(boot: Ns) -> Starts {
    let half = SECOND / 2;
    let kinds = [
        (StartKind::Boot, boot, 0),
        (StartKind::Record, boot / 2, half),
        (StartKind::Reap, boot / 4, half),
    ];
    Starts::new(vec![Profile::exact("f", &kinds, None)]).expect("boots")
}

fn common(kind: PolicyKind, seconds: u64, snapshot: SnapshotPolicy) -> Common {
    let span = Some(Span(Duration::from_secs(seconds)));
    let plan = PolicyPlan { keep_alive: span, window: span, ..PolicyPlan::of(kind) };
    let function = FunctionPlan { snapshot, ..FunctionPlan::default() };
    Common {
        rules: plan.rules(1),
        tick: Duration::from_secs(1),
        late: 0,
        begins: 0,
        leaves_out: true,
        function,
    }
}

fn lone(common: &Common, calls: &[(u64, u32)], minutes: usize) -> Tally {
    alone::run(common, (&workload(vec![function(calls, 100)], minutes), &starts(2 * SECOND)), 1, 1)
}

fn on(common: &Common, functions: Vec<Function>, (memory_mib, count): (u64, usize)) -> Tally {
    let nodes = Nodes {
        count,
        memory: memory_mib * MIB,
        placement: Placement::FirstFit,
        turns: TurnsOf::default(),
    };
    together::run(common, (&workload(functions, 5), &starts(2 * SECOND)), 1, nodes)
}

#[test]
fn a_keep_alive_of_a_minute_is_as_worked_out_by_hand() {
    // Boots take 2 s. Called at 0 s: ready at 2, done at 3. At 10 s: warm, done at 11, kept until
    // 71. At 200 s: ready at 202, done at 203, kept until 263.
    let common = common(PolicyKind::Fixed, 60, SnapshotPolicy::Off);
    let tally = lone(&common, &[(0, 1000), (10_000, 1000), (200_000, 1000)], 5);
    assert_eq!((tally.invocations, tally.warm, tally.queued), (3, 1, 0));
    assert_eq!(tally.cold[tally::index(StartKind::Boot)], 2);
    assert_eq!(tally.lived_ns, u128::from((71 + 63) * SECOND));
    assert_eq!(tally.worked_ns, u128::from(3 * SECOND));
    assert_eq!(tally.idled_ns, u128::from((7 + 60 + 60) * SECOND));
    assert_eq!(tally.memory, tally.lived_ns * u128::from(100 * MIB));
    assert_eq!(tally.idle_memory, tally.idled_ns * u128::from(100 * MIB));
    assert_eq!(
        (tally.added.n(), tally.added.quantile(1.0), tally.added.quantile(0.3)),
        (3, 2_000_000, 0)
    );
    let seconds: Vec<u64> = tally.seconds().map(|(instances, _)| instances).collect();
    for (second, count) in seconds.iter().enumerate() {
        let there = second < 71 || (200..263).contains(&second);
        assert_eq!(*count, u64::from(there), "second {second}");
    }
}

#[test]
fn a_request_gets_whichever_comes_first_a_start_or_a_slot() {
    // Called at 0 for 5 s: busy from 2 to 7. At 6.5 s another start begins, but at 7 a slot is
    // there; what has been started for it is there at 8.5 s.
    let common = common(PolicyKind::Fixed, 60, SnapshotPolicy::Off);
    let tally = lone(&common, &[(0, 5000), (6500, 1000)], 5);
    assert_eq!((tally.queued, tally.warm), (1, 0));
    assert_eq!(tally.cold.iter().sum::<u64>(), 1);
    assert_eq!(tally.starts.iter().sum::<u64>(), 2);
    assert_eq!(tally.added_ns, u128::from(2 * SECOND + SECOND / 2));
    // Called at 0 and at 1.9 s, for half a second: the instance that is ready at 2 serves both, and
    // neither found it ready.
    let tally = lone(&common, &[(0, 500), (1900, 500)], 5);
    assert_eq!((tally.queued, tally.warm, tally.cold.iter().sum::<u64>()), (0, 0, 2));
    assert_eq!(tally.added_ns, u128::from(2 * SECOND + 600_000_000));
}

#[test]
fn the_first_start_boots_the_second_records_and_the_others_prefetch() {
    let common = common(PolicyKind::Fixed, 5, SnapshotPolicy::Reap);
    let calls = [(0, 1000), (60_000, 1000), (120_000, 1000), (180_000, 1000)];
    let tally = lone(&common, &calls, 5);
    let count = |kind| tally.cold[tally::index(kind)];
    use StartKind::{Boot, Reap, Record};
    assert_eq!((count(Boot), count(Record), count(Reap)), (1, 1, 2));
    // 2 s, then 1 s and half a second longer, then twice half a second and half a second longer.
    let added = 2 * SECOND + (SECOND + SECOND / 2) + 2 * SECOND;
    assert_eq!(tally.added_ns, u128::from(added));
}

#[test]
fn a_node_without_room_evicts_what_idles_and_refuses_what_cannot_be_placed() {
    let common = common(PolicyKind::Fixed, 600, SnapshotPolicy::Off);
    // The second function finds the first one's instance idle and takes its room, and then the
    // other way round.
    let two =
        || vec![function(&[(0, 1000), (60_000, 1000)], 100), function(&[(30_000, 1000)], 100)];
    let tally = on(&common, two(), (150, 1));
    assert_eq!((tally.cold.iter().sum::<u64>(), tally.evicted, tally.refused), (3, 2, 0));
    let tally = on(&common, two(), (200, 1));
    assert_eq!((tally.cold.iter().sum::<u64>(), tally.warm, tally.evicted), (2, 1, 0));
    let tally = on(&common, two(), (100, 2));
    assert_eq!((tally.cold.iter().sum::<u64>(), tally.warm, tally.evicted), (2, 1, 0));
    // Both at a time: nothing idles, so the second is refused.
    let both = vec![function(&[(0, 1000)], 100), function(&[(500, 1000)], 100)];
    let tally = on(&common, both, (150, 1));
    assert_eq!((tally.cold.iter().sum::<u64>(), tally.evicted, tally.refused), (1, 0, 1));
    assert_eq!(tally.invocations, 2);
}

#[test]
fn a_snapshot_is_where_it_was_taken() {
    let common = common(PolicyKind::Fixed, 5, SnapshotPolicy::Reap);
    let calls: Vec<(u64, u32)> = (0..4).map(|n| (n * 60_000, 1000)).collect();
    let kinds = |placement| {
        let nodes = Nodes { count: 2, memory: 1000 * MIB, placement, turns: TurnsOf::default() };
        let functions = workload(vec![function(&calls, 100)], 5);
        let tally = together::run(&common, (&functions, &starts(2 * SECOND)), 1, nodes);
        [StartKind::Boot, StartKind::Record, StartKind::Reap]
            .map(|kind| tally.cold[tally::index(kind)])
    };
    assert_eq!(kinds(Placement::ConsistentHash), [1, 1, 2]);
    assert_eq!(kinds(Placement::RoundRobin), [2, 2, 0], "a boot and a recording on each node");
}

/// Nodes with room for everything whose starts take turns.
fn with_turns(count: usize, each: u32) -> Nodes {
    let turns = TurnsOf { each, most: 10 * SECOND };
    Nodes { count, memory: 1 << 50, placement: Placement::RoundRobin, turns }
}

#[test]
fn a_burst_of_starts_takes_as_many_rounds_as_its_turns_make() {
    let common = common(PolicyKind::Fixed, 600, SnapshotPolicy::Off);
    for (count, each, nodes) in [(1, 1, 1), (7, 2, 1), (8, 2, 1), (9, 4, 1), (3, 5, 1), (12, 2, 3)]
    {
        let of_one = vec![function(&vec![(0, 200_000); count], 100)];
        let of_many = (0..count).map(|_| function(&[(0, 200_000)], 100)).collect();
        for functions in [of_one, of_many] {
            let all = (&workload(functions, 5), &starts(2 * SECOND));
            let tally = together::run(&common, all, 1, with_turns(nodes, each));
            let at_a_time = usize::try_from(each).expect("few") * nodes;
            let rounds = count.div_ceil(at_a_time) as u64;
            assert_eq!(tally.added.quantile(1.0), rounds * 2_000_000, "{count} by {each}");
            // Each round takes 2 s, and whoever is in it has waited for those before.
            let waited: u64 = (0..count).map(|nth| (nth / at_a_time) as u64 * 2).sum();
            assert_eq!(tally.turn_ns, u128::from(waited * SECOND));
            assert_eq!(tally.added_ns, u128::from((waited + 2 * count as u64) * SECOND));
            assert_eq!(tally.starts[tally::index(StartKind::Boot)], count as u64);
        }
    }
}

#[test]
fn a_start_holds_its_turn_as_long_as_the_node_lets_it() {
    // The image takes a second, then the turn begins; 2 s later the function has been probed for 1 s,
    // which is the most, and after 2 s more it is ready.
    let one = One { ready: 5 * SECOND, before: SECOND, probed: 3 * SECOND, ..One::default() };
    let starts = Starts::new(vec![Profile::only("f", StartKind::Boot, one)]).expect("boots");
    let common = common(PolicyKind::Fixed, 600, SnapshotPolicy::Off);
    let workload = workload(vec![function(&[(0, 60_000), (0, 60_000)], 100)], 5);
    let mut nodes = with_turns(1, 1);
    nodes.turns.most = SECOND;
    let tally = together::run(&common, (&workload, &starts), 1, nodes);
    assert_eq!((tally.turn_ns, tally.added_ns), (2_000_000_000, u128::from((5 + 7) * SECOND)));
    nodes.turns.most = 10 * SECOND;
    let tally = together::run(&common, (&workload, &starts), 1, nodes);
    assert_eq!((tally.turn_ns, tally.added_ns), (4_000_000_000, u128::from((5 + 9) * SECOND)));
}

#[test]
fn how_an_instance_starts_is_decided_when_it_has_its_turn() {
    // One turn, boots of 2 s: the second one begins before the first reply, the third one after it.
    let common = common(PolicyKind::Fixed, 600, SnapshotPolicy::Reap);
    let workload = workload(vec![function(&[(0, 500), (0, 500), (0, 500)], 100)], 5);
    let run = |each| {
        let tally =
            together::run(&common, (&workload, &starts(2 * SECOND)), 1, with_turns(1, each));
        [StartKind::Boot, StartKind::Record].map(|kind| tally.starts[tally::index(kind)])
    };
    assert_eq!((run(1), run(3), run(0)), ([2, 1], [3, 0], [3, 0]));
}

/// Calls of one function: after a pause, for a time, in milliseconds.
fn calls() -> impl Strategy<Value = Vec<(u64, u32)>> {
    prop::collection::vec((0..40_000_u64, 1..5_000_u32), 1..25).prop_map(|pauses| {
        let mut at = 0;
        pauses
            .into_iter()
            .map(|(pause, runtime)| {
                at += pause;
                (at, runtime)
            })
            .collect()
    })
}

fn kinds() -> impl Strategy<Value = PolicyKind> {
    prop::sample::select(vec![PolicyKind::Kpa, PolicyKind::Fixed, PolicyKind::Histogram])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_invocation_is_counted_once_and_threads_change_nothing(
        all in prop::collection::vec(calls(), 1..40),
        kind in kinds(),
    ) {
        let functions: Vec<Function> = all.iter().map(|calls| function(calls, 100)).collect();
        let count: usize = all.iter().map(Vec::len).sum();
        let (workload, starts) = (workload(functions, 20), starts(2 * SECOND));
        let common = common(kind, 60, SnapshotPolicy::Reap);
        let one = alone::run(&common, (&workload, &starts), 7, 1);
        let cold: u64 = one.cold.iter().sum();
        prop_assert_eq!(one.invocations, count as u64);
        prop_assert_eq!(one.warm + one.queued + cold + one.refused, one.invocations);
        prop_assert_eq!(one.added.n(), one.invocations);
        prop_assert_eq!(&one, &alone::run(&common, (&workload, &starts), 7, 3));
        // Nodes with room for everything are no different, wherever it goes.
        let nodes =
            Nodes { count: 1, memory: 1 << 50, placement: Placement::LeastLoaded, turns: TurnsOf::default() };
        prop_assert_eq!(&one, &together::run(&common, (&workload, &starts), 7, nodes));
    }

    #[test]
    fn nodes_never_hold_more_than_their_memory(
        all in prop::collection::vec(calls(), 1..12),
        kind in kinds(),
        placement in prop::sample::select(Placement::ALL.to_vec()),
    ) {
        let functions: Vec<Function> = all.iter().map(|calls| function(calls, 100)).collect();
        let (workload, starts) = (workload(functions, 20), starts(2 * SECOND));
        let common = common(kind, 60, SnapshotPolicy::Reap);
        let nodes = Nodes { count: 3, memory: 250 * MIB, placement, turns: TurnsOf::default() };
        let tally = together::run(&common, (&workload, &starts), 7, nodes);
        let cold: u64 = tally.cold.iter().sum();
        prop_assert_eq!(tally.warm + tally.queued + cold + tally.refused, tally.invocations);
        // Two instances on each of three nodes. A second may see those that made room and those
        // that took it.
        let room = u128::from(3 * 200 * MIB) * u128::from(20 * 60 * SECOND);
        prop_assert!(tally.memory <= room);
        prop_assert_eq!(&tally, &together::run(&common, (&workload, &starts), 7, nodes));
    }

    #[test]
    fn as_many_turns_as_starts_are_no_limit_and_fewer_lose_nobody(
        all in prop::collection::vec(calls(), 1..12),
        kind in kinds(),
        (each, count) in (1..4_u32, 1..4_usize),
        snapshot in prop::sample::select(vec![SnapshotPolicy::Off, SnapshotPolicy::Reap]),
    ) {
        let functions: Vec<Function> = all.iter().map(|calls| function(calls, 100)).collect();
        let (workload, starts) = (workload(functions, 20), starts(2 * SECOND));
        let common = common(kind, 60, snapshot);
        let run = |each| together::run(&common, (&workload, &starts), 7, with_turns(count, each));
        let (free, enough, few) = (run(0), run(1000), run(each));
        prop_assert!(free == enough && free.turn_ns == 0);
        prop_assert!(few == run(each), "the same once more");
        let cold: u64 = few.cold.iter().sum();
        prop_assert_eq!(few.warm + few.queued + cold, few.invocations);
        prop_assert_eq!(few.invocations, free.invocations);
    }

    #[test]
    fn looks_that_are_left_out_change_nothing(
        all in prop::collection::vec(calls(), 1..20),
        kind in kinds(),
        (seconds, concurrency, delay) in (6..700_u64, 0..3_u32, 0..3_u64),
        (target, min, late) in (1.0..100.0_f64, 0..2_u32, 0..2_u64),
        begins in prop::sample::select(vec![0_u64, 123_456_789, 59_700_000_001]),
        node_mib in prop::sample::select(vec![250_u64, 1000, 100_000]),
        turns in 0..3_u32,
    ) {
        let functions: Vec<Function> = all.iter().map(|calls| function(calls, 100)).collect();
        let (workload, starts) = (workload(functions, 30), starts(2 * SECOND));
        let mut common = common(kind, seconds, SnapshotPolicy::Reap);
        common.function.concurrency = concurrency;
        common.rules.target = target / 100.0 * f64::from(concurrency.max(1));
        common.rules.total = f64::from(concurrency.max(1));
        common.rules.min = min;
        common.rules.scale_down_delay = Span(Duration::from_secs(20 * delay));
        (common.late, common.begins) = (late * 1_000_000, begins);
        let run = |common: &Common| {
            let nodes =
                Nodes { count: 2, memory: node_mib * MIB, placement: Placement::LeastLoaded, turns: TurnsOf { each: turns, most: 10 * SECOND } };
            (
                alone::run(common, (&workload, &starts), 7, 1),
                together::run(common, (&workload, &starts), 7, nodes),
            )
        };
        let some = run(&common);
        common.leaves_out = false;
        let (alone, nodes) = run(&common);
        // Without the words of two tallies, which are long.
        let figures = |tally: &Tally| (tally.looks, tally.cold, tally.queued, tally.lived_ns);
        prop_assert!(some.0 == alone, "{:?} and {:?}", figures(&some.0), figures(&alone));
        prop_assert!(some.1 == nodes, "{:?} and {:?}", figures(&some.1), figures(&nodes));
    }

    #[test]
    fn instances_are_as_many_as_the_policy_wants_when_driven_directly(
        pauses in prop::collection::vec((0..200_000_u64, 1..15_000_u32), 1..25),
        kind in kinds(),
    ) {
        // One request after the other, and starts that take no time: then there are as many
        // instances as the policy wants.
        let mut at = 0;
        let calls: Vec<(u64, u32)> = pauses.into_iter().map(|(pause, runtime)| {
            at += pause;
            let this = (at, runtime);
            at += u64::from(runtime) + 1;
            this
        }).collect();
        let common = common(kind, 60, SnapshotPolicy::Off);
        let minutes = 120;
        let workload = workload(vec![function(&calls, 1)], minutes);
        let tally = alone::run(&common, (&workload, &starts(0)), 1, 1);
        let horizon = 60 * SECOND * minutes as u64;
        prop_assert_eq!(tally.lived_ns, directly(&common.rules, &calls, horizon));
    }
}

/// Instance-nanoseconds that a policy wants for calls that do not overlap, asked as the node's
/// scaler asks it.
fn directly(rules: &Rules, calls: &[(u64, u32)], horizon: Ns) -> u128 {
    let tick = SECOND;
    let ms = 1_000_000;
    let calls: Vec<(Ns, Ns)> =
        calls.iter().map(|(at, runtime)| (at * ms, (at + u64::from(*runtime)) * ms)).collect();
    let (mut ready, mut since, mut lived) = (0_u32, 0, 0_u128);
    let mut have = |count: u32, now: Ns, ready: &mut u32| {
        lived += u128::from(*ready) * u128::from(now.min(horizon).saturating_sub(since));
        (*ready, since) = (count, now.min(horizon));
    };
    let mut asked: Option<Box<dyn vhive_policy::autoscale::Policy>> = None;
    let (mut watched, mut wanted) = (false, None::<u32>);
    let (mut due, mut poked) = (None::<Ns>, None::<Ns>);
    let (mut sampled, mut next) = (0, 0);
    loop {
        // The next call while nobody looks, or the next look.
        let look = [due, poked].into_iter().flatten().min();
        let comes = calls.get(next).map(|(at, _)| *at);
        if let Some(comes) = comes.filter(|comes| look.is_none_or(|look| *comes < look)) {
            next += 1;
            if !watched || ready == 0 {
                poked = poked.or(Some(comes + nanos(BREATH)));
            }
            if !watched {
                (watched, sampled) = (true, comes);
            }
            if ready == 0 {
                have(1, comes, &mut ready);
            }
            continue;
        }
        let Some(look) = look else { break };
        poked = poked.filter(|poked| *poked != look);
        let from = sampled;
        let sample = seen(&calls[..next], (from, look));
        sampled = look;
        let (now, pool) =
            (Duration::from_nanos(look), Pool { ready, starting: 0, reachable: true });
        let mut policy =
            asked.take().unwrap_or_else(|| policy(rules, Duration::from_nanos(tick), now));
        policy.observe(&sample);
        let decision = policy.decide(now, &pool);
        let mut again = decision.again.map(nanos);
        wanted = decision.want.or(wanted);
        if let Some(want) = wanted {
            if ready > want {
                again = Some(again.map_or(look + tick, |again| again.min(look + tick)));
            }
            have(want, look, &mut ready);
        }
        due = match again {
            Some(again) if again <= look + tick => Some(again.max(look + nanos(BREATH))),
            again if sample.arrivals == 0 && sample.in_flight == 0 => {
                watched = false;
                again
            }
            _ => Some(look + tick),
        };
        if due.is_some() || policy.learns() { asked = Some(policy) } else { wanted = None }
    }
    have(0, horizon, &mut ready);
    lived
}

/// What was seen of calls that do not overlap, in a stretch of time.
fn seen(calls: &[(Ns, Ns)], (from, to): (Ns, Ns)) -> Sample {
    let within = |at: Ns| at.clamp(from, to);
    let area: Ns = calls.iter().map(|(begin, end)| within(*end) - within(*begin)).sum();
    let new: Vec<usize> = (0..calls.len()).filter(|n| calls[*n].0 >= from).collect();
    let gaps = new.iter().filter(|n| **n > 0).map(|n| calls[*n].0 - calls[*n - 1].1);
    let last = calls.last().map_or(from, |(_, end)| *end);
    let running = calls.iter().filter(|(_, end)| *end > from).count();
    Sample {
        from: Duration::from_nanos(from),
        to: Duration::from_nanos(to),
        area: area as f64 / 1e9,
        arrivals: u32::try_from(new.len()).unwrap_or(u32::MAX),
        peak: u32::from(running > 0),
        in_flight: u32::from(last > to),
        busy_until: Duration::from_nanos(last.min(to)),
        gaps: u32::try_from(gaps.clone().count()).unwrap_or(u32::MAX),
        longest_gap: Duration::from_nanos(gaps.max().unwrap_or(0)),
    }
}

#[test]
fn a_plan_becomes_rows_and_the_same_seed_the_same_ones() {
    let plan = SimPlan {
        trace: TracePlan { functions: 60, minutes: 30, ..TracePlan::default() },
        cluster: ClusterPlan {
            nodes: 3,
            memory: Bytes::mib(4096),
            placements: Placement::ALL.to_vec(),
            ..ClusterPlan::default()
        },
        ..SimPlan::default()
    };
    let run = |plan: &SimPlan| {
        let workload = Workload::load(plan).expect("a day");
        simulate(plan, (&workload, &starts(SECOND)), |_| ())
    };
    let outcomes = run(&plan);
    assert_eq!(outcomes.len(), 6 * 4);
    assert_eq!(outcomes, run(&plan));
    assert_ne!(outcomes, run(&SimPlan { seed: 2, ..plan.clone() }));
    let lone = |start_threads| {
        let cluster = ClusterPlan { start_threads, ..ClusterPlan::default() };
        run(&SimPlan { cluster, ..plan.clone() })
    };
    let free = lone(0);
    assert_eq!(free, lone(1000), "a node without a limit on which no start waits");
    assert!(lone(1).iter().zip(&free).all(|(few, free)| few.invocations == free.invocations));
    assert!(lone(1).iter().any(|few| few.turn_wait_s > 0.0));
    for one in &outcomes {
        assert!(one.invocations > 0);
        assert_eq!(one.warm + one.queued + one.cold + one.refused, one.invocations);
        assert_eq!(one.minutes.len(), 30);
        assert_eq!(one.minutes.iter().map(|m| m.invocations).sum::<u64>(), one.invocations);
    }
}

//! Workflows: what is sent behind what, and what a failure does.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vhive_load::{
    Flow, Flows, Load, Outcome, Protocol, Ran, Row, Shot, Step, Stop, Target, Work, open_flows,
};

use crate::peer::{listen, load, on_one_thread, sorted};

const MS: u64 = 1_000_000;

/// Hosts in `bad` are told to fail so many times.
async fn server(bad: &[(&str, u32)]) -> String {
    server_that(bad, || {}).await
}

/// The same; `on_failure` is called before each reply that is a failure.
async fn server_that(
    bad: &[(&str, u32)],
    on_failure: impl Fn() + Clone + Send + Sync + 'static,
) -> String {
    let bad: HashMap<String, u32> = bad.iter().map(|(host, n)| ((*host).to_owned(), *n)).collect();
    let bad = Arc::new(Mutex::new(bad));
    listen(move |_, mut stream| {
        let (bad, on_failure) = (Arc::clone(&bad), on_failure.clone());
        async move {
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let host = text.split("host: ").nth(1).and_then(|rest| rest.lines().next());
                let fails = {
                    let mut bad = bad.lock().expect("nobody panics");
                    let left = bad.get_mut(host.expect("a host")).filter(|left| **left > 0);
                    left.map(|left| *left -= 1).is_some()
                };
                tokio::time::sleep(Duration::from_millis(5)).await;
                if fails {
                    on_failure();
                }
                let status = if fails { "503 Busy" } else { "200 OK" };
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// 0 → 1 → 2, and 3 → 4 branching off from 0; 5 stands alone.
fn load_and_flow(address: &str) -> (Load, Flow) {
    let mut load = load(address, Protocol::Http1);
    let target = |n: u32| Target { hostname: format!("f{n}"), ..load.targets[0].clone() };
    load.targets = (0..6).map(target).collect();
    let step = |target, depth, then, branches: &[usize]| Step {
        target,
        depth,
        then,
        branches: branches.to_vec(),
    };
    let steps = vec![
        step(0, 0, Some(1), &[3]),
        step(1, 1, Some(2), &[]),
        step(2, 2, None, &[]),
        step(3, 1, Some(4), &[]),
        step(4, 2, None, &[]),
    ];
    (load, Flow::new(steps).expect("a tree"))
}

async fn run(load: &Load, flow: Flow, shots: Vec<Shot>, stop: &Stop) -> (Vec<Row>, Ran) {
    let work = |target: u32, nth: u64| {
        let runtime_ms = target * 100 + u32::try_from(nth).expect("few");
        Some(Work { runtime_ms, memory_mib: 1 })
    };
    let (out, rows) = channel();
    let flows = Flows::new(vec![flow], Box::new(work));
    let ran = open_flows(load, shots, flows, out, stop).await.expect("a run");
    (sorted(rows.into_iter().flatten().collect()), ran)
}

/// What the schedule says, by what a run tells.
fn planned(ran: &Ran) -> u64 {
    ran.sent - ran.retries + ran.unsent + ran.unfollowed
}

fn shot(at_ms: u64, target: u32, nth: u32) -> Shot {
    Shot { at_ns: at_ms * MS, target, work: None, nth }
}

fn of(rows: &[Row], target: u32) -> Vec<&Row> {
    rows.iter().filter(|row| row.target == target).collect()
}

#[test]
fn each_step_is_sent_once_the_one_before_has_succeeded() {
    on_one_thread(async {
        let (load, flow) = load_and_flow(&server(&[]).await);
        let shots = vec![shot(0, 0, 0), shot(1, 5, 0), shot(40, 0, 1)];
        let (rows, ran) = run(&load, flow, shots, &Stop::default()).await;
        assert_eq!((rows.len(), ran.sent, ran.unsent, ran.unfollowed), (11, 11, 0, 0));
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        for nth in [0, 1] {
            let one = |target| of(&rows, target)[nth];
            for (before, after) in [(0, 1), (1, 2), (0, 3), (3, 4)] {
                let (before, after) = (one(before), one(after));
                assert!(after.intended_ns >= before.done_ns, "{before:?} {after:?}");
                assert_eq!(after.flow_ns, Some(one(0).intended_ns));
                assert_eq!(u64::from(after.nth), nth as u64);
                let work = after.work.expect("drawn");
                assert_eq!(u64::from(work.runtime_ms), u64::from(after.target) * 100 + nth as u64);
            }
            assert_eq!(one(0).flow_ns, None);
        }
        assert_eq!(of(&rows, 5)[0].flow_ns, None, "a request alone");
    });
}

#[test]
fn a_step_that_fails_is_tried_once_more_and_then_ends_its_chain_only() {
    on_one_thread(async {
        let (load, flow) = load_and_flow(&server(&[("f1", 2), ("f3", 1)]).await);
        let (rows, ran) = run(&load, flow, vec![shot(0, 0, 0)], &Stop::default()).await;
        let outcomes = |target| of(&rows, target).iter().map(|row| row.outcome).collect::<Vec<_>>();
        assert_eq!(outcomes(1), [Outcome::Error, Outcome::Error]);
        assert_eq!(outcomes(2), []);
        assert_eq!(outcomes(3), [Outcome::Error, Outcome::Ok]);
        assert_eq!(outcomes(4), [Outcome::Ok]);
        assert_eq!((ran.sent, ran.unfollowed), (6, 1), "one step was not sent, and is told");
        assert_eq!((ran.retries, planned(&ran)), (2, 5), "what was sent twice was planned once");

        let (load, flow) = load_and_flow(&server(&[("f0", 9)]).await);
        let (rows, ran) = run(&load, flow, vec![shot(0, 0, 0)], &Stop::default()).await;
        assert_eq!((rows.len(), ran.unfollowed, planned(&ran)), (2, 4, 5));
        assert_eq!(rows[1].flow_ns, Some(0), "the second try follows the first");
    });
}

#[test]
fn a_stop_sends_no_further_step_and_tells_how_many() {
    on_one_thread(async {
        let (load, flow) = load_and_flow(&server(&[]).await);
        let stop = Stop::default();
        let asks = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            asks.ask();
        });
        let shots = vec![shot(0, 0, 0), shot(60_000, 0, 1)];
        let (rows, ran) = run(&load, flow, shots, &stop).await;
        assert_eq!((rows.len() as u64, planned(&ran)), (ran.sent, 10), "{ran:?}");
        assert!(ran.unsent >= 5 && ran.whole_ns < 30_000 * MS, "{ran:?}");
    });
}

#[test]
fn a_stop_before_a_second_try_counts_what_is_behind_it_only() {
    on_one_thread(async {
        let stop = Stop::default();
        let asks = stop.clone();
        let (load, flow) = load_and_flow(&server_that(&[("f1", 9)], move || asks.ask()).await);
        let (rows, ran) = run(&load, flow, vec![shot(0, 0, 0)], &stop).await;
        let tries = of(&rows, 1).len();
        assert_eq!((tries, ran.retries, ran.unfollowed), (1, 0, 0), "{ran:?}");
        assert_eq!((rows.len() as u64, planned(&ran)), (ran.sent, 5), "{ran:?}");
    });
}

//! Coordinated omission: a closed loop sends nothing while the server pauses and so hardly sees the
//! pause; an open loop sees it in every request that was due then.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use vhive_load::summary::Tally;
use vhive_load::{Outcome, Protocol, Row, Stop, closed_loop};

use crate::peer::{HELLO, head, listen, load, on_one_thread, run, shots};

/// When, after its first request, the server answers nobody, and for how long.
const FROM: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(500);

/// A server that pauses once, whoever asks; each test has its own.
async fn pausing() -> String {
    let begun: Arc<Mutex<Option<Instant>>> = Arc::default();
    listen(move |_, mut stream| {
        let begun = Arc::clone(&begun);
        async move {
            while head(&mut stream).await {
                let begun = *begun.lock().expect("nobody panics").get_or_insert_with(Instant::now);
                let (from, to) = (begun + FROM, begun + FROM + PAUSE);
                if (from..to).contains(&Instant::now()) {
                    tokio::time::sleep_until(to.into()).await;
                }
                if stream.write_all(HELLO).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

fn p90_ms(rows: &[Row], from_intended: bool) -> f64 {
    let mut tally = Tally::default();
    rows.iter().for_each(|row| tally.add(row));
    let latency = tally.latency(Outcome::Ok).expect("replies");
    let times = if from_intended { tally.from_intended() } else { latency };
    times.quantile_us(0.9).expect("replies") / 1e3
}

#[test]
fn a_pause_that_a_closed_loop_hides_is_in_every_request_that_was_due_in_it() {
    on_one_thread(async {
        let address = pausing().await;
        let (out, rows) = channel();
        let load = load(&address, Protocol::Http1);
        let time = Duration::from_secs(1);
        closed_loop(&load, 1, time, out, &Stop::default()).await.expect("ran");
        let closed: Vec<Row> = rows.into_iter().flatten().collect();
        // One of hundreds waited: nine of ten know nothing of it.
        let paused = closed.iter().filter(|row| row.latency_ns() > 400_000_000).count();
        assert!((1..=2).contains(&paused), "{paused} of {}", closed.len());
        assert!(closed.len() > 20 && p90_ms(&closed, false) < 250.0, "{}", p90_ms(&closed, false));

        let address = pausing().await;
        let rows = run(&crate::peer::load(&address, Protocol::Http1), shots(100, 10)).await;
        // Half of them were due in the pause; the first of those waited longest.
        let due = |row: &&Row| (220_000_000..680_000_000).contains(&row.intended_ns);
        let waited = rows.iter().filter(due).filter(|row| row.total_ns() > 10_000_000).count();
        let all = rows.iter().filter(due).count();
        assert!(all >= 45 && waited >= all - 2, "{waited} of {all}");
        assert!(p90_ms(&rows, true) > 300.0, "{}", p90_ms(&rows, true));
    });
}

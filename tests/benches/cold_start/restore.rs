//! Restores: the VMM's part of one of `hello`, and sixteen of `sleep` at a time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhive_api::{InvocationRecord, Phase, StartKind};
use vhive_tests::bench::{Bound, Row, median, spread};

use crate::ground::{Files, Ground, length_ms};
use crate::rows::load;

pub(crate) const VMM: Bound = Bound::AtMost { must: 20.0, goal: 10.0 };
pub(crate) const X16: Bound = Bound::AtMost { must: 10.0, goal: 6.0 };
const RESTORES: usize = 9;
const ROUNDS: usize = 5;
const AT_ONCE: usize = 16;
/// How long `sleep` holds its instance: none is free before the last has been restored.
const HOLD: &str = "/?idle_ms=6000";
const SERVICE: &str = "hello-many";
/// Far beyond any restore that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts `hello` on the node with a snapshot and its pages recorded.
pub(crate) fn prepare(ground: &Ground) -> Result<()> {
    let annotations = [("vhive.dev/snapshot-policy", "reap")];
    ground.apply("hello", SERVICE, &annotations)?;
    for kind in [StartKind::Boot, StartKind::Record] {
        ground.cold(("hello", SERVICE), "record", Files::AsTheyAre, kind)?;
    }
    Ok(())
}

/// What a restore takes before the guest runs; the working set is in the page cache, and what the
/// start was held up by memory is taken off.
pub(crate) fn vmm(ground: &Ground) -> Result<Row> {
    let (mut ours, mut whole, mut waits, mut bare) = (vec![], vec![], vec![], vec![]);
    for round in 0..=RESTORES {
        let peer = bare_qemu()?;
        let sample =
            ground.cold(("hello", SERVICE), "record", Files::AsTheyAre, StartKind::Reap)?;
        if round == 0 {
            continue;
        }
        let (spawn, restore) = (sample.ms(Phase::VmmSpawn), sample.ms(Phase::Restore));
        let wait = sample.waited().min(restore);
        bare.push(peer);
        ours.push(spawn + restore - wait);
        whole.push(spawn + restore);
        waits.push(sample.waited());
    }
    let note = format!(
        "{} = phases vmm_spawn + restore ({}) less the wait for memory ({}, at most restore); \
         hello by REAP, its files in the page cache; load {}",
        spread(&ours, "ms"),
        spread(&whole, "ms"),
        spread(&waits, "ms"),
        load()
    );
    let peer = format!("bare QEMU from its start to QMP's greeting: {}", spread(&bare, "ms"));
    Ok(Row::new("restore-vmm", "ms").value(VMM, median(&ours)).peer(peer).note(note))
}

/// In milliseconds.
fn bare_qemu() -> Result<f64> {
    let begin = Instant::now();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "microvm", "-accel", "tcg", "-m", "128M", "-nodefaults"]);
    qemu.args(["-no-user-config", "-display", "none", "-S", "-qmp", "stdio"]);
    let mut qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdout = qemu.stdout.take().context("piped")?;
    let mut greeting = String::new();
    let read = BufReader::new(stdout).read_line(&mut greeting);
    let took = begin.elapsed();
    qemu.kill()?;
    qemu.wait()?;
    read?;
    ensure!(greeting.contains("QMP"), "QEMU did not greet: {greeting:?}");
    Ok(took.as_secs_f64() * 1e3)
}

/// One restore and sixteen at once, in turns.
pub(crate) fn at_once(ground: &Ground) -> Result<Row> {
    let (mut one, mut many, mut turns) = (Vec::new(), Vec::new(), Vec::new());
    let annotations = [
        ("vhive.dev/snapshot-policy", "reap"),
        ("autoscaling.knative.dev/max-scale", "16"),
        ("autoscaling.knative.dev/target-utilization-percentage", "100"),
    ];
    let service = "sleep-at-once";
    ground.apply_alone("sleep", service, &annotations)?;
    for kind in [StartKind::Boot, StartKind::Record, StartKind::Reap] {
        ground.cold(("sleep", service), "record", Files::AsTheyAre, kind)?;
    }
    for _ in 0..ROUNDS {
        let (alone, _) = burst(ground, service, 1)?;
        let (mean, turn) = burst(ground, service, AT_ONCE)?;
        one.push(alone);
        many.push(mean);
        turns.push(turn);
    }
    let note = format!(
        "mean of {AT_ONCE}: {}, of which {:.0} ms are waiting for a turn; one: {}; from request to \
         ready (total - request), sleep by REAP, its files not in the page cache, the host's \
         readahead, starts under way at a time as the node's default limits them; load {}",
        spread(&many, "ms"),
        median(&turns),
        spread(&one, "ms"),
        load()
    );
    let row = Row::new("restore-x16", "ms").ratio(X16, median(&many), median(&one));
    Ok(row.peer(format!("one alone: {:.0} ms", median(&one))).note(note))
}

/// Sends so many requests at once to a service without instances; the means of their times to
/// ready and of their waits for a turn, in milliseconds. Each must have had a restore of its own.
fn burst(ground: &Ground, service: &str, requests: usize) -> Result<(f64, f64)> {
    ground.node.ok(&["evict", service])?;
    ground.drop_snapshots()?;
    let connect = |_| {
        let stream = TcpStream::connect(&ground.node.gateway)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        anyhow::Ok(stream)
    };
    let streams: Result<Vec<TcpStream>> = (0..requests).map(connect).collect();
    std::thread::scope(|scope| {
        let ask = |mut stream: TcpStream| {
            write!(
                stream,
                "GET {HOLD} HTTP/1.1\r\nHost: {service}.default.example.com\r\nConnection: close\r\n\r\n"
            )?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply)?;
            let head = String::from_utf8_lossy(&reply);
            ensure!(reply.starts_with(b"HTTP/1.1 200"), "no good reply: {head:.300}");
            anyhow::Ok(())
        };
        let clients: Vec<_> =
            streams?.into_iter().map(|stream| scope.spawn(move || ask(stream))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })?;
    // Evicting waits until nothing of the burst is under way; the records are written then.
    ground.node.ok(&["evict", service])?;
    let records = ground.records(service, requests)?;
    ensure!(records.len() == requests, "{} records of {requests} requests", records.len());
    for record in &records {
        let how = record.start.map_or("nothing", StartKind::as_str);
        ensure!(record.start == Some(StartKind::Reap), "one of {requests} was served by {how}");
    }
    let mean = |of: &dyn Fn(&InvocationRecord) -> f64| {
        records.iter().map(of).sum::<f64>() / requests as f64
    };
    let ready = mean(&|one| length_ms(one, Phase::Total) - length_ms(one, Phase::Request));
    Ok((ready, mean(&|one| length_ms(one, Phase::Turn))))
}

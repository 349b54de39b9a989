//! The gateway's hop against nginx's, in front of the same upstream: `gateway-p50-c1` (time added
//! to one connection's requests) and `gateway-rps-c64` (requests per CPU-second of the proxy, 64
//! connections). A bare hyper hop is printed beside them, and is the peer of `gateway-cpu-vs-hop`
//! (CPU time per request, for the same number of requests).
//!
//! Every part is a process of its own (this program starts itself with a role), all on one CPU;
//! the parts take turns within each round, and figures are medians over the rounds.

#[path = "gateway/client.rs"]
mod client;
#[path = "gateway/door.rs"]
mod door;
#[path = "gateway/hop.rs"]
mod hop;
#[path = "gateway/parts.rs"]
mod parts;
#[path = "gateway/upstream.rs"]
mod upstream;

use anyhow::Context as _;
use vhive_tests::bench::{Bound, Row, median, spread};

use crate::client::Measured;
use crate::parts::{Part, cpus, nginx, on_cpu, proxy, role};

/// Rounds with one connection and with 64; each measures every part once. Those with one are many
/// and short: what else the machine does shall hit all parts alike.
const ROUNDS: [usize; 2] = [45, 11];
const MILLIS: [&str; 2] = ["80", "300"];

/// Rounds for the comparison with the bare hop, and what each of the connections sends in one.
const HOP_ROUNDS: usize = 21;
const EACH: &str = "150x";

const P50: Bound = Bound::AtMost { must: 1.1, goal: 0.8 };
const RPS: Bound = Bound::AtLeast { must: 0.6, goal: 1.0 };
const HOP: Bound = Bound::AtMost { must: 1.3, goal: 0.8 };

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = args.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["role", "upstream"] => upstream::run(),
        ["role", "door", upstream] => door::run(upstream),
        ["role", "hop", upstream] => hop::run(upstream),
        ["role", "client", address, connections, until] => {
            client::run(address, connections.parse()?, until.parse()?)
        }
        _ => compare(),
    }
}

/// What one part did over all rounds.
#[derive(Default)]
struct Series {
    p50_us: Vec<f64>,
    rps_per_cpu: Vec<f64>,
    rps: Vec<f64>,
}

fn compare() -> anyhow::Result<()> {
    on_cpu(*cpus()?.last().context("no CPU")?)?;
    let upstream = role(&["upstream"]).context("upstream")?;
    let door = role(&["door", &upstream.address]).context("gateway")?;
    let hop = role(&["hop", &upstream.address]).context("hyper hop")?;
    against_hop(&door, &hop)?;
    against_nginx(&upstream, &door, &hop)
}

fn against_hop(door: &Part, hop: &Part) -> anyhow::Result<()> {
    let cpu_us = |part: &Part| -> anyhow::Result<f64> {
        let before = part.cpu_seconds()?;
        let measured = parts::client(&part.address, "64", EACH)?;
        Ok((part.cpu_seconds()? - before) * 1e6 / measured.requests as f64)
    };
    for part in [door, hop] {
        cpu_us(part).with_context(|| format!("warm-up of {}", part.address))?;
    }
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..HOP_ROUNDS {
        // Who goes first has what the round before has left.
        let order = if round % 2 == 0 { [(door, 0), (hop, 1)] } else { [(hop, 1), (door, 0)] };
        for (part, which) in order {
            [&mut ours, &mut bare][which].push(cpu_us(part)?);
        }
    }
    let peer = median(&bare);
    Row::new("gateway-cpu-vs-hop", "us")
        .ratio(HOP, median(&ours), peer)
        .peer(format!("bare hyper hop {peer:.2} us"))
        .note(format!(
            "CPU time per request, 64 connections: gateway {}, hop {}",
            spread(&ours, "us"),
            spread(&bare, "us"),
        ))
        .emit();
    Ok(())
}

fn against_nginx(upstream: &Part, door: &Part, hop: &Part) -> anyhow::Result<()> {
    if std::process::Command::new("nginx").arg("-v").output().is_err() {
        let reason = "nginx is not installed (Debian package nginx-light)";
        Row::new("gateway-p50-c1", "us").unmeasured(P50, reason).emit();
        Row::new("gateway-rps-c64", "1/cpu-s").unmeasured(RPS, reason).emit();
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let peer = nginx(dir.path(), &proxy(&upstream.address)).context("nginx")?;
    let parts = [upstream, &peer, door, hop];
    for part in parts {
        measure(part, "64", MILLIS[1]).with_context(|| format!("warm-up of {}", part.address))?;
    }
    let mut series: [Series; 4] = Default::default();
    for _ in 0..ROUNDS[0] {
        for (part, series) in parts.into_iter().zip(&mut series) {
            series.p50_us.push(measure(part, "1", MILLIS[0])?.0.p50_us);
        }
    }
    for _ in 0..ROUNDS[1] {
        for (part, series) in parts.into_iter().zip(&mut series) {
            let (measured, cpu) = measure(part, "64", MILLIS[1])?;
            series.rps_per_cpu.push(measured.requests as f64 / cpu);
            series.rps.push(measured.requests as f64 / measured.seconds);
        }
    }
    let [direct, nginx, ours, bare] = &series;
    report_p50(direct, nginx, ours, bare);
    report_rps(nginx, ours, bare);
    Ok(())
}

fn measure(part: &Part, connections: &str, millis: &str) -> anyhow::Result<(Measured, f64)> {
    let before = part.cpu_seconds()?;
    let measured = parts::client(&part.address, connections, millis)?;
    Ok((measured, part.cpu_seconds()? - before))
}

fn report_p50(direct: &Series, nginx: &Series, ours: &Series, bare: &Series) {
    let added = |of: &Series| -> Vec<f64> {
        of.p50_us.iter().zip(&direct.p50_us).map(|(with, without)| with - without).collect()
    };
    let (nginx, ours, bare) = (added(nginx), added(ours), added(bare));
    let (peer, hop) = (median(&nginx), median(&bare));
    Row::new("gateway-p50-c1", "us")
        .ratio(P50, median(&ours), peer)
        .peer(format!("nginx added {peer:.1} us"))
        .note(format!(
            "added p50: gateway {}, nginx {}, bare hyper hop {} ({:.2}x); direct {}",
            spread(&ours, "us"),
            spread(&nginx, "us"),
            spread(&bare, "us"),
            hop / peer,
            spread(&direct.p50_us, "us"),
        ))
        .emit();
}

fn report_rps(nginx: &Series, ours: &Series, bare: &Series) {
    let peer = median(&nginx.rps_per_cpu);
    Row::new("gateway-rps-c64", "1/cpu-s")
        .ratio(RPS, median(&ours.rps_per_cpu), peer)
        .peer(format!("nginx {peer:.0} 1/cpu-s"))
        .note(format!(
            "per CPU-second: gateway {}, nginx {}, bare hyper hop {} ({:.2}x); per second with \
             all parts on the CPU: gateway {:.0}, nginx {:.0}, hop {:.0}",
            spread(&ours.rps_per_cpu, "1/cpu-s"),
            spread(&nginx.rps_per_cpu, "1/cpu-s"),
            spread(&bare.rps_per_cpu, "1/cpu-s"),
            median(&bare.rps_per_cpu) / peer,
            median(&ours.rps),
            median(&nginx.rps),
            median(&bare.rps),
        ))
        .emit();
}

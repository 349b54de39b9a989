//! `boot-overhead`: `hello` from the start of a boot to the first reply, emulated, against a bare
//! QEMU that boots the same kernel and initramfs to init's first message.
//!
//! `boot-reliability`: of 50 boots of `hello`, two at a time, how many needed no second attempt.

#[path = "boot/ground.rs"]
mod ground;
#[path = "boot/hello.rs"]
mod hello;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use vhive_tests::bench::{Bound, Row, median, spread};

use ground::Ground;

const OVERHEAD: Bound = Bound::AtMost { must: 1.35, goal: 1.2 };
const RELIABILITY: Bound = Bound::AtLeast { must: 50.0, goal: 50.0 };
const ROUNDS: usize = 9;
const BOOTS: u32 = 50;

fn main() -> ExitCode {
    let ground = match Ground::find() {
        Ok(ground) => ground,
        Err(missing) => {
            let reason = format!("{missing:#}");
            Row::new("boot-overhead", "ms").unmeasured(OVERHEAD, reason.clone()).emit();
            Row::new("boot-reliability", "boots").unmeasured(RELIABILITY, reason).emit();
            return ExitCode::SUCCESS;
        }
    };
    match overhead(&ground) {
        Ok(row) => row.emit(),
        Err(error) => {
            let reason = format!("{error:#}");
            Row::new("boot-overhead", "ms").unmeasured(OVERHEAD, reason).emit();
        }
    }
    reliability(&ground).emit();
    ExitCode::SUCCESS
}

/// Interleaved, so that both meet the same machine; the first round warms the page cache.
fn overhead(ground: &Ground) -> Result<Row> {
    let (mut ours, mut bare, mut steps) = (Vec::new(), Vec::new(), BTreeMap::new());
    for round in 0..=ROUNDS {
        let peer = ground.bare_boot()?;
        let own = ground.boot_to_reply()?;
        if round > 0 {
            bare.push(peer.as_secs_f64() * 1e3);
            ours.push(own.reply.as_secs_f64() * 1e3);
            for (step, at) in own.milestones {
                steps.entry(step).or_insert_with(Vec::new).push(at.as_secs_f64() * 1e3);
            }
        }
    }
    let steps = steps.iter().map(|(step, at)| format!("{step:?} {:.0}", median(at)));
    let steps = steps.collect::<Vec<_>>().join(", ");
    let note = format!("{} ({steps}); bare {}", spread(&ours, "ms"), spread(&bare, "ms"));
    let peer = format!("bare QEMU to init: {:.0} ms", median(&bare));
    let row = Row::new("boot-overhead", "ms").ratio(OVERHEAD, median(&ours), median(&bare));
    Ok(row.peer(peer).note(note))
}

fn reliability(ground: &Ground) -> Row {
    let (next, good) = (AtomicU32::new(0), AtomicU32::new(0));
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < BOOTS {
                    match ground.boot_to_reply() {
                        Ok(booted) if booted.attempts == 1 => {
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(_) => {}
                        Err(error) => {
                            failures.lock().expect("no panic").push(format!("{error:#}"));
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    let row = Row::new("boot-reliability", "boots");
    let row = row.value(RELIABILITY, f64::from(good.load(Ordering::Relaxed)));
    failures.first().map_or_else(
        || row.clone().note(format!("of {BOOTS}, two at a time")),
        |first| {
            row.clone().note(format!("{} of {BOOTS} failed, the first: {first}", failures.len()))
        },
    )
}

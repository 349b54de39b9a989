//! The tables at the end, and what to try next.

use std::path::Path;
use std::time::Duration;

use vhive_api::{InvocationRecord, Phase, StartKind};
use vhive_tests::bench::geometric_mean;

/// One invocation of the demo.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) function: String,
    pub(crate) start: StartKind,
    pub(crate) record: InvocationRecord,
    /// Resident memory of the sandbox on the host, in bytes.
    pub(crate) memory: Option<u64>,
}

const COLUMNS: [(&str, Phase); 12] = [
    ("total", Phase::Total),
    ("queue", Phase::Queue),
    ("image", Phase::Image),
    ("turn", Phase::Turn),
    ("net slot", Phase::NetworkSlot),
    ("vmm", Phase::VmmSpawn),
    ("kernel", Phase::KernelBoot),
    ("init", Phase::Init),
    ("restore", Phase::Restore),
    ("resume", Phase::Resume),
    ("ready", Phase::FunctionReady),
    ("request", Phase::Request),
];

/// Milliseconds per phase, one row per invocation.
pub(crate) fn phases(rows: &[Row]) -> String {
    let mut text = format!("{:<13} {:<8}", "function", "start");
    for (heading, _) in COLUMNS {
        text.push_str(&format!(" {heading:>8}"));
    }
    text.push_str(&format!(" {:>8}", "memory"));
    for row in rows {
        text.push_str(&format!("\n{:<13} {:<8}", row.function, row.start.as_str()));
        for (_, phase) in COLUMNS {
            text.push_str(&format!(" {:>8}", millis(length_us(&row.record, phase))));
        }
        let memory = row.memory.map_or_else(|| "-".to_owned(), |m| format!("{} MiB", m >> 20));
        text.push_str(&format!(" {memory:>8}"));
    }
    text.push_str("\n(milliseconds; memory = resident on the host per sandbox)");
    text
}

/// Left out of the means: its time is a parameter.
const NOT_IN_MEANS: &str = "sleep";

/// The ways to start side by side, one row per function.
pub(crate) fn side_by_side(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<13} {:>8} {:>9} {:>8} {:>8} {:>7} {:>11} {:>11}",
        "function", "boot", "snapshot", "record", "REAP", "warm", "boot/REAP", "snap/REAP"
    );
    let (mut over_boot, mut over_snapshot) = (Vec::new(), Vec::new());
    for function in functions(rows) {
        let total = |start| total_us(rows, function, start);
        let (boot, snapshot) = (total(StartKind::Boot), total(StartKind::Snapshot));
        let reap = total(StartKind::Reap);
        let ratio = |slow: Option<u64>| Some(slow? as f64 / reap? as f64);
        if function != NOT_IN_MEANS {
            over_boot.extend(ratio(boot));
            over_snapshot.extend(ratio(snapshot));
        }
        let times = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.1}x"));
        text.push_str(&format!(
            "\n{function:<13} {:>8} {:>9} {:>8} {:>8} {:>7} {:>11} {:>11}",
            millis(boot),
            millis(snapshot),
            millis(total(StartKind::Record)),
            millis(reap),
            millis(total(StartKind::Warm)),
            times(ratio(boot)),
            times(ratio(snapshot))
        ));
    }
    text.push_str(&format!(
        "\n{:<57} {:>10.1}x {:>10.1}x",
        format!("geometric mean without {NOT_IN_MEANS}"),
        geometric_mean(&over_boot),
        geometric_mean(&over_snapshot)
    ));
    text.push_str(
        "\n(milliseconds from request to reply, one invocation each: for figures with a spread see \
         the study.\n snapshot: paged by the host's kernel, its readahead as it is; record: the \
         start whose pages are recorded;\n REAP: these pages prefetched. The snapshots' files were \
         not in the page cache.)",
    );
    text
}

/// What REAP recorded and prefetched, one row per function.
pub(crate) fn memory(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<13} {:>8} {:>11} {:>6} {:>13} {:>11} {:>13}",
        "function", "recorded", "prefetched", "MiB", "prefetch ms", "faults left", "REAP waits ms"
    );
    for function in functions(rows) {
        let of = |start| find(rows, function, start).and_then(|row| row.record.memory);
        let (Some(record), Some(reap)) = (of(StartKind::Record), of(StartKind::Reap)) else {
            continue;
        };
        text.push_str(&format!(
            "\n{function:<13} {:>8} {:>11} {:>6.1} {:>13} {:>11} {:>13}",
            record.fault_pages,
            reap.prefetched_pages,
            reap.prefetched_bytes as f64 / f64::from(1_u32 << 20),
            millis(Some(reap.prefetch_us)),
            reap.faults.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            millis(Some(reap.wait_us))
        ));
    }
    text.push_str("\n(pages; MiB = read of the working set; the same input was recorded)");
    text
}

/// The functions in the order in which they were invoked.
fn functions(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.function.as_str()).collect();
    names.dedup();
    names
}

fn find<'a>(rows: &'a [Row], function: &str, start: StartKind) -> Option<&'a Row> {
    rows.iter().find(|row| row.function == function && row.start == start)
}

fn total_us(rows: &[Row], function: &str, start: StartKind) -> Option<u64> {
    length_us(&find(rows, function, start)?.record, Phase::Total)
}

fn length_us(record: &InvocationRecord, phase: Phase) -> Option<u64> {
    record.phases.iter().find(|span| span.phase == phase).map(|span| span.length_us)
}

fn millis(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us as f64 / 1e3))
}

/// What a newcomer can do now.
pub(crate) fn what_next(took: Duration, records: &Path) {
    println!(
        "\nDone in {:.0} s; nothing is left running. Every invocation's record: {}",
        took.as_secs_f64(),
        records.display()
    );
    println!("Try next, with the same kernel, images and snapshots:");
    println!("  export VHIVE_STATE_DIR=target/demo/state PATH=$PWD/target/release:$PATH");
    println!(
        "  vhive doctor                                # what this host can run, and why not the rest"
    );
    println!("  vhive node &                                # API, gateway and sandboxes");
    println!(
        "  vhive invoke hello --trace                  # by REAP: where each millisecond went"
    );
    println!("  vhive snapshot ls; vhive evict hello        # the next request starts cold again");
    println!("  vhive study cold-start --functions hello    # all start kinds, ten times each");
}

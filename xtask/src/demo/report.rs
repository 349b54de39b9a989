//! The table at the end, and what to try next.

use std::path::Path;
use std::time::Duration;

use vhive_api::{InvocationRecord, Phase, StartKind};

/// One invocation of the demo.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) record: InvocationRecord,
    /// Resident memory of the sandbox on the host, in bytes.
    pub(crate) memory: Option<u64>,
}

const COLUMNS: [(&str, Phase); 10] = [
    ("total", Phase::Total),
    ("queue", Phase::Queue),
    ("image", Phase::Image),
    ("turn", Phase::Turn),
    ("net slot", Phase::NetworkSlot),
    ("vmm", Phase::VmmSpawn),
    ("kernel", Phase::KernelBoot),
    ("init", Phase::Init),
    ("ready", Phase::FunctionReady),
    ("request", Phase::Request),
];

/// The table: milliseconds per phase, one row per invocation.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<13} {:<5}", "function", "start");
    for (heading, _) in COLUMNS {
        text.push_str(&format!(" {heading:>8}"));
    }
    text.push_str(&format!(" {:>8}", "memory"));
    for row in rows {
        let start = row.record.start.map_or("-", StartKind::as_str);
        text.push_str(&format!("\n{:<13} {start:<5}", row.record.service));
        for (_, phase) in COLUMNS {
            text.push_str(&format!(" {:>8}", millis(&row.record, phase)));
        }
        let memory = row.memory.map_or_else(|| "-".to_owned(), |m| format!("{} MiB", m >> 20));
        text.push_str(&format!(" {memory:>8}"));
    }
    text.push_str("\n(milliseconds; memory = resident on the host per sandbox)");
    text
}

fn millis(record: &InvocationRecord, phase: Phase) -> String {
    let span = record.phases.iter().find(|span| span.phase == phase);
    span.map_or_else(|| "-".to_owned(), |span| format!("{:.1}", span.length_us as f64 / 1e3))
}

/// What a newcomer can do now.
pub(crate) fn what_next(took: Duration, records: &Path) {
    println!(
        "\nDone in {:.0} s; nothing is left running. Every invocation's record: {}",
        took.as_secs_f64(),
        records.display()
    );
    println!("Try next, with the same kernel and images:");
    println!("  export VHIVE_STATE_DIR=target/demo/state PATH=$PWD/target/release:$PATH");
    println!(
        "  vhive doctor                                # what this host can run, and why not the rest"
    );
    println!("  vhive node &                                # API, gateway and sandboxes");
    println!("  vhive apply -f functions/hello/service.yaml");
    println!("  vhive invoke hello --trace                  # where each millisecond went");
    println!("  vhive describe hello; vhive logs hello");
}

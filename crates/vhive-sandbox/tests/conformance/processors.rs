//! A promise about microVMs with two processors: both are in a snapshot, both fault at once in a clone,
//! and their clocks agree.

use std::time::Instant;

use vhive_api::{MemoryMode, PrefetchPolicy};
use vhive_sandbox::Memory;

use crate::restored::{ask, clone_by, faults_are_told, finish, modes, original_of, snapshot};
use crate::site::{Booted, Site};

/// What the two do at once: each on a processor of its own reads a file, and says on which one it ran. (The
/// web server's scripts are told of no child that has ended, so `wait` would wait for ever.)
const SCRIPTS: &str = r#"
    mkdir -p /srv/cgi-bin /data; seq 1 200000 > /data/1; seq 200000 400000 > /data/2
    script() { { echo '#!/bin/sh'; echo "printf 'Content-Type: text/plain\r\n\r\n'"; echo "$2"; } \
        > /srv/cgi-bin/$1; chmod 755 /srv/cgi-bin/$1; }
    script both 'busybox rm -f /tmp/1 /tmp/2
        for cpu in 1 2; do
            busybox taskset $cpu sh -c "sha256sum /data/$cpu > /tmp/new$cpu
                busybox cut -d\  -f39 /proc/self/stat >> /tmp/new$cpu; busybox mv /tmp/new$cpu /tmp/$cpu" &
        done
        until [ -e /tmp/1 ] && [ -e /tmp/2 ]; do sleep 0.02; done; cat /tmp/1 /tmp/2'
    script clocks 'for n in 1 2 3 4 5 6 7 8; do for cpu in 1 2; do
            busybox taskset $cpu busybox adjtimex | sed -n "s/.*time.tv_u*sec: *//p"; busybox taskset $cpu cat /proc/uptime
        done; done'
    exec httpd -f -p 8080 -h /srv"#;

/// Seconds of the wall clock and since the boot, of both processors in turn.
fn clocks(booted: &Booted) -> Vec<(f64, f64)> {
    let lines = ask(booted, "clocks");
    let number = |text: &str| -> f64 { text.trim().parse().expect("a number") };
    let reading = |of: &[String]| {
        let uptime = of[2].split(' ').next().expect("two numbers");
        (number(&of[0]) + number(&of[1]) / 1e6, number(uptime))
    };
    lines.chunks(3).map(reading).collect()
}

/// The original answers from both processors, and so does each clone, whichever way its memory comes;
/// on neither has time gone back.
pub(crate) fn a_guest_with_two_processors_is_restored(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original_of(site, SCRIPTS, |spec| spec.cpu_millis = 2000);
    let answers = |booted: &Booted, what: &str| {
        let lines = ask(booted, "both");
        let ran_on = [lines[1].as_str(), lines[3].as_str()];
        assert_eq!(ran_on, ["0", "1"], "{what}: on a processor each: {lines:?}");
        let times = clocks(booted);
        assert_eq!(times.len(), 16, "{what}");
        // An uptime has two digits behind the point.
        let goes_on = times.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1);
        assert!(goes_on, "{what}: {times:?}");
        [lines[0].clone(), lines[2].clone()]
    };
    let sums = answers(&original, "original");
    let snapshot = snapshot(&mut original, dir.path());
    assert_eq!(answers(&original, "after the snapshot"), sums);
    let restored = |memory: Memory| {
        let mut spec = site.spec("never run");
        spec.cpu_millis = 2000;
        let began = Instant::now();
        let clone = clone_by(site, &spec, &snapshot, memory);
        assert_eq!(answers(&clone, &format!("{memory:?}")), sums);
        assert_eq!(spec.journal.ended(), None);
        faults_are_told(&clone, began);
        finish(&clone);
    };
    for mode in modes(site) {
        restored(Memory::new(mode, PrefetchPolicy::default()));
        if mode == MemoryMode::Prefetch {
            for policy in PrefetchPolicy::ALL {
                restored(Memory::new(mode, policy));
            }
        }
    }
    snapshot.verify().expect("clones change nothing");
}

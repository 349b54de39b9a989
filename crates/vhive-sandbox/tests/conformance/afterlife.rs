//! What a clone promises besides answering: it prints, runs commands, is stopped and ends as its
//! original would, and its limits hold.

use std::sync::Arc;
use std::time::Duration;

use vhive_api::guest::Stream;
use vhive_api::{MemoryMode, RuntimeName};
use vhive_sandbox::{Deadline, End, Snapshot};

use crate::limits::TAKE_60;
use crate::promises::{wait_for, wait_for_line};
use crate::restored::{clone, memory, snapshot};
use crate::site::{Booted, Site, get, soon};

/// A function that does what it is told over HTTP. The first line is not over yet when it listens.
const OBEDIENT: &str = r#"
    printf 'half '; trap 'echo got usr1; exit 3' USR1
    mkdir -p /srv/cgi-bin; { echo '#!/bin/sh'; echo 'echo $QUERY_STRING > /tmp/new'
        echo 'mv /tmp/new /tmp/order'; echo "printf 'Content-Type: text/plain\r\n\r\n'"; } > /srv/cgi-bin/order
    chmod 755 /srv/cgi-bin/order
    httpd -f -p 8080 -h /srv &
    while :; do
        order=; [ -e /tmp/order ] && { read order < /tmp/order; echo > /tmp/order; }
        case $order in
            print) echo whole; echo and more >&2;;
            exit) exit 7;;
            lose) TAKE_60; dd if=/dev/zero of=/dev/null bs=80M count=1 2>/dev/null; echo lost $? >&2
                rm /tmp/full1 /tmp/full2; wait $takers; takers=;;
            take) TAKE_60; exec dd if=/dev/zero of=/dev/null bs=80M count=1;;
        esac
        sleep 0.2
    done"#;

/// What a clone prints is its own, from where the original's line was; commands run in it; and it ends
/// by its own will, when it is asked to, or because it takes too much, whether its VMM was spawned
/// ahead or not.
pub(crate) fn a_clone_lives_and_ends_as_its_original(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut spec = site.spec(&OBEDIENT.replace("TAKE_60", TAKE_60));
    spec.process.stop_signal = "SIGUSR1".to_owned();
    (spec.uses.snapshots, spec.uses.commands) = (true, true);
    let mut original = site.boot(&spec);
    original.listening();
    // What the original has lost is none of its clones' loss. (In gVisor it would lose everything.)
    if site.runtime.name() != RuntimeName::Runsc {
        order(&original, "lose");
        wait_for(&original, Stream::Stderr, "lost 137");
    }
    let snapshot = snapshot(&mut original, dir.path());
    order(&original, "print");
    wait_for_line(&original, "half whole");
    drop(original);

    let mut willing = one_of(site, &snapshot);
    order(&willing, "print");
    wait_for_line(&willing, "half whole");
    let command = ["sh", "-c", "test -e /tmp/order && exit 5"].map(str::to_owned);
    let ran = willing.sandbox.run(&command, Deadline::after(Duration::from_secs(30)));
    assert_eq!(ran, Ok(5));
    order(&willing, "exit");
    assert_eq!(willing.journal.wait_end(soon()), Some(End::Exited(7)));
    // Nothing that the original printed, before or after.
    assert_eq!(willing.lines(Stream::Stdout), ["half whole"]);
    assert_eq!(willing.lines(Stream::Stderr), ["and more"]);
    drop(willing);

    let mut asked = one_of(site, &snapshot);
    asked.sandbox.stop(soon());
    assert_eq!(asked.journal.ended(), Some(End::Exited(3)));
    assert_eq!(asked.lines(Stream::Stdout), ["half got usr1"]);
    drop(asked);

    let greedy = [Some(one_of(site, &snapshot)), spawned_ahead(site, &snapshot)];
    for clone in greedy.into_iter().flatten() {
        order(&clone, "take");
        let end = clone.journal.wait_end(soon()).expect("ended").to_string();
        assert!(end.contains("OOM"), "{end}; {:?}", clone.journal.tail(20));
    }
}

fn order(booted: &Booted, what: &str) {
    get(booted.endpoint(), &format!("/cgi-bin/order?{what}"));
}

fn one_of(site: &Site, from: &Snapshot) -> Booted {
    let mut spec = site.spec("never run");
    spec.uses.commands = true;
    clone(site, &spec, from, MemoryMode::File)
}

/// Likewise of a VMM that has waited for it, where there are such.
fn spawned_ahead(site: &Site, from: &Snapshot) -> Option<Booted> {
    let spec = site.spec("never run");
    let restores = site.runtime.restores().expect("the table says so");
    let waiting = restores.prespawn(&spec, from, MemoryMode::File, soon()).expect("spawned")?;
    let sandbox = waiting.restore(memory(MemoryMode::File), soon()).expect("restored");
    Some(Booted { sandbox, journal: Arc::clone(&spec.journal) })
}

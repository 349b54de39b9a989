//! Promises about what a process finds that images count on and nobody configures.

use rustix::process::{Resource, getrlimit};
use vhive_api::guest::Stream;
use vhive_sandbox::End;

use crate::site::{Site, get, soon};

/// Whoever the function runs as opens its outputs by their names, as the logs of many images do, has
/// nothing to read, and the usual mask.
pub(crate) fn streams_are_the_users_own(site: &Site) {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; umask; read x || echo end";
    for user in ["alice", ""] {
        let mut spec = site.spec(script);
        spec.process.user = user.to_owned();
        let booted = site.boot(&spec);
        assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
        let said = booted.lines(Stream::Stderr);
        assert_eq!(booted.lines(Stream::Stdout), ["out", "0022", "end"], "{user:?}: {said:?}");
        assert_eq!(said, ["err"], "{user:?}");
    }
}

/// No core dumps, and otherwise what programs expect: in KiB as a shell tells them.
pub(crate) fn limits_of_processes_are_the_same_everywhere(site: &Site) {
    let script = "ulimit -Sc; ulimit -Hc; ulimit -Ss; ulimit -Sl; ulimit -Sn";
    let booted = site.boot(&site.spec(script));
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    // A container has no more than the node may have itself.
    let kib = |limit| {
        let most = getrlimit(limit).maximum.filter(|_| !site.runtime.name().is_machine());
        most.map_or(8192, |most| 8192.min(most / 1024)).to_string()
    };
    let (stack, locked) = (kib(Resource::Stack), kib(Resource::Memlock));
    assert_eq!(booted.lines(Stream::Stdout), ["0", "0", &*stack, &*locked, "1024"]);
}

/// Who is not root listens where the web does, as in other container engines.
pub(crate) fn low_ports_are_free_to_all(site: &Site) {
    let mut spec = site.spec("exec httpd -f -p 80 -h /srv");
    spec.process.user = "alice".to_owned();
    spec.port = 80;
    let booted = site.boot(&spec);
    booted.listening();
    assert_eq!(get(booted.endpoint(), "/index.html"), "hello from inside\n");
}

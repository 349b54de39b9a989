//! What every runtime promises that restores snapshots, in every memory mode that it offers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vhive_api::guest::{Content, Hooks, Volume, VolumeFile};
use vhive_api::{Digest, MemoryMode, PrefetchPolicy, RevisionKey};
use vhive_pager::{FaultTrace, working_set};
use vhive_sandbox::snapshot::{Blame, MEMORY, Owner, VM_STATE};
use vhive_sandbox::{
    BootError, Memory, Milestone, Restore, RestoreError, SandboxSpec, Snapshot, SnapshotDraft,
    SnapshotError,
};

use crate::limits::half_a_processor;
use crate::promises::{A_SERVICE, HTTPD};
use crate::site::{Booted, Site, get, soon};

/// A web server whose every script is a question to the guest, or an order.
const SCRIPTS: &str = r#"
    mkdir -p /srv/cgi-bin /data; seq 1 20000 > /data/before
    script() { { echo '#!/bin/sh'; echo "printf 'Content-Type: text/plain\r\n\r\n'"; echo "$2"; } \
        > /srv/cgi-bin/$1; chmod 755 /srv/cgi-bin/$1; }
    script write 'seq 1 ${QUERY_STRING%+*} > /data/${QUERY_STRING#*+}; echo done'
    script sums 'cd /data; sha256sum *'
    script names 'hostname; cat /etc/hostname; sed 1,2d /etc/hosts'
    script random 'cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1'
    script clocks 'date +%s; cat /proc/uptime'
    script busy 'while :; do :; done & a=$!; while :; do :; done & sleep 3; kill $! $a; echo enough'
    script limits 'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null
        sed s/^/group:/ /proc/self/cgroup 2> /dev/null; echo file:$(cat /etc/app/conf)
        ls -d /sys/fs/cgroup/vhive* /sys/fs/cgroup/*/vhive* 2> /dev/null | sed s/^/other:/
        for f in /etc/app/conf /etc/app/new /sys/fs/cgroup/memory/tasks; do
            ( echo x > $f ) 2> /dev/null && echo other:$f; done'
    hook() { { echo '#!/bin/sh'; echo "seq 1 40000 >&2; echo x >> /data/hook-$1"; \
        echo "printf 'Content-Type: text/plain\r\n\r\n'"; } > /srv/cgi-bin/$1; \
        chmod 755 /srv/cgi-bin/$1; }
    hook before; hook after
    script refuse 'exit 3'
    script hold 'mknod /tmp/say p; sleep 1000 > /tmp/say < /dev/null 2> /dev/null &
        { nc a.b.svc.cluster.local 80; echo over > /tmp/over; } < /tmp/say > /tmp/heard 2> /dev/null &
        until grep -q ":0050 01" /proc/net/tcp; do sleep 0.05; done; echo held'
    script say 'echo hello > /tmp/say; n=0
        until [ -e /tmp/over ] || [ $n -ge 40 ]; do sleep 0.05; n=$((n+1)); done
        cat /tmp/heard /tmp/over'
    exec httpd -f -p 8080 -h /srv"#;

/// How long after the snapshot its clones are made.
const LATER: Duration = Duration::from_secs(4);
/// How far the clock of a clone may be off, in seconds: it is told the time, and then brings in the pages
/// by which it is set, on a host that may be busy. One that nobody sets is behind by [`LATER`].
const MOST_BEHIND: f64 = 2.0;

fn restores(site: &Site) -> &dyn Restore {
    site.runtime.restores().expect("the table says so")
}

pub(crate) fn owner() -> Owner {
    Owner {
        revision: RevisionKey { namespace: "default".to_owned(), name: "test-00001".to_owned() },
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    }
}

/// Boots the scripts, until they listen.
fn original(site: &Site, hooks: Hooks) -> (SandboxSpec, Booted) {
    original_of(site, SCRIPTS, |spec| spec.hooks = hooks)
}

/// Boots these ones, with a spec of their own.
pub(crate) fn original_of(
    site: &Site,
    scripts: &str,
    change: impl FnOnce(&mut SandboxSpec),
) -> (SandboxSpec, Booted) {
    let mut spec = site.spec(scripts);
    change(&mut spec);
    spec.uses.snapshots = true;
    let booted = site.boot(&spec);
    booted.listening();
    (spec, booted)
}

pub(crate) fn try_snapshot(booted: &mut Booted, dir: &Path) -> Result<Snapshot, SnapshotError> {
    let mut draft = SnapshotDraft::begin(dir, owner()).expect("begun");
    let checkpoint = booted.sandbox.checkpoint().expect("a booted sandbox can be snapshotted");
    checkpoint.snapshot_into(&mut draft, soon())?;
    Ok(draft.publish(&dir.join("final")).expect("published"))
}

pub(crate) fn snapshot(booted: &mut Booted, dir: &Path) -> Snapshot {
    try_snapshot(booted, dir).expect("snapshotted")
}

pub(crate) fn memory(mode: MemoryMode) -> Memory {
    Memory::new(mode, PrefetchPolicy::default())
}

/// Restores a clone; what `spec` says about the process is not looked at.
pub(crate) fn clone(site: &Site, spec: &SandboxSpec, from: &Snapshot, mode: MemoryMode) -> Booted {
    clone_by(site, spec, from, memory(mode))
}

pub(crate) fn clone_by(site: &Site, spec: &SandboxSpec, from: &Snapshot, memory: Memory) -> Booted {
    let sandbox = restores(site).restore(spec, from, memory, soon());
    let sandbox = sandbox.unwrap_or_else(|error| {
        let tail = spec.journal.tail(50).join("\n");
        panic!("{memory:?}: {error} ({error:?}); console:\n{tail}")
    });
    Booted { sandbox, journal: Arc::clone(&spec.journal) }
}

pub(crate) fn ask(booted: &Booted, script: &str) -> Vec<String> {
    let reply = get(booted.endpoint(), &format!("/cgi-bin/{script}"));
    reply.lines().map(str::to_owned).collect()
}

/// The modes in an order in which each has what it needs: recording comes before prefetching.
pub(crate) fn modes(site: &Site) -> Vec<MemoryMode> {
    let offered = restores(site).memory_modes();
    let order = [MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
    assert!(offered.contains(&MemoryMode::File));
    order.into_iter().filter(|mode| offered.contains(mode)).collect()
}

/// Ends a recording, if this clone makes one.
pub(crate) fn finish(clone: &Booted) {
    if let Some(paging) = clone.sandbox.paging() {
        paging.finish_recording().expect("written");
    }
}

/// Where a pager serves the memory, the timeline of its faults agrees with its figures.
pub(crate) fn faults_are_told(clone: &Booted, began: Instant) {
    let paging = clone.sandbox.paging().expect("a restored sandbox's memory arrives somehow");
    let (arrival, since) = (paging.arrival(began), began.elapsed());
    let Some(timeline) = arrival.timeline else { return };
    let (faults, every) = (arrival.figures.faults.expect("counted"), u64::from(timeline.every));
    assert_eq!(timeline.len() as u64, faults.div_ceil(every), "{:?}", arrival.figures);
    let attached = u128::try_from(timeline.attached_us).expect("attached after it was asked for");
    for faults in [&timeline.residual, &timeline.awaited] {
        assert!(faults.is_sorted_by_key(|fault| fault.0), "in their order");
        assert!(faults.last().is_none_or(|at| attached + u128::from(at.0) <= since.as_micros()));
    }
    let prefetches = arrival.figures.mode == MemoryMode::Prefetch;
    assert!(prefetches || timeline.awaited.is_empty(), "nothing is on its way");
    assert!(prefetches || !timeline.residual.is_empty(), "a guest needs some of its memory");
}

/// A clone answers as the original does; its steps are told in order; the original goes on.
pub(crate) fn a_clone_answers_as_the_original(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let sums = ask(&original, "sums");
    let snapshot = snapshot(&mut original, dir.path());
    snapshot.verify().expect("sound");
    assert_eq!(ask(&original, "sums"), sums);
    for mode in modes(site) {
        let spec = site.spec("never run");
        let began = Instant::now();
        let clone = clone(site, &spec, &snapshot, mode);
        let told = spec.journal.milestones();
        assert!(told.is_sorted_by_key(|(_, at)| *at), "{told:?}");
        let steps: Vec<_> = told.iter().map(|(milestone, _)| *milestone).collect();
        let all =
            [Milestone::Spawned, Milestone::Restored, Milestone::Resumed, Milestone::Listening];
        assert_eq!(steps, all, "{mode}");
        assert_eq!(ask(&clone, "sums"), sums, "{mode}");
        assert_eq!(spec.journal.ended(), None);
        faults_are_told(&clone, began);
        finish(&clone);
    }
    snapshot.verify().expect("clones change nothing");
}

/// The newest working set of a snapshot, as the pages in it.
fn recorded(from: &Snapshot) -> FaultTrace {
    let memory = from.memory_digest().expect("it has memory");
    let newest = working_set::newest_valid(from.dir(), memory).expect("read");
    newest.expect("there is one").1.trace()
}

/// However the memory is recorded and prefetched, the clone finds the original's in it.
pub(crate) fn every_policy_brings_the_same_memory(site: &Site) {
    let modes = modes(site);
    if !modes.contains(&MemoryMode::Prefetch) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let sums = ask(&original, "sums");
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let start = |mode, policy| {
        let spec = site.spec("never run");
        let clone = clone_by(site, &spec, &snapshot, Memory::new(mode, policy));
        assert_eq!(ask(&clone, "sums"), sums, "{mode}, {policy}");
        let paging = clone.sandbox.paging().expect("its memory arrives somehow");
        assert_eq!(paging.shortfall(), None, "{mode}, {policy}");
        let recorded = paging.finish_recording().expect("written");
        // Windows are served by what would record as well.
        let is_around = policy == PrefetchPolicy::FaultAround;
        assert_eq!(paging.discard_recording(), is_around, "{mode}, {policy}");
        assert_eq!(ask(&clone, "sums"), sums, "{mode}, {policy}");
        assert!(!paging.discard_recording(), "it has been ended");
        (paging.figures(), recorded)
    };
    // Without a working set.
    let (figures, number) = start(MemoryMode::Prefetch, PrefetchPolicy::FaultAround);
    assert_eq!((figures.mode, number), (MemoryMode::Prefetch, None));
    // Off the page cache, without the pager.
    let (_, number) = start(MemoryMode::File, PrefetchPolicy::Mincore);
    assert_eq!(number, Some(1));
    let pages = recorded(&snapshot).pages().len();
    assert!(pages > 100, "a guest needs more than {pages} pages");
    for policy in
        [PrefetchPolicy::Mincore, PrefetchPolicy::ReapSerial, PrefetchPolicy::ReapPipelined]
    {
        let (figures, number) = start(MemoryMode::Prefetch, policy);
        let told = (figures.mode, figures.prefetch, number);
        assert_eq!(told, (MemoryMode::Prefetch, Some(policy), None));
        assert!(figures.prefetched_pages > 0, "{policy}: {figures:?}");
    }
    snapshot.verify().expect("clones change nothing");
}

/// A second recording keeps what the first one touched.
pub(crate) fn recordings_are_merged(site: &Site) {
    if !modes(site).contains(&MemoryMode::Record) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    ask(&original, "write?300000+large");
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let record = |number: u32, question: &str| {
        let spec = site.spec("never run");
        let clone = clone(site, &spec, &snapshot, MemoryMode::Record);
        ask(&clone, question);
        let paging = clone.sandbox.paging().expect("its memory arrives somehow");
        let timeline = paging.arrival(Instant::now()).timeline.expect("the pager tells it");
        assert_eq!(paging.finish_recording().expect("written"), Some(number));
        let touched: BTreeSet<u32> = timeline.residual.iter().map(|fault| fault.1).collect();
        (touched, recorded(&snapshot))
    };
    // One reads a large file, the other none.
    let (_, first) = record(1, "sums");
    let (touched, both) = record(2, "clocks");
    let only = first.pages().iter().filter(|page| !touched.contains(*page)).count();
    assert!(only > 100, "the first has touched {only} pages more, else this test is blind");
    let lost = first.pages().iter().filter(|page| !both.holds(**page)).count();
    assert_eq!(lost, 0, "of {} pages", first.pages().len());
    assert!(both.pages().len() > first.pages().len(), "and what the second one touched is there");
}

/// A clone has the processor time that it is given, also where its original had more.
pub(crate) fn a_clones_processor_time_is_limited(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let mut spec = site.spec("never run");
    spec.cpu_millis = 500;
    let clone = clone(site, &spec, &snapshot, MemoryMode::File);
    half_a_processor(site, &clone, || assert_eq!(ask(&clone, "busy"), ["enough"]));
}

/// A clone finds its limits and the files that it is given where its original did, and no more of the
/// host; it can change them as little.
pub(crate) fn a_clone_finds_its_limits_and_files(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let content = Content::of(b"given".to_vec());
    let file = VolumeFile { path: "conf".to_owned(), mode: 0o444, content };
    let volumes = vec![Volume { path: "/etc/app".to_owned(), files: vec![file] }];
    let mut spec = site.spec(SCRIPTS);
    spec.process.volumes = volumes.clone();
    spec.uses.snapshots = true;
    let mut original = site.boot(&spec);
    original.listening();
    let before = ask(&original, "limits");
    let snapshot = snapshot(&mut original, dir.path());
    for mode in modes(site) {
        let mut spec = site.spec("never run");
        spec.process.volumes = volumes.clone();
        let clone = clone(site, &spec, &snapshot, mode);
        let found = ask(&clone, "limits");
        assert_eq!(found, before, "{mode}");
        assert!(found.iter().any(|line| line == "file:given"), "{mode}: {found:?}");
        let of_host = |line: &&String| line.starts_with("other:") || line.contains("vhive");
        assert_eq!(found.iter().find(of_host), None, "{mode}: {found:?}");
        finish(&clone);
    }
}

/// A VMM that was spawned ahead becomes a clone like any other, or leaves nothing.
pub(crate) fn a_waiting_vmm_goes_on(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let sums = ask(&original, "sums");
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    for mode in modes(site) {
        let pair = [site.spec("never run"), site.spec("never run")];
        let spawn = |spec: &SandboxSpec| restores(site).prespawn(spec, &snapshot, mode, soon());
        let [first, unused] = pair.each_ref().map(|spec| spawn(spec).expect("spawned"));
        let Some(first) = first else { return };
        assert_eq!(pair[0].journal.milestones(), [], "{mode}: nothing has been asked of it");
        drop(unused);
        let sandbox = first.restore(memory(mode), soon()).expect("restored");
        let clone = Booted { sandbox, journal: Arc::clone(&pair[0].journal) };
        assert_eq!(ask(&clone, "sums"), sums, "{mode}");
        assert_eq!(ask(&clone, "names")[0], pair[0].id.as_str(), "{mode}");
        finish(&clone);
    }
    let spec = site.spec("never run");
    let spawned = restores(site).prespawn(&spec, &snapshot, MemoryMode::File, soon());
    let spawned = spawned.expect("spawned").expect("the runtime can");
    let other = spawned.restore(memory(MemoryMode::Lazy), soon()).expect_err("another mode");
    assert!(matches!(other, RestoreError::Mode { .. }), "{other:?}");
}

/// The original and two clones of the same moment each see what was there before and what they
/// wrote themselves, and nothing else.
pub(crate) fn disks_part_at_the_snapshot(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let before = ask(&original, "sums");
    let snapshot = snapshot(&mut original, dir.path());
    ask(&original, "write?30000+after");
    for mode in modes(site) {
        let pair = [site.spec("never run"), site.spec("never run")];
        let pair = pair.map(|spec| clone(site, &spec, &snapshot, mode));
        ask(&pair[0], "write?40000+after");
        ask(&pair[1], "write?50000+after");
        // And one changes what was there.
        ask(&pair[1], "write?7+before");
        let [first, second] = [ask(&pair[0], "sums"), ask(&pair[1], "sums")];
        let original = ask(&original, "sums");
        assert_eq!((original.len(), first.len(), second.len()), (2, 2, 2), "{mode}");
        assert!(original.contains(&before[0]) && first.contains(&before[0]), "{mode}");
        assert!(!second.contains(&before[0]), "{mode}");
        let after = |sums: &[String]| sums.iter().find(|sum| sum.ends_with("after")).cloned();
        let all = [after(&original), after(&first), after(&second)];
        assert!(all.iter().all(Option::is_some), "{mode}: {all:?}");
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{mode}: {all:?}");
        pair.iter().for_each(finish);
    }
}

/// How far a guest's wall clock is behind this host's, in seconds: at least, and at most, since it tells
/// whole seconds and reading it takes time.
fn behind(booted: &Booted) -> (f64, f64) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let (before, lines, after) = (now(), ask(booted, "clocks"), now());
    let wall: f64 = lines[0].trim().parse().expect("a number");
    (before - (wall + 1.0), after - wall)
}

/// Clones of one snapshot have names, randomness and the right time of their own.
pub(crate) fn clones_are_somebody_else(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (spec, mut original) = original(site, Hooks::default());
    assert_eq!(ask(&original, "names")[0], spec.id.as_str());
    let snapshot = snapshot(&mut original, dir.path());
    let taken = Duration::from_nanos(snapshot.manifest().guest_ns);
    // A clock that nobody sets goes on from the snapshot, and would be wrong by as much.
    let (_hold, tick) = std::sync::mpsc::channel::<()>();
    let _ = tick.recv_timeout(LATER);
    let mut random = ask(&original, "random");
    for mode in modes(site) {
        for _ in 0..2 {
            let spec = site.spec("never run");
            let clone = clone(site, &spec, &snapshot, mode);
            random.extend(ask(&clone, "random"));
            let names = ask(&clone, "names");
            let id = spec.id.as_str();
            assert_eq!((names[0].as_str(), names[1].as_str()), (id, id), "{mode}");
            assert!(names[2].ends_with(id), "{mode}: {names:?}");
            let (least, most) = behind(&clone);
            assert!(least < MOST_BEHIND && most > -MOST_BEHIND, "{mode}: {least} to {most} s");
            let clocks = ask(&clone, "clocks");
            let uptime = clocks[1].split(' ').next().and_then(|text| text.parse().ok());
            let uptime = Duration::from_secs_f64(uptime.expect("seconds"));
            // Its own time has stood still in between.
            let since = uptime.checked_sub(taken).expect("later than the snapshot");
            assert!(since < Duration::from_secs(60), "{mode}: {since:?}");
            finish(&clone);
        }
    }
    let all = random.len();
    random.sort_unstable();
    random.dedup();
    assert_eq!(random.len(), all, "{random:?}");
}

/// The function's hooks run, whether they are paths or commands and although they print more than a
/// pipe holds: one before the snapshot, one in every clone; a hook that fails keeps the snapshot from
/// being taken, or the clone from being used.
pub(crate) fn hooks_are_called(site: &Site) {
    hooks_of_a_kind(site, "/cgi-bin/", ("missing", "404"));
    hooks_of_a_kind(site, "exec:/srv/cgi-bin/", ("refuse", "ended with 3"));
}

fn hooks_of_a_kind(site: &Site, prefix: &str, (bad, says): (&str, &str)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| Some(format!("{prefix}{name}"));
    let hooks = Hooks { before_snapshot: path("before"), after_restore: path("after") };
    let (_, mut first) = original(site, hooks);
    let snapshot = snapshot(&mut first, dir.path());
    let names = |booted: &Booted| -> Vec<String> {
        let sums = ask(booted, "sums");
        sums.iter()
            .filter_map(|sum| sum.split_once("  ").map(|(_, name)| name.to_owned()))
            .collect()
    };
    assert_eq!(names(&first), ["before", "hook-before"]);
    let spec = site.spec("never run");
    let restored = clone(site, &spec, &snapshot, MemoryMode::File);
    assert_eq!(names(&restored), ["before", "hook-after", "hook-before"]);
    drop((first, restored, spec));

    let hooks = Hooks { before_snapshot: path(bad), after_restore: None };
    let (_, mut refuses) = original(site, hooks);
    let error = try_snapshot(&mut refuses, &dir.path().join("refused")).expect_err("refused");
    assert!(matches!(&error, SnapshotError::Guest(why) if why.contains(says)), "{error:?}");
    assert_eq!(names(&refuses), ["before"]);
    drop(refuses);

    let hooks = Hooks { before_snapshot: None, after_restore: path(bad) };
    let (_, mut fine) = original(site, hooks);
    let snapshot = try_snapshot(&mut fine, &dir.path().join("second")).expect("snapshotted");
    let spec = site.spec("never run");
    let refused = restores(site).restore(&spec, &snapshot, memory(MemoryMode::File), soon());
    let error = refused.expect_err("its hook fails");
    let RestoreError::Start(BootError::Guest { reason, .. }) = &error else { panic!("{error:?}") };
    assert!(reason.contains(says), "{reason}");
    assert_ne!(error.blame(), Blame::Snapshot);
}

/// Damaged state is refused with the runtime's own words, and blamed on the snapshot.
pub(crate) fn damaged_state_is_refused(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let path = snapshot.dir().join(VM_STATE);
    let good = fs::read(&path).expect("read");
    let bad = [good[..good.len() / 2].to_vec(), Vec::new(), vec![0x55; good.len()]];
    for bytes in bad {
        fs::write(&path, bytes).expect("written");
        let spec = site.spec("never run");
        let refused = restores(site).restore(&spec, &snapshot, memory(MemoryMode::File), soon());
        let error = refused.expect_err("refused");
        assert_eq!(error.blame(), Blame::Snapshot, "{error:?}");
    }
    fs::write(&path, &good).expect("written");
    // What is in the memory file cannot be told from what the guest did; its digest can.
    let memory = fs::File::options().write(true).open(snapshot.dir().join(MEMORY)).expect("opened");
    memory.write_all_at(&[0xff; 64], 1 << 20).expect("written");
    assert!(snapshot.verify().is_err());
}

/// A clone whose memory cannot be served is killed, and its journal says why.
pub(crate) fn a_clone_that_cannot_be_served_says_why(site: &Site) {
    if !modes(site).contains(&MemoryMode::Lazy) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut original) = original(site, Hooks::default());
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let spec = site.spec("never run");
    let clone = clone(site, &spec, &snapshot, MemoryMode::Lazy);
    let memory = fs::File::options().write(true).open(snapshot.dir().join(MEMORY));
    memory.expect("opened").set_len(0).expect("cut");
    // It reads what it has not read since it was restored.
    let asked = TcpStream::connect_timeout(&clone.endpoint(), Duration::from_secs(1));
    // It may have gone already.
    let _ = asked.and_then(|mut asked| asked.write_all(b"GET /cgi-bin/sums HTTP/1.0\r\n\r\n"));
    let end = spec.journal.wait_end(soon()).expect("it ends").to_string();
    let wanted = "serve guest memory failed: the memory file ends before page ";
    assert!(end.starts_with(wanted), "{end}");
}

/// The address of the node is the same in every slot; whether it answers depends on the slot that a
/// clone gets, not on the one that the snapshot was taken in.
pub(crate) fn a_clone_reaches_the_node_if_allowed(site: &Site) {
    let mut spec = site.spec(HTTPD);
    spec.uses.snapshots = true;
    spec.process.gateway_names = vec![A_SERVICE.to_owned()];
    let mut booted = site.boot(&spec);
    booted.listening();
    let ask = |booted: &Booted, answer: &str| {
        let reply = get(booted.endpoint(), &format!("/cgi-bin/fetch?{A_SERVICE}+80"));
        assert!(reply.ends_with(answer), "{reply}");
    };
    ask(&booted, "unreachable\n");
    let dir = tempfile::tempdir().expect("a directory");
    let from = snapshot(&mut booted, dir.path());
    drop(booted);
    for (opened, answer) in [(true, "the node\n"), (false, "unreachable\n")] {
        let spec = site.spec(HTTPD);
        if opened {
            site.open_ingress(&spec);
        }
        let again = clone(site, &spec, &from, MemoryMode::File);
        ask(&again, answer);
    }
}

/// A connection that the function itself held at the snapshot stays the original's: a clone is told as
/// soon as it uses it, and can make a new one.
pub(crate) fn own_connections_end_when_used(site: &Site) {
    let mut spec = site.spec(SCRIPTS);
    spec.process.gateway_names = vec![A_SERVICE.to_owned()];
    site.open_ingress(&spec);
    let mut booted = site.boot(&spec);
    booted.listening();
    assert_eq!(ask(&booted, "hold"), ["held"]);
    let dir = tempfile::tempdir().expect("a directory");
    let from = snapshot(&mut booted, dir.path());
    let spec = site.spec("never run");
    site.open_ingress(&spec);
    let again = clone(site, &spec, &from, MemoryMode::File);
    assert_eq!(ask(&again, "say"), ["over"], "nothing is heard, and within two seconds it is over");
    let anew = get(again.endpoint(), &format!("/cgi-bin/fetch?{A_SERVICE}+80"));
    assert!(anew.ends_with("the node\n"), "{anew}");
    let heard = ask(&booted, "say");
    assert!(heard.contains(&"the node".to_owned()), "the original's goes on: {heard:?}");
}

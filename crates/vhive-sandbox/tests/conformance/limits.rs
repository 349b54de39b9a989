//! Promises about what a function may use, and what it sees of that.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use vhive_api::guest::Stream;
use vhive_api::{Bytes, RuntimeName};
use vhive_sandbox::{End, cgroup};

use crate::promises::wait_for_line;
use crate::site::{Booted, Site, image_with_files, soon};

/// A machine's memory and processors are those asked for, processors rounded up.
pub(crate) fn a_guest_has_the_size_asked_for(site: &Site) {
    let mut spec = site.spec("grep MemTotal: /proc/meminfo; grep -c ^processor /proc/cpuinfo");
    spec.cpu_millis = 1500;
    let booted = site.boot(&spec);
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let lines = booted.lines(Stream::Stdout);
    let kib = lines[0].split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let (kib, asked) = (kib.expect("a number"), spec.memory.0 / 1024);
    assert!((asked * 6 / 10..=asked).contains(&kib), "{kib} of {asked} KiB");
    assert_eq!(lines[1], "2");
}

/// Takes 60 MiB, and goes on once it has them, until `/tmp/full1` and `/tmp/full2` are removed. What has
/// been read is written only then.
pub(crate) const TAKE_60: &str = r"
    for i in 1 2; do
        dd if=/dev/zero bs=30M count=1 2>/dev/null | {
            head -c 1 >/dev/null; : > /tmp/full$i
            while [ -e /tmp/full$i ]; do sleep 0.2; done; } &
        takers=$takers\ $!
    done
    until [ -e /tmp/full1 ] && [ -e /tmp/full2 ]; do sleep 0.1; done";

/// A function that takes more memory than its limit is killed, and the reason is said; one that
/// takes less is not.
pub(crate) fn limits_are_real(site: &Site) {
    // One buffer of that size, filled once.
    let take = |mib: u32| format!("exec dd if=/dev/zero of=/dev/null bs={mib}M count=1");
    let mut spec = site.spec(&take(16));
    spec.memory = Bytes::mib(128);
    let modest = site.boot(&spec);
    assert_eq!(modest.journal.wait_end(soon()), Some(End::Exited(0)));
    assert_eq!(modest.lines(Stream::Stderr)[0], "1+0 records in");
    drop(modest);
    // Three that together have more than there is; the last is the largest, and is the function.
    let mut spec = site.spec(&format!("{TAKE_60}; {}", take(80)));
    spec.memory = Bytes::mib(128);
    let greedy = site.boot(&spec);
    let end = greedy.journal.wait_end(soon()).expect("ended");
    let text = end.to_string();
    assert!(text.contains("OOM"), "{text}; {:?}", greedy.journal.tail(20));
}

/// That a function goes on without one of its processes is no mystery: while it lives the console says
/// why, at least where the limit is the host's, and so does its end.
pub(crate) fn a_killed_child_is_told(site: &Site) {
    let worker = "dd if=/dev/zero of=/dev/null bs=80M count=1 2>/dev/null";
    let script = format!("{TAKE_60}; {worker}; echo worker $?; while :; do sleep 1; done");
    let mut spec = site.spec(&format!("trap 'exit 3' TERM; {script}"));
    spec.memory = Bytes::mib(128);
    let mut booted = site.boot(&spec);
    // Of gVisor, whose kernel has all of the memory, the host kills everything.
    if site.runtime.name() == RuntimeName::Runsc {
        let end = booted.journal.wait_end(soon()).expect("ended").to_string();
        assert!(end.contains("OOM"), "{end}");
        return;
    }
    wait_for_line(&booted, "worker 137");
    if !site.runtime.name().is_machine() {
        let deadline = soon();
        let (_hold, tick) = mpsc::channel::<()>();
        while booted.lines(Stream::Console).is_empty() && !deadline.passed() {
            let _ = tick.recv_timeout(Duration::from_millis(20));
        }
        let said = booted.lines(Stream::Console);
        assert!(said.len() == 1 && said[0].contains("memory limit"), "{said:?}");
    }
    booted.sandbox.stop(soon());
    assert_eq!(booted.journal.ended(), Some(End::ShortOfMemory(3)));
}

/// Kinds of file systems, as statfs(2) names them.
const TMPFS: &str = "1021994";
const CGROUP2: &str = "63677270";

/// Where programs look for what they may use, they find what was asked for, and nothing of the host:
/// in their control groups or, in a machine, in the machine's size.
pub(crate) fn a_function_finds_its_limits(site: &Site) {
    let script = r#"cd /sys/fs/cgroup
        cat memory.max memory/memory.limit_in_bytes 2>/dev/null | sed 's/^/bytes:/'
        sed -n 's/MemTotal: *\([0-9]*\) kB/kib:\1/p' /proc/meminfo
        for dir in cpu cpu,cpuacct; do
            test -e $dir/cpu.cfs_quota_us || continue
            echo "cpu:$(cat $dir/cpu.cfs_quota_us) $(cat $dir/cpu.cfs_period_us)"; done
        sed 's/^/cpu:/' cpu.max 2>/dev/null
        echo "cpu:$(grep -c ^processor /proc/cpuinfo) 1"
        sed 's/^/group:/' /proc/self/cgroup /proc/1/cgroup 2>/dev/null
        test -e memory/memory.limit_in_bytes && echo "one:$(stat -f -c %t .)"
        test -e memory.max && echo "two:$(stat -f -c %t .)"
        for dir in . */; do
            mkdir $dir/made 2>/dev/null && echo "written:mkdir $dir"
            (echo 0 > $dir/cgroup.procs) 2>/dev/null && echo "written:procs $dir"; done
        (echo > file) 2>/dev/null && echo written:file
        ls -d /sys/fs/cgroup/vhive* /sys/fs/cgroup/*/vhive* 2>/dev/null | sed 's/^/other:/'"#;
    let mut spec = site.spec(script);
    spec.cpu_millis = 1500;
    let booted = site.boot(&spec);
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let lines = booted.lines(Stream::Stdout);
    let tagged = |tag: &'static str| lines.iter().filter_map(move |line| line.strip_prefix(tag));
    let number = |text: &str| text.parse::<u64>().ok();
    let kib = tagged("kib:").filter_map(|kib| Some(number(kib)? * 1024));
    let least = tagged("bytes:").filter_map(number).chain(kib).min().expect("somebody says it");
    assert!((spec.memory.0 * 6 / 10..=spec.memory.0).contains(&least), "{least}: {lines:?}");
    let cpus = tagged("cpu:").filter_map(|line| {
        let (quota, period) = line.split_once(' ')?;
        Some(number(quota)? * 1000 / number(period)?)
    });
    let millis = cpus.min().expect("somebody says it");
    // A machine has whole processors.
    assert!([1500, 2000].contains(&millis), "{millis}: {lines:?}");
    let of_host = |line: &&str| line.contains("vhive") || line.contains(spec.id.as_str());
    assert_eq!(tagged("group:").find(of_host), None, "{lines:?}");
    assert_eq!(tagged("other:").next(), None, "{lines:?}");
    // Of which version they are, programs tell by the kind of the file system around them.
    assert!(tagged("one:").all(|kind| kind == TMPFS), "{lines:?}");
    assert!(tagged("two:").all(|kind| kind == CGROUP2), "{lines:?}");
    assert_eq!(tagged("written:").next(), None, "{lines:?}");
}

/// What a container has beside its function is what its memory is charged with as well: nothing is
/// mounted twice, and its first process has one thread and one heap (a further one takes 64 MiB of
/// addresses).
pub(crate) fn little_is_beside_a_function(site: &Site) {
    // Init looks whether it listens first, and then does not any more.
    let script = "look() { sed -n 's/^Threads:[[:space:]]*/threads:/p' /proc/1/status; }
        sleep 0.3; look; httpd -p 8080 -h /srv; sleep 1; look
        cut -d' ' -f5 /proc/self/mountinfo | sort | uniq -d | sed 's/^/twice:/'
        sed -n 's/^VmSize:[[:space:]]*\\([0-9]*\\) kB/kib:\\1/p' /proc/1/status
        echo end";
    let booted = site.boot(&site.spec(script));
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let lines = booted.lines(Stream::Stdout);
    let tagged = |tag: &str| -> Vec<&str> {
        lines.iter().filter_map(|line| line.strip_prefix(tag)).collect()
    };
    assert_eq!(tagged("twice:"), [""; 0], "{lines:?}");
    assert_eq!(tagged("threads:"), ["1", "1"], "{lines:?}");
    let kib = tagged("kib:").first().and_then(|kib| kib.parse::<u64>().ok());
    assert!(kib.is_some_and(|kib| kib < 16 << 10), "{lines:?}");
}

/// Where a container has file systems of its own, it does not matter what its image has.
pub(crate) fn an_image_with_files_where_something_is_mounted_boots(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut spec =
        site.spec("cat /proc/1/comm >/dev/null && test -c /dev/null && ls /sys && echo fine");
    spec.rootfs = image_with_files(dir.path(), &["proc", "dev", "sys"]);
    let booted = site.boot(&spec);
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    assert!(booted.lines(Stream::Stdout).iter().any(|line| line == "fine"));
}

/// Keeps two processors busy for three seconds, between two lines.
pub(crate) const BUSY: &str =
    "(while :; do :; done) & (while :; do :; done) & echo busy; sleep 3; echo enough; sleep 60";

/// What was asked for in processor time is what there is, however many processors the host or the
/// guest has.
pub(crate) fn processor_time_is_limited(site: &Site) {
    let mut spec = site.spec(BUSY);
    spec.cpu_millis = 500;
    let booted = site.boot(&spec);
    wait_for_line(&booted, "busy");
    half_a_processor(site, &booted, || wait_for_line(&booted, "enough"));
}

/// What a sandbox uses while its function wants all that it can get is half a processor.
pub(crate) fn half_a_processor(site: &Site, booted: &Booted, meanwhile: impl FnOnce()) {
    let used = || {
        let time = cgroup::cpu_time(&site.root, booted.sandbox.id()).expect("somebody counts it");
        Duration::from_micros(time.total_us)
    };
    let (before, began) = (used(), Instant::now());
    meanwhile();
    let (used, passed) = (used() - before, began.elapsed());
    // What has been begun is finished; on a busy host it gets less.
    let (least, most) = (passed / 20, passed / 2 + passed / 10 + Duration::from_millis(100));
    assert!((least..most).contains(&used), "{used:?} within {passed:?}");
}

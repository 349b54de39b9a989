//! The promises.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vhive_api::RuntimeName;
use vhive_api::guest::{Content, Process, Stream, Volume, VolumeFile};
use vhive_sandbox::{BootError, Deadline, End, Milestone, RunError, Uses};

use crate::afterlife;
use crate::calls;
use crate::full;
use crate::greedy;
use crate::inside;
use crate::killed;
use crate::limits;
use crate::outward;
use crate::processors;
use crate::restored;
use crate::site::{Booted, Site, get, soon};
use crate::traces::Held;

/// One thing that a runtime promises.
pub(crate) struct Promise {
    pub(crate) name: &'static str,
    /// Only a runtime that runs the function's own program can keep it.
    pub(crate) real: bool,
    /// For runtimes with virtual machines only, for those without only, or for both.
    pub(crate) machine: Option<bool>,
    /// Only a runtime that restores snapshots can keep it.
    pub(crate) restores: bool,
    /// It is checked on a host of its own, which this one must be able to carry.
    pub(crate) lab: bool,
    pub(crate) body: fn(&Site),
}

const fn any(name: &'static str, body: fn(&Site)) -> Promise {
    Promise { name, real: false, machine: None, restores: false, lab: false, body }
}

const fn real(name: &'static str, body: fn(&Site)) -> Promise {
    Promise { name, real: true, machine: None, restores: false, lab: false, body }
}

const fn machine(name: &'static str, body: fn(&Site)) -> Promise {
    Promise { machine: Some(true), ..real(name, body) }
}

const fn container(name: &'static str, body: fn(&Site)) -> Promise {
    Promise { machine: Some(false), ..real(name, body) }
}

const fn clone(name: &'static str, body: fn(&Site)) -> Promise {
    Promise { name, real: true, machine: None, restores: true, lab: false, body }
}

/// The table of promises.
pub(crate) const ALL: &[Promise] = &[
    any("boots_and_answers", boots_and_answers),
    any("stops_when_asked", stops_when_asked),
    any("many_starts_leave_nothing", many_starts_leave_nothing),
    real("process_is_as_configured", process_is_as_configured),
    real("streams_are_the_users_own", inside::streams_are_the_users_own),
    real(
        "limits_of_processes_are_the_same_everywhere",
        inside::limits_of_processes_are_the_same_everywhere,
    ),
    real("low_ports_are_free_to_all", inside::low_ports_are_free_to_all),
    real("what_the_image_lacks_is_made", what_the_image_lacks_is_made),
    real("files_are_where_they_are_wanted", files_are_where_they_are_wanted),
    real("commands_run_beside_the_function", commands_run_beside_the_function),
    real("exit_and_output_are_told", exit_and_output_are_told),
    real("unfit_processes_are_named", unfit_processes_are_named),
    real("stop_has_a_grace_period", stop_has_a_grace_period),
    machine("a_guest_has_the_size_asked_for", limits::a_guest_has_the_size_asked_for),
    real("limits_are_real", limits::limits_are_real),
    real("a_killed_child_is_told", limits::a_killed_child_is_told),
    real("a_function_finds_its_limits", limits::a_function_finds_its_limits),
    real("processor_time_is_limited", limits::processor_time_is_limited),
    container("little_is_beside_a_function", limits::little_is_beside_a_function),
    container("a_container_stays_inside", a_container_stays_inside),
    container("the_hosts_kernel_is_kept_shut", calls::the_hosts_kernel_is_kept_shut),
    real("a_greedy_function_hurts_itself_only", greedy::a_greedy_function_hurts_itself_only),
    real("a_sandbox_goes_before_its_node", greedy::a_sandbox_goes_before_its_node),
    real("nothing_of_the_host_is_seen", nothing_of_the_host_is_seen),
    real("a_killed_sandbox_is_noticed", a_killed_sandbox_is_noticed),
    container(
        "an_image_with_files_where_something_is_mounted_boots",
        limits::an_image_with_files_where_something_is_mounted_boots,
    ),
    container("a_start_that_is_killed_is_told", killed::a_start_that_is_killed_is_told),
    real("a_boot_ends_at_its_deadline", a_boot_ends_at_its_deadline),
    real("neighbours_are_out_of_reach", neighbours_are_out_of_reach),
    real("the_node_is_reached_if_allowed", the_node_is_reached_if_allowed),
    Promise {
        lab: true,
        ..real("what_is_allowed_is_reached_by_name", outward::what_is_allowed_is_reached_by_name)
    },
    machine("the_vmm_is_nobody", the_vmm_is_nobody),
    clone("a_clone_answers_as_the_original", restored::a_clone_answers_as_the_original),
    clone(
        "a_clone_lives_and_ends_as_its_original",
        afterlife::a_clone_lives_and_ends_as_its_original,
    ),
    clone("every_policy_brings_the_same_memory", restored::every_policy_brings_the_same_memory),
    clone("recordings_are_merged", restored::recordings_are_merged),
    clone("a_waiting_vmm_goes_on", restored::a_waiting_vmm_goes_on),
    clone("a_clones_processor_time_is_limited", restored::a_clones_processor_time_is_limited),
    clone("a_clone_finds_its_limits_and_files", restored::a_clone_finds_its_limits_and_files),
    clone("disks_part_at_the_snapshot", restored::disks_part_at_the_snapshot),
    clone("clones_are_somebody_else", restored::clones_are_somebody_else),
    clone("a_clone_reaches_the_node_if_allowed", restored::a_clone_reaches_the_node_if_allowed),
    Promise {
        machine: Some(false),
        ..clone(
            "a_snapshot_that_is_killed_costs_itself",
            killed::a_snapshot_that_is_killed_costs_itself,
        )
    },
    Promise {
        machine: Some(false),
        ..clone(
            "a_restore_that_is_killed_costs_itself",
            killed::a_restore_that_is_killed_costs_itself,
        )
    },
    Promise {
        lab: true,
        ..clone("a_clone_reaches_what_is_allowed", outward::a_clone_reaches_what_is_allowed)
    },
    Promise {
        machine: Some(true),
        ..clone(
            "a_guest_with_two_processors_is_restored",
            processors::a_guest_with_two_processors_is_restored,
        )
    },
    clone("a_snapshot_on_a_full_disk_costs_itself", full::a_snapshot_on_a_full_disk_costs_itself),
    Promise {
        machine: Some(true),
        ..clone("own_connections_end_when_used", restored::own_connections_end_when_used)
    },
    clone("hooks_are_called", restored::hooks_are_called),
    clone("damaged_state_is_refused", restored::damaged_state_is_refused),
    clone(
        "a_clone_that_cannot_be_served_says_why",
        restored::a_clone_that_cannot_be_served_says_why,
    ),
];

/// A name under which a guest is told to find its node.
pub(crate) const A_SERVICE: &str = "a.b.svc.cluster.local";

pub(crate) const HTTPD: &str = "exec httpd -f -p 8080 -h /srv";

/// A function is started, listens, and answers at the endpoint; each step is told, in order.
fn boots_and_answers(site: &Site) {
    let spec = site.spec(HTTPD);
    let booted = site.boot(&spec);
    booted.listening();
    let reply = get(booted.endpoint(), "/index.html");
    let told = booted.journal.milestones();
    assert!(told.is_sorted_by_key(|(_, at)| *at), "{told:?}");
    let steps: Vec<_> = told.iter().map(|(milestone, _)| *milestone).collect();
    let all = [
        Milestone::Spawned,
        Milestone::KernelUp,
        Milestone::Mounted,
        Milestone::Started,
        Milestone::Listening,
    ];
    // Where no init of ours is inside, nobody can tell the two in between.
    let alone = site.runtime.name() == RuntimeName::Runsc && spec.uses == Uses::default();
    assert_eq!(steps, if alone { vec![all[0], all[3], all[4]] } else { all.to_vec() });
    let error = booted.journal.clock_error();
    assert!(alone || error.is_some_and(|error| error < Duration::from_secs(1)));
    assert_eq!(booted.journal.ended(), None);
    let accelerated = site.runtime.known_accelerator();
    assert_eq!(accelerated.is_some(), site.runtime.name().is_machine());
    assert!(accelerated.is_none_or(|choice| !choice.reason.is_empty()), "it says why");
    if !spec.rootfs.as_os_str().is_empty() {
        assert_eq!(reply, "hello from inside\n");
        assert_eq!(booted.endpoint().port(), 8080);
        assert_eq!(booted.sandbox.processes().len(), 1);
    }
}

/// A function that is asked to stop has ended when `stop` returns, well before the deadline.
fn stops_when_asked(site: &Site) {
    let mut booted = site.boot(&site.spec(HTTPD));
    booted.listening();
    let deadline = soon();
    booted.sandbox.stop(deadline);
    assert!(booted.journal.ended().is_some());
    assert!(deadline.left() > Duration::from_secs(30));
}

/// The sites check for traces after every promise; this one gives them more to find, half of it asked
/// to stop and half of it just dropped. The process that has had them holds no more than before.
fn many_starts_leave_nothing(site: &Site) {
    // A machine's boot takes seconds; fifty of them are a benchmark's (`boot-reliability`).
    let pairs = if site.runtime.name() == RuntimeName::Qemu { 5 } else { 25 };
    let mut held = None;
    for round in 0..pairs {
        let pair = [site.boot_soon(&site.spec(HTTPD)), site.boot_soon(&site.spec(HTTPD))];
        let pair = pair.map(|thread| thread.join().expect("booted"));
        site.expect_traces();
        let [mut stopped, dropped] = pair;
        stopped.sandbox.stop(soon());
        drop((stopped, dropped));
        if round == 1 {
            // By now everything is there that is made once.
            held = Some(Held::now());
        }
    }
    let (before, deadline) = (held.expect("more than one round"), soon());
    // What has been given back is removed behind.
    let (_hold, tick) = std::sync::mpsc::channel::<()>();
    while !Held::now().is_within(before) && !deadline.passed() {
        let _ = tick.recv_timeout(Duration::from_millis(50));
    }
    assert!(Held::now().is_within(before), "{:?}, {before:?} before", Held::now());
}

/// What the function sees is what was asked for.
fn process_is_as_configured(site: &Site) {
    let script = r#"
        for a in "$0" "$@"; do echo "arg:$a"; done
        tr '\0' '\n' < /proc/$$/environ | sed 's/^/env:/'
        echo "cwd:$(pwd)"; echo "id:$(id -u):$(id -g)"; echo "groups:$(id -G)"; echo "host:$(hostname)"
        sed 's/^/dns:/' /etc/resolv.conf; echo "hosts:$(grep -c localhost /etc/hosts)"
        echo "time:$(date +%s)"
        touch /tmp/x && echo "writable"; touch /etc/x /sys/x || echo "others are not"
        exec httpd -f -p 8080 -h /srv"#;
    let text = |text: &str| text.to_owned();
    let mut spec = site.spec_of(Process {
        args: ["/bin/sh", "-c", script, "zero", "two words", "", "ünï"].map(text).to_vec(),
        env: ["B=2", "A=0", "EMPTY=", "A=1 and more", "PATH=/bin"].map(text).to_vec(),
        user: text("alice"),
        cwd: text("/home/alice"),
        ..Process::default()
    });
    spec.cpu_millis = 1500;
    let booted = site.boot(&spec);
    booted.listening();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let lines = booted.lines(Stream::Stdout);
    let tagged = |tag: &str| -> Vec<String> {
        lines.iter().filter_map(|line| line.strip_prefix(tag).map(text)).collect()
    };
    assert_eq!(tagged("arg:"), ["zero", "two words", "", "ünï"]);
    // In this order; like every container runtime, HOME is added from the image's passwd.
    let mut expected = ["B=2", "A=1 and more", "EMPTY=", "PATH=/bin", "HOME=/home/alice"];
    let mut variables = tagged("env:");
    if site.runtime.name() == RuntimeName::Runsc && spec.uses == Uses::default() {
        // Where no init of ours is inside, gVisor hands them over as they come out of its map.
        expected.sort_unstable();
        variables.sort();
    }
    assert_eq!(variables, expected);
    assert_eq!(tagged("cwd:"), ["/home/alice"]);
    assert_eq!(tagged("id:"), ["1234:2345"]);
    assert_eq!(tagged("groups:"), ["2345 3456"]);
    assert_eq!(tagged("host:"), [spec.id.as_str()]);
    assert_ne!(tagged("hosts:"), ["0"]);
    let network = spec.network.as_ref().expect("real runtimes have one");
    let servers = network.guest().dns.iter().map(|server| format!("nameserver {server}"));
    assert_eq!(tagged("dns:"), servers.collect::<Vec<_>>());
    for told in ["writable", "others are not"] {
        assert!(lines.contains(&text(told)), "{lines:?}");
    }
    let inside: u64 = tagged("time:")[0].parse().expect("a number");
    assert!(inside.abs_diff(now) <= 2, "{inside} inside, {now} outside");
}

/// A function finds its working directory and the usual ones, and what the image has is as it was.
fn what_the_image_lacks_is_made(site: &Site) {
    let script = "pwd; for d in . /made /run /var/tmp /tmp /etc /; do stat -c '%n %a %u' $d; done; \
        echo $TWICE; cat /etc/hostname; grep -c $(hostname) /etc/hosts; id -un";
    let spec = site.spec_of(Process {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: ["TWICE=first", "PATH=/bin", "TWICE=last"].map(str::to_owned).to_vec(),
        cwd: "/made/deep".to_owned(),
        user: "alice".to_owned(),
        ..Process::default()
    });
    let booted = site.boot(&spec);
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let id = spec.id.as_str();
    let wanted = [
        "/made/deep",
        ". 755 0",
        "/made 755 0",
        "/run 755 0",
        "/var/tmp 1777 0",
        "/tmp 1777 0",
        "/etc 755 0",
        "/ 755 0",
        "last",
        id,
        "1",
        "alice",
    ];
    assert_eq!(booted.lines(Stream::Stdout), wanted, "{:?}", booted.lines(Stream::Stderr));
}

/// Each volume has its files with their bytes and modes, in place of what the image has there; nobody
/// can change them, not even root.
fn files_are_where_they_are_wanted(site: &Site) {
    let file = |path: &str, mode, bytes: &[u8]| VolumeFile {
        path: path.to_owned(),
        mode,
        content: Content::of(bytes.to_vec()),
    };
    let volume = |path: &str, files| Volume { path: path.to_owned(), files };
    let script = r#"cd /etc/app; for f in conf deep/bin own/key; do
            echo "$f $(stat -c %a $f) $(md5sum < $f | cut -c1-32)"; done
        ls /srv; for f in /etc/app/new /etc/app/conf /etc/app/own/new /srv/new; do
            ( echo x > $f ) 2>/dev/null && echo "changed $f"; done; echo end"#;
    let spec_for = |user: &str| {
        site.spec_of(Process {
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned()],
            user: user.to_owned(),
            volumes: vec![
                volume("/etc/app/own", vec![file("key", 0o444, b"inner")]),
                volume(
                    "/etc/app",
                    vec![file("conf", 0o644, b"hello"), file("deep/bin", 0o555, &[0, 0xff])],
                ),
                volume("/srv", Vec::new()),
            ],
            ..Process::default()
        })
    };
    let wanted = [
        "conf 644 5d41402abc4b2a76b9719d911017c592",
        "deep/bin 555 d07d34efac6328007ad67c7e0a985e00",
        "own/key 444 ea97586b4aa0c141e4456912f3325f7f",
        "end",
    ];
    for user in ["alice", ""] {
        let booted = site.boot(&spec_for(user));
        assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
        let said = booted.lines(Stream::Stdout);
        assert_eq!(said, wanted, "{user:?}: {:?}", booted.lines(Stream::Stderr));
    }
}

/// A command sees what the function sees, is killed when it takes too long, and says how it ended.
fn commands_run_beside_the_function(site: &Site) {
    let mut spec = site.spec_of(Process {
        args: ["sh", "-c", &format!("touch /tmp/there; {HTTPD}")].map(str::to_owned).to_vec(),
        env: ["PATH=/bin", "WORD=yes"].map(str::to_owned).to_vec(),
        user: "alice".to_owned(),
        ..Process::default()
    });
    spec.uses.commands = true;
    let mut booted = site.boot(&spec);
    booted.listening();
    let mut run = |script: &str, within: Duration| {
        let command = ["sh", "-c", script].map(str::to_owned);
        booted.sandbox.run(&command, Deadline::after(within))
    };
    let long = Duration::from_secs(30);
    assert_eq!(run("test -e /tmp/there -a $WORD = yes -a $(id -un) = alice", long), Ok(0));
    assert_eq!(run("echo lost; exit 7", long), Ok(7));
    assert_eq!(run("kill -9 $$", long), Ok(137));
    let late = run("sleep 60", Duration::from_millis(300));
    assert_eq!(late, Err(RunError::Failed("it took too long".to_owned())));
    let missing = booted.sandbox.run(&["/no/such".to_owned()], Deadline::after(long));
    assert!(
        matches!(&missing, Err(RunError::Failed(why)) if why.contains("/no/such")),
        "{missing:?}"
    );
    assert_eq!(get(booted.endpoint(), "/index.html"), "hello from inside\n");
    assert_eq!(booted.lines(Stream::Stdout), Vec::<String>::new());
}

/// Root in a container is not root of the host: each of these would be a way out, or up.
fn a_container_stays_inside(site: &Site) {
    let ways = [
        "mount -t tmpfs none /srv",
        "mount -t proc none /srv",
        "mknod /tmp/disk b 7 0 && head -c 1 /tmp/disk",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "head -c 1 /proc/kcore | grep .",
        "unshare -m true",
        "hostname changed",
        "date -s 2001-01-01; date +%Y | grep 2001",
        "echo > /sys/kernel/x",
        "for g in /sys/fs/cgroup /sys/fs/cgroup/*; do \
            { echo $$ > $g/cgroup.procs || mkdir $g/x; } && exit 0; done; exit 1",
    ];
    let tries = ways.map(|way| format!("( {way} ) >/dev/null 2>&1 && echo '{way}'"));
    let booted = site.boot(&site.spec(&format!("{}; echo end", tries.join("; "))));
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    assert_eq!(booted.lines(Stream::Stdout), ["end"]);
}

/// A function sees its own processes, files and devices, and nobody else's.
fn nothing_of_the_host_is_seen(site: &Site) {
    let script = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done; \
        ls -d /home/* /work /root/.cargo /dev/[hsv]d* /dev/kvm /dev/mem /var/lib 2>/dev/null; echo end";
    let spec = site.spec_of(Process {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned()],
        user: "alice".to_owned(),
        ..Process::default()
    });
    let booted = site.boot(&spec);
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let lines = booted.lines(Stream::Stdout);
    let host = fs::read_to_string("/proc/self/cmdline").expect("readable");
    let host = host.split('\0').next().expect("a program").to_owned();
    assert!(!lines.iter().any(|line| line.contains(&host)), "{lines:?}");
    let others = |line: &&String| {
        let own = ["sh ", "tr ", "vhive-init", "/home/alice", "end", "/init"];
        !line.trim().is_empty() && !own.iter().any(|own| line.contains(own))
    };
    // A guest's kernel has threads without a command line.
    assert_eq!(lines.iter().find(others), None, "{lines:?}");
}

/// Every line of both streams arrives, tagged, before the exit code; ending at once is no
/// failure to start.
fn exit_and_output_are_told(site: &Site) {
    let script = "echo out; echo err >&2; seq 1 3000; printf 'no newline'; exit 7";
    let booted = site.boot(&site.spec(script));
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(7)));
    let out = booted.lines(Stream::Stdout);
    assert_eq!(out.len(), 3002, "{:?}", &out[out.len().saturating_sub(3)..]);
    assert_eq!(
        (out[0].as_str(), out[3000].as_str(), out[3001].as_str()),
        ("out", "3000", "no newline")
    );
    assert_eq!(booted.lines(Stream::Stderr), ["err"]);
    let killed = site.boot(&site.spec("kill -9 $$"));
    assert_eq!(killed.journal.wait_end(soon()), Some(End::Exited(137)));
}

/// What cannot be started is said by name, by `boot` itself.
fn unfit_processes_are_named(site: &Site) {
    let process = |program: &str, user: &str, cwd: &str| Process {
        args: vec![program.to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        user: user.to_owned(),
        cwd: cwd.to_owned(),
        ..Process::default()
    };
    let cases = [
        (process("/no/such/program", "", ""), "/no/such/program"),
        (process("/etc/passwd", "", ""), "/etc/passwd"),
        (process("broken", "", ""), "broken"),
        (process("sh", "", "/etc/passwd"), "/etc/passwd"),
        (process("sh", "mallory", ""), "mallory"),
    ];
    for (process, name) in cases {
        let spec = site.spec_of(process);
        let error = site.try_boot(&spec).expect_err(name);
        let BootError::Guest { wanted: Milestone::Started, attempts: 1, reason } = &error else {
            panic!("{error:?}");
        };
        assert!(reason.contains(name), "{reason}");
        assert!(spec.journal.ended().is_some());
    }
}

/// The stop signal is the one asked for; who ignores it is killed after the grace period.
fn stop_has_a_grace_period(site: &Site) {
    let script =
        "trap 'echo got usr1; exit 3' USR1; trap '' TERM; echo ready; while :; do sleep 1; done";
    let boot = |signal: &str| {
        let mut spec = site.spec(script);
        spec.process.stop_signal = signal.to_owned();
        let booted = site.boot(&spec);
        wait_for_line(&booted, "ready");
        booted
    };
    let mut polite = boot("SIGUSR1");
    polite.sandbox.stop(soon());
    assert_eq!(polite.journal.ended(), Some(End::Exited(3)));
    assert_eq!(polite.lines(Stream::Stdout), ["ready", "got usr1"]);
    drop(polite);
    // Nobody traps that one here; it ends a process as the others do.
    let mut real_time = boot("SIGRTMIN+3");
    real_time.sandbox.stop(soon());
    assert_eq!(real_time.journal.ended(), Some(End::Exited(128 + 37)));
    drop(real_time);
    let mut stubborn = boot("");
    let deadline = Deadline::after(Duration::from_secs(4));
    stubborn.sandbox.stop(deadline);
    assert_eq!(stubborn.journal.ended(), Some(End::Exited(137)));
    assert!(deadline.left() < Duration::from_secs(1), "not given its time");
}

/// A VMM that dies takes nobody by surprise: the journal says so at once.
fn a_killed_sandbox_is_noticed(site: &Site) {
    let booted = site.boot(&site.spec(HTTPD));
    let pid = booted.sandbox.processes()[0];
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let end = booted.journal.wait_end(soon());
    // Whose child it is learns the signal as well.
    let said = |how: &str| how.contains("signal 9") || how.ends_with("ended");
    assert!(matches!(&end, Some(End::Vanished(how)) if said(how)), "{end:?}");
}

/// In less no program is started that starts another one.
const SHORTEST: Duration = Duration::from_millis(1);

/// A boot that takes too long ends in time, with the reason, wherever it is.
fn a_boot_ends_at_its_deadline(site: &Site) {
    let begin = Instant::now();
    drop(site.boot(&site.spec(HTTPD)));
    // An emulated machine's takes seconds, a container's less than a tenth of one.
    let whole = begin.elapsed();
    let parts = [Duration::ZERO, SHORTEST, whole / 30, whole / 8, whole / 2];
    for part in parts {
        let spec = site.spec(HTTPD);
        let deadline = Deadline::after(part);
        let booted = site.runtime.boot(&spec, deadline);
        let over = deadline.instant().elapsed();
        assert!(over < Duration::from_secs(2), "{over:?} too late");
        match booted {
            Err(error) => {
                assert!(!matches!(error, BootError::Host { .. }), "{error:?}");
                assert!(spec.journal.ended().is_some());
            }
            // The first one may have been slow.
            Ok(_) => assert!(part > SHORTEST, "there after {part:?}"),
        }
    }
}

/// A guest reaches neither another guest nor the host.
fn neighbours_are_out_of_reach(site: &Site) {
    let pair = [site.boot_soon(&site.spec(HTTPD)), site.boot_soon(&site.spec(HTTPD))];
    let [one, other] = pair.map(|thread| thread.join().expect("booted"));
    one.listening();
    other.listening();
    assert_ne!(one.endpoint(), other.endpoint());
    let host = std::net::TcpListener::bind("0.0.0.0:0").expect("a listener");
    let port = host.local_addr().expect("bound").port();
    let fetch = |address: &dyn std::fmt::Display, port| {
        get(one.endpoint(), &format!("/cgi-bin/fetch?{address}+{port}"))
    };
    let unreachable = |reply: String| {
        assert!(reply.ends_with("unreachable\n") && !reply.contains("hello"), "{reply}");
    };
    unreachable(fetch(&other.endpoint().ip(), 8080));
    unreachable(fetch(&vhive_sandbox::network::GATEWAY, port));
    // Where clouds keep credentials.
    unreachable(fetch(&"169.254.169.254", 80));
    // The same request to itself shows that the check would notice.
    let reply = fetch(&"127.0.0.1", 8080);
    assert!(reply.ends_with("hello from inside\n"), "{reply}");
}

/// A guest whose slot is opened for it reaches its node by the names that it is given, and no other
/// does.
fn the_node_is_reached_if_allowed(site: &Site) {
    let mut specs = [site.spec(HTTPD), site.spec(HTTPD)];
    for spec in &mut specs {
        spec.process.gateway_names = vec![A_SERVICE.to_owned()];
    }
    site.open_ingress(&specs[0]);
    let pair = specs.each_ref().map(|spec| site.boot_soon(spec));
    let pair = pair.map(|thread| thread.join().expect("booted"));
    for (booted, answer) in pair.iter().zip(["the node\n", "unreachable\n"]) {
        let reply = get(booted.endpoint(), &format!("/cgi-bin/fetch?{A_SERVICE}+80"));
        assert!(reply.ends_with(answer), "{reply}");
    }
}

/// The process that faces a hostile guest has no privileges, and limits.
fn the_vmm_is_nobody(site: &Site) {
    let spec = site.spec(HTTPD);
    let booted = site.boot(&spec);
    let pid = booted.sandbox.processes()[0].as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    // Firecracker's jailer leaves this one: it limits what a program brings, and with NoNewPrivs none
    // brings any.
    if site.runtime.name() != RuntimeName::Firecracker {
        assert_eq!(field("CapBnd:"), "0000000000000000");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let uid: u32 =
        field("Uid:").split('\t').next().expect("four numbers").parse().expect("a number");
    assert!(uid > 65_536, "{uid}");
    assert!(!field("Groups:").contains('0'), "{}", field("Groups:"));
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("readable");
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("readable");
    assert!(groups.contains(&format!("vhive-{}/{}", site.root.tag(), spec.id)), "{groups}");
}

pub(crate) fn wait_for_line(booted: &Booted, text: &str) {
    wait_for(booted, Stream::Stdout, text);
}

pub(crate) fn wait_for(booted: &Booted, stream: Stream, text: &str) {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    // Once this function has returned nobody listens any more.
    booted.journal.watch(move || tell.lock().expect("no panic").send(()).unwrap_or_default());
    let deadline = soon();
    while !booted.lines(stream).iter().any(|line| line == text) {
        if let Err(error) = told.recv_timeout(deadline.left()) {
            panic!("{error}; {:?}", booted.journal.tail(20));
        }
    }
}

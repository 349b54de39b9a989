//! Archives of snapshots: stopped on their way out, and kept out of a disk without room.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::{Pid, Signal, kill_process};
use vhive_tests::node::command;

use crate::scene::{Dir, apply, code, fill, invoke, mount, node, said, service, skip};
use crate::watch::{Watch, What};

/// How long a command may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service on `sim` with a snapshot.
fn snapshotted() -> String {
    let policy = "vhive.dev/snapshot-policy: vanilla\n        autoscaling.knative.dev/window";
    service("tiny", &[], "").replace("autoscaling.knative.dev/window", policy)
}

/// What comes of an archive, beginning with `half`.
const LENGTH: usize = 1 << 20;

/// A snapshot of `tiny` that a node had, exported to a file, and the list it was in.
struct Exported {
    dir: Dir,
    socket: PathBuf,
    place: PathBuf,
    file: PathBuf,
    whole: Vec<u8>,
    listed: String,
}

impl Exported {
    fn new(test: &str) -> Self {
        let dir = Dir::new(test);
        let socket = dir.path().join("api.sock");
        let node = node(&dir, &format!("[serving.api]\nsocket = {socket:?}\n"));
        apply(&node, &dir, &snapshotted());
        assert_eq!(invoke(&node, "tiny")["status"], 200);
        node.ok(&["evict", "tiny"]).expect("evicted");
        let listed = node.json(&["snapshot", "ls"]).expect("listed").to_string();
        let place = dir.path().join("archives");
        fs::create_dir(&place).expect("made");
        let file = place.join("tiny.tar");
        node.ok(&["snapshot", "export", "tiny", &file.to_string_lossy()]).expect("exported");
        let whole = fs::read(&file).expect("there");
        assert!(!whole.is_empty() && node.stop().expect("ends").success());
        Self { dir, socket, place, file, whole, listed }
    }

    /// A node in whose archive nothing comes after the beginning until it is told to go on; it ends when the
    /// sender is dropped, or the archive has been sent.
    fn slow_node(&self) -> (mpsc::Sender<()>, JoinHandle<()>) {
        drop(fs::remove_file(&self.socket));
        let listener = UnixListener::bind(&self.socket).expect("bound");
        let (go_on, told) = mpsc::channel::<()>();
        let listed = self.listed.clone();
        let slow = std::thread::spawn(move || {
            let (mut asked, _) = listener.accept().expect("asked for the list");
            let _head = asked.read(&mut [0; 4096]).expect("a request");
            let head =
                format!("Content-Type: application/json\r\nContent-Length: {}", listed.len());
            write!(asked, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{listed}").expect("answered");
            let (mut asked, _) = listener.accept().expect("asked for the archive");
            let _head = asked.read(&mut [0; 4096]).expect("a request");
            write!(asked, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\nhalf")
                .expect("begun");
            if told.recv().is_ok() {
                // Whoever asked may be ended by the test.
                drop(asked.write_all(&[b'x'; LENGTH - 4]));
            }
        });
        (go_on, slow)
    }

    /// `vhive snapshot export tiny`, started with these signals ignored.
    fn export(&self, to: &Path, ignored: &str) -> Child {
        let vhive = command(self.dir.path()).expect("built");
        let mut export = Command::new("sh");
        let script = format!("trap '' {ignored}; exec \"$0\" \"$@\"");
        let script = if ignored.is_empty() { "exec \"$0\" \"$@\"" } else { &script };
        export.args(["-c", script]).arg(vhive.get_program()).args(vhive.get_args());
        export.args(["snapshot", "export", "tiny"]).arg(to);
        export.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs")
    }
}

/// Waits until the draft of an archive has been written to.
fn until_draft(watch: &mut Watch) {
    watch.until("writing the draft", |path, what| {
        path.to_string_lossy().ends_with(".part") && what == What::Written
    });
}

#[test]
fn e2e_an_export_that_is_stopped_leaves_the_earlier_archive_and_nothing_else() {
    let test = "e2e_an_export_that_is_stopped_leaves_the_earlier_archive_and_nothing_else";
    if skip(test) {
        return;
    }
    let of = Exported::new("export");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (go_on, slow) = of.slow_node();
        let mut watch = Watch::below(&of.place);
        let export = of.export(&of.file, "");
        until_draft(&mut watch);
        kill_process(Pid::from_child(&export), signal).expect("signalled");
        let output = export.wait_with_output().expect("ends");
        drop(go_on);
        slow.join().expect("no panic");
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {}", said(&output));
        let left: Vec<_> = fs::read_dir(&of.place).expect("listed").flatten().collect();
        assert_eq!(left.len(), 1, "{signal:?}: {left:?}");
        assert!(fs::read(&of.file).expect("there") == of.whole, "{signal:?}: it is another");
    }
}

#[test]
fn e2e_an_export_goes_on_past_signals_that_it_was_started_to_ignore() {
    let test = "e2e_an_export_goes_on_past_signals_that_it_was_started_to_ignore";
    if skip(test) {
        return;
    }
    let of = Exported::new("export-nohup");
    let (go_on, slow) = of.slow_node();
    let mut watch = Watch::below(&of.place);
    let export = of.export(&of.file, "HUP INT");
    until_draft(&mut watch);
    for signal in [Signal::HUP, Signal::INT] {
        kill_process(Pid::from_child(&export), signal).expect("signalled");
    }
    go_on.send(()).expect("it waits");
    let output = export.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    slow.join().expect("no panic");
    let archive = fs::read(&of.file).expect("there");
    assert!(archive.len() == LENGTH && archive.starts_with(b"halfxxx"), "{}", archive.len());
}

#[test]
fn e2e_an_export_whose_reader_reads_no_more_can_be_stopped() {
    let test = "e2e_an_export_whose_reader_reads_no_more_can_be_stopped";
    if skip(test) {
        return;
    }
    let of = Exported::new("export-pipe");
    let pipe = of.dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("made");
    let (go_on, slow) = of.slow_node();
    let mut export = of.export(&pipe, "");
    let mut reader = fs::File::open(&pipe).expect("it writes");
    reader.read_exact(&mut [0; 4]).expect("the beginning");
    go_on.send(()).expect("it waits");
    // Until no more fits: then it waits for the reader.
    let size = rustix::pipe::fcntl_getpipe_size(&reader).expect("a pipe") as u64;
    let deadline = Instant::now() + PATIENCE;
    while rustix::io::ioctl_fionread(&reader).expect("a pipe") < size {
        assert!(Instant::now() < deadline, "the pipe does not fill");
        std::thread::yield_now();
    }
    let pid = Pid::from_child(&export);
    kill_process(pid, Signal::TERM).expect("signalled");
    let (told, ended) = mpsc::channel();
    let waits = std::thread::spawn(move || told.send(export.wait()));
    let status = ended.recv_timeout(PATIENCE);
    if status.is_err() {
        // It would wait for ever, and this test with it.
        kill_process(pid, Signal::KILL).expect("killed");
    }
    waits.join().expect("no panic").expect("heard or not");
    slow.join().expect("no panic");
    let status = status.expect("it ends").expect("waited for");
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status:?}");
}

#[test]
fn e2e_an_archive_is_taken_in_only_where_the_disk_has_room() {
    let test = "e2e_an_archive_is_taken_in_only_where_the_disk_has_room";
    if skip(test) {
        return;
    }
    let dir = Dir::new("import-full");
    let state = dir.path().join("state");
    let _mounted = match mount(&state, "32m") {
        Ok(mounted) => mounted,
        Err(lacks) => {
            eprintln!("SKIP {test}: {lacks}");
            return;
        }
    };
    let node = node(&dir, "");
    apply(&node, &dir, &snapshotted());
    assert_eq!(invoke(&node, "tiny")["status"], 200);
    node.ok(&["evict", "tiny"]).expect("evicted");
    let file = dir.path().join("tiny.tar");
    let file = file.to_string_lossy();
    node.ok(&["snapshot", "export", "tiny", &file]).expect("exported");
    node.ok(&["snapshot", "rm", "tiny"]).expect("removed");

    // There is room for the archive, and with it none for what else has to be written.
    let filler = fill(&state, 2 << 20);
    let refused = node.vhive(&["snapshot", "import", &file]).expect("runs");
    assert_eq!(code(&refused), 1);
    let told = said(&refused);
    assert!(told.contains("no room") && told.contains("import it again"), "{told}");
    let left: Vec<_> = fs::read_dir(state.join("snapshots")).expect("listed").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_file(filler).expect("removed");
    node.ok(&["snapshot", "import", &file]).expect("there is room now");
    assert_eq!(invoke(&node, "tiny")["record"]["start"], "snapshot");
    assert!(node.stop().expect("ends").success());
}

#[test]
fn e2e_an_archive_of_what_is_there_is_refused_by_name_however_long_it_is() {
    if skip("e2e_an_archive_of_what_is_there_is_refused_by_name_however_long_it_is") {
        return;
    }
    let dir = Dir::new("import-there");
    let node = node(&dir, "");
    apply(&node, &dir, &snapshotted());
    assert_eq!(invoke(&node, "tiny")["status"], 200);
    node.ok(&["evict", "tiny"]).expect("evicted");
    let file = dir.path().join("tiny.tar");
    let path = file.to_string_lossy();
    node.ok(&["snapshot", "export", "tiny", &path]).expect("exported");
    // What nobody reads: more than waits in sockets on the way.
    let longer = fs::File::options().write(true).open(&file).expect("opened");
    longer.set_len(1 << 30).expect("extended");
    for _ in 0..5 {
        let refused = node.vhive(&["snapshot", "import", &path]).expect("runs");
        assert_eq!(code(&refused), 1);
        assert!(said(&refused).contains("is already there; remove it first"), "{}", said(&refused));
    }
    assert!(node.stop().expect("ends").success());
}

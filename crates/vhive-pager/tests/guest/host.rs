//! The host's side: a memory file, guests as child processes, and what they may be asked.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tempfile::TempDir;
use vhive_api::Digest;
use vhive_pager::sys::{self, PAGE};
use vhive_pager::{
    Handoff, Mode, Pager, PreparedMemory, ServeError, Session, handshake, working_set,
};

use crate::guest::{Answer, Command, Layout, Spot, sum};

pub(crate) const GUEST: &str = "VHIVE_PAGER_TEST_GUEST";

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Numbers that a seed decides.
pub(crate) struct Random(TestRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound as u64).expect("below a usize")
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// A memory file of zero and other pages, and the directory it is in.
pub(crate) struct Memory {
    pub(crate) directory: TempDir,
    pub(crate) file: File,
    pub(crate) digest: Digest,
    pub(crate) layout: Layout,
    pub(crate) bytes: Vec<u8>,
}

impl Memory {
    /// Two regions, whose content lies in the file the other way round, and a third for [`Command::Churn`].
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (a, b, c) = (200 + random.below(200), 1 + random.below(100), 64);
        let layout = vec![(a, b), (b, 0), (c, a + b)];
        let mut bytes = vec![0; (a + b + c) * PAGE];
        for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
            if random.below(4) > 0 {
                for (at, word) in page.chunks_mut(8).enumerate() {
                    word.copy_from_slice(&((number * 1000 + at) as u64 | 1 << 40).to_le_bytes());
                }
            }
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("memory");
        std::fs::write(&path, &bytes).expect("written");
        let file = File::options().read(true).write(true).open(path).expect("opened");
        Self { directory, file, digest: Digest::of(&bytes), layout, bytes }
    }

    /// All pages of the first two regions.
    pub(crate) fn spots(&self) -> Vec<Spot> {
        let regions = self.layout.iter().take(2).enumerate();
        regions
            .flat_map(|(region, (pages, _))| (0..*pages).map(move |page| (region, page)))
            .collect()
    }

    pub(crate) fn shuffled(&self, random: &mut Random) -> Vec<Spot> {
        let mut spots = self.spots();
        random.shuffle(&mut spots);
        spots
    }

    /// What [`Command::Sums`] must tell.
    pub(crate) fn sums(&self) -> Vec<Vec<u64>> {
        let region = |(pages, offset): &(usize, usize)| {
            let bytes = &self.bytes[offset * PAGE..(offset + pages) * PAGE];
            bytes.chunks(PAGE).map(sum).collect()
        };
        self.layout.iter().map(region).collect()
    }

    pub(crate) fn prepared(&self, mode: Mode) -> PreparedMemory {
        let file = self.file.try_clone().expect("cloned");
        PreparedMemory { file, digest: self.digest, mode }
    }

    pub(crate) fn publish(&self, trace: &vhive_pager::FaultTrace) -> PathBuf {
        let bytes = working_set::create(trace, &self.file, self.digest).expect("created");
        working_set::publish(self.directory.path(), &bytes).expect("published")
    }

    pub(crate) fn flip(&self, path: &std::path::Path, at: u64) -> PathBuf {
        let flipped = path.with_extension(format!("flipped-{at}"));
        std::fs::copy(path, &flipped).expect("copied");
        let file = File::options().read(true).write(true).open(&flipped).expect("opened");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("there");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
        flipped
    }
}

/// A guest: killed when dropped, and by whoever holds its killer.
pub(crate) struct Guest {
    killer: Killer,
    socket: UnixStream,
    answers: BufReader<UnixStream>,
}

#[derive(Clone)]
pub(crate) struct Killer(Arc<Mutex<Child>>);

impl Killer {
    pub(crate) fn kill(&self) {
        let _ = self.0.lock().expect("no panic").kill();
    }
}

impl Guest {
    pub(crate) fn start(memory: &Memory) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let device = sys::open_device().expect("checked before");
        let child = Process::new(std::env::current_exe().expect("this program"))
            .env(GUEST, serde_json::to_string(&memory.layout).expect("serializes"))
            .stdin(Stdio::from(device))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .expect("spawned");
        ours.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let answers = BufReader::new(ours.try_clone().expect("cloned"));
        Self { killer: Killer(Arc::new(Mutex::new(child))), socket: ours, answers }
    }

    pub(crate) fn handoff(&self, memory: &Memory) -> Handoff {
        let handoff = handshake::receive(&self.socket, memory.bytes.len() as u64, soon());
        self.socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        handoff.expect("handed over")
    }

    pub(crate) fn send(&mut self, command: &Command) {
        let mut text = serde_json::to_vec(command).expect("serializes");
        text.push(b'\n');
        // A guest that was killed shows by having no answer.
        let _ = self.socket.write_all(&text);
    }

    /// What it answers; `None` if it is gone.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("an answer")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer in 30 s: {error}"),
        }
    }

    pub(crate) fn tell(&mut self, command: &Command) -> Answer {
        self.send(command);
        self.answer().expect("the guest lives")
    }

    pub(crate) fn touch(&mut self, order: &[Spot], threads: usize) {
        self.tell(&Command::Touch { order: order.to_vec(), threads });
    }

    pub(crate) fn sums(&mut self) -> Vec<Vec<u64>> {
        match self.tell(&Command::Sums) {
            Answer::Sums(sums) => sums,
            other => panic!("sums, not {other:?}"),
        }
    }

    pub(crate) fn kill(&self) {
        self.killer.kill();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        let _ = self.killer.0.lock().expect("no panic").wait();
    }
}

/// A guest that is served, and word of its death.
pub(crate) struct Served {
    // The guest goes first: a session must not end before its guest.
    pub(crate) guest: Guest,
    pub(crate) session: Session,
    /// Why it was reported dead.
    pub(crate) deaths: Receiver<String>,
}

pub(crate) fn serve(pager: &Pager, memory: &Memory, mode: Mode) -> Served {
    let prepared = pager.prepare(memory.prepared(mode)).expect("prepared");
    let guest = Guest::start(memory);
    let handoff = guest.handoff(memory);
    let (told, deaths) = channel();
    let killer = guest.killer.clone();
    let on_death = Box::new(move |failure: &ServeError| {
        killer.kill();
        let _ = told.send(failure.to_string());
    });
    let session = prepared.attach(handoff, on_death).expect("attached");
    Served { guest, session, deaths }
}

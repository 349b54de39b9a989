//! The thread that keeps reads of working sets in flight.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use super::plan::Plan;
use super::{Chunk, Desk, Done, LoadId, Staged};
use crate::ring::{Landed, Read, Ring};
use crate::sys::PAGE;
use crate::vm::lock;
use crate::working_set::{WorkingSetError, read_up_to};

/// Which chunk a read brings.
struct Token {
    load: LoadId,
    plan: Arc<Plan>,
    index: usize,
}

/// Starts the thread; `None` if the kernel gives it no `io_uring`.
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn start(desk: &Arc<Desk>, depth: usize) -> io::Result<Option<JoinHandle<()>>> {
    let (tell, told) = channel();
    let desk = Arc::clone(desk);
    let thread = thread::Builder::new().name("pager-read".to_owned());
    let thread = thread.spawn(move || run(&desk, depth, &tell))?;
    match told.recv() {
        Ok(Ok(())) => Ok(Some(thread)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no io_uring; working sets are read by threads");
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

/// The ring is made by the thread that uses it: the kernel knows it as the only one.
fn run(desk: &Desk, depth: usize, tell: &Sender<io::Result<()>>) {
    let mut ring = match Ring::new(depth) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let _ = tell.send(Ok(()));
    while desk.begin_reads(&mut ring) {
        match ring.turn() {
            Ok(all) => all.into_iter().for_each(|landed| desk.land(landed)),
            Err(error) => return desk.lose_reader(&error),
        }
    }
}

impl Desk {
    /// Notes as many reads as there is room for; sleeps while there is nothing to read. False at the end.
    fn begin_reads(&self, ring: &mut Ring<Token>) -> bool {
        let mut board = lock(&self.board);
        loop {
            if board.is_stopping {
                return false;
            }
            for _ in 0..ring.room() {
                let Some((load, plan, index, buffer)) = board.next_for_reader() else { break };
                let chunk = &plan.chunks[index];
                let bytes = u32::try_from(chunk.bytes).unwrap_or(u32::MAX);
                let (file, offset) = (Arc::clone(&plan.file), chunk.offset);
                let read = Read { file, buffer, bytes, offset };
                // There is room, so it does not come back.
                let _ = ring.begin(read, Token { load, plan, index });
            }
            if !ring.is_empty() {
                return true;
            }
            board = self.reads.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn land(&self, landed: Landed<Token>) {
        let Landed { read, token, outcome } = landed;
        let Token { load, plan, index } = token;
        let chunk = &plan.chunks[index];
        let mut buffer = read.buffer;
        let count = outcome.and_then(|count| {
            // A short read: the rest comes at once, or the file has ended.
            let is_short = count < chunk.bytes && count.is_multiple_of(PAGE);
            let rest = &mut buffer[count.min(chunk.bytes)..chunk.bytes];
            let offset = chunk.offset + count as u64;
            let more = if is_short { read_up_to(&plan.file, rest, offset)? } else { 0 };
            Ok(count + more)
        });
        let mut board = lock(&self.board);
        let outcome = match count {
            Ok(count) if count == chunk.bytes => {
                Ok(Done::Landed(Chunk { index, bytes: Staged::Pooled(buffer) }))
            }
            other => {
                board.free.push(buffer);
                Err(other.map_or_else(WorkingSetError::Read, |count| WorkingSetError::Length {
                    expected: chunk.offset + chunk.bytes as u64,
                    found: chunk.offset + count as u64,
                }))
            }
        };
        board.settle(load, outcome);
        drop(board);
        self.work.notify_one();
    }

    /// The kernel takes no more reads: the working sets under way end with an error, those that come are read by
    /// threads.
    fn lose_reader(&self, error: &io::Error) {
        tracing::error!(%error, "io_uring failed; working sets are read by fewer threads");
        let mut board = lock(&self.board);
        board.has_reader = false;
        let ids: Vec<LoadId> = board.loads.iter().map(|load| load.id).collect();
        for id in ids {
            let error = io::Error::other(error.to_string());
            board.end(id, Some(WorkingSetError::Read(error)));
        }
        drop(board);
        self.work.notify_all();
    }
}

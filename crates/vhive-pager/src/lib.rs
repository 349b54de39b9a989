//! Serves a restored guest's page faults from a file, and remembers which pages mattered (REAP).
//!
//! ```text
//!   snapshot/memory ────────────────┐            VMM (Firecracker, or QEMU with the shim)
//!   snapshot/working-set.<n> ──┐    │               │ uffd + where its memory lies
//!                              ▼    ▼               ▼
//!   Pager ──prepare──► Prepared (reading begins) ──attach──► Session ──may_resume──► the guest runs
//!                                                               │
//!                          recording: FaultTrace ──► working_set::create ──► working-set.<n+1>
//! ```
//!
//! ```no_run
//! use std::os::unix::net::UnixStream;
//! use std::time::{Duration, Instant};
//! use vhive_pager::{Mode, Pager, PagerConfig, PreparedMemory, PrefetchPolicy, handshake, working_set};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (vmm, digest) = (UnixStream::pair()?.0, vhive_api::Digest::of(b""));
//! let pager = Pager::start(&PagerConfig::default())?;
//! let file = std::fs::File::open("snapshot/memory")?;
//! let mode = Mode::Record { policy: PrefetchPolicy::ReapPipelined };
//! let prepared = pager.prepare(PreparedMemory { file: file.try_clone()?, digest, mode })?;
//! // Start the VMM here; it sends its memory's userfaultfd.
//! let deadline = Instant::now() + Duration::from_secs(10);
//! let handoff = handshake::receive(&vmm, prepared.memory_bytes(), deadline)?;
//! let session = prepared.attach(handoff, Box::new(|why| eprintln!("kill the VMM here: {why}")))?;
//! session.may_resume(deadline)?;
//! // Resume the guest, let it work, and end the recording with its reply.
//! let trace = session.finish_recording().expect("it was recorded");
//! working_set::publish("snapshot".as_ref(), &working_set::create(&trace, &file, digest)?)?;
//! # Ok(()) }
//! ```
//!
//! Threads are bounded however many guests there are. A guest whose memory cannot be served is reported
//! dead *before* its userfaultfd is closed: afterwards its missing pages would silently read as zeros.
//! If this whole process dies, the kernel closes the descriptors: start VMMs so that they die with it.
//!
//! What this crate does not do: know VMMs beyond the hand-off message, decide whether to record or
//! prefetch, keep a working set's age, or serve pages other than 4 KiB.
#![warn(missing_docs)]

mod events;
mod handler;
pub mod handshake;
mod install;
mod loader;
mod memory_file;
mod pager;
pub mod pages;
mod place;
pub mod policy;
pub mod regions;
mod stats;
#[expect(unsafe_code, reason = "the one place: see its first lines")]
pub mod sys;
mod timeline;
mod trace;
mod vm;
pub mod working_set;

pub use handshake::Handoff;
pub use pager::{
    AttachError, Mode, Pager, PagerConfig, PagerError, PrepareError, Prepared, PreparedMemory,
    Session, WaitError,
};
pub use policy::PrefetchPolicy;
pub use stats::PagerStats;
pub use timeline::{FaultAt, MOST_TIMELINE, Timeline};
pub use trace::FaultTrace;
pub use vm::ServeError;
pub use working_set::{WorkingSet, WorkingSetError};

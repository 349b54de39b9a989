//! The hand-off: a VMM sends its memory's userfaultfd and where the memory lies, over a unix stream.
//!
//! The message is Firecracker's: a JSON array of
//! `{"base_host_virt_addr", "size", "offset", "page_size"}`, all in bytes, with the descriptor attached to
//! its first byte. Older Firecrackers say `page_size_kib`, and mean bytes.
//!
//! # Source
//! `docs/snapshotting/handling-page-faults-on-snapshot-resume.md` of Firecracker.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::regions::{Region, Regions, RegionsError};
use crate::sys::PAGE;

/// The longest message accepted, in bytes: twice what 64 regions take.
pub const MOST_BYTES: usize = 16 << 10;
const MOST_DESCRIPTORS: usize = 4;

/// A guest's memory, handed over. Dropping it closes the userfaultfd, after which missing pages read
/// as zeros: the guest must not run then.
#[derive(Debug)]
pub struct Handoff {
    /// Where faults come from and pages go to.
    pub uffd: OwnedFd,
    /// Where the memory lies.
    pub regions: Regions,
}

/// Why a hand-off is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The message did not come in time.
    #[error("no complete hand-off message came before the deadline")]
    Deadline,
    /// The other side went away before its message was complete.
    #[error("the connection ended after {0} bytes of the hand-off message")]
    Ended(usize),
    /// The socket failed.
    #[error("cannot receive the hand-off message")]
    Receive(#[source] io::Error),
    /// The message goes on beyond what is sensible.
    #[error("the hand-off message is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// It is not the JSON that it should be.
    #[error("the hand-off message is not understood")]
    Json(#[source] serde_json::Error),
    /// The message came without a descriptor.
    #[error("the hand-off message carries no descriptor")]
    NoDescriptor,
    /// The message came with several descriptors.
    #[error("the hand-off message carries more than one descriptor")]
    Descriptors,
    /// The descriptor is something else.
    #[error("the descriptor handed over is not a userfaultfd but {0:?}")]
    NotUserfaultfd(String),
    /// A region is backed by huge pages.
    #[error("pages of {0} bytes are not served; only pages of {PAGE} bytes are")]
    PageSize(u64),
    /// The regions make no sense.
    #[error("the memory handed over is not acceptable")]
    Regions(#[from] RegionsError),
}

#[derive(Deserialize)]
struct Received {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

#[derive(Serialize)]
struct Sent {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

/// Receives one hand-off of a guest whose memory file has `memory_bytes` bytes.
///
/// # Errors
/// What is wrong with it; descriptors that came are closed then.
pub fn receive(
    stream: &UnixStream,
    memory_bytes: u64,
    deadline: Instant,
) -> Result<Handoff, HandoffError> {
    let (mut message, mut descriptors) = (Vec::new(), Vec::new());
    let regions = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HandoffError::Deadline);
        }
        stream.set_read_timeout(Some(left)).map_err(HandoffError::Receive)?;
        if receive_some(stream.as_fd(), &mut message, &mut descriptors)? == 0 {
            return Err(HandoffError::Ended(message.len()));
        }
        if descriptors.len() > 1 {
            return Err(HandoffError::Descriptors);
        }
        match serde_json::from_slice::<Vec<Received>>(&message) {
            Ok(regions) => break regions,
            Err(error) if !error.is_eof() => return Err(HandoffError::Json(error)),
            Err(_) if message.len() >= MOST_BYTES => return Err(HandoffError::TooLong),
            Err(_) => {}
        }
    };
    let regions = check(&regions, memory_bytes)?;
    let uffd = descriptors.pop().ok_or(HandoffError::NoDescriptor)?;
    let what = fs::read_link(format!("/proc/self/fd/{}", uffd.as_raw_fd()));
    let what = what.map_err(HandoffError::Receive)?.to_string_lossy().into_owned();
    if what != "anon_inode:[userfaultfd]" {
        return Err(HandoffError::NotUserfaultfd(what));
    }
    Ok(Handoff { uffd, regions })
}

fn check(received: &[Received], memory_bytes: u64) -> Result<Regions, HandoffError> {
    let mut regions = Vec::with_capacity(received.len());
    for region in received {
        let page_size = region.page_size.or(region.page_size_kib).unwrap_or(0);
        if page_size != PAGE as u64 {
            return Err(HandoffError::PageSize(page_size));
        }
        let Received { base_host_virt_addr: address, size: bytes, offset, .. } = *region;
        regions.push(Region { address, bytes, offset });
    }
    Ok(Regions::new(&regions, memory_bytes)?)
}

fn receive_some(
    stream: BorrowedFd<'_>,
    message: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, HandoffError> {
    let mut bytes = [0; 4096];
    let room = bytes.len().min(MOST_BYTES - message.len());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes[..room])];
        match recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(HandoffError::Deadline),
            Err(errno) => return Err(HandoffError::Receive(errno.into())),
            Ok(received) => break received,
        }
    };
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = part {
            descriptors.extend(sent);
        }
    }
    message.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}

/// Sends a hand-off as Firecracker does.
///
/// # Errors
/// As the socket says.
pub fn send(stream: BorrowedFd<'_>, uffd: BorrowedFd<'_>, regions: &[Region]) -> io::Result<()> {
    let sent: Vec<Sent> = regions
        .iter()
        .map(|region| Sent {
            base_host_virt_addr: region.address,
            size: region.bytes,
            offset: region.offset,
            page_size: PAGE as u64,
        })
        .collect();
    let message = serde_json::to_vec(&sent)?;
    let descriptors = [uffd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    let count = sendmsg(stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
    let mut rest = &message[count..];
    while !rest.is_empty() {
        let count = rustix::net::send(stream, rest, SendFlags::NOSIGNAL)?;
        rest = &rest[count..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::sys;

    const MEMORY: u64 = 16 * PAGE as u64;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn answer_to(text: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Handoff, HandoffError> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let mut writer = theirs.try_clone().expect("cloned");
        let first = text.len().min(1);
        if first > 0 {
            sendmsg(&theirs, &[IoSlice::new(&text[..1])], &mut control, SendFlags::NOSIGNAL)
                .expect("sent");
        }
        writer.write_all(&text[first..]).expect("fits into the socket's buffer");
        drop((theirs, writer));
        receive(&ours, MEMORY, soon())
    }

    #[test]
    fn what_is_sent_is_received() {
        let Ok(uffd) = sys::create() else {
            println!("SKIP what_is_sent_is_received: userfaultfd");
            return;
        };
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let page = PAGE as u64;
        let regions = [
            Region { address: 8 * page, bytes: 2 * page, offset: 4 * page },
            Region { address: 64 * page, bytes: 4 * page, offset: 0 },
        ];
        send(theirs.as_fd(), uffd.as_fd(), &regions).expect("sent");
        let handoff = receive(&ours, MEMORY, soon()).expect("received");
        assert_eq!(handoff.regions.as_slice(), regions);
        sys::handshake(handoff.uffd.as_fd(), 0).expect("it is a userfaultfd");
        assert!(matches!(
            receive(&ours, MEMORY, Instant::now() + Duration::from_millis(20)),
            Err(HandoffError::Deadline)
        ));
    }

    #[test]
    fn hostile_messages_are_refused_by_name() {
        let null = File::open("/dev/null").expect("there");
        let (one, two) = ([null.as_fd()], [null.as_fd(), null.as_fd()]);
        let good = br#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size_kib":4096,"new":1}]"#;
        assert!(matches!(answer_to(good, &[]), Err(HandoffError::NoDescriptor)));
        assert!(matches!(answer_to(good, &two), Err(HandoffError::Descriptors)));
        let Err(HandoffError::NotUserfaultfd(what)) = answer_to(good, &one) else {
            panic!("accepted");
        };
        assert_eq!(what, "/dev/null");
        assert!(matches!(answer_to(&good[..20], &one), Err(HandoffError::Ended(20))));
        assert!(matches!(answer_to(b"", &[]), Err(HandoffError::Ended(0))));
        assert!(matches!(answer_to(b"{}", &one), Err(HandoffError::Json(_))));
        assert!(matches!(answer_to(b"[]", &one), Err(HandoffError::Regions(RegionsError::None))));
        let huge = br#"[{"base_host_virt_addr":0,"size":2097152,"offset":0,"page_size":2097152}]"#;
        assert!(matches!(answer_to(huge, &one), Err(HandoffError::PageSize(2_097_152))));
        let none = br#"[{"base_host_virt_addr":0,"size":4096,"offset":0}]"#;
        assert!(matches!(answer_to(none, &one), Err(HandoffError::PageSize(0))));
        let mut endless = b"[".to_vec();
        endless.resize(2 * MOST_BYTES, b' ');
        assert!(matches!(answer_to(&endless, &one), Err(HandoffError::TooLong)));
        let deep = vec![b'['; 4096];
        assert!(matches!(answer_to(&deep, &one), Err(HandoffError::Json(_))));
    }

    proptest! {
        #[test]
        fn no_message_makes_us_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(answer_to(&text, &[]).is_err());
        }

        #[test]
        fn no_figures_make_us_panic(
            address in any::<u64>(), size in any::<u64>(), offset in any::<u64>(), page in 0u64..8192,
        ) {
            let text = format!(
                r#"[{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":{page}}}]"#
            );
            prop_assert!(answer_to(text.as_bytes(), &[]).is_err());
        }
    }
}

//! The contract between a host and the init inside its guests: framed messages over one byte
//! channel (a virtio-serial port under QEMU). The page is `docs/design/guest-contract.md`.
//!
//! ```text
//!   frame   = length (u32, little endian, 1 ..= MAX_FRAME) payload
//!   payload = one JSON value: a ToGuest (host → guest) or a FromGuest (guest → host)
//! ```
//!
//! Both sides treat the other as hostile: a frame that is too long, or not the expected JSON, ends
//! the conversation with an error that says which.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this contract; both sides refuse any other.
pub const VERSION: u32 = 2;

/// Longest payload in bytes.
pub const MAX_FRAME: u32 = 1 << 20;

/// Longest line of function output in one message, in bytes; longer ones are cut into several.
pub const MAX_LINE: usize = 8 << 10;

/// What the host says to the guest's init.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGuest {
    /// Answer to [`FromGuest::Hello`]: what to run. Comes exactly once.
    Start(Box<GuestConfig>),
    /// A snapshot is about to be taken: run the function's hook, then be quiet. Answered by
    /// [`FromGuest::Prepared`] or [`FromGuest::Unprepared`].
    PrepareSnapshot,
    /// The guest goes on after a snapshot. Answered by [`FromGuest::Resumed`].
    Resume(Box<Identity>),
    /// Run a command beside the function, as its user and with its variables. Its output is lost.
    /// Answered by [`FromGuest::Ran`]; one at a time.
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// Milliseconds after which it is killed.
        timeout_ms: u64,
    },
    /// Stop the function by its stop signal, kill it after the grace period, power off.
    Stop {
        /// Milliseconds between the stop signal and SIGKILL.
        grace_ms: u64,
    },
}

/// What the guest's init says to the host. `at_ns` is the guest's CLOCK_MONOTONIC in nanoseconds,
/// which starts near zero when its kernel does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromGuest {
    /// The kernel is up and init runs: the first message.
    Hello {
        /// [`VERSION`] of the guest's side.
        version: u32,
        /// Guest time.
        at_ns: u64,
    },
    /// The root file system is in place.
    Mounted {
        /// Guest time.
        at_ns: u64,
        /// Time from writing `Hello` to having read `Start`, which bounds the error with which
        /// guest times can be placed on the host's clock.
        handshake_ns: u64,
    },
    /// The function's process has been started.
    Started {
        /// Guest time.
        at_ns: u64,
        /// Its process id in the guest.
        pid: u32,
    },
    /// Something listens on the function's port.
    Listening {
        /// Guest time.
        at_ns: u64,
    },
    /// The guest is ready to be snapshotted: the hook has run, nothing is on its way.
    Prepared {
        /// Guest time.
        at_ns: u64,
    },
    /// It is not, and goes on as before.
    Unprepared {
        /// Guest time.
        at_ns: u64,
        /// Why not: the hook's failure.
        reason: String,
    },
    /// The guest goes on, with the identity that it was told.
    Resumed {
        /// Guest time, which has stood still while the guest did.
        at_ns: u64,
    },
    /// A command has ended, or could not be run.
    Ran {
        /// Guest time.
        at_ns: u64,
        /// Exit code, or 128 + signal number; none if it could not be run.
        code: Option<i32>,
        /// What went wrong, if anything did but the command itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// One line (or a cut of a long one) that the function wrote.
    Output {
        /// Guest time.
        at_ns: u64,
        /// Which stream.
        stream: Stream,
        /// The text without its newline; bytes that are no UTF-8 are replaced.
        line: String,
    },
    /// The function ended; init ends the sandbox after this.
    Exited {
        /// Guest time.
        at_ns: u64,
        /// Exit code, or 128 + signal number.
        code: i32,
        /// The guest's memory was used up, and a process was killed: this one, if the code says that it
        /// was killed.
        #[serde(default)]
        out_of_memory: bool,
    },
    /// Init could not do a step; it powers the guest off after this.
    Failed {
        /// Guest time.
        at_ns: u64,
        /// What it was about to do, e.g. `mount root`.
        step: String,
        /// Why that failed.
        reason: String,
    },
}

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The function's standard output.
    Stdout,
    /// The function's standard error.
    Stderr,
    /// The guest kernel's console, or the runtime's own messages.
    Console,
}

/// Everything init needs to start the function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// What to run.
    pub process: Process,
    /// Host name inside the guest.
    pub hostname: String,
    /// TCP port whose listening is reported.
    pub port: u16,
    /// Interface configuration; none = loopback only.
    pub network: Option<GuestNetwork>,
    /// Wall clock in nanoseconds after the Unix epoch, at the time of writing.
    pub now_unix_ns: u64,
    /// Fresh random bytes for the guest's entropy pool, hexadecimal.
    pub entropy: String,
    /// What the function wants to be told of snapshots.
    #[serde(default)]
    pub hooks: Hooks,
}

/// How the function is told of snapshots. A hook that begins with a slash is a path to which init
/// sends a POST on the function's port, HTTP/1.1; a status from 200 to 299 is success. One that begins
/// with `exec:` is a command of the image and its arguments, separated by spaces, which init runs as
/// the function's user; code 0 is success. Either has five seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Before a snapshot is taken: the place to close connections and to forget secrets. If it
    /// fails there is no snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_snapshot: Option<String>,
    /// In every clone before its first request: the place to seed the language's own random
    /// numbers. If it fails the clone is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_restore: Option<String>,
}

/// Who a guest is after a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Whether it is a clone, restored from the snapshot, or the one that the snapshot was taken
    /// of. Only a clone takes name and entropy, and runs the function's hook.
    pub clone: bool,
    /// Host name.
    pub hostname: String,
    /// Addresses, for `/etc/hosts` and `/etc/resolv.conf`. The interface's own address is the same
    /// for every guest.
    pub network: Option<GuestNetwork>,
    /// Wall clock in nanoseconds after the Unix epoch, at the time of writing.
    pub now_unix_ns: u64,
    /// Fresh random bytes for the guest's entropy pool, hexadecimal.
    pub entropy: String,
}

/// The process to run: the image's configuration with the revision's changes applied.
///
/// # Source
/// OCI image-spec, `config.md`; Knative runtime contract.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty = root. Names are looked up in the image.
    pub user: String,
    /// Working directory; empty = `/`.
    pub cwd: String,
    /// `SIGTERM`, `TERM` or a number; empty = SIGTERM.
    pub stop_signal: String,
    /// Directories of files that it finds in its root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Names that mean its gateway, in `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway_names: Vec<String>,
}

/// A directory of files in a function's root, in place of what the image has there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// What is in it.
    pub files: Vec<VolumeFile>,
}

/// One file of a [`Volume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Below the volume's path, without `.` and `..`; directories on the way are made.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
}

/// Bytes that may be secret: as text where they are, for the channel's sake. Debug output shows only
/// how many they are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// UTF-8.
    Text(String),
    /// Anything else, hexadecimal.
    Hex(String),
}

impl Content {
    /// These bytes.
    ///
    /// ```
    /// use vhive_api::guest::Content;
    /// assert_eq!(Content::of(vec![0xff]).bytes().as_deref(), Some([0xff].as_slice()));
    /// assert_eq!(format!("{:?}", Content::of(b"secret".to_vec())), "6 bytes");
    /// ```
    #[must_use]
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(other) => Self::Hex(hex::encode(other.as_bytes())),
        }
    }

    /// The bytes; none if they were damaged on the way.
    #[must_use]
    pub fn bytes(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text.as_bytes())),
            Self::Hex(digits) => hex::decode(digits).ok().map(Cow::Owned),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Text(text) => text.len(),
            Self::Hex(digits) => digits.len() / 2,
        };
        write!(f, "{bytes} bytes")
    }
}

/// Addresses of the guest's one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNetwork {
    /// The guest's address.
    pub address: std::net::Ipv4Addr,
    /// Length of the network prefix in bits.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: std::net::Ipv4Addr,
    /// Name servers for `resolv.conf`; may be empty.
    pub dns: Vec<std::net::Ipv4Addr>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The channel failed or ended in the middle of a frame.
    #[error("channel broke")]
    Channel(#[from] io::Error),
    /// A length of zero or above [`MAX_FRAME`].
    #[error("frame of {0} bytes; 1 to {MAX_FRAME} are allowed")]
    Length(u64),
    /// Not the JSON that this side expects.
    #[error("frame is not a known message")]
    Message(#[from] serde_json::Error),
}

/// Writes one message as one frame in one `write_all`.
///
/// # Errors
/// [`FrameError`]; after it the channel's state is unknown and it should be closed.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let checked = u32::try_from(length).ok().filter(|n| *n <= MAX_FRAME);
    let Some(checked) = checked else {
        return Err(FrameError::Length(length as u64));
    };
    frame[..4].copy_from_slice(&checked.to_le_bytes());
    to.write_all(&frame)?;
    to.flush()?;
    Ok(())
}

/// Reads one message. `None` when the channel ended between two frames.
///
/// # Errors
/// [`FrameError`]; after it the channel's state is unknown and it should be closed.
///
/// ```
/// use vhive_api::guest::{ToGuest, read_frame, write_frame};
/// let mut wire = Vec::new();
/// write_frame(&mut wire, &ToGuest::Stop { grace_ms: 10 }).unwrap();
/// let mut wire = wire.as_slice();
/// assert_eq!(read_frame(&mut wire).unwrap(), Some(ToGuest::Stop { grace_ms: 10 }));
/// assert_eq!(read_frame::<ToGuest>(&mut wire).unwrap(), None);
/// ```
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = u32::from_le_bytes(length);
    if length == 0 || length > MAX_FRAME {
        return Err(FrameError::Length(length.into()));
    }
    let mut payload = Vec::new();
    let got = from.take(length.into()).read_to_end(&mut payload)?;
    if got as u64 != u64::from(length) {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&payload)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_lengths_are_refused_without_allocating() {
        for length in [0, MAX_FRAME + 1, u32::MAX] {
            let wire = length.to_le_bytes();
            let read = read_frame::<FromGuest>(&mut wire.as_slice());
            assert!(matches!(read, Err(FrameError::Length(_))), "{length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_message(bytes: Vec<u8>) {
            let _ = read_frame::<FromGuest>(&mut bytes.as_slice());
            let _ = read_frame::<ToGuest>(&mut bytes.as_slice());
        }

        #[test]
        fn output_round_trips(line: String, at_ns: u64) {
            let sent = FromGuest::Output { at_ns, stream: Stream::Stderr, line };
            let mut wire = Vec::new();
            write_frame(&mut wire, &sent).unwrap();
            assert_eq!(read_frame(&mut wire.as_slice()).unwrap(), Some(sent));
        }
    }
}

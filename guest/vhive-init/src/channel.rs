//! The framed channel to the host: in a microVM a virtio-serial port, found by its name, or the
//! serial port, if the host says so; in a container standard input and output, which are pipes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use vhive_api::guest::{
    FrameError, FromGuest, GuestConfig, MAX_FRAME, ToGuest, VERSION, read_frame, write_frame,
};

use crate::clock;
use crate::failure::{Failure, Step as _};
use crate::serial;
use crate::uevent::Uevents;

/// Name of the port among the guest's virtio-serial ports.
const PORT: &str = "vhive.0";

/// The channel, with what has been read of a frame and what the host has not yet taken.
#[derive(Debug)]
pub(crate) struct Channel {
    /// From the host.
    input: File,
    /// To the host; in a microVM the same port.
    output: File,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Whether it is a serial port, which takes bytes long before they are sent.
    is_serial: bool,
}

/// What the host's answer to `Hello` brought.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) config: GuestConfig,
    /// Nanoseconds from writing `Hello` to having read the answer.
    pub(crate) handshake_ns: u64,
}

impl Channel {
    /// Waits for the port and opens it.
    pub(crate) fn open(uevents: &Uevents) -> Result<Self, Failure> {
        if serial::is_channel() {
            let output = serial::open()?;
            let input = output.try_clone().step("open the serial port")?;
            return Ok(Self { is_serial: true, ..Self::new(input, output) });
        }
        let path = uevents.until(find_port)?;
        let port = OpenOptions::new().read(true).write(true).open(&path);
        let step = || format!("open the host's channel {}", path.display());
        let output = port.step(step())?;
        let input = output.try_clone().step(step())?;
        Ok(Self::new(input, output))
    }

    /// Takes standard input and output.
    pub(crate) fn of_stdio() -> Result<Self, Failure> {
        let take = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
        let step = "open the host's channel";
        let input = take(io::stdin().as_fd()).step(step)?;
        let output = take(io::stdout().as_fd()).step(step)?;
        Ok(Self::new(input, output))
    }

    const fn new(input: File, output: File) -> Self {
        Self { input, output, incoming: Vec::new(), outgoing: Vec::new(), is_serial: false }
    }

    /// Readable when the host has said something.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Writable when the host takes something.
    pub(crate) fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Says hello and waits for what to start. The only part of the conversation that blocks:
    /// the kernel lets the first write wait until the host has opened its side.
    pub(crate) fn hello(&mut self) -> Result<Started, Failure> {
        let step = "greet the host";
        let at_ns = clock::now_ns();
        write_frame(&mut self.output, &FromGuest::Hello { version: VERSION, at_ns }).step(step)?;
        let answer = read_frame(&mut self.input).map_err(|error| describe(&error)).step(step)?;
        let handshake_ns = clock::now_ns() - at_ns;
        for end in [&self.input, &self.output] {
            let flags = fcntl_getfl(end).step(step)?;
            fcntl_setfl(end, flags | OFlags::NONBLOCK).step(step)?;
        }
        match answer {
            Some(ToGuest::Start(config)) => Ok(Started { config: *config, handshake_ns }),
            Some(_) => Err("it said something else before start").step(step),
            None => Err("it hung up").step(step),
        }
    }

    /// Queues a message; [`Self::flush`] sends it.
    pub(crate) fn queue(&mut self, message: &FromGuest) {
        if write_frame(&mut self.outgoing, message).is_err() {
            // Only a message above MAX_FRAME cannot be written; it has left a partial frame
            // nowhere, and lines are far shorter.
            let _ = writeln!(io::stderr(), "vhive-init: message too long for the channel");
        }
    }

    /// Bytes that the host has not taken yet.
    pub(crate) const fn backlog(&self) -> usize {
        self.outgoing.len()
    }

    /// Hands the host as much as it takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        while !self.outgoing.is_empty() {
            match self.output.write(&self.outgoing) {
                Ok(0) => return Err("it takes nothing").step("write to the host"),
                Ok(sent) => drop(self.outgoing.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).step("write to the host"),
            }
        }
        Ok(())
    }

    /// Waits until the host has taken everything.
    pub(crate) fn finish(&mut self, until: Instant) -> Result<(), Failure> {
        loop {
            self.flush()?;
            let left = until.saturating_duration_since(Instant::now());
            if self.outgoing.is_empty() {
                return if self.is_serial { serial::drain(&self.output) } else { Ok(()) };
            }
            if left.is_zero() {
                return Err("it does not take the last messages").step("write to the host");
            }
            let timeout = Timespec::try_from(left).step("write to the host")?;
            let mut port = [PollFd::new(&self.output, PollFlags::OUT)];
            match poll(&mut port, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).step("write to the host"),
            }
        }
    }

    /// What the host has said by now. Its hanging up is a failure: a guest without a host has no
    /// purpose.
    pub(crate) fn receive(&mut self) -> Result<Vec<ToGuest>, Failure> {
        let step = "read from the host";
        let mut chunk = [0; 4096];
        let mut messages = Vec::new();
        loop {
            match self.input.read(&mut chunk) {
                Ok(0) => return Err("it hung up").step(step),
                Ok(got) => self.incoming.extend_from_slice(&chunk[..got]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(messages),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).step(step),
            }
            while let Some(message) =
                take_frame(&mut self.incoming).map_err(|error| describe(&error)).step(step)?
            {
                messages.push(message);
            }
        }
    }
}

/// Takes the first whole message off the buffer.
fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<ToGuest>, FrameError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*header);
    let whole = 4 + usize::try_from(length).unwrap_or(usize::MAX - 4);
    if (1..=MAX_FRAME).contains(&length) && buffer.len() < whole {
        return Ok(None);
    }
    let message = read_frame(&mut buffer.as_slice())?;
    buffer.drain(..whole.min(buffer.len()));
    Ok(message)
}

/// The error with its cause: the host sees one string.
fn describe(error: &FrameError) -> String {
    match error {
        FrameError::Channel(cause) => format!("{error}: {cause}"),
        FrameError::Message(cause) => format!("{error}: {cause}"),
        FrameError::Length(_) => error.to_string(),
    }
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = |port: &fs::DirEntry| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT)
    };
    let port = ports.flatten().find(named)?;
    Some(PathBuf::from("/dev").join(port.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(grace_ms: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &ToGuest::Stop { grace_ms }).unwrap();
        bytes
    }

    #[test]
    fn frames_are_put_together_from_pieces() {
        let wire = [frame(1), frame(2)].concat();
        let (mut buffer, mut messages) = (Vec::new(), Vec::new());
        for byte in wire {
            buffer.push(byte);
            messages.extend(take_frame(&mut buffer).unwrap());
        }
        let expected = [ToGuest::Stop { grace_ms: 1 }, ToGuest::Stop { grace_ms: 2 }];
        assert_eq!(messages, expected);
        assert!(buffer.is_empty());
    }

    #[test]
    fn garbage_is_an_error_at_once() {
        for length in [0, MAX_FRAME + 1, u32::MAX] {
            let mut buffer = length.to_le_bytes().to_vec();
            assert!(matches!(take_frame(&mut buffer), Err(FrameError::Length(_))), "{length}");
        }
        let mut buffer = b"\x02\0\0\0{]".to_vec();
        assert!(matches!(take_frame(&mut buffer), Err(FrameError::Message(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut buffer = bytes;
            while let Ok(Some(_)) = take_frame(&mut buffer) {}
        }
    }
}

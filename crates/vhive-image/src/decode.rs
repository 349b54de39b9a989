//! A layer blob as a stream of its uncompressed bytes, with both digests computed on the way.
//!
//! ```text
//!   thread 1:  read blob ─► SHA-256 (digest) ─► inflate ──chunks──►  thread 2: SHA-256 (diff id) ─► reader
//! ```
//! So two cores share the work, and a byte is touched while it is still in a cache.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

const CHUNK: usize = 256 << 10;
/// Chunks in flight between the two threads.
const AHEAD: usize = 16;
/// Largest zstd window accepted, as a power of two: what the reference decoder takes by default.
const ZSTD_WINDOW: u32 = 27;

/// The compressed bytes of a blob, measured as they are read.
struct Measured {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Read for Measured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.hash.update(&buffer[..got]);
        self.bytes += got as u64;
        Ok(got)
    }
}

/// What the decoding thread sends.
type Message = io::Result<Vec<u8>>;

/// Digest and size of the blob as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
}

/// The uncompressed bytes, for the consuming thread.
#[derive(Debug)]
pub(crate) struct Decoded {
    chunks: Receiver<Message>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hash: Sha256,
    bytes: u64,
    most: u64,
}

/// Digest and size of the uncompressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
}

/// Why a blob cannot be decoded; travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It unpacks to more than the store accepts.
    #[error("the layer unpacks to more than the {0} bytes that are accepted")]
    TooLarge(u64),
}

/// Decodes `file` on a thread of its own and hands the result to `consume`; returns what that
/// returned, with the blob's own digest. At most `most` uncompressed bytes are let through.
///
/// # Errors
/// What reading or decompressing met; errors that `consume` met are in its own result.
pub(crate) fn decode<T>(
    file: File,
    most: u64,
    consume: impl FnOnce(&mut Decoded) -> T,
) -> io::Result<(T, Stored)> {
    let (send, chunks) = sync_channel(AHEAD);
    let (used, free) = channel();
    std::thread::scope(|scope| {
        let decoder = std::thread::Builder::new()
            .name("layer-decode".to_owned())
            .spawn_scoped(scope, move || pump(file, &send, &free))?;
        let mut decoded = Decoded {
            chunks,
            used,
            current: Vec::new(),
            position: 0,
            hash: Sha256::new(),
            bytes: 0,
            most,
        };
        let result = consume(&mut decoded);
        drop(decoded);
        let stored = decoder.join().unwrap_or_else(|_| Err(io::Error::other("decoder panicked")));
        Ok((result, stored?))
    })
}

/// Reads, measures and inflates until the end, or until nobody listens any more.
fn pump(file: File, send: &SyncSender<Message>, free: &Receiver<Vec<u8>>) -> io::Result<Stored> {
    let measured = Measured { file, hash: Sha256::new(), bytes: 0 };
    let mut blob = BufReader::with_capacity(CHUNK, measured);
    let magic = blob.fill_buf()?;
    let (gzip, zstd) =
        (magic.starts_with(&[0x1f, 0x8b]), magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let inflated = if gzip {
        let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut blob);
        forward(&mut decoder, send, free)
    } else if zstd {
        let mut decoder = zstd::Decoder::with_buffer(&mut blob)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        forward(&mut decoder, send, free)
    } else {
        forward(&mut blob, send, free)
    };
    if let Err(error) = inflated {
        // The consumer reports it, with the entry at which it happened.
        let _ = send.send(Err(error));
    }
    io::copy(&mut blob, &mut io::sink())?;
    let measured = blob.into_inner();
    let digest = Digest::from_bytes(measured.hash.finalize().into());
    Ok(Stored { digest, bytes: measured.bytes })
}

fn forward(
    from: &mut impl Read,
    send: &SyncSender<Message>,
    free: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut chunk = free.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        chunk.truncate(filled);
        if filled == 0 || send.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

impl Decoded {
    /// Reads what is left (a tar stream may be padded) and gives the digest of everything.
    pub(crate) fn finish(&mut self) -> io::Result<Unpacked> {
        loop {
            let rest = self.fill_buf()?.len();
            if rest == 0 {
                let hash = std::mem::take(&mut self.hash);
                let diff_id = Digest::from_bytes(hash.finalize().into());
                return Ok(Unpacked { diff_id, bytes: self.bytes });
            }
            self.consume(rest);
        }
    }
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let have = self.fill_buf()?;
        let most = have.len().min(buffer.len());
        buffer[..most].copy_from_slice(&have[..most]);
        self.consume(most);
        Ok(most)
    }
}

impl BufRead for Decoded {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() {
            let Ok(message) = self.chunks.recv() else { return Ok(&[]) };
            let chunk = message?;
            self.bytes += chunk.len() as u64;
            if self.bytes > self.most {
                return Err(io::Error::other(DecodeError::TooLarge(self.most)));
            }
            self.hash.update(&chunk);
            let used = std::mem::replace(&mut self.current, chunk);
            self.position = 0;
            // Without a decoder any more, the chunk is simply freed.
            let _ = self.used.send(used);
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

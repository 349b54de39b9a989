//! Writes tar streams that come out the same every time: PAX records only where the plain header
//! does not suffice, no user names, no access times.
//!
//! # Source
//! POSIX.1-2017 `pax`.

use std::io::{self, Read, Write};

use crate::tar::{Entry, Kind};

const BLOCK: usize = 512;

/// Writes one entry; `data` must hold exactly `entry.size` bytes.
pub(crate) fn append(to: &mut impl Write, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
    let link: &[u8] = match &entry.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => target,
        _ => b"",
    };
    let meta = &entry.meta;
    let seconds = u64::try_from(meta.mtime).unwrap_or(0);
    let mut records = Vec::new();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    if path.len() > 100 {
        record(&mut records, b"path", &path);
    }
    if link.len() > 100 {
        record(&mut records, b"linkpath", link);
    }
    for (key, value) in [("uid", meta.uid), ("gid", meta.gid)] {
        if value > 0o777_7777 {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    if entry.size > 0o777_7777_7777 {
        record(&mut records, b"size", entry.size.to_string().as_bytes());
    }
    if meta.mtime < 0 || seconds > 0o777_7777_7777 || meta.mtime_nsec != 0 {
        record(&mut records, b"mtime", pax_time(meta.mtime, meta.mtime_nsec).as_bytes());
    }
    for xattr in &meta.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", xattr.name.as_slice()].concat(), &xattr.value);
    }
    if !records.is_empty() {
        let head = Header { path: b"pax", kind: b'x', size: records.len() as u64, ..Header::new() };
        to.write_all(&head.encode())?;
        to.write_all(&records)?;
        pad(to, records.len() as u64)?;
    }
    let (kind, device) = match entry.kind {
        Kind::File => (b'0', (0, 0)),
        Kind::HardLink(_) => (b'1', (0, 0)),
        Kind::Symlink(_) => (b'2', (0, 0)),
        Kind::Char(major, minor) => (b'3', (major, minor)),
        Kind::Block(major, minor) => (b'4', (major, minor)),
        Kind::Directory => (b'5', (0, 0)),
        Kind::Fifo => (b'6', (0, 0)),
    };
    let fits = |value: u32| if value > 0o777_7777 { 0 } else { value };
    let header = Header {
        path: &path[..path.len().min(100)],
        link: &link[..link.len().min(100)],
        kind,
        mode: meta.mode,
        uid: fits(meta.uid),
        gid: fits(meta.gid),
        size: if entry.size > 0o777_7777_7777 { 0 } else { entry.size },
        seconds: if seconds > 0o777_7777_7777 { 0 } else { seconds },
        device,
    };
    to.write_all(&header.encode())?;
    let copied = io::copy(data, to)?;
    if copied != entry.size {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a file changed its size"));
    }
    pad(to, copied)
}

/// Writes the end mark.
pub(crate) fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    to.write_all(&[0; BLOCK][..usize::try_from(padding).expect("less than a block")])
}

fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let digits = (1..20).find(|digits| (rest + digits).to_string().len() == *digits);
    let length = rest + digits.expect("a length has fewer than 20 digits");
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn pax_time(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        (..0, _) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

struct Header<'a> {
    path: &'a [u8],
    link: &'a [u8],
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    seconds: u64,
    device: (u32, u32),
}

impl Header<'_> {
    fn new() -> Self {
        let (path, link): (&[u8], &[u8]) = (b"", b"");
        Self {
            path,
            link,
            kind: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            seconds: 0,
            device: (0, 0),
        }
    }

    fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.path);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.uid).as_bytes());
        put(116, format!("{:07o}", self.gid).as_bytes());
        put(124, format!("{:011o}", self.size).as_bytes());
        put(136, format!("{:011o}", self.seconds).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

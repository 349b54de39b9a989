//! Reads tar streams as layers use them: ustar, GNU long names, PAX records.
//!
//! Every length that the stream states is checked before it is believed; nothing is buffered
//! beyond [`MAX_RECORDS`].
//!
//! # Source
//! POSIX.1-2017 `pax` (ustar and pax interchange formats); GNU tar manual, "Basic Tar Format";
//! OCI image-spec `layer.md`.

use std::io::{self, BufRead, Read};

use crate::tree::{Meta, Xattr};

/// Most bytes that one PAX header or long name may take.
pub(crate) const MAX_RECORDS: u64 = 1 << 20;
const BLOCK: usize = 512;

/// Why a tar stream is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream could not be read or decompressed.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    /// A header's checksum is wrong.
    #[error("entry {number} has a header with a wrong checksum")]
    Checksum {
        /// Which entry, counted from 1.
        number: u64,
    },
    /// A field of a header cannot be understood.
    #[error("entry {number} has a bad {field}")]
    Field {
        /// Which entry, counted from 1.
        number: u64,
        /// The field.
        field: &'static str,
    },
    /// A kind of entry that layers do not hold.
    #[error("entry {number} is of unsupported type {kind:?}")]
    Kind {
        /// Which entry, counted from 1.
        number: u64,
        /// The type flag, or the record that gives it away.
        kind: String,
    },
    /// A long name or PAX header larger than we accept.
    #[error(
        "entry {number} states {bytes} bytes of names and attributes; at most {MAX_RECORDS} are accepted"
    )]
    Records {
        /// Which entry, counted from 1.
        number: u64,
        /// What it states.
        bytes: u64,
    },
}

/// One entry without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    /// Bytes of data that follow; 0 unless `kind` is `File`.
    pub(crate) size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    /// Path of the existing entry.
    HardLink(Vec<u8>),
    /// Major, minor.
    Char(u32, u32),
    /// Major, minor.
    Block(u32, u32),
    Fifo,
}

/// A tar stream, read from front to back.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    from: R,
    number: u64,
    /// Unread data of the current entry, and the padding behind it.
    data: u64,
    padding: u64,
    position: u64,
}

#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<Xattr>,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, number: 0, data: 0, padding: 0, position: 0 }
    }

    /// Gives back what it reads from.
    pub(crate) fn into_inner(self) -> R {
        self.from
    }

    /// Where in the stream the data of the current entry begins, in bytes.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; what is left of the current one is skipped. `None` at the end mark.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut records = Records::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.number += 1;
            let size = self.number_in(&header[124..136], "size")?;
            match header[156] {
                b'x' => {
                    let text = self.records(size)?;
                    self.parse_records(&text, &mut records)?;
                }
                b'g' => {
                    self.records(size)?;
                }
                b'L' => records.path = Some(until_nul(&self.records(size)?).to_vec()),
                b'K' => records.link = Some(until_nul(&self.records(size)?).to_vec()),
                _ => return self.entry(&header, records, size).map(Some),
            }
        }
    }

    /// Hands all data of the current entry to `sink`, piece by piece.
    pub(crate) fn data<E: From<TarError>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.data > 0 {
            let buffer = self.from.fill_buf().map_err(|e| E::from(TarError::Read(e)))?;
            if buffer.is_empty() {
                return Err(TarError::Truncated.into());
            }
            let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
            sink(&buffer[..most])?;
            self.from.consume(most);
            self.data -= most as u64;
            self.position += most as u64;
        }
        Ok(())
    }

    /// The data of the current entry as a reader.
    pub(crate) fn data_reader(&mut self) -> DataReader<'_, R> {
        DataReader(self)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        records: Records,
        size: u64,
    ) -> Result<Entry, TarError> {
        let number = self.number;
        let path = records.path.unwrap_or_else(|| header_path(header));
        let link = records.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let device = |reader: &Self| -> Result<(u32, u32), TarError> {
            let major = small(reader.number_in(&header[329..337], "device number")?);
            let minor = small(reader.number_in(&header[337..345], "device number")?);
            match (major, minor) {
                (Some(major @ 0..=0xfff), Some(minor @ 0..=0xf_ffff)) => Ok((major, minor)),
                _ => Err(TarError::Field { number, field: "device number" }),
            }
        };
        let kind = match header[156] {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device(self).map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => device(self).map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let kind = char::from(other).to_string();
                return Err(TarError::Kind { number, kind });
            }
        };
        let size = if kind == Kind::File { records.size.unwrap_or(size) } else { 0 };
        self.expect_data(size)?;
        let id = |given: Option<u32>, field: &[u8], name: &'static str| match given {
            Some(id) => Ok(id),
            None => {
                small(self.number_in(field, name)?).ok_or(TarError::Field { number, field: name })
            }
        };
        let (mtime, mtime_nsec) = match records.mtime {
            Some(time) => time,
            None => (
                signed_number(&header[136..148])
                    .ok_or(TarError::Field { number, field: "time" })?,
                0,
            ),
        };
        let mode = self.number_in(&header[100..108], "mode")? & 0o7777;
        let meta = Meta {
            mode: u16::try_from(mode).expect("twelve bits"),
            uid: id(records.uid, &header[108..116], "owner")?,
            gid: id(records.gid, &header[116..124], "group")?,
            mtime,
            mtime_nsec,
            xattrs: records.xattrs,
        };
        if path.contains(&0) {
            return Err(TarError::Field { number, field: "path" });
        }
        Ok(Entry { path, kind, meta, size })
    }

    /// One header block; `None` at the end of the archive (a block of zeros, or nothing).
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let buffer = self.from.fill_buf().map_err(TarError::Read)?;
            if buffer.is_empty() {
                return if have == 0 { Ok(None) } else { Err(TarError::Truncated) };
            }
            let most = buffer.len().min(BLOCK - have);
            block[have..have + most].copy_from_slice(&buffer[..most]);
            self.from.consume(most);
            have += most;
        }
        self.position += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stated = octal(&block[148..156]);
        let plain = |byte: &u8| u64::from(*byte);
        let signed = |byte: &u8| i64::from(byte.cast_signed());
        let spaces = 8 * u64::from(b' ');
        let rest = || block[..148].iter().chain(&block[156..]);
        let unsigned_sum = rest().map(plain).sum::<u64>() + spaces;
        let signed_sum = rest().map(signed).sum::<i64>() + spaces.cast_signed();
        let right = stated.is_some_and(|sum| {
            sum == unsigned_sum || i64::try_from(sum).is_ok_and(|sum| sum == signed_sum)
        });
        if right { Ok(Some(block)) } else { Err(TarError::Checksum { number: self.number + 1 }) }
    }

    /// The data of a long name or PAX header, whole.
    fn records(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_RECORDS {
            return Err(TarError::Records { number: self.number, bytes: size });
        }
        self.expect_data(size)?;
        let mut text = Vec::new();
        self.data::<TarError>(|piece| {
            text.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(text)
    }

    fn parse_records(&self, text: &[u8], records: &mut Records) -> Result<(), TarError> {
        let number = self.number;
        let bad = |field| TarError::Field { number, field };
        for record in PaxRecords(text) {
            let (key, value) = record.ok_or(bad("PAX record"))?;
            match key {
                b"path" => records.path = Some(value.to_vec()),
                b"linkpath" => records.link = Some(value.to_vec()),
                b"size" => records.size = Some(decimal(value).ok_or(bad("size"))?),
                b"uid" => {
                    records.uid = Some(decimal(value).and_then(small).ok_or(bad("owner"))?);
                }
                b"gid" => {
                    records.gid = Some(decimal(value).and_then(small).ok_or(bad("group"))?);
                }
                b"mtime" => records.mtime = Some(pax_time(value).ok_or(bad("time"))?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    let kind = "sparse file".to_owned();
                    return Err(TarError::Kind { number, kind });
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        records.xattrs.retain(|xattr| xattr.name != name);
                        let xattr = Xattr { name: name.to_vec(), value: value.to_vec() };
                        records.xattrs.push(xattr);
                    }
                }
            }
        }
        records.xattrs.sort();
        Ok(())
    }

    fn expect_data(&mut self, size: u64) -> Result<(), TarError> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if size.checked_add(padding).is_none_or(|all| all > i64::MAX.cast_unsigned()) {
            return Err(TarError::Field { number: self.number, field: "size" });
        }
        (self.data, self.padding) = (size, padding);
        Ok(())
    }

    fn skip(&mut self) -> Result<(), TarError> {
        self.data += std::mem::take(&mut self.padding);
        self.data::<TarError>(|_| Ok(()))
    }

    fn number_in(&self, field: &[u8], name: &'static str) -> Result<u64, TarError> {
        let value = signed_number(field).and_then(|value| u64::try_from(value).ok());
        value.ok_or(TarError::Field { number: self.number, field: name })
    }
}

/// Reads the data of one entry.
#[derive(Debug)]
pub(crate) struct DataReader<'a, R>(&'a mut Reader<R>);

impl<R: BufRead> Read for DataReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.0;
        if reader.data == 0 {
            return Ok(0);
        }
        let have = reader.from.fill_buf()?;
        if have.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let most = usize::try_from(reader.data).unwrap_or(usize::MAX);
        let most = most.min(have.len()).min(buffer.len());
        buffer[..most].copy_from_slice(&have[..most]);
        reader.from.consume(most);
        reader.data -= most as u64;
        reader.position += most as u64;
        Ok(most)
    }
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let posix = &header[257..263] == b"ustar\0";
    // The "star" dialect keeps times behind a shorter prefix and says so in the last bytes.
    let prefix_end = if &header[508..512] == b"tar\0" { 476 } else { 500 };
    let prefix = until_nul(&header[345..prefix_end]);
    if posix && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn small(value: u64) -> Option<u32> {
    u32::try_from(value).ok()
}

/// A number in octal, or in base 256 when the first bit is set.
fn signed_number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    let negative = first & 0x40 != 0;
    let start = if negative { -1_i64 } else { 0 };
    let head = if negative { first } else { first & 0x7f };
    let mut value: i64 = if negative { start } else { i64::from(head) };
    if negative && head != 0xff {
        return None;
    }
    for byte in &field[1..] {
        value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
    }
    Some(value)
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds[.fraction]`, possibly negative, as seconds and nanoseconds counted upwards.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let negative = text.first() == Some(&b'-');
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = (0..9).map(|at| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
    let nanos = digits.fold(0, |value, digit| value * 10 + digit);
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// The records `length key=value\n` of a PAX header; yields `None` once if one is malformed.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() || self.0.iter().all(|byte| *byte == 0) {
            return None;
        }
        let record = self.take();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl<'a> PaxRecords<'a> {
    fn take(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&self.0[..space])?).ok()?;
        if length <= space || length > self.0.len() {
            return None;
        }
        let (record, rest) = self.0.split_at(length);
        self.0 = rest;
        let text = record[space + 1..].strip_suffix(b"\n")?;
        let equals = text.iter().position(|byte| *byte == b'=')?;
        Some((&text[..equals], &text[equals + 1..]))
    }
}

#[cfg(test)]
mod tests;

//! The files of an image source: a directory, or an archive read in place.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{ImportError, read_document};
use crate::decode::decode;
use crate::draft::Draft;
use crate::store::{Inner, StoreError};
use crate::tar::{Kind, Reader, TarError};

/// Most files that an archive of an image may hold.
const MAX_FILES: usize = 100_000;
/// Symbolic links inside an archive that are followed.
const MAX_LINKS: usize = 8;

#[derive(Debug)]
pub(super) enum Source {
    Directory(PathBuf),
    Archive {
        file: File,
        items: HashMap<String, Item>,
        /// Holds `file` if the archive had to be decompressed first.
        _draft: Option<Draft>,
    },
}

/// What an archive holds under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Bytes of the archive.
    File { offset: u64, size: u64 },
    /// Another name.
    Link(String),
}

impl Source {
    pub(super) fn open(store: &Inner, path: &Path) -> Result<Self, ImportError> {
        let unreadable = |source| ImportError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(unreadable)?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let mut head = [0; 4];
        let compressed = file.read_exact_at(&mut head, 0).is_ok()
            && (head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd]);
        let mut draft = None;
        if compressed {
            let unpacked = store.draft()?;
            let copy = |from: &mut crate::decode::Decoded| io::copy(from, &mut unpacked.file());
            let (copied, _) = decode(file, store.limits.unpacked, copy).map_err(unreadable)?;
            copied.map_err(StoreError::io(unpacked.path()))?;
            file = File::open(unpacked.path()).map_err(StoreError::io(unpacked.path()))?;
            draft = Some(unpacked);
        }
        let refuse = |source| ImportError::Archive { path: path.to_owned(), source };
        let items = scan(&file).map_err(refuse)?;
        Ok(Self::Archive { file, items, _draft: draft })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Archive { items, .. } => items.contains_key(name),
        }
    }

    /// A small file, whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        read_document(name, self.read(name)?)
    }

    pub(super) fn read(&self, name: &str) -> Result<Box<dyn Read + '_>, ImportError> {
        match self {
            Self::Directory(dir) => match File::open(dir.join(name)) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(ImportError::Missing(name.to_owned()))
                }
                Err(source) => Err(ImportError::Read { path: dir.join(name), source }),
            },
            Self::Archive { file, items, .. } => {
                let mut at = name.to_owned();
                for _ in 0..MAX_LINKS {
                    match items.get(&at) {
                        Some(Item::File { offset, size }) => {
                            return Ok(Box::new(Part { file, at: *offset, left: *size }));
                        }
                        Some(Item::Link(target)) => at.clone_from(target),
                        None => break,
                    }
                }
                Err(ImportError::Missing(name.to_owned()))
            }
        }
    }
}

/// A range of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        if got == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

fn scan(file: &File) -> Result<HashMap<String, Item>, TarError> {
    let mut archive = Reader::new(BufReader::with_capacity(64 << 10, file));
    let mut items = HashMap::new();
    while let Some(entry) = archive.next()? {
        let Some(name) = normal("", &String::from_utf8_lossy(&entry.path)) else { continue };
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let target = |base: &str, text: &[u8]| normal(base, &String::from_utf8_lossy(text));
        let item = match &entry.kind {
            Kind::File => Some(Item::File { offset: archive.position(), size: entry.size }),
            Kind::Symlink(link) => target(dir, link).map(Item::Link),
            Kind::HardLink(link) => target("", link).map(Item::Link),
            _ => None,
        };
        if let Some(item) = item {
            items.insert(name, item);
        }
        if items.len() > MAX_FILES {
            let kind = "archive with very many files".to_owned();
            return Err(TarError::Kind { number: MAX_FILES as u64, kind });
        }
    }
    Ok(items)
}

/// A name inside the archive without `.` and `..`; `None` if it leads out.
fn normal(base: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal("a", "../b/layer.tar").as_deref(), Some("b/layer.tar"));
        assert_eq!(normal("", "./x//y").as_deref(), Some("x/y"));
        assert_eq!(normal("a", "../../b"), None);
    }
}

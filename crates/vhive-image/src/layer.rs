//! Applies one layer's tar stream to the tree.
//!
//! # Source
//! OCI image-spec `layer.md` (whiteouts, opaque whiteouts, hard links), with the behaviour of
//! `tar -x` where it is silent: the last entry of a name wins, a directory entry keeps what is
//! already in the directory.

use std::io::{self, BufRead};

use crate::erofs::{ImageWriter, StoreError, check_symlink, check_xattrs};
use crate::limits::Limits;
use crate::tar::{Entry, Kind, Reader, TarError};
use crate::tree::{Body, PathError, Tree};

/// Prefix of an entry that hides a name of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of an old union file system's own entries, among them the opaque mark.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Name of an entry that hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no well-formed archive.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry cannot be put where it wants to be.
    #[error("entry {path:?} is refused")]
    Refused {
        /// The entry's path, cut to 200 characters.
        path: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// Names, link targets and attributes need more memory than we grant.
    #[error("names and attributes of the image exceed {0} bytes")]
    Metadata(u64),
    /// The output cannot be written.
    #[error("cannot write the root file system image")]
    Write(#[source] io::Error),
}

impl From<StoreError> for LayerError {
    fn from(StoreError(error): StoreError) -> Self {
        Self::Write(error)
    }
}

/// Where layers go: the merged tree and the image that receives the data.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) tree: Tree,
    pub(crate) image: &'a mut ImageWriter,
    metadata_left: u64,
    metadata: u64,
    layer: u32,
}

impl<'a> Applier<'a> {
    pub(crate) fn new(image: &'a mut ImageWriter, limits: &Limits) -> Self {
        let tree = Tree::new(limits.files);
        let metadata = limits.metadata;
        Self { tree, image, metadata_left: metadata, metadata, layer: 0 }
    }

    /// Applies the next layer up to its end mark and gives the stream back.
    pub(crate) fn apply<R: BufRead>(&mut self, stream: R) -> Result<R, LayerError> {
        self.layer += 1;
        let mut archive = Reader::new(stream);
        while let Some(entry) = archive.next()? {
            self.charge(&entry)?;
            self.entry(entry, &mut archive)?;
        }
        Ok(archive.into_inner())
    }

    fn charge(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let link = match &entry.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = entry.meta.xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
        let cost = (entry.path.len() + link + xattrs) as u64;
        let left = self.metadata_left.checked_sub(cost);
        self.metadata_left = left.ok_or(LayerError::Metadata(self.metadata))?;
        Ok(())
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut Reader<R>,
    ) -> Result<(), LayerError> {
        let Entry { path, kind, meta, size } = entry;
        let refused = |source| {
            let path = String::from_utf8_lossy(&path).chars().take(200).collect();
            LayerError::Refused { path, source }
        };
        let (directory, name) = split_last(&path);
        if directory.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return match hidden {
                _ if name == OPAQUE => self.tree.opaque(directory, self.layer),
                _ if name.starts_with(WHITEOUT_META) => Ok(()),
                b"" | b"." | b".." => Err(PathError::Length),
                _ => self.tree.whiteout(directory, hidden, self.layer),
            }
            .map_err(refused);
        }
        check_xattrs(&meta.xattrs).map_err(refused)?;
        let body = match kind {
            Kind::Directory => {
                return self.tree.put_directory(&path, self.layer, meta).map_err(refused);
            }
            Kind::HardLink(target) => {
                return self.tree.link(&path, self.layer, &target).map_err(refused);
            }
            Kind::File => {
                let place = self.image.store(size, &meta, |sink| {
                    archive.data(|piece| sink(piece).map_err(LayerError::Write))
                })?;
                Body::File { size, place }
            }
            Kind::Symlink(target) => {
                check_symlink(&target, &meta).map_err(refused)?;
                Body::Symlink(target)
            }
            Kind::Char(major, minor) => Body::Char(major, minor),
            Kind::Block(major, minor) => Body::Block(major, minor),
            Kind::Fifo => Body::Fifo,
        };
        self.tree.put(&path, self.layer, meta, body).map_err(refused)
    }
}

/// The path before the last component, and that component.
fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    path.split_at(start)
}

//! Writes an uncompressed EROFS image straight from layer streams.
//!
//! ```text
//!   block 0       1 …                     …                        meta_blkaddr …
//!   superblock    file data, as it came   blocks of directories    inodes (+ attributes, + small files)
//! ```
//! File data is written once, while the layers are read; everything that needs the finished tree
//! comes after it. The same tree and data give the same bytes. Extended inodes only (64 bytes: full
//! owners and times); files and directories that fit beside their inode are stored there.
//!
//! # Source
//! Linux `Documentation/filesystems/erofs.rst`, on-disk format; field order as in
//! `fs/erofs/erofs_fs.h` of Linux 6.1.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, fallocate};

use crate::tree::{Body, Directory, Meta, Node, NodeId, PathError, Place, Tree, Xattr};

const BLOCK: usize = 4096;
const BLOCK_U64: u64 = BLOCK as u64;
const INODE: usize = 64;
const DIRENT: usize = 12;
const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: the superblock has a checksum; inode times are modification times.
const FEATURES: u32 = 0x1 | 0x2;
/// Metadata begins with unused slots, so that no inode has number 0.
const META_START: u64 = 64;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
/// Bytes of small files that may be kept in memory to be stored beside their inodes.
const INLINE_BUDGET: u64 = 128 << 20;
/// Prefixes of attribute names that the format knows, with their index.
const XATTR_PREFIXES: [(u8, &str); 5] = [
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// An image in the making.
#[derive(Debug)]
pub(crate) struct ImageWriter {
    out: BufWriter<File>,
    next_block: u32,
    inline_left: u64,
}

/// Where inodes and directories will be.
struct Layout {
    /// Offset of each inode from the start of the metadata, by slot.
    at: Vec<Option<u64>>,
    /// In the order of the image.
    order: Vec<NodeId>,
    /// First block of a directory that has blocks of its own, by slot.
    blocks: Vec<u32>,
    directories: Vec<NodeId>,
    end: u64,
    next_block: u32,
}

impl ImageWriter {
    /// Begins an image in an empty file.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&[0; BLOCK])?;
        Ok(Self { out, next_block: 1, inline_left: INLINE_BUDGET })
    }

    /// Stores a regular file's data, which `read` hands over piece by piece.
    pub(crate) fn store<E: From<StoreError>>(
        &mut self,
        size: u64,
        meta: &Meta,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<Place, E> {
        let beside_inode = (BLOCK - INODE).checked_sub(xattr_bytes(&meta.xattrs));
        if beside_inode.is_some_and(|room| size <= room as u64) && size <= self.inline_left {
            self.inline_left -= size;
            let mut data = Vec::new();
            read(&mut |piece| {
                data.extend_from_slice(piece);
                Ok(())
            })?;
            return Ok(Place::Inline(data));
        }
        let first = self.next_block;
        self.next_block = after(first, size).map_err(|e| E::from(StoreError(e)))?;
        read(&mut |piece| self.out.write_all(piece))?;
        let padding = size.next_multiple_of(BLOCK_U64) - size;
        let padding = usize::try_from(padding).expect("less than a block");
        self.out.write_all(&[0; BLOCK][..padding]).map_err(|e| E::from(StoreError(e)))?;
        Ok(Place::Blocks(first))
    }

    /// Writes directories, inodes and the superblock. Gives back the file, complete but not
    /// synced, and its size in bytes.
    pub(crate) fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> io::Result<(File, u64)> {
        let layout = Layout::of(tree, self.next_block)?;
        for id in &layout.directories {
            write_directory(&mut self.out, tree, &layout, *id)?;
        }
        write_inodes(&mut self.out, tree, &layout)?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let blocks = after(layout.next_block, layout.end)?;
        let block0 = superblock(tree, &layout, blocks, uuid);
        file.write_all_at(&block0, 0)?;
        for (first, bytes) in tree.dead() {
            zero(&file, u64::from(*first) * BLOCK_U64, bytes.next_multiple_of(BLOCK_U64))?;
        }
        Ok((file, u64::from(blocks) * BLOCK_U64))
    }
}

/// A failed write of file data.
#[derive(Debug)]
pub(crate) struct StoreError(pub(crate) io::Error);

/// Whether a symbolic link's target has room beside its inode.
pub(crate) fn check_symlink(target: &[u8], meta: &Meta) -> Result<(), PathError> {
    let fits = INODE + xattr_bytes(&meta.xattrs) + target.len() <= BLOCK;
    if fits { Ok(()) } else { Err(PathError::Length) }
}

/// Whether attributes can be stored; an unknown kind of name is left out, as other tools do.
pub(crate) fn check_xattrs(xattrs: &[Xattr]) -> Result<(), PathError> {
    let fits = xattrs.iter().all(|xattr| {
        let name = split_name(&xattr.name).map_or(0, |(_, rest)| rest.len());
        name <= 255 && u16::try_from(xattr.value.len()).is_ok()
    });
    let count = xattr_bytes(xattrs) / 4;
    if fits && u16::try_from(count).is_ok() { Ok(()) } else { Err(PathError::Attributes) }
}

impl Layout {
    fn of(tree: &Tree, next_block: u32) -> io::Result<Self> {
        let mut layout = Self {
            at: vec![None; tree.slots()],
            order: Vec::new(),
            blocks: vec![0; tree.slots()],
            directories: Vec::new(),
            end: META_START,
            next_block,
        };
        layout.place(tree, NodeId::ROOT)?;
        let mut todo = vec![NodeId::ROOT];
        while let Some(id) = todo.pop() {
            let Body::Directory(directory) = &tree.node(id).body else { continue };
            for child in directory.children.values() {
                if layout.at[child.node.index()].is_none() {
                    layout.place(tree, child.node)?;
                }
            }
            todo.extend(directory.children.values().rev().map(|child| child.node));
        }
        Ok(layout)
    }

    /// Finds room for an inode so that neither it nor what is stored beside it crosses a block.
    fn place(&mut self, tree: &Tree, id: NodeId) -> io::Result<()> {
        let node = tree.node(id);
        let xattrs = xattr_bytes(&node.meta.xattrs);
        let tail = inline_bytes(node);
        // Only very long attributes may reach into further blocks; then nothing follows them.
        let head = if INODE + xattrs <= BLOCK { INODE + xattrs } else { INODE };
        let together = (head + tail.unwrap_or(0)) as u64;
        let mut at = self.end.next_multiple_of(32);
        if at % BLOCK_U64 + together > BLOCK_U64 {
            at = at.next_multiple_of(BLOCK_U64);
        }
        self.end = at + (INODE + xattrs + tail.unwrap_or(0)) as u64;
        self.at[id.index()] = Some(at);
        self.order.push(id);
        if let Body::Directory(directory) = &node.body
            && tail.is_none()
        {
            self.blocks[id.index()] = self.next_block;
            self.next_block = after(self.next_block, directory_bytes(directory))?;
            self.directories.push(id);
        }
        Ok(())
    }

    /// The inode's number: its offset in slots of 32 bytes.
    fn nid(&self, id: NodeId) -> u64 {
        self.at[id.index()].expect("every reachable node has been placed") / 32
    }
}

/// First block after `bytes` from block `first` on.
fn after(first: u32, bytes: u64) -> io::Result<u32> {
    let blocks = u32::try_from(bytes.div_ceil(BLOCK_U64)).ok();
    blocks.and_then(|blocks| first.checked_add(blocks)).ok_or(io::ErrorKind::FileTooLarge.into())
}

/// Bytes stored beside the inode; `None` if the content has blocks of its own.
fn inline_bytes(node: &Node) -> Option<usize> {
    let room = (BLOCK - INODE).checked_sub(xattr_bytes(&node.meta.xattrs));
    let fits = |bytes: usize| room.is_some_and(|room| bytes <= room).then_some(bytes);
    match &node.body {
        Body::File { place: Place::Inline(data), .. } => Some(data.len()),
        Body::Symlink(target) => fits(target.len()),
        Body::Directory(directory) => {
            usize::try_from(directory_bytes(directory)).ok().and_then(fits)
        }
        _ => None,
    }
}

/// The names of a directory in the order of the image, with `.` and `..` among them.
fn names(id: NodeId, directory: &Directory) -> Vec<(&[u8], NodeId)> {
    let children = directory.children.iter().map(|(name, child)| (name.as_slice(), child.node));
    let mut all: Vec<(&[u8], NodeId)> = children.collect();
    all.extend([(b".".as_slice(), id), (b"..".as_slice(), directory.parent)]);
    all.sort_unstable();
    all
}

/// Cuts the sorted names into blocks: each holds entries, then their names.
fn chunks<'a, 'n>(all: &'a [(&'n [u8], NodeId)]) -> Vec<&'a [(&'n [u8], NodeId)]> {
    let (mut chunks, mut start, mut used) = (Vec::new(), 0, 0);
    for (at, (name, _)) in all.iter().enumerate() {
        let cost = DIRENT + name.len();
        if used + cost > BLOCK {
            chunks.push(&all[start..at]);
            (start, used) = (at, 0);
        }
        used += cost;
    }
    chunks.push(&all[start..]);
    chunks
}

fn chunk_bytes(chunk: &[(&[u8], NodeId)]) -> usize {
    chunk.iter().map(|(name, _)| DIRENT + name.len()).sum()
}

/// The directory's size as its inode states it: whole blocks, and what the last one uses.
fn directory_bytes(directory: &Directory) -> u64 {
    let all = names(NodeId::ROOT, directory);
    let chunks = chunks(&all);
    let last = chunks.last().map_or(0, |chunk| chunk_bytes(chunk));
    ((chunks.len() - 1) * BLOCK + last) as u64
}

fn encode_chunk(chunk: &[(&[u8], NodeId)], tree: &Tree, layout: &Layout) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut name_at = chunk.len() * DIRENT;
    for (name, id) in chunk {
        block.extend(layout.nid(*id).to_le_bytes());
        block.extend(u16::try_from(name_at).expect("inside a block").to_le_bytes());
        block.extend([file_type(&tree.node(*id).body), 0]);
        name_at += name.len();
    }
    for (name, _) in chunk {
        block.extend_from_slice(name);
    }
    block
}

fn write_directory(
    out: &mut impl Write,
    tree: &Tree,
    layout: &Layout,
    id: NodeId,
) -> io::Result<()> {
    let Body::Directory(directory) = &tree.node(id).body else { return Ok(()) };
    for chunk in chunks(&names(id, directory)) {
        let mut block = encode_chunk(chunk, tree, layout);
        block.resize(BLOCK, 0);
        out.write_all(&block)?;
    }
    Ok(())
}

fn write_inodes(out: &mut impl Write, tree: &Tree, layout: &Layout) -> io::Result<()> {
    let mut position = 0;
    let pad = |out: &mut dyn Write, from: u64, to: u64| {
        let gap = usize::try_from(to - from).expect("less than a block");
        out.write_all(&[0; BLOCK][..gap])
    };
    for (number, id) in layout.order.iter().enumerate() {
        let at = layout.at[id.index()].expect("placed, as it is in the order");
        pad(out, position, at)?;
        let node = tree.node(*id);
        let mut bytes = inode(tree, layout, *id, u32::try_from(number + 1).unwrap_or(u32::MAX));
        encode_xattrs(&node.meta.xattrs, &mut bytes);
        match &node.body {
            Body::File { place: Place::Inline(data), .. } => bytes.extend_from_slice(data),
            Body::Symlink(target) => bytes.extend_from_slice(target),
            Body::Directory(directory) if inline_bytes(node).is_some() => {
                bytes.extend(encode_chunk(&names(*id, directory), tree, layout));
            }
            _ => {}
        }
        out.write_all(&bytes)?;
        position = at + bytes.len() as u64;
    }
    pad(out, position, position.next_multiple_of(BLOCK_U64))
}

fn inode(tree: &Tree, layout: &Layout, id: NodeId, number: u32) -> Vec<u8> {
    let node = tree.node(id);
    let meta = &node.meta;
    let (kind, size, content, links): (u16, u64, u32, u32) = match &node.body {
        Body::Directory(directory) => {
            let is_directory =
                |child: &NodeId| matches!(tree.node(*child).body, Body::Directory(_));
            let below = directory.children.values().map(|child| child.node).filter(is_directory);
            let links = u32::try_from(2 + below.count()).unwrap_or(u32::MAX);
            (0o040_000, directory_bytes(directory), layout.blocks[id.index()], links)
        }
        Body::File { size, place: Place::Blocks(first) } => (0o100_000, *size, *first, node.links),
        Body::File { size, place: Place::Inline(_) } => (0o100_000, *size, 0, node.links),
        Body::Symlink(target) => (0o120_000, target.len() as u64, 0, node.links),
        Body::Char(major, minor) => (0o020_000, 0, device(*major, *minor), node.links),
        Body::Block(major, minor) => (0o060_000, 0, device(*major, *minor), node.links),
        Body::Fifo | Body::Gone => (0o010_000, 0, 0, node.links),
    };
    let inline = size > 0 && inline_bytes(node).is_some();
    let data_layout = if inline { FLAT_INLINE } else { FLAT_PLAIN };
    let xattrs = xattr_bytes(&meta.xattrs);
    let xattr_count = if xattrs == 0 { 0 } else { (xattrs - XATTR_HEADER) / 4 + 1 };
    let mut bytes = Vec::with_capacity(INODE);
    bytes.extend((1 | data_layout << 1).to_le_bytes());
    bytes.extend(u16::try_from(xattr_count).expect("checked when added").to_le_bytes());
    bytes.extend((kind | meta.mode).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(size.to_le_bytes());
    bytes.extend(content.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(meta.uid.to_le_bytes());
    bytes.extend(meta.gid.to_le_bytes());
    bytes.extend(meta.mtime.to_le_bytes());
    bytes.extend(meta.mtime_nsec.to_le_bytes());
    bytes.extend(links.to_le_bytes());
    bytes.resize(INODE, 0);
    bytes
}

/// A device number as Linux encodes it in 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn file_type(body: &Body) -> u8 {
    match body {
        Body::File { .. } => 1,
        Body::Directory(_) => 2,
        Body::Char(..) => 3,
        Body::Block(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
        Body::Gone => 0,
    }
}

/// Before the attributes of an inode: four reserved bytes, count of shared ones, seven reserved.
const XATTR_HEADER: usize = 12;

/// Bytes that the attributes of an inode take behind it.
fn xattr_bytes(xattrs: &[Xattr]) -> usize {
    let entries = xattrs.iter().filter_map(|xattr| {
        let (_, name) = split_name(&xattr.name)?;
        Some((4 + name.len() + xattr.value.len()).next_multiple_of(4))
    });
    let bytes: usize = entries.sum();
    if bytes == 0 { 0 } else { XATTR_HEADER + bytes }
}

fn encode_xattrs(xattrs: &[Xattr], to: &mut Vec<u8>) {
    if xattr_bytes(xattrs) == 0 {
        return;
    }
    to.extend([0; XATTR_HEADER]);
    for xattr in xattrs {
        let Some((index, name)) = split_name(&xattr.name) else { continue };
        to.extend([u8::try_from(name.len()).expect("checked when added"), index]);
        to.extend(u16::try_from(xattr.value.len()).expect("checked when added").to_le_bytes());
        to.extend_from_slice(name);
        to.extend_from_slice(&xattr.value);
        to.resize(to.len().next_multiple_of(4), 0);
    }
}

/// Index of the name's prefix and the rest; `None` for a kind that EROFS cannot hold.
fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(prefix.as_bytes())?;
        // The two access control lists are whole names, the others prefixes.
        (prefix.ends_with('.') != rest.is_empty()).then_some((*index, rest))
    })
}

fn superblock(tree: &Tree, layout: &Layout, blocks: u32, uuid: [u8; 16]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let root = u16::try_from(layout.nid(NodeId::ROOT)).expect("the root is placed first");
    let mut put = |at: usize, bytes: &[u8]| {
        let at = SUPER_OFFSET + at;
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &MAGIC.to_le_bytes());
    put(8, &FEATURES.to_le_bytes());
    put(12, &[12, 0]);
    put(14, &root.to_le_bytes());
    put(16, &tree.live().to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(40, &layout.next_block.to_le_bytes());
    put(48, &uuid);
    let checksum = crc32c(&block[SUPER_OFFSET..]);
    block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// Whether `block0` is the first block of an image with this identifier and number of bytes.
pub(crate) fn is_header_of(block0: &[u8; BLOCK], uuid: [u8; 16], bytes: u64) -> bool {
    let mut copy = *block0;
    let (start, end) = (SUPER_OFFSET + 4, SUPER_OFFSET + 8);
    copy[start..end].fill(0);
    let field = |at: usize, length: usize| &block0[SUPER_OFFSET + at..SUPER_OFFSET + at + length];
    let blocks = u32::try_from(bytes / BLOCK_U64).unwrap_or(0);
    block0[start..end] == crc32c(&copy[SUPER_OFFSET..]).to_le_bytes()
        && field(0, 4) == MAGIC.to_le_bytes()
        && field(36, 4) == blocks.to_le_bytes()
        && field(48, 16) == uuid
}

/// CRC-32C as the kernel seeds it: all ones, and not inverted at the end.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Makes a range read as zeros and, where the file system can, frees its blocks.
fn zero(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(file, flags, offset, bytes).is_ok() {
        return Ok(());
    }
    let mut at = offset;
    while at < offset + bytes {
        file.write_all_at(&[0; BLOCK], at)?;
        at += BLOCK_U64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

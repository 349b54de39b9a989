//! The merged file tree of an image in memory: names and attributes, never file contents larger
//! than a block.
//!
//! Layers are applied to it one after another, exactly as they would be to a directory, but no
//! path of an archive ever reaches the host's file system, so there is nothing to escape to.

use std::collections::{BTreeMap, VecDeque};

/// Most symbolic links followed in one path, as in Linux.
const MAX_LINKS: u32 = 40;
/// Deepest directory; bounds memory and keeps paths usable (`PATH_MAX` is 4096).
const MAX_DEPTH: u32 = 2048;
/// Longest name of one entry (`EROFS_NAME_LEN`).
const MAX_NAME: usize = 255;
/// Longest path or symbolic link target.
const MAX_PATH: usize = 4095;

/// One extended attribute with its full name, e.g. `security.capability`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Attributes of a file of any type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits with set-user-id, set-group-id and sticky: twelve bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    /// Sorted by name.
    pub(crate) xattrs: Vec<Xattr>,
}

impl Meta {
    pub(crate) fn new(mode: u16) -> Self {
        Self { mode, ..Self::default() }
    }
}

/// Index of a node; stays valid as long as the node has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a regular file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here.
    Inline(Vec<u8>),
    /// In whole blocks of the output, from this one on.
    Blocks(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Directory(Directory),
    File {
        size: u64,
        place: Place,
    },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    /// Removed; the slot is not used again.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Vec<u8>, Child>,
    pub(crate) parent: NodeId,
    depth: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The last layer that added or touched this name.
    layer: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) body: Body,
    /// How many names a non-directory has.
    pub(crate) links: u32,
}

/// Why an entry cannot be put into the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path climbs with `..`.
    #[error("the path climbs out with \"..\"")]
    Climbs,
    /// The path leads through something that is no directory.
    #[error("the path leads through {0:?}, which is no directory")]
    NotADirectory(String),
    /// The path goes round in circles.
    #[error("the path follows more than {MAX_LINKS} symbolic links")]
    Links,
    /// Nested too deep.
    #[error("the path is nested deeper than {MAX_DEPTH} directories")]
    Depth,
    /// A name, path or link target is too long or empty.
    #[error("a name has more than {MAX_NAME} bytes, or a path none or more than {MAX_PATH}")]
    Length,
    /// Only a directory can be the root.
    #[error("the root can only be a directory")]
    Root,
    /// More files than the store accepts.
    #[error("the image has more than {0} files")]
    TooMany(u32),
    /// Extended attributes too long for the image.
    #[error("its extended attributes are too long")]
    Attributes,
    /// A hard link's target is not there, or cannot be linked.
    #[error("the hard link's target {0:?} is not a file of the image")]
    Target(String),
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Whole blocks of the output that no file uses any more: first, bytes.
    dead: Vec<(u32, u64)>,
    live: u64,
    most: u32,
}

impl Tree {
    /// An empty root that accepts at most so many files over its life.
    pub(crate) fn new(most: u32) -> Self {
        let root = Directory { children: BTreeMap::new(), parent: NodeId::ROOT, depth: 0 };
        let root = Node { meta: Meta::new(0o755), body: Body::Directory(root), links: 1 };
        Self { nodes: vec![root], dead: Vec::new(), live: 1, most }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Slots ever used; node indices are below it.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    /// How many files of any type there are.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Blocks of the output that lost their last name: first block and bytes, in order of loss.
    pub(crate) fn dead(&self) -> &[(u32, u64)] {
        &self.dead
    }

    /// Adds what is no directory and no hard link, replacing whatever has that name.
    pub(crate) fn put(
        &mut self,
        path: &[u8],
        layer: u32,
        meta: Meta,
        body: Body,
    ) -> Result<(), PathError> {
        if let Body::Symlink(target) = &body
            && (target.is_empty() || target.len() > MAX_PATH || target.contains(&0))
        {
            return Err(PathError::Length);
        }
        let (parent, name) = self.parent_for(path, layer)?;
        self.unlink(parent, &name);
        let node = self.push(Node { meta, body, links: 1 })?;
        self.children(parent).insert(name, Child { node, layer });
        Ok(())
    }

    /// Adds a directory, or gives an existing one new attributes.
    pub(crate) fn put_directory(
        &mut self,
        path: &[u8],
        layer: u32,
        meta: Meta,
    ) -> Result<(), PathError> {
        if components(path)?.is_empty() {
            self.nodes[0].meta = meta;
            return Ok(());
        }
        let (parent, name) = self.parent_for(path, layer)?;
        if let Some(Child { node, .. }) = self.children(parent).get(&name).copied()
            && matches!(self.node(node).body, Body::Directory(_))
        {
            self.children(parent).insert(name, Child { node, layer });
            self.nodes[node.index()].meta = meta;
            return Ok(());
        }
        self.unlink(parent, &name);
        self.add_directory(parent, name, layer, meta)?;
        Ok(())
    }

    /// Gives an existing file a further name.
    pub(crate) fn link(&mut self, path: &[u8], layer: u32, target: &[u8]) -> Result<(), PathError> {
        let missing = || PathError::Target(String::from_utf8_lossy(target).into_owned());
        let node = self.lookup(target)?.ok_or_else(missing)?;
        if matches!(self.node(node).body, Body::Directory(_)) {
            return Err(missing());
        }
        let (parent, name) = self.parent_for(path, layer)?;
        // Counted first: the name replaced may be the target's own.
        self.nodes[node.index()].links += 1;
        self.unlink(parent, &name);
        self.children(parent).insert(name, Child { node, layer });
        Ok(())
    }

    /// Hides a name of the layers below `layer`; what `layer` itself added stays.
    pub(crate) fn whiteout(
        &mut self,
        directory: &[u8],
        name: &[u8],
        layer: u32,
    ) -> Result<(), PathError> {
        let Some(parent) = self.directory(directory)? else { return Ok(()) };
        match self.children(parent).get(name).copied() {
            Some(child) if child.layer == layer => self.hide_lower(child.node, layer),
            Some(_) => self.unlink(parent, name),
            None => {}
        }
        Ok(())
    }

    /// Hides everything below `directory` that comes from the layers below `layer`.
    pub(crate) fn opaque(&mut self, directory: &[u8], layer: u32) -> Result<(), PathError> {
        if let Some(node) = self.directory(directory)? {
            self.hide_lower(node, layer);
        }
        Ok(())
    }

    /// The node of a path, following symbolic links in all but the last component.
    pub(crate) fn lookup(&mut self, path: &[u8]) -> Result<Option<NodeId>, PathError> {
        let mut parts = components(path)?;
        let Some(name) = parts.pop() else { return Ok(Some(NodeId::ROOT)) };
        let Some(parent) = self.walk(parts, None)? else { return Ok(None) };
        Ok(self.children(parent).get(&name).map(|child| child.node))
    }

    fn directory(&mut self, path: &[u8]) -> Result<Option<NodeId>, PathError> {
        let parts = components(path)?;
        match self.walk(parts, None) {
            Err(PathError::NotADirectory(_)) => Ok(None),
            found => found,
        }
    }

    /// The directory that holds the path's last component, made where it is missing.
    fn parent_for(&mut self, path: &[u8], layer: u32) -> Result<(NodeId, Vec<u8>), PathError> {
        let mut parts = components(path)?;
        let name = parts.pop().ok_or(PathError::Root)?;
        let parent = self.walk(parts, Some(layer))?.expect("missing directories are made");
        Ok((parent, name))
    }

    /// Follows directories and symbolic links inside the tree: an absolute target begins at its
    /// root, and `..` of a target stops there. Makes what is missing when given a layer.
    fn walk(
        &mut self,
        parts: Vec<Vec<u8>>,
        make_in: Option<u32>,
    ) -> Result<Option<NodeId>, PathError> {
        let mut todo: VecDeque<Vec<u8>> = parts.into();
        let (mut at, mut links) = (NodeId::ROOT, 0);
        while let Some(part) = todo.pop_front() {
            let directory = self.as_directory(at);
            if part == b".." {
                at = directory.parent;
                continue;
            }
            let Some(child) = directory.children.get(&part).copied() else {
                let Some(layer) = make_in else { return Ok(None) };
                at = self.add_directory(at, part, layer, Meta::new(0o755))?;
                continue;
            };
            match &self.node(child.node).body {
                Body::Directory(_) => {
                    if let Some(layer) = make_in {
                        self.children(at).insert(part, Child { layer, ..child });
                    }
                    at = child.node;
                }
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(PathError::Links);
                    }
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        at = NodeId::ROOT;
                    }
                    for part in split(&target).rev() {
                        todo.push_front(part.to_vec());
                    }
                    if todo.iter().any(|part| part.len() > MAX_NAME) {
                        return Err(PathError::Length);
                    }
                }
                _ => {
                    let name = String::from_utf8_lossy(&part).into_owned();
                    return Err(PathError::NotADirectory(name));
                }
            }
        }
        Ok(Some(at))
    }

    fn add_directory(
        &mut self,
        parent: NodeId,
        name: Vec<u8>,
        layer: u32,
        meta: Meta,
    ) -> Result<NodeId, PathError> {
        let depth = self.as_directory(parent).depth + 1;
        if depth > MAX_DEPTH {
            return Err(PathError::Depth);
        }
        let body = Body::Directory(Directory { children: BTreeMap::new(), parent, depth });
        let node = self.push(Node { meta, body, links: 1 })?;
        self.children(parent).insert(name, Child { node, layer });
        Ok(node)
    }

    fn push(&mut self, node: Node) -> Result<NodeId, PathError> {
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id < self.most);
        let id = id.ok_or(PathError::TooMany(self.most))?;
        self.nodes.push(node);
        self.live += 1;
        Ok(NodeId(id))
    }

    fn hide_lower(&mut self, node: NodeId, layer: u32) {
        let mut todo = vec![node];
        while let Some(at) = todo.pop() {
            let Body::Directory(directory) = &self.node(at).body else { continue };
            let mut lower = Vec::new();
            for (name, child) in &directory.children {
                if child.layer == layer {
                    todo.push(child.node);
                } else {
                    lower.push(name.clone());
                }
            }
            for name in lower {
                self.unlink(at, &name);
            }
        }
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        let Some(child) = self.children(parent).remove(name) else { return };
        let mut todo = vec![child.node];
        while let Some(at) = todo.pop() {
            let node = &mut self.nodes[at.index()];
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            self.live -= 1;
            match std::mem::replace(&mut node.body, Body::Gone) {
                Body::Directory(directory) => {
                    todo.extend(directory.children.into_values().map(|child| child.node));
                }
                Body::File { size, place: Place::Blocks(first) } => self.dead.push((first, size)),
                _ => {}
            }
        }
    }

    fn as_directory(&self, id: NodeId) -> &Directory {
        match &self.node(id).body {
            Body::Directory(directory) => directory,
            _ => unreachable!("only directories are walked into"),
        }
    }

    fn children(&mut self, id: NodeId) -> &mut BTreeMap<Vec<u8>, Child> {
        match &mut self.nodes[id.index()].body {
            Body::Directory(directory) => &mut directory.children,
            _ => unreachable!("only directories are walked into"),
        }
    }
}

/// The components of an entry's path, without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::Length);
    }
    let parts: Vec<Vec<u8>> = split(path).map(<[u8]>::to_vec).collect();
    if parts.iter().any(|part| part == b"..") {
        return Err(PathError::Climbs);
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(PathError::Length);
    }
    Ok(parts)
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

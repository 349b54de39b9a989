//! How much of a foreign image the store accepts before it refuses.

/// Bounds on what an image may make us hold or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Layers of one image.
    pub layers: usize,
    /// Files of any type that all layers of one image may create, including replaced ones.
    pub files: u32,
    /// Bytes of names, link targets and extended attributes of one image, held in memory.
    pub metadata: u64,
    /// Uncompressed bytes of all layers of one image together.
    pub unpacked: u64,
    /// Bytes of one stored blob.
    pub blob: u64,
}

/// Bytes of one manifest, index or configuration.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 128,
            files: 1 << 20,
            metadata: 256 << 20,
            unpacked: 32 << 30,
            blob: 16 << 30,
        }
    }
}

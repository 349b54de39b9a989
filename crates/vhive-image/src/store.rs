//! Where images are kept, and the questions that need no network.
//!
//! ```text
//!   <dir>/blobs/sha256/<hex>     manifests, configurations, layers, as they came
//!         names.json             name → manifest digest, and every manifest stored
//!         rootfs/<hex>.erofs     root file system of the manifest with that digest
//!         rootfs/<hex>.json      its digest and size
//!         builds/<hex>.json      layers made by `build`, by the digest of what went into them
//!         drafts/                files in the making; the dead ones are swept at `open`
//!         lock                   shared while blobs are added, exclusive while they are removed
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

use crate::draft::{self, Draft, Lock, Sync};
use crate::limits::{Limits, MAX_DOCUMENT};
use crate::names::{NAMES, Names};
use crate::oci::{ConfigDocument, Descriptor, DocumentError, ImageConfig, Manifest, Parsed, parse};
use crate::reference::{ParseReferenceError, Reference};
use crate::rootfs::Flight;

/// A store of images in a directory. Cloning it is cheap; any number of processes may use one
/// directory at a time.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) flights: Mutex<HashMap<Digest, Flight>>,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name, e.g. `dev.local/hello:latest`; the digest as text if no name is left.
    pub name: String,
    /// Digest of its manifest: what keeps its meaning when the name moves on.
    pub digest: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// From the lowest to the highest.
    pub layers: Vec<Layer>,
    /// Bytes of its layers as stored.
    pub bytes: u64,
    /// When it says that it was made.
    pub created: Option<jiff::Timestamp>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the stored (perhaps compressed) archive.
    pub digest: Digest,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes as stored.
    pub bytes: u64,
}

/// Why the store's own files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full; nothing half-written was left.
    #[error("no space left on the disk of {path}; free some or move the store, then try again")]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The list of names is damaged.
    #[error("{path} is damaged; remove it and pull, import or build the images again")]
    Names {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A blob is not in the store although an image needs it.
    #[error("blob {0} is missing from the store; pull, import or build the image again")]
    BlobMissing(Digest),
    /// A blob's content is not what its name says.
    #[error("blob {digest} is damaged in the store; remove the image and get it again")]
    BlobDamaged {
        /// What it should be.
        digest: Digest,
    },
    /// A manifest or configuration is larger than accepted.
    #[error("document {digest} has {bytes} bytes; at most {MAX_DOCUMENT} are accepted")]
    DocumentSize {
        /// Which.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
    /// A manifest or configuration that we do not accept.
    #[error("document {digest} cannot be used")]
    Document {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: DocumentError,
    },
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let full =
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if full { Self::DiskFull { path, source } } else { Self::Io { path, source } }
        }
    }
}

/// Why an image is not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The store has no image of that name or digest.
    #[error(
        "image {0} is not in the store; see `vhive image ls`, or get it with `vhive image pull`, `import` or `build`"
    )]
    Unknown(String),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub names: Vec<String>,
    /// Bytes of files that were deleted. Zero if the content is still named otherwise, or if
    /// something is being added at this moment: then the next removal deletes it.
    pub bytes: u64,
}

impl ImageStore {
    /// Opens the store in `dir`, which is made if it is missing, and sweeps what killed
    /// processes left.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be made or written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(dir, Limits::default())
    }

    /// Likewise with other bounds on what is accepted.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_with(dir: impl Into<PathBuf>, limits: Limits) -> Result<Self, StoreError> {
        let dir = dir.into();
        let inner = Inner { dir, limits, flights: Mutex::default() };
        for below in [inner.blobs(), inner.rootfs_dir(), inner.builds(), inner.drafts()] {
            fs::create_dir_all(&below).map_err(StoreError::io(&below))?;
        }
        let drafts = inner.drafts();
        let swept = draft::sweep(&drafts).map_err(StoreError::io(&drafts))?;
        if swept > 0 {
            tracing::info!(swept, "removed unfinished files of the image store");
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// All images, by name; those that lost their name come last.
    ///
    /// # Errors
    /// [`StoreError`]; an image with a missing or damaged document is left out with a warning.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let names = Names::load(&self.inner)?;
        let mut images = Vec::new();
        let nameless = names.nameless();
        let nameless = nameless.iter().map(|digest| (digest.to_string(), *digest));
        for (name, digest) in names.iter().chain(nameless) {
            match self.inner.image(name.clone(), digest) {
                Ok(image) => images.push(image),
                Err(error) => tracing::warn!(name, %error, "image cannot be read"),
            }
        }
        Ok(images)
    }

    /// The image of a name, or of a manifest digest `sha256:…`, if the store has it.
    ///
    /// # Errors
    /// [`FindError::Unknown`] if it does not; others if it cannot be read.
    pub fn find(&self, reference: &str) -> Result<Image, FindError> {
        let names = Names::load(&self.inner)?;
        let unknown = || FindError::Unknown(reference.to_owned());
        if let Ok(digest) = reference.parse::<Digest>() {
            let name = names.name_of(digest).ok_or_else(unknown)?;
            return Ok(self.inner.image(name, digest)?);
        }
        let parsed: Reference = reference.parse()?;
        let name = parsed.to_string();
        let by_digest = || parsed.digest().filter(|digest| names.name_of(*digest).is_some());
        let digest = names.get(&name).or_else(by_digest).ok_or_else(unknown)?;
        Ok(self.inner.image(name, digest)?)
    }

    /// Removes a name, or an image by digest with all its names. Content that no image needs any
    /// more is deleted; a root file system that a sandbox has open stays readable to it.
    ///
    /// # Errors
    /// [`FindError::Unknown`] if there is no such image; others if files cannot be removed.
    pub fn remove(&self, name_or_digest: &str) -> Result<Removed, FindError> {
        let unknown = || FindError::Unknown(name_or_digest.to_owned());
        let names = if let Ok(digest) = name_or_digest.parse::<Digest>() {
            Names::change(&self.inner, |names| names.remove_digest(digest))?.ok_or_else(unknown)?
        } else {
            let name = name_or_digest.parse::<Reference>()?.to_string();
            let removed = Names::change(&self.inner, |names| names.remove_name(&name))?;
            vec![removed.then_some(name).ok_or_else(unknown)?]
        };
        let bytes = self.inner.collect()?;
        Ok(Removed { names, bytes })
    }
}

impl Inner {
    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn rootfs_dir(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(crate) fn builds(&self) -> PathBuf {
        self.dir.join("builds")
    }

    pub(crate) fn drafts(&self) -> PathBuf {
        self.dir.join("drafts")
    }

    pub(crate) fn names_file(&self) -> PathBuf {
        self.dir.join(NAMES)
    }

    pub(crate) fn draft(&self) -> Result<Draft, StoreError> {
        let drafts = self.drafts();
        Draft::new(&drafts).map_err(StoreError::io(&drafts))
    }

    /// Held while blobs are added, so that none is collected before an image names it.
    pub(crate) fn adding(&self) -> Result<Lock, StoreError> {
        let path = self.dir.join("lock");
        Lock::shared(&path).map_err(StoreError::io(&path))
    }

    /// Whether a blob of this digest and size is there. Its content is checked when it is used.
    pub(crate) fn has_blob(&self, digest: Digest, bytes: u64) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|found| found.is_file() && found.len() == bytes)
    }

    pub(crate) fn open_blob(&self, digest: Digest) -> Result<File, StoreError> {
        let path = self.blob(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::BlobMissing(digest))
            }
            Err(error) => Err(StoreError::io(&path)(error)),
        }
    }

    /// Gives a finished draft of known content its place among the blobs.
    pub(crate) fn publish_blob(&self, draft: Draft, digest: Digest) -> Result<(), StoreError> {
        let path = self.blob(digest);
        draft.publish(&path, Sync::Yes).map_err(StoreError::io(&path))
    }

    /// Stores a small document under its own digest.
    pub(crate) fn put_document(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.has_blob(digest, bytes.len() as u64) {
            let draft = self.draft()?;
            io::Write::write_all(&mut draft.file(), bytes).map_err(StoreError::io(draft.path()))?;
            self.publish_blob(draft, digest)?;
        }
        Ok(digest)
    }

    /// Reads a small document and checks that it is the one meant.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let file = self.open_blob(digest)?;
        let path = self.blob(digest);
        let bytes = file.metadata().map_err(StoreError::io(&path))?.len();
        if bytes > MAX_DOCUMENT {
            return Err(StoreError::DocumentSize { digest, bytes });
        }
        let mut text = Vec::new();
        file.take(MAX_DOCUMENT).read_to_end(&mut text).map_err(StoreError::io(&path))?;
        if Digest::of(&text) != digest {
            return Err(StoreError::BlobDamaged { digest });
        }
        Ok(text)
    }

    /// The manifest (never an index) and configuration of a stored image.
    pub(crate) fn documents(
        &self,
        digest: Digest,
    ) -> Result<(Manifest, ConfigDocument), StoreError> {
        let refuse = |digest| move |source| StoreError::Document { digest, source };
        let parsed = parse(&self.document(digest)?, self.limits.layers).map_err(refuse(digest))?;
        let Parsed::Manifest(manifest) = parsed else {
            return Err(refuse(digest)(DocumentError::Neither));
        };
        let config = manifest.config.digest;
        let text = self.document(config)?;
        let document =
            ConfigDocument::parse(&text, manifest.layers.len()).map_err(refuse(config))?;
        Ok((manifest, document))
    }

    pub(crate) fn image(&self, name: String, digest: Digest) -> Result<Image, StoreError> {
        let (manifest, config) = self.documents(digest)?;
        let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let layer = |(layer, diff_id): (&Descriptor, &Digest)| Layer {
            digest: layer.digest,
            diff_id: *diff_id,
            bytes: layer.size,
        };
        Ok(Image {
            name,
            digest,
            layers: pairs.map(layer).collect(),
            bytes: manifest.layers.iter().fold(0, |sum, layer| layer.size.saturating_add(sum)),
            created: config.created(),
            config: config.image_config(),
        })
    }

    /// Names an image whose blobs are all there.
    pub(crate) fn name(&self, name: &str, digest: Digest) -> Result<Image, StoreError> {
        let image = self.image(name.to_owned(), digest)?;
        Names::change(self, |names| names.set(name, digest))?;
        Ok(image)
    }

    /// Deletes blobs, root file systems and remembered layers that no image needs. Does nothing
    /// while something is being added.
    pub(crate) fn collect(&self) -> Result<u64, StoreError> {
        let path = self.dir.join("lock");
        let Some(_alone) = Lock::try_exclusive(&path).map_err(StoreError::io(&path))? else {
            return Ok(0);
        };
        let mut blobs = BTreeSet::new();
        let mut images = BTreeSet::new();
        for digest in Names::load(self)?.digests() {
            blobs.insert(digest.hex());
            images.insert(digest.hex());
            // A damaged image keeps what can still be told of it; nothing else is at stake.
            if let Ok((manifest, _)) = self.documents(digest) {
                blobs.insert(manifest.config.digest.hex());
                blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
            }
        }
        let mut freed = remove_unless(&self.blobs(), |name| blobs.contains(name))?;
        let image_of = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        freed += remove_unless(&self.rootfs_dir(), |name| images.contains(&image_of(name)))?;
        Ok(freed)
    }
}

fn remove_unless(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<u64, StoreError> {
    let mut freed = 0;
    for entry in fs::read_dir(dir).map_err(StoreError::io(dir))? {
        let entry = entry.map_err(StoreError::io(dir))?;
        if entry.file_name().to_str().is_some_and(&keep) {
            continue;
        }
        let path = entry.path();
        freed += entry.metadata().map_or(0, |found| found.len());
        fs::remove_file(&path).map_err(StoreError::io(&path))?;
    }
    Ok(freed)
}

/// Copies a stream into a draft while hashing it; refuses more than `most` bytes.
pub(crate) fn copy_hashed(
    from: &mut impl Read,
    draft: &Draft,
    most: u64,
) -> io::Result<(Digest, u64)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_bytes(hash.finalize().into()), bytes)),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        bytes += got as u64;
        if bytes > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hash.update(&buffer[..got]);
        io::Write::write_all(&mut draft.file(), &buffer[..got])?;
    }
}

//! Manifest digest → one read-only root file system image, built once and cached.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use vhive_api::{Bytes, Digest};

use crate::decode::decode;
use crate::draft::{Lock, Sync};
use crate::erofs::{ImageWriter, is_header_of};
use crate::layer::{Applier, LayerError};
use crate::oci::{Descriptor, ImageConfig};
use crate::store::{ImageStore, Inner, StoreError};

/// Changes whenever the same layers would give another image.
const FORMAT: u32 = 1;

/// A root file system image, ready to be given to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFs {
    /// The EROFS image. Whoever opens it keeps it, even if the image is removed meanwhile.
    pub path: PathBuf,
    /// Digest of the file.
    pub digest: Digest,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Size of the file.
    pub bytes: Bytes,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootFsError {
    /// The store cannot be used, or lacks the image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer is refused.
    #[error("layer {digest} cannot be applied")]
    Layer {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// A layer's uncompressed content is not what the configuration says.
    #[error("layer {digest} unpacks to {found}, but the image's configuration says {stated}")]
    DiffId {
        /// The layer as stored.
        digest: Digest,
        /// Digest of its uncompressed content.
        found: Digest,
        /// What the configuration says.
        stated: Digest,
    },
    /// The build ended without a result, e.g. because the program is shutting down.
    #[error("the build was abandoned; try again")]
    Abandoned,
}

type Outcome = Result<RootFs, Arc<RootFsError>>;

/// A build under way in this process, and its outcome for all who wait.
pub(crate) type Flight = watch::Receiver<Option<Outcome>>;

/// What is known of a finished image; stands beside it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    digest: Digest,
    bytes: u64,
}

impl ImageStore {
    /// The root file system of the image with this manifest digest. Built from the layers the
    /// first time, with all digests checked; later calls take the file that is there after a
    /// check of its size and header. However many ask at a time, in however many processes, it is
    /// built once; a caller that gives up does not stop the build.
    ///
    /// # Errors
    /// [`RootFsError`], shared by all who waited for the same build. Nothing half-written stays.
    pub async fn rootfs(&self, digest: &Digest) -> Result<RootFs, Arc<RootFsError>> {
        let mut flight = self.flight(*digest);
        let outcome = flight.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(Arc::new(RootFsError::Abandoned)),
        }
    }

    /// Reads the whole root file system of an image and compares it with its digest; a damaged
    /// one is removed, so that the next use builds it again. True if there is a sound one.
    ///
    /// # Errors
    /// [`StoreError`] if files cannot be read or removed.
    pub fn verify_rootfs(&self, digest: &Digest) -> Result<bool, StoreError> {
        let store = &self.inner;
        let Some(record) = store.record(*digest) else { return Ok(false) };
        let path = store.rootfs_file(*digest, "erofs");
        let file = File::open(&path).map_err(StoreError::io(&path))?;
        if hash_file(&file).map_err(StoreError::io(&path))? == record.digest {
            return Ok(true);
        }
        let path = store.rootfs_file(*digest, "json");
        fs::remove_file(&path).map_err(StoreError::io(&path))?;
        Ok(false)
    }

    fn flight(&self, digest: Digest) -> Flight {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&digest)
            && flight.has_changed().is_ok()
        {
            return flight.clone();
        }
        let (done, flight) = watch::channel(None);
        flights.insert(digest, flight.clone());
        let store = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            let outcome = store.rootfs(digest).map_err(Arc::new);
            // Off the list before it is told: who asks from now on looks anew.
            store.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            let _ = done.send(Some(outcome));
        });
        flight
    }
}

impl Inner {
    fn rootfs_file(&self, digest: Digest, extension: &str) -> PathBuf {
        self.rootfs_dir().join(format!("{}.{extension}", digest.hex()))
    }

    fn rootfs(&self, digest: Digest) -> Result<RootFs, RootFsError> {
        let (manifest, document) = self.documents(digest)?;
        let config = document.image_config();
        let path = self.rootfs_file(digest, "erofs");
        let found = |record: Record| RootFs {
            path: path.clone(),
            digest: record.digest,
            config: config.clone(),
            bytes: Bytes(record.bytes),
        };
        if let Some(record) = self.record(digest) {
            return Ok(found(record));
        }
        let lock = self.rootfs_file(digest, "lock");
        let _lock = Lock::exclusive(&lock).map_err(StoreError::io(&lock))?;
        if let Some(record) = self.record(digest) {
            return Ok(found(record));
        }
        let _adding = self.adding()?;
        let started = std::time::Instant::now();
        let record = self.build(digest, &manifest.layers, &document.rootfs.diff_ids)?;
        let (took, bytes) = (started.elapsed(), record.bytes);
        tracing::info!(image = %digest, bytes, ?took, "root file system built");
        Ok(found(record))
    }

    /// What is known of the cached image, if there is one that passes the cheap checks.
    fn record(&self, digest: Digest) -> Option<Record> {
        let text = fs::read(self.rootfs_file(digest, "json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let mut file = File::open(self.rootfs_file(digest, "erofs")).ok()?;
        let mut block0 = [0; 4096];
        file.read_exact(&mut block0).ok()?;
        let size_fits = file.metadata().is_ok_and(|found| found.len() == record.bytes);
        let sound = record.format == FORMAT
            && size_fits
            && is_header_of(&block0, uuid(digest), record.bytes);
        sound.then_some(record)
    }

    fn build(
        &self,
        digest: Digest,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<Record, RootFsError> {
        let draft = self.draft()?;
        let write = |error| StoreError::io(draft.path())(error);
        let file = draft.file().try_clone().map_err(write)?;
        let mut image = ImageWriter::new(file).map_err(write)?;
        let mut applier = Applier::new(&mut image, &self.limits);
        let mut left = self.limits.unpacked;
        for (layer, stated) in layers.iter().zip(diff_ids) {
            left -= self.apply(layer, *stated, &mut applier, left)?;
        }
        let tree = applier.tree;
        let (file, bytes) = image.finish(&tree, uuid(digest)).map_err(write)?;
        let file_digest = hash_file(&file).map_err(write)?;
        let record = Record { format: FORMAT, digest: file_digest, bytes };
        let path = self.rootfs_file(digest, "erofs");
        draft.publish(&path, Sync::Yes).map_err(StoreError::io(&path))?;
        self.publish_record(digest, &record)?;
        Ok(record)
    }

    /// Applies one layer and returns how many bytes it unpacked to.
    fn apply(
        &self,
        layer: &Descriptor,
        stated: Digest,
        applier: &mut Applier<'_>,
        most: u64,
    ) -> Result<u64, RootFsError> {
        let digest = layer.digest;
        let blob = self.open_blob(digest)?;
        let refused = |source| match source {
            LayerError::Write(error) => RootFsError::Store(StoreError::io(&self.drafts())(error)),
            source => RootFsError::Layer { digest, source },
        };
        let unreadable = |error| refused(LayerError::Archive(crate::tar::TarError::Read(error)));
        let (result, stored) = decode(blob, most, |stream| {
            applier.apply(&mut *stream)?;
            stream.finish().map_err(|error| crate::tar::TarError::Read(error).into())
        })
        .map_err(unreadable)?;
        // A damaged blob explains everything else that went wrong.
        if stored.digest != digest {
            return Err(StoreError::BlobDamaged { digest }.into());
        }
        let unpacked = result.map_err(refused)?;
        if unpacked.diff_id != stated {
            let found = unpacked.diff_id;
            return Err(RootFsError::DiffId { digest, found, stated });
        }
        Ok(unpacked.bytes)
    }

    fn publish_record(&self, digest: Digest, record: &Record) -> Result<(), StoreError> {
        let path = self.rootfs_file(digest, "json");
        let text = serde_json::to_vec(record).expect("digests and numbers serialise");
        let draft = self.draft()?;
        draft.file().write_all(&text).map_err(StoreError::io(draft.path()))?;
        draft.publish(&path, Sync::Yes).map_err(StoreError::io(&path))
    }
}

/// The file system's identifier: the head of the manifest's digest.
fn uuid(digest: Digest) -> [u8; 16] {
    let bytes = hex::decode(digest.hex()).expect("hexadecimal digits");
    bytes[..16].try_into().expect("32 bytes")
}

fn hash_file(file: &File) -> io::Result<Digest> {
    use std::os::unix::fs::FileExt as _;
    let (mut hash, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = file.read_at(&mut buffer, at)?;
        if got == 0 {
            return Ok(Digest::from_bytes(hash.finalize().into()));
        }
        hash.update(&buffer[..got]);
        at += got as u64;
    }
}

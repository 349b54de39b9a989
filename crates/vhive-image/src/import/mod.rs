//! Takes images from files: an OCI layout directory, or an archive as `docker save` writes it.
//!
//! # Source
//! OCI image-spec `image-layout.md`; Docker's `docker image save` layout (`manifest.json`).

mod source;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use vhive_api::Digest;

use self::source::Source;
use crate::limits::MAX_DOCUMENT;
use crate::oci::{
    CONFIG, CONTAINERD_NAME, ConfigDocument, Descriptor, Document, DocumentError, LAYER, Parsed,
    Platform, REF_NAME, parse,
};
use crate::reference::{ParseReferenceError, Reference};
use crate::store::{Image, ImageStore, Inner, StoreError, copy_hashed};
use crate::tar::TarError;

/// Indexes within indexes that are followed.
const MAX_NESTING: usize = 4;

/// Why an image cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The archive is not well-formed.
    #[error("{path} is no archive that holds an image")]
    Archive {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TarError,
    },
    /// Neither kind of index is there.
    #[error("{0} holds no image: there is neither index.json nor manifest.json")]
    NoIndex(PathBuf),
    /// A document of the source cannot be used.
    #[error("{file} of the image cannot be used")]
    Document {
        /// Name inside the source.
        file: String,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// The source refers to a file that it does not hold.
    #[error("{0} is missing from the image")]
    Missing(String),
    /// A blob is not what its name says.
    #[error("{file} of the image is damaged: it has digest {found}")]
    Damaged {
        /// Name inside the source.
        file: String,
        /// What was found.
        found: Digest,
    },
    /// A blob is not as long as its descriptor says, or longer than accepted.
    #[error("{file} of the image should have {stated} bytes, at most {most}")]
    Size {
        /// Name inside the source.
        file: String,
        /// What its descriptor says.
        stated: u64,
        /// What is accepted.
        most: u64,
    },
    /// There are several images and the name asked for fits none of them.
    #[error("the source holds several images; say which by its name: {0}")]
    Ambiguous(String),
    /// The source does not say how the image is called.
    #[error("the source does not name its image; give it a name, e.g. dev.local/NAME:latest")]
    NameNeeded,
    /// A name is no image reference.
    #[error(transparent)]
    Name(#[from] ParseReferenceError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The import ended without a result, e.g. because the program is shutting down.
    #[error("the import was abandoned; try again")]
    Abandoned,
}

/// One image of a `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl ImageStore {
    /// Imports the image for linux/amd64 of an OCI layout directory or a `docker save` archive
    /// (plain, gzip or zstd) under `name`, or under the name that the source gives it. If the
    /// source holds several images, `name` also says which.
    ///
    /// # Errors
    /// [`ImportError`]; nothing half-imported stays.
    pub async fn import(
        &self,
        source: impl AsRef<Path>,
        name: Option<&str>,
    ) -> Result<Image, ImportError> {
        let store = Arc::clone(&self.inner);
        let path = source.as_ref().to_owned();
        let name = name.map(str::parse).transpose()?;
        let work = move || store.import(&path, name.as_ref());
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(ImportError::Abandoned))
    }
}

impl Inner {
    fn import(&self, path: &Path, name: Option<&Reference>) -> Result<Image, ImportError> {
        let _adding = self.adding()?;
        let source = Source::open(self, path)?;
        let (found, digest) = if source.has("index.json") {
            self.import_layout(&source, name)?
        } else if matches!(source, Source::Archive { .. }) && source.has("manifest.json") {
            self.import_saved(&source, name)?
        } else {
            return Err(ImportError::NoIndex(path.to_owned()));
        };
        let name = name.cloned().or(found).ok_or(ImportError::NameNeeded)?;
        Ok(self.name(&name.to_string(), digest)?)
    }

    fn import_layout(
        &self,
        source: &Source,
        name: Option<&Reference>,
    ) -> Result<(Option<Reference>, Digest), ImportError> {
        let text = source.document("index.json")?;
        let refuse = |file: &str| {
            let file = file.to_owned();
            move |source| ImportError::Document { file, source }
        };
        let index: Document = serde_json::from_slice(&text)
            .map_err(|e| refuse("index.json")(DocumentError::Json(e)))?;
        let all = index.manifests.ok_or_else(|| refuse("index.json")(DocumentError::Neither))?;
        let chosen = choose(all, name)?;
        let found = names_of(&chosen).find_map(|name| full_name(&name));
        let mut at = chosen;
        for _ in 0..MAX_NESTING {
            let file = blob_file(at.digest);
            let text = source.document(&file)?;
            let digest = Digest::of(&text);
            if digest != at.digest {
                return Err(ImportError::Damaged { file, found: digest });
            }
            match parse(&text, self.limits.layers).map_err(refuse(&file))? {
                Parsed::Index(below) => at = below,
                Parsed::Manifest(manifest) => {
                    self.import_config(source, &manifest.config, &manifest.layers)?;
                    for layer in &manifest.layers {
                        self.import_blob(source, layer)?;
                    }
                    return Ok((found, self.put_document(&text)?));
                }
            }
        }
        Err(refuse("index.json")(DocumentError::Neither))
    }

    fn import_config(
        &self,
        source: &Source,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<(), ImportError> {
        let file = blob_file(config.digest);
        let text = source.document(&file)?;
        let found = Digest::of(&text);
        if found != config.digest {
            return Err(ImportError::Damaged { file, found });
        }
        ConfigDocument::parse(&text, layers.len())
            .map_err(|source| ImportError::Document { file, source })?;
        self.put_document(&text)?;
        Ok(())
    }

    fn import_blob(&self, source: &Source, blob: &Descriptor) -> Result<(), ImportError> {
        let file = blob_file(blob.digest);
        if blob.size > self.limits.blob {
            let (stated, most) = (blob.size, self.limits.blob);
            return Err(ImportError::Size { file, stated, most });
        }
        if self.has_blob(blob.digest, blob.size) {
            return Ok(());
        }
        let draft = self.draft()?;
        let (found, bytes) = self.copy(source, &file, &draft, blob.size)?;
        if bytes != blob.size {
            return Err(ImportError::Size { file, stated: blob.size, most: self.limits.blob });
        }
        if found != blob.digest {
            return Err(ImportError::Damaged { file, found });
        }
        Ok(self.publish_blob(draft, found)?)
    }

    fn import_saved(
        &self,
        source: &Source,
        name: Option<&Reference>,
    ) -> Result<(Option<Reference>, Digest), ImportError> {
        let file = || "manifest.json".to_owned();
        let text = source.document("manifest.json")?;
        let images: Vec<Saved> = serde_json::from_slice(&text).map_err(|error| {
            ImportError::Document { file: file(), source: DocumentError::Json(error) }
        })?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let fits = |image: &Saved| {
            name.is_some_and(|name| {
                tags(image).iter().any(|tag| full_name(tag).as_ref() == Some(name))
            })
        };
        let at = match images.len() {
            0 => return Err(ImportError::Missing("an image in manifest.json".to_owned())),
            1 => 0,
            _ => images.iter().position(fits).ok_or_else(|| {
                ImportError::Ambiguous(images.iter().flat_map(tags).collect::<Vec<_>>().join(", "))
            })?,
        };
        let image = &images[at];
        if image.layers.len() > self.limits.layers {
            let source = DocumentError::TooManyLayers(image.layers.len());
            return Err(ImportError::Document { file: file(), source });
        }
        let config = source.document(&image.config)?;
        ConfigDocument::parse(&config, image.layers.len())
            .map_err(|source| ImportError::Document { file: image.config.clone(), source })?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let draft = self.draft()?;
            let (digest, bytes) = self.copy(source, layer, &draft, self.limits.blob)?;
            self.publish_blob(draft, digest)?;
            layers.push((LAYER, digest, bytes));
        }
        let config_digest = self.put_document(&config)?;
        let config = Descriptor::new(CONFIG, config_digest, config.len() as u64);
        let found = tags(image).iter().find_map(|tag| full_name(tag));
        Ok((found, self.put_manifest(config, layers)?))
    }

    /// Copies a file of the source into a draft; at most `most` bytes.
    fn copy(
        &self,
        source: &Source,
        file: &str,
        draft: &crate::draft::Draft,
        most: u64,
    ) -> Result<(Digest, u64), ImportError> {
        // One byte more than allowed tells a file that is too long.
        let mut from = source.read(file)?.take(most.saturating_add(1));
        let stated = most;
        match copy_hashed(&mut from, draft, most) {
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                Err(ImportError::Size { file: file.to_owned(), stated, most: self.limits.blob })
            }
            copied => Ok(copied.map_err(StoreError::io(draft.path()))?),
        }
    }
}

fn blob_file(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names that an index gives an image.
fn names_of(descriptor: &Descriptor) -> impl Iterator<Item = String> {
    let names = [CONTAINERD_NAME, REF_NAME].map(|key| descriptor.annotations.get(key).cloned());
    names.into_iter().flatten()
}

/// A name that says more than a tag.
fn full_name(name: &str) -> Option<Reference> {
    name.contains(['/', ':']).then(|| name.parse().ok()).flatten()
}

fn choose(all: Vec<Descriptor>, name: Option<&Reference>) -> Result<Descriptor, ImportError> {
    let fits = |d: &Descriptor| d.platform.as_ref().is_none_or(Platform::fits);
    let names: Vec<String> = all.iter().flat_map(names_of).collect();
    let mut fitting: Vec<Descriptor> = all.into_iter().filter(fits).collect();
    if fitting.len() > 1
        && let Some(name) = name
    {
        let is_named = |d: &Descriptor| {
            names_of(d).any(|n| full_name(&n).as_ref() == Some(name) || n == name.selector())
        };
        fitting.retain(is_named);
    }
    match fitting.len() {
        1 => Ok(fitting.remove(0)),
        0 if names.is_empty() => Err(ImportError::Missing("an image for linux/amd64".to_owned())),
        _ => Err(ImportError::Ambiguous(names.join(", "))),
    }
}

/// Reads a small file whole.
fn read_document(file: &str, from: impl Read) -> Result<Vec<u8>, ImportError> {
    let mut text = Vec::new();
    let result = from.take(MAX_DOCUMENT + 1).read_to_end(&mut text);
    result.map_err(|source| ImportError::Read { path: file.into(), source })?;
    if text.len() as u64 > MAX_DOCUMENT {
        let stated = text.len() as u64;
        return Err(ImportError::Size { file: file.to_owned(), stated, most: MAX_DOCUMENT });
    }
    Ok(text)
}

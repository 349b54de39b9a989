//! The documents of an image: index, manifest, configuration.
//!
//! # Source
//! OCI image-spec `image-index.md`, `manifest.md`, `config.md`; the Docker forms (schema 2) have
//! the same fields under other media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vhive_api::Digest;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Annotation of an OCI layout's index that names an image.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same from containerd and Docker, with the full name.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

impl Platform {
    /// The only one that our guests run.
    pub(crate) fn fits(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

/// A manifest or an index, told apart by what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Why a document is not one of an image that can run here.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON, or lacks a field.
    #[error("it is no image manifest, index or configuration")]
    Json(#[source] serde_json::Error),
    /// A version that is not 2, e.g. the retired schema 1.
    #[error("its schema version is {0}; only 2 is supported")]
    Schema(u32),
    /// It is neither manifest nor index.
    #[error("it is neither an image manifest nor an index")]
    Neither,
    /// Not for our guests.
    #[error("it is for {os}/{architecture}; only linux/amd64 runs here")]
    Platform {
        /// The operating system stated.
        os: String,
        /// The architecture stated.
        architecture: String,
    },
    /// An index without a manifest for our guests.
    #[error("the index has no image for linux/amd64, only for: {0}")]
    NoPlatform(String),
    /// Manifest and configuration disagree on the number of layers.
    #[error("the manifest has {layers} layers, its configuration {diff_ids}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than accepted.
    #[error("it has {0} layers, more than are accepted")]
    TooManyLayers(usize),
}

/// What a manifest's digest leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Manifest(Manifest),
    /// The manifest for linux/amd64 of an index.
    Index(Descriptor),
}

/// Reads a manifest, or picks linux/amd64 from an index.
pub(crate) fn parse(bytes: &[u8], most_layers: usize) -> Result<Parsed, DocumentError> {
    let document: Document = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
    if document.schema_version != 2 {
        return Err(DocumentError::Schema(document.schema_version));
    }
    match (document.config, document.layers, document.manifests) {
        (Some(config), Some(layers), None) => {
            if layers.len() > most_layers {
                return Err(DocumentError::TooManyLayers(layers.len()));
            }
            Ok(Parsed::Manifest(Manifest { config, layers }))
        }
        (None, None, Some(manifests)) => pick(&manifests).map(Parsed::Index),
        _ => Err(DocumentError::Neither),
    }
}

fn pick(manifests: &[Descriptor]) -> Result<Descriptor, DocumentError> {
    let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(Platform::fits);
    let unstated = |d: &&Descriptor| d.platform.is_none() && manifests.len() == 1;
    let found = manifests.iter().find(fits).or_else(|| manifests.iter().find(unstated));
    found.cloned().ok_or_else(|| {
        let platforms = manifests.iter().filter_map(|d| d.platform.as_ref());
        let texts: Vec<String> =
            platforms.take(20).map(|p| format!("{}/{}", p.os, p.architecture)).collect();
        DocumentError::NoPlatform(texts.join(", "))
    })
}

/// The configuration document, as far as it concerns running the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<RunConfig>,
    pub(crate) rootfs: RootFsList,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootFsList {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<String>,
}

/// How an image wants its process to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, used unless others are given.
    pub cmd: Vec<String>,
    /// Variables in order; an entry without `=` is dropped.
    pub env: Vec<(String, String)>,
    /// `user[:group]` by name or number; empty = root.
    pub user: String,
    /// Where the process starts; `/` if the image says nothing.
    pub working_dir: String,
    /// Signal that asks the process to end, e.g. `SIGTERM`; `None` = `SIGTERM`.
    pub stop_signal: Option<String>,
    /// TCP ports on which the image says that it listens, ascending.
    pub exposed_ports: Vec<u16>,
}

impl ConfigDocument {
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, DocumentError> {
        let document: Self = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        let platform =
            Platform { architecture: document.architecture.clone(), os: document.os.clone() };
        if !platform.fits() {
            let Platform { os, architecture } = platform;
            return Err(DocumentError::Platform { os, architecture });
        }
        let diff_ids = document.rootfs.diff_ids.len();
        if diff_ids != layers {
            return Err(DocumentError::Layers { layers, diff_ids });
        }
        Ok(document)
    }

    pub(crate) fn image_config(&self) -> ImageConfig {
        let run = self.config.clone().unwrap_or_default();
        let split = |text: &String| {
            text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        let tcp = |key: &String| {
            let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
            (protocol == "tcp").then(|| port.parse().ok()).flatten()
        };
        let mut exposed_ports: Vec<u16> =
            run.exposed_ports.unwrap_or_default().keys().filter_map(tcp).collect();
        exposed_ports.sort_unstable();
        ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default().iter().filter_map(split).collect(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.filter(|dir| !dir.is_empty()).unwrap_or("/".to_owned()),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports,
        }
    }

    pub(crate) fn created(&self) -> Option<jiff::Timestamp> {
        self.created.as_ref()?.parse().ok()
    }
}

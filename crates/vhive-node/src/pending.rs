//! Stand-ins with the agreed shape for what `vhive-image` and the network pool do not offer yet.
#![expect(clippy::unused_async, missing_docs, reason = "replaced as soon as the originals land")]

use std::path::PathBuf;

use vhive_api::Digest;

#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: Option<String>,
}

#[derive(Clone, Debug)]
pub struct RootFs {
    pub path: PathBuf,
    pub config: ImageConfig,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
#[error("the image store is not there yet")]
pub struct RootFsError;
pub use RootFsError as FindError;
pub use RootFsError as PullError;

impl RootFsError {
    pub fn may_pull(&self) -> bool {
        true
    }
}

#[derive(Debug, Default)]
pub struct PullOptions;

#[derive(Clone, Debug, Default)]
pub struct ImageStore;

impl ImageStore {
    pub async fn rootfs(&self, _: &Digest) -> Result<RootFs, std::sync::Arc<RootFsError>> {
        Err(std::sync::Arc::new(RootFsError))
    }
    pub fn find(&self, _: &str) -> Result<Image, RootFsError> {
        Err(RootFsError)
    }
    pub async fn pull(&self, _: &str, _: &PullOptions) -> Result<Image, RootFsError> {
        Err(RootFsError)
    }
}

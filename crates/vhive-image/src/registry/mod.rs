//! Pulls images from a registry.
//!
//! # Source
//! OCI distribution-spec, "Pulling manifests" and "Pulling blobs".

mod auth;
mod client;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vhive_api::Digest;

pub use self::auth::AuthError;
pub use self::client::RequestError;
use self::client::{Client, Resource};
use crate::draft::Draft;
use crate::limits::MAX_DOCUMENT;
use crate::oci::{ConfigDocument, Descriptor, DocumentError, Manifest, Parsed, parse};
use crate::progress::{Progress, StepState};
use crate::reference::{ParseReferenceError, Reference};
use crate::store::{Image, ImageStore, Inner, StoreError};

/// Layers fetched at a time.
const PARALLEL: usize = 3;
/// Received pieces that may wait to be written.
const QUEUE: usize = 16;
/// How often a fetch is tried that the network or the registry breaks off.
const ATTEMPTS: u32 = 3;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Speak plain HTTP to the registry even if it is not on this host's loopback.
    pub plain_http: bool,
    /// How long the whole pull may take.
    pub timeout: Duration,
    /// How long the registry may keep us waiting for the next bytes.
    pub stall: Duration,
    /// Where credentials are; `None` = `config.json` in `$DOCKER_CONFIG` or `~/.docker`.
    pub auth_file: Option<PathBuf>,
    /// Who is told how far it is.
    pub progress: Progress,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            timeout: Duration::from_secs(600),
            stall: Duration::from_secs(30),
            auth_file: None,
            progress: Progress::default(),
        }
    }
}

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The name is one of those that are never looked up in a registry.
    #[error(
        "{0} is not in the store, and such names are never looked up in a registry; get it with `vhive image build` or `import`"
    )]
    LocalOnly(Reference),
    /// The registry does not know the image.
    #[error("{registry} has no image {reference}")]
    NotFound {
        /// The registry asked.
        registry: String,
        /// What it was asked for.
        reference: String,
    },
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What arrived is not what was asked for.
    #[error("the registry sent {found} for {wanted}")]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// Digest of what came.
        found: Digest,
    },
    /// What arrived is longer or shorter than stated.
    #[error("the registry sent {received} bytes for {digest}, which should have {stated}")]
    Size {
        /// What was asked for.
        digest: Digest,
        /// What its descriptor states, or the most that is accepted.
        stated: u64,
        /// What came until we stopped.
        received: u64,
    },
    /// A manifest or configuration that we do not accept.
    #[error("image {reference} cannot be used")]
    Document {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// The time given for the whole pull is over.
    #[error("pulling {reference} took longer than {limit:?}")]
    Timeout {
        /// The image.
        reference: String,
        /// The time given.
        limit: Duration,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pull ended without a result, e.g. because the program is shutting down.
    #[error("the pull was abandoned; try again")]
    Abandoned,
}

/// What one pull works with.
#[derive(Debug)]
struct Pull {
    store: Arc<Inner>,
    client: Client,
    reference: Reference,
    progress: Progress,
}

impl ImageStore {
    /// Pulls the image for linux/amd64 of a reference from its registry and names it by the
    /// reference. What the store has already is not fetched again. Dropping the future stops it.
    ///
    /// # Errors
    /// [`PullError`]; blobs that arrived whole are kept for the next try, nothing half-written is.
    pub async fn pull(&self, reference: &str, options: &PullOptions) -> Result<Image, PullError> {
        let reference: Reference = reference.parse()?;
        if reference.is_local() {
            return Err(PullError::LocalOnly(reference));
        }
        let name = reference.to_string();
        let client = Client::new(&reference, options);
        let (store, progress) = (Arc::clone(&self.inner), options.progress.clone());
        let _adding = blocking(&store, |store| Ok(store.adding()?)).await?;
        let pull = Arc::new(Pull { store, client, reference, progress });
        let limit = options.timeout;
        let late = |_| PullError::Timeout { reference: name.clone(), limit };
        tokio::time::timeout(limit, pull.run()).await.map_err(late)?
    }
}

impl Pull {
    async fn run(self: Arc<Self>) -> Result<Image, PullError> {
        let name = self.reference.to_string();
        let what = format!("{name}: manifest");
        self.progress.tell(&what, StepState::Begun);
        let started = Instant::now();
        let (text, manifest) = self.manifest().await?;
        let config = self.config(&manifest).await?;
        self.progress.tell(&what, StepState::Done { took: started.elapsed() });
        let mut todo: Vec<Descriptor> = manifest.layers.clone();
        todo.sort_by_key(|layer| layer.digest);
        todo.dedup_by_key(|layer| layer.digest);
        let mut running = JoinSet::new();
        loop {
            while running.len() < PARALLEL
                && let Some(layer) = todo.pop()
            {
                running.spawn(Arc::clone(&self).layer(layer));
            }
            match running.join_next().await {
                Some(joined) => joined.unwrap_or(Err(PullError::Abandoned))?,
                None => break,
            }
        }
        blocking(&self.store, move |store| {
            store.put_document(&config)?;
            let digest = store.put_document(&text)?;
            Ok(store.name(&name, digest)?)
        })
        .await
    }

    /// The manifest for linux/amd64, as text and read.
    async fn manifest(&self) -> Result<(Vec<u8>, Manifest), PullError> {
        let reference = self.reference.to_string();
        let refuse = |source| PullError::Document { reference: reference.clone(), source };
        let most_layers = self.store.limits.layers;
        let selector = self.reference.selector();
        let text = self.document(&Resource::Manifest(selector), self.reference.digest()).await?;
        let below = match parse(&text, most_layers).map_err(refuse)? {
            Parsed::Manifest(manifest) => return Ok((text, manifest)),
            Parsed::Index(below) => below,
        };
        let resource = Resource::Manifest(below.digest.to_string());
        let text = self.document(&resource, Some(below.digest)).await?;
        match parse(&text, most_layers).map_err(refuse)? {
            Parsed::Manifest(manifest) => Ok((text, manifest)),
            Parsed::Index(_) => Err(refuse(DocumentError::Neither)),
        }
    }

    async fn config(&self, manifest: &Manifest) -> Result<Vec<u8>, PullError> {
        let digest = manifest.config.digest;
        let text = self.document(&Resource::Blob(digest), Some(digest)).await?;
        ConfigDocument::parse(&text, manifest.layers.len()).map_err(|source| {
            PullError::Document { reference: self.reference.to_string(), source }
        })?;
        Ok(text)
    }

    /// A small document, checked if its digest is known.
    async fn document(
        &self,
        resource: &Resource,
        wanted: Option<Digest>,
    ) -> Result<Vec<u8>, PullError> {
        let mut body = self.open(resource).await?;
        let mut text = Vec::new();
        while let Some(piece) = self.client.next(&mut body).await? {
            text.extend_from_slice(&piece);
            if text.len() as u64 > MAX_DOCUMENT {
                let digest = wanted.unwrap_or_else(|| Digest::of(&text));
                let received = text.len() as u64;
                return Err(PullError::Size { digest, stated: MAX_DOCUMENT, received });
            }
        }
        let found = Digest::of(&text);
        match wanted {
            Some(wanted) if wanted != found => Err(PullError::Digest { wanted, found }),
            _ => Ok(text),
        }
    }

    async fn open(&self, resource: &Resource) -> Result<Incoming, PullError> {
        let response = self.client.get(resource).await?;
        if response.status() == http::StatusCode::NOT_FOUND {
            let registry = self.reference.registry().to_owned();
            let reference = match resource {
                Resource::Manifest(_) => self.reference.to_string(),
                Resource::Blob(digest) => digest.to_string(),
            };
            return Err(PullError::NotFound { registry, reference });
        }
        Ok(response.into_body())
    }

    async fn layer(self: Arc<Self>, layer: Descriptor) -> Result<(), PullError> {
        let digest = layer.digest;
        let most = self.store.limits.blob;
        if layer.size > most {
            return Err(PullError::Size { digest, stated: most, received: 0 });
        }
        let what = format!("{}: layer {}", self.reference, &digest.hex()[..12]);
        if self.store.has_blob(digest, layer.size) {
            self.progress.tell(&what, StepState::Cached);
            return Ok(());
        }
        self.progress.tell(&what, StepState::Begun);
        let started = Instant::now();
        for attempt in 1.. {
            match self.fetch(&layer, &what).await {
                Err(PullError::Request(error)) if error.is_transient() && attempt < ATTEMPTS => {
                    tracing::warn!(layer = %digest, %error, attempt, "fetching again");
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        self.progress.tell(&what, StepState::Done { took: started.elapsed() });
        Ok(())
    }

    /// Streams a blob to disk. Hashing and writing are done on a blocking thread beside.
    async fn fetch(&self, layer: &Descriptor, what: &str) -> Result<(), PullError> {
        let (digest, total) = (layer.digest, layer.size);
        let mut body = self.open(&Resource::Blob(digest)).await?;
        if body.size_hint().exact().is_some_and(|stated| stated != total) {
            let received = body.size_hint().lower();
            return Err(PullError::Size { digest, stated: total, received });
        }
        let (pieces, queue) = mpsc::channel(QUEUE);
        let store = Arc::clone(&self.store);
        let writer = tokio::task::spawn_blocking(move || write(&store, queue));
        let (mut received, mut told) = (0, 0);
        while let Some(piece) = self.client.next(&mut body).await? {
            received += piece.len() as u64;
            if received > total {
                return Err(PullError::Size { digest, stated: total, received });
            }
            if pieces.send(piece).await.is_err() {
                // The writer gave up; its error is below.
                break;
            }
            if received - told >= 4 << 20 {
                told = received;
                self.progress.tell(what, StepState::Bytes { done: received, total });
            }
        }
        drop(pieces);
        let (draft, found) = writer.await.map_err(|_| PullError::Abandoned)??;
        if received != total {
            return Err(PullError::Size { digest, stated: total, received });
        }
        if found != digest {
            return Err(PullError::Digest { wanted: digest, found });
        }
        blocking(&self.store, move |store| Ok(store.publish_blob(draft, digest)?)).await
    }
}

fn write(store: &Inner, mut queue: mpsc::Receiver<Bytes>) -> Result<(Draft, Digest), StoreError> {
    let draft = store.draft()?;
    let mut hash = Sha256::new();
    while let Some(piece) = queue.blocking_recv() {
        hash.update(&piece);
        std::io::Write::write_all(&mut draft.file(), &piece)
            .map_err(StoreError::io(draft.path()))?;
    }
    Ok((draft, Digest::from_bytes(hash.finalize().into())))
}

/// Runs file system work off the async threads.
async fn blocking<T: Send + 'static>(
    store: &Arc<Inner>,
    work: impl FnOnce(&Inner) -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    let store = Arc::clone(store);
    let joined = tokio::task::spawn_blocking(move || work(&store)).await;
    joined.unwrap_or(Err(PullError::Abandoned))
}

/// The next piece of a body.
async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(error),
        }
    }
}

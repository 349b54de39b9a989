//! What happens when a service is made, changed or removed, and when the node starts again.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Mutex;
use vhive_api::{Digest, RevisionKey, RuntimeName};
use vhive_node::{Node, ResolveError};

use crate::admission::{Admitted, Invalid, Problem, ProblemKind, admit};
use crate::catalog::{Catalog, Entry, Route};
use crate::config::Config;
use crate::store::{Store, StoreError, StoredService};

/// Why a change was refused; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The document is not accepted.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// There is such a service already.
    #[error("service {0:?} already exists")]
    Exists(String),
    /// There is no such service.
    #[error("service {0:?} not found")]
    NotFound(String),
    /// The client has seen an older version than the present one.
    #[error(
        "service {name:?} has changed: it is at resourceVersion {present}, not {given}; read it \
         again and repeat the change"
    )]
    Conflict {
        /// The service.
        name: String,
        /// What the client gave.
        given: String,
        /// What it is.
        present: u64,
    },
    /// The image cannot be found or pulled.
    #[error("image {image:?}")]
    Image {
        /// The reference.
        image: String,
        /// Why not.
        #[source]
        source: Box<ResolveError>,
    },
    /// The change could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task that should have made it durable is gone.
    #[error("the node is shutting down")]
    ShutDown,
}

/// What a client wants with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// There must be none yet.
    Create,
    /// There must be one.
    Replace,
}

/// The services with everything that a change of one concerns.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) node: Node,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) config: Config,
    store: Arc<Store>,
    /// Held while a change is made; one at a time.
    changing: Mutex<()>,
}

impl Services {
    /// Opens the store and serves what it holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn open(
        node: Node,
        catalog: Arc<Catalog>,
        config: Config,
        path: &Path,
    ) -> Result<Self, StoreError> {
        let at = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let store = Store::open(&at)?;
            let all = store.all()?;
            Ok((store, all))
        });
        let gone = || StoreError::Io { path: path.to_owned(), reason: "interrupted".to_owned() };
        let (store, all) = opened.await.map_err(|_| gone())??;
        let services =
            Self { node, catalog, config, store: Arc::new(store), changing: Mutex::default() };
        for stored in all {
            let entry = services.catalog.put(stored).0;
            services.begin(&entry.route);
        }
        Ok(services)
    }

    /// Checks a document and makes or replaces its service. The boolean says whether a new
    /// revision came of it.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn put(
        &self,
        document: &Value,
        mode: Mode,
    ) -> Result<(Entry, bool), ChangeError> {
        let admitted = admit(document, &self.config)?;
        self.check_node(&admitted)?;
        let before = self.check(&admitted, mode)?;
        let same_spec = before.is_some_and(|entry| entry.stored.spec == admitted.spec);
        // Looking an image up may take long: not under the lock.
        let digest = match same_spec {
            true => None,
            false => Some(self.resolve(&admitted).await?),
        };

        let _changing = self.changing.lock().await;
        let before = self.check(&admitted, mode)?;
        let now = Timestamp::now();
        let mut stored = match (&before, digest) {
            (Some(entry), None) => StoredService::clone(&entry.stored),
            (before, digest) => {
                let generation = before.as_ref().map_or(0, |entry| entry.stored.generation) + 1;
                let digest = match digest {
                    Some(digest) => digest,
                    // Removed and made again meanwhile.
                    None => self.resolve(&admitted).await?,
                };
                let name = format!("{}-{generation:05}", admitted.name);
                let key = RevisionKey::new(&admitted.namespace, name);
                let uid = || uid();
                StoredService {
                    uid: before.as_ref().map_or_else(uid, |entry| entry.stored.uid.clone()),
                    created: before.as_ref().map_or(now, |entry| entry.stored.created),
                    updated: now,
                    generation,
                    resource_version: 0,
                    labels: Default::default(),
                    annotations: Default::default(),
                    spec: admitted.spec,
                    revision: admitted.template.revision(key, &admitted.name, digest),
                    rules: admitted.template.rules,
                    queue_depth: admitted.template.queue_depth,
                }
            }
        };
        stored.labels = admitted.labels;
        stored.annotations = admitted.annotations;
        let unchanged = before.as_ref().is_some_and(|entry| {
            entry.stored.spec == stored.spec
                && entry.stored.labels == stored.labels
                && entry.stored.annotations == stored.annotations
        });
        if let (true, Some(entry)) = (unchanged, before) {
            return Ok((entry, false));
        }
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || {
            store.put(&mut stored)?;
            Ok::<_, StoreError>(stored)
        });
        let stored = written.await.map_err(|_| ChangeError::ShutDown)??;
        tracing::info!(service = %admitted.name, revision = %stored.revision.key, "service set");
        self.node.register(Arc::new(stored.revision.clone()));
        let (entry, replaced) = self.catalog.put(stored);
        let is_new = replaced.is_some() || entry.stored.generation == 1;
        if let Some(replaced) = replaced {
            self.retire(&replaced);
        }
        self.begin(&entry.route);
        Ok((entry, is_new))
    }

    /// Removes a service; its instances finish what they hold.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove(&self, namespace: &str, name: &str) -> Result<Entry, ChangeError> {
        let _changing = self.changing.lock().await;
        if self.catalog.get(namespace, name).is_none() {
            return Err(ChangeError::NotFound(name.to_owned()));
        }
        let store = Arc::clone(&self.store);
        let key = (namespace.to_owned(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || store.remove(&key.0, &key.1));
        removed.await.map_err(|_| ChangeError::ShutDown)??;
        let Some(entry) = self.catalog.remove(namespace, name) else {
            return Err(ChangeError::NotFound(name.to_owned()));
        };
        tracing::info!(service = name, namespace, "service removed");
        self.retire(&entry.route);
        Ok(entry)
    }

    /// Makes a revision known and starts what it wants from the beginning.
    fn begin(&self, route: &Arc<Route>) {
        self.node.register(Arc::clone(&route.revision));
        let first = route.rules.initial.max(route.rules.min);
        if first > 0 {
            self.node.resize(&route.revision.key, first);
            route.throttle.watch();
        }
    }

    /// Lets the instances of a revision go once they are idle.
    fn retire(&self, route: &Arc<Route>) {
        let (node, route) = (self.node.clone(), Arc::clone(route));
        tokio::spawn(async move {
            node.forget(&route.revision.key).await;
            route.upstreams.retain(|_| false);
        });
    }

    fn check(&self, admitted: &Admitted, mode: Mode) -> Result<Option<Entry>, ChangeError> {
        let name = &admitted.name;
        let entry = self.catalog.get(&admitted.namespace, name);
        match (&entry, mode) {
            (Some(_), Mode::Create) => return Err(ChangeError::Exists(name.clone())),
            (None, Mode::Replace) => return Err(ChangeError::NotFound(name.clone())),
            _ => {}
        }
        if let (Some(entry), Some(given)) = (&entry, &admitted.resource_version) {
            let present = entry.stored.resource_version;
            if *given != present.to_string() {
                let (name, given) = (name.clone(), given.clone());
                return Err(ChangeError::Conflict { name, given, present });
            }
        }
        Ok(entry)
    }

    /// What only the node can say: whether it offers the runtime and could ever have the room.
    fn check_node(&self, admitted: &Admitted) -> Result<(), Invalid> {
        let template = &admitted.template;
        let mut problems = Vec::new();
        let mut add = |path: &str, reason| {
            let path = path.to_owned();
            problems.push(Problem { path, kind: ProblemKind::Invalid, reason });
        };
        if self.node.runtimes().get(template.runtime).is_none() {
            let offered: Vec<&str> =
                self.node.runtimes().names().map(RuntimeName::as_str).collect();
            let reason = format!(
                "runtime {} is not offered by this node ({}); `vhive doctor` says why",
                template.runtime,
                offered.join(", ")
            );
            add("spec.template.spec.runtimeClassName", reason);
        }
        let most = self.node.config().max_memory();
        if template.memory > most {
            let reason = format!("{} is more than the node's max_memory, {most}", template.memory);
            add("spec.template.spec.containers[0].resources.limits.memory", reason);
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Invalid { name: admitted.name.clone(), problems })
    }

    /// The manifest that the image's reference means now. `sim` runs no image, so any will do.
    async fn resolve(&self, admitted: &Admitted) -> Result<Digest, ChangeError> {
        let image = &admitted.template.image;
        if admitted.template.runtime == RuntimeName::Sim {
            return Ok(Digest::of(image.as_bytes()));
        }
        let resolved = self.node.resolve_image(image).await;
        resolved
            .map_err(|source| ChangeError::Image { image: image.clone(), source: Box::new(source) })
    }
}

/// A random identifier in the form of RFC 9562, version 4.
fn uid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers after boot");
    bytes[6] = (bytes[6] & 0x0F) | 0x40;
    bytes[8] = (bytes[8] & 0x3F) | 0x80;
    let hex = hex::encode(bytes);
    let part = |from: usize, to: usize| &hex[from..to];
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

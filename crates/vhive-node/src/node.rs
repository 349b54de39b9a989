//! The brain: everything that a node knows, behind one cheap handle.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use vhive_api::{Digest, Revision, RevisionKey, RuntimeName, SandboxId};
use vhive_image::{FindError, ImageStore, PullError, PullOptions};
use vhive_sandbox::cgroup::{PinError, check_cpus};
use vhive_sandbox::network::NetworkPool;
use vhive_sandbox::{Deadline, Guest, RunRoot, Runtime};

use crate::config::{Config, ConfigError};
use crate::drain::{self, ShutdownError};
use crate::guest;
use crate::limits::{Budget, Room};
use crate::logs::{self, InstanceLog, LogFollower};
use crate::metrics::Metrics;
use crate::pool::{AcquireError, Lease, Pool};
use crate::records::Records;
use crate::snapshots::{Disowned, ImportError, SnapshotId, SnapshotInfo, Snapshots, StoreError};
use crate::standby::Standbys;
use crate::status::{Instance, RevisionCounts, RevisionStanding, RevisionStatus};
use crate::sweep::{Ground, GroundError};
use crate::take::TakeError;

/// The ways to isolate functions that a node offers.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(BTreeMap<RuntimeName, Arc<dyn Runtime>>);

impl Runtimes {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a runtime under its own name, in place of an earlier one of that name.
    #[must_use]
    pub fn with(mut self, runtime: impl Runtime + 'static) -> Self {
        self.0.insert(runtime.name(), Arc::new(runtime));
        self
    }

    /// The runtime of this name.
    #[must_use]
    pub fn get(&self, name: RuntimeName) -> Option<&Arc<dyn Runtime>> {
        self.0.get(&name)
    }

    /// The names, in their usual order.
    pub fn names(&self) -> impl Iterator<Item = RuntimeName> {
        self.0.keys().copied()
    }
}

/// What a node works with.
#[derive(Debug)]
pub struct Tools {
    /// The ways to isolate functions.
    pub runtimes: Runtimes,
    /// The images that can be run.
    pub images: ImageStore,
    /// Networks for sandboxes; only `sim` does without.
    pub network: Option<NetworkPool>,
}

/// Why a node could not be opened. Nothing of it is left behind but directories.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is unfit.
    #[error("unfit configuration")]
    Config(#[from] ConfigError),
    /// The state directory is in use, or leftovers of an earlier node cannot be removed.
    #[error("cannot open a node")]
    Ground(#[from] GroundError),
    /// The ground is another state directory's than the configuration's.
    #[error("state directory {} is held, but {} is configured", held.display(), configured.display())]
    OtherGround {
        /// What is held.
        held: PathBuf,
        /// What is configured.
        configured: PathBuf,
    },
    /// Invocation records cannot be written.
    #[error("cannot write invocation records below {dir}")]
    Records {
        /// The state directory.
        dir: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Sandboxes cannot be kept to the configured processors.
    #[error("cannot keep sandboxes to CPUs {cpus}")]
    Cpus {
        /// What is configured.
        cpus: vhive_api::Cpus,
        /// Why not.
        #[source]
        source: PinError,
    },
    /// The snapshots of earlier nodes cannot be looked through.
    #[error("cannot open the snapshots")]
    Snapshots(#[from] StoreError),
}

/// Why no snapshot was made ahead of time.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No instance could be started for it.
    #[error("no instance to take a snapshot of")]
    Instance(#[from] AcquireError),
    /// None was taken.
    #[error(transparent)]
    Take(#[from] TakeError),
}

/// Why an image reference could not be turned into a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The reference is none, or the local store cannot be read.
    #[error("image not found")]
    Find(#[source] FindError),
    /// It is not in the local store and could not be pulled.
    #[error("image not in the store and not pulled")]
    Pull(#[source] PullError),
}

/// What every part of a node shares.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) tools: Tools,
    pub(crate) ground: Ground,
    pub(crate) budget: Arc<Budget>,
    /// One permit per start under way.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) records: Records,
    pub(crate) snapshots: Snapshots,
    /// Told before a snapshot of an instance is taken.
    quiesce: OnceLock<Quiesce>,
    /// Told of each change of a revision's instances.
    changed: OnceLock<Changed>,
    pub(crate) standbys: Standbys,
    pub(crate) handle: Handle,
    /// Set when the node is being shut down.
    pub(crate) closing: AtomicBool,
    pools: RwLock<HashMap<RevisionKey, Arc<Pool>>>,
    /// Pools of forgotten revisions that may still have instances.
    forgotten: Mutex<Vec<Arc<Pool>>>,
}

type Quiesce = Box<dyn Fn(&RevisionKey, &SandboxId) + Send + Sync>;
type Changed = Box<dyn Fn(&RevisionKey) + Send + Sync>;

impl Shared {
    /// Has the door close its connections to an instance that holds no request.
    pub(crate) fn quiesce(&self, revision: &RevisionKey, sandbox: &SandboxId) {
        if let Some(quiesce) = self.quiesce.get() {
            quiesce(revision, sandbox);
        }
    }

    /// Tells the door that instances of a revision have come, gone or failed.
    pub(crate) fn changed(&self, revision: &RevisionKey) {
        if let Some(changed) = self.changed.get() {
            changed(revision);
        }
    }

    /// Looks whether the revision's snapshot, if there is one, fits what it would be restored on now. Blocks,
    /// perhaps for seconds.
    pub(crate) fn look_whether_it_fits(&self, revision: &Revision) {
        if !self.snapshots.has(revision) {
            return;
        }
        let runtime = self.tools.runtimes.get(revision.runtime);
        let Some(restorer) = runtime.and_then(|runtime| runtime.restores()) else { return };
        match guest::of(revision, self.ground.state_dir()) {
            Ok(guest) => self.snapshots.look_whether_it_fits(revision, (restorer, &guest)),
            Err(error) => {
                tracing::debug!(revision = %revision.key, %error, "its guest is not there")
            }
        }
    }

    /// Every pool, those of forgotten revisions included.
    pub(crate) fn all_pools(&self) -> Vec<Arc<Pool>> {
        let registered = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let forgotten = self.forgotten();
        registered.values().chain(forgotten.iter()).cloned().collect()
    }

    fn forgotten(&self) -> MutexGuard<'_, Vec<Arc<Pool>>> {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the revision is registered.
    pub(crate) fn has_pool(&self, key: &RevisionKey) -> bool {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Every registered revision's pool.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// One node. Clones are handles of the same node.
///
/// Dropping the last handle stops everything without grace; [`Node::shutdown`] does it well.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
}

impl Node {
    /// Opens a node: takes the state directory, removes what an earlier node left behind, and is
    /// ready to register revisions. Call it within the async runtime that shall carry it.
    ///
    /// A node with a network pool needs its [`Ground`] before that pool; see [`Node::open_on`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        config: Config,
        runtimes: Runtimes,
        images: ImageStore,
        network: Option<NetworkPool>,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let take = {
            let (state_dir, run_dir) = (config.state_dir.clone(), config.run_dir.clone());
            move || Ground::take(&state_dir, &run_dir)
        };
        let ground = Handle::current().spawn_blocking(take).await;
        let ground = ground.expect("taking the ground does not panic and the runtime runs")?;
        Self::open_on(ground, config, Tools { runtimes, images, network })
    }

    /// Opens a node on ground that has been taken before, so that tools that need the node's run
    /// directory (the network pool) could be made in between. Call it within the async runtime
    /// that shall carry it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_on(ground: Ground, config: Config, tools: Tools) -> Result<Self, OpenError> {
        config.validate()?;
        if !config.state_dir.canonicalize().is_ok_and(|dir| dir == ground.state_dir()) {
            let held = ground.state_dir().to_owned();
            return Err(OpenError::OtherGround { held, configured: config.state_dir });
        }
        let ground = match config.cpus.clone() {
            None => ground,
            Some(cpus) => match check_cpus(&cpus) {
                Ok(()) => ground.on(cpus),
                Err(source) => return Err(OpenError::Cpus { cpus, source }),
            },
        };
        let records = Records::open(ground.state_dir(), &config.records);
        let dir = ground.state_dir().display().to_string();
        let records = records.map_err(|source| OpenError::Records { dir, source })?;
        let snapshots = Snapshots::open(ground.state_dir(), &config)?;
        let shared = Shared {
            snapshots,
            quiesce: OnceLock::new(),
            changed: OnceLock::new(),
            budget: Budget::new(config.max_instances, config.max_memory()),
            turns: Arc::new(Semaphore::new(config.start_threads())),
            metrics: Metrics::new(),
            config,
            tools,
            ground,
            records,
            standbys: Standbys::default(),
            handle: Handle::current(),
            closing: AtomicBool::new(false),
            pools: RwLock::default(),
            forgotten: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let weak = Arc::downgrade(&shared);
        shared.snapshots.on_gone(move || {
            let Some(shared) = weak.upgrade() else { return };
            let of_thread = Arc::clone(&shared);
            // VMMs that wait for it are of no use any more.
            drop(shared.handle.spawn_blocking(move || of_thread.standbys.give_up_useless()));
        });
        Ok(Self(Arc::new(Inner { shared })))
    }

    /// The node's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.shared.config
    }

    /// The runtimes that it offers.
    #[must_use]
    pub fn runtimes(&self) -> &Runtimes {
        &self.0.shared.tools.runtimes
    }

    /// The images that it can run.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.0.shared.tools.images
    }

    /// The socket at which functions that call something through this node's gateway arrive, each from
    /// its endpoint's address; none without a network pool.
    ///
    /// # Errors
    /// Too many open files.
    pub fn ingress(&self) -> io::Result<Option<std::net::TcpListener>> {
        let pool = self.0.shared.tools.network.as_ref();
        pool.map(NetworkPool::ingress).transpose()
    }

    /// The run directory, and the tag in every name that the node makes on the host.
    #[must_use]
    pub fn run_root(&self) -> &RunRoot {
        self.0.shared.ground.run_root()
    }

    /// Makes a revision known; starts nothing but what a snapshot needs that is to be taken of a
    /// ready instance. A revision known by the same key keeps its instances, and the new description
    /// holds from the next start on.
    pub fn register(&self, revision: Arc<Revision>) {
        let shared = &self.0.shared;
        let mut pools = shared.pools.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&revision.key) {
            let pool = Arc::clone(pool);
            drop(pools);
            pool.update(revision);
            pool.look_at_snapshot();
            return;
        }
        let key = revision.key.clone();
        let pool = Pool::new(Arc::clone(shared), revision);
        if shared.closing.load(Ordering::SeqCst) {
            pool.close();
        }
        pools.insert(key, Arc::clone(&pool));
        drop(pools);
        pool.look_at_snapshot();
    }

    /// Forgets a revision: refuses further requests, fails those that wait in vain, lets those in
    /// flight finish, stops every instance. That has begun when this returns: a revision that is
    /// registered by the same key then is another one. The future resolves when nothing of it exists
    /// any more; dropping it does not stop that.
    pub fn forget(&self, key: &RevisionKey) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.0.shared);
        let removed = {
            let mut pools = shared.pools.write().unwrap_or_else(PoisonError::into_inner);
            let removed = pools.remove(key);
            // Under the same lock, so that a shutdown misses it in neither place.
            shared.forgotten().extend(removed.clone());
            removed
        };
        let going = removed.map(|pool| {
            pool.close();
            let (of_thread, key) = (Arc::clone(&shared), key.clone());
            let give_up = move || of_thread.standbys.give_up(Some(&key));
            (pool, shared.handle.spawn_blocking(give_up))
        });
        async move {
            if let Some((pool, given_up)) = going {
                pool.emptied().await;
                if let Err(error) = given_up.await {
                    tracing::error!(%error, "VMMs spawned ahead not given up");
                }
            }
            shared.forgotten().retain(|pool| pool.alive() > 0);
        }
    }

    /// Removes what snapshots there are of a revision that has been deleted, and keeps none that is being taken of
    /// its instances; to be called behind [`Node::forget`], or for one that is not registered. From when this
    /// returns, a revision by the same key comes from none of them. The future resolves when their files have gone,
    /// or will go with their last user; dropping it does not stop that.
    pub fn disown(&self, key: &RevisionKey) -> impl Future<Output = ()> + Send + use<> {
        let shared = &self.0.shared;
        for pool in shared.all_pools().iter().filter(|pool| pool.key() == key) {
            pool.deleted().set();
        }
        self.discard(shared.snapshots.disown(key, true))
    }

    /// Removes what a revision by this key that there was before has left: to be called before a new one is
    /// registered. What is marked as kept stays for it. Like [`Node::disown`] otherwise.
    pub fn disown_earlier(&self, key: &RevisionKey) -> impl Future<Output = ()> + Send + use<> {
        self.discard(self.0.shared.snapshots.disown(key, false))
    }

    fn discard(&self, gone: Disowned) -> impl Future<Output = ()> + Send + use<> {
        let store = self.snapshots().clone();
        let discard = (!gone.is_empty())
            .then(|| self.0.shared.handle.spawn_blocking(move || store.discard_all(gone)));
        async move {
            if let Some(discard) = discard
                && let Err(error) = discard.await
            {
                tracing::error!(%error, "snapshots not removed; the next node lists them");
            }
        }
    }

    /// Marks the snapshots of a revision as there for whoever makes it again, to be called before it is deleted.
    /// One that is still being taken is not marked.
    ///
    /// # Errors
    /// The disk does not take the mark of one; others may be marked.
    pub async fn keep_snapshots(&self, key: &RevisionKey) -> io::Result<()> {
        let (store, key) = (self.snapshots().clone(), key.clone());
        self.0.shared.handle.spawn_blocking(move || store.keep(&key)).await?
    }

    /// Registers who knows which revisions there are, registered or not: snapshots of others are listed as
    /// orphans, and [`Snapshots::collect`] removes them. Only the first registration counts.
    pub fn on_owner(&self, is_known: impl Fn(&RevisionKey) -> bool + Send + Sync + 'static) {
        self.snapshots().on_owner(is_known);
    }

    /// Lends a slot of an instance of the revision, starting one if none is there or under way
    /// for this request. Slots are lent in the order of asking. Dropping the future gives up the
    /// place in the queue; a start that it caused goes on.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(&self, key: &RevisionKey) -> Result<Lease, AcquireError> {
        let pool = self.pool(key).ok_or_else(|| AcquireError::Unknown(key.clone()))?;
        pool.acquire().await
    }

    /// There should be `want` instances, within the revision's and the node's bounds. What is
    /// missing is started; what idles beyond is stopped; what is busy beyond is stopped once it is
    /// idle. Unknown revisions are ignored.
    pub fn resize(&self, key: &RevisionKey, want: u32) {
        if let Some(pool) = self.pool(key) {
            pool.resize(want);
        }
    }

    /// Stops a revision's idle instances now, so that its next request is a cold start; none comes
    /// back before that, whatever [`Node::resize`] says. Resolves when they are gone and what was to
    /// be done behind earlier replies (snapshots, recordings) has been done. Says how many it was;
    /// none if the revision is not known.
    pub async fn evict(&self, key: &RevisionKey) -> Option<u32> {
        Some(self.pool(key)?.evict().await)
    }

    /// The snapshots of this node.
    #[must_use]
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.shared.snapshots
    }

    /// Takes a snapshot of a revision ahead of time: boots an instance, takes it as soon as the
    /// function is ready, before any request, and stops the instance again unless a request wants
    /// it. If there is a snapshot that fits, that one is returned and the boolean is false.
    /// Whatever the revision's policy says; dropping the future does not stop it.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create_snapshot(
        &self,
        key: &RevisionKey,
    ) -> Result<(SnapshotInfo, bool), CreateError> {
        let pool = self.pool(key).ok_or_else(|| AcquireError::Unknown(key.clone()))?;
        let revision = pool.view().revision;
        let (shared, of_thread) = (Arc::clone(&self.0.shared), Arc::clone(&revision));
        let can = shared.handle.clone().spawn_blocking(move || {
            let runtime = shared.tools.runtimes.get(of_thread.runtime);
            shared.look_whether_it_fits(&of_thread);
            runtime.is_none_or(|runtime| runtime.restores().is_some())
        });
        if !can.await.unwrap_or(false) {
            return Err(TakeError::Unsupported(revision.runtime).into());
        }
        // One that nobody has read yet may be damaged. If reading takes long, it is told that it is unread.
        if let Some(read) = self.snapshots().reading(&revision) {
            let most = self.0.shared.config.snapshots.restore_deadline.0;
            let _in_time = tokio::time::timeout(most, read).await;
        }
        let known = self.snapshots().get(&SnapshotId::of(&revision));
        if let Some(info) = known.filter(|info| info.stale.is_none()) {
            return Ok((info, false));
        }
        let taken = pool.create_snapshot().await??;
        Ok((taken, true))
    }

    /// Takes in an archive as [`Snapshots::import`] does, and looks whether it fits what this node has. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import_snapshot(&self, from: impl io::Read) -> Result<SnapshotInfo, ImportError> {
        let shared = &self.0.shared;
        let info = self.snapshots().import(from)?;
        let id = info.id();
        let of = shared.pools().into_iter().map(|pool| pool.revision());
        if let Some(revision) = of.into_iter().find(|revision| SnapshotId::of(revision) == id) {
            shared.look_whether_it_fits(&revision);
        } else if let Some(runtime) = self.runtimes().get(id.runtime)
            && let Some(restorer) = runtime.restores()
        {
            let bare = guest::bare(shared.ground.state_dir());
            let guests: Vec<Guest> = [Guest::Linux].into_iter().chain(bare.ok()).collect();
            self.snapshots().look_whether_it_may_fit(&id, restorer, &guests);
        }
        Ok(self.snapshots().get(&id).unwrap_or(info))
    }

    /// Registers the door's way of closing its idle connections to an instance; called on a blocking
    /// thread before a snapshot of the instance is taken, so that the snapshot holds none. Only the
    /// first registration counts.
    pub fn on_quiesce(&self, quiesce: impl Fn(&RevisionKey, &SandboxId) + Send + Sync + 'static) {
        if self.0.shared.quiesce.set(Box::new(quiesce)).is_err() {
            tracing::error!("a second door wants to be told of snapshots; it is not");
        }
    }

    /// Registers who wants to be told that a revision's instances have come, gone or failed to
    /// start; called on whichever thread that happened, so it must be quick and must not call the
    /// node. Only the first registration counts.
    pub fn on_change(&self, changed: impl Fn(&RevisionKey) + Send + Sync + 'static) {
        if self.0.shared.changed.set(Box::new(changed)).is_err() {
            tracing::error!("a second door wants to be told of changes; it is not");
        }
    }

    /// A revision's figures with its last start and last failure; cheap.
    #[must_use]
    pub fn standing(&self, key: &RevisionKey) -> Option<RevisionStanding> {
        self.pool(key).map(|pool| pool.standing())
    }

    /// A revision with its instances, oldest first; cheap: without what only `/proc` knows.
    #[must_use]
    pub fn instances(&self, key: &RevisionKey) -> Option<(Arc<Revision>, Vec<Instance>)> {
        let view = self.pool(key)?.view();
        let instances = view.instances.into_iter().map(|one| Instance {
            id: one.id,
            state: one.state,
            leases: one.leases,
            since: one.since,
            endpoint: one.endpoint,
        });
        Some((view.revision, instances.collect()))
    }

    /// A revision's instances, queue, last start and last failure. Reads `/proc` per instance.
    #[must_use]
    pub fn status(&self, key: &RevisionKey) -> Option<RevisionStatus> {
        let status = self.pool(key).map(|pool| RevisionStatus::of(pool.view(), self.run_root()))?;
        let not_taken = self.snapshots().not_taken(&status.revision);
        Some(RevisionStatus { not_taken, ..status })
    }

    /// A revision's figures alone.
    #[must_use]
    pub fn counts(&self, key: &RevisionKey) -> Option<RevisionCounts> {
        Some(self.pool(key)?.counts().into())
    }

    /// How many instances there are, how much memory they reserve, and the most of both.
    #[must_use]
    pub fn room(&self) -> Room {
        self.0.shared.budget.room()
    }

    /// Every registered revision, by key.
    #[must_use]
    pub fn revisions(&self) -> Vec<RevisionKey> {
        let pools = self.0.shared.pools.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<RevisionKey> = pools.keys().cloned().collect();
        keys.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        keys
    }

    /// The kept output of a revision's instances and of the one that ended last, oldest first.
    #[must_use]
    pub fn logs(&self, key: &RevisionKey) -> Option<Vec<InstanceLog>> {
        self.pool(key).map(|pool| logs::snapshot(&pool))
    }

    /// The output of a revision's instances as it comes; with `replay`, what is kept first.
    #[must_use]
    pub fn follow_logs(&self, key: &RevisionKey, replay: bool) -> Option<LogFollower> {
        self.pool(key).map(|pool| LogFollower::new(pool, replay))
    }

    /// The manifest that an image reference means: from the local store, or else pulled.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_image(&self, reference: &str) -> Result<Digest, ResolveError> {
        let images = self.0.shared.tools.images.clone();
        let find = {
            let (images, reference) = (images.clone(), reference.to_owned());
            move || images.find(&reference)
        };
        let found = self.0.shared.handle.spawn_blocking(find).await;
        match found.expect("finding does not panic and the runtime runs") {
            Ok(image) => Ok(image.digest),
            Err(FindError::Unknown(_)) => {
                let pulled = images.pull(reference, &PullOptions::default()).await;
                pulled.map(|image| image.digest).map_err(ResolveError::Pull)
            }
            Err(error) => Err(ResolveError::Find(error)),
        }
    }

    /// Where invocation records go.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.0.shared.records
    }

    /// Adds the node's metrics to a registry.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.0.shared.metrics.register(&self.0.shared, registry);
    }

    /// The node's metrics in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.register_metrics(&mut registry);
        let mut text = String::new();
        let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
        encoded.expect("writing to a string does not fail");
        text
    }

    /// Shuts down: starts nothing more, lets requests in flight finish, stops every instance by
    /// its stop signal, writes out the records, gives up the state directory. Whatever is left at the deadline is stopped
    /// without regard to what it holds.
    ///
    /// # Errors
    /// [`ShutdownError`] if sandboxes still exist at the deadline; the next node's sweep removes
    /// what the end of this process leaves.
    pub async fn shutdown(&self, deadline: Deadline) -> Result<(), ShutdownError> {
        drain::shutdown(&self.0.shared, deadline).await
    }

    fn pool(&self, key: &RevisionKey) -> Option<Arc<Pool>> {
        self.0.shared.pools.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pools = self.shared.all_pools();
        self.shared.pools.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.forgotten().clear();
        for pool in pools {
            pool.abandon();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("state_dir", &self.config().state_dir).finish_non_exhaustive()
    }
}

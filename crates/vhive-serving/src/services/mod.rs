//! What happens when a service is made, changed or removed, when its instances come and go, and
//! when the node starts again. One change at a time; who reads never waits for one.

mod age;
mod change;
mod data;
mod events;
mod lead;
mod marks;
mod namespace;
mod object;
mod pods;
mod settle;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::sync::Mutex;
use vhive_api::{Digest, RuntimeName};
use vhive_node::{Node, ResolveError};

pub(crate) use self::change::{Mode, Removal, Seen, Wish};
pub(crate) use self::settle::Pending;
use crate::admission::{Admitted, Head, Invalid, Problem, ProblemKind, admit_template, unchanged};
use crate::catalog::{Catalog, Entry, Route, Turnover};
use crate::changes::{Change, Changes, What};
use crate::config::Config;
use crate::data::DataSet;
use crate::eventing::INGRESS;
use crate::kind::Kind;
use crate::objects;
use crate::standing::Standing;
use crate::store::{Store, StoreError, StoredService};
use crate::traffic::Target;

/// Versions that may be given out without a write of the store.
const RESERVED: u64 = 1_000_000;

/// Why a change was refused; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The document of a service or configuration is not accepted.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// Likewise one of another kind.
    #[error(
        "{} {name:?} is invalid: {}", kind.as_str(),
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Unfit {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is wrong with it.
        problems: Vec<Problem>,
    },
    /// There is such an object already.
    #[error("{} {name:?} already exists", kind.qualified())]
    Exists {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The name is taken by an object that is made in another way.
    #[error(
        "{} {name:?} cannot be made: there is a {} of that name, {}", kind.qualified(),
        holder.as_str(),
        if *holder == Kind::Service { "which makes its own" } else { "which no Service makes" }
    )]
    Taken {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What has the name.
        holder: Kind,
    },
    /// It is made by a service.
    #[error("{} {name:?} is made by the Service of that name; change that instead", kind.qualified())]
    Owned {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// There is no such object.
    #[error("{} {name:?} not found", kind.qualified())]
    NotFound {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The client has seen an older version than the present one.
    #[error(
        "{} {name:?} has changed: {field} is {present}, not {given}; read it again and repeat \
         the change", kind.plural()
    )]
    Conflict {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is compared.
        field: &'static str,
        /// What the client gave.
        given: String,
        /// What it is.
        present: String,
    },
    /// It is always there.
    #[error("{} {name:?} is always there and cannot be deleted", kind.qualified())]
    Kept {
        /// Of which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The revision is in use.
    #[error("revision {0:?} cannot be deleted: {1}")]
    InUse(String, &'static str),
    /// The image cannot be found or pulled.
    #[error("image {image:?}")]
    Image {
        /// The reference.
        image: String,
        /// Why not.
        #[source]
        source: Box<ResolveError>,
    },
    /// What was to outlive its deletion cannot be marked so; nothing is deleted.
    #[error("not deleted: the snapshots of revision {revision:?} cannot be marked as kept")]
    Unmarked {
        /// The revision.
        revision: String,
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// The change could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task that should have made it durable is gone.
    #[error("the node is shutting down")]
    ShutDown,
}

/// The services with everything that a change of one concerns.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) node: Node,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) config: Config,
    pub(crate) changes: Arc<Changes>,
    /// Config maps and secrets.
    pub(crate) data: DataSet,
    store: Arc<Store>,
    /// No version above it is given out before the store knows.
    ceiling: AtomicU64,
    pending: Arc<Pending>,
    pods: pods::Pods,
    events: events::Events,
    aging: age::Aging,
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
            let ((all, version), data) = (store.all()?, store.all_data()?);
            let objects = object::stored(&store)?;
            store.reserve(version + RESERVED)?;
            Ok((store, (all, data, objects), version))
        });
        let gone = || StoreError::Io { path: path.to_owned(), reason: "interrupted".to_owned() };
        let (store, (all, data, objects), version) = opened.await.map_err(|_| gone())??;
        let pending: Arc<Pending> = Arc::default();
        let told = Arc::clone(&pending);
        node.on_change(move |revision| told.add(revision));
        let known = Arc::clone(&catalog);
        node.on_owner(move |revision| known.of_revision(revision).is_some());
        let services = Self {
            node,
            catalog,
            config,
            changes: Arc::new(Changes::new(version)),
            data: DataSet::of(data),
            store: Arc::new(store),
            ceiling: AtomicU64::new(version + RESERVED),
            pending,
            pods: pods::Pods::default(),
            events: events::Events::default(),
            aging: age::Aging::default(),
            changing: Mutex::default(),
        };
        let claims = lead::claims(&objects);
        for mut stored in all {
            lead::mark(&mut stored, &claims);
            services.note_ages(&stored);
            let version = stored.resource_version;
            let standings = stored.revisions.iter().map(|one| Standing::at_first(one, version));
            let standings: Arc<[Standing]> = standings.collect();
            let changed = stored.latest().created;
            let turnover = services.catalog.put(Arc::new(stored), standings, version, changed).1;
            services.turn_over(turnover);
        }
        services.show_objects(objects);
        services.provide_all().await;
        // What has got ready and was not followed before the node ended.
        services.lead_all(jiff::Timestamp::now()).await;
        Ok(services)
    }

    /// Makes new revisions known, with the instances that they want from the beginning, and lets
    /// those of the retired ones go once they are idle.
    fn turn_over(&self, turnover: Turnover) {
        for route in turnover.begun {
            self.node.register(self.complete(&route));
            if route.inputs.is_some() {
                // What is missing of them is seen by a look.
                self.pending.add(&route.revision.key);
            }
            let first = route.rules.initial.max(route.rules.min);
            if first > 0 {
                self.node.resize(&route.revision.key, first);
                route.throttle.watch();
            }
        }
        for route in turnover.retired {
            self.retire(route);
        }
    }

    fn retire(&self, route: Arc<Route>) {
        // Begun at once: the next change may make a revision of the same name.
        let gone = self.node.forget(&route.revision.key);
        tokio::spawn(async move {
            gone.await;
            route.upstreams.retain(|_| false);
        });
    }

    /// A version that no other change has, durably no lower after a restart.
    fn next_version(&self) -> u64 {
        let version = self.changes.next_version();
        if version >= self.ceiling.load(Ordering::Acquire) {
            // Once in a million changes that nobody made by hand.
            match self.store.reserve(version + RESERVED) {
                Ok(()) => self.ceiling.store(version + RESERVED, Ordering::Release),
                Err(error) => tracing::error!(%error, "versions may repeat after a restart"),
            }
        }
        version
    }

    /// Makes a service durable.
    async fn write(&self, stored: StoredService) -> Result<StoredService, ChangeError> {
        let store = Arc::clone(&self.store);
        let ceiling = self.changes.version() + RESERVED;
        let written = tokio::task::spawn_blocking(move || {
            store.put(&stored, ceiling)?;
            Ok::<_, StoreError>(stored)
        });
        let stored = written.await.map_err(|_| ChangeError::ShutDown)??;
        self.ceiling.store(ceiling, Ordering::Release);
        Ok(stored)
    }

    /// What watchers are told of a service, its configuration and its route.
    fn tell_service(&self, entry: &Entry, what: What) -> Vec<Change> {
        let kinds = [Kind::Service, Kind::Configuration, Kind::Route];
        let each = kinds.into_iter().filter_map(|kind| {
            let object = objects::of_service(kind, &self.catalog, entry)?;
            Some(Change::new(entry.version, kind, what, &object))
        });
        each.collect()
    }

    fn check(
        &self,
        admitted: &Admitted,
        mode: Mode,
        uid: Option<&str>,
    ) -> Result<Option<Entry>, ChangeError> {
        let kind = if admitted.standalone { Kind::Configuration } else { Kind::Service };
        let Head { namespace, name, resource_version, .. } = &admitted.head;
        let entry = self.of_kind(kind, namespace, name);
        if entry.is_none() && mode == Mode::Create {
            self.expect_vacant(kind, namespace, name)?;
        }
        match (&entry, mode) {
            (Some(_), Mode::Create) => {
                return Err(ChangeError::Exists { kind, name: name.clone() });
            }
            (None, Mode::Replace) => {
                return Err(ChangeError::NotFound { kind, name: name.clone() });
            }
            _ => {}
        }
        if let Some(entry) = &entry {
            let seen = Seen::of(resource_version.as_deref(), uid);
            seen.expect((kind, name), &entry.stored.uid, entry.version)?;
        }
        Ok(entry)
    }

    /// The service of a name, or the configuration that no service makes.
    fn of_kind(&self, kind: Kind, namespace: &str, name: &str) -> Option<Entry> {
        self.catalog.get(namespace, name).filter(|entry| entry.stored.kind() == kind)
    }

    /// Whether a client may change an object: not if a service makes it.
    ///
    /// # Errors
    /// [`ChangeError::Owned`].
    pub(crate) fn expect_free(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), ChangeError> {
        let made = matches!(kind, Kind::Configuration | Kind::Route)
            && self.of_kind(Kind::Service, namespace, name).is_some();
        if made { Err(ChangeError::Owned { kind, name: name.to_owned() }) } else { Ok(()) }
    }

    /// Whether a name is free for a service, a configuration or a route: a service makes one of
    /// each.
    fn expect_vacant(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), ChangeError> {
        let holders = [Kind::Service, Kind::Configuration, Kind::Route];
        let holder = holders.into_iter().find(|holder| {
            let there = match holder {
                Kind::Route => self.catalog.objects.get(Kind::Route, namespace, name).is_some(),
                holder => self.of_kind(*holder, namespace, name).is_some(),
            };
            there && *holder != kind && (kind == Kind::Service || *holder == Kind::Service)
        });
        match holder {
            Some(holder) => Err(ChangeError::Taken { kind, name: name.to_owned(), holder }),
            None => Ok(()),
        }
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
        Err(Invalid { kind: admitted.kind(), name: admitted.head.name.clone(), problems })
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

    fn admit(&self, kind: Kind, document: &Value, mode: Mode) -> Result<Admitted, ChangeError> {
        let before = key_in(document).filter(|_| mode == Mode::Replace);
        let before = before.and_then(|(namespace, name)| self.of_kind(kind, namespace, name));
        let passed = before.map(|entry| unchanged(document, &entry.stored)).unwrap_or_default();
        let admitted = admit_template(kind, document, &self.config, &passed)?;
        if let Some(problem) = at_ingress(&admitted.head, &admitted.traffic) {
            let (name, problems) = (admitted.head.name, vec![problem]);
            return Err(Invalid { kind, name, problems }.into());
        }
        self.check_node(&admitted)?;
        Ok(admitted)
    }
}

/// Namespace and name in a document that may be any.
fn key_in(document: &Value) -> Option<(&str, &str)> {
    let metadata = document.get("metadata")?;
    let namespace = metadata.get("namespace").filter(|namespace| !namespace.is_null());
    let namespace = namespace.map_or(Some("default"), Value::as_str)?;
    Some((namespace, metadata.get("name")?.as_str()?))
}

/// What is wrong with hosts that would be where brokers answer.
fn at_ingress(head: &Head, traffic: &[Target]) -> Option<Problem> {
    let host = format!("{}.{}", head.name, head.namespace);
    let (path, reason) = if host == INGRESS {
        let reason = "is where brokers answer; choose another name or namespace".to_owned();
        ("metadata.name", reason)
    } else {
        let mut tags = traffic.iter().filter_map(|target| target.tag.as_deref());
        let tag = tags.find(|tag| format!("{tag}-{host}") == INGRESS)?;
        ("spec.traffic", format!("with the tag {tag:?} it would be where brokers answer"))
    };
    Some(Problem { path: path.to_owned(), kind: ProblemKind::Invalid, reason })
}

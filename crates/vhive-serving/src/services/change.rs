//! Changes that a client makes.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use vhive_api::Digest;

use super::{ChangeError, Services};
use crate::admission::{Admitted, Invalid, Problem, ProblemKind, is_kept};
use crate::catalog::Entry;
use crate::changes::{Change, What};
use crate::config::RetentionConfig;
use crate::document::Document;
use crate::kind::Kind;
use crate::objects;
use crate::retention::{Candidate, expired};
use crate::standing::Standing;
use crate::store::{Basis, StoredService, first, revision};
use crate::traffic::{Held, Target};

/// What a client wants with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// There must be none yet.
    Create,
    /// There must be one.
    Replace,
}

/// How a document is to be put.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) mode: Mode,
    /// Says what would come of it; nothing is changed.
    pub(crate) dry_run: bool,
    /// `metadata.managedFields` from now on.
    pub(crate) managed: Document,
}

impl Services {
    /// Checks a document and makes or replaces its service, or its configuration. The boolean says
    /// whether there was none before.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn put(
        self: &Arc<Self>,
        kind: Kind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Entry, bool), ChangeError> {
        let (services, document) = (Arc::clone(self), document.clone());
        whole(async move { services.put_whole(kind, &document, wish).await }).await
    }

    async fn put_whole(
        self: &Arc<Self>,
        kind: Kind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Entry, bool), ChangeError> {
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.filter(|uid| !uid.is_empty() && wish.mode != Mode::Create);
        let admitted = self.admit(kind, document, wish.mode)?;
        self.settle().await;
        let before = self.check(&admitted, wish.mode, uid)?;
        // Looking an image up may take long: not under the lock.
        let digest = match before.is_some_and(|entry| has_template(&entry, &admitted)) {
            true => None,
            false => Some(self.resolve(&admitted).await?),
        };

        let _changing = self.changing.lock().await;
        let before = self.check(&admitted, wish.mode, uid)?;
        let digest = match (&before, digest) {
            // Removed and made again meanwhile.
            (before, None) if !before.as_ref().is_some_and(|e| has_template(e, &admitted)) => {
                Some(self.resolve(&admitted).await?)
            }
            (_, digest) => digest,
        };
        let now = Timestamp::now();
        let name = admitted.head.name.clone();
        let inputs = admitted.template.inputs.as_ref();
        let complete = self.lacks(inputs, &admitted.head.namespace).is_none();
        let mut stored = match &before {
            None => {
                let digest = digest.unwrap_or_else(|| Digest::of(b""));
                self.begin(&admitted, Basis { digest, complete }, now)?
            }
            Some(entry) => {
                let basis = digest.map(|digest| Basis { digest, complete });
                prepare(&entry.stored, &admitted, basis, now)?
            }
        };
        let key = &stored.latest().revision.key;
        if let Some(other) = self.catalog.other_with(key, &stored.name) {
            let word = |kind: Kind| kind.as_str().to_lowercase();
            let reason = format!(
                "revision {:?} belongs to {} {:?}; give the {} or its revision another name",
                key.name,
                word(other.stored.kind()),
                other.stored.name,
                word(kind)
            );
            return Err(invalid(&admitted, "spec.template.metadata.name", reason));
        }
        stored.managed = wish.managed;
        if let Some(entry) = &before
            && *entry.stored == stored
        {
            return Ok((entry.clone(), false));
        }
        retain(&mut stored, now, &self.config.retention);
        if wish.dry_run {
            return Ok((preview(stored, before.as_ref(), now), before.is_none()));
        }
        self.provide(&stored.namespace).await?;
        let version = self.next_version();
        stored.resource_version = version;
        self.disown_earlier(&stored, before.as_ref()).await;
        let stored = self.write(stored).await?;
        tracing::info!(
            kind = kind.as_str(), %name, revision = stored.latest().name(), "service set"
        );
        let entry = self.install(stored, before.as_ref(), now);
        self.lead_after(&entry.stored, now).await;
        // With what that has changed.
        let entry = self.catalog.get(&entry.stored.namespace, &name).unwrap_or(entry);
        Ok((entry, before.is_none()))
    }

    /// Removes the snapshots that lie under the names of new revisions, which are somebody else's. Before these are
    /// known to the store: a node that finds them there after a kill takes the snapshots for theirs.
    async fn disown_earlier(&self, stored: &StoredService, before: Option<&Entry>) {
        for one in &stored.revisions {
            let known = before
                .is_some_and(|entry| entry.stored.revisions.iter().any(|old| old.uid == one.uid));
            if !known {
                self.node.disown_earlier(&one.revision.key).await;
            }
        }
    }

    fn begin(
        &self,
        admitted: &Admitted,
        basis: Basis,
        now: Timestamp,
    ) -> Result<StoredService, ChangeError> {
        let mut stored = first(admitted, basis, now);
        route(&mut stored, &admitted.traffic, now)?;
        Ok(stored)
    }

    /// Shows a service that has been written, and tells whoever watches.
    pub(super) fn install(
        &self,
        stored: StoredService,
        before: Option<&Entry>,
        now: Timestamp,
    ) -> Entry {
        let version = stored.resource_version;
        let mut told = Vec::new();
        let standings = stored.revisions.iter().map(|one| {
            let known =
                before.and_then(|entry| entry.revisions().find(|(old, _)| old.uid == one.uid));
            match known {
                Some((old, standing)) if old == one => standing.clone(),
                Some((_, standing)) => {
                    told.push((one.uid.clone(), What::Modified));
                    Standing { version: self.next_version(), ..standing.clone() }
                }
                None => {
                    told.push((one.uid.clone(), What::Added));
                    Standing::at_first(one, self.next_version())
                }
            }
        });
        let standings: Arc<[Standing]> = standings.collect();
        self.note_ages(&stored);
        let (entry, turnover) = self.catalog.put(Arc::new(stored), standings, version, now);
        self.turn_over(turnover);
        let what = if before.is_none() { What::Added } else { What::Modified };
        let mut changes = self.tell_service(&entry, what);
        for (revision, standing) in entry.revisions() {
            let Some((_, what)) = told.iter().find(|(uid, _)| *uid == revision.uid) else {
                continue;
            };
            let object = objects::revision(&entry, revision, standing);
            let (version, kind) = (standing.version, Kind::Revision);
            changes.push(Change::new(version, kind, *what, &object));
        }
        for (revision, standing) in before.iter().flat_map(|entry| entry.revisions()) {
            if entry.stored.revisions.iter().any(|kept| kept.uid == revision.uid) {
                continue;
            }
            drop(self.node.disown(&revision.revision.key));
            let (version, kind) = (self.next_version(), Kind::Revision);
            let standing = Standing { version, ..standing.clone() };
            let object = objects::revision(&entry, revision, &standing);
            changes.push(Change::new(version, kind, What::Deleted, &object));
        }
        changes.sort_by_key(|change| change.version);
        self.changes.publish(changes);
        if before.is_none() {
            self.review();
        }
        entry
    }

    /// Removes a service or a configuration with all that belongs to it; its instances finish what
    /// they hold.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove(
        self: &Arc<Self>,
        kind: Kind,
        (namespace, name): (&str, &str),
        removal: Removal,
    ) -> Result<(), ChangeError> {
        let (services, namespace, name) = (Arc::clone(self), namespace.to_owned(), name.to_owned());
        whole(async move { services.remove_whole(kind, (&namespace, &name), &removal).await }).await
    }

    async fn remove_whole(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        removal: &Removal,
    ) -> Result<(), ChangeError> {
        let not_found = || ChangeError::NotFound { kind, name: name.to_owned() };
        let _changing = self.changing.lock().await;
        let entry = self.of_kind(kind, namespace, name).ok_or_else(not_found)?;
        removal.seen.expect((kind, name), &entry.stored.uid, entry.version)?;
        if removal.dry_run {
            return Ok(());
        }
        if removal.keep_snapshots {
            self.keep_snapshots(&entry).await?;
        }
        let key = (namespace.to_owned(), name.to_owned());
        self.on_disk(move |store| store.remove(&key.0, &key.1)).await?;
        let entry = self.take_service(namespace, name).ok_or_else(not_found)?;
        if !removal.keep_snapshots {
            self.take_snapshots(&entry).await;
        }
        tracing::info!(kind = kind.as_str(), name, namespace, "service removed");
        self.review();
        self.lead_after(&entry.stored, Timestamp::now()).await;
        Ok(())
    }

    /// Has a service or configuration that the store no longer has serve no more, and tells whoever
    /// watches. The lock for changes is held.
    pub(super) fn take_service(&self, namespace: &str, name: &str) -> Option<Entry> {
        let mut entry = self.catalog.remove(namespace, name)?;
        for route in entry.routes.iter() {
            self.retire(Arc::clone(route));
        }
        entry.version = self.next_version();
        let mut changes = self.tell_service(&entry, What::Deleted);
        for (revision, standing) in entry.revisions() {
            let (version, kind) = (self.next_version(), Kind::Revision);
            let standing = Standing { version, ..standing.clone() };
            let object = objects::revision(&entry, revision, &standing);
            changes.push(Change::new(version, kind, What::Deleted, &object));
        }
        self.changes.publish(changes);
        Some(entry)
    }

    /// Marks the snapshots of a service that is about to be removed as there for whoever makes it again.
    ///
    /// # Errors
    /// [`ChangeError::Unmarked`].
    pub(super) async fn keep_snapshots(&self, entry: &Entry) -> Result<(), ChangeError> {
        for one in &entry.stored.revisions {
            self.node.keep_snapshots(&one.revision.key).await.map_err(|source| {
                ChangeError::Unmarked { revision: one.name().to_owned(), source }
            })?;
        }
        Ok(())
    }

    /// Removes the snapshots of a service that has been taken. The lock for changes is held until they are out
    /// of their places, so that whoever makes the same again finds none.
    pub(super) async fn take_snapshots(&self, entry: &Entry) {
        // All begun at once.
        let revisions = entry.stored.revisions.iter();
        let gone: Vec<_> = revisions.map(|one| self.node.disown(&one.revision.key)).collect();
        for gone in gone {
            gone.await;
        }
    }

    /// Removes a revision that requests cannot reach.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove_revision(
        self: &Arc<Self>,
        (namespace, name): (&str, &str),
        removal: Removal,
    ) -> Result<(), ChangeError> {
        let (services, namespace, name) = (Arc::clone(self), namespace.to_owned(), name.to_owned());
        whole(async move { services.remove_revision_whole((&namespace, &name), &removal).await })
            .await
    }

    async fn remove_revision_whole(
        &self,
        (namespace, name): (&str, &str),
        removal: &Removal,
    ) -> Result<(), ChangeError> {
        let _changing = self.changing.lock().await;
        let all = self.catalog.list(Some(namespace));
        let entry = all.into_iter().find(|entry| entry.stored.revision(name).is_some());
        let Some(entry) = entry else {
            let (kind, name) = (Kind::Revision, name.to_owned());
            return Err(ChangeError::NotFound { kind, name });
        };
        if let Some((one, standing)) = entry.revisions().find(|(one, _)| one.name() == name) {
            removal.seen.expect((Kind::Revision, name), &one.uid, standing.version)?;
        }
        if entry.stored.revision(name).is_some_and(|one| !one.routes.is_empty()) {
            return Err(ChangeError::InUse(name.to_owned(), "a route leads to it"));
        }
        if entry.stored.revision(name).is_some_and(|one| entry.stored.is_routed(one)) {
            return Err(ChangeError::InUse(name.to_owned(), "its service sends it requests"));
        }
        let mut wanted = entry.stored.targets().into_iter();
        if wanted.any(|target| target.revision.as_deref() == Some(name)) {
            return Err(ChangeError::InUse(name.to_owned(), "its service's traffic names it"));
        }
        if entry.stored.latest().name() == name {
            return Err(ChangeError::InUse(
                name.to_owned(),
                "it is its configuration's latest one",
            ));
        }
        if removal.dry_run {
            return Ok(());
        }
        let mut stored = StoredService::clone(&entry.stored);
        stored.revisions.retain(|revision| revision.name() != name);
        stored.resource_version = self.next_version();
        let stored = self.write(stored).await?;
        self.install(stored, Some(&entry), Timestamp::now());
        Ok(())
    }
}

/// Does a change to its end, even if nobody waits for it any more: a client that hangs up must not
/// leave the store and what is served different from each other.
pub(super) async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Result<T, ChangeError> {
    tokio::spawn(change).await.map_err(|_| ChangeError::ShutDown)?
}

/// How an object is to be removed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removal {
    pub(crate) seen: Seen,
    /// Says whether it could be; nothing is changed.
    pub(crate) dry_run: bool,
    /// Leaves the snapshots of services for whoever makes the same again.
    pub(crate) keep_snapshots: bool,
}

/// What a client has seen of an object that it wants changed or removed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) version: Option<String>,
    pub(crate) uid: Option<String>,
}

impl Seen {
    pub(super) fn of(version: Option<&str>, uid: Option<&str>) -> Self {
        Self { version: version.map(str::to_owned), uid: uid.map(str::to_owned) }
    }

    /// Whether it is the object that there is.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`].
    pub(super) fn expect(
        &self,
        (kind, name): (Kind, &str),
        uid: &str,
        version: u64,
    ) -> Result<(), ChangeError> {
        let version = version.to_string();
        let compared =
            [("uid", &self.uid, uid), ("resourceVersion", &self.version, version.as_str())];
        for (field, given, present) in compared {
            if let Some(given) = given.as_ref().filter(|given| *given != present) {
                let (name, given, present) = (name.to_owned(), given.clone(), present.to_owned());
                return Err(ChangeError::Conflict { kind, name, field, given, present });
            }
        }
        Ok(())
    }
}

fn has_template(entry: &Entry, admitted: &Admitted) -> bool {
    let wanted = admitted.spec.get("template").unwrap_or(&Value::Null);
    entry.stored.latest().template == Document::of(wanted)
}

/// What becomes of a service by a document. A basis is given if the template is another one.
fn prepare(
    before: &StoredService,
    admitted: &Admitted,
    basis: Option<Basis>,
    now: Timestamp,
) -> Result<StoredService, ChangeError> {
    let mut stored = before.clone();
    if let Some(basis) = basis {
        stored.configuration_generation += 1;
        let next = revision(admitted, stored.configuration_generation, basis, now);
        if before.revision(next.name()).is_some() {
            let reason = format!(
                "revision {:?} exists and is another one; a changed template needs a new name, or none",
                next.name()
            );
            return Err(invalid(admitted, "spec.template.metadata.name", reason));
        }
        stored.revisions.push(next);
    }
    stored.object.take(&admitted.head, &admitted.spec);
    route(&mut stored, &admitted.traffic, now)?;
    Ok(stored)
}

/// Lets traffic go where it shall, as far as it can already.
fn route(
    stored: &mut StoredService,
    targets: &[Target],
    now: Timestamp,
) -> Result<(), ChangeError> {
    match stored.assign() {
        Ok(routed) => stored.routed = routed,
        Err(Held::Missing(name)) => {
            let at = targets.iter().position(|target| target.revision.as_ref() == Some(&name));
            let path = format!("spec.traffic[{}].revisionName", at.unwrap_or(0));
            let reason = format!("service {:?} has no revision {name:?}", stored.name);
            let problems = vec![Problem { path, kind: ProblemKind::Invalid, reason }];
            let name = stored.name.clone();
            return Err(Invalid { kind: stored.kind(), name, problems }.into());
        }
        // Other configurations are named by routes alone.
        Err(
            Held::NotReady(_) | Held::NoneReady | Held::NoConfiguration(_) | Held::NotConfigured(_),
        ) => {}
    }
    mark_idle(stored, now);
    Ok(())
}

fn invalid(admitted: &Admitted, path: &str, reason: String) -> ChangeError {
    let problems = vec![Problem { path: path.to_owned(), kind: ProblemKind::Invalid, reason }];
    Invalid { kind: admitted.kind(), name: admitted.head.name.clone(), problems }.into()
}

/// Notes since when revisions are out of reach.
pub(super) fn mark_idle(stored: &mut StoredService, now: Timestamp) {
    let last = stored.revisions.len() - 1;
    let wanted = stored.targets();
    for at in 0..stored.revisions.len() {
        let one = &stored.revisions[at];
        let name = one.name();
        let reachable = at == last
            || stored.is_routed(one)
            || wanted.iter().any(|target| target.revision.as_deref() == Some(name));
        let revision = &mut stored.revisions[at];
        revision.idle_since = match (reachable, revision.idle_since) {
            (true, _) => None,
            (false, since) => since.or(Some(now)),
        };
    }
}

/// What decides which revisions go.
pub(super) fn candidates(stored: &StoredService) -> Vec<Candidate<'_>> {
    let candidates = stored.revisions.iter().map(|one| Candidate {
        name: one.name(),
        created: one.created,
        idle_since: one.idle_since.filter(|_| !is_kept(&one.template.value())),
    });
    candidates.collect()
}

/// Removes the revisions whose time is over.
pub(super) fn retain(stored: &mut StoredService, now: Timestamp, config: &RetentionConfig) {
    let gone = expired(&candidates(stored), now, config);
    let gone: Vec<String> = gone.into_iter().map(str::to_owned).collect();
    stored.revisions.retain(|one| !gone.iter().any(|name| name == one.name()));
}

/// What a service would be.
fn preview(stored: StoredService, before: Option<&Entry>, now: Timestamp) -> Entry {
    let version = before.map_or(0, |entry| entry.version);
    let standings = stored.revisions.iter().map(|one| Standing::at_first(one, version)).collect();
    let routes = before.map(|entry| Arc::clone(&entry.routes)).unwrap_or_default();
    Entry { stored: Arc::new(stored), standings, routes, version, changed: now }
}

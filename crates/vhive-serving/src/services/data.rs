//! Config maps and secrets: changes of them, and what they mean for revisions that name them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use vhive_api::Revision;

use super::change::whole;
use super::{ChangeError, Mode, RESERVED, Removal, Seen, Services, Wish};
use crate::admission::{AdmittedData, Problem, ProblemKind, admit_data, name_in};
use crate::catalog::Route;
use crate::changes::{Change, What};
use crate::data::{DataKey, StoredData};
use crate::inputs::{DataKind, Inputs, Lookup as _};
use crate::kind::Kind;
use crate::objects;
use crate::store::{StoreError, StoredRevision, uid};

impl Services {
    /// Checks a document and makes or replaces its config map or secret. The boolean says whether
    /// there was none before.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn put_data(
        self: &Arc<Self>,
        kind: DataKind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Arc<StoredData>, bool), ChangeError> {
        let unfit = |problems| {
            let name = name_in(document);
            ChangeError::Unfit { kind: kind.into(), name, problems }
        };
        let admitted = admit_data(document, kind).map_err(unfit)?;
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.filter(|uid| !uid.is_empty() && wish.mode != Mode::Create);
        let uid = uid.map(str::to_owned);
        let services = Arc::clone(self);
        whole(async move { services.put_data_whole(admitted, uid, wish).await }).await
    }

    async fn put_data_whole(
        self: &Arc<Self>,
        admitted: AdmittedData,
        uid: Option<String>,
        wish: Wish,
    ) -> Result<(Arc<StoredData>, bool), ChangeError> {
        let _changing = self.changing.lock().await;
        let key = DataKey::new(admitted.kind, &admitted.head.namespace, &admitted.head.name);
        let before = self.data.find(&key);
        let (kind, name) = (Kind::from(key.kind), key.name.clone());
        match (&before, wish.mode) {
            (Some(_), Mode::Create) => return Err(ChangeError::Exists { kind, name }),
            (None, Mode::Replace) => return Err(ChangeError::NotFound { kind, name }),
            _ => {}
        }
        if let Some(before) = &before {
            let seen = Seen { version: admitted.head.resource_version.clone(), uid };
            seen.expect((kind, &name), &before.uid, before.resource_version)?;
        }
        let mut next = become_next(before.as_deref(), admitted)?;
        next.managed = wish.managed;
        if let Some(before) = before.as_ref().filter(|before| ***before == next) {
            return Ok((Arc::clone(before), false));
        }
        let new = before.is_none();
        if wish.dry_run {
            return Ok((Arc::new(next), new));
        }
        self.provide(&next.namespace).await?;
        next.resource_version = self.next_version();
        let next = self.write_data(next).await?;
        tracing::info!(object = key.text(), "set");
        let next = Arc::new(next);
        self.data.put(Arc::clone(&next));
        let what = if new { What::Added } else { What::Modified };
        let object = objects::data(&next);
        self.changes.publish([Change::new(next.resource_version, kind, what, &object)]);
        self.turn_to(&key);
        Ok((next, new))
    }

    async fn write_data(&self, next: StoredData) -> Result<StoredData, ChangeError> {
        let store = Arc::clone(&self.store);
        let ceiling = self.changes.version() + RESERVED;
        let written = tokio::task::spawn_blocking(move || {
            store.put_data(&next, ceiling)?;
            Ok::<_, StoreError>(next)
        });
        let next = written.await.map_err(|_| ChangeError::ShutDown)??;
        self.ceiling.store(ceiling, std::sync::atomic::Ordering::Release);
        Ok(next)
    }

    /// Removes a config map or secret. Instances that have its values keep them.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove_data(
        self: &Arc<Self>,
        key: DataKey,
        removal: Removal,
    ) -> Result<(), ChangeError> {
        let services = Arc::clone(self);
        whole(async move { services.remove_data_whole(key, &removal).await }).await
    }

    async fn remove_data_whole(&self, key: DataKey, removal: &Removal) -> Result<(), ChangeError> {
        let kind = Kind::from(key.kind);
        let _changing = self.changing.lock().await;
        let name = key.name.clone();
        let found = self.data.find(&key).ok_or(ChangeError::NotFound { kind, name })?;
        removal.seen.expect((kind, &key.name), &found.uid, found.resource_version)?;
        if removal.dry_run {
            return Ok(());
        }
        let text = key.text();
        self.on_disk(move |store| store.remove_data(&key)).await?;
        tracing::info!(object = text, "removed");
        self.take_data(&found);
        Ok(())
    }

    /// Takes an object out that the store no longer has, and tells whoever watches. The lock for
    /// changes is held.
    pub(super) fn take_data(&self, found: &StoredData) {
        let (key, kind) = (found.key(), Kind::from(found.kind));
        self.data.remove(&key);
        let version = self.next_version();
        let last = StoredData { resource_version: version, ..found.clone() };
        self.changes.publish([Change::new(version, kind, What::Deleted, &objects::data(&last))]);
        self.turn_to(&key);
    }

    /// Has the revisions that name an object start their next instances with what it is now.
    fn turn_to(&self, key: &DataKey) {
        for route in self.catalog.routes() {
            let of_it = route.revision.key.namespace == key.namespace;
            let names = |inputs: &Arc<Inputs>| inputs.mentions(key.kind, &key.name);
            if of_it && route.inputs.as_ref().is_some_and(names) {
                self.node.register(self.complete(&route));
                self.pending.add(&route.revision.key);
            }
        }
    }

    /// A revision with the values of its inputs, or with what is missing of them.
    pub(super) fn complete(&self, route: &Route) -> Arc<Revision> {
        let Some(inputs) = &route.inputs else { return Arc::clone(&route.revision) };
        let mut revision = Revision::clone(&route.revision);
        match inputs.resolve(&revision.key.namespace, &self.data) {
            Ok(resolved) => {
                revision.env = resolved.env;
                revision.volumes = resolved.volumes;
            }
            Err(missing) => revision.missing = Some(missing.to_string()),
        }
        Arc::new(revision)
    }

    /// What a revision needs and nobody has given.
    pub(super) fn missing(&self, stored: &StoredRevision) -> Option<String> {
        self.lacks(stored.inputs.as_deref(), &stored.revision.key.namespace)
    }

    /// Likewise for one that is only about to be made.
    pub(super) fn lacks(&self, inputs: Option<&Inputs>, namespace: &str) -> Option<String> {
        inputs?.resolve(namespace, &self.data).err().map(|missing| missing.to_string())
    }
}

/// What becomes of an object by a document.
fn become_next(
    before: Option<&StoredData>,
    admitted: AdmittedData,
) -> Result<StoredData, ChangeError> {
    let mut next = match before {
        Some(before) => before.clone(),
        None => StoredData {
            uid: uid(),
            created: Timestamp::now(),
            ..StoredData::empty(admitted.kind, &admitted.head.namespace, &admitted.head.name)
        },
    };
    let AdmittedData { head, class, immutable, data, binary, .. } = admitted;
    (next.labels, next.annotations) = (head.labels, head.annotations);
    (next.class, next.immutable) = (class, immutable);
    (next.data, next.binary) = (data, binary);
    let Some(before) = before else { return Ok(next) };
    let closed = before.immutable == Some(true);
    let mut problems = Vec::new();
    let mut refuse = |path: &str, reason: &str| {
        let (path, reason) = (path.to_owned(), reason.to_owned());
        problems.push(Problem { path, kind: ProblemKind::Invalid, reason });
    };
    let why = "field is immutable when `immutable` is set";
    if next.class != before.class {
        refuse("type", "field is immutable");
    }
    if closed && next.immutable != Some(true) {
        refuse("immutable", why);
    }
    if closed && next.data != before.data {
        refuse("data", why);
    }
    if closed && next.binary != before.binary {
        refuse("binaryData", why);
    }
    if problems.is_empty() {
        return Ok(next);
    }
    Err(ChangeError::Unfit { kind: next.kind.into(), name: next.name, problems })
}

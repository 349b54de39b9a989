//! Changes of objects without revisions: brokers, triggers, routes that no service makes, and
//! namespaces.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::change::whole;
use super::{ChangeError, Mode, RESERVED, Removal, Seen, Services, Wish, at_ingress, key_in};
use crate::admission::{
    AdmittedObject, Head, Invalid, Problem, ProblemKind, admit_object, read_spec, unchanged,
};
use crate::changes::{Change, What};
use crate::document::Document;
use crate::kind::Kind;
use crate::objects;
use crate::registry::{Object, Spec, Unmet};
use crate::store::{Store, StoreError, StoredObject};

/// The kinds of eventing, brokers first: triggers need them.
const KINDS: [Kind; 2] = [Kind::Broker, Kind::Trigger];

/// Every object of these kinds in the store. Blocks for the disk.
///
/// # Errors
/// [`StoreError`].
pub(super) fn stored(store: &Store) -> Result<Vec<(Kind, StoredObject)>, StoreError> {
    let mut all = Vec::new();
    for kind in KINDS.into_iter().chain([Kind::Route, Kind::Namespace]) {
        all.extend(store.objects(kind)?.into_iter().map(|object| (kind, object)));
    }
    Ok(all)
}

impl Services {
    /// Shows what the store holds, when the node starts.
    pub(super) fn show_objects(&self, all: Vec<(Kind, StoredObject)>) {
        for (kind, stored) in all {
            let read =
                read_spec(kind, &stored.namespace, &stored.spec.value(), self.catalog.domain());
            let spec = read.map_err(|invalid| in_words(&invalid));
            if let Err(why) = &spec {
                tracing::error!(kind = kind.as_str(), name = stored.name, why, "not understood");
            }
            let object = Object {
                kind,
                version: stored.resource_version,
                changed: stored.created,
                stored: Arc::new(stored),
                spec,
                needs: Vec::new(),
                figures: Arc::default(),
            };
            self.catalog.objects.put(Arc::new(object));
        }
        for kind in KINDS {
            for object in self.catalog.objects.list(kind, None) {
                let needs = self.needs(&object.stored.namespace, &object.spec);
                self.catalog.objects.put(Arc::new(Object { needs, ..Object::clone(&object) }));
            }
        }
    }

    /// Checks a document and makes or replaces its object. The boolean says whether there was none
    /// before.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn put_object(
        self: &Arc<Self>,
        kind: Kind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Value, bool), ChangeError> {
        let (services, document) = (Arc::clone(self), document.clone());
        whole(async move { services.put_object_whole(kind, &document, wish).await }).await
    }

    async fn put_object_whole(
        &self,
        kind: Kind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Value, bool), ChangeError> {
        let before = key_in(document).filter(|_| wish.mode == Mode::Replace);
        let before =
            before.and_then(|(namespace, name)| self.catalog.objects.get(kind, namespace, name));
        let passed = before.map(|before| unchanged(document, &before.stored)).unwrap_or_default();
        let admitted = admit_object(kind, document, self.catalog.domain(), &passed)
            .map_err(|invalid| unfit(kind, &invalid.name, invalid.problems))?;
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.filter(|uid| !uid.is_empty() && wish.mode != Mode::Create);
        let _changing = self.changing.lock().await;
        let Head { namespace, name, resource_version, .. } = &admitted.head;
        let before = self.catalog.objects.get(kind, namespace, name);
        if let Spec::Route(targets) = &admitted.spec {
            if wish.mode == Mode::Create {
                self.expect_vacant(kind, namespace, name)?;
            }
            self.expect_free(kind, namespace, name)?;
            if let Some(problem) = at_ingress(&admitted.head, targets) {
                return Err(unfit(kind, name, vec![problem]));
            }
        }
        let name = || name.clone();
        match (&before, wish.mode) {
            (Some(_), Mode::Create) => return Err(ChangeError::Exists { kind, name: name() }),
            (None, Mode::Replace) => return Err(ChangeError::NotFound { kind, name: name() }),
            _ => {}
        }
        if let Some(before) = &before {
            let seen = Seen::of(resource_version.as_deref(), uid);
            seen.expect((kind, &name()), &before.stored.uid, before.version)?;
            same_broker(before, &admitted)?;
        }
        let now = Timestamp::now();
        let mut stored = prepare(before.as_deref(), &admitted, wish.managed, now);
        let (spec, new) = (Ok(admitted.spec), before.is_none());
        let needs = self.look(&mut stored, &spec);
        if let Some(before) = &before
            && *before.stored == stored
        {
            return Ok((objects::plain(&self.catalog, before), false));
        }
        let same = before.as_ref().is_some_and(|before| before.needs == needs);
        let changed = before.as_ref().filter(|_| same).map_or(now, |before| before.changed);
        let figures = before.as_ref().map(|before| Arc::clone(&before.figures));
        let mut object = Object {
            kind,
            stored: Arc::new(stored),
            spec,
            needs,
            version: before.as_ref().map_or(0, |before| before.version),
            changed,
            figures: figures.unwrap_or_default(),
        };
        if wish.dry_run {
            return Ok((objects::plain(&self.catalog, &object), new));
        }
        if kind.is_namespaced() {
            self.provide(&object.stored.namespace).await?;
        }
        object.version = self.next_version();
        Arc::make_mut(&mut object.stored).resource_version = object.version;
        let ceiling = self.changes.version() + RESERVED;
        let kept = Arc::clone(&object.stored);
        self.on_disk(move |store| store.put_object(kind, &kept, ceiling)).await?;
        self.ceiling.store(ceiling, std::sync::atomic::Ordering::Release);
        tracing::info!(kind = kind.as_str(), name = object.stored.name, "object set");
        if kind == Kind::Route {
            let before = before.as_ref().map(|before| before.stored.as_ref());
            self.show_route(before, Some(&object.stored), now);
            // What has changed by it is told before.
            object.version = self.next_version();
        }
        let object = Arc::new(object);
        self.catalog.objects.put(Arc::clone(&object));
        self.tell_object(&object, if new { What::Added } else { What::Modified });
        self.review();
        Ok((objects::plain(&self.catalog, &object), new))
    }

    /// Removes a broker, trigger or route; what waits for a trigger that is gone is not delivered.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove_object(
        self: &Arc<Self>,
        kind: Kind,
        (namespace, name): (&str, &str),
        removal: Removal,
    ) -> Result<(), ChangeError> {
        let (services, namespace, name) = (Arc::clone(self), namespace.to_owned(), name.to_owned());
        whole(
            async move { services.remove_object_whole(kind, (&namespace, &name), &removal).await },
        )
        .await
    }

    async fn remove_object_whole(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        removal: &Removal,
    ) -> Result<(), ChangeError> {
        let not_found = || ChangeError::NotFound { kind, name: name.to_owned() };
        let _changing = self.changing.lock().await;
        let object = self.catalog.objects.get(kind, namespace, name).ok_or_else(not_found)?;
        removal.seen.expect((kind, name), &object.stored.uid, object.version)?;
        if removal.dry_run {
            return Ok(());
        }
        let key = (namespace.to_owned(), name.to_owned());
        self.on_disk(move |store| store.remove_object(kind, &key.0, &key.1)).await?;
        self.take_object(&object);
        tracing::info!(kind = kind.as_str(), name, namespace, "object removed");
        self.review();
        Ok(())
    }

    /// Has an object that the store no longer has mean nothing any more, and tells whoever watches.
    /// The lock for changes is held.
    pub(super) fn take_object(&self, object: &Object) {
        let stored = &object.stored;
        self.catalog.objects.remove(object.kind, &stored.namespace, &stored.name);
        if object.kind == Kind::Route {
            self.show_route(Some(stored), None, Timestamp::now());
        }
        let gone = Object { version: self.next_version(), ..Object::clone(object) };
        self.tell_object(&gone, What::Deleted);
    }

    /// Looks again at what brokers and triggers need, when something has come or gone. The lock for
    /// changes is held.
    pub(super) fn review(&self) {
        for kind in KINDS {
            for object in self.catalog.objects.list(kind, None) {
                let needs = self.needs(&object.stored.namespace, &object.spec);
                if needs == object.needs {
                    continue;
                }
                let (version, changed) = (self.next_version(), Timestamp::now());
                let next = Arc::new(Object { needs, version, changed, ..Object::clone(&object) });
                self.catalog.objects.put(Arc::clone(&next));
                self.tell_object(&next, What::Modified);
            }
        }
    }

    pub(super) fn needs(
        &self,
        namespace: &str,
        spec: &Result<Spec, String>,
    ) -> Vec<(&'static str, Option<Unmet>)> {
        let has_service =
            |namespace: &str, name: &str| self.of_kind(Kind::Service, namespace, name).is_some();
        self.catalog.objects.needs(namespace, spec, has_service)
    }

    pub(super) fn tell_object(&self, object: &Object, what: What) {
        let shown = objects::plain(&self.catalog, object);
        self.changes.publish([Change::new(object.version, object.kind, what, &shown)]);
    }

    pub(super) async fn on_disk(
        &self,
        write: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), ChangeError> {
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || write(&store)).await;
        Ok(written.map_err(|_| ChangeError::ShutDown)??)
    }
}

/// What becomes of an object by a document.
fn prepare(
    before: Option<&Object>,
    admitted: &AdmittedObject,
    managed: Document,
    now: Timestamp,
) -> StoredObject {
    let (head, spec) = (&admitted.head, &admitted.document);
    let mut stored = match before {
        Some(before) => StoredObject::clone(&before.stored),
        None => StoredObject::new(head, spec, now),
    };
    stored.take(head, spec);
    // Shown whatever is kept, and sent back by clients that have read it.
    stored.labels.remove(objects::BROKER_LABEL);
    stored.labels.remove(objects::NAME_LABEL);
    stored.managed = managed;
    stored
}

/// A trigger stays with its broker, as in Knative.
fn same_broker(before: &Object, admitted: &AdmittedObject) -> Result<(), ChangeError> {
    let (Ok(Spec::Trigger(old)), Spec::Trigger(new)) = (&before.spec, &admitted.spec) else {
        return Ok(());
    };
    if old.broker == new.broker {
        return Ok(());
    }
    let reason = format!("cannot be changed: it is {:?}; make another trigger", old.broker);
    let path = "spec.broker".to_owned();
    let problems = vec![Problem { path, kind: ProblemKind::Invalid, reason }];
    Err(unfit(Kind::Trigger, &admitted.head.name, problems))
}

fn unfit(kind: Kind, name: &str, problems: Vec<Problem>) -> ChangeError {
    ChangeError::Unfit { kind, name: name.to_owned(), problems }
}

fn in_words(invalid: &Invalid) -> String {
    let all: Vec<String> = invalid.problems.iter().map(ToString::to_string).collect();
    all.join("; ")
}

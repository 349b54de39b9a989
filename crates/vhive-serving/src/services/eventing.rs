//! Changes of brokers and triggers.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::change::whole;
use super::{ChangeError, Mode, RESERVED, Seen, Services, Wish};
use crate::admission::{AdmittedObject, Invalid, Problem, ProblemKind, admit_object, read_spec};
use crate::changes::{Change, What};
use crate::document::Document;
use crate::eventing::{Object, Spec};
use crate::kind::Kind;
use crate::objects;
use crate::store::{Store, StoreError, StoredObject};

/// The kinds, brokers first: triggers need them.
const KINDS: [Kind; 2] = [Kind::Broker, Kind::Trigger];

/// Every broker and trigger in the store. Blocks for the disk.
///
/// # Errors
/// [`StoreError`].
pub(super) fn stored(store: &Store) -> Result<Vec<(Kind, StoredObject)>, StoreError> {
    let mut all = Vec::new();
    for kind in KINDS {
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
            self.catalog.eventing.put(Arc::new(object));
        }
        for kind in KINDS {
            for object in self.catalog.eventing.list(kind, None) {
                let needs = self.needs(&object.stored.namespace, &object.spec);
                self.catalog.eventing.put(Arc::new(Object { needs, ..Object::clone(&object) }));
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
        let admitted = admit_object(kind, document, self.catalog.domain())
            .map_err(|invalid| in_other_words(kind, invalid))?;
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.filter(|uid| !uid.is_empty() && wish.mode != Mode::Create);
        let _changing = self.changing.lock().await;
        let before = self.catalog.eventing.get(kind, &admitted.namespace, &admitted.name);
        let name = || admitted.name.clone();
        match (&before, wish.mode) {
            (Some(_), Mode::Create) => return Err(ChangeError::Exists { kind, name: name() }),
            (None, Mode::Replace) => return Err(ChangeError::NotFound { kind, name: name() }),
            _ => {}
        }
        if let Some(before) = &before {
            precondition(before, admitted.resource_version.as_deref(), uid)?;
            same_broker(before, &admitted)?;
        }
        let now = Timestamp::now();
        let stored = prepare(before.as_deref(), &admitted, wish.managed, now);
        if let Some(before) = &before
            && *before.stored == stored
        {
            return Ok((objects::eventing(&self.catalog, before), false));
        }
        let (spec, new) = (Ok(admitted.spec), before.is_none());
        let needs = self.needs(&stored.namespace, &spec);
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
            return Ok((objects::eventing(&self.catalog, &object), new));
        }
        object.version = self.next_version();
        Arc::make_mut(&mut object.stored).resource_version = object.version;
        let ceiling = self.changes.version() + RESERVED;
        let kept = Arc::clone(&object.stored);
        self.on_disk(move |store| store.put_object(kind, &kept, ceiling)).await?;
        self.ceiling.store(ceiling, std::sync::atomic::Ordering::Release);
        tracing::info!(kind = kind.as_str(), name = object.stored.name, "object set");
        let object = Arc::new(object);
        self.catalog.eventing.put(Arc::clone(&object));
        self.tell_object(&object, if new { What::Added } else { What::Modified });
        self.review();
        Ok((objects::eventing(&self.catalog, &object), new))
    }

    /// Removes a broker or trigger; what waits for a trigger that is gone is not delivered.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove_object(
        self: &Arc<Self>,
        kind: Kind,
        (namespace, name): (&str, &str),
        seen: Seen,
    ) -> Result<String, ChangeError> {
        let (services, namespace, name) = (Arc::clone(self), namespace.to_owned(), name.to_owned());
        whole(async move { services.remove_object_whole(kind, (&namespace, &name), &seen).await })
            .await
    }

    async fn remove_object_whole(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        seen: &Seen,
    ) -> Result<String, ChangeError> {
        let not_found = || ChangeError::NotFound { kind, name: name.to_owned() };
        let _changing = self.changing.lock().await;
        let object = self.catalog.eventing.get(kind, namespace, name).ok_or_else(not_found)?;
        precondition(&object, seen.version.as_deref(), seen.uid.as_deref())?;
        let key = (namespace.to_owned(), name.to_owned());
        self.on_disk(move |store| store.remove_object(kind, &key.0, &key.1)).await?;
        self.catalog.eventing.remove(kind, namespace, name);
        tracing::info!(kind = kind.as_str(), name, namespace, "object removed");
        let gone = Object { version: self.next_version(), ..Object::clone(&object) };
        self.tell_object(&gone, What::Deleted);
        self.review();
        Ok(object.stored.uid.clone())
    }

    /// Looks again at what brokers and triggers need, when something has come or gone. The lock for
    /// changes is held.
    pub(super) fn review(&self) {
        for kind in KINDS {
            for object in self.catalog.eventing.list(kind, None) {
                let needs = self.needs(&object.stored.namespace, &object.spec);
                if needs == object.needs {
                    continue;
                }
                let (version, changed) = (self.next_version(), Timestamp::now());
                let next = Arc::new(Object { needs, version, changed, ..Object::clone(&object) });
                self.catalog.eventing.put(Arc::clone(&next));
                self.tell_object(&next, What::Modified);
            }
        }
    }

    fn needs(
        &self,
        namespace: &str,
        spec: &Result<Spec, String>,
    ) -> Vec<(&'static str, Option<crate::eventing::Unmet>)> {
        let has_service = |namespace: &str, name: &str| self.catalog.get(namespace, name).is_some();
        self.catalog.eventing.needs(namespace, spec, has_service)
    }

    fn tell_object(&self, object: &Object, what: What) {
        let shown = objects::eventing(&self.catalog, object);
        self.changes.publish([Change::new(object.version, object.kind, what, &shown)]);
    }

    async fn on_disk(
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
    managed: Option<Value>,
    now: Timestamp,
) -> StoredObject {
    let mut stored = match before {
        Some(before) => StoredObject::clone(&before.stored),
        None => StoredObject::new(&admitted.namespace, &admitted.name, &admitted.document, now),
    };
    let spec = Document::of(&admitted.document);
    if stored.spec != spec {
        stored.generation += 1;
        stored.spec = spec;
    }
    stored.labels.clone_from(&admitted.labels);
    // Shown whatever is kept, and sent back by clients that have read it.
    stored.labels.remove(objects::BROKER_LABEL);
    stored.annotations.clone_from(&admitted.annotations);
    if let Some(managed) = managed {
        stored.managed = managed;
    }
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
    let invalid = Invalid { name: admitted.name.clone(), problems };
    Err(in_other_words(Kind::Trigger, invalid))
}

/// Whether an object is the one that a client has seen.
fn precondition(
    object: &Object,
    version: Option<&str>,
    uid: Option<&str>,
) -> Result<(), ChangeError> {
    let present = object.version.to_string();
    for (field, given, present) in
        [("uid", uid, object.stored.uid.as_str()), ("resourceVersion", version, present.as_str())]
    {
        if let Some(given) = given
            && given != present
        {
            return Err(ChangeError::Conflict {
                kind: object.kind,
                name: object.stored.name.clone(),
                field,
                given: given.to_owned(),
                present: present.to_owned(),
            });
        }
    }
    Ok(())
}

fn in_other_words(kind: Kind, Invalid { name, problems }: Invalid) -> ChangeError {
    ChangeError::Unfit { kind, name, problems }
}

fn in_words(invalid: &Invalid) -> String {
    let all: Vec<String> = invalid.problems.iter().map(ToString::to_string).collect();
    all.join("; ")
}

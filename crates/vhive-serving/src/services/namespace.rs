//! Namespaces: made by clients, or by the first object that is put into one, as Kubernetes' admission
//! controller `NamespaceAutoProvision` does; deleted with all that is in them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::change::whole;
use super::{ChangeError, RESERVED, Removal, Services};
use crate::admission::Head;
use crate::changes::What;
use crate::inputs::DataKind;
use crate::kind::Kind;
use crate::registry::{Object, Spec};
use crate::store::StoredObject;

/// The one that is always there.
const DEFAULT: &str = "default";

/// Those of objects, each of which may name others of these.
const OBJECTS: [Kind; 3] = [Kind::Route, Kind::Trigger, Kind::Broker];

impl Services {
    /// Sees to it that there is a namespace. The lock for changes is held.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) async fn provide(&self, name: &str) -> Result<(), ChangeError> {
        if self.catalog.objects.get(Kind::Namespace, "", name).is_some() {
            return Ok(());
        }
        let (now, version) = (Timestamp::now(), self.next_version());
        let head = Head { name: name.to_owned(), ..Head::default() };
        let mut stored = StoredObject::new(&head, &serde_json::json!({}), now);
        stored.resource_version = version;
        let (kept, ceiling) = (stored.clone(), self.changes.version() + RESERVED);
        self.on_disk(move |store| store.put_object(Kind::Namespace, &kept, ceiling)).await?;
        self.ceiling.store(ceiling, Ordering::Release);
        let object = Arc::new(Object {
            kind: Kind::Namespace,
            stored: Arc::new(stored),
            spec: Ok(Spec::Namespace),
            needs: Vec::new(),
            version,
            changed: now,
            figures: Arc::default(),
        });
        self.catalog.objects.put(Arc::clone(&object));
        self.tell_object(&object, What::Added);
        Ok(())
    }

    /// Sees to it that there are the namespaces of what earlier versions have kept.
    pub(super) async fn provide_all(&self) {
        let mut names = BTreeSet::from([DEFAULT.to_owned()]);
        names.extend(self.catalog.list(None).iter().map(|entry| entry.stored.namespace.clone()));
        for kind in OBJECTS {
            let objects = self.catalog.objects.list(kind, None);
            names.extend(objects.iter().map(|object| object.stored.namespace.clone()));
        }
        for kind in [DataKind::ConfigMap, DataKind::Secret] {
            let data = self.data.list(kind, None);
            names.extend(data.iter().map(|one| one.namespace.clone()));
        }
        for name in names {
            if let Err(error) = self.provide(&name).await {
                tracing::error!(%error, name, "the namespace is shown once something is put into it");
            }
        }
    }

    /// Removes a namespace with everything in it, in one step on the disk.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn remove_namespace(
        self: &Arc<Self>,
        name: &str,
        removal: Removal,
    ) -> Result<(), ChangeError> {
        let (services, name) = (Arc::clone(self), name.to_owned());
        whole(async move { services.remove_namespace_whole(name, &removal).await }).await
    }

    async fn remove_namespace_whole(
        &self,
        name: String,
        removal: &Removal,
    ) -> Result<(), ChangeError> {
        let kind = Kind::Namespace;
        let _changing = self.changing.lock().await;
        let not_found = || ChangeError::NotFound { kind, name: name.clone() };
        let object = self.catalog.objects.get(kind, "", &name).ok_or_else(not_found)?;
        removal.seen.expect((kind, &name), &object.stored.uid, object.version)?;
        if name == DEFAULT {
            return Err(ChangeError::Kept { kind, name });
        }
        if removal.dry_run {
            return Ok(());
        }
        if removal.keep_snapshots {
            for entry in self.catalog.list(Some(&name)) {
                self.keep_snapshots(&entry).await?;
            }
        }
        let gone = name.clone();
        self.on_disk(move |store| store.remove_namespace(&gone)).await?;
        // Routes first: nothing they lead to is looked for anew.
        for kind in OBJECTS {
            for object in self.catalog.objects.list(kind, Some(&name)) {
                self.take_object(&object);
            }
        }
        for entry in self.catalog.list(Some(&name)) {
            if let Some(entry) = self.take_service(&name, &entry.stored.name)
                && !removal.keep_snapshots
            {
                self.take_snapshots(&entry).await;
            }
        }
        for kind in [DataKind::ConfigMap, DataKind::Secret] {
            for data in self.data.list(kind, Some(&name)) {
                self.take_data(&data);
            }
        }
        self.take_object(&object);
        tracing::info!(name, "namespace removed");
        self.review();
        Ok(())
    }
}

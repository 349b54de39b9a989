//! Objects as they are kept. Those without revisions (brokers, triggers, routes that no service makes,
//! namespaces) are no more than this, and have a table of their own, which earlier versions do not look at.

use std::collections::BTreeMap;

use jiff::Timestamp;
use redb::{ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stored::uid;
use super::{DATA, META, SERVICES, Store, StoreError};
use crate::admission::{CLUSTER_LOCAL, Head, VISIBILITY};
use crate::data::DataKey;
use crate::document::Document;
use crate::inputs::DataKind;
use crate::kind::Kind;
use crate::traffic::{Assigned, Target, targets};

/// By `<plural>.<group>/<namespace>/<name>`.
pub(super) const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");

/// One object as a client wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredObject {
    /// Namespace; a namespace is in the empty one.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// Random, for as long as the object exists.
    pub(crate) uid: String,
    /// When it was made, UTC.
    pub(crate) created: Timestamp,
    /// Counts the changes of `spec`, from 1.
    pub(crate) generation: u64,
    /// Version of the last change by a client.
    pub(crate) resource_version: u64,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Who set which fields; null if nobody said who it was.
    #[serde(default)]
    pub(crate) managed: Document,
    /// The `spec` as written.
    pub(crate) spec: Document,
    /// Where a service's or route's requests go; empty until a revision has been ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) routed: Vec<Assigned>,
}

impl StoredObject {
    /// One that there has not been before.
    pub(crate) fn new(head: &Head, spec: &Value, now: Timestamp) -> Self {
        Self {
            namespace: head.namespace.clone(),
            name: head.name.clone(),
            uid: uid(),
            created: now,
            generation: 1,
            resource_version: 0,
            labels: head.labels.clone(),
            annotations: head.annotations.clone(),
            managed: Document::default(),
            spec: Document::of(spec),
            routed: Vec::new(),
        }
    }

    /// Becomes what a client says now.
    pub(crate) fn take(&mut self, head: &Head, spec: &Value) {
        self.labels.clone_from(&head.labels);
        self.annotations.clone_from(&head.annotations);
        let spec = Document::of(spec);
        if self.spec != spec {
            self.generation += 1;
            self.spec = spec;
        }
    }

    /// Whether a service or route answers to its host inside the cluster only.
    pub(crate) fn is_local(&self) -> bool {
        self.labels.get(VISIBILITY).is_some_and(|value| value == CLUSTER_LOCAL)
    }

    /// What a service's or route's `spec` asks for.
    pub(crate) fn targets(&self) -> Vec<Target> {
        targets(&self.spec.value())
    }
}

fn prefix(kind: Kind) -> String {
    format!("{}.{}/", kind.plural(), kind.group())
}

impl Store {
    /// Every object of a kind, by namespace and name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn objects(&self, kind: Kind) -> Result<Vec<StoredObject>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(OBJECTS).map_err(|e| self.io(&e))?;
        let prefix = prefix(kind);
        let mut objects = Vec::new();
        for entry in table.range(prefix.as_str()..).map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            let object = serde_json::from_slice(value.value());
            objects.push(object.map_err(|error| self.damaged(key.value(), &error))?);
        }
        Ok(objects)
    }

    /// Puts an object in place of what there was, as [`Store::put`] does.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn put_object(
        &self,
        kind: Kind,
        object: &StoredObject,
        ceiling: u64,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(object).map_err(|e| self.io(&e))?;
        let key = format!("{}{}/{}", prefix(kind), object.namespace, object.name);
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            meta.insert("version", ceiling).map_err(|e| self.io(&e))?;
            let mut table = write.open_table(OBJECTS).map_err(|e| self.io(&e))?;
            table.insert(key.as_str(), bytes.as_slice()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Removes an object and returns when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn remove_object(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<(), StoreError> {
        let key = format!("{}{namespace}/{name}", prefix(kind));
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut table = write.open_table(OBJECTS).map_err(|e| self.io(&e))?;
            table.remove(key.as_str()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Removes a namespace with everything in it, all or nothing, and returns when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn remove_namespace(&self, name: &str) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut services = write.open_table(SERVICES).map_err(|e| self.io(&e))?;
            clear(&mut services, &format!("{name}/")).map_err(|e| self.io(&e))?;
            let mut data = write.open_table(DATA).map_err(|e| self.io(&e))?;
            for kind in [DataKind::ConfigMap, DataKind::Secret] {
                let of_it = DataKey::new(kind, name, "").text();
                clear(&mut data, &of_it).map_err(|e| self.io(&e))?;
            }
            let mut objects = write.open_table(OBJECTS).map_err(|e| self.io(&e))?;
            for kind in [Kind::Broker, Kind::Trigger, Kind::Route] {
                let of_it = format!("{}{name}/", prefix(kind));
                clear(&mut objects, &of_it).map_err(|e| self.io(&e))?;
            }
            let own = format!("{}/{name}", prefix(Kind::Namespace));
            objects.remove(own.as_str()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }
}

/// Removes everything whose key begins with something.
fn clear(table: &mut redb::Table<'_, &str, &[u8]>, prefix: &str) -> Result<(), redb::StorageError> {
    let mut gone = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, _) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        gone.push(key.value().to_owned());
    }
    for key in gone {
        table.remove(key.as_str())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_there_after_a_restart_each_under_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let now = Timestamp::UNIX_EPOCH;
        let object = |name: &str| {
            let (namespace, name) = ("default".to_owned(), name.to_owned());
            let head = Head { namespace, name, ..Head::default() };
            StoredObject::new(&head, &json!({"broker": "b"}), now)
        };
        let (one, two, broker) = (object("one"), object("two"), object("one"));
        {
            let store = Store::open(&path).unwrap();
            store.put_object(Kind::Trigger, &two, 10).unwrap();
            store.put_object(Kind::Trigger, &one, 11).unwrap();
            store.put_object(Kind::Broker, &broker, 12).unwrap();
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.all().unwrap(), (Vec::new(), 12));
        assert_eq!(store.objects(Kind::Trigger).unwrap(), [one.clone(), two]);
        assert_eq!(store.objects(Kind::Broker).unwrap(), [broker]);
        store.remove_object(Kind::Trigger, "default", "two").unwrap();
        store.remove_object(Kind::Broker, "default", "none").unwrap();
        assert_eq!(store.objects(Kind::Trigger).unwrap(), [one]);
    }

    #[test]
    fn a_trigger_of_the_first_version_is_read() {
        let golden = include_bytes!("object-1.json");
        let trigger: StoredObject = serde_json::from_slice(golden).unwrap();
        assert_eq!((trigger.name.as_str(), trigger.generation), ("greetings", 2));
        let spec =
            crate::admission::read_spec(Kind::Trigger, "default", &trigger.spec.value(), "x.org");
        assert!(matches!(spec, Ok(crate::registry::Spec::Trigger(_))), "{spec:?}");
    }
}

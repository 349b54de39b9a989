//! The config maps and secrets of this node.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vhive_api::guest::Content;

use crate::document::Document;
use crate::inputs::{DataKind, Lookup};
use crate::kind::Kind;

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DataKey {
    pub(crate) kind: DataKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl DataKey {
    pub(crate) fn new(kind: DataKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// As the store has it.
    pub(crate) fn text(&self) -> String {
        let plural = Kind::from(self.kind).plural();
        format!("{plural}/{}/{}", self.namespace, self.name)
    }
}

impl From<DataKind> for Kind {
    fn from(kind: DataKind) -> Self {
        match kind {
            DataKind::ConfigMap => Self::ConfigMap,
            DataKind::Secret => Self::Secret,
        }
    }
}

impl DataKind {
    /// The one of these, if a kind is among them.
    pub(crate) const fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::ConfigMap => Some(Self::ConfigMap),
            Kind::Secret => Some(Self::Secret),
            _ => None,
        }
    }
}

/// One object as it is kept. Debug output shows no value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredData {
    pub(crate) kind: DataKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Random, for as long as it exists.
    pub(crate) uid: String,
    /// When it was made, UTC.
    pub(crate) created: Timestamp,
    /// Version of the last change.
    pub(crate) resource_version: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// As `metadata.managedFields` says it; null if nobody said who it was.
    #[serde(default)]
    pub(crate) managed: Document,
    /// A secret's type.
    #[serde(default)]
    pub(crate) class: Option<String>,
    /// Whether its data never change any more.
    #[serde(default)]
    pub(crate) immutable: Option<bool>,
    pub(crate) data: BTreeMap<String, Content>,
    /// A config map's `binaryData`.
    #[serde(default)]
    pub(crate) binary: BTreeMap<String, Content>,
}

impl StoredData {
    /// One without anything in it.
    pub(crate) fn empty(kind: DataKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            created: Timestamp::UNIX_EPOCH,
            resource_version: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            managed: Document::default(),
            class: None,
            immutable: None,
            data: BTreeMap::new(),
            binary: BTreeMap::new(),
        }
    }

    pub(crate) fn key(&self) -> DataKey {
        DataKey::new(self.kind, &self.namespace, &self.name)
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Content> {
        self.data.get(key).or_else(|| self.binary.get(key))
    }

    /// Every key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.data.keys().chain(self.binary.keys()).map(String::as_str)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct DataSet(RwLock<BTreeMap<DataKey, Arc<StoredData>>>);

impl DataSet {
    pub(crate) fn of(all: Vec<StoredData>) -> Self {
        let each = all.into_iter().map(|object| (object.key(), Arc::new(object)));
        Self(RwLock::new(each.collect()))
    }

    /// Those of a kind, or of a namespace of it, in the order of their names.
    pub(crate) fn list(&self, kind: DataKind, namespace: Option<&str>) -> Vec<Arc<StoredData>> {
        let all = self.read();
        let from = DataKey::new(kind, namespace.unwrap_or_default(), "");
        let of_it = all.range(from..).take_while(|(key, _)| {
            key.kind == kind && namespace.is_none_or(|namespace| namespace == key.namespace)
        });
        of_it.map(|(_, object)| Arc::clone(object)).collect()
    }

    pub(crate) fn put(&self, object: Arc<StoredData>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(object.key(), object);
    }

    pub(crate) fn remove(&self, key: &DataKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<DataKey, Arc<StoredData>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookup for DataSet {
    fn find(&self, key: &DataKey) -> Option<Arc<StoredData>> {
        self.read().get(key).cloned()
    }
}

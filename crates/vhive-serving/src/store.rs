//! What outlives the node: the services, in `<state directory>/state.redb`.
//!
//! Every change is one transaction that is on disk before the change is answered; a node killed at
//! any moment serves after its restart what it had acknowledged before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhive_api::Revision;

use crate::autoscale::Rules;

const SERVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("services");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Version of what the tables hold.
const FORMAT: u64 = 1;

/// One service as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredService {
    /// Random, for as long as the service exists.
    pub(crate) uid: String,
    /// When it was made, UTC.
    pub(crate) created: jiff::Timestamp,
    /// When the present generation was made, UTC.
    pub(crate) updated: jiff::Timestamp,
    /// Counts the changes of `spec`, from 1.
    pub(crate) generation: u64,
    /// Number of the last change to any service that concerned this one.
    pub(crate) resource_version: u64,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// The `spec` as written.
    pub(crate) spec: Value,
    /// The present revision.
    pub(crate) revision: Revision,
    /// Its scaling rules.
    pub(crate) rules: Rules,
    /// Requests that may wait for it.
    pub(crate) queue_depth: u32,
}

impl StoredService {
    /// Namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.revision.key.namespace
    }

    /// Name of the service.
    pub(crate) fn name(&self) -> &str {
        &self.revision.service
    }
}

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another node works on it.
    #[error("{} is in use by another node; stop that one, or choose another state directory", .0.display())]
    InUse(PathBuf),
    /// The file is damaged or not ours.
    #[error(
        "{} is damaged ({reason}); restore it from a backup, or move it away to begin without \
         services", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It was written by another version.
    #[error("{} has format {found}, this version reads {FORMAT}; use the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file cannot be opened, read or written; nothing was changed.
    #[error("cannot read or write {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The open store. Its methods block for the disk.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the store, or makes it if there is none.
    ///
    /// # Errors
    /// [`StoreError`], which names the file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        // redb answers some damages by a panic; that must not end the node without a word.
        let opened = std::panic::catch_unwind(|| Database::create(path));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
                return Err(StoreError::InUse(path.to_owned()));
            }
            Ok(Err(DatabaseError::Storage(redb::StorageError::Io(error))))
                if error.kind() != std::io::ErrorKind::InvalidData =>
            {
                return Err(StoreError::Io { path: path.to_owned(), reason: error.to_string() });
            }
            Ok(Err(error)) => {
                return Err(StoreError::Damaged {
                    path: path.to_owned(),
                    reason: error.to_string(),
                });
            }
            Err(_panic) => {
                let reason = "its structure makes no sense".to_owned();
                return Err(StoreError::Damaged { path: path.to_owned(), reason });
            }
        };
        let store = Self { database, path: path.to_owned() };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            let found = meta.get("format").map_err(|e| self.io(&e))?.map(|value| value.value());
            match found {
                Some(FORMAT) => {}
                Some(found) => return Err(StoreError::Format { path: self.path.clone(), found }),
                None => _ = meta.insert("format", FORMAT).map_err(|e| self.io(&e))?,
            }
            write.open_table(SERVICES).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Every service, by namespace and name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn all(&self) -> Result<Vec<StoredService>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(SERVICES).map_err(|e| self.io(&e))?;
        let mut services = Vec::new();
        for entry in table.iter().map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            let service = serde_json::from_slice(value.value()).map_err(|error| {
                let reason = format!("service {}: {error}", key.value());
                StoreError::Damaged { path: self.path.clone(), reason }
            })?;
            services.push(service);
        }
        Ok(services)
    }

    /// Puts a service in place of what there was, gives it the next resource version, and returns
    /// when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn put(&self, service: &mut StoredService) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            let last = meta.get("version").map_err(|e| self.io(&e))?.map_or(0, |v| v.value());
            meta.insert("version", last + 1).map_err(|e| self.io(&e))?;
            service.resource_version = last + 1;
            let mut table = write.open_table(SERVICES).map_err(|e| self.io(&e))?;
            let bytes = serde_json::to_vec(service).map_err(|e| self.io(&e))?;
            let key = format!("{}/{}", service.namespace(), service.name());
            table.insert(key.as_str(), bytes.as_slice()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Removes a service and returns when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn remove(&self, namespace: &str, name: &str) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut table = write.open_table(SERVICES).map_err(|e| self.io(&e))?;
            table.remove(format!("{namespace}/{name}").as_str()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    fn io(&self, error: &dyn std::fmt::Display) -> StoreError {
        StoreError::Io { path: self.path.clone(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> StoredService {
        let document = serde_json::json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{"image": "dev.local/hello"}]}}},
        });
        let admitted = crate::admission::admit(&document, &crate::Config::default()).unwrap();
        let key = vhive_api::RevisionKey::new("default", format!("{name}-00001"));
        let digest = vhive_api::Digest::of(b"image");
        StoredService {
            uid: "u".to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            updated: jiff::Timestamp::UNIX_EPOCH,
            generation: 1,
            resource_version: 0,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: admitted.spec.clone(),
            revision: admitted.template.revision(key, name, digest),
            rules: admitted.template.rules.clone(),
            queue_depth: 1,
        }
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (mut one, mut two) = (service("one"), service("two"));
        {
            let store = Store::open(&path).unwrap();
            store.put(&mut one).unwrap();
            store.put(&mut two).unwrap();
            assert_eq!((one.resource_version, two.resource_version), (1, 2));
            let second = Store::open(&path).unwrap_err();
            assert!(matches!(second, StoreError::InUse(_)), "{second}");
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.all().unwrap(), [one, two.clone()]);
        store.remove("default", "one").unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().all().unwrap(), [two]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut noise = vec![0xA5_u8; 70_000];
        for bytes in [b"not a database".to_vec(), noise.clone()] {
            std::fs::write(&path, bytes).unwrap();
            let error = Store::open(&path).unwrap_err().to_string();
            assert!(error.contains("state.redb is damaged"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        Store::open(&path).unwrap().put(&mut service("one")).unwrap();
        let sound = std::fs::read(&path).unwrap();
        noise[..9].copy_from_slice(&sound[..9]);
        std::fs::write(&path, &noise).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("state.redb"), "{error}");
        // A file cut in the middle is either refused by name or still whole, never a panic.
        for cut in [1, 100, 4096, sound.len() / 2, sound.len() - 1] {
            std::fs::write(&path, &sound[..cut]).unwrap();
            if let Err(error) = Store::open(&path).and_then(|store| store.all()) {
                assert!(error.to_string().contains("state.redb"), "{error}");
            }
        }
    }
}

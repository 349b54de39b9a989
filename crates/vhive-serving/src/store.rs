//! What outlives the node: the services with their revisions, in `<state directory>/state.redb`.
//!
//! Every change is one transaction that is on disk before the change is answered; a node killed at
//! any moment serves after its restart what it had acknowledged before.

use std::path::{Path, PathBuf};

use redb::{ReadableTable as _, TableDefinition};

use crate::data::{DataKey, StoredData};

mod earlier;
mod file;
mod object;
mod stored;

pub(crate) use self::file::DatabaseFile;
use self::object::OBJECTS;
pub(crate) use self::object::StoredObject;
pub(crate) use self::stored::{
    Basis, Marks, StoredRevision, StoredService, first, revision, uid, uid_of,
};

const SERVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("services");
/// Config maps and secrets, by kind, namespace and name. Earlier versions pass it over.
const DATA: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("data");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Version of what the tables hold at first. [`earlier`] reads the one before.
const PLAIN: u64 = 2;

/// Version from the first object on that has something which versions that know [`PLAIN`] only take for
/// damage: configurations that stand alone, labels and annotations of what a service makes.
const FORMAT: u64 = 3;

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
    #[error(
        "{} has format {found}, this version reads up to {FORMAT}; use the version that wrote it",
        path.display()
    )]
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
    database: DatabaseFile,
    path: PathBuf,
}

impl Store {
    /// Opens the store, or makes it if there is none.
    ///
    /// # Errors
    /// [`StoreError`], which names the file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = DatabaseFile::open(path)?;
        let store = Self { database, path: path.to_owned() };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            let found = meta.get("format").map_err(|e| self.io(&e))?.map(|value| value.value());
            let mut services = write.open_table(SERVICES).map_err(|e| self.io(&e))?;
            write.open_table(DATA).map_err(|e| self.io(&e))?;
            write.open_table(OBJECTS).map_err(|e| self.io(&e))?;
            match found {
                Some(PLAIN | FORMAT) | None => {}
                Some(1) => self.renew(&mut services)?,
                Some(found) => return Err(StoreError::Format { path: self.path.clone(), found }),
            }
            let format = found.unwrap_or(PLAIN).max(PLAIN);
            meta.insert("format", format).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Writes what format 1 left in this version's way.
    fn renew(&self, services: &mut redb::Table<'_, &str, &[u8]>) -> Result<(), StoreError> {
        let mut renewed = Vec::new();
        for entry in services.iter().map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            let service = earlier::read_1(value.value());
            let service = service.map_err(|error| self.damaged(key.value(), &error))?;
            renewed.push((key.value().to_owned(), service));
        }
        for (key, service) in renewed {
            let bytes = serde_json::to_vec(&service).map_err(|e| self.io(&e))?;
            services.insert(key.as_str(), bytes.as_slice()).map_err(|e| self.io(&e))?;
        }
        Ok(())
    }

    /// Every service, by namespace and name, and a version that is no lower than any that was
    /// given out before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn all(&self) -> Result<(Vec<StoredService>, u64), StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(SERVICES).map_err(|e| self.io(&e))?;
        let mut services = Vec::new();
        for entry in table.iter().map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            let service: StoredService = serde_json::from_slice(value.value())
                .map_err(|error| self.damaged(key.value(), &error))?;
            if service.revisions.is_empty() {
                return Err(self.damaged(key.value(), &"it has no revision"));
            }
            services.push(service);
        }
        let meta = read.open_table(META).map_err(|e| self.io(&e))?;
        let version = meta.get("version").map_err(|e| self.io(&e))?.map_or(0, |v| v.value());
        Ok((services, version))
    }

    /// Puts a service in place of what there was, notes that no version above `ceiling` is given
    /// out, and returns when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn put(&self, service: &StoredService, ceiling: u64) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            meta.insert("version", ceiling).map_err(|e| self.io(&e))?;
            if !service.is_plain() {
                meta.insert("format", FORMAT).map_err(|e| self.io(&e))?;
            }
            let mut table = write.open_table(SERVICES).map_err(|e| self.io(&e))?;
            let bytes = serde_json::to_vec(service).map_err(|e| self.io(&e))?;
            let key = format!("{}/{}", service.namespace, service.name);
            table.insert(key.as_str(), bytes.as_slice()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Every config map and secret.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn all_data(&self) -> Result<Vec<StoredData>, StoreError> {
        let read = self.database.begin_read().map_err(|e| self.io(&e))?;
        let table = read.open_table(DATA).map_err(|e| self.io(&e))?;
        let mut all = Vec::new();
        for entry in table.iter().map_err(|e| self.io(&e))? {
            let (key, value) = entry.map_err(|e| self.io(&e))?;
            let read = serde_json::from_slice(value.value()).map_err(|error| {
                // The error's own text may quote a value.
                let (line, column) = (error.line(), error.column());
                let reason = format!("{}: line {line}, column {column}", key.value());
                StoreError::Damaged { path: self.path.clone(), reason }
            });
            all.push(read?);
        }
        Ok(all)
    }

    /// Puts a config map or secret in place of what there was, as [`Store::put`] does.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn put_data(&self, object: &StoredData, ceiling: u64) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            meta.insert("version", ceiling).map_err(|e| self.io(&e))?;
            let mut table = write.open_table(DATA).map_err(|e| self.io(&e))?;
            let bytes = serde_json::to_vec(object).map_err(|e| self.io(&e))?;
            let key = object.key().text();
            table.insert(key.as_str(), bytes.as_slice()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Removes a config map or secret and returns when that is on disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn remove_data(&self, key: &DataKey) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut table = write.open_table(DATA).map_err(|e| self.io(&e))?;
            table.remove(key.text().as_str()).map_err(|e| self.io(&e))?;
        }
        write.commit().map_err(|e| self.io(&e))
    }

    /// Notes that no version above `ceiling` is given out.
    ///
    /// # Errors
    /// [`StoreError`]; the store is unchanged.
    pub(crate) fn reserve(&self, ceiling: u64) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(|e| self.io(&e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.io(&e))?;
            meta.insert("version", ceiling).map_err(|e| self.io(&e))?;
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

    fn damaged(&self, key: &str, error: &dyn std::fmt::Display) -> StoreError {
        let reason = format!("service {key}: {error}");
        StoreError::Damaged { path: self.path.clone(), reason }
    }

    fn io(&self, error: &dyn std::fmt::Display) -> StoreError {
        self.database.doubt();
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
        let digest = vhive_api::Digest::of(b"image");
        first(&admitted, Basis { digest, complete: true }, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let (one, two) = (service("one"), service("two"));
        {
            let store = Store::open(&path).unwrap();
            store.put(&one, 1000).unwrap();
            store.put(&two, 1001).unwrap();
            let second = Store::open(&path).unwrap_err();
            assert!(matches!(second, StoreError::InUse(_)), "{second}");
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.all().unwrap(), (vec![one, two.clone()], 1001));
        store.remove("default", "one").unwrap();
        store.reserve(5000).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().all().unwrap(), (vec![two], 5000));
    }

    #[test]
    fn a_service_with_a_field_of_a_later_version_is_not_read() {
        let mut kept = serde_json::to_value(service("one")).unwrap();
        assert!(serde_json::from_value::<StoredService>(kept.clone()).is_ok());
        assert_eq!(kept["standalone"], serde_json::Value::Null, "as earlier versions wrote it");
        kept["colour"] = serde_json::json!("red");
        let error = serde_json::from_value::<StoredService>(kept).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn the_format_changes_with_the_first_object_that_earlier_versions_do_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let format = |store: &Store| {
            let read = store.database.begin_read().unwrap();
            read.open_table(META).unwrap().get("format").unwrap().map(|found| found.value())
        };
        let store = Store::open(&path).unwrap();
        store.put(&service("one"), 1).unwrap();
        assert_eq!(format(&store), Some(2));
        let mut marked = service("one");
        marked.revisions[0].marks = Some(Box::default());
        store.put(&marked, 2).unwrap();
        assert_eq!(format(&store), Some(3));
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.all().unwrap().0, format(&store)), (vec![marked], Some(3)));
        for at in 0..3 {
            let mut one = service("one");
            match at {
                0 => one.standalone = true,
                1 => one.route_marks = Some(Box::default()),
                _ => one.configuration_marks = Some(Box::default()),
            }
            assert!(!one.is_plain() && service("one").is_plain());
        }
    }

    #[test]
    fn config_maps_and_secrets_are_kept_beside_the_services() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut secret = StoredData::empty(crate::inputs::DataKind::Secret, "default", "s");
        let content = vhive_api::guest::Content::of(vec![0, 0xff]);
        secret.data.insert("key".to_owned(), content);
        {
            let store = Store::open(&path).unwrap();
            store.put_data(&secret, 1000).unwrap();
            store.put(&service("one"), 1001).unwrap();
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.all_data().unwrap(), [secret.clone()]);
        assert_eq!(store.all().unwrap().1, 1001);
        store.remove_data(&secret.key()).unwrap();
        assert_eq!(store.all_data().unwrap(), []);
        assert_eq!(store.all().unwrap().0.len(), 1);
    }

    #[test]
    fn a_store_of_format_1_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let database = redb::Database::create(&path).unwrap();
            let write = database.begin_write().unwrap();
            write.open_table(META).unwrap().insert("format", 1).unwrap();
            write.open_table(META).unwrap().insert("version", 7).unwrap();
            let golden = include_bytes!("store/format-1.json").as_slice();
            write.open_table(SERVICES).unwrap().insert("default/hello", golden).unwrap();
            write.commit().unwrap();
        }
        for _ in 0..2 {
            let (services, version) = Store::open(&path).unwrap().all().unwrap();
            let [hello] = services.as_slice() else { panic!("one service") };
            assert_eq!((hello.name.as_str(), hello.generation, version), ("hello", 3, 7));
            let [revision] = hello.revisions.as_slice() else { panic!("one revision") };
            assert_eq!(revision.name(), "hello-00003");
            assert_eq!(revision.queue_depth, 7);
            assert_eq!(hello.routed[0].revision, "hello-00003");
        }
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
        Store::open(&path).unwrap().put(&service("one"), 1).unwrap();
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

//! A database file that is opened anew after the disk has failed it: redb refuses everything from
//! the first failed write on, also once the disk has room again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase as _, StorageError,
    TransactionError, WriteTransaction,
};

use super::StoreError;

/// The file, open unless opening it anew has failed.
#[derive(Debug)]
pub(crate) struct DatabaseFile {
    path: PathBuf,
    open: Mutex<Option<Database>>,
    doubted: AtomicBool,
}

/// Why no transaction begins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    #[error(transparent)]
    Database(#[from] TransactionError),
    #[error("it failed before and cannot be opened anew: {0}")]
    Reopen(StoreError),
}

impl DatabaseFile {
    /// Opens a file, or makes it if there is none.
    ///
    /// # Errors
    /// [`StoreError`], which names the file.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let open = Mutex::new(Some(open(path, |path| Database::create(path))?));
        Ok(Self { path: path.to_owned(), open, doubted: AtomicBool::new(false) })
    }

    /// Something has failed that it was asked for: it is opened anew before it is asked again, since
    /// what it reads fails as well from then on.
    pub(crate) fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }

    /// Waits for the transaction that writes now, if there is one.
    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, BeginError> {
        self.begin(Database::begin_write)
    }

    /// What is read is as of now.
    pub(crate) fn begin_read(&self) -> Result<ReadTransaction, BeginError> {
        self.begin(|database| database.begin_read())
    }

    fn begin<T>(
        &self,
        begin: impl Fn(&Database) -> Result<T, TransactionError>,
    ) -> Result<T, BeginError> {
        let mut state = self.state();
        if let Some(database) = &*state
            && !self.doubted.load(Ordering::Acquire)
        {
            match begin(database) {
                Err(TransactionError::Storage(StorageError::PreviousIo)) => {}
                begun => return Ok(begun?),
            }
        }
        // The old one holds a lock on the file.
        drop(state.take());
        // Not made anew: an empty one in its place would forget everything at the next start.
        let database = open(&self.path, |path| Database::open(path)).map_err(BeginError::Reopen)?;
        let database = state.insert(database);
        self.doubted.store(false, Ordering::Release);
        tracing::info!(path = %self.path.display(), "opened anew after a failure of the disk");
        Ok(begin(database)?)
    }

    fn state(&self) -> MutexGuard<'_, Option<Database>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(
    path: &Path,
    how: fn(&Path) -> Result<Database, DatabaseError>,
) -> Result<Database, StoreError> {
    // redb answers some damages by a panic; that must not end the node without a word.
    let opened = std::panic::catch_unwind(|| how(path));
    let damaged = |reason: &dyn fmt::Display| (path.to_owned(), reason.to_string());
    let (path, reason) = match opened {
        Ok(Ok(database)) => return Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
            return Err(StoreError::InUse(path.to_owned()));
        }
        Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            return Err(StoreError::Io { path: path.to_owned(), reason: error.to_string() });
        }
        Ok(Err(error)) => damaged(&error),
        Err(_panic) => damaged(&"its structure makes no sense"),
    };
    Err(StoreError::Damaged { path, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_gone_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("state.redb"), dir.path().join("away"));
        let file = DatabaseFile::open(&path).unwrap();
        file.begin_write().unwrap().commit().unwrap();
        std::fs::rename(&path, &away).unwrap();
        file.doubt();
        for _ in 0..2 {
            assert!(matches!(file.begin_write(), Err(BeginError::Reopen(StoreError::Io { .. }))));
            assert!(file.begin_read().is_err());
            assert!(!path.exists(), "an empty one in its place would forget everything");
        }
        std::fs::rename(&away, &path).unwrap();
        file.begin_write().unwrap().commit().unwrap();
    }
}

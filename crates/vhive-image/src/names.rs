//! `names.json`: which names the images have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};
use vhive_api::Digest;

use crate::draft::{Lock, Sync};
use crate::store::{Inner, StoreError};

pub(crate) const NAMES: &str = "names.json";
const FORMAT: u32 = 1;

/// Names and the images stored. An image that loses its last name to another one stays, since a
/// revision may still need it, until it is removed by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Names {
    format: u32,
    names: BTreeMap<String, Digest>,
    images: BTreeSet<Digest>,
}

impl Names {
    pub(crate) fn load(store: &Inner) -> Result<Self, StoreError> {
        let path = store.names_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (names, images) = (BTreeMap::new(), BTreeSet::new());
                return Ok(Self { format: FORMAT, names, images });
            }
            Err(error) => return Err(StoreError::io(&path)(error)),
        };
        serde_json::from_slice(&text).map_err(|source| StoreError::Names { path, source })
    }

    /// Changes the list as one step, also against other processes.
    pub(crate) fn change<T>(
        store: &Inner,
        change: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, StoreError> {
        let lock = store.dir.join("names.lock");
        let _lock = Lock::exclusive(&lock).map_err(StoreError::io(&lock))?;
        let before = Self::load(store)?;
        let mut names = before.clone();
        let result = change(&mut names);
        if names != before {
            let path = store.names_file();
            let text = serde_json::to_vec_pretty(&names).expect("strings and digests serialise");
            let draft = store.draft()?;
            draft.file().write_all(&text).map_err(StoreError::io(draft.path()))?;
            draft.publish(&path, Sync::Yes).map_err(StoreError::io(&path))?;
        }
        Ok(result)
    }

    pub(crate) fn set(&mut self, name: &str, digest: Digest) {
        self.names.insert(name.to_owned(), digest);
        self.images.insert(digest);
    }

    pub(crate) fn get(&self, name: &str) -> Option<Digest> {
        self.names.get(name).copied()
    }

    /// A name of the image, or its digest as text; `None` if it is not stored.
    pub(crate) fn name_of(&self, digest: Digest) -> Option<String> {
        let named = self.names.iter().find(|(_, found)| **found == digest);
        let stored = self.images.contains(&digest);
        named.map(|(name, _)| name.clone()).or_else(|| stored.then(|| digest.to_string()))
    }

    /// Removes a name; the image goes with its last one. False if there is no such name.
    pub(crate) fn remove_name(&mut self, name: &str) -> bool {
        let Some(digest) = self.names.remove(name) else { return false };
        if self.names.values().all(|other| *other != digest) {
            self.images.remove(&digest);
        }
        true
    }

    /// Removes an image with all its names; `None` if it is not stored.
    pub(crate) fn remove_digest(&mut self, digest: Digest) -> Option<Vec<String>> {
        if !self.images.remove(&digest) {
            return None;
        }
        let all = std::mem::take(&mut self.names);
        let (gone, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, found)| *found == digest);
        self.names = kept.into_iter().collect();
        Some(gone.into_iter().map(|(name, _)| name).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (String, Digest)> {
        self.names.iter().map(|(name, digest)| (name.clone(), *digest))
    }

    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.images.iter().copied()
    }

    pub(crate) fn nameless(&self) -> Vec<Digest> {
        let named: BTreeSet<Digest> = self.names.values().copied().collect();
        self.images.difference(&named).copied().collect()
    }
}

//! What a revision takes from config maps and secrets, and what that is now. Pure.
//!
//! A revision names them; it never changes. Their values are read when an instance is started, so
//! an instance that starts later sees later values. The values are part of what a snapshot is found
//! by ([`vhive_api::Revision::digest`]): a changed value is never served from an old snapshot.
//!
//! # Source
//! Kubernetes, "Define Environment Variables for a Container", "Configure a Pod to Use a ConfigMap",
//! "Projected Volumes"; the kubelet's words for what is missing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vhive_api::guest::{Content, Volume, VolumeFile};

use crate::data::{DataKey, StoredData};

/// Longest that variables and files may be together, as they are told to an init: less than a frame
/// of the guest contract.
const MOST: usize = 900 << 10;

/// The two kinds of objects that hold nothing but data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Anybody may know it.
    ConfigMap,
    /// Not so.
    Secret,
}

impl DataKind {
    /// As `kind` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// Everything that a revision takes from elsewhere, in the order in which it holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Objects whose keys all become variables (`envFrom`); later ones go first.
    pub from: Vec<EnvFrom>,
    /// The variables (`env`), which go before those.
    pub env: Vec<Variable>,
    /// Directories of files.
    pub mounts: Vec<Mount>,
}

/// Which object is meant, in the revision's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Its kind.
    pub kind: DataKind,
    /// Its name.
    pub name: String,
    /// Whether the function does without it, or without the key.
    pub optional: bool,
}

/// An entry of `envFrom`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvFrom {
    /// Whose keys.
    pub of: Reference,
    /// What stands before each key.
    pub prefix: String,
}

/// An entry of `env`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: VariableValue,
}

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VariableValue {
    /// As it is written.
    Literal(String),
    /// The value of a key.
    Key(Reference, String),
}

/// A volume where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Directory in the function's root.
    pub path: String,
    /// What is in it; of two files of one name the later one.
    pub sources: Vec<Source>,
}

/// One object in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Which.
    pub of: Reference,
    /// Which of its keys, if not all.
    pub items: Vec<Item>,
    /// Permission bits of the files.
    pub mode: u32,
}

/// One key in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The key.
    pub key: String,
    /// Where its file is, below the volume.
    pub path: String,
    /// Permission bits, if not the volume's.
    pub mode: Option<u32>,
}

/// What the inputs of a revision are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) volumes: Vec<Volume>,
}

/// Why a revision cannot be started now. No value is in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// There is no such object.
    #[error("{} {name:?} not found", kind.as_str().to_lowercase())]
    Object { kind: DataKind, name: String },
    /// The object has no such key.
    #[error("couldn't find key {key} in {} {namespace}/{name}", kind.as_str())]
    Key { kind: DataKind, namespace: String, name: String, key: String },
    /// A value cannot be a variable.
    #[error(
        "key {key} in {} {namespace}/{name} cannot be a variable: it is not text, or has a zero byte",
        kind.as_str()
    )]
    Text { kind: DataKind, namespace: String, name: String, key: String },
    /// A file is in the way of another one.
    #[error("in the volume at {mount}, {path} is below a file")]
    Place { mount: String, path: String },
    /// It is too much.
    #[error("variables and files take {0} bytes, more than {MOST}")]
    Size(usize),
}

/// Finds an object as it is now.
pub(crate) trait Lookup {
    fn find(&self, key: &DataKey) -> Option<Arc<StoredData>>;
}

impl Inputs {
    /// Whether they depend on an object.
    pub(crate) fn mentions(&self, kind: DataKind, name: &str) -> bool {
        let mut all = self.references();
        all.any(|reference| reference.kind == kind && reference.name == name)
    }

    fn references(&self) -> impl Iterator<Item = &Reference> {
        let keys = self.env.iter().filter_map(|variable| match &variable.value {
            VariableValue::Literal(_) => None,
            VariableValue::Key(of, _) => Some(of),
        });
        let files = self.mounts.iter().flat_map(|mount| &mount.sources).map(|source| &source.of);
        self.from.iter().map(|from| &from.of).chain(keys).chain(files)
    }

    /// What they are now, in a namespace.
    ///
    /// # Errors
    /// The first that is [`Missing`].
    pub(crate) fn resolve(
        &self,
        namespace: &str,
        lookup: &impl Lookup,
    ) -> Result<Resolved, Missing> {
        let look = Look { namespace, lookup, spent: Cell::new(0) };
        let mut env = Vec::new();
        for from in &self.from {
            let Some(object) = look.object(&from.of)? else { continue };
            for key in object.keys() {
                if let Some(value) = look.text(&from.of, &object, key)? {
                    set(&mut env, format!("{}{key}", from.prefix), value);
                }
            }
        }
        for variable in &self.env {
            let value = match &variable.value {
                VariableValue::Literal(text) => Some(text.clone()),
                VariableValue::Key(of, key) => match look.object(of)? {
                    Some(object) => look.text(of, &object, key)?,
                    None => None,
                },
            };
            if let Some(value) = value {
                set(&mut env, variable.name.clone(), value);
            }
        }
        let volumes: Result<Vec<Volume>, Missing> =
            self.mounts.iter().map(|mount| look.volume(mount)).collect();
        let resolved = Resolved { env, volumes: volumes? };
        let size =
            serde_json::to_vec(&(&resolved.env, &resolved.volumes)).map_or(0, |all| all.len());
        if size > MOST { Err(Missing::Size(size)) } else { Ok(resolved) }
    }
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    // In the place of the later one, so that it may refer to what is in between.
    env.retain(|(known, _)| *known != name);
    env.push((name, value));
}

struct Look<'a, L> {
    namespace: &'a str,
    lookup: &'a L,
    /// Bytes copied so far, so that a document that names one object many times ends early.
    spent: Cell<usize>,
}

impl<L: Lookup> Look<'_, L> {
    /// Notes that so many bytes are about to be copied.
    fn spend(&self, bytes: usize) -> Result<(), Missing> {
        let spent = self.spent.get().saturating_add(bytes);
        self.spent.set(spent);
        if spent > MOST { Err(Missing::Size(spent)) } else { Ok(()) }
    }

    /// The object; none if it may be missing and is.
    fn object(&self, of: &Reference) -> Result<Option<Arc<StoredData>>, Missing> {
        let key = DataKey::new(of.kind, self.namespace, &of.name);
        let found = self.lookup.find(&key);
        if found.is_none() && !of.optional {
            return Err(Missing::Object { kind: of.kind, name: of.name.clone() });
        }
        Ok(found)
    }

    fn content<'o>(
        &self,
        of: &Reference,
        object: &'o StoredData,
        key: &str,
    ) -> Result<Option<&'o Content>, Missing> {
        let found = object.get(key);
        if found.is_none() && !of.optional {
            let (kind, name) = (of.kind, of.name.clone());
            let (namespace, key) = (self.namespace.to_owned(), key.to_owned());
            return Err(Missing::Key { kind, namespace, name, key });
        }
        Ok(found)
    }

    /// A value as a variable's, in which nothing is expanded.
    fn text(
        &self,
        of: &Reference,
        object: &StoredData,
        key: &str,
    ) -> Result<Option<String>, Missing> {
        match self.content(of, object, key)? {
            None => Ok(None),
            Some(Content::Text(text)) if !text.contains('\0') => {
                self.spend(key.len() + text.len())?;
                Ok(Some(text.replace('$', "$$")))
            }
            Some(Content::Text(_) | Content::Hex(_)) => {
                let (kind, name) = (of.kind, of.name.clone());
                let (namespace, key) = (self.namespace.to_owned(), key.to_owned());
                Err(Missing::Text { kind, namespace, name, key })
            }
        }
    }

    fn volume(&self, mount: &Mount) -> Result<Volume, Missing> {
        let mut files = BTreeMap::new();
        for source in &mount.sources {
            let Some(object) = self.object(&source.of)? else { continue };
            let mut put = |key: &str, path: &str, mode: u32| {
                if let Some(content) = self.content(&source.of, &object, key)? {
                    let (Content::Text(text) | Content::Hex(text)) = content;
                    self.spend(path.len() + text.len())?;
                    files.insert(path.to_owned(), (mode, content.clone()));
                }
                Ok::<(), Missing>(())
            };
            if source.items.is_empty() {
                object.keys().try_for_each(|key| put(key, key, source.mode))?;
            }
            for item in &source.items {
                put(&item.key, &item.path, item.mode.unwrap_or(source.mode))?;
            }
        }
        // A file that is another one's directory comes before it.
        let below =
            |path: &str| path.match_indices('/').any(|(at, _)| files.contains_key(&path[..at]));
        if let Some(path) = files.keys().find(|path| below(path)) {
            return Err(Missing::Place { mount: mount.path.clone(), path: path.clone() });
        }
        let files = files.into_iter();
        let files = files.map(|(path, (mode, content))| VolumeFile { path, mode, content });
        Ok(Volume { path: mount.path.clone(), files: files.collect() })
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests;

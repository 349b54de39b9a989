//! What a revision takes from config maps and secrets: `env`, `envFrom`, `volumes`, `volumeMounts`.
//!
//! # Source
//! Kubernetes API reference, Container and Volume; Knative Serving, `pkg/apis/serving/fieldmask.go`
//! and `k8s_validation.go`.

use std::collections::BTreeMap;

use super::cursor::{Cursor, Fields};
use super::data::{is_key, is_subdomain};
use super::metadata::label;
use crate::inputs::{DataKind, EnvFrom, Item, Mount, Reference, Source, Variable, VariableValue};

const ENV: Fields = Fields { known: &["name", "value", "valueFrom"], refused: &[] };

const VALUE_FROM: Fields = Fields {
    known: &["configMapKeyRef", "secretKeyRef"],
    refused: &[
        ("fieldRef", "an instance has no fields; K_REVISION and K_SERVICE are variables already"),
        (
            "resourceFieldRef",
            "an instance has no fields; its limits are those of its cgroup or machine",
        ),
        ("fileKeyRef", "use configMapKeyRef or secretKeyRef"),
    ],
};

const KEY: Fields = Fields { known: &["name", "key", "optional"], refused: &[] };

const ENV_FROM: Fields = Fields { known: &["prefix", "configMapRef", "secretRef"], refused: &[] };

const REFERENCE: Fields = Fields { known: &["name", "optional"], refused: &[] };

const VOLUME: Fields = Fields {
    known: &["name", "configMap", "secret", "projected"],
    refused: &[
        ("emptyDir", "a function may write wherever it likes; that lasts as long as its instance"),
        ("persistentVolumeClaim", "nothing that an instance writes outlives it"),
        ("hostPath", "a function sees nothing of the host"),
        ("csi", "there are no storage drivers"),
        ("image", "a function has one image"),
        ("downwardAPI", "an instance has no fields"),
        ("ephemeral", "nothing that an instance writes outlives it"),
        ("nfs", "a function sees nothing of the host"),
    ],
};

const CONFIG_MAP: Fields =
    Fields { known: &["name", "optional", "items", "defaultMode"], refused: &[] };

const SECRET: Fields =
    Fields { known: &["secretName", "optional", "items", "defaultMode"], refused: &[] };

const PROJECTED: Fields = Fields { known: &["sources", "defaultMode"], refused: &[] };

const PROJECTION: Fields = Fields {
    known: &["configMap", "secret"],
    refused: &[
        ("downwardAPI", "an instance has no fields"),
        ("serviceAccountToken", "there are no service accounts without a cluster"),
        ("clusterTrustBundle", "there are none without a cluster"),
        ("podCertificate", "there are none without a cluster"),
    ],
};

const PROJECTED_SOURCE: Fields = Fields { known: &["name", "optional", "items"], refused: &[] };

const ITEM: Fields = Fields { known: &["key", "path", "mode"], refused: &[] };

const MOUNT: Fields = Fields {
    known: &["name", "mountPath", "readOnly"],
    refused: &[
        ("subPath", "mount the volume's directory"),
        ("subPathExpr", "mount the volume's directory"),
        ("mountPropagation", "an instance mounts nothing"),
        ("recursiveReadOnly", "there is nothing below a volume"),
    ],
};

/// Where nothing may be mounted.
///
/// # Source
/// Knative Serving, `reservedPaths`; the last four are the sandbox's own.
const RESERVED: [&str; 8] = ["/", "/dev/log", "/tmp", "/var", "/var/log", "/dev", "/proc", "/sys"];

/// Permission bits of a file, unless they are given.
const MODE: u32 = 0o644;

/// Entries of one list: more than any function has, and few enough to be compared with each other.
const MOST: usize = 1000;

/// The entries of a list that is not too long.
fn few<'a>(list: &Cursor<'a>) -> Vec<Cursor<'a>> {
    let items = list.items();
    if items.len() > MOST {
        list.invalid(format!("must have at most {MOST} entries, not {}", items.len()));
        return Vec::new();
    }
    items
}

/// Reads `env`.
pub(super) fn read_env(env: &Cursor<'_>) -> Vec<Variable> {
    let mut variables: Vec<Variable> = Vec::new();
    for entry in few(env) {
        entry.expect_fields(&ENV);
        let Some(name) = entry.get("name") else {
            entry.missing("name");
            continue;
        };
        let value = read_value(&entry);
        let (Some(text), Some(value)) = (name.text(), value) else { continue };
        if text.is_empty() || text.contains(['=', '\0']) {
            name.invalid("must be a name without `=`");
        } else if matches!(text, "PORT" | "K_SERVICE" | "K_CONFIGURATION" | "K_REVISION") {
            name.invalid(format!("{text} is set by vHive"));
        } else if variables.iter().any(|other| other.name == text) {
            name.invalid(format!("{text} is there twice"));
        } else {
            variables.push(Variable { name: text.to_owned(), value });
        }
    }
    variables
}

fn read_value(entry: &Cursor<'_>) -> Option<VariableValue> {
    let literal = entry.get("value").filter(|value| value.value() != "");
    let Some(from) = entry.get("valueFrom") else {
        let text = literal.map_or(Some(""), |value| value.text())?;
        if text.contains('\0') {
            entry.invalid("must not contain a zero byte");
            return None;
        }
        return Some(VariableValue::Literal(text.to_owned()));
    };
    if literal.is_some() {
        from.invalid("may not be specified when `value` is not empty");
        return None;
    }
    from.expect_fields(&VALUE_FROM);
    let given = one_of(
        &from,
        [("configMapKeyRef", DataKind::ConfigMap), ("secretKeyRef", DataKind::Secret)],
    );
    let (kind, cursor) = given?;
    cursor.expect_fields(&KEY);
    let of = read_reference(&cursor, kind, "name");
    let key = read_key(&cursor);
    Some(VariableValue::Key(of?, key?))
}

/// The one field of several that is there; reports none and more than one.
fn one_of<'a, const N: usize>(
    cursor: &Cursor<'a>,
    fields: [(&str, DataKind); N],
) -> Option<(DataKind, Cursor<'a>)> {
    let found = fields.map(|(field, kind)| cursor.get(field).map(|cursor| (kind, cursor)));
    let mut found = found.into_iter().flatten();
    let first = found.next();
    if first.is_none() || found.next().is_some() {
        let names = fields.map(|(field, _)| field);
        cursor.invalid(format!("must have exactly one of {}", names.join(", ")));
        return None;
    }
    first
}

fn read_reference(cursor: &Cursor<'_>, kind: DataKind, field: &str) -> Option<Reference> {
    let optional = cursor.get("optional").and_then(|flag| flag.boolean()).unwrap_or(false);
    let Some(name) = cursor.get(field) else {
        cursor.missing(field);
        return None;
    };
    let text = name.text()?;
    if !is_subdomain(text) {
        name.invalid("must be the name of an object, as in `metadata.name`");
        return None;
    }
    Some(Reference { kind, name: text.to_owned(), optional })
}

fn read_key(cursor: &Cursor<'_>) -> Option<String> {
    let Some(key) = cursor.get("key") else {
        cursor.missing("key");
        return None;
    };
    let text = key.text()?;
    if !is_key(text) {
        key.invalid("must be a key: letters, digits, `-`, `_` or `.`");
        return None;
    }
    Some(text.to_owned())
}

/// Reads `envFrom`.
pub(super) fn read_env_from(list: &Cursor<'_>) -> Vec<EnvFrom> {
    let each = few(list).into_iter().filter_map(|entry| {
        entry.expect_fields(&ENV_FROM);
        let prefix = entry.get("prefix").map_or(Some(""), |prefix| {
            let text = prefix.text()?;
            if text.contains(['=', '\0']) {
                prefix.invalid("must be the beginning of a name, without `=`");
            }
            Some(text)
        });
        let fields = [("configMapRef", DataKind::ConfigMap), ("secretRef", DataKind::Secret)];
        let (kind, cursor) = one_of(&entry, fields)?;
        cursor.expect_fields(&REFERENCE);
        let of = read_reference(&cursor, kind, "name")?;
        Some(EnvFrom { of, prefix: prefix?.to_owned() })
    });
    each.collect()
}

/// Reads `volumes`, by name.
fn read_volumes(list: &Cursor<'_>) -> BTreeMap<String, Vec<Source>> {
    let mut volumes = BTreeMap::new();
    for volume in few(list) {
        volume.expect_fields(&VOLUME);
        if volume.get("name").is_none() {
            volume.missing("name");
        }
        let name = label(&volume, "name", 63);
        let sources = read_sources(&volume);
        let Some(name) = name else { continue };
        if volumes.insert(name.clone(), sources).is_some() {
            volume.invalid(format!("volume {name:?} is there twice"));
        }
    }
    volumes
}

fn read_sources(volume: &Cursor<'_>) -> Vec<Source> {
    let projected = volume.get("projected");
    let plain = [("configMap", DataKind::ConfigMap), ("secret", DataKind::Secret)];
    let given = plain.iter().filter(|(field, _)| volume.get(field).is_some()).count();
    let Some(projected) = projected else {
        if given == 0 {
            volume.invalid("must have one of configMap, secret, projected");
            return Vec::new();
        }
        let Some((kind, cursor)) = one_of(volume, plain) else { return Vec::new() };
        let (fields, name) = match kind {
            DataKind::ConfigMap => (&CONFIG_MAP, "name"),
            DataKind::Secret => (&SECRET, "secretName"),
        };
        cursor.expect_fields(fields);
        let mode = read_mode(&cursor, "defaultMode").unwrap_or(MODE);
        return read_source(&cursor, (kind, name), mode).into_iter().collect();
    };
    if given > 0 {
        volume.invalid("must have exactly one of configMap, secret, projected");
    }
    projected.expect_fields(&PROJECTED);
    let mode = read_mode(&projected, "defaultMode").unwrap_or(MODE);
    let Some(sources) = projected.get("sources") else {
        projected.missing("sources");
        return Vec::new();
    };
    let each = few(&sources).into_iter().filter_map(|source| {
        source.expect_fields(&PROJECTION);
        let (kind, cursor) = one_of(&source, plain)?;
        cursor.expect_fields(&PROJECTED_SOURCE);
        read_source(&cursor, (kind, "name"), mode)
    });
    each.collect()
}

fn read_source(cursor: &Cursor<'_>, (kind, name): (DataKind, &str), mode: u32) -> Option<Source> {
    let items = cursor.get("items").map(|items| read_items(&items)).unwrap_or_default();
    let of = read_reference(cursor, kind, name)?;
    Some(Source { of, items, mode })
}

fn read_items(list: &Cursor<'_>) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for entry in few(list) {
        entry.expect_fields(&ITEM);
        let (key, mode) = (read_key(&entry), read_mode(&entry, "mode"));
        let Some(path) = entry.get("path") else {
            entry.missing("path");
            continue;
        };
        let (Some(key), Some(text)) = (key, path.text()) else { continue };
        if !is_relative(text) {
            path.invalid("must be a path below the volume, without `.` and `..`");
        } else if items.iter().any(|other| clash(&other.path, text)) {
            path.invalid(format!("{text:?} is in the way of another item's path"));
        } else {
            items.push(Item { key, path: text.to_owned(), mode });
        }
    }
    items
}

/// Whether two files cannot both be there.
fn clash(one: &str, two: &str) -> bool {
    let above = |a: &str, b: &str| b.strip_prefix(a).is_some_and(|rest| rest.starts_with('/'));
    one == two || above(one, two) || above(two, one)
}

fn is_relative(path: &str) -> bool {
    let fine = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path.len() <= 1024 && path.split('/').all(fine) && !path.starts_with("..")
}

fn read_mode(cursor: &Cursor<'_>, field: &str) -> Option<u32> {
    let mode = cursor.get(field)?;
    mode.whole(0..=0o777)
}

/// Reads `volumeMounts` of the container with the `volumes` that they name.
pub(super) fn read_mounts(container: &Cursor<'_>, spec: &Cursor<'_>) -> Vec<Mount> {
    let list = spec.get("volumes");
    let mut volumes: BTreeMap<String, (Vec<Source>, bool)> = BTreeMap::new();
    if let Some(list) = &list {
        volumes.extend(read_volumes(list).into_iter().map(|(name, of)| (name, (of, false))));
    }
    let mut mounts: Vec<Mount> = Vec::new();
    let listed = container.get("volumeMounts").map(|list| few(&list)).unwrap_or_default();
    for entry in listed {
        entry.expect_fields(&MOUNT);
        if let Some(read_only) = entry.get("readOnly") {
            read_only.boolean();
        }
        let path = read_mount_path(&entry);
        let Some(name) = entry.get("name") else {
            entry.missing("name");
            continue;
        };
        let Some(text) = name.text() else { continue };
        let Some((sources, mounted)) = volumes.get_mut(text) else {
            name.invalid(format!("volumeMount has no matching volume, {text:?}"));
            continue;
        };
        *mounted = true;
        let Some(path) = path else { continue };
        if mounts.iter().any(|other| other.path == path) {
            entry.invalid(format!("something is mounted at {path} already"));
            continue;
        }
        mounts.push(Mount { path, sources: sources.clone() });
    }
    for (name, (_, mounted)) in &volumes {
        if let Some(list) = list.as_ref().filter(|_| !*mounted) {
            list.invalid(format!("volume with name {name:?} not mounted"));
        }
    }
    mounts
}

fn read_mount_path(entry: &Cursor<'_>) -> Option<String> {
    let Some(path) = entry.get("mountPath") else {
        entry.missing("mountPath");
        return None;
    };
    let text = path.text()?;
    let trimmed = text.trim_end_matches('/');
    let relative = trimmed.strip_prefix('/');
    if !relative.is_some_and(is_relative) && text != "/" {
        path.invalid("must be an absolute path without `.` and `..`");
        return None;
    }
    let ours = ["/dev/", "/proc/", "/sys/", "/.vhive"];
    let reserved = trimmed.is_empty() || RESERVED.contains(&trimmed);
    if reserved || ours.iter().any(|ours| trimmed.starts_with(ours)) {
        path.invalid(format!("mountPath {text:?} is a reserved path"));
        return None;
    }
    Some(trimmed.to_owned())
}

/// The variables whose values are in the document.
pub(super) fn literals(variables: &[Variable]) -> Vec<(String, String)> {
    let each = variables.iter().filter_map(|variable| match &variable.value {
        VariableValue::Literal(text) => Some((variable.name.clone(), text.clone())),
        VariableValue::Key(..) => None,
    });
    each.collect()
}

/// Whether any value is elsewhere.
pub(super) fn any_elsewhere(variables: &[Variable]) -> bool {
    variables.iter().any(|variable| matches!(variable.value, VariableValue::Key(..)))
}

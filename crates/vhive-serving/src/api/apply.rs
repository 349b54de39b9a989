//! Server-side apply: each manager owns the fields that it has applied. Pure.
//!
//! Lists and empty objects are owned as a whole, as custom resources of Knative have them. Only
//! managers that apply own anything; what is written by PUT or a patch belongs to nobody.
//!
//! # Source
//! Kubernetes, "Server-Side Apply"; `FieldsV1` in its API reference.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Fields of which others say something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflicts(pub(super) Vec<(String, String)>);

/// A field: the names on the way to it.
type Path = Vec<String>;

/// What is never owned, because it says which object is meant.
const IDENTITY: [&[&str]; 8] = [
    &["apiVersion"],
    &["kind"],
    &["status"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "managedFields"],
];

/// One manager with its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    manager: String,
    fields: BTreeSet<Path>,
}

/// The object and its `managedFields` after `manager` has applied `wanted` to `live`.
///
/// # Errors
/// [`Conflicts`] with fields of others that would change, unless `force`.
pub(super) fn apply(
    live: Option<&Value>,
    wanted: &Value,
    manager: &str,
    force: bool,
    now: &str,
) -> Result<(Value, Value), Conflicts> {
    let mut owners = read(live.and_then(|live| live.pointer("/metadata/managedFields")));
    let fields = leaves(wanted);
    let mut object = live.cloned().unwrap_or_else(|| json!({}));
    let mut conflicts = Vec::new();
    for owner in owners.iter_mut().filter(|owner| owner.manager != manager) {
        for field in &fields {
            // Also if one of the two owns a part of what the other owns as a whole.
            let theirs = owner.fields.iter().find(|theirs| overlap(theirs, field));
            let Some(theirs) = theirs.cloned() else { continue };
            if theirs == *field && get(&object, field) == get(wanted, field) {
                continue;
            }
            if force {
                owner.fields.remove(&theirs);
            } else {
                conflicts.push((owner.manager.clone(), field.join(".")));
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(Conflicts(conflicts));
    }
    let before = owners.iter().find(|owner| owner.manager == manager);
    let before = before.map(|owner| owner.fields.clone()).unwrap_or_default();
    owners.retain(|owner| owner.manager != manager && !owner.fields.is_empty());
    for field in before.difference(&fields) {
        let others = owners.iter().any(|owner| owner.fields.iter().any(|f| overlap(f, field)));
        let mine = fields.iter().any(|kept| overlap(kept, field));
        if !others && !mine {
            remove(&mut object, field);
        }
    }
    for field in &fields {
        if let Some(value) = get(wanted, field) {
            set(&mut object, field, value.clone());
        }
    }
    for path in &IDENTITY {
        let path: Path = path.iter().map(|part| (*part).to_owned()).collect();
        if let Some(value) = get(wanted, &path).filter(|_| path[0] != "status") {
            set(&mut object, &path, value.clone());
        }
    }
    owners.push(Owner { manager: manager.to_owned(), fields });
    owners.sort_by(|one, two| one.manager.cmp(&two.manager));
    let managed = owners.iter().filter(|owner| !owner.fields.is_empty()).map(|owner| {
        json!({
            "manager": owner.manager,
            "operation": "Apply",
            "apiVersion": wanted.get("apiVersion"),
            "time": now,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree(&owner.fields),
        })
    });
    Ok((object, Value::Array(managed.collect())))
}

/// Whether one path leads to the other.
fn overlap(one: &[String], two: &[String]) -> bool {
    one.iter().zip(two).all(|(a, b)| a == b)
}

/// The paths to everything that is not an object, and to empty objects.
fn leaves(value: &Value) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    collect(value, &mut Vec::new(), &mut found);
    found.retain(|path| {
        let mut known = IDENTITY.iter();
        !known.any(|identity| {
            path.iter().zip(identity.iter()).all(|(a, b)| a == b) && path.len() >= identity.len()
        })
    });
    found
}

fn collect(value: &Value, path: &mut Path, found: &mut BTreeSet<Path>) {
    match value.as_object().filter(|object| !object.is_empty()) {
        Some(object) => {
            for (name, value) in object {
                path.push(name.clone());
                collect(value, path, found);
                path.pop();
            }
        }
        None if path.is_empty() => {}
        None => _ = found.insert(path.clone()),
    }
}

fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |at, part| at.get(part))
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let mut at = object;
    for part in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[part];
    }
    *at = value;
}

/// Removes a field, and the objects around it that are empty then.
fn remove(object: &mut Value, path: &[String]) {
    let Some((last, rest)) = path.split_last() else { return };
    let parent = rest.iter().try_fold(&mut *object, |at, part| at.get_mut(part));
    let Some(parent) = parent.and_then(Value::as_object_mut) else { return };
    parent.remove(last);
    if parent.is_empty() && rest.len() > 1 {
        remove(object, rest);
    }
}

fn tree(fields: &BTreeSet<Path>) -> Value {
    let mut tree = json!({});
    for field in fields {
        let path: Path = field.iter().map(|part| format!("f:{part}")).collect();
        set(&mut tree, &path, json!({}));
    }
    tree
}

/// Reads `managedFields`; entries that are not ours own nothing.
fn read(managed: Option<&Value>) -> Vec<Owner> {
    let entries = managed.and_then(Value::as_array).into_iter().flatten();
    let owners = entries.filter_map(|entry| {
        let manager = entry.get("manager")?.as_str()?.to_owned();
        let mut found = BTreeSet::new();
        collect(entry.get("fieldsV1")?, &mut Vec::new(), &mut found);
        let plain = |path: Path| -> Option<Path> {
            path.iter().map(|part| part.strip_prefix("f:").map(str::to_owned)).collect()
        };
        (entry.get("operation")? == "Apply")
            .then(|| Owner { manager, fields: found.into_iter().filter_map(plain).collect() })
    });
    owners.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by(
        live: Option<&Value>,
        wanted: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, Conflicts> {
        let (mut object, managed) = apply(live, wanted, manager, force, "now")?;
        object["metadata"]["managedFields"] = managed;
        Ok(object)
    }

    #[test]
    fn what_a_manager_no_longer_applies_goes() {
        let one = json!({"kind": "K", "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}, "spec": {"list": [1, 2], "deep": {"z": 1}}});
        let made = by(None, &one, "me", false).unwrap();
        let two = json!({"kind": "K", "metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"list": [3]}});
        let made = by(Some(&made), &two, "me", false).unwrap();
        assert_eq!(made["metadata"]["labels"], json!({"x": "1"}));
        assert_eq!(made["spec"], json!({"list": [3]}));
        assert_eq!(
            made["metadata"]["managedFields"][0]["fieldsV1"],
            json!({
                "f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:list": {}},
            })
        );
    }

    #[test]
    fn another_managers_field_is_a_conflict_unless_forced_or_equal() {
        let mine = json!({"spec": {"a": 1, "b": 1}});
        let made = by(None, &mine, "me", false).unwrap();
        let theirs = json!({"spec": {"a": 2}});
        let refused = by(Some(&made), &theirs, "you", false).unwrap_err();
        assert_eq!(refused, Conflicts(vec![("me".to_owned(), "spec.a".to_owned())]));
        let same = by(Some(&made), &json!({"spec": {"a": 1}}), "you", false).unwrap();
        assert_eq!(same["metadata"]["managedFields"].as_array().map(Vec::len), Some(2));
        let forced = by(Some(&made), &theirs, "you", true).unwrap();
        assert_eq!(forced["spec"], json!({"a": 2, "b": 1}));
        let owner = &forced["metadata"]["managedFields"][0];
        assert_eq!(
            (&owner["manager"], &owner["fieldsV1"]),
            (&json!("me"), &json!({"f:spec": {"f:b": {}}}))
        );
        // Shared fields stay when one of the two lets go.
        let left = by(Some(&same), &json!({"spec": {"b": 1}}), "me", false).unwrap();
        assert_eq!(left["spec"], json!({"a": 1, "b": 1}));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!([1])), Just(json!(null))];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn what_is_applied_is_there(live in value(), wanted in value()) {
            let (live, wanted) = (json!({"spec": live}), json!({"spec": wanted}));
            let made = by(Some(&live), &wanted, "me", true).unwrap();
            for path in leaves(&wanted) {
                prop_assert_eq!(get(&made, &path), get(&wanted, &path));
            }
            // Applying the same again changes nothing.
            let again = by(Some(&made), &wanted, "me", false).unwrap();
            prop_assert_eq!(again, made);
        }
    }
}

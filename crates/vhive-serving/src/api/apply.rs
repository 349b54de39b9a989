//! Who owns which fields: each manager those that it has applied, and those that it has changed in
//! another way. Pure.
//!
//! Lists and empty objects are owned as a whole, as custom resources of Knative have them. A field
//! of another manager cannot be applied with another value, unless by force; whoever changes it by
//! PUT or a patch takes it over.
//!
//! # Source
//! Kubernetes, "Server-Side Apply"; `FieldsV1` in its API reference.

use std::collections::BTreeSet;
use std::ops::Bound;

use serde_json::{Map, Value, json};

/// Fields of which others say something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflicts(pub(super) Vec<(String, String)>);

/// A field: the names on the way to it.
type Path = Vec<String>;

/// What is never owned, because it says which object is meant.
const IDENTITY: [&[&str]; 11] = [
    &["apiVersion"],
    &["kind"],
    &["status"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "managedFields"],
    &["metadata", "generation"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
];

/// By what a manager has come to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Update,
}

impl Operation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One manager with its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    manager: String,
    operation: Operation,
    fields: BTreeSet<Path>,
}

impl Owner {
    fn is(&self, manager: &str, operation: Operation) -> bool {
        self.manager == manager && self.operation == operation
    }
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
    let mut owners = read(live.and_then(|live| live.pointer(MANAGED)));
    forget(&mut owners, manager, Operation::Apply);
    let fields = leaves(wanted);
    let mut object = live.cloned().unwrap_or_else(|| json!({}));
    let mut conflicts = Vec::new();
    for owner in owners.iter_mut().filter(|owner| !owner.is(manager, Operation::Apply)) {
        for field in &fields {
            // Also if one of the two owns a part of what the other owns as a whole.
            while let Some(theirs) = overlapping(&owner.fields, field) {
                if theirs == field && get(&object, field) == get(wanted, field) {
                    break;
                }
                let theirs = theirs.clone();
                if !force {
                    if conflicts.len() < MOST_CONFLICTS {
                        conflicts.push((owner.manager.clone(), field.join(".")));
                    }
                    break;
                }
                owner.fields.remove(&theirs);
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(Conflicts(conflicts));
    }
    let before = owners.iter().find(|owner| owner.is(manager, Operation::Apply));
    let before = before.map(|owner| owner.fields.clone()).unwrap_or_default();
    owners.retain(|owner| !owner.is(manager, Operation::Apply));
    for field in before.difference(&fields) {
        let others = owners.iter().any(|owner| overlapping(&owner.fields, field).is_some());
        if !others && overlapping(&fields, field).is_none() {
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
    let operation = Operation::Apply;
    owners.push(Owner { manager: manager.to_owned(), operation, fields });
    Ok((object, write(owners, wanted, now)))
}

/// The `managedFields` after `manager` has made `new` of `live` by PUT, POST or a patch. If `new` says
/// itself who owns what, that is where it begins.
pub(super) fn update(live: Option<&Value>, new: &Value, manager: &str, now: &str) -> Value {
    let said = new.pointer(MANAGED).filter(|said| said.as_array().is_some_and(|a| !a.is_empty()));
    let mut owners = read(said.or_else(|| live.and_then(|live| live.pointer(MANAGED))));
    forget(&mut owners, manager, Operation::Update);
    let mut changed = leaves(new);
    changed.retain(|field| live.and_then(|live| get(live, field)) != get(new, field));
    for owner in &mut owners {
        owner
            .fields
            .retain(|field| get(new, field).is_some() && overlapping(&changed, field).is_none());
    }
    match owners.iter_mut().find(|owner| owner.is(manager, Operation::Update)) {
        Some(owner) => owner.fields.extend(changed),
        None => {
            let operation = Operation::Update;
            owners.push(Owner { manager: manager.to_owned(), operation, fields: changed });
        }
    }
    write(owners, new, now)
}

/// Owners of one object; a further one has another forgotten. Kubernetes merges old ones likewise.
const MOST_OWNERS: usize = 64;

/// Conflicts that are told.
const MOST_CONFLICTS: usize = 100;

/// Bytes that the names on the ways to all fields may take together.
const MOST_NAMED: usize = 8 << 20;

/// Makes room for a manager.
fn forget(owners: &mut Vec<Owner>, manager: &str, operation: Operation) {
    while owners.len() >= MOST_OWNERS && !owners.iter().any(|owner| owner.is(manager, operation)) {
        owners.remove(0);
    }
}

/// Whether an object's fields can be told apart: it is not too deep, and their names not too long.
pub(super) fn is_tellable(object: &Value) -> bool {
    let (mut left, mut named) = (vec![(object, 0_usize, 0_usize)], 0_usize);
    while let Some((value, depth, way)) = left.pop() {
        if depth > crate::admission::DEEPEST {
            return false;
        }
        match value {
            Value::Array(list) => left.extend(list.iter().map(|one| (one, depth + 1, 0))),
            Value::Object(map) => {
                let each = map.iter();
                left.extend(each.map(|(name, value)| (value, depth + 1, way + name.len() + 32)));
            }
            _ => {}
        }
        named = named.saturating_add(way);
        if named > MOST_NAMED {
            return false;
        }
    }
    true
}

/// Where an object says who owns what.
const MANAGED: &str = "/metadata/managedFields";

fn write(mut owners: Vec<Owner>, object: &Value, now: &str) -> Value {
    owners.retain(|owner| !owner.fields.is_empty());
    owners.sort_by(|one, two| (&one.manager, one.operation).cmp(&(&two.manager, two.operation)));
    let managed = owners.iter().map(|owner| {
        json!({
            "manager": owner.manager,
            "operation": owner.operation.as_str(),
            "apiVersion": object.get("apiVersion"),
            "time": now,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree(&owner.fields),
        })
    });
    Value::Array(managed.collect())
}

/// One of the fields that leads to another one, or that the other leads to.
fn overlapping<'a>(fields: &'a BTreeSet<Path>, path: &[String]) -> Option<&'a Path> {
    let mut above = (1..path.len()).filter_map(|length| fields.get(&path[..length]));
    above.next().or_else(|| {
        // What a field leads to stands right behind it.
        let mut from = fields.range::<[String], _>((Bound::Included(path), Bound::Unbounded));
        from.next().filter(|field| field.starts_with(path))
    })
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
    let entries = managed.and_then(Value::as_array).into_iter().flatten().take(MOST_OWNERS);
    let owners = entries.filter_map(|entry| {
        let manager = entry.get("manager")?.as_str()?.to_owned();
        let mut found = BTreeSet::new();
        collect(entry.get("fieldsV1")?, &mut Vec::new(), &mut found);
        let plain = |path: Path| -> Option<Path> {
            path.iter().map(|part| part.strip_prefix("f:").map(str::to_owned)).collect()
        };
        let operation = match entry.get("operation")?.as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let fields = found.into_iter().filter_map(plain).collect();
        Some(Owner { manager, operation, fields })
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
    fn what_would_take_too_much_to_tell_is_not_told() {
        let long = "k".repeat(1 << 20);
        let children: Map<String, Value> = (0..20).map(|n| (n.to_string(), json!(0))).collect();
        let wide = json!({ long: children });
        assert!(!is_tellable(&wide), "20 fields of a megabyte each");
        let mut deep = json!(0);
        for _ in 0..=crate::admission::DEEPEST {
            deep = json!({ "": deep });
        }
        assert!(!is_tellable(&deep));
        let data: Map<String, Value> =
            (0..20_000).map(|n| (format!("key-{n}"), json!("v"))).collect();
        assert!(is_tellable(&json!({"metadata": {"name": "a"}, "data": data})));
    }

    #[test]
    fn owners_are_as_many_as_are_kept() {
        let mut object = json!({"spec": {"a": 1}});
        for number in 0..2 * MOST_OWNERS {
            let wanted = json!({"spec": {"a": 1}});
            object = by(Some(&object), &wanted, &format!("m{number}"), false).unwrap();
        }
        let owners = object.pointer(MANAGED).unwrap().as_array().unwrap();
        assert_eq!(owners.len(), MOST_OWNERS);
        assert!(owners.iter().any(|owner| owner["manager"] == "m127"), "{owners:?}");
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

    fn put(live: Option<&Value>, new: &Value, manager: &str) -> Value {
        let mut object = new.clone();
        let managed = update(live, new, manager, "now");
        object["metadata"]["managedFields"] = managed;
        object
    }

    #[test]
    fn who_changes_a_field_in_another_way_owns_it_too() {
        let made = put(None, &json!({"kind": "K", "spec": {"a": 1, "b": 1, "c": 1}}), "maker");
        let mut next = made.clone();
        next["spec"]["b"] = json!(2);
        let changed = put(Some(&made), &next, "changer");
        let owners: Vec<(&Value, &Value, &Value)> = changed["metadata"]["managedFields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (&entry["manager"], &entry["operation"], &entry["fieldsV1"]["f:spec"]))
            .collect();
        let wanted = [
            (&json!("changer"), &json!("Update"), &json!({"f:b": {}})),
            (&json!("maker"), &json!("Update"), &json!({"f:a": {}, "f:c": {}})),
        ];
        assert_eq!(owners, wanted);
        // Nothing has changed: nobody owns anything else.
        assert_eq!(put(Some(&changed), &changed, "other"), changed);
        let refused = by(Some(&changed), &json!({"spec": {"a": 1, "b": 3}}), "me", false);
        let conflict = ("changer".to_owned(), "spec.b".to_owned());
        assert_eq!(refused.unwrap_err(), Conflicts(vec![conflict]));
        // Another entry of one's own is another manager's.
        assert!(by(Some(&changed), &json!({"spec": {"b": 3}}), "changer", false).is_err());
        let forced = by(Some(&changed), &json!({"spec": {"b": 3}}), "me", true).unwrap();
        let managers = |object: &Value| -> Vec<Value> {
            let all = object["metadata"]["managedFields"].as_array().unwrap().iter();
            all.map(|entry| entry["manager"].clone()).collect()
        };
        assert_eq!(managers(&forced), ["maker", "me"]);
        // What is gone is nobody's.
        let mut left = forced.clone();
        left["spec"] = json!({"a": 1});
        assert_eq!(managers(&put(Some(&forced), &left, "me")), ["maker"]);
        // Who says who owns what is believed, as clients do that go over to apply.
        left["metadata"]["managedFields"] =
            json!([{"manager": "x", "operation": "Apply", "fieldsV1": {"f:spec": {"f:a": {}}}}]);
        assert_eq!(managers(&put(Some(&forced), &left, "me")), ["x"]);
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
        fn overlaps_are_found(
            fields in prop::collection::btree_set(prop::collection::vec("[ab]", 1..4), 0..8),
            path in prop::collection::vec("[ab]", 1..4),
        ) {
            let wanted = fields.iter().any(|field| field.iter().zip(&path).all(|(a, b)| a == b));
            let found = overlapping(&fields, &path);
            prop_assert_eq!(found.is_some(), wanted);
            prop_assert!(found.is_none_or(|found| fields.contains(found)));
        }

        #[test]
        fn after_a_change_every_field_has_at_most_one_owner_of_changes(
            one in value(), two in value(),
        ) {
            let made = put(None, &json!({"spec": one}), "one");
            let mut next = made.clone();
            next["spec"] = two;
            let changed = put(Some(&made), &next, "two");
            let owners = read(changed.pointer(MANAGED));
            for field in leaves(&changed) {
                let owned = owners.iter().filter(|owner| overlapping(&owner.fields, &field).is_some());
                prop_assert!(owned.count() <= 1, "{field:?} in {changed}");
            }
        }

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

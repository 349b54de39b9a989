//! Patches: merge, strategic merge, JSON patch, server-side apply.
//!
//! # Source
//! RFC 7396; RFC 6902; Kubernetes, "Update API objects in place using kubectl patch" and
//! `apimachinery/pkg/util/strategicpatch`, its directives.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use super::document::{media_type, parse};
use super::status::Problem;
use super::write::{Request, edit, server_side_apply};
use crate::inputs::DataKind;
use crate::kind::Kind;

use axum::response::Response;

/// Operations in a JSON patch.
const MOST_OPERATIONS: usize = 1000;

/// Values in an object that copies have been made in.
const MOST_VALUES: usize = 20_000;

/// Bytes of text in such an object.
const MOST_BYTES: usize = 8 << 20;

/// Patches an object by whatever form the body has.
pub(super) async fn apply_patch(request: &Request<'_>, body: &Bytes) -> Result<Response, Problem> {
    let headers = &request.call.headers;
    match media_type(headers) {
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            server_side_apply(request, body).await
        }
        "application/strategic-merge-patch+json" if has_strategic(request.kind) => {
            let patch = parse(headers, body)?;
            edit(request, |object| {
                strategic(object, &patch, 0).map_err(Problem::bad_request)?;
                Ok(patch.pointer("/metadata/resourceVersion").is_some())
            })
            .await
        }
        "application/merge-patch+json" => {
            let patch = parse(headers, body)?;
            edit(request, |object| {
                json_patch::merge(object, &patch);
                Ok(patch.pointer("/metadata/resourceVersion").is_some())
            })
            .await
        }
        "application/json-patch+json" => {
            let unreadable =
                |error| Problem::bad_request(format!("body is no JSON patch: {error}"));
            let patch: json_patch::Patch = serde_json::from_slice(body).map_err(unreadable)?;
            if patch.0.len() > MOST_OPERATIONS {
                let message = format!("the patch has more than {MOST_OPERATIONS} operations");
                return Err(Problem::bad_request(message));
            }
            edit(request, |object| operate(object, &patch).map(|()| false)).await
        }
        other => {
            let message = format!(
                "the body of the request was in an unknown format - {other:?}: accepted media \
                 types include application/json-patch+json, application/merge-patch+json, \
                 application/apply-patch+yaml"
            );
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(Problem::new(status, "UnsupportedMediaType", message))
        }
    }
}

/// Whether strategic merge patches are defined for a kind: for the core's, not for custom resources.
fn has_strategic(kind: Kind) -> bool {
    DataKind::of(kind).is_some() || kind == Kind::Namespace
}

fn operate(object: &mut Value, patch: &json_patch::Patch) -> Result<(), Problem> {
    let unfit = |error: &dyn std::fmt::Display| {
        let message = format!("the patch cannot be applied: {error}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    };
    for operation in &patch.0 {
        let applied = json_patch::patch(object, std::slice::from_ref(operation));
        applied.map_err(|error| unfit(&error))?;
        // A copy may double what there is, in number and in depth; whatever is put below something
        // else is deeper than it was.
        let fits = match operation {
            json_patch::PatchOperation::Copy(_) => is_moderate(object, 0),
            json_patch::PatchOperation::Test(_) | json_patch::PatchOperation::Remove(_) => true,
            other => {
                let path = other.path();
                let put = object.pointer(path.as_str()).unwrap_or(object);
                is_moderate(put, path.count())
            }
        };
        if !fits {
            return Err(unfit(&"it makes the object too large or too deep"));
        }
    }
    Ok(())
}

/// Whether what is so deep in an object is no larger and no deeper than any that is meant.
fn is_moderate(object: &Value, depth: usize) -> bool {
    let (mut left, mut seen, mut bytes) = (vec![(object, depth)], 0, 0);
    while let Some((value, depth)) = left.pop() {
        seen += 1;
        if seen > MOST_VALUES || bytes > MOST_BYTES || depth > crate::admission::DEEPEST {
            return false;
        }
        match value {
            Value::Array(list) => left.extend(list.iter().map(|one| (one, depth + 1))),
            Value::Object(map) => {
                bytes += map.keys().map(String::len).sum::<usize>();
                left.extend(map.values().map(|one| (one, depth + 1)));
            }
            Value::String(text) => bytes += text.len(),
            _ => {}
        }
    }
    true
}

/// A strategic merge patch. Lists are replaced: none of those that these kinds have is merged
/// otherwise, and none of those can be set.
///
/// # Errors
/// A directive that is none.
fn strategic(target: &mut Value, patch: &Value, depth: usize) -> Result<(), String> {
    if depth > crate::admission::DEEPEST {
        return Err("the patch is nested too deep".to_owned());
    }
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    match patch.get("$patch").map(|directive| (directive, directive.as_str())) {
        None | Some((_, Some("merge"))) => {}
        Some((_, Some("replace"))) => map.clear(),
        Some((_, Some("delete"))) => {
            map.clear();
            return Ok(());
        }
        Some((other, _)) => {
            return Err(format!("$patch is {other}, it can be replace, delete or merge"));
        }
    }
    for (name, value) in patch {
        match name.as_str() {
            "$patch" => {}
            "$retainKeys" => {
                let kept = value.as_array().ok_or("$retainKeys must be a list")?;
                map.retain(|name, _| kept.iter().any(|one| one == name));
            }
            // An order of a list that is not there, or is replaced as a whole.
            _ if name.starts_with("$setElementOrder/") => {}
            _ if name.starts_with("$deleteFromPrimitiveList/") => {
                let of = name.split_once('/').map_or("", |(_, of)| of);
                let gone = value.as_array().ok_or_else(|| format!("{name} must be a list"))?;
                if let Some(list) = map.get_mut(of).and_then(Value::as_array_mut) {
                    list.retain(|one| !gone.contains(one));
                }
            }
            _ if name.starts_with('$') => return Err(format!("{name} is no directive")),
            _ if value.is_null() => _ = map.remove(name),
            _ => strategic(map.entry(name.as_str()).or_insert(Value::Null), value, depth + 1)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(patch: &Value) -> Result<Value, String> {
        let mut target = json!({"data": {"a": "1", "b": "2"}, "list": ["x", "y"]});
        strategic(&mut target, patch, 0).map(|()| target)
    }

    #[test]
    fn directives_say_what_becomes_of_a_map() {
        let list = json!(["x", "y"]);
        for (patch, data) in [
            (json!({"data": {"a": null, "c": "3"}}), json!({"b": "2", "c": "3"})),
            (json!({"data": {"$patch": "merge", "a": "0"}}), json!({"a": "0", "b": "2"})),
            (json!({"data": {"$patch": "replace", "c": "3"}}), json!({"c": "3"})),
            (json!({"data": {"$patch": "delete", "c": "3"}}), json!({})),
            (json!({"data": {"$retainKeys": ["b", "c"], "c": "3"}}), json!({"b": "2", "c": "3"})),
            (json!({"$setElementOrder/list": ["y", "x"]}), json!({"a": "1", "b": "2"})),
        ] {
            assert_eq!(patched(&patch).unwrap(), json!({"data": data, "list": list}), "{patch}");
        }
        let gone = json!({"$deleteFromPrimitiveList/list": ["x", "z"]});
        assert_eq!(patched(&gone).unwrap()["list"], json!(["y"]));
        for bad in [
            json!({"$patch": "mend"}),
            json!({"$patch": 1}),
            json!({"data": {"$retainKeys": "b"}}),
            json!({"data": {"$other": []}}),
            json!({"$deleteFromPrimitiveList/list": "x"}),
        ] {
            assert!(patched(&bad).is_err(), "{bad}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!([1])), Just(Value::Null)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn without_directives_it_is_a_merge_patch(target in value(), patch in value()) {
            let (target, patch) = (json!({"data": target}), json!({"data": patch}));
            let (mut one, mut two) = (target.clone(), target);
            strategic(&mut one, &patch, 0).unwrap();
            json_patch::merge(&mut two, &patch);
            prop_assert_eq!(one, two);
        }
    }
}

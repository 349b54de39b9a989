//! Whatever comes: no panic, and each refusal names its field.

use proptest::prelude::*;

use super::super::data::{is_key, is_subdomain};
use super::*;
use crate::inputs::DataKind;

/// Names that mean something somewhere.
const NAMES: [&str; 44] = [
    "annotations",
    "apiVersion",
    "args",
    "binaryData",
    "command",
    "configMap",
    "configMapKeyRef",
    "configMapRef",
    "containerPort",
    "containers",
    "data",
    "defaultMode",
    "env",
    "envFrom",
    "exec",
    "grpc",
    "httpGet",
    "httpHeaders",
    "image",
    "immutable",
    "items",
    "key",
    "kind",
    "limits",
    "metadata",
    "mode",
    "mountPath",
    "name",
    "optional",
    "path",
    "percent",
    "port",
    "ports",
    "projected",
    "readinessProbe",
    "resources",
    "secret",
    "secretName",
    "sources",
    "spec",
    "stringData",
    "template",
    "valueFrom",
    "volumes",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[a-z0-9./-]{0,12}".prop_map(Value::from),
        Just(json!("serving.knative.dev/v1")),
        Just(json!("Service")),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        1 => ".{0,6}",
        3 => prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
    ];
    leaf().prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6).prop_map(Value::from_iter),
        ]
    })
}

/// A document with everything in it.
fn full() -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello", "namespace": "work", "labels": {"a": "b"}},
        "spec": {
            "template": {
                "metadata": {
                    "name": "hello-one",
                    "annotations": {"autoscaling.knative.dev/min-scale": "1"},
                },
                "spec": {
                    "containerConcurrency": 3,
                    "timeoutSeconds": 20,
                    "runtimeClassName": "qemu",
                    "volumes": [
                        {"name": "one", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
                        {"name": "two", "projected": {"sources": [{"secret": {"name": "s"}}]}},
                    ],
                    "containers": [{
                        "name": "user-container",
                        "image": "dev.local/hello",
                        "command": ["/bin/sh"],
                        "args": ["-c", "serve"],
                        "env": [
                            {"name": "A", "value": "1"},
                            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                        ],
                        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c", "optional": true}}],
                        "volumeMounts": [
                            {"name": "one", "mountPath": "/etc/one", "readOnly": true},
                            {"name": "two", "mountPath": "/etc/two"},
                        ],
                        "ports": [{"name": "h2c", "containerPort": 9000}],
                        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                        "readinessProbe": {"grpc": {"port": 9000}, "periodSeconds": 1},
                        "startupProbe": {"exec": {"command": ["true"]}, "failureThreshold": 3},
                    }],
                },
            },
            "traffic": [{"latestRevision": true, "percent": 90}, {"revisionName": "hello-00001", "percent": 10, "tag": "old"}],
        },
    })
}

/// Every place in a document.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(list) => {
            for (n, one) in list.iter().enumerate() {
                places(one, &format!("{at}/{n}"), found);
            }
        }
        Value::Object(map) => {
            for (name, one) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(one, &format!("{at}/{name}"), found);
            }
        }
        _ => {}
    }
}

/// Whether a path is one: names and indices from the root.
fn is_path(path: &str) -> bool {
    [
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "data",
        "binaryData",
        "stringData",
        "type",
        "immutable",
    ]
    .iter()
    .any(|root| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

fn expect_told(document: &Value, problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason: {document}");
    for problem in problems {
        // Only the document as a whole has no field, and an unknown field is named as it is.
        let whole = problem.path.is_empty() && !document.is_object();
        let deep = problem.reason.contains("deeper");
        let unknown = problem.kind == ProblemKind::Unknown;
        assert!(whole || deep || unknown || is_path(&problem.path), "{problem:?} of {document}");
        assert!(!problem.reason.is_empty());
    }
}

#[test]
fn the_full_document_is_accepted() {
    let admitted = check(&full()).unwrap();
    let inputs = admitted.template.inputs.expect("it has some");
    assert_eq!((inputs.from.len(), inputs.env.len(), inputs.mounts.len()), (1, 2, 2));
}

proptest! {
    #[test]
    fn any_document_is_admitted_or_refused_with_a_reason(document in any_json()) {
        if let Err(refused) = check(&document) {
            expect_told(&document, &refused.problems);
        }
    }

    #[test]
    fn any_spec_is_admitted_or_refused_with_a_reason(spec in any_json()) {
        let document = with("spec/template/spec", spec);
        if let Err(refused) = check(&document) {
            expect_told(&document, &refused.problems);
        }
    }

    #[test]
    fn a_document_with_anything_anywhere_is_admitted_or_refused_by_field(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let mut document = full();
        for (index, value) in changes {
            let mut found = Vec::new();
            places(&document, "", &mut found);
            let at = index.get(&found);
            *document.pointer_mut(at).unwrap() = value;
        }
        if let Err(refused) = check(&document) {
            expect_told(&document, &refused.problems);
        }
    }

    #[test]
    fn a_document_without_something_is_admitted_or_refused_by_field(index: prop::sample::Index) {
        let mut document = full();
        let mut found = Vec::new();
        places(&document, "", &mut found);
        let at = index.get(&found).clone();
        let Some((parent, name)) = at.rsplit_once('/') else { return Ok(()) };
        let name = name.replace("~1", "/").replace("~0", "~");
        match document.pointer_mut(parent).unwrap() {
            Value::Object(map) => _ = map.remove(&name),
            Value::Array(list) => _ = list.remove(name.parse().unwrap()),
            _ => {}
        }
        if let Err(refused) = check(&document) {
            expect_told(&document, &refused.problems);
        }
    }

    #[test]
    fn any_data_are_admitted_or_refused_by_field(data in any_json(), secret: bool) {
        let kind = if secret { DataKind::Secret } else { DataKind::ConfigMap };
        let document = json!({
            "apiVersion": "v1", "kind": kind.as_str(), "metadata": {"name": "a.b"},
            "data": data, "stringData": data,
        });
        match admit_data(&document, kind) {
            Ok(admitted) => {
                prop_assert!(admitted.data.keys().all(|key| is_key(key)));
                prop_assert!(is_subdomain(&admitted.head.name));
            }
            Err(problems) => expect_told(&document, &problems),
        }
        if let Err(problems) = admit_data(&data, kind) {
            expect_told(&data, &problems);
        }
    }

    #[test]
    fn any_text_is_documents_or_an_error(text in ".{0,200}") {
        let _ = documents(&text);
    }
}

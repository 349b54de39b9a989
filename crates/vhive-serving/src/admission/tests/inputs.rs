//! Config maps, secrets, and what services take from them; probes.

use vhive_api::guest::Content;

use super::*;
use crate::inputs::{DataKind, VariableValue};

const CONTAINER: &str = "spec.template.spec.containers[0]";

/// A document whose container and revision have these fields.
fn of(container: &Value, spec: &Value) -> Value {
    let mut document = minimal();
    for (name, value) in container.as_object().unwrap() {
        document["spec"]["template"]["spec"]["containers"][0][name] = value.clone();
    }
    for (name, value) in spec.as_object().unwrap() {
        document["spec"]["template"]["spec"][name] = value.clone();
    }
    document
}

#[test]
fn variables_and_files_of_elsewhere_are_understood() {
    let document = of(
        &json!({
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "my.map", "key": "a_b"}}},
            ],
            "envFrom": [{"secretRef": {"name": "s"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/etc/deep/"}],
        }),
        &json!({"volumes": [{"name": "v", "projected": {"defaultMode": 0o400, "sources": [
            {"configMap": {"name": "c", "items": [{"key": "k", "path": "x/y", "mode": 0o444}]}},
            {"secret": {"name": "s", "optional": true}},
        ]}}]}),
    );
    let template = check(&document).unwrap().template;
    assert_eq!(template.env, [("A".to_owned(), "1".to_owned())]);
    let inputs = template.inputs.unwrap();
    let VariableValue::Key(of, key) = &inputs.env[1].value else { panic!("{inputs:?}") };
    assert_eq!((of.kind, of.name.as_str(), key.as_str()), (DataKind::ConfigMap, "my.map", "a_b"));
    assert_eq!((inputs.from[0].of.kind, inputs.from[0].of.optional), (DataKind::Secret, false));
    let [mount] = inputs.mounts.as_slice() else { panic!("one: {inputs:?}") };
    assert_eq!((mount.path.as_str(), mount.sources.len()), ("/etc/deep", 2));
    assert_eq!((mount.sources[0].items[0].mode, mount.sources[1].mode), (Some(0o444), 0o400));
    assert!(mount.sources[1].of.optional);
    assert_eq!(check(&minimal()).unwrap().template.inputs, None);
}

#[test]
fn what_cannot_be_mounted_or_taken_is_refused_by_field() {
    let secret = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    let mount = |path: &str| json!({"volumeMounts": [{"name": "v", "mountPath": path}]});
    let env = |from: Value| json!({"env": [{"name": "A", "valueFrom": from}]});
    let table = [
        (mount("etc"), &secret, format!("{CONTAINER}.volumeMounts[0].mountPath")),
        (mount("/tmp"), &secret, format!("{CONTAINER}.volumeMounts[0].mountPath")),
        (mount("/proc/x"), &secret, format!("{CONTAINER}.volumeMounts[0].mountPath")),
        (mount("/"), &secret, format!("{CONTAINER}.volumeMounts[0].mountPath")),
        (mount("/a/../b"), &secret, format!("{CONTAINER}.volumeMounts[0].mountPath")),
        (mount("/a"), &json!([]), format!("{CONTAINER}.volumeMounts[0].name")),
        (json!({}), &secret, "spec.template.spec.volumes".to_owned()),
        (
            mount("/a"),
            &json!([{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "../x"}]}}]),
            "spec.template.spec.volumes[0].secret.items[0].path".to_owned(),
        ),
        (
            mount("/a"),
            &json!([{"name": "v", "secret": {"secretName": "s", "defaultMode": 512}}]),
            "spec.template.spec.volumes[0].secret.defaultMode".to_owned(),
        ),
        (
            mount("/a"),
            &json!([{"name": "v", "secret": {"name": "s"}}]),
            "spec.template.spec.volumes[0].secret.secretName".to_owned(),
        ),
        (mount("/a"), &json!([{"name": "v"}]), "spec.template.spec.volumes[0]".to_owned()),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "k"}]}),
            &secret,
            format!("{CONTAINER}.volumeMounts[0].subPath"),
        ),
        (
            env(json!({"secretKeyRef": {"name": "s"}})),
            &json!([]),
            format!("{CONTAINER}.env[0].valueFrom.secretKeyRef.key"),
        ),
        (env(json!({})), &json!([]), format!("{CONTAINER}.env[0].valueFrom")),
        (
            env(json!({"secretKeyRef": {"name": "S", "key": "k"}})),
            &json!([]),
            format!("{CONTAINER}.env[0].valueFrom.secretKeyRef.name"),
        ),
        (
            json!({"envFrom": [{"configMapRef": {"name": "c"}, "secretRef": {"name": "s"}}]}),
            &json!([]),
            format!("{CONTAINER}.envFrom[0]"),
        ),
    ];
    for (container, volumes, field) in table {
        let document = of(&container, &json!({"volumes": volumes}));
        let refused = check(&document).expect_err(&field);
        let found = refused.problems.iter().any(|problem| problem.path == field);
        assert!(found, "{field}: {refused}");
    }
}

#[test]
fn probes_of_every_kind_are_understood() {
    let template = |container: Value| check(&of(&container, &json!({}))).unwrap().template;
    let second = Duration::from_secs(1);
    let grpc = template(json!({"readinessProbe": {
        "grpc": {"port": 8080, "service": "shop"}, "periodSeconds": 5, "successThreshold": 2,
        "initialDelaySeconds": 3,
    }}));
    assert_eq!(grpc.readiness, Readiness::Grpc("shop".to_owned()));
    let wanted = ProbeTiming {
        initial_delay: second * 3,
        period: second * 5,
        timeout: second,
        successes: 2,
        // Kubernetes' default, as it goes on being asked.
        failures: 3,
    };
    assert_eq!(grpc.probe, wanted);
    let exec = template(json!({
        "readinessProbe": {"exec": {"command": ["cat", "/ready"]}},
        "startupProbe": {"httpGet": {"path": "/up"}, "failureThreshold": 30},
    }));
    assert_eq!(exec.readiness, Readiness::Exec(vec!["cat".to_owned(), "/ready".to_owned()]));
    assert!(exec.probe.is_default(), "no period: as soon as possible");
    let startup = exec.startup.unwrap();
    assert_eq!((startup.timing.period, startup.timing.timeout), (second * 10, second));
    assert_eq!(startup.timing.failures, 30);

    let sim = of(
        &json!({"readinessProbe": {"exec": {"command": ["x"]}}}),
        &json!({"runtimeClassName": "sim"}),
    );
    let refused = check(&sim).unwrap_err();
    assert_eq!(refused.problems[0].path, format!("{CONTAINER}.readinessProbe.exec"));
    assert!(refused.to_string().contains("runtime sim"), "{refused}");
    let two =
        of(&json!({"readinessProbe": {"grpc": {"port": 1}, "tcpSocket": {"port": 1}}}), &json!({}));
    assert!(check(&two).is_err());
}

fn secret(field: &str, value: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, field: value})
}

#[test]
fn secrets_and_config_maps_are_read_and_no_value_is_quoted() {
    let mut document = secret("data", &json!({"a": "aGVs\nbG8=", "b": null}));
    document["stringData"] = json!({"a": "over", "c": "plain"});
    let admitted = admit_data(&document, DataKind::Secret).unwrap();
    let text = |key: &str| admitted.data[key].clone();
    assert_eq!(text("a"), Content::Text("over".to_owned()));
    assert_eq!((text("b"), text("c")), (Content::of(Vec::new()), Content::of(b"plain".to_vec())));
    assert_eq!(admitted.class.as_deref(), Some("Opaque"));
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"},
        "data": {"a": "x"}, "binaryData": {"b": "/w=="},
    });
    let admitted = admit_data(&map, DataKind::ConfigMap).unwrap();
    assert_eq!(admitted.binary["b"].bytes().as_deref(), Some([0xff].as_slice()));

    let most = "x".repeat((1 << 20) + 1);
    for (document, field) in [
        (secret("data", &json!({"a": "hunter2!"})), "data[a]"),
        (secret("data", &json!({"a/b": ""})), "data[a/b]"),
        (secret("stringData", &json!({"..": ""})), "stringData[..]"),
        (secret("stringData", &json!({"a": 7})), "stringData[a]"),
        (secret("stringData", &json!({"a": most})), "stringData"),
        (secret("binaryData", &json!({"a": "eA=="})), "binaryData"),
    ] {
        let problems = admit_data(&document, DataKind::Secret).unwrap_err();
        assert_eq!(problems[0].path, field);
        assert!(!problems[0].to_string().contains("hunter2"), "{problems:?}");
    }
    let mut twice = map;
    twice["binaryData"] = json!({"a": "eA=="});
    assert_eq!(admit_data(&twice, DataKind::ConfigMap).unwrap_err()[0].path, "binaryData");
}

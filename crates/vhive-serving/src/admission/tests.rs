use std::time::Duration;

use serde_json::{Value, json};
use vhive_api::Span;

use super::*;

mod arbitrary;
mod calls;
mod eventing;
mod inputs;
mod marks;
mod nano;
mod scaling;

fn minimal() -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello"},
        "spec": {"template": {
            "metadata": {"annotations": {}},
            "spec": {"containers": [{"image": "dev.local/hello"}]},
        }},
    })
}

fn set(document: &mut Value, path: &str, value: Value) {
    let mut at = document;
    for step in path.split('/') {
        at = match step.parse::<usize>() {
            Ok(n) => &mut at[n],
            Err(_) => &mut at[step],
        };
    }
    *at = value;
}

fn with(path: &str, value: Value) -> Value {
    let mut document = minimal();
    set(&mut document, path, value);
    document
}

fn check(document: &Value) -> Result<Admitted, Invalid> {
    admit(document, &Config::default())
}

#[test]
fn the_least_document_gets_every_default() {
    let admitted = check(&minimal()).unwrap();
    assert_eq!(
        (admitted.head.namespace.as_str(), admitted.head.name.as_str()),
        ("default", "hello")
    );
    let template = admitted.template;
    assert_eq!((template.port, template.protocol), (8080, Protocol::Http1));
    assert_eq!(template.runtime, RuntimeName::Qemu);
    assert_eq!((template.cpu_millis, template.memory), (1000, Bytes::mib(256)));
    assert_eq!(template.timeout, Duration::from_secs(300));
    assert_eq!((template.container_concurrency, template.queue_depth), (0, 10_000));
    assert!((template.rules.target - 70.0).abs() < 1e-9);
    assert_eq!(template.rules.window, Span(Duration::from_secs(60)));
    assert_eq!(template.readiness, Readiness::Tcp);
}

#[test]
fn a_full_document_is_understood() {
    let yaml = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: pyaes
  namespace: work
  labels: {app: pyaes}
  annotations: {client.knative.dev/user-image: whatever}
  resourceVersion: "7"
  creationTimestamp: null
spec:
  template:
    metadata:
      creationTimestamp: null
      annotations:
        autoscaling.knative.dev/class: kpa.autoscaling.knative.dev
        autoscaling.knative.dev/metric: concurrency
        autoscaling.knative.dev/min-scale: "1"
        autoscaling.knative.dev/maxScale: "5"
        autoscaling.knative.dev/target: "10"
        autoscaling.knative.dev/target-utilization-percentage: "50"
        autoscaling.knative.dev/window: 1m30s
        autoscaling.knative.dev/scale-to-zero-pod-retention-period: 42s
        vhive.dev/queue-depth: "12"
        example.org/free: anything
    spec:
      runtimeClassName: gvisor
      containerConcurrency: 4
      timeoutSeconds: 20
      enableServiceLinks: false
      containers:
      - name: user-container
        image: ghcr.io/example/pyaes@sha256:0000000000000000000000000000000000000000000000000000000000000000
        command: [/bin/sh]
        args: [-c, serve]
        workingDir: /work
        env:
        - {name: A, value: "1"}
        - name: EMPTY
        ports: [{name: h2c, containerPort: 9000, protocol: TCP}]
        resources:
          requests: {cpu: 100m, memory: 64Mi}
          limits: {cpu: "1.5", memory: 512Mi}
        readinessProbe:
          successThreshold: 1
          httpGet: {path: /ready, port: 0, httpHeaders: [{name: X-A, value: b}]}
  traffic: [{latestRevision: true, percent: 100}]
"#;
    let documents = documents(yaml).unwrap();
    let admitted = check(&documents[0]).unwrap();
    assert_eq!((admitted.head.namespace.as_str(), admitted.head.name.as_str()), ("work", "pyaes"));
    assert_eq!(admitted.head.resource_version.as_deref(), Some("7"));
    let t = admitted.template;
    assert_eq!((t.runtime, t.container_concurrency), (RuntimeName::Runsc, 4));
    assert_eq!((t.cpu_millis, t.memory), (1500, Bytes::mib(512)));
    assert_eq!((t.port, t.protocol), (9000, Protocol::H2c));
    assert_eq!((t.rules.min, t.rules.max, t.queue_depth), (1, 5, 12));
    assert!((t.rules.target - 2.0).abs() < 1e-9, "min(10, 4) at 50 %");
    assert_eq!(t.rules.window, Span(Duration::from_secs(90)));
    assert_eq!(t.rules.retention, Span(Duration::from_secs(42)));
    assert_eq!(t.env, [("A".to_owned(), "1".to_owned()), ("EMPTY".to_owned(), String::new())]);
    let probe = vhive_api::HttpProbe {
        path: "/ready".to_owned(),
        headers: vec![("X-A".to_owned(), "b".to_owned())],
    };
    assert_eq!(t.readiness, Readiness::Http(probe));
}

/// A change of the least document, the path that must be named, and a word of the reason.
#[test]
fn each_refusal_names_its_field() {
    use ProblemKind::{Invalid, Missing, Unknown, Unsupported};
    let c = "spec/template/spec/containers/0";
    let container = |field: &str| format!("{c}/{field}");
    let table: Vec<(String, Value, &str, ProblemKind)> = vec![
        ("foo".into(), json!(1), "foo", Unknown),
        ("apiVersion".into(), json!("v2"), "apiVersion", Unsupported),
        ("kind".into(), json!("Pod"), "kind", Unsupported),
        ("metadata/colour".into(), json!("red"), "metadata.colour", Unknown),
        ("metadata/name".into(), json!("Hello"), "metadata.name", Invalid),
        ("metadata/name".into(), json!("-a"), "metadata.name", Invalid),
        ("metadata/name".into(), json!("a.b"), "metadata.name", Invalid),
        ("metadata/name".into(), json!("x".repeat(58)), "metadata.name", Invalid),
        ("metadata/name".into(), json!(5), "metadata.name", Invalid),
        ("metadata/name".into(), Value::Null, "metadata.name", Missing),
        ("metadata/labels".into(), json!({"a": 1}), "metadata.labels[a]", Invalid),
        ("metadata/labels".into(), json!({"a": "b c"}), "metadata.labels[a]", Invalid),
        ("metadata/labels".into(), json!({"a b": "c"}), "metadata.labels[a b]", Invalid),
        ("metadata/labels".into(), json!({"-/a": "c"}), "metadata.labels[-/a]", Invalid),
        ("metadata/annotations".into(), json!({"": "c"}), "metadata.annotations[]", Invalid),
        (
            "metadata/annotations".into(),
            json!({"a": "x".repeat(257 << 10)}),
            "metadata.annotations",
            Invalid,
        ),
        ("spec".into(), Value::Null, "spec", Missing),
        ("spec/template".into(), Value::Null, "spec.template", Missing),
        ("spec/template/spec".into(), json!(7), "spec.template.spec", Invalid),
        ("spec/traffic".into(), json!([{"percent": 50}]), "spec.traffic", Invalid),
        ("spec/traffic".into(), json!([{"percent": 101}]), "spec.traffic[0].percent", Invalid),
        (
            "spec/traffic".into(),
            json!([{"percent": 100, "tag": "a.b"}]),
            "spec.traffic[0].tag",
            Invalid,
        ),
        ("spec/traffic".into(), json!(vec![json!({"percent": 0}); 1001]), "spec.traffic", Invalid),
        (
            "spec/traffic".into(),
            json!([{"percent": 100, "tag": "x"}, {"tag": "x"}]),
            "spec.traffic",
            Invalid,
        ),
        (
            "spec/traffic".into(),
            json!([{"percent": 100, "latestRevision": false}]),
            "spec.traffic[0].revisionName",
            Missing,
        ),
        (
            "spec/traffic".into(),
            json!([{"percent": 100, "latestRevision": true, "revisionName": "hello-00001"}]),
            "spec.traffic[0].latestRevision",
            Invalid,
        ),
        (
            "spec/traffic".into(),
            json!([{"percent": 100, "configurationName": "hello"}]),
            "spec.traffic[0].configurationName",
            Unsupported,
        ),
        ("spec/template/metadata/name".into(), json!("x"), "spec.template.metadata.name", Invalid),
        (
            "spec/template/spec/responseStartTimeoutSeconds".into(),
            json!(301),
            "spec.template.spec.responseStartTimeoutSeconds",
            Invalid,
        ),
        (
            "spec/template/spec/idleTimeoutSeconds".into(),
            json!(301),
            "spec.template.spec.idleTimeoutSeconds",
            Invalid,
        ),
        (
            "spec/template/spec/volumes".into(),
            json!([{"name": "x", "emptyDir": {"medium": "Memory"}}]),
            "spec.template.spec.volumes[0].emptyDir",
            Unsupported,
        ),
        (
            "spec/template/spec/timeoutSeconds".into(),
            json!(601),
            "spec.template.spec.timeoutSeconds",
            Invalid,
        ),
        (
            "spec/template/spec/containerConcurrency".into(),
            json!(-1),
            "spec.template.spec.containerConcurrency",
            Invalid,
        ),
        (
            "spec/template/spec/runtimeClassName".into(),
            json!("wasm"),
            "spec.template.spec.runtimeClassName",
            Invalid,
        ),
        (
            "spec/template/spec/containers".into(),
            json!([]),
            "spec.template.spec.containers",
            Invalid,
        ),
        (
            "spec/template/spec/containers".into(),
            json!([{"image": "a"}, {"image": "b"}]),
            "spec.template.spec.containers",
            Unsupported,
        ),
        (container("image"), Value::Null, "spec.template.spec.containers[0].image", Missing),
        (container("image"), json!(""), "spec.template.spec.containers[0].image", Invalid),
        (container("foo"), json!(1), "spec.template.spec.containers[0].foo", Unknown),
        (
            container("livenessProbe"),
            json!({"exec": {"command": ["x"]}}),
            "spec.template.spec.containers[0].livenessProbe.exec",
            Unsupported,
        ),
        (
            container("env"),
            json!([{"name": "PORT", "value": "1"}]),
            "spec.template.spec.containers[0].env[0].name",
            Invalid,
        ),
        (
            container("env"),
            json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]),
            "spec.template.spec.containers[0].env[0].valueFrom.fieldRef",
            Unsupported,
        ),
        (
            container("env"),
            json!([{"name": "A"}, {"name": "A"}]),
            "spec.template.spec.containers[0].env[1].name",
            Invalid,
        ),
        (
            container("ports"),
            json!([{"containerPort": 0}]),
            "spec.template.spec.containers[0].ports[0].containerPort",
            Invalid,
        ),
        (
            container("ports"),
            json!([{"name": "http2"}]),
            "spec.template.spec.containers[0].ports[0].name",
            Invalid,
        ),
        (
            container("ports"),
            json!([{"protocol": "UDP"}]),
            "spec.template.spec.containers[0].ports[0].protocol",
            Unsupported,
        ),
        (
            container("resources"),
            json!({"limits": {"cpu": "many"}}),
            "spec.template.spec.containers[0].resources.limits.cpu",
            Invalid,
        ),
        (
            container("resources"),
            json!({"limits": {"memory": "12"}}),
            "spec.template.spec.containers[0].resources.limits.memory",
            Invalid,
        ),
        (
            container("resources"),
            json!({"limits": {"nvidia.com/gpu": "1"}}),
            "spec.template.spec.containers[0].resources.limits.nvidia.com/gpu",
            Unknown,
        ),
        (
            container("readinessProbe"),
            json!({"exec": {"command": []}}),
            "spec.template.spec.containers[0].readinessProbe.exec.command",
            Missing,
        ),
        (
            container("readinessProbe"),
            json!({"httpGet": {"port": 81}}),
            "spec.template.spec.containers[0].readinessProbe.httpGet.port",
            Unsupported,
        ),
        (
            container("readinessProbe"),
            json!({"httpGet": {"path": "x"}}),
            "spec.template.spec.containers[0].readinessProbe.httpGet.path",
            Invalid,
        ),
        (
            container("workingDir"),
            json!("rel"),
            "spec.template.spec.containers[0].workingDir",
            Invalid,
        ),
        (container("args"), json!("one"), "spec.template.spec.containers[0].args", Invalid),
    ];
    for (path, value, field, kind) in table {
        let refused = check(&with(&path, value.clone())).expect_err(&path);
        let found = refused.problems.iter().find(|problem| problem.path == field);
        let found = found.unwrap_or_else(|| panic!("{path} = {value}: {refused}"));
        assert_eq!(found.kind, kind, "{path} = {value}: {refused}");
        assert!(refused.to_string().contains(field));
    }
}

#[test]
fn manifests_of_the_original_for_microvms_are_understood() {
    let original = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: { name: helloworld }
spec:
  template:
    spec:
      containers:
        - image: crccheck/hello-world:latest # a placeholder
          ports:
            - name: h2c # For GRPC support
              containerPort: 50051
          env:
            - { name: GUEST_PORT, value: "50052" }
            - { name: GUEST_IMAGE, value: "ghcr.io/ease-lab/helloworld:var_workload" }
            - { name: OWN, value: "1" }
"#;
    let document = documents(original).unwrap().pop().unwrap();
    let template = check(&document).unwrap().template;
    assert_eq!(template.image, "ghcr.io/ease-lab/helloworld:var_workload");
    assert_eq!((template.port, template.protocol), (50_052, Protocol::H2c));
    assert_eq!(template.env, [("OWN".to_owned(), "1".to_owned())]);
    let bad =
        with("spec/template/spec/containers/0/env", json!([{"name": "GUEST_PORT", "value": "x"}]));
    let refused = check(&bad).unwrap_err();
    assert_eq!(refused.problems[0].path, "spec.template.spec.containers[0].env");
}

#[test]
fn annotations_are_checked_by_name_and_value() {
    use ProblemKind::{Invalid, Unknown, Unsupported};
    let knative = "autoscaling.knative.dev/";
    for (name, value, kind) in [
        ("min-scale", "-1", Invalid),
        ("min-scale", "many", Invalid),
        ("target", "0", Invalid),
        ("target", "NaN", Invalid),
        ("target-utilization-percentage", "101", Invalid),
        ("window", "5s", Invalid),
        ("window", "2h", Invalid),
        ("window", "60", Invalid),
        ("panic-threshold-percentage", "100", Invalid),
        ("class", "hpa.autoscaling.knative.dev", Unsupported),
        ("metric", "cpu", Unsupported),
        ("metric", "memory", Unsupported),
        ("metric", "latency", Invalid),
        ("window", "6500ms", Invalid),
        ("scale-down-delay", "1500ms", Invalid),
        ("scaleDownDelay", "2h", Invalid),
        ("activation-scale", "1", Invalid),
        ("target-burst-capacity", "-2", Invalid),
        ("target-burst-capacity", "NaN", Invalid),
        ("targetBurstCapacity", "much", Invalid),
        ("metric-aggregation-algorithm", "median", Invalid),
        ("max-scal", "2", Unknown),
    ] {
        let mut document = minimal();
        let name = format!("{knative}{name}");
        document["spec"]["template"]["metadata"]["annotations"][&name] = json!(value);
        let refused = check(&document).expect_err(&name);
        let [problem] = refused.problems.as_slice() else { panic!("{refused}") };
        assert_eq!(problem.path, format!("spec.template.metadata.annotations[{name}]"));
        assert_eq!(problem.kind, kind, "{name}={value}");
    }
    let mut document = minimal();
    let annotations = json!({"vhive.dev/queue": "1", "vhive.dev/window": "1s"});
    set(&mut document, "spec/template/metadata/annotations", annotations);
    let refused = check(&document).expect_err("one is unknown");
    assert_eq!(refused.problems.len(), 1, "{refused}");
    let annotations = json!({
        format!("{knative}min-scale"): "3", format!("{knative}max-scale"): "2",
    });
    set(&mut document, "spec/template/metadata/annotations", annotations);
    assert!(check(&document).is_err());
}

#[test]
fn every_problem_is_told_at_once() {
    let mut document = with("metadata/name", json!("BAD"));
    set(&mut document, "spec/template/spec/containers/0/foo", json!(1));
    set(&mut document, "spec/template/spec/timeoutSeconds", json!("soon"));
    assert_eq!(check(&document).unwrap_err().problems.len(), 3);
}

#[test]
fn documents_come_in_several_shapes() {
    let one = "apiVersion: v1\nkind: A\n";
    assert_eq!(documents(one).unwrap().len(), 1);
    assert_eq!(documents(&format!("---\n{one}---\n---\n{one}")).unwrap().len(), 2);
    let list = r#"{"kind": "List", "items": [{"kind": "A"}, {"kind": "B"}]}"#;
    assert_eq!(documents(list).unwrap().len(), 2);
    assert!(matches!(documents(""), Err(DocumentError::Empty)));
    assert!(matches!(documents("kind: List"), Err(DocumentError::List(1))));
    for broken in ["a: [", "a: b: c", "a: 1\na: 2"] {
        assert!(matches!(documents(broken), Err(DocumentError::Yaml(_))), "{broken}");
    }
}

#[test]
fn hostile_yaml_is_refused_not_expanded() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let before = format!("*a{}, ", n - 1).repeat(10);
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", before.trim_end_matches(", ")));
    }
    assert!(matches!(documents(&bomb), Err(DocumentError::Yaml(_))));
    let deep = "[".repeat(100_000);
    assert!(matches!(documents(&deep), Err(DocumentError::Yaml(_))));
}

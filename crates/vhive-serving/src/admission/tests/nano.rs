//! The guest without an operating system.

use vhive_api::GuestName;

use super::*;

const ANNOTATIONS: &str = "spec/template/metadata/annotations";

fn nano(runtime: &str) -> Value {
    let mut document = with(ANNOTATIONS, json!({"vhive.dev/guest": "nano"}));
    set(&mut document, "spec/template/spec/runtimeClassName", json!(runtime));
    document
}

#[test]
fn only_virtual_machines_have_another_guest() {
    assert_eq!(check(&minimal()).unwrap().template.guest, GuestName::Linux);
    for runtime in ["qemu", "firecracker"] {
        assert_eq!(check(&nano(runtime)).unwrap().template.guest, GuestName::Nano);
    }
    for document in [nano("runc"), with(ANNOTATIONS, json!({"vhive.dev/guest": "dos"}))] {
        let refused = check(&document).unwrap_err();
        let path = "spec.template.metadata.annotations[vhive.dev/guest]";
        assert_eq!(refused.problems[0].path, path, "{refused}");
        assert_eq!(refused.problems[0].kind, ProblemKind::Invalid);
    }
}

#[test]
fn what_a_guest_without_an_operating_system_would_not_heed_is_refused() {
    let c = "spec/template/spec/containers/0";
    let exec = json!({"exec": {"command": ["x"]}});
    for (field, value, path) in [
        ("command", json!(["x"]), "command"),
        ("args", json!(["x"]), "args"),
        ("env", json!([{"name": "A", "value": "1"}]), "env"),
        ("workingDir", json!("/x"), "workingDir"),
        ("readinessProbe", exec.clone(), "readinessProbe.exec"),
        ("startupProbe", exec, "startupProbe.exec"),
        ("readinessProbe", json!({"grpc": {}}), "readinessProbe.grpc"),
        ("livenessProbe", json!({"grpc": {}}), "livenessProbe.grpc"),
        ("ports", json!([{"name": "h2c", "containerPort": 8080}]), "ports[0].name"),
    ] {
        let mut document = nano("qemu");
        set(&mut document, &format!("{c}/{field}"), value);
        let refused = check(&document).unwrap_err();
        let path = format!("spec.template.spec.containers[0].{path}");
        let problem = refused.problems.iter().find(|problem| problem.path == path);
        assert_eq!(problem.map(|p| p.kind), Some(ProblemKind::Unsupported), "{refused}");
    }
    for (field, value) in [
        ("ports", json!([{"name": "http1", "containerPort": 8080}])),
        ("readinessProbe", json!({"httpGet": {"path": "/"}})),
    ] {
        let mut document = nano("qemu");
        set(&mut document, &format!("{c}/{field}"), value);
        assert_eq!(check(&document).unwrap().template.guest, GuestName::Nano, "{field}");
    }
    let mut document = nano("qemu");
    let annotations = json!({"vhive.dev/guest": "nano", "vhive.dev/after-restore": "/x"});
    set(&mut document, ANNOTATIONS, annotations);
    let refused = check(&document).unwrap_err();
    assert!(refused.problems[0].path.contains("after-restore"), "{refused}");
}

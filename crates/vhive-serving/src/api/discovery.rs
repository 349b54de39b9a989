//! What there is to ask for: groups, versions and kinds.
//!
//! # Source
//! Kubernetes, "Discovery API", the unaggregated form, which every client understands.

use axum::Json;
use http::StatusCode;
use serde_json::{Value, json};

use crate::kind::{EVENTING, Kind, SERVING};

/// The version of Kubernetes whose API conventions hold here.
const MAJOR: &str = "1";
const MINOR: &str = "32";

/// `GET /version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": format!("v{MAJOR}.{MINOR}.0+vhive-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    }))
}

/// `GET /api`.
pub(super) async fn core_versions() -> Json<Value> {
    Json(json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    }))
}

/// `GET /apis`.
pub(super) async fn groups() -> Json<Value> {
    Json(json!({
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            group_of("serving.knative.dev"),
            group_of("eventing.knative.dev"),
            group_of("authorization.k8s.io"),
        ],
    }))
}

/// `GET /apis/serving.knative.dev`.
pub(super) async fn serving_group() -> Json<Value> {
    Json(one_group("serving.knative.dev"))
}

/// `GET /apis/eventing.knative.dev`.
pub(super) async fn eventing_group() -> Json<Value> {
    Json(one_group("eventing.knative.dev"))
}

fn one_group(name: &str) -> Value {
    let mut group = group_of(name);
    group["kind"] = Value::from("APIGroup");
    group["apiVersion"] = Value::from("v1");
    group
}

fn group_of(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

/// `GET /api/v1`.
pub(super) async fn core() -> Json<Value> {
    Json(resources("v1", ""))
}

/// `GET /apis/serving.knative.dev/v1`.
pub(super) async fn serving() -> Json<Value> {
    Json(resources(SERVING, "serving.knative.dev"))
}

/// `GET /apis/eventing.knative.dev/v1`.
pub(super) async fn eventing() -> Json<Value> {
    Json(resources(EVENTING, "eventing.knative.dev"))
}

/// `GET /apis/authorization.k8s.io/v1`.
pub(super) async fn authorization() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "authorization.k8s.io/v1",
        "resources": [{
            "name": "selfsubjectaccessreviews",
            "singularName": "selfsubjectaccessreview",
            "namespaced": false,
            "kind": "SelfSubjectAccessReview",
            "verbs": ["create"],
        }],
    }))
}

/// `POST …/selfsubjectaccessreviews`: whoever comes this far may do everything.
pub(super) async fn may_i() -> (StatusCode, Json<Value>) {
    let review = json!({
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": {},
        "status": {"allowed": true, "reason": "holder of the node's token"},
    });
    (StatusCode::CREATED, Json(review))
}

fn resources(version: &str, group: &str) -> Value {
    let mut resources = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group() == group) {
        resources.push(json!({
            "name": kind.plural(),
            "singularName": kind.as_str().to_lowercase(),
            "namespaced": kind.is_namespaced(),
            "kind": kind.as_str(),
            "verbs": verbs(kind),
            "shortNames": short_names(kind),
            "categories": categories(kind),
        }));
        let sub = |name: &str, verbs: &[&str]| {
            json!({
                "name": format!("{}/{name}", kind.plural()),
                "singularName": "",
                "namespaced": true,
                "kind": kind.as_str(),
                "verbs": verbs,
            })
        };
        match kind {
            Kind::Service
            | Kind::Configuration
            | Kind::Route
            | Kind::Revision
            | Kind::Broker
            | Kind::Trigger => resources.push(sub("status", &["get"])),
            Kind::Pod => resources.push(sub("log", &["get"])),
            Kind::Namespace | Kind::Event | Kind::ConfigMap | Kind::Secret => {}
        }
    }
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": resources,
    })
}

const fn verbs(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service
        | Kind::Configuration
        | Kind::Route
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Broker
        | Kind::Trigger => {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        }
        Kind::Namespace => &["create", "delete", "get", "list", "patch", "update", "watch"],
        Kind::Revision => {
            &["delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        }
        Kind::Pod | Kind::Event => &["get", "list", "watch"],
    }
}

const fn short_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["kservice", "ksvc"],
        Kind::Configuration => &["config", "cfg"],
        Kind::Route => &["rt"],
        Kind::Revision => &["rev"],
        Kind::Pod => &["po"],
        Kind::Namespace => &["ns"],
        Kind::Event => &["ev"],
        Kind::ConfigMap => &["cm"],
        Kind::Secret | Kind::Broker | Kind::Trigger => &[],
    }
}

const fn categories(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service | Kind::Configuration | Kind::Route | Kind::Revision => {
            &["all", "knative", "serving"]
        }
        Kind::Broker | Kind::Trigger => &["all", "knative", "eventing"],
        Kind::Pod => &["all"],
        Kind::Namespace | Kind::Event | Kind::ConfigMap | Kind::Secret => &[],
    }
}

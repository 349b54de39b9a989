//! What clients may write, so that they ask this node to check it, and `kubectl explain` knows it.
//!
//! # Source
//! Kubernetes, "The Kubernetes API", OpenAPI V3; what kubectl looks for is the query parameter
//! `fieldValidation` of PATCH.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::header;
use serde_json::{Value, json};

/// `GET /openapi/v2`: the empty protobuf document. It knows no kind, so that no client checks by it.
pub(super) async fn v2() -> Response {
    let kind = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    ([(header::CONTENT_TYPE, kind)], ()).into_response()
}

/// `GET /openapi/v3`.
pub(super) async fn v3() -> Json<Value> {
    let hash = env!("CARGO_PKG_VERSION");
    let mut paths = json!({});
    for path in ["api/v1", "apis/serving.knative.dev/v1", "apis/eventing.knative.dev/v1"] {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths[path] = json!({"serverRelativeURL": url});
    }
    Json(json!({"paths": paths}))
}

/// `GET /openapi/v3/api/v1`: the kinds of the core that clients may write.
pub(super) async fn core() -> Json<Value> {
    let values = |about: &str| {
        json!({
            "type": "object", "description": about, "additionalProperties": {"type": "string"},
        })
    };
    let config_map = json!({
        "data": values("Values by key, as text."),
        "binaryData": values("Values by key, base64."),
    });
    let secret = json!({
        "data": values("Values by key, base64."),
        "stringData": values("Values by key, as text; written, never read."),
        "type": text("What it is for."),
    });
    let kinds = [("ConfigMap", "configmaps", config_map), ("Secret", "secrets", secret)];
    let (mut paths, mut schemas) = (json!({}), json!({}));
    for (kind, plural, mut properties) in kinds {
        let gvk = json!({"group": "", "version": "v1", "kind": kind});
        let all = format!("/api/v1/namespaces/{{namespace}}/{plural}");
        paths[&all] = json!({"get": operation(&gvk, "list"), "post": operation(&gvk, "post")});
        paths[format!("{all}/{{name}}")] = operations(&gvk);
        properties["apiVersion"] = text("The version of this object's schema.");
        properties["kind"] = text("What this object is.");
        properties["metadata"] = object("Name, namespace, labels and annotations.", &json!({}));
        properties["immutable"] =
            json!({"type": "boolean", "description": "Whether its data never change any more."});
        schemas[format!("io.k8s.api.core.v1.{kind}")] = json!({
            "type": "object",
            "description": "Data for functions: variables and files.",
            "x-kubernetes-group-version-kind": [gvk],
            "properties": properties,
        });
    }
    let gvk = json!({"group": "", "version": "v1", "kind": "Namespace"});
    paths["/api/v1/namespaces"] =
        json!({"get": operation(&gvk, "list"), "post": operation(&gvk, "post")});
    paths["/api/v1/namespaces/{name}"] = operations(&gvk);
    schemas["io.k8s.api.core.v1.Namespace"] = json!({
        "type": "object",
        "description": "What keeps names apart; made by the first object in it, if nobody made it.",
        "x-kubernetes-group-version-kind": [gvk],
        "properties": {
            "apiVersion": text("The version of this object's schema."),
            "kind": text("What this object is."),
            "metadata": object("Name, labels and annotations.", &json!({})),
            "spec": object("Without effect.", &json!({})),
            "status": object("Active, as long as it is there.", &json!({})),
        },
    });
    Json(document(&paths, &schemas))
}

fn operations(gvk: &Value) -> Value {
    json!({
        "get": operation(gvk, "get"),
        "put": operation(gvk, "put"),
        "patch": operation(gvk, "patch"),
        "delete": operation(gvk, "delete"),
    })
}

fn document(paths: &Value, schemas: &Value) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "vHive", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// `GET /openapi/v3/apis/serving.knative.dev/v1`.
pub(super) async fn serving() -> Json<Value> {
    let kinds = [
        ("Service", "services"),
        ("Configuration", "configurations"),
        ("Route", "routes"),
        ("Revision", "revisions"),
    ];
    Json(group(("serving.knative.dev", "dev.knative.serving.v1"), &kinds))
}

/// `GET /openapi/v3/apis/eventing.knative.dev/v1`.
pub(super) async fn eventing() -> Json<Value> {
    let kinds = [("Broker", "brokers"), ("Trigger", "triggers")];
    Json(group(("eventing.knative.dev", "dev.knative.eventing.v1"), &kinds))
}

/// The document of a group, whose schemas' names begin as said.
fn group((group, package): (&str, &str), kinds: &[(&str, &str)]) -> Value {
    let mut paths = json!({});
    let mut schemas = json!({});
    for (kind, plural) in kinds {
        let one = format!("/apis/{group}/v1/namespaces/{{namespace}}/{plural}/{{name}}");
        let gvk = json!({"group": group, "version": "v1", "kind": kind});
        paths[one] = operations(&gvk);
        schemas[format!("{package}.{kind}")] = json!({
            "type": "object",
            "description": about(kind),
            "x-kubernetes-group-version-kind": [gvk],
            "properties": {
                "apiVersion": text("The version of this object's schema."),
                "kind": text("What this object is."),
                "metadata": {
                    "type": "object",
                    "description": "Name, namespace, labels and annotations.",
                },
                "spec": spec(kind),
                "status": {"type": "object", "description": "What the node has found."},
            },
        });
    }
    document(&paths, &schemas)
}

fn operation(gvk: &Value, verb: &str) -> Value {
    let parameters = ["dryRun", "fieldManager", "fieldValidation", "force"]
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}));
    json!({
        "operationId": format!("{verb}{}", operation_name(gvk)),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": gvk,
    })
}

fn operation_name(gvk: &Value) -> String {
    let text = |field: &str| gvk[field].as_str().unwrap_or_default();
    let group = match text("group") {
        "" => "Core",
        "eventing.knative.dev" => "EventingKnativeDev",
        _ => "ServingKnativeDev",
    };
    format!("{group}V1Namespaced{}", text("kind"))
}

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn number(about: &str) -> Value {
    json!({"type": "integer", "format": "int64", "description": about})
}

fn object(about: &str, properties: &Value) -> Value {
    json!({"type": "object", "description": about, "properties": properties})
}

fn list(about: &str, items: &Value) -> Value {
    json!({"type": "array", "description": about, "items": items})
}

fn reference(name: &str) -> Value {
    let mut properties = json!({
        "optional": {"type": "boolean", "description": "Whether the function does without it."},
    });
    properties[name] = text("The object's name.");
    object("An object in the same namespace.", &properties)
}

fn key() -> Value {
    let mut key = reference("name");
    key["properties"]["key"] = text("One of its keys.");
    key
}

fn about(kind: &str) -> &'static str {
    match kind {
        "Service" => {
            "A function: its template makes revisions, its traffic says which of them gets requests."
        }
        "Configuration" => "Makes revisions, for a service or for routes by themselves.",
        "Route" => "Leads requests to revisions, of a service or of configurations by themselves.",
        "Broker" => "Takes CloudEvents and gives each to the triggers that want it.",
        "Trigger" => "Says which of a broker's events a function gets.",
        _ => "One version of a function, never changed.",
    }
}

fn spec(kind: &str) -> Value {
    match kind {
        "Broker" => return object("What is wanted.", &json!({"delivery": delivery()})),
        "Trigger" => return trigger(),
        _ => {}
    }
    let traffic = list(
        "Where requests go; the latest ready revision without it.",
        &object(
            "One revision's share.",
            &json!({
                "revisionName": text("Name of the revision."),
                "configurationName": text("In a Route: whose latest ready revision."),
                "latestRevision": {"type": "boolean", "description": "The latest ready revision."},
                "percent": number("Share of the requests; together 100."),
                "tag": text("Under which name the revision answers besides: TAG-NAME.NAMESPACE.DOMAIN."),
            }),
        ),
    );
    let template = object(
        "What each new revision is.",
        &json!({
            "metadata": object("Labels, annotations (scaling, snapshots) and the revision's name.", &json!({})),
            "spec": revision(),
        }),
    );
    match kind {
        "Service" => object("What is wanted.", &json!({"template": template, "traffic": traffic})),
        "Configuration" => object("What is wanted.", &json!({"template": template})),
        "Route" => object("What is wanted.", &json!({"traffic": traffic})),
        _ => revision(),
    }
}

fn destination(about: &str) -> Value {
    object(
        about,
        &json!({
            "ref": object("A Service of serving.knative.dev/v1 or a Broker, in this namespace.", &json!({
                "apiVersion": text("Its group and version."),
                "kind": text("Its kind."),
                "name": text("Its name."),
                "namespace": text("This object's."),
            })),
            "uri": text("The address of a function of this node; beside ref, a path."),
        }),
    )
}

fn delivery() -> Value {
    object(
        "How hard delivery is tried.",
        &json!({
            "deadLetterSink": destination("Where events go that cannot be delivered."),
            "retry": number("Tries after the first."),
            "backoffPolicy": text("How pauses grow: linear or exponential."),
            "backoffDelay": text("The first pause, as PT0.2S."),
            "timeout": text("Time for each try, as PT30S."),
        }),
    )
}

fn trigger() -> Value {
    let attributes = json!({
        "type": "object",
        "description": "Attributes with their values; the empty value fits any.",
        "additionalProperties": {"type": "string"},
    });
    object(
        "What is wanted.",
        &json!({
            "broker": text("The broker whose events these are."),
            "filter": object("Which events: all attributes match.", &json!({"attributes": attributes})),
            "filters": list("Which events: all of these hold, each exact, prefix, suffix, all, any or not.", &object("A condition.", &json!({}))),
            "subscriber": destination("Who gets the events."),
            "delivery": delivery(),
        }),
    )
}

fn probe(about: &str) -> Value {
    let port = || json!({"port": number("The function's own port, or 0.")});
    let (mut http, mut grpc) = (port(), port());
    http["path"] = text("The path.");
    http["scheme"] = text("HTTP.");
    http["httpHeaders"] = list(
        "Fields of the request.",
        &object("A field.", &json!({"name": text("Its name."), "value": text("Its value.")})),
    );
    grpc["service"] = text("The service that is asked about.");
    object(
        about,
        &json!({
            "httpGet": object("Any reply from 200 to 399.", &http),
            "tcpSocket": object("A connection.", &port()),
            "grpc": object("grpc.health.v1 says SERVING.", &grpc),
            "exec": object("A command in the sandbox ends with 0. While an instance serves it is not run: not in a liveness probe, and not again as a readiness probe.", &json!({
                "command": list("Program and arguments.", &text("A word.")),
            })),
            "initialDelaySeconds": number("Time before the first try."),
            "periodSeconds": number("Time between two tries."),
            "timeoutSeconds": number("Time for one try."),
            "successThreshold": number("Successes in a row that are one."),
            "failureThreshold": number("Failures in a row that are one."),
        }),
    )
}

fn revision() -> Value {
    let container = object(
        "The function.",
        &json!({
            "name": text("Its name."),
            "image": text("Reference of its image."),
            "command": list("Replaces the image's entrypoint.", &text("A word.")),
            "args": list("Replaces the image's arguments.", &text("A word.")),
            "env": list("Variables, added to the image's.", &object("A variable.", &json!({
                "name": text("Its name."),
                "value": text("Its value."),
                "valueFrom": object("A key of a config map or secret.", &json!({
                    "configMapKeyRef": key(), "secretKeyRef": key(),
                })),
            }))),
            "envFrom": list("Objects whose keys all become variables.", &object("An object.", &json!({
                "prefix": text("What stands before each key."),
                "configMapRef": reference("name"),
                "secretRef": reference("name"),
            }))),
            "volumeMounts": list("Where volumes are.", &object("A place.", &json!({
                "name": text("The volume's name."),
                "mountPath": text("A directory in the function's root."),
                "readOnly": {"type": "boolean", "description": "It always is."},
            }))),
            "workingDir": text("Replaces the image's working directory."),
            "ports": list("The port of the function, one at most.", &object("A port.", &json!({
                "containerPort": number("Its number."),
                "name": text("`h2c` if it speaks HTTP/2 (gRPC), `http1` otherwise."),
            }))),
            "resources": object("Limits of CPU and memory.", &json!({
                "limits": object("What an instance has.", &json!({
                    "cpu": text("Processors, as 1 or 500m."),
                    "memory": text("Memory, as 256Mi."),
                })),
                "requests": object("Checked, without effect.", &json!({})),
            })),
            "readinessProbe": probe("How it is confirmed to be ready; with periodSeconds it is asked again while the instance runs, and one that fails gets no requests until it succeeds."),
            "startupProbe": probe("What must hold before the readiness probe is asked."),
            "livenessProbe": probe("What must go on holding: an instance that fails is replaced."),
        }),
    );
    object(
        "What a revision is.",
        &json!({
            "containerConcurrency": number("Requests per instance at a time; 0 for no limit."),
            "timeoutSeconds": number("Time for a request."),
            "responseStartTimeoutSeconds": number("Time until the head of its reply."),
            "idleTimeoutSeconds": number("Time in which the function may send nothing; 0 for no limit."),
            "runtimeClassName": text("The sandbox: qemu, firecracker, runsc, runc, crun."),
            "containers": list("One.", &container),
            "volumes": list("Files from config maps and secrets.", &object("A volume.", &json!({
                "name": text("Its name."),
                "configMap": reference("name"),
                "secret": reference("secretName"),
                "projected": object("Several of them in one directory.", &json!({})),
            }))),
        }),
    )
}

//! An instance as a pod.

use serde_json::{Value, json};
use vhive_api::Revision;
use vhive_node::{Instance, InstanceState};

use super::seconds;

/// What stands before a sandbox's identifier in its pod's name.
const MARK: &str = "-deployment-";

/// An instance as clients of Kubernetes see it. Its name ends in the sandbox's identifier.
pub(crate) fn pod(revision: &Revision, one: &Instance, version: u64) -> Value {
    let runs = one.state != InstanceState::Starting && one.state != InstanceState::Broken;
    let ready = runs && one.state != InstanceState::Unready;
    let since = seconds(one.since);
    let address = one.endpoint.map(|endpoint| endpoint.ip().to_string());
    let state = if runs {
        json!({"running": {"startedAt": since}})
    } else {
        json!({"waiting": {"reason": "ContainerCreating"}})
    };
    let condition = |kind: &str, holds: bool| {
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": since,
        })
    };
    let started = one.state != InstanceState::Starting;
    let mut status = json!({
        "phase": if started { "Running" } else { "Pending" },
        "startTime": since,
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", true),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "containerStatuses": [{
            "name": "user-container",
            "image": revision.image,
            "imageID": revision.image_digest,
            "containerID": format!("{}://{}", revision.runtime, one.id.as_str()),
            "ready": ready,
            "started": started,
            "restartCount": 0,
            "state": state,
        }],
    });
    if let Some(address) = address {
        status["podIPs"] = json!([{"ip": address}]);
        status["podIP"] = Value::from(address);
    }
    let mut labels = json!({
        "app": revision.key.name,
        "serving.knative.dev/configuration": revision.service,
        "serving.knative.dev/revision": revision.key.name,
    });
    if !revision.standalone {
        labels["serving.knative.dev/service"] = Value::from(revision.service.as_str());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{}{MARK}{}", revision.key.name, one.id.as_str()),
            "namespace": revision.key.namespace,
            "uid": one.id.as_str(),
            "resourceVersion": version.to_string(),
            "creationTimestamp": since,
            "labels": labels,
        },
        "spec": {
            "containers": [{
                "name": "user-container",
                "image": revision.image,
                "ports": [{"containerPort": revision.port, "protocol": "TCP"}],
                "resources": {
                    "limits": {
                        "cpu": format!("{}m", revision.cpu_millis),
                        "memory": revision.memory.0.to_string(),
                    },
                },
            }],
            "nodeName": "vhive",
            "runtimeClassName": revision.runtime.as_str(),
            "restartPolicy": "Always",
        },
        "status": status,
    })
}

/// The sandbox that a pod's name of a revision means.
pub(crate) fn is_pod_of<'a>(name: &'a str, revision: &str) -> Option<&'a str> {
    name.strip_prefix(revision)?.strip_prefix(MARK)
}

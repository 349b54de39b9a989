"""Drives a node through the Python client of Kubernetes; says so at the end if all of it works."""

from kubernetes import client, config, watch

config.load_kube_config()
api = client.CustomObjectsApi()
at = dict(group="serving.knative.dev", version="v1", namespace="default", plural="services")
body = {
    "apiVersion": "serving.knative.dev/v1",
    "kind": "Service",
    "metadata": {"name": "python", "labels": {"by": "python"}},
    "spec": {
        "template": {
            "spec": {"runtimeClassName": "sim", "containers": [{"image": "dev.local/tiny:latest"}]}
        }
    },
}

version = api.list_namespaced_custom_object(**at)["metadata"]["resourceVersion"]
api.create_namespaced_custom_object(**at, body=body)
stream = watch.Watch().stream(
    api.list_namespaced_custom_object, **at, resource_version=version, timeout_seconds=20
)
for event in stream:
    conditions = event["object"]["status"]["conditions"]
    if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
        break
else:
    raise SystemExit("the watch ended before the service was ready")

patch = {"spec": {"template": {"spec": {"containerConcurrency": 7}}}}
patched = api.patch_namespaced_custom_object(**at, name="python", body=patch)
assert patched["metadata"]["generation"] == 2, patched
found = api.list_namespaced_custom_object(**at, label_selector="by=python")
assert [item["metadata"]["name"] for item in found["items"]] == ["python"], found
revisions = api.list_namespaced_custom_object(**{**at, "plural": "revisions"})
assert len(revisions["items"]) == 2, revisions

try:
    api.create_namespaced_custom_object(**at, body=body)
    raise SystemExit("it was made twice")
except client.ApiException as refused:
    assert refused.status == 409, refused

core = client.CoreV1Api()
assert core.read_namespace("default").status.phase == "Active"
assert core.list_namespaced_pod("default").items == []
api.delete_namespaced_custom_object(**at, name="python")
try:
    api.get_namespaced_custom_object(**at, name="python")
    raise SystemExit("it is still there")
except client.ApiException as gone:
    assert gone.status == 404, gone
print("all of it works")

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

# Namespaces and config maps, with the client's own types.
core.create_namespace({"metadata": {"name": "team", "labels": {"by": "python"}}})
names = [one.metadata.name for one in core.list_namespace(label_selector="by=python").items]
assert names == ["team"], names
core.create_namespaced_config_map("team", {"metadata": {"name": "settings"}, "data": {"a": "1"}})
changed = core.patch_namespaced_config_map("settings", "team", {"data": {"b": "2"}})
assert changed.data == {"a": "1", "b": "2"}, changed
core.delete_collection_namespaced_config_map("team")
assert core.list_namespaced_config_map("team").items == []

# Server-side apply, in a dry run and for good.
applied = dict(group=at["group"], version="v1", namespace="team", plural="services", name="applied")
wanted = {**body, "metadata": {"name": "applied"}}
serve = dict(field_manager="python", _content_type="application/apply-patch+yaml")
inside = dict(group=at["group"], version="v1", namespace="team", plural="services")
api.patch_namespaced_custom_object(**applied, body=wanted, dry_run="All", **serve)
assert api.list_namespaced_custom_object(**inside)["items"] == []
api.patch_namespaced_custom_object(**applied, body=wanted, **serve)
made = api.get_namespaced_custom_object(**applied)
assert made["metadata"]["managedFields"][0]["operation"] == "Apply", made
odd = {**wanted, "spec": {**wanted["spec"], "colour": "red"}}
kept = api.patch_namespaced_custom_object(**applied, body=odd, field_validation="Ignore", **serve)
assert kept["spec"] == made["spec"], kept

# Bookmarks tell from where another watch goes on.
marked = None
stream = watch.Watch().stream(
    core.list_namespace, allow_watch_bookmarks=True, send_initial_events=True,
    resource_version_match="NotOlderThan", timeout_seconds=10,
)
for event in stream:
    if event["type"] == "BOOKMARK":
        marked = event["raw_object"]["metadata"]
        break
assert marked["annotations"]["k8s.io/initial-events-end"] == "true", marked

# An instance, its log, and the events of its service.
said = "said by the function"
env = [{"name": "VHIVE_SIM_SAY", "value": said}]
talks = {"runtimeClassName": "sim", "containers": [{"image": "dev.local/tiny:latest", "env": env}]}
scale = {"autoscaling.knative.dev/min-scale": "1"}
talking = {
    **body,
    "metadata": {"name": "talks"},
    "spec": {"template": {"metadata": {"annotations": scale}, "spec": talks}},
}
api.create_namespaced_custom_object(**inside, body=talking)
for event in watch.Watch().stream(core.list_namespaced_event, "team", timeout_seconds=20):
    if event["object"].reason == "RevisionReady":
        assert event["object"].involved_object.name.startswith("talks"), event
        break
else:
    raise SystemExit("no event of the revision")
pod = core.list_namespaced_pod("team", label_selector="serving.knative.dev/service=talks").items[0]
text = core.read_namespaced_pod_log(pod.metadata.name, "team", tail_lines=1, timestamps=True)
assert text.endswith(said + "\n"), text
lines = watch.Watch().stream(core.read_namespaced_pod_log, pod.metadata.name, "team")
assert next(iter(lines)) == said
core.delete_namespace("team")
assert core.list_namespaced_pod("team").items == []
api.delete_namespaced_custom_object(**at, name="python")
try:
    api.get_namespaced_custom_object(**at, name="python")
    raise SystemExit("it is still there")
except client.ApiException as gone:
    assert gone.status == 404, gone
print("all of it works")

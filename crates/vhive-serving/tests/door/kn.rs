//! The requests of `kn`, one by one, as its client sends them, for hosts that have no `kn`.
//!
//! # Source
//! Knative client, `pkg/serving/v1/client.go` and `pkg/commands/service/{create,update,apply,delete}.go`.

use serde_json::{Value, json};

use crate::kubernetes::{Watch, ask};
use crate::support::{World, service};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";
const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
const JSON: &str = "Content-Type: application/json\r\nAccept: application/json, */*\r\n\
                    User-Agent: kn/v0.0.0 (linux/amd64) kubernetes/$Format\r\n";
const MERGE: &str =
    "Content-Type: application/merge-patch+json\r\nAccept: application/json, */*\r\n";
const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";

async fn get(world: &World, path: &str) -> (u16, Value) {
    ask(world, "GET", path, JSON, &Value::Null).await
}

/// Whether what kn waits for holds: each condition that it counts, of the generation that it made.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let holds =
        |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
        && ["ConfigurationsReady", "RoutesReady", "Ready"].into_iter().all(holds)
}

/// Watches one service from a version on until something is so.
async fn wait(world: &World, version: &Value, so: impl Fn(&str, &Value) -> bool) {
    let version = version.as_str().unwrap();
    let path = format!(
        "{SERVICES}?fieldSelector=metadata.name%3Dhello&resourceVersion={version}\
         &timeoutSeconds=600&watch=true"
    );
    let mut watch = Watch::begin(world, &path).await;
    loop {
        let (what, object) = watch.next().await;
        if so(&what, &object) {
            return;
        }
    }
}

#[tokio::test]
async fn what_kn_asks_for_is_answered() {
    let world = World::new().await;
    let one = format!("{SERVICES}/hello");
    // service create hello --image … --env A=1
    assert_eq!(get(&world, &one).await.0, 404);
    let (_, list) = get(&world, SERVICES).await;
    let before = list["metadata"]["resourceVersion"].clone();
    let mut made = service("hello");
    made["metadata"]["creationTimestamp"] = Value::Null;
    made["status"] = json!({});
    let template = &mut made["spec"]["template"];
    template["metadata"] = json!({
        "creationTimestamp": null,
        "annotations": {"client.knative.dev/updateTimestamp": "2026-01-01T00:00:00Z",
                        "client.knative.dev/user-image": "dev.local/hello"},
    });
    template["spec"]["containers"][0] = json!({
        "name": "", "image": "dev.local/hello", "env": [{"name": "A", "value": "1"}],
        "resources": {},
    });
    let (status, told) = ask(&world, "POST", SERVICES, JSON, &made).await;
    assert_eq!(status, 201, "{told}");
    wait(&world, &before, |what, object| what != "DELETED" && is_ready(object)).await;
    let (_, created) = get(&world, &one).await;
    assert_eq!(created["status"]["url"], "http://hello.default.example.com");

    // service list
    let (_, list) = get(&world, SERVICES).await;
    let found = &list["items"][0];
    assert_eq!(found["status"]["latestReadyRevisionName"], "hello-00001");
    assert_eq!(found["status"]["conditions"].as_array().unwrap().len(), 3, "3 OK / 3");

    // service update --env A=2: what was read, changed, put back; again if somebody was quicker.
    let mut stale = created.clone();
    let mut current = created.clone();
    current["metadata"]["labels"] = json!({"quicker": "yes"});
    assert_eq!(ask(&world, "PUT", &one, JSON, &current).await.0, 200);
    let env = "/spec/template/spec/containers/0/env/0/value";
    *stale.pointer_mut(env).unwrap() = json!("2");
    let (status, told) = ask(&world, "PUT", &one, JSON, &stale).await;
    assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "{told}");
    let (_, mut again) = get(&world, &one).await;
    *again.pointer_mut(env).unwrap() = json!("2");
    let revision = format!("{SERVING}/revisions/hello-00001");
    let pinned =
        get(&world, &revision).await.1["status"]["containerStatuses"][0]["imageDigest"].clone();
    again["spec"]["template"]["spec"]["containers"][0]["image"] = pinned;
    again["spec"]["template"]["metadata"]["name"] = json!("hello-second");
    let (status, updated) = ask(&world, "PUT", &one, JSON, &again).await;
    assert_eq!((status, &updated["metadata"]["generation"]), (200, &json!(2)), "{updated}");
    let from = &again["metadata"]["resourceVersion"];
    wait(&world, from, |_, object| {
        is_ready(object) && object["status"]["latestReadyRevisionName"] == "hello-second"
    })
    .await;

    // service describe, revision list, route list
    let selected = "?labelSelector=serving.knative.dev%2Fservice%3Dhello";
    let (_, revisions) = get(&world, &format!("{SERVING}/revisions{selected}")).await;
    assert_eq!(revisions["items"].as_array().map(Vec::len), Some(2));
    let labels = &revisions["items"][1]["metadata"]["labels"];
    assert_eq!(labels["serving.knative.dev/configurationGeneration"], "2", "{labels}");
    assert_eq!(get(&world, &format!("{SERVING}/configurations/hello")).await.0, 200);
    let (_, routes) = get(&world, &format!("{SERVING}/routes{selected}")).await;
    assert_eq!(routes["items"][0]["status"]["traffic"][0]["revisionName"], "hello-second");

    // service apply: what was applied last goes with the object, and the difference is patched.
    let applied = json!({"spec": {"template": {"spec": {"containerConcurrency": 5}}}}).to_string();
    let patch = json!({
        "metadata": {"annotations": { LAST: applied }},
        "spec": {"template": {"metadata": {"name": null}, "spec": {"containerConcurrency": 5}}},
    });
    let (status, patched) = ask(&world, "PATCH", &one, MERGE, &patch).await;
    assert_eq!((status, &patched["metadata"]["generation"]), (200, &json!(3)), "{patched}");
    assert_eq!(patched["metadata"]["annotations"][LAST], applied);
    let (status, same) = ask(&world, "PATCH", &one, MERGE, &patch).await;
    assert_eq!(
        (status, &same["metadata"]["resourceVersion"]),
        (200, &patched["metadata"]["resourceVersion"]),
        "nothing has changed"
    );

    // service delete --wait
    let (_, last) = get(&world, &one).await;
    let gone = json!({"propagationPolicy": "Background"});
    let (status, told) = ask(&world, "DELETE", &one, JSON, &gone).await;
    assert_eq!((status, &told["status"]), (200, &json!("Success")), "{told}");
    wait(&world, &last["metadata"]["resourceVersion"], |what, _| what == "DELETED").await;
    assert_eq!(get(&world, &one).await.0, 404);
    assert_eq!(get(&world, SERVICES).await.1["items"], json!([]));
    world.stop().await;
}

//! Config maps and secrets: as objects, and in functions.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use vhive_api::guest::{Content, Process};
use vhive_node::Runtimes;

use crate::kubernetes::{Watch, ask};
use crate::support::{InProcess, Setup, World, annotate, eventually, read_head};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";
const CORE: &str = "/api/v1/namespaces/default";

/// Nothing but this may tell it.
const SECRET: &str = "hunter2-hunter2";

async fn hello(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        if stream.write_all(reply).await.is_err() {
            return;
        }
    }
}

/// A door whose functions tell what they were started as.
async fn world() -> (World, Arc<Mutex<Vec<Process>>>) {
    let runtime = InProcess::new(hello);
    let processes = Arc::clone(&runtime.processes);
    (Setup::of(Runtimes::new().with(runtime)).start().await, processes)
}

fn object(kind: &str, name: &str, field: &str, values: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: values})
}

async fn put(world: &World, kind: &str, name: &str, values: &Value) {
    let plural = format!("{}s", kind.to_lowercase());
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let document = object(kind, name, field, values);
    let path = format!("{CORE}/{plural}/{name}");
    let (status, _) = world.api("GET", &path, None).await;
    let (status, told) = match status {
        404 => world.api("POST", &format!("{CORE}/{plural}"), Some(&document)).await,
        _ => world.api("PUT", &path, Some(&document)).await,
    };
    assert!(matches!(status, 200 | 201), "{told}");
}

/// Gives the container a field.
fn with(document: &mut Value, field: &str, value: &Value) {
    document["spec"]["template"]["spec"]["containers"][0][field] = value.clone();
}

fn from_map(document: &mut Value) {
    let key = json!({"configMapKeyRef": {"name": "settings", "key": "mode"}});
    with(document, "env", &json!([{"name": "MODE", "valueFrom": key}]));
}

async fn condition(world: &World, path: &str, wanted: &str) -> Value {
    for _ in 0..2000 {
        let (_, object) = world.api("GET", path, None).await;
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = all.iter().find(|one| one["type"] == "Ready").cloned().unwrap_or_default();
        if ready["status"] == wanted {
            return ready;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{path} did not become {wanted}");
}

#[tokio::test]
async fn config_maps_and_secrets_are_objects_like_others() {
    let world = World::new().await;
    let document = object("ConfigMap", "settings", "data", &json!({"mode": "fast"}));
    let (status, made) = world.api("POST", &format!("{CORE}/configmaps"), Some(&document)).await;
    assert_eq!((status, &made["data"]["mode"]), (201, &json!("fast")), "{made}");
    let (status, told) = world.api("POST", &format!("{CORE}/configmaps"), Some(&document)).await;
    assert_eq!((status, &told["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(told["message"], "configmaps \"settings\" already exists");

    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let path = format!("{CORE}/configmaps?watch=true&resourceVersion={version}");
    let mut watch = Watch::begin(&world, &path).await;
    let one = format!("{CORE}/configmaps/settings");
    let strategic = "Content-Type: application/strategic-merge-patch+json\r\n";
    let patch = json!({"data": {"mode": null, "size": "3"}});
    let (status, patched) = ask(&world, "PATCH", &one, strategic, &patch).await;
    assert_eq!((status, &patched["data"]), (200, &json!({"size": "3"})), "{patched}");
    watch.expect("MODIFIED", "settings").await;
    let directive = |word: &str| json!({"data": {"$patch": word, "size": "3"}});
    assert_eq!(ask(&world, "PATCH", &one, strategic, &directive("mend")).await.0, 400);
    let (status, same) = ask(&world, "PATCH", &one, strategic, &directive("replace")).await;
    assert_eq!((status, &same["data"]), (200, &patched["data"]), "{same}");
    // Server-side apply owns field by field.
    let apply = "Content-Type: application/apply-patch+yaml\r\n";
    let mine = object("ConfigMap", "settings", "data", &json!({"mine": "1"}));
    let by = |manager: &str| format!("{one}?fieldManager={manager}");
    let (status, applied) = ask(&world, "PATCH", &by("me"), apply, &mine).await;
    assert_eq!((status, &applied["data"]), (200, &json!({"mine": "1", "size": "3"})), "{applied}");
    let theirs = object("ConfigMap", "settings", "data", &json!({"mine": "2"}));
    let (status, told) = ask(&world, "PATCH", &by("you"), apply, &theirs).await;
    assert_eq!((status, &told["details"]["kind"]), (409, &json!("configmaps")), "{told}");
    watch.expect("MODIFIED", "settings").await;

    let mut secret = object("Secret", "pass", "stringData", &json!({"word": SECRET}));
    secret["type"] = json!("kubernetes.io/basic-auth");
    let (status, made) = world.api("POST", &format!("{CORE}/secrets"), Some(&secret)).await;
    assert_eq!((status, &made["data"]["word"]), (201, &json!("aHVudGVyMi1odW50ZXIy")), "{made}");
    assert!(made.get("stringData").is_none() && made["type"] == "kubernetes.io/basic-auth");
    let table = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n";
    let (_, shown) = ask(&world, "GET", &format!("{CORE}/secrets"), table, &Value::Null).await;
    let cells = shown["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("pass"), json!("kubernetes.io/basic-auth"), json!(1)]);
    secret["type"] = json!("Opaque");
    let one_secret = format!("{CORE}/secrets/pass");
    let (status, told) = world.api("PUT", &one_secret, Some(&secret)).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("type")), "{told}");
    assert!(!told.to_string().contains(SECRET));

    // What is immutable stays as it is, and can still be deleted.
    let patch = json!({"immutable": true});
    assert_eq!(ask(&world, "PATCH", &one, strategic, &patch).await.0, 200);
    let (status, told) = ask(&world, "PATCH", &one, strategic, &json!({"data": {"x": "y"}})).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("data")), "{told}");
    watch.expect("MODIFIED", "settings").await;
    let stale = json!({"preconditions": {"resourceVersion": version}});
    assert_eq!(world.api("DELETE", &one, Some(&stale)).await.0, 409);
    assert_eq!(world.api("DELETE", &one, None).await.0, 200);
    watch.expect("DELETED", "settings").await;
    assert_eq!(world.api("GET", &one, None).await.0, 404);
    let (_, list) = world.api("GET", "/api/v1/secrets?labelSelector=!x", None).await;
    assert_eq!(
        (&list["kind"], list["items"].as_array().map(Vec::len)),
        (&json!("SecretList"), Some(1))
    );
    world.stop().await;
}

#[tokio::test]
async fn config_maps_and_secrets_survive_a_restart() {
    let world = World::new().await;
    put(&world, "Secret", "pass", &json!({"word": SECRET})).await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast"})).await;
    world.apply("hello", from_map).await;
    let (_, before) = world.api("GET", &format!("{CORE}/secrets/pass"), None).await;
    let dir = Arc::clone(&world.dir);
    world.stop().await;
    let runtime = InProcess::new(hello);
    let processes = Arc::clone(&runtime.processes);
    let world = Setup::again(Runtimes::new().with(runtime), dir).start().await;
    assert_eq!(world.api("GET", &format!("{CORE}/secrets/pass"), None).await.1, before);
    assert_eq!(world.get("hello").await.status, 200);
    assert!(processes.lock().unwrap()[0].env.contains(&"MODE=fast".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_later_instance_sees_the_later_values() {
    let (world, processes) = world().await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast", "app.conf": "a=1"})).await;
    put(&world, "Secret", "pass", &json!({"word": SECRET, "costs": "$(MODE) $5"})).await;
    let (status, made) = world
        .apply("hello", |document| {
            let key = json!({"configMapKeyRef": {"name": "settings", "key": "mode"}});
            let none = json!({"secretKeyRef": {"name": "none", "key": "x", "optional": true}});
            with(
                document,
                "env",
                &json!([
                    {"name": "MODE", "valueFrom": key},
                    {"name": "NONE", "valueFrom": none},
                    {"name": "BOTH", "value": "$(MODE)-$(word)"},
                ]),
            );
            with(document, "envFrom", &json!([{"secretRef": {"name": "pass"}}]));
            with(document, "volumeMounts", &json!([{"name": "v", "mountPath": "/etc/app"}]));
            document["spec"]["template"]["spec"]["volumes"] = json!([{
                "name": "v", "configMap": {"name": "settings", "items": [
                    {"key": "app.conf", "path": "conf/app", "mode": 0o440},
                ]},
            }]);
        })
        .await;
    assert_eq!(
        (status, &made["status"]["conditions"][1]["status"]),
        (201, &json!("True")),
        "{made}"
    );
    assert_eq!(world.get("hello").await.status, 200);
    let first = processes.lock().unwrap()[0].clone();
    for wanted in [
        "MODE=fast".to_owned(),
        format!("word={SECRET}"),
        "costs=$(MODE) $5".to_owned(),
        format!("BOTH=fast-{SECRET}"),
    ] {
        assert!(first.env.contains(&wanted), "{wanted}: {:?}", first.env);
    }
    assert!(!first.env.iter().any(|pair| pair.starts_with("NONE=")));
    let [volume] = first.volumes.as_slice() else { panic!("one: {:?}", first.volumes) };
    assert_eq!((volume.path.as_str(), volume.files.len()), ("/etc/app", 1));
    let file = &volume.files[0];
    assert_eq!((file.path.as_str(), file.mode), ("conf/app", 0o440));
    assert_eq!(file.content, Content::of(b"a=1".to_vec()));

    // The instance that runs keeps what it has; the next one has what is there now.
    put(&world, "ConfigMap", "settings", &json!({"mode": "slow", "app.conf": "a=2"})).await;
    assert_eq!(world.get("hello").await.status, 200);
    assert_eq!(processes.lock().unwrap().len(), 1, "still the first instance");
    world.api("POST", "/vhive/v1/namespaces/default/services/hello/evict", None).await;
    assert_eq!(world.get("hello").await.status, 200);
    let second = processes.lock().unwrap()[1].clone();
    assert!(second.env.contains(&"MODE=slow".to_owned()), "{:?}", second.env);
    assert_eq!(second.volumes[0].files[0].content, Content::of(b"a=2".to_vec()));

    // Nothing tells the secret but the secret itself.
    for path in [
        "/vhive/v1/namespaces/default/services/hello/describe",
        "/vhive/v1/records",
        "/vhive/v1/overview?history=true",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/events",
        &format!("{SERVING}/revisions"),
        &format!("{SERVING}/services"),
    ] {
        let (_, told) = world.api("GET", path, None).await;
        assert!(!told.to_string().contains("hunter2"), "{path}: {told}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_revision_whose_config_is_missing_is_not_ready_until_it_comes() {
    let (world, _) = world().await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    world.apply("hello", from_map).await;
    let path = format!("{SERVING}/revisions/hello-00002");
    let ready = condition(&world, &path, "False").await;
    assert_eq!(ready["reason"], "CreateContainerConfigError", "{ready}");
    assert_eq!(ready["message"], "configmap \"settings\" not found");
    let service = format!("{SERVING}/services/hello");
    condition(&world, &service, "False").await;
    let (_, object) = world.api("GET", &service, None).await;
    assert_eq!(object["status"]["latestReadyRevisionName"], "hello-00001", "{object}");
    assert_eq!(world.get("hello").await.status, 200, "the earlier revision serves on");

    put(&world, "ConfigMap", "settings", &json!({"other": "x"})).await;
    let ready = condition(&world, &path, "False").await;
    assert_eq!(ready["message"], "couldn't find key mode in ConfigMap default/settings");
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast"})).await;
    condition(&world, &service, "True").await;
    let (_, object) = world.api("GET", &service, None).await;
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00002", "{object}");
    assert_eq!(world.get("hello").await.status, 200);
    let (_, events) = world.api("GET", "/api/v1/namespaces/default/events", None).await;
    assert!(events.to_string().contains("CreateContainerConfigError"), "{events}");

    // Without it instances that run go on; the next one cannot be started, and says why.
    world.api("DELETE", &format!("{CORE}/configmaps/settings"), None).await;
    assert_eq!(world.get("hello").await.status, 200);
    world.api("POST", "/vhive/v1/namespaces/default/services/hello/evict", None).await;
    let told = world.get("hello").await;
    assert_eq!((told.status, told.header("x-vhive-error")), (502, Some("start-failed")));
    assert!(told.text().contains("configmap \"settings\" not found"), "{}", told.text());
    condition(&world, &path, "False").await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast"})).await;
    assert_eq!(world.get("hello").await.status, 200, "no back-off stands in the way");
    condition(&world, &path, "True").await;
    world.stop().await;
}

#[tokio::test]
async fn a_snapshot_with_old_values_is_not_used() {
    let world = World::new().await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast"})).await;
    world
        .apply("hello", |document| {
            from_map(document);
            annotate(document, "vhive.dev/snapshot-policy", "vanilla");
        })
        .await;
    let evict = "/vhive/v1/namespaces/default/services/hello/evict";
    let mut cold = Vec::new();
    for (requests, mode) in [(1, None), (2, None), (3, Some("slow")), (4, None), (5, Some("fast"))]
    {
        if let Some(mode) = mode {
            put(&world, "ConfigMap", "settings", &json!({"mode": mode})).await;
        }
        assert_eq!(world.get("hello").await.status, 200);
        let records = world.records(|all| all.len() >= requests).await;
        cold.push(records[requests - 1].start.expect("it came to an instance").as_str());
        // What is done behind the reply is done then.
        world.api("POST", evict, None).await;
    }
    let restored = cold[1];
    assert_ne!(restored, "boot", "{cold:?}");
    // Another value boots and has a snapshot of its own; the first value's is still there.
    assert_eq!(cold, ["boot", restored, "boot", restored, restored]);
    let (_, list) = world.api("GET", "/vhive/v1/snapshots", None).await;
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list}");
    world.stop().await;
}

#[tokio::test]
async fn a_snapshot_has_the_values_that_its_instance_was_started_with() {
    let world = World::new().await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "fast"})).await;
    world
        .apply("hello", |document| {
            from_map(document);
            annotate(document, "vhive.dev/snapshot-policy", "vanilla");
            annotate(document, "autoscaling.knative.dev/min-scale", "1");
        })
        .await;
    condition(&world, &format!("{SERVING}/services/hello"), "True").await;
    // It was started before the change, and its snapshot is taken after it.
    put(&world, "ConfigMap", "settings", &json!({"mode": "slow"})).await;
    let evict = "/vhive/v1/namespaces/default/services/hello/evict";
    let mut starts = Vec::new();
    for (requests, mode) in [(1, "slow"), (2, "slow"), (3, "fast")] {
        put(&world, "ConfigMap", "settings", &json!({"mode": mode})).await;
        assert_eq!(world.get("hello").await.status, 200);
        let records = world.records(|all| all.len() >= requests).await;
        starts.push(records[requests - 1].start.expect("it came to an instance").as_str());
        world.api("POST", evict, None).await;
    }
    assert_eq!(starts[..2], ["warm", "boot"], "{starts:?}");
    assert!(starts[2] != "warm" && starts[2] != "boot", "the first value's: {starts:?}");
    world.stop().await;
}

#[tokio::test]
async fn many_changes_end_with_the_last() {
    let (world, processes) = world().await;
    put(&world, "ConfigMap", "settings", &json!({"mode": "0"})).await;
    world.apply("hello", from_map).await;
    for n in 1..=20 {
        put(&world, "ConfigMap", "settings", &json!({"mode": n.to_string()})).await;
    }
    assert_eq!(world.get("hello").await.status, 200);
    let last = eventually(|| processes.lock().unwrap().last().cloned()).await;
    assert!(last.env.contains(&"MODE=20".to_owned()), "{:?}", last.env);
    world.stop().await;
}

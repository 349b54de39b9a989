//! What clients of Kubernetes rely on: discovery, tables, selectors, pages, watches, patches,
//! server-side apply.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::{Reply, World, service, within};

const SERVING: &str = "/apis/serving.knative.dev/v1";
const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

/// A request with header fields of its own.
pub(crate) async fn ask(
    world: &World,
    method: &str,
    path: &str,
    fields: &str,
    body: &Value,
) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\n{fields}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    let reply = Reply::parse(&reply);
    (reply.status, serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
}

/// A watch as it is read.
pub(crate) struct Watch {
    stream: UnixStream,
    text: String,
}

impl Watch {
    pub(crate) async fn begin(world: &World, path: &str) -> Self {
        let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
        // HTTP/1.0, so that no chunks are in the way.
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut watch = Self { stream, text: String::new() };
        while !watch.text.contains("\r\n\r\n") {
            watch.more().await;
        }
        let (head, rest) = watch.text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{head}");
        watch.text = rest.to_owned();
        watch
    }

    async fn more(&mut self) {
        let mut bytes = Vec::new();
        assert_ne!(within(self.stream.read_buf(&mut bytes)).await.unwrap(), 0, "it ended");
        self.text.push_str(&String::from_utf8(bytes).unwrap());
    }

    /// The next event: its type and object.
    pub(crate) async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let event: Value = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                let what = event["type"].as_str().unwrap().to_owned();
                return (what, event["object"].clone());
            }
            self.more().await;
        }
    }

    pub(crate) async fn expect(&mut self, what: &str, name: &str) -> Value {
        let (found, object) = self.next().await;
        assert_eq!((found.as_str(), &object["metadata"]["name"]), (what, &json!(name)), "{object}");
        object
    }
}

#[tokio::test]
async fn a_client_finds_what_there_is() {
    let world = World::new().await;
    let (_, version) = world.api("GET", "/version", None).await;
    assert_eq!(version["major"], "1");
    let (_, groups) = world.api("GET", "/apis", None).await;
    assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "serving.knative.dev/v1");
    let (_, resources) = world.api("GET", SERVING, None).await;
    let services = &resources["resources"][0];
    assert_eq!((&services["name"], &services["kind"]), (&json!("services"), &json!("Service")));
    assert_eq!(services["shortNames"], json!(["kservice", "ksvc"]));
    for resource in resources["resources"].as_array().unwrap() {
        let name = resource["name"].as_str().unwrap();
        if !name.contains('/') {
            let (status, list) = world.api("GET", &format!("{SERVING}/{name}"), None).await;
            assert_eq!((status, &list["items"]), (200, &json!([])), "{name}");
        }
    }
    let (status, _) = world.api("GET", "/openapi/v2", None).await;
    assert_eq!(status, 200);
    let (_, index) = world.api("GET", "/openapi/v3", None).await;
    let path = index["paths"]["apis/serving.knative.dev/v1"]["serverRelativeURL"].clone();
    let (_, document) = world.api("GET", path.as_str().unwrap(), None).await;
    let patch = &document["paths"]["/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}"]
        ["patch"];
    assert!(patch["parameters"].to_string().contains("fieldValidation"), "{patch}");
    let (status, told) = world.api("GET", &format!("{SERVING}/gadgets"), None).await;
    assert_eq!((status, &told["reason"]), (404, &json!("NotFound")));
    world.stop().await;
}

#[tokio::test]
async fn lists_come_as_tables_by_selectors_and_in_pages() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.apply(name, |document| document["metadata"]["labels"] = json!({"is": name})).await;
    }
    let table = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n";
    let (_, shown) = ask(&world, "GET", SERVICES, table, &Value::Null).await;
    assert_eq!(shown["kind"], "Table");
    assert_eq!(shown["rows"][1]["cells"][0], "b");
    assert_eq!(shown["rows"][1]["object"]["metadata"]["name"], "b");
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    for (query, wanted) in [
        ("labelSelector=is%3Db", vec!["b"]),
        ("labelSelector=is%20in%20(a,c)", vec!["a", "c"]),
        ("labelSelector=!is", vec![]),
        ("fieldSelector=metadata.name%3Dc", vec!["c"]),
        ("limit=2", vec!["a", "b"]),
    ] {
        let (_, list) = world.api("GET", &format!("{SERVICES}?{query}"), None).await;
        assert_eq!(names(&list), wanted, "{query}");
    }
    let (_, first) = world.api("GET", &format!("{SERVICES}?limit=2"), None).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = world.api("GET", &format!("{SERVICES}?limit=2&continue={next}"), None).await;
    assert_eq!((names(&rest), rest["metadata"].get("continue")), (vec!["c".to_owned()], None));
    let (status, _) = world.api("GET", &format!("{SERVICES}?labelSelector=a%20b"), None).await;
    assert_eq!(status, 400);
    world.stop().await;
}

#[tokio::test]
async fn a_watch_tells_each_change_from_where_the_list_ended() {
    let world = World::new().await;
    world.apply("old", |_| {}).await;
    let (_, list) = world.api("GET", SERVICES, None).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // Changes between list and watch are not lost.
    world.apply("new", |_| {}).await;
    let mut watch =
        Watch::begin(&world, &format!("{SERVICES}?watch=true&resourceVersion={version}")).await;
    watch.expect("ADDED", "new").await;
    world.apply("new", |document| document["metadata"]["labels"] = json!({"x": "y"})).await;
    let changed = watch.expect("MODIFIED", "new").await;
    assert_eq!(changed["metadata"]["labels"]["x"], "y");
    world.api("DELETE", &format!("{SERVICES}/new"), None).await;
    watch.expect("DELETED", "new").await;

    // Begun without a version, and as WatchList: what there is comes first.
    let list = format!(
        "{SERVICES}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut watch = Watch::begin(&world, &list).await;
    watch.expect("ADDED", "old").await;
    let (what, mark) = watch.next().await;
    assert_eq!(what, "BOOKMARK");
    assert_eq!(mark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let from = mark["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(from.parse::<u64>().unwrap() > version.parse().unwrap());

    // A selector lets objects come and go as their labels change.
    let path = format!("{SERVICES}?watch=true&labelSelector=team%3Da&resourceVersion={from}");
    let mut watch = Watch::begin(&world, &path).await;
    let label = |team: &'static str| {
        move |document: &mut Value| document["metadata"]["labels"] = json!({"team": team})
    };
    world.apply("old", label("a")).await;
    watch.expect("ADDED", "old").await;
    world.apply("old", label("b")).await;
    watch.expect("DELETED", "old").await;
    world.apply("old", label("c")).await;
    world.apply("old", label("a")).await;
    watch.expect("ADDED", "old").await;
    world.stop().await;
}

#[tokio::test]
async fn a_watch_ends_when_asked_and_says_when_it_is_too_late() {
    let world = World::new().await;
    // Read to its end.
    let (status, _) =
        ask(&world, "GET", &format!("{SERVICES}?watch=true&timeoutSeconds=0"), "", &Value::Null)
            .await;
    assert_eq!(status, 200);
    world.apply("hello", |_| {}).await;
    let dir = world.dir.clone();
    let (_, list) = world.api("GET", SERVICES, None).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    world.stop().await;
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let runtimes = vhive_node::Runtimes::new().with(sim);
    let world = crate::support::Setup::again(runtimes, dir).start().await;
    let mut watch =
        Watch::begin(&world, &format!("{SERVICES}?watch=true&resourceVersion={version}")).await;
    let (what, told) = watch.next().await;
    assert_eq!(
        (what.as_str(), &told["code"], &told["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    let (_, list) = world.api("GET", SERVICES, None).await;
    let after = list["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(after.parse::<u64>().unwrap() > version.parse().unwrap(), "versions never repeat");
    world.stop().await;
}

#[tokio::test]
async fn instances_are_pods_with_logs() {
    let world = World::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut watch = Watch::begin(&world, &format!("{pods}?watch=true&resourceVersion=0")).await;
    world.apply("hello", |_| {}).await;
    assert_eq!(world.get("hello").await.status, 200);
    let (what, _) = watch.next().await;
    assert_eq!(what, "ADDED");
    let (_, list) = world.api("GET", pods, None).await;
    let pod = &list["items"][0];
    assert_eq!(pod["status"]["phase"], "Running", "{list}");
    assert_eq!(pod["metadata"]["labels"]["serving.knative.dev/service"], "hello");
    let name = pod["metadata"]["name"].as_str().unwrap();
    let (status, _) = world.api("GET", &format!("{pods}/{name}"), None).await;
    assert_eq!(status, 200);
    let (status, _) = world
        .api("GET", &format!("{pods}/{name}/log?container=user-container&tailLines=3"), None)
        .await;
    assert_eq!(status, 200);
    let (status, _) =
        world.api("GET", &format!("{pods}/{name}/log?container=queue-proxy"), None).await;
    assert_eq!(status, 400);
    let (status, _) = world.api("GET", &format!("{pods}/hello-00001-deployment-0/log"), None).await;
    assert_eq!(status, 404);
    world.api("DELETE", &format!("{SERVICES}/hello"), None).await;
    loop {
        let (what, gone) = watch.next().await;
        if what == "DELETED" {
            assert_eq!(gone["metadata"]["name"], name);
            break;
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn patches_of_each_form_and_what_they_refuse() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let path = format!("{SERVICES}/hello");
    let merge = "Content-Type: application/merge-patch+json\r\n";
    let (status, object) =
        ask(&world, "PATCH", &path, merge, &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((status, &object["metadata"]["labels"]), (200, &json!({"a": "b"})), "{object}");
    assert_eq!(object["metadata"]["generation"], 1, "labels make no generation");
    let json_patch = "Content-Type: application/json-patch+json\r\n";
    let add = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "dev.local/other"}]);
    let (status, object) = ask(&world, "PATCH", &path, json_patch, &add).await;
    assert_eq!((status, &object["metadata"]["generation"]), (200, &json!(2)), "{object}");
    let wrong = json!([{"op": "test", "path": "/spec/none", "value": 1}]);
    assert_eq!(ask(&world, "PATCH", &path, json_patch, &wrong).await.0, 422);
    let strategic = "Content-Type: application/strategic-merge-patch+json\r\n";
    assert_eq!(ask(&world, "PATCH", &path, strategic, &json!({})).await.0, 415);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "c"}}});
    let (status, told) = ask(&world, "PATCH", &path, merge, &stale).await;
    assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "{told}");
    let bad = json!({"spec": {"colour": "red"}});
    let (status, told) = ask(&world, "PATCH", &path, merge, &bad).await;
    assert_eq!((status, &told["details"]["causes"][0]["field"]), (422, &json!("spec.colour")));
    let (status, _) = ask(&world, "PATCH", &format!("{path}/status"), merge, &bad).await;
    assert_eq!(status, 405);
    let other = format!("{SERVING}/namespaces/default/routes/hello");
    assert_eq!(ask(&world, "PATCH", &other, merge, &bad).await.0, 405);
    assert_eq!(ask(&world, "PATCH", &format!("{SERVICES}/none"), merge, &bad).await.0, 404);
    world.stop().await;
}

#[tokio::test]
async fn server_side_apply_keeps_who_owns_what() {
    let world = World::new().await;
    let yaml = "Content-Type: application/apply-patch+yaml\r\n";
    let path = |manager: &str| format!("{SERVICES}/hello?fieldManager={manager}");
    let mut wanted = service("hello");
    let (status, made) = ask(&world, "PATCH", &path("one"), yaml, &wanted).await;
    assert_eq!((status, &made["metadata"]["managedFields"][0]["manager"]), (201, &json!("one")));
    let (status, same) = ask(&world, "PATCH", &path("one"), yaml, &wanted).await;
    assert_eq!((status, &same), (200, &made), "nothing has changed");
    wanted["spec"]["template"]["spec"]["containers"][0]["image"] = json!("dev.local/other");
    let (status, told) = ask(&world, "PATCH", &path("two"), yaml, &wanted).await;
    assert_eq!(
        (status, &told["details"]["causes"][0]["reason"]),
        (409, &json!("FieldManagerConflict"))
    );
    let (status, forced) =
        ask(&world, "PATCH", &(path("two") + "&force=true"), yaml, &wanted).await;
    assert_eq!((status, &forced["metadata"]["generation"]), (200, &json!(2)), "{forced}");
    let (status, _) = ask(&world, "PATCH", &format!("{SERVICES}/hello"), yaml, &wanted).await;
    assert_eq!(status, 400, "a manager must be named");
    world.stop().await;
}

#[tokio::test]
async fn whoever_changes_a_field_owns_it() {
    let world = World::new().await;
    let (json, yaml) =
        ("Content-Type: application/json\r\n", "Content-Type: application/apply-patch+yaml\r\n");
    let merge = "Content-Type: application/merge-patch+json\r\nUser-Agent: patcher/v1 (x)\r\n";
    let by = |manager: &str| format!("{SERVICES}/hello?fieldManager={manager}");
    let mut wanted = service("hello");
    wanted["metadata"]["labels"] = json!({"a": "1", "b": "1"});
    let made =
        ask(&world, "POST", &format!("{SERVICES}?fieldManager=maker"), json, &wanted).await.1;
    let owner = &made["metadata"]["managedFields"][0];
    assert_eq!((&owner["manager"], &owner["operation"]), (&json!("maker"), &json!("Update")));
    let labels = json!({"metadata": {"labels": {"b": "2"}}});
    let patched = ask(&world, "PATCH", &format!("{SERVICES}/hello"), merge, &labels).await.1;
    let owner = &patched["metadata"]["managedFields"][1];
    let fields = json!({"f:metadata": {"f:labels": {"f:b": {}}}});
    assert_eq!((&owner["manager"], &owner["fieldsV1"]), (&json!("patcher"), &fields));

    let label = |b: &str| {
        let mut wanted = json!({"apiVersion": wanted["apiVersion"], "kind": "Service"});
        wanted["metadata"] = json!({"name": "hello", "labels": {"b": b}});
        wanted
    };
    let (status, told) = ask(&world, "PATCH", &by("applier"), yaml, &label("3")).await;
    assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "{told}");
    let cause = &told["details"]["causes"][0];
    assert_eq!(cause["field"], ".metadata.labels.b");
    assert!(cause["message"].as_str().unwrap().contains("\"patcher\""), "{told}");
    // The same value is shared; another one is taken by force, or by changing it in another way.
    assert_eq!(ask(&world, "PATCH", &by("applier"), yaml, &label("2")).await.0, 200);
    let forced = ask(&world, "PATCH", &(by("other") + "&force=true"), yaml, &label("3")).await;
    assert_eq!(forced.0, 200, "{}", forced.1);
    let mut put = forced.1.clone();
    put["metadata"]["labels"]["b"] = json!("4");
    let (status, put) = ask(&world, "PUT", &by("putter"), json, &put).await;
    let managers: Vec<&Value> = put["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["manager"])
        .collect();
    assert_eq!((status, managers), (200, vec![&json!("maker"), &json!("putter")]), "{put}");
    // It is kept; what changes nothing takes nothing.
    let same = ask(&world, "PUT", &by("idler"), json, &put).await.1;
    assert_eq!(same, put);
    world.stop().await;
}

#[tokio::test]
async fn an_image_can_be_pinned_by_what_its_revision_says() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/revisions/hello-00001";
    let (_, revision) = world.api("GET", path, None).await;
    let pinned = revision["status"]["containerStatuses"][0]["imageDigest"].clone();
    let text = pinned.as_str().unwrap();
    assert!(text.starts_with("dev.local/hello@sha256:"), "{text}");
    let (status, told) = world
        .apply("hello", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["image"] = pinned.clone();
        })
        .await;
    assert_eq!(status, 200, "{told}");
    world.stop().await;
}

#[tokio::test]
async fn preconditions_dry_runs_and_made_up_names() {
    let world = World::new().await;
    let mut document = service("x");
    document["metadata"] = json!({"generateName": "made-"});
    let (status, made) = world.api("POST", SERVICES, Some(&document)).await;
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(status == 201 && name.starts_with("made-") && name.len() == 10, "{made}");

    let (status, would) =
        world.api("POST", &format!("{SERVICES}?dryRun=All"), Some(&service("dry"))).await;
    assert_eq!((status, &would["metadata"]["name"]), (201, &json!("dry")));
    assert_eq!(world.api("GET", &format!("{SERVICES}/dry"), None).await.0, 404);
    let (status, _) =
        world.api("POST", &format!("{SERVICES}?dryRun=Some"), Some(&service("dry"))).await;
    assert_eq!(status, 400);

    let json = "Content-Type: application/json\r\n";
    let path = format!("{SERVICES}/{name}");
    let other = json!({"preconditions": {"uid": "another"}});
    let (status, told) = ask(&world, "DELETE", &path, json, &other).await;
    assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "{told}");
    let right = json!({"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Background"});
    let (status, told) = ask(&world, "DELETE", &path, json, &right).await;
    assert_eq!((status, &told["details"]["uid"]), (200, &made["metadata"]["uid"]));
    world.stop().await;
}

#[tokio::test]
async fn a_watch_with_a_selector_tells_what_went_between_list_and_watch() {
    let world = World::new().await;
    let label = |document: &mut Value| document["metadata"]["labels"] = json!({"team": "a"});
    world.apply("gone", label).await;
    world.apply("other", label).await;
    let (_, list) = world.api("GET", &format!("{SERVICES}?labelSelector=team%3Da"), None).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    world.api("DELETE", &format!("{SERVICES}/gone"), None).await;
    world.apply("other", |document| document["metadata"]["labels"] = json!({"team": "b"})).await;
    let path = format!("{SERVICES}?watch=true&labelSelector=team%3Da&resourceVersion={from}");
    let mut watch = Watch::begin(&world, &path).await;
    watch.expect("DELETED", "gone").await;
    watch.expect("DELETED", "other").await;
    world.stop().await;
}

#[tokio::test]
async fn documents_and_patches_that_would_explode_are_refused() {
    let world = World::new().await;
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let mut document = service("deep");
    document["metadata"]["creationTimestamp"] = deep;
    let (status, told) = world.api("POST", SERVICES, Some(&document)).await;
    assert_eq!((status, &told["reason"]), (422, &json!("Invalid")), "{told}");
    world.apply("hello", |_| {}).await;
    let mut bomb = vec![json!({"op": "copy", "from": "/spec", "path": "/spec/more/-"}); 40];
    bomb.insert(0, json!({"op": "add", "path": "/spec/more", "value": []}));
    let bomb = Value::Array(bomb);
    let json_patch = "Content-Type: application/json-patch+json\r\n";
    let path = format!("{SERVICES}/hello");
    let (status, told) = ask(&world, "PATCH", &path, json_patch, &bomb).await;
    assert_eq!(status, 422, "{told}");
    assert!(told["message"].as_str().unwrap().contains("too large"), "{told}");
    let many = Value::Array(vec![json!({"op": "test", "path": "/kind", "value": "Service"}); 1001]);
    assert_eq!(ask(&world, "PATCH", &path, json_patch, &many).await.0, 400);
    assert_eq!(world.get("hello").await.status, 200, "it serves on");
    world.stop().await;
}

#[tokio::test]
async fn a_change_whose_client_hangs_up_is_whole_or_not_at_all() {
    let world = World::new().await;
    for n in 0..30 {
        let body = service(&format!("s{n}")).to_string();
        let request = format!(
            "POST {SERVICES} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        if n % 2 == 0 {
            // Some are under way by then, some are not.
            tokio::task::yield_now().await;
        }
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].to_string()).collect()
    };
    // Whatever is still under way is done before this one, because there is one change at a time.
    let (status, _) = world.apply("last", |_| {}).await;
    assert_eq!(status, 201);
    let (_, list) = world.api("GET", SERVICES, None).await;
    let dir = world.dir.clone();
    world.stop().await;
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let runtimes = vhive_node::Runtimes::new().with(sim);
    let world = crate::support::Setup::again(runtimes, dir).start().await;
    let (_, again) = world.api("GET", SERVICES, None).await;
    assert_eq!(names(&list), names(&again), "what is on disk is what was served");
    world.stop().await;
}

#[tokio::test]
async fn brokers_and_triggers_are_objects_like_any_other() {
    let world = World::new().await;
    let group = "/apis/eventing.knative.dev/v1";
    let triggers = format!("{group}/namespaces/default/triggers");
    let (_, groups) = world.api("GET", "/apis", None).await;
    assert!(groups.to_string().contains("eventing.knative.dev/v1"), "{groups}");
    let (_, resources) = world.api("GET", group, None).await;
    for resource in resources["resources"].as_array().unwrap() {
        let name = resource["name"].as_str().unwrap();
        if !name.contains('/') {
            let (status, list) = world.api("GET", &format!("{group}/{name}"), None).await;
            assert_eq!((status, &list["items"]), (200, &json!([])), "{name}");
        }
    }
    let (_, index) = world.api("GET", "/openapi/v3", None).await;
    let path = index["paths"]["apis/eventing.knative.dev/v1"]["serverRelativeURL"].clone();
    let (_, document) = world.api("GET", path.as_str().unwrap(), None).await;
    let patch =
        &document["paths"][format!("{group}/namespaces/{{namespace}}/triggers/{{name}}")]["patch"];
    assert!(patch["parameters"].to_string().contains("fieldValidation"), "{document}");

    let (_, list) = world.api("GET", &triggers, None).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch =
        Watch::begin(&world, &format!("{triggers}?watch=true&resourceVersion={from}")).await;
    let trigger = json!({
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "t", "labels": {"team": "a"}},
        "spec": {
            "broker": "default",
            "filter": {"attributes": {"type": "greeting"}},
            "subscriber": {"ref": {
                "apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello",
            }},
        },
    });
    let one = format!("{triggers}/t");
    let apply = "Content-Type: application/apply-patch+yaml\r\n";
    let by = |manager: &str| format!("{one}?fieldManager={manager}");
    let (status, made) = ask(&world, "PATCH", &by("me"), apply, &trigger).await;
    assert_eq!((status, &made["metadata"]["generation"]), (201, &json!(1)), "{made}");
    watch.expect("ADDED", "t").await;
    let (status, again) = ask(&world, "PATCH", &by("me"), apply, &trigger).await;
    assert_eq!(
        (status, &again["metadata"]["resourceVersion"]),
        (200, &made["metadata"]["resourceVersion"])
    );
    let mut other = trigger.clone();
    other["spec"]["filter"]["attributes"]["type"] = json!("parting");
    let (status, told) = ask(&world, "PATCH", &by("you"), apply, &other).await;
    assert_eq!((status, &told["details"]["kind"]), (409, &json!("triggers")), "{told}");
    let merge = "Content-Type: application/merge-patch+json\r\n";
    let patch = json!({"spec": {"filter": {"attributes": {"type": "parting"}}}});
    let (status, changed) = ask(&world, "PATCH", &one, merge, &patch).await;
    assert_eq!((status, &changed["metadata"]["generation"]), (200, &json!(2)));
    watch.expect("MODIFIED", "t").await;

    // What it needs comes, and whoever waits for its condition is told.
    let ready = |object: &Value| {
        let mut all = object["status"]["conditions"].as_array().unwrap().iter();
        all.any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    let brokers = format!("{group}/namespaces/default/brokers");
    let broker = json!({
        "apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "default"},
    });
    let dry = format!("{brokers}?dryRun=All");
    assert_eq!(world.api("POST", &dry, Some(&broker)).await.0, 201);
    assert_eq!(world.api("GET", &format!("{brokers}/default"), None).await.0, 404, "it was dry");
    assert_eq!(world.api("POST", &brokers, Some(&broker)).await.0, 201);
    assert_eq!(world.api("POST", &brokers, Some(&broker)).await.0, 409);
    assert!(!ready(&watch.expect("MODIFIED", "t").await));
    world.apply("hello", |_| {}).await;
    assert!(ready(&watch.expect("MODIFIED", "t").await));

    let table = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n";
    let selected = format!("{triggers}?labelSelector=team%3Da");
    let (_, shown) = ask(&world, "GET", &selected, table, &Value::Null).await;
    let cells = &shown["rows"][0]["cells"];
    assert_eq!(
        cells.as_array().unwrap()[..3],
        [json!("t"), json!("default"), json!("http://hello.default.example.com")]
    );
    let (_, shown) = ask(&world, "GET", &brokers, table, &Value::Null).await;
    assert_eq!(shown["rows"][0]["cells"][3], "True", "{shown}");

    let stale = json!({"preconditions": {"uid": "another"}});
    assert_eq!(world.api("DELETE", &one, Some(&stale)).await.0, 409);
    let (status, told) = world.api("DELETE", &one, None).await;
    assert_eq!((status, &told["details"]["uid"]), (200, &made["metadata"]["uid"]));
    watch.expect("DELETED", "t").await;
    assert_eq!(world.api("DELETE", &one, None).await.0, 404);
    let (status, _) = world.api("PUT", &format!("{one}/status"), Some(&json!({}))).await;
    assert_eq!(status, 405);
    world.stop().await;
}

#[tokio::test]
async fn all_pages_have_the_version_of_the_first_so_that_a_watch_misses_nothing() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.apply(name, |_| {}).await;
    }
    let (_, first) = world.api("GET", &format!("{SERVICES}?limit=2"), None).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    // One of the first page changes, one goes, and one comes before the second page.
    world.apply("a", |document| document["metadata"]["labels"] = json!({"x": "y"})).await;
    world.api("DELETE", &format!("{SERVICES}/b"), None).await;
    world.apply("d", |_| {}).await;
    let (_, last) = world.api("GET", &format!("{SERVICES}?limit=2&continue={next}"), None).await;
    let names: Vec<&Value> =
        last["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["c", "d"]);
    let from = last["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(first["metadata"]["resourceVersion"], from);
    let path = format!("{SERVICES}?watch=true&resourceVersion={from}");
    let mut watch = Watch::begin(&world, &path).await;
    let changed = watch.expect("MODIFIED", "a").await;
    assert_eq!(changed["metadata"]["labels"]["x"], "y");
    watch.expect("DELETED", "b").await;
    watch.expect("ADDED", "d").await;
    for wrong in ["nonsense", "x:default/a"] {
        let (status, _) = world.api("GET", &format!("{SERVICES}?continue={wrong}"), None).await;
        assert_eq!(status, 400, "{wrong}");
    }
    world.stop().await;
}

#[tokio::test]
async fn pages_that_have_become_too_old_go_on_only_if_the_client_says_so() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.apply(name, |_| {}).await;
    }
    let (_, first) = world.api("GET", &format!("{SERVICES}?limit=1"), None).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    // What has changed before the node's start is not kept.
    let dir = world.dir.clone();
    world.stop().await;
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let runtimes = vhive_node::Runtimes::new().with(sim);
    let world = crate::support::Setup::again(runtimes, dir).start().await;
    let (status, told) =
        world.api("GET", &format!("{SERVICES}?limit=1&continue={next}"), None).await;
    assert_eq!((status, &told["reason"]), (410, &json!("Expired")), "{told}");
    let next = told["metadata"]["continue"].as_str().unwrap();
    let (status, page) =
        world.api("GET", &format!("{SERVICES}?limit=1&continue={next}"), None).await;
    assert_eq!((status, &page["items"][0]["metadata"]["name"]), (200, &json!("b")), "{page}");
    let next = page["metadata"]["continue"].as_str().unwrap();
    let (_, page) = world.api("GET", &format!("{SERVICES}?continue={next}"), None).await;
    assert_eq!(page["items"][0]["metadata"]["name"], "c");
    let version: u64 = page["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let ahead = version + 1000;
    let (status, _) =
        world.api("GET", &format!("{SERVICES}?continue={ahead}:default/a"), None).await;
    assert_eq!(status, 410);
    // A watch from a version that was never given out would never tell anything.
    let path = format!("{SERVICES}?watch=true&resourceVersion={ahead}");
    let mut watch = Watch::begin(&world, &path).await;
    let (what, told) = watch.next().await;
    assert_eq!((what.as_str(), &told["code"]), ("ERROR", &json!(410)), "{told}");
    world.stop().await;
}

#[tokio::test]
async fn a_watch_can_tell_rows_of_a_table() {
    let world = World::new().await;
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    let request = format!(
        "GET {SERVICES}?watch=true&resourceVersion=0 HTTP/1.0\r\n\
         Accept: application/json;as=Table;v=v1;g=meta.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut watch = Watch { stream, text: String::new() };
    while !watch.text.contains("\r\n\r\n") {
        watch.more().await;
    }
    watch.text = watch.text.split_once("\r\n\r\n").unwrap().1.to_owned();
    world.apply("hello", |_| {}).await;
    let (what, table) = watch.next().await;
    assert_eq!((what.as_str(), &table["kind"]), ("ADDED", &json!("Table")), "{table}");
    let columns = table["columnDefinitions"].as_array().unwrap();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!((columns.len(), &cells[0]), (cells.len(), &json!("hello")));
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "hello");
    world.api("DELETE", &format!("{SERVICES}/hello"), None).await;
    let (what, table) = watch.next().await;
    assert_eq!((what.as_str(), &table["rows"][0]["cells"][0]), ("DELETED", &json!("hello")));
    world.stop().await;
}

//! Writes as clients of Kubernetes make them at their edges: unknown fields, dry runs, preconditions,
//! collections, metadata of what others make, many writers at once.

use std::sync::Arc;

use redb::ReadableTable as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::kubernetes::{Watch, ask};
use crate::support::{Reply, World, service, within};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";
const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
const MERGE: &str = "Content-Type: application/merge-patch+json\r\n";
const APPLY: &str = "Content-Type: application/apply-patch+yaml\r\n";

/// A request of which the reply's head is wanted, too.
async fn whole(world: &World, method: &str, path: &str, fields: &str, body: &Value) -> Reply {
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\n{fields}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    within(stream.read_to_end(&mut reply)).await.unwrap();
    Reply::parse(&reply)
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn unknown_fields_are_refused_left_out_or_warned_of_as_the_client_wants() {
    let world = World::new().await;
    let json = "Content-Type: application/json\r\n";
    let mut odd = service("odd");
    odd["spec"]["colour"] = json!("red");
    odd["spec"]["template"]["spec"]["containers"][0]["shape"] = json!({"a": 1});
    for strict in ["", "?fieldValidation=Strict"] {
        let (status, told) = world.api("POST", &format!("{SERVICES}{strict}"), Some(&odd)).await;
        assert_eq!(
            (status, &told["details"]["causes"][0]["field"]),
            (422, &json!("spec.colour")),
            "{told}"
        );
    }
    let (status, _) =
        world.api("POST", &format!("{SERVICES}?fieldValidation=Perhaps"), Some(&odd)).await;
    assert_eq!(status, 400);

    let reply =
        whole(&world, "POST", &format!("{SERVICES}?fieldValidation=Warn"), json, &odd).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let warnings: Vec<&str> =
        reply.head.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
    let wanted = [
        r#"299 - "unknown field \"spec.colour\"""#,
        r#"299 - "unknown field \"spec.template.spec.containers[0].shape\"""#,
    ];
    assert_eq!(warnings, wanted);
    let made: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(made["spec"], service("odd")["spec"]);
    assert!(!made["metadata"]["managedFields"].to_string().contains("colour"), "{made}");

    // By PUT, by a patch and by apply; without a word if so wanted.
    let path = format!("{SERVICES}/odd?fieldManager=me&fieldValidation=Ignore");
    for (method, fields, body) in [
        ("PUT", json, odd.clone()),
        ("PATCH", MERGE, json!({"spec": {"colour": "blue"}})),
        ("PATCH", APPLY, odd.clone()),
    ] {
        let path = if fields == APPLY { format!("{path}&force=true") } else { path.clone() };
        let reply = whole(&world, method, &path, fields, &body).await;
        assert_eq!((reply.status, reply.header("warning")), (200, None), "{method}: {reply:?}");
        let now: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(now["spec"], made["spec"], "{method}");
        assert!(!now["metadata"]["managedFields"].to_string().contains("colour"), "{now}");
    }
    // What Knative knows and is not honoured here, or is wrong, is refused all the same.
    let mut bound = odd.clone();
    bound["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    bound["spec"]["template"]["spec"]["timeoutSeconds"] = json!("long");
    let (status, told) = world.api("PUT", &path, Some(&bound)).await;
    let causes = told["details"]["causes"].as_array().unwrap();
    let fields: Vec<&str> = causes.iter().map(|one| one["field"].as_str().unwrap()).collect();
    assert_eq!(status, 422);
    assert_eq!(fields, ["spec.template.spec.nodeSelector", "spec.template.spec.timeoutSeconds"]);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "mood": "x"},
        "data": {"a": "b"}, "more": 1,
    });
    let maps = "/api/v1/namespaces/default/configmaps";
    let (status, made) =
        world.api("POST", &format!("{maps}?fieldValidation=Ignore"), Some(&map)).await;
    assert_eq!((status, &made["data"], made.get("more")), (201, &json!({"a": "b"}), None));
    world.stop().await;
}

#[tokio::test]
async fn a_dry_run_of_each_kind_of_write_changes_nothing() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    world
        .apply("hello", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = json!(7);
        })
        .await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1"},
    });
    world.api("POST", maps, Some(&map)).await;
    let before = world.api("GET", SERVICES, None).await.1;
    let kept = world.api("GET", &format!("{maps}/m"), None).await.1;
    let (path, dry) = (format!("{SERVICES}/hello"), "dryRun=All&fieldManager=me");
    let mut next = service("hello");
    next["metadata"]["labels"] = json!({"a": "b"});
    let json = "Content-Type: application/json\r\n";
    for (method, fields) in [("PUT", json), ("PATCH", MERGE), ("PATCH", APPLY)] {
        let force = if fields == APPLY { "&force=true" } else { "" };
        let path = format!("{path}?{dry}{force}");
        let (status, would) = ask(&world, method, &path, fields, &next).await;
        assert_eq!((status, &would["metadata"]["labels"]), (200, &json!({"a": "b"})), "{would}");
    }
    let (status, would) =
        ask(&world, "PATCH", &format!("{maps}/m?{dry}"), MERGE, &json!({"data": {"a": "2"}})).await;
    assert_eq!((status, &would["data"]["a"]), (200, &json!("2")));
    let fresh = format!("{SERVICES}/fresh?{dry}");
    let (status, _) = ask(&world, "PATCH", &fresh, APPLY, &service("fresh")).await;
    assert_eq!(status, 201);
    for path in [&path, &format!("{maps}/m"), &format!("{SERVING}/revisions/hello-00001")] {
        let (status, told) = world.api("DELETE", &format!("{path}?dryRun=All"), None).await;
        assert_eq!(status, 200, "{path}: {told}");
        let body = json!({"dryRun": ["All"]});
        assert_eq!(world.api("DELETE", path, Some(&body)).await.0, 200, "{path}");
        let stale = json!({"dryRun": ["All"], "preconditions": {"uid": "another"}});
        assert_eq!(world.api("DELETE", path, Some(&stale)).await.0, 409, "{path}");
        let odd = json!({"dryRun": ["Some"]});
        assert_eq!(world.api("DELETE", path, Some(&odd)).await.0, 400, "{path}");
    }
    // A revision in use could not be deleted.
    let latest = format!("{SERVING}/revisions/hello-00002?dryRun=All");
    assert_eq!(world.api("DELETE", &latest, None).await.0, 409);
    let after = world.api("GET", SERVICES, None).await.1;
    assert_eq!(after, before, "not even the version is another");
    assert_eq!(world.api("GET", &format!("{maps}/m"), None).await.1, kept);
    world.stop().await;
}

#[tokio::test]
async fn a_revision_is_deleted_only_as_it_was_seen() {
    let world = World::new().await;
    for concurrency in [1, 2] {
        world
            .apply("hello", |document| {
                document["spec"]["template"]["spec"]["containerConcurrency"] = json!(concurrency);
            })
            .await;
    }
    let path = format!("{SERVING}/revisions/hello-00001");
    let seen = world.api("GET", &path, None).await.1;
    for stale in [
        json!({"preconditions": {"uid": "another"}}),
        json!({"preconditions": {"resourceVersion": "1"}}),
    ] {
        let (status, told) = world.api("DELETE", &path, Some(&stale)).await;
        assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "{told}");
    }
    let right = json!({"preconditions": {
        "uid": seen["metadata"]["uid"],
        "resourceVersion": seen["metadata"]["resourceVersion"],
    }});
    let (status, told) = world.api("DELETE", &path, Some(&right)).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(world.api("GET", &path, None).await.0, 404);
    world.stop().await;
}

#[tokio::test]
async fn what_an_object_has_made_cannot_be_left_behind() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let path = format!("{SERVICES}/hello");
    for (at, body) in [
        (path.clone(), json!({"propagationPolicy": "Orphan"})),
        (path.clone(), json!({"orphanDependents": true})),
        (format!("{path}?propagationPolicy=Orphan"), Value::Null),
        (path.clone(), json!({"propagationPolicy": "Sideways"})),
    ] {
        let body = Some(&body).filter(|body| !body.is_null());
        let (status, told) = world.api("DELETE", &at, body).await;
        assert_eq!((status, &told["reason"]), (422, &json!("Invalid")), "{at}: {told}");
    }
    let body = json!({"propagationPolicy": "Foreground"});
    assert_eq!(world.api("DELETE", &path, Some(&body)).await.0, 200);
    // Nothing comes of a config map.
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    world.api("POST", maps, Some(&map)).await;
    let orphan = json!({"propagationPolicy": "Orphan"});
    assert_eq!(world.api("DELETE", &format!("{maps}/m"), Some(&orphan)).await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_collection_is_deleted_as_far_as_it_is_selected() {
    let world = World::new().await;
    for (name, team) in [("a", "x"), ("b", "y"), ("c", "x")] {
        world.apply(name, |document| document["metadata"]["labels"] = json!({"team": team})).await;
    }
    let selected = format!("{SERVICES}?labelSelector=team%3Dx");
    let (status, gone) = world.api("DELETE", &format!("{selected}&dryRun=All"), None).await;
    assert_eq!((status, names(&gone)), (200, vec!["a", "c"]), "{gone}");
    assert_eq!(names(&world.api("GET", SERVICES, None).await.1), ["a", "b", "c"]);
    let (status, gone) = world.api("DELETE", &selected, None).await;
    assert_eq!((status, &gone["kind"], names(&gone)), (200, &json!("ServiceList"), vec!["a", "c"]));
    assert_eq!(names(&world.api("GET", SERVICES, None).await.1), ["b"]);
    // What a service has made is not a collection's to delete.
    let (status, gone) = world.api("DELETE", &format!("{SERVING}/routes"), None).await;
    assert_eq!((status, names(&gone)), (200, Vec::new()));
    assert_eq!(names(&world.api("GET", &format!("{SERVING}/routes"), None).await.1), ["b"]);
    let (status, told) = world.api("DELETE", &format!("{SERVING}/revisions"), None).await;
    assert_eq!((status, &told["reason"]), (409, &json!("Conflict")), "it is in use: {told}");
    for path in ["/api/v1/namespaces/default/pods", "/api/v1/namespaces"] {
        assert_eq!(world.api("DELETE", path, None).await.0, 405, "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn labels_and_annotations_of_what_others_make_can_be_changed() {
    let world = World::new().await;
    world
        .apply("hello", |document| {
            document["spec"]["template"]["metadata"] = json!({
                "labels": {"from": "template"},
                "annotations": {
                    "autoscaling.knative.dev/max-scale": "3", "note": "one",
                    "serving.knative.dev/no-gc": "true",
                    "serving.knative.dev/progress-deadline": "60s",
                },
            });
        })
        .await;
    let revision = format!("{SERVING}/revisions/hello-00001");
    let mut watch =
        Watch::begin(&world, &format!("{SERVING}/revisions?watch=true&sendInitialEvents=false"))
            .await;
    watch.expect("ADDED", "hello-00001").await;
    let patch = json!({"metadata": {"labels": {"mine": "1"}, "annotations": {"note": null}}});
    let (status, marked) =
        ask(&world, "PATCH", &format!("{revision}?fieldManager=me"), MERGE, &patch).await;
    assert_eq!(status, 200, "{marked}");
    let metadata = &marked["metadata"];
    assert_eq!(
        (&metadata["labels"]["mine"], &metadata["labels"]["from"]),
        (&json!("1"), &json!("template"))
    );
    assert_eq!(metadata["labels"]["serving.knative.dev/service"], "hello");
    assert_eq!(metadata["annotations"].get("note"), None);
    assert_eq!(metadata["annotations"]["autoscaling.knative.dev/max-scale"], "3");
    assert_eq!(metadata["managedFields"][0]["manager"], "me");
    // Nor does anything else of the template's go, and the node's own is there once.
    for (name, value) in [("no-gc", "true"), ("progress-deadline", "60s"), ("routes", "hello")] {
        let name = format!("serving.knative.dev/{name}");
        assert_eq!(metadata["annotations"][&name], value, "{name}");
        let patch = json!({"metadata": {"annotations": {name: value}}});
        let (status, told) = ask(&world, "PATCH", &revision, MERGE, &patch).await;
        assert_eq!(status, 200, "what was read can be written: {told}");
    }
    let told = watch.expect("MODIFIED", "hello-00001").await;
    assert_eq!(told["metadata"]["labels"], metadata["labels"]);
    let selected = format!("{SERVING}/revisions?labelSelector=mine%3D1");
    assert_eq!(names(&world.api("GET", &selected, None).await.1), ["hello-00001"]);
    let (status, same) = world.api("PUT", &revision, Some(&marked)).await;
    assert_eq!((status, &same["metadata"]["labels"]), (200, &metadata["labels"]));
    for wrong in [
        json!({"spec": {"timeoutSeconds": 7}}),
        json!({"metadata": {"labels": {"serving.knative.dev/service": "other"}}}),
        json!({"metadata": {"annotations": {"autoscaling.knative.dev/max-scale": "9"}}}),
        json!({"metadata": {"annotations": {"serving.knative.dev/no-gc": "false"}}}),
        json!({"metadata": {"labels": {"networking.knative.dev/visibility": "cluster-local"}}}),
        json!({"metadata": {"labels": {"not a label": "x"}}}),
    ] {
        let (status, told) = ask(&world, "PATCH", &revision, MERGE, &wrong).await;
        assert_eq!((status, &told["reason"]), (422, &json!("Invalid")), "{wrong}: {told}");
    }
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"mine": "2"}}});
    assert_eq!(ask(&world, "PATCH", &revision, MERGE, &stale).await.0, 409);
    let made = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                      "metadata": {"name": "hello-00009"}});
    assert_eq!(world.api("POST", &format!("{SERVING}/revisions"), Some(&made)).await.0, 405);

    for plural in ["configurations", "routes"] {
        let path = format!("{SERVING}/{plural}/hello");
        let patch = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"why": "so"}}});
        let (status, marked) = ask(&world, "PATCH", &path, MERGE, &patch).await;
        assert_eq!((status, &marked["metadata"]["labels"]["team"]), (200, &json!("a")), "{marked}");
        assert_eq!(marked["metadata"]["annotations"]["why"], "so");
        let wrong = json!({"spec": {"traffic": [], "template": {}}});
        let (status, told) = ask(&world, "PATCH", &path, MERGE, &wrong).await;
        assert_eq!(status, 405, "{told}");
        // What would be shown and do nothing.
        for wrong in [
            json!({"labels": {"networking.knative.dev/visibility": "cluster-local"}}),
            json!({"annotations": {"networking.knative.dev/ingress-class": "kourier"}}),
        ] {
            let patch = json!({"metadata": wrong});
            let (status, told) = ask(&world, "PATCH", &path, MERGE, &patch).await;
            assert_eq!((status, &told["reason"]), (422, &json!("Invalid")), "{path}: {told}");
        }
    }
    // They stay when the service changes and when the node starts again.
    world.apply("hello", |document| document["metadata"]["labels"] = json!({"x": "y"})).await;
    let dir = world.dir.clone();
    world.stop().await;
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let runtimes = vhive_node::Runtimes::new().with(sim);
    let world = crate::support::Setup::again(runtimes, dir).start().await;
    for (path, label) in [
        ("revisions/hello-00001", "mine"),
        ("configurations/hello", "team"),
        ("routes/hello", "team"),
    ] {
        let object = world.api("GET", &format!("{SERVING}/{path}"), None).await.1;
        assert!(object["metadata"]["labels"].get(label).is_some(), "{path}: {object}");
    }
    world.stop().await;
}

#[tokio::test]
async fn what_was_stored_before_it_was_refused_can_still_be_changed() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let route = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "r"},
        "spec": {"traffic": [{"configurationName": "hello", "percent": 100}]},
    });
    assert_eq!(world.api("POST", &format!("{SERVING}/routes"), Some(&route)).await.0, 201);
    let (dir, state) = (world.dir.clone(), world.node.config().state_dir.clone());
    world.stop().await;
    // As an earlier version wrote them.
    let class = "networking.knative.dev/ingress-class";
    {
        let database = redb::Database::create(state.join("state.redb")).unwrap();
        let write = database.begin_write().unwrap();
        for (table, key) in
            [("services", "default/hello"), ("objects", "routes.serving.knative.dev/default/r")]
        {
            let table = redb::TableDefinition::<&str, &[u8]>::new(table);
            let mut table = write.open_table(table).unwrap();
            let mut stored: Value =
                serde_json::from_slice(table.get(key).unwrap().unwrap().value()).unwrap();
            stored["annotations"] = json!({class: "kourier"});
            let bytes = serde_json::to_vec(&stored).unwrap();
            table.insert(key, bytes.as_slice()).unwrap();
        }
        write.commit().unwrap();
    }
    let sim = vhive_sandbox::sim::Sim::new(vhive_sandbox::sim::SimConfig::default());
    let runtimes = vhive_node::Runtimes::new().with(sim);
    let world = crate::support::Setup::again(runtimes, dir).start().await;
    for path in ["services/hello", "routes/r"] {
        let path = format!("{SERVING}/{path}");
        let patch = json!({"metadata": {"labels": {"team": "a"}}});
        let (status, told) = ask(&world, "PATCH", &path, MERGE, &patch).await;
        assert_eq!((status, &told["metadata"]["labels"]["team"]), (200, &json!("a")), "{told}");
        assert_eq!(told["metadata"]["annotations"][class], "kourier");
        let (status, told) = world.api("PUT", &path, Some(&told)).await;
        assert_eq!(status, 200, "{told}");
        for value in [json!("istio"), json!(null)] {
            let patch = json!({"metadata": {"annotations": {class: value}}});
            let (status, told) = ask(&world, "PATCH", &path, MERGE, &patch).await;
            assert_eq!(status, if value.is_null() { 200 } else { 422 }, "{told}");
        }
        let patch = json!({"metadata": {"annotations": {class: "kourier"}}});
        let (status, told) = ask(&world, "PATCH", &path, MERGE, &patch).await;
        assert_eq!(status, 422, "it is new now: {told}");
    }
    world.stop().await;
}

#[tokio::test]
async fn of_many_writers_each_accepted_write_counts_once() {
    const WRITERS: usize = 16;
    const EACH: usize = 10;
    let world = Arc::new(World::new().await);
    let path = "/api/v1/namespaces/default/configmaps/counter";
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counter"},
        "data": {"n": "0"},
    });
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(world.api("POST", maps, Some(&map)).await.0, 201);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let world = Arc::clone(&world);
        writers.spawn(async move {
            let (mut accepted, mut refused) = (0, 0);
            while accepted < EACH {
                // Read, count, write what was read with its version.
                let mut seen = world.api("GET", path, None).await.1;
                let n: usize = seen["data"]["n"].as_str().unwrap().parse().unwrap();
                seen["data"]["n"] = json!((n + 1).to_string());
                match world.api("PUT", path, Some(&seen)).await {
                    (200, _) => accepted += 1,
                    (409, told) if told["reason"] == "Conflict" => refused += 1,
                    (status, told) => panic!("{status}: {told}"),
                }
            }
            refused
        });
    }
    let mut refused = 0;
    while let Some(done) = writers.join_next().await {
        refused += done.unwrap();
    }
    let last = world.api("GET", path, None).await.1;
    assert_eq!(last["data"]["n"], (WRITERS * EACH).to_string(), "{refused} were refused");

    // Patches that name no version are tried again; one that is refused after all has not happened.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let world = Arc::clone(&world);
        writers.spawn(async move {
            let mut accepted = Vec::new();
            for n in 0..EACH {
                let key = format!("{writer}-{n}");
                let patch = json!({ "data": { &key: "x" } });
                match ask(&world, "PATCH", path, MERGE, &patch).await {
                    (200, _) => accepted.push(key),
                    (409, _) => {}
                    (status, told) => panic!("{status}: {told}"),
                }
            }
            accepted
        });
    }
    let mut wanted = vec!["n".to_owned()];
    while let Some(done) = writers.join_next().await {
        wanted.extend(done.unwrap());
    }
    wanted.sort();
    let last = world.api("GET", path, None).await.1;
    let mut found: Vec<String> = last["data"].as_object().unwrap().keys().cloned().collect();
    found.sort();
    assert_eq!(found, wanted);
    assert!(found.len() > EACH, "most come through");
    Arc::into_inner(world).unwrap().stop().await;
}

#[tokio::test]
async fn configurations_and_routes_are_applied_by_their_owners() {
    let world = World::new().await;
    let mut configuration = service("c");
    configuration["kind"] = json!("Configuration");
    let route = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "r"},
        "spec": {"traffic": [{"configurationName": "c", "latestRevision": true, "percent": 100}]},
    });
    for (plural, name, document, field, value, path) in [
        (
            "configurations",
            "c",
            &configuration,
            "/spec/template/spec",
            json!({"containers": [{"image": "dev.local/other"}]}),
            ".spec.template.spec.containers",
        ),
        (
            "routes",
            "r",
            &route,
            "/spec",
            json!({"traffic": [{"revisionName": "c-00001", "percent": 100}]}),
            ".spec.traffic",
        ),
    ] {
        let by = |manager: &str| format!("{SERVING}/{plural}/{name}?fieldManager={manager}");
        let (status, made) = ask(&world, "PATCH", &by("one"), APPLY, document).await;
        assert_eq!((status, &made["metadata"]["generation"]), (201, &json!(1)), "{made}");
        let entry = &made["metadata"]["managedFields"][0];
        assert_eq!((&entry["manager"], &entry["operation"]), (&json!("one"), &json!("Apply")));
        let (status, same) = ask(&world, "PATCH", &by("one"), APPLY, document).await;
        assert_eq!(
            (status, &same["metadata"]["resourceVersion"]),
            (200, &made["metadata"]["resourceVersion"])
        );
        let mut other = document.clone();
        *other.pointer_mut(field).unwrap() = value;
        let (status, told) = ask(&world, "PATCH", &by("two"), APPLY, &other).await;
        let cause = &told["details"]["causes"][0];
        assert_eq!((status, &cause["field"]), (409, &json!(path)), "{told}");
        let forced = by("two") + "&force=true";
        let (status, taken) = ask(&world, "PATCH", &forced, APPLY, &other).await;
        assert_eq!((status, &taken["metadata"]["generation"]), (200, &json!(2)), "{taken}");
        // The first one no longer owns it, and lets it be by not saying it.
        let mut less = document.clone();
        less.as_object_mut().unwrap().remove("spec");
        let (status, left) = ask(&world, "PATCH", &by("one"), APPLY, &less).await;
        assert_eq!((status, &left["spec"]), (200, &taken["spec"]), "{left}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_status_can_be_read_by_itself() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    for path in ["services/hello", "configurations/hello", "routes/hello", "revisions/hello-00001"]
    {
        let (_, object) = world.api("GET", &format!("{SERVING}/{path}"), None).await;
        let (status, alone) = world.api("GET", &format!("{SERVING}/{path}/status"), None).await;
        assert_eq!((status, &alone), (200, &object), "{path}");
        assert!(alone["status"]["conditions"].is_array(), "{path}: {alone}");
    }
    assert_eq!(world.api("GET", &format!("{SERVICES}/none/status"), None).await.0, 404);
    world.stop().await;
}

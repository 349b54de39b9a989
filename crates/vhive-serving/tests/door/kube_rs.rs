//! kube-rs, as its users use it.

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;

use crate::support::{World, within};

/// A client by a file as `vhive kubeconfig` prints it.
async fn client(world: &World) -> kube::Client {
    let addresses = world.serving.addresses();
    let state = world.node.config().state_dir.clone();
    let yaml = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "vhive",
        "clusters": [{"name": "vhive", "cluster": {
            "server": format!("https://{}", addresses.api),
            "certificate-authority": state.join("api.ca.crt"),
        }}],
        "users": [{"name": "vhive", "user": {"tokenFile": addresses.token}}],
        "contexts": [{"name": "vhive", "context": {"cluster": "vhive", "user": "vhive"}}],
    });
    let kubeconfig = Kubeconfig::from_yaml(&yaml.to_string()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn is_ready(object: Option<&DynamicObject>) -> bool {
    let conditions = object.and_then(|object| object.data.pointer("/status/conditions"));
    let all = conditions.and_then(|all| all.as_array()).into_iter().flatten();
    all.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

#[tokio::test]
async fn kube_rs_applies_waits_watches_and_deletes() {
    let world = World::new().await;
    let client = client(&world).await;
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");

    let kind = GroupVersionKind::gvk("serving.knative.dev", "v1", "Service");
    let (resource, _) = kube::discovery::pinned_kind(&client, &kind).await.unwrap();
    assert_eq!(resource.plural, "services");
    let services: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let mut events = watcher(services.clone(), watcher::Config::default()).boxed();
    while !matches!(within(events.try_next()).await.unwrap(), Some(Event::InitDone)) {}

    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "pass"}, "stringData": {"word": "hush"},
    }))
    .unwrap();
    let made = secrets.create(&PostParams::default(), &secret).await.unwrap();
    assert_eq!(made.data.unwrap()["word"].0, b"hush");
    let twice = secrets.create(&PostParams::default(), &secret).await.unwrap_err();
    assert!(matches!(&twice, kube::Error::Api(told) if told.is_already_exists()), "{twice}");

    let by = PatchParams::apply("test");
    let document = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello"},
        "spec": {"template": {"spec": {"containers": [{
            "image": "dev.local/hello",
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
        }]}}},
    });
    services.patch("hello", &by, &Patch::Apply(&document)).await.unwrap();
    let Some(Event::Apply(told)) = within(events.try_next()).await.unwrap() else {
        panic!("it is told first that it is there")
    };
    assert_eq!(told.metadata.name.as_deref(), Some("hello"));
    // Not ready before its config map is there.
    let waiting = tokio::spawn(await_condition(services.clone(), "hello", is_ready));
    let config_maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"},
    });
    config_maps.patch("c", &by, &Patch::Apply(&map)).await.unwrap();
    let ready = within(waiting).await.unwrap().unwrap().expect("it is there");
    assert!(is_ready(Some(&ready)));
    assert_eq!(world.get("hello").await.status, 200);

    let listed = services.list(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    let manager = &listed.items[0].metadata.managed_fields.as_ref().unwrap()[0];
    assert_eq!(manager.manager.as_deref(), Some("test"));
    let revisions =
        ApiResource::from_gvk(&GroupVersionKind::gvk("serving.knative.dev", "v1", "Revision"));
    let revisions: Api<DynamicObject> = Api::all_with(client.clone(), &revisions);
    let of_it = ListParams::default().labels("serving.knative.dev/service=hello");
    assert_eq!(revisions.list(&of_it).await.unwrap().items.len(), 1);

    services.delete("hello", &DeleteParams::default()).await.unwrap();
    loop {
        match within(events.try_next()).await.unwrap() {
            Some(Event::Delete(gone)) => {
                assert_eq!(gone.metadata.name.as_deref(), Some("hello"));
                break;
            }
            Some(Event::Apply(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(services.get_opt("hello").await.unwrap().map(|gone| gone.metadata.name), None);
    world.stop().await;
}

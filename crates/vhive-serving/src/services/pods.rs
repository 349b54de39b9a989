//! Instances as pods, for those who watch them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use vhive_api::RevisionKey;

use super::Services;
use crate::changes::{Change, Expired, Watcher, What};
use crate::kind::Kind;
use crate::objects;

/// The pods that watchers know of, by revision and name; kept while anybody watches.
#[derive(Debug, Default)]
pub(super) struct Pods(Mutex<Option<HashMap<RevisionKey, Seen>>>);

type Seen = HashMap<String, Value>;

impl Services {
    /// Every pod, or those of one namespace, by service and age.
    pub(crate) fn pods(&self, namespace: Option<&str>) -> Vec<Value> {
        let routes = self.catalog.routes();
        let wanted = routes.iter().filter(|route| {
            namespace.is_none_or(|namespace| namespace == route.revision.key.namespace)
        });
        wanted.flat_map(|route| self.pods_of(&route.revision.key)).collect()
    }

    fn pods_of(&self, key: &RevisionKey) -> Vec<Value> {
        let version = self.changes.version();
        let Some((revision, instances)) = self.node.instances(key) else { return Vec::new() };
        instances.iter().map(|one| objects::pod(&revision, one, version)).collect()
    }

    /// Watches objects of a kind; see [`Changes::watch`](crate::changes::Changes::watch).
    pub(crate) async fn watch(
        self: &Arc<Self>,
        kind: Kind,
        from: Option<u64>,
    ) -> Result<Watcher, Expired> {
        let services = Arc::clone(self);
        // To the end, even if who watches hangs up.
        let begun = tokio::spawn(async move { services.begin_watch(kind, from).await });
        // Lost only when the runtime ends.
        begun.await.unwrap_or(Err(Expired::Old { given: from.unwrap_or(0), oldest: u64::MAX }))
    }

    async fn begin_watch(
        self: &Arc<Self>,
        kind: Kind,
        from: Option<u64>,
    ) -> Result<Watcher, Expired> {
        let _changing = self.changing.lock().await;
        self.settle_all().await;
        if kind == Kind::Pod && !self.changes.is_watched(kind) {
            let routes = self.catalog.routes();
            let each = routes.iter().map(|route| {
                let key = route.revision.key.clone();
                let pods = self.pods_of(&key);
                (key, pods.into_iter().map(by_name).collect())
            });
            *self.pods.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(each.collect());
        }
        self.changes.watch(kind, from)
    }

    /// Tells what has become of a revision's pods. The lock for changes is held.
    pub(super) fn tell_pods(&self, key: &RevisionKey) {
        let mut known = self.pods.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = known.as_mut().filter(|_| self.changes.is_watched(Kind::Pod)) else {
            *known = None;
            self.changes.skip(Kind::Pod);
            return;
        };
        let mut before = all.remove(key).unwrap_or_default();
        let mut now = Seen::new();
        let mut told = Vec::new();
        let mut tell = |what, mut object: Value| {
            let (version, kind) = (self.next_version(), Kind::Pod);
            object["metadata"]["resourceVersion"] = Value::from(version.to_string());
            told.push(Change::new(version, kind, what, &object));
            object
        };
        for (name, pod) in self.pods_of(key).into_iter().map(by_name) {
            let pod = match before.remove(&name) {
                Some(old) if same(&old, &pod) => old,
                Some(_) => tell(What::Modified, pod),
                None => tell(What::Added, pod),
            };
            now.insert(name, pod);
        }
        for (_, pod) in before {
            tell(What::Deleted, pod);
        }
        if !now.is_empty() {
            all.insert(key.clone(), now);
        }
        drop(known);
        self.changes.publish(told);
    }
}

fn by_name(pod: Value) -> (String, Value) {
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    (name.to_owned(), pod)
}

fn same(one: &Value, two: &Value) -> bool {
    one["status"] == two["status"] && one["spec"] == two["spec"]
}

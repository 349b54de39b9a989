//! The services of this node: which there are, and which revision answers to which host.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::runtime::Handle;
use tokio::time::Instant;
use vhive_api::{Revision, RevisionKey, SandboxId};

use crate::autoscale::Rules;
use crate::gateway::Upstreams;
use crate::metrics::RouteMetrics;
use crate::scaler::Poke;
use crate::store::StoredService;
use crate::throttle::Throttle;

/// Everything that a request to one revision needs.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) revision: Arc<Revision>,
    pub(crate) rules: Rules,
    pub(crate) throttle: Throttle,
    pub(crate) upstreams: Upstreams,
    pub(crate) metrics: RouteMetrics,
}

/// One service with its present revision.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) stored: Arc<StoredService>,
    pub(crate) route: Arc<Route>,
}

/// Namespace and name.
pub(crate) type ServiceKey = (String, String);

/// The services by name and by host.
#[derive(Debug)]
pub(crate) struct Catalog {
    domain: String,
    idle_connections: usize,
    /// Wakes the autoscaler.
    pub(crate) poke: Arc<Poke>,
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    services: BTreeMap<ServiceKey, Entry>,
    hosts: HashMap<Box<str>, Arc<Route>>,
}

impl Catalog {
    pub(crate) fn new(domain: &str, idle_connections: usize) -> Self {
        let domain = domain.to_owned();
        Self { domain, idle_connections, poke: Arc::default(), tables: RwLock::default() }
    }

    /// The host name that a service answers to.
    pub(crate) fn host(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.{}", self.domain)
    }

    /// The revision that answers to a host, whatever its case.
    pub(crate) fn route(&self, host: &str) -> Option<Arc<Route>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = tables.hosts.get(host) {
            return Some(Arc::clone(route));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        tables.hosts.get(host.as_str()).cloned()
    }

    /// Puts a service in place and returns the route that its host led to before.
    pub(crate) fn put(&self, stored: StoredService) -> (Entry, Option<Arc<Route>>) {
        let host = self.host(stored.namespace(), stored.name()).into_boxed_str();
        let key = (stored.namespace().to_owned(), stored.name().to_owned());
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let before = tables.hosts.get(&host).cloned();
        let same = before.as_ref().filter(|route| {
            *route.revision == stored.revision
                && route.rules == stored.rules
                && route.throttle.depth() == stored.queue_depth
        });
        let route = match same {
            Some(route) => Arc::clone(route),
            None => Arc::new(self.make_route(&stored)),
        };
        let entry = Entry { stored: Arc::new(stored), route };
        tables.hosts.insert(host, Arc::clone(&entry.route));
        tables.services.insert(key, entry.clone());
        let replaced = before.filter(|before| !Arc::ptr_eq(before, &entry.route));
        (entry, replaced)
    }

    /// Takes a service out.
    pub(crate) fn remove(&self, namespace: &str, name: &str) -> Option<Entry> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let entry = tables.services.remove(&key)?;
        tables.hosts.remove(self.host(namespace, name).as_str());
        Some(entry)
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Entry> {
        let key = (namespace.to_owned(), name.to_owned());
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.services.get(&key).cloned()
    }

    /// Closes the connections to an instance of a revision. Blocks; not for a thread of the async
    /// runtime.
    pub(crate) fn quiesce(&self, revision: &RevisionKey, instance: &SandboxId, runtime: &Handle) {
        let routes: Vec<Arc<Route>> = {
            let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
            let routes = tables.services.values().map(|entry| &entry.route);
            routes.filter(|route| route.revision.key == *revision).cloned().collect()
        };
        for route in routes {
            route.upstreams.quiesce(instance, runtime);
        }
    }

    /// Every service, or those of one namespace, by name.
    pub(crate) fn list(&self, namespace: Option<&str>) -> Vec<Entry> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let all = tables.services.iter();
        let wanted = all.filter(|((of, _), _)| namespace.is_none_or(|namespace| namespace == of));
        wanted.map(|(_, entry)| entry.clone()).collect()
    }

    fn make_route(&self, stored: &StoredService) -> Route {
        let service = (stored.namespace().to_owned(), stored.name().to_owned());
        let poke = Arc::clone(&self.poke);
        Route {
            revision: Arc::new(stored.revision.clone()),
            rules: stored.rules.clone(),
            throttle: Throttle::new(stored.queue_depth, service, poke, Instant::now()),
            upstreams: Upstreams::new(self.idle_connections),
            metrics: RouteMetrics::default(),
        }
    }
}

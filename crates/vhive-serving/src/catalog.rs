//! The services of this node: which there are, and which revision answers to which host.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::time::Instant;
use vhive_api::{Revision, RevisionKey, SandboxId};

use crate::autoscale::Rules;
use crate::eventing::Losses;
use crate::gateway::Upstreams;
use crate::inputs::Inputs;
use crate::metrics::RouteMetrics;
use crate::registry::Registry;
use crate::scaler::Poke;
use crate::standing::Standing;
use crate::store::{StoredObject, StoredRevision, StoredService};
use crate::throttle::Throttle;
use crate::traffic::{self, Target};

/// Where a host of the cluster itself ends.
const CLUSTER: &str = ".svc.cluster.local";

/// Everything that a request to one revision needs.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) revision: Arc<Revision>,
    /// What it takes from config maps and secrets.
    pub(crate) inputs: Option<Arc<Inputs>>,
    pub(crate) rules: Rules,
    pub(crate) throttle: Throttle,
    pub(crate) upstreams: Upstreams,
    pub(crate) metrics: RouteMetrics,
    /// Whether new requests can come: otherwise no least number of instances is kept.
    reachable: AtomicBool,
    /// Whether it has ever been ready: otherwise its first instances are wanted.
    ready: AtomicBool,
}

impl Route {
    /// How many instances it wants until it has been ready, whatever its requests are.
    pub(crate) fn first(&self) -> u32 {
        let first = self.rules.initial.max(self.rules.min);
        if self.ready.load(Ordering::Relaxed) { 0 } else { first }
    }

    /// Whether new requests can come.
    pub(crate) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }
}

/// One service as it is now, or one configuration that no service makes.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) stored: Arc<StoredService>,
    /// Of each revision, in the order of `stored.revisions`.
    pub(crate) standings: Arc<[Standing]>,
    /// Of the revisions that can be reached, and of the latest one, which comes last.
    pub(crate) routes: Arc<[Arc<Route>]>,
    /// Version of the service as an object, and of its configuration and route.
    pub(crate) version: u64,
    /// When its conditions changed last.
    pub(crate) changed: Timestamp,
}

impl Entry {
    /// The latest revision's.
    pub(crate) fn latest(&self) -> &Arc<Route> {
        self.routes.last().expect("a service has a latest revision")
    }

    /// Revisions with how they do.
    pub(crate) fn revisions(
        &self,
    ) -> impl DoubleEndedIterator<Item = (&StoredRevision, &Standing)> {
        self.stored.revisions.iter().zip(self.standings.iter())
    }
}

/// Namespace and name.
pub(crate) type ServiceKey = (String, String);

/// What answers to the hosts of one service or route.
#[derive(Debug, Default)]
struct Split {
    /// Whether it is a service's: what goes to it can be found again by its revision.
    of_service: bool,
    shares: Vec<(u32, Arc<Route>)>,
    tags: Vec<(String, Arc<Route>)>,
}

impl Split {
    fn choice(&self, tag: Option<&str>, random: impl FnOnce() -> u64) -> Option<Choice> {
        let route = Arc::clone(self.choose(tag, random)?);
        let (has_tags, of_service) = (!self.tags.is_empty(), self.of_service);
        Some(Choice { route, has_tags, of_service })
    }

    fn choose(&self, tag: Option<&str>, random: impl FnOnce() -> u64) -> Option<&Arc<Route>> {
        if let Some(tag) = tag
            && let Some((_, route)) = self.tags.iter().find(|(name, _)| name == tag)
        {
            return Some(route);
        }
        match self.shares.as_slice() {
            [(_, only)] => Some(only),
            shares => {
                let index = traffic::pick(shares.iter().map(|(percent, _)| *percent), random())?;
                Some(&shares[index].1)
            }
        }
    }
}

/// The revision for a request.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) route: Arc<Route>,
    /// Whether the request's header could have chosen another one.
    pub(crate) has_tags: bool,
    /// Whether the host is that of the revision's service.
    pub(crate) of_service: bool,
}

/// The services and configurations by name, and what answers to which host.
#[derive(Debug)]
pub(crate) struct Catalog {
    domain: String,
    idle_connections: usize,
    /// Wakes the autoscaler.
    pub(crate) poke: Arc<Poke>,
    /// Brokers, triggers, and routes that no service makes.
    pub(crate) objects: Registry,
    /// Events that brokers and triggers have lost.
    pub(crate) losses: Losses,
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    services: BTreeMap<ServiceKey, Entry>,
    revisions: HashMap<RevisionKey, Arc<Route>>,
    hosts: HashMap<Box<str>, Arc<Split>>,
    /// Hosts of tags; a service or route of the same host goes first.
    tags: HashMap<Box<str>, Arc<Route>>,
}

/// What a change of a service did to its revisions.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    /// Known from now on.
    pub(crate) begun: Vec<Arc<Route>>,
    /// No request comes to them any more.
    pub(crate) retired: Vec<Arc<Route>>,
}

impl Catalog {
    pub(crate) fn new(domain: &str, idle_connections: usize) -> Self {
        Self {
            domain: domain.to_owned(),
            idle_connections,
            poke: Arc::default(),
            objects: Registry::default(),
            losses: Losses::default(),
            tables: RwLock::default(),
        }
    }

    /// What hosts end in.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether a host is `<name>.<domain>` or the cluster's spelling of it, whatever its case.
    pub(crate) fn is_below(&self, host: &str, name: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Some(rest) = host.strip_prefix(name) else { return false };
        rest == CLUSTER || rest.strip_prefix('.') == Some(self.domain.as_str())
    }

    /// The host name that a service or route answers to.
    pub(crate) fn host(&self, stored: &StoredObject) -> String {
        self.host_of(stored.is_local(), &stored.name, &stored.namespace)
    }

    /// The host name that a tag of a service or route answers to.
    pub(crate) fn tag_host(&self, tag: &str, stored: &StoredObject) -> String {
        self.host_of(stored.is_local(), &format!("{tag}-{}", stored.name), &stored.namespace)
    }

    /// A name's host, which is the cluster's spelling if nothing else answers to the name.
    pub(crate) fn host_inside(&self, name: &str, namespace: &str) -> String {
        let [public, local] = [false, true].map(|local| self.host_of(local, name, namespace));
        let tables = self.read();
        let is_known =
            |host: &str| tables.hosts.contains_key(host) || tables.tags.contains_key(host);
        if !is_known(&public) && is_known(&local) { local } else { public }
    }

    fn host_of(&self, is_local: bool, name: &str, namespace: &str) -> String {
        match is_local {
            true => format!("{name}.{namespace}{CLUSTER}"),
            false => format!("{name}.{namespace}.{}", self.domain),
        }
    }

    /// The revision for a request to a host, whatever its case. `random` is asked if there are
    /// several.
    pub(crate) fn choose(
        &self,
        host: &str,
        tag: Option<&str>,
        random: impl FnOnce() -> u64,
    ) -> Option<Choice> {
        let tables = self.read();
        if let Some(split) = tables.hosts.get(host) {
            return split.choice(tag, random);
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        // What is public answers to the cluster's spelling as well.
        let local = host.strip_suffix(CLUSTER);
        let public = local.map(|local| format!("{local}.{}", self.domain));
        let spellings = || [Some(host.as_str()), public.as_deref()].into_iter().flatten();
        if let Some(split) = spellings().find_map(|host| tables.hosts.get(host)) {
            return split.choice(tag, random);
        }
        let route = Arc::clone(spellings().find_map(|host| tables.tags.get(host))?);
        Some(Choice { route, has_tags: false, of_service: false })
    }

    /// The revision that requests to a host, or else to a service, go to now: for one whose revision
    /// is gone.
    pub(crate) fn choose_again(
        &self,
        host: Option<&str>,
        gone: &Route,
        random: u64,
    ) -> Option<Arc<Route>> {
        let revision = &gone.revision;
        let own = || self.host_inside(&revision.service, &revision.key.namespace);
        let host = host.map_or_else(own, str::to_owned);
        let choice = self.choose(&host, None, || random)?;
        (!std::ptr::eq(choice.route.as_ref(), gone)).then_some(choice.route)
    }

    /// What a request to a revision needs, if any can come to it.
    pub(crate) fn route(&self, key: &RevisionKey) -> Option<Arc<Route>> {
        self.read().revisions.get(key).cloned()
    }

    /// Puts a service in place.
    pub(crate) fn put(
        &self,
        stored: Arc<StoredService>,
        standings: Arc<[Standing]>,
        version: u64,
        changed: Timestamp,
    ) -> (Entry, Turnover) {
        let key = (stored.namespace.clone(), stored.name.clone());
        let mut tables = self.write();
        let before = tables.services.get(&key).cloned();
        let mut turnover = Turnover::default();
        let mut routes = Vec::new();
        let wanted = stored.targets();
        // Before any request is led anywhere, all may come.
        let is_led = stored.revisions.iter().any(|one| stored.is_routed(one));
        for revision in stored.revisions.iter().filter(|one| is_kept(&stored, one, &wanted)) {
            let known = tables.revisions.get(&revision.revision.key);
            let route = known.cloned().unwrap_or_else(|| {
                let route = Arc::new(self.make_route(revision));
                turnover.begun.push(Arc::clone(&route));
                route
            });
            // One that is to get requests must get ready first.
            let reachable = !is_led || stored.is_routed(revision) || !revision.ready;
            route.reachable.store(reachable, Ordering::Relaxed);
            route.ready.store(revision.ready, Ordering::Relaxed);
            routes.push(route);
        }
        for route in before.iter().flat_map(|entry| entry.routes.iter()) {
            if !routes.iter().any(|kept| Arc::ptr_eq(kept, route)) {
                tables.revisions.remove(&route.revision.key);
                turnover.retired.push(Arc::clone(route));
            }
        }
        for route in &turnover.begun {
            tables.revisions.insert(route.revision.key.clone(), Arc::clone(route));
        }
        if let Some(before) = before.filter(|_| !stored.standalone) {
            self.remove_hosts(&mut tables, &before.stored);
        }
        if !stored.standalone {
            // Requests wait for the first instance while nothing has been ready yet.
            let latest = routes.last().filter(|_| stored.routed.is_empty());
            let shares = latest.map(|latest| (100, Arc::clone(latest))).into_iter().collect();
            let split = Split { of_service: true, shares, ..Split::default() };
            self.insert_hosts(&mut tables, &stored, split);
        }
        let entry = Entry { stored, standings, routes: routes.into(), version, changed };
        tables.services.insert(key, entry.clone());
        (entry, turnover)
    }

    /// Shows other standings of a service, which leads requests as before.
    pub(crate) fn update(&self, entry: &Entry) {
        let key = (entry.stored.namespace.clone(), entry.stored.name.clone());
        if let Some(present) = self.write().services.get_mut(&key) {
            *present = entry.clone();
        }
    }

    /// Takes a service out.
    pub(crate) fn remove(&self, namespace: &str, name: &str) -> Option<Entry> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut tables = self.write();
        let entry = tables.services.remove(&key)?;
        for route in entry.routes.iter() {
            tables.revisions.remove(&route.revision.key);
        }
        if !entry.stored.standalone {
            self.remove_hosts(&mut tables, &entry.stored);
        }
        Some(entry)
    }

    /// Leads the requests of a route that no service makes to where it says, in the place of where
    /// it led them before.
    pub(crate) fn lead(&self, before: Option<&StoredObject>, now: Option<&StoredObject>) {
        let mut tables = self.write();
        if let Some(before) = before {
            self.remove_hosts(&mut tables, before);
        }
        if let Some(now) = now.filter(|now| !now.routed.is_empty()) {
            self.insert_hosts(&mut tables, now, Split::default());
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Entry> {
        let key = (namespace.to_owned(), name.to_owned());
        self.read().services.get(&key).cloned()
    }

    /// The service that a revision belongs to.
    pub(crate) fn of_revision(&self, key: &RevisionKey) -> Option<Entry> {
        let tables = self.read();
        if let Some(route) = tables.revisions.get(key) {
            let service = (key.namespace.clone(), route.revision.service.clone());
            return tables.services.get(&service).cloned();
        }
        // One that no request can reach: its name begins with its service's.
        drop(tables);
        let mut of_it = self.possible(key);
        of_it.find(|entry| entry.stored.revision(&key.name).is_some())
    }

    /// The other service that has a revision of this key already.
    pub(crate) fn other_with(&self, key: &RevisionKey, service: &str) -> Option<Entry> {
        let mut others = self.possible(key).filter(|entry| entry.stored.name != service);
        others.find(|entry| entry.stored.revision(&key.name).is_some())
    }

    /// The services whose name a revision's may begin with.
    fn possible(&self, key: &RevisionKey) -> impl Iterator<Item = Entry> {
        let dashes = key.name.match_indices('-').map(|(at, _)| &key.name[..at]);
        dashes.filter_map(|service| self.get(&key.namespace, service))
    }

    /// Closes the connections to an instance of a revision. Blocks; not for a thread of the async
    /// runtime.
    pub(crate) fn quiesce(&self, revision: &RevisionKey, instance: &SandboxId, runtime: &Handle) {
        if let Some(route) = self.route(revision) {
            route.upstreams.quiesce(instance, runtime);
        }
    }

    /// Every service, or those of one namespace, by name.
    pub(crate) fn list(&self, namespace: Option<&str>) -> Vec<Entry> {
        let tables = self.read();
        match namespace {
            None => tables.services.values().cloned().collect(),
            Some(namespace) => {
                let from = (namespace.to_owned(), String::new());
                let of_it = tables.services.range(from..);
                let of_it = of_it.take_while(|((of, _), _)| of == namespace);
                of_it.map(|(_, entry)| entry.clone()).collect()
            }
        }
    }

    /// Every revision that requests can reach, and the latest of each service; by service.
    pub(crate) fn routes(&self) -> Vec<Arc<Route>> {
        let tables = self.read();
        tables.services.values().flat_map(|entry| entry.routes.iter().cloned()).collect()
    }

    fn insert_hosts(&self, tables: &mut Tables, stored: &StoredObject, mut split: Split) {
        for assigned in &stored.routed {
            let key = RevisionKey::new(&stored.namespace, assigned.revision.as_str());
            let Some(route) = tables.revisions.get(&key).cloned() else { continue };
            if let Some(tag) = &assigned.tag {
                let host = self.tag_host(tag, stored);
                tables.tags.insert(host.into_boxed_str(), Arc::clone(&route));
                split.tags.push((tag.clone(), Arc::clone(&route)));
            }
            if assigned.percent > 0 {
                split.shares.push((assigned.percent, route));
            }
        }
        let host = self.host(stored);
        tables.hosts.insert(host.into_boxed_str(), Arc::new(split));
    }

    fn remove_hosts(&self, tables: &mut Tables, stored: &StoredObject) {
        let host = self.host(stored);
        let Some(split) = tables.hosts.remove(host.as_str()) else { return };
        for (tag, route) in &split.tags {
            let host = self.tag_host(tag, stored);
            let holder = tables.tags.get(host.as_str());
            if holder.is_none_or(|holder| !Arc::ptr_eq(holder, route)) {
                // It is another one's: `a-b` of `c` has the same host as `a` of `b-c`.
                continue;
            }
            match self.heir(tables, stored, tag) {
                Some(route) => tables.tags.insert(host.into_boxed_str(), route),
                None => tables.tags.remove(host.as_str()),
            };
        }
    }

    /// What another one's tag leads to that has the same host as a tag of this one.
    fn heir(&self, tables: &Tables, stored: &StoredObject, tag: &str) -> Option<Arc<Route>> {
        let label = format!("{tag}-{}", stored.name);
        let mut dashes = label.match_indices('-');
        dashes.find_map(|(at, _)| {
            let (tag, name) = (&label[..at], &label[at + 1..]);
            let host = self.host_of(stored.is_local(), name, &stored.namespace);
            let split = tables.hosts.get(host.as_str())?;
            split.tags.iter().find(|(one, _)| one == tag).map(|(_, route)| Arc::clone(route))
        })
    }

    fn make_route(&self, stored: &StoredRevision) -> Route {
        let poke = Arc::clone(&self.poke);
        let key = stored.revision.key.clone();
        Route {
            revision: Arc::new(stored.revision.clone()),
            inputs: stored.inputs.clone(),
            rules: stored.rules.clone(),
            throttle: Throttle::new(stored.queue_depth, key, poke, Instant::now()),
            upstreams: Upstreams::new(self.idle_connections),
            metrics: RouteMetrics::default(),
            reachable: AtomicBool::new(true),
            ready: AtomicBool::new(stored.ready),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the node keeps a revision known: one that requests reach or are to reach once it is
/// ready, or the latest one.
fn is_kept(stored: &StoredService, revision: &StoredRevision, wanted: &[Target]) -> bool {
    let name = revision.name();
    stored.is_routed(revision)
        || name == stored.latest().name()
        || wanted.iter().any(|target| target.revision.as_deref() == Some(name))
}

#[cfg(test)]
mod properties;

//! Routes that no service makes: where their requests go while revisions come, get ready and go.
//!
//! A route keeps where it leads; everything else follows from that. A revision that a route leads to,
//! or names, stays known to the node and is not collected.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use vhive_api::RevisionKey;

use super::change::mark_idle;
use super::{RESERVED, Services};
use crate::changes::What;
use crate::kind::Kind;
use crate::registry::{Object, Spec, Unmet};
use crate::store::{StoredObject, StoredService};
use crate::traffic::{Assigned, Held, Target, follow};

/// Revisions with the routes that lead to them or name them.
pub(super) type Claims = HashMap<RevisionKey, BTreeSet<String>>;

/// What the routes among some objects claim.
pub(super) fn claims(objects: &[(Kind, StoredObject)]) -> Claims {
    let mut claims = Claims::new();
    for (_, route) in objects.iter().filter(|(kind, _)| *kind == Kind::Route) {
        for revision in claimed(route) {
            let key = RevisionKey::new(&route.namespace, revision);
            claims.entry(key).or_default().insert(route.name.clone());
        }
    }
    claims
}

/// Notes what is claimed of a service's or configuration's revisions.
pub(super) fn mark(stored: &mut StoredService, claims: &Claims) {
    let mut any = false;
    for revision in &mut stored.revisions {
        if let Some(routes) = claims.get(&revision.revision.key) {
            revision.routes.clone_from(routes);
            any = true;
        }
    }
    if any {
        mark_idle(stored, Timestamp::now());
    }
}

/// The revisions that a route leads to, or names.
fn claimed(route: &StoredObject) -> BTreeSet<String> {
    let named = route.targets().into_iter().filter_map(|target| target.revision);
    let led = route.routed.iter().map(|assigned| assigned.revision.clone());
    led.chain(named).collect()
}

/// Whether a route leads to revisions of a service or configuration, or is to.
fn concerns(route: &Object, name: &str) -> bool {
    let is_of =
        |revision: &str| revision.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    let Ok(Spec::Route(targets)) = &route.spec else { return false };
    let named = |target: &Target| {
        target.configuration.as_deref() == Some(name)
            || target.revision.as_deref().is_some_and(is_of)
    };
    targets.iter().any(named) || route.stored.routed.iter().any(|one| is_of(&one.revision))
}

impl Services {
    /// Lets an object's requests go where they shall, if it is a route and they can; says what it
    /// needs.
    pub(super) fn look(
        &self,
        stored: &mut StoredObject,
        spec: &Result<Spec, String>,
    ) -> Vec<(&'static str, Option<Unmet>)> {
        let Ok(Spec::Route(targets)) = spec else { return self.needs(&stored.namespace, spec) };
        let unmet = match self.led(&stored.namespace, targets) {
            Ok(routed) => {
                stored.routed = routed;
                None
            }
            Err(held) => {
                // What is gone gets no more requests, whatever comes under its name.
                let namespace = stored.namespace.clone();
                stored.routed.retain(|one| self.has_revision(&namespace, &one.revision));
                Some(Unmet::from(held))
            }
        };
        vec![("AllTrafficAssigned", unmet.clone()), ("IngressReady", unmet)]
    }

    fn has_revision(&self, namespace: &str, name: &str) -> bool {
        let entry = self.catalog.of_revision(&RevisionKey::new(namespace, name));
        entry.is_some_and(|entry| entry.stored.revision(name).is_some())
    }

    fn led(&self, namespace: &str, targets: &[Target]) -> Result<Vec<Assigned>, Held> {
        let latest = |configuration: Option<&str>| {
            let name = configuration.unwrap_or_default();
            let entry = self.catalog.get(namespace, name);
            let entry = entry.ok_or_else(|| Held::NoConfiguration(name.to_owned()))?;
            let ready = entry.stored.revisions.iter().rev().find(|one| one.ready);
            ready.map(|one| one.name().to_owned()).ok_or(Held::NotConfigured(name.to_owned()))
        };
        let ready = |name: &str| {
            let entry = self.catalog.of_revision(&RevisionKey::new(namespace, name))?;
            Some(entry.stored.revision(name)?.ready)
        };
        follow(targets, latest, ready)
    }

    /// Leads the routes anew that have to do with a service or configuration that has changed. The
    /// lock for changes is held.
    pub(super) async fn lead_after(&self, changed: &StoredService, now: Timestamp) {
        let routes = self.catalog.objects.list(Kind::Route, Some(&changed.namespace));
        for route in routes.iter().filter(|route| concerns(route, &changed.name)) {
            self.lead_again(route, now).await;
        }
    }

    /// Leads every route anew.
    pub(super) async fn lead_all(&self, now: Timestamp) {
        for route in self.catalog.objects.list(Kind::Route, None) {
            self.lead_again(&route, now).await;
        }
    }

    /// Requests go on as before if where they are to go cannot be written; the next change of what
    /// the route names, and the next start of the node, try again.
    async fn lead_again(&self, route: &Object, now: Timestamp) {
        let mut stored = StoredObject::clone(&route.stored);
        let needs = self.look(&mut stored, &route.spec);
        if stored.routed != route.stored.routed {
            stored.resource_version = self.next_version();
            let ceiling = self.changes.version() + RESERVED;
            let kept = stored.clone();
            let written = self.on_disk(move |store| store.put_object(Kind::Route, &kept, ceiling));
            if let Err(error) = written.await {
                tracing::error!(%error, route = stored.name, "its traffic cannot be moved yet");
                // After a start, nothing leads anywhere yet.
                self.show_route(Some(&route.stored), Some(&route.stored), now);
                return;
            }
        }
        // Also if it says what it said: the revisions may be others of the same names.
        self.show_route(Some(&route.stored), Some(&stored), now);
        if needs == route.needs && stored == *route.stored {
            return;
        }
        let changed = if needs == route.needs { route.changed } else { now };
        let (stored, version) = (Arc::new(stored), self.next_version());
        let next = Arc::new(Object { stored, needs, version, changed, ..Object::clone(route) });
        self.catalog.objects.put(Arc::clone(&next));
        self.tell_object(&next, What::Modified);
    }

    /// Has requests go where a route leads them now. The lock for changes is held.
    pub(super) fn show_route(
        &self,
        before: Option<&StoredObject>,
        after: Option<&StoredObject>,
        now: Timestamp,
    ) {
        let Some(route) = after.or(before) else { return };
        let (old, new) =
            (before.map(claimed).unwrap_or_default(), after.map(claimed).unwrap_or_default());
        // Known before requests come, and kept until none comes any more.
        for revision in &new {
            self.claim(route, revision, true, now);
        }
        self.catalog.lead(before, after);
        for revision in old.difference(&new) {
            self.claim(route, revision, false, now);
        }
    }

    fn claim(&self, route: &StoredObject, name: &str, leads: bool, now: Timestamp) {
        let key = RevisionKey::new(&route.namespace, name);
        let Some(entry) = self.catalog.of_revision(&key) else { return };
        let mut stored = StoredService::clone(&entry.stored);
        let mut revisions = stored.revisions.iter_mut();
        let Some(revision) = revisions.find(|one| one.name() == name) else { return };
        let changed = match leads {
            true => revision.routes.insert(route.name.clone()),
            false => revision.routes.remove(&route.name),
        };
        if changed {
            mark_idle(&mut stored, now);
            stored.resource_version = self.next_version();
            self.install(stored, Some(&entry), now);
        }
    }
}

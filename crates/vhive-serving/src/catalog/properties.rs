//! Whatever services there are and whatever host is asked for: never a wrong revision.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::store::{Basis, first, revision};
use crate::traffic::{assign, targets};

/// A service with so many revisions, and where its requests go: revision, per cent, tag.
#[derive(Clone, Debug)]
struct Made {
    /// Whether it is a configuration and a route of that name instead.
    apart: bool,
    namespace: &'static str,
    name: &'static str,
    revisions: usize,
    split: Vec<(usize, u32, Option<&'static str>)>,
}

impl Made {
    fn stored(&self) -> (StoredService, Option<StoredObject>) {
        let traffic = self.split.iter().map(|(at, percent, tag)| {
            let mut target = json!({
                "revisionName": format!("{}-{:05}", self.name, at % self.revisions + 1),
                "percent": percent,
            });
            if let Some(tag) = tag {
                target["tag"] = json!(tag);
            }
            target
        });
        let document = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "template": {"spec": {"containers": [{"image": "dev.local/x"}]}},
                "traffic": traffic.collect::<Vec<_>>(),
            },
        });
        let admitted = crate::admission::admit(&document, &crate::Config::default()).unwrap();
        let basis = Basis { digest: vhive_api::Digest::of(b""), complete: true };
        let mut stored = first(&admitted, basis, Timestamp::UNIX_EPOCH);
        for generation in 2..=self.revisions {
            let generation = u64::try_from(generation).unwrap();
            stored.revisions.push(revision(&admitted, generation, basis, Timestamp::UNIX_EPOCH));
        }
        stored.routed = assign(&targets(&stored.spec.value()), &stored.known()).unwrap();
        if !self.apart {
            return (stored, None);
        }
        let route = stored.object.clone();
        stored.standalone = true;
        stored.routed.clear();
        for revision in &mut stored.revisions {
            if route.routed.iter().any(|assigned| assigned.revision == revision.name()) {
                revision.routes.insert(self.name.to_owned());
            }
        }
        (stored, Some(route))
    }

    fn put(&self, catalog: &Catalog) {
        let (stored, route) = self.stored();
        let standings = stored.revisions.iter().map(|one| Standing::at_first(one, 1)).collect();
        catalog.put(Arc::new(stored), standings, 1, Timestamp::UNIX_EPOCH);
        catalog.lead(None, route.as_ref());
    }

    fn remove(&self, catalog: &Catalog) {
        catalog.remove(self.namespace, self.name);
        catalog.lead(self.stored().1.as_ref(), None);
    }
}

fn made() -> impl Strategy<Value = Made> {
    let names = prop::sample::select(vec!["a", "b", "a-b", "b-a"]);
    let tags = prop::sample::subsequence(vec!["a", "b", "x"], 0..=3);
    let cuts = prop::collection::vec(0..=100_u32, 0..3);
    let namespaces = prop::sample::select(vec!["default", "a"]);
    (namespaces, names, 1..4_usize, tags, cuts, any::<bool>()).prop_map(
        |(namespace, name, revisions, tags, mut cuts, apart)| {
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let shares: Vec<u32> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mut tags = tags.into_iter();
            let mut split: Vec<_> = shares
                .into_iter()
                .enumerate()
                .map(|(at, share)| (at, share, tags.next()))
                .collect();
            // Tags without a share.
            split.extend(tags.map(|tag| (0, 0, Some(tag))));
            Made { apart, namespace, name, revisions, split }
        },
    )
}

fn hosts() -> impl Strategy<Value = String> {
    let label = || prop::sample::select(vec!["a", "b", "a-b", "b-a", "x-a", "x-a-b", "A", "", "x"]);
    let namespace = prop::sample::select(vec!["default", "a", "DEFAULT", "none"]);
    let end = prop::sample::select(vec![
        ".example.com",
        ".EXAMPLE.com",
        ".example.com.",
        ".svc.cluster.local",
        ".example.org",
        ".com",
        "",
    ]);
    prop_oneof![
        4 => (label(), namespace, end).prop_map(|(name, ns, end)| format!("{name}.{ns}{end}")),
        1 => ".{0,30}",
    ]
}

/// The revisions that may answer to a host: of the service of that name, or else of a tag.
fn expected(all: &BTreeMap<(&str, &str), Made>, host: &str) -> Vec<RevisionKey> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let local = host.strip_suffix(".svc.cluster.local");
    let Some(short) = local.or_else(|| host.strip_suffix(".example.com")) else { return vec![] };
    let keys = |made: &Made, wanted: &dyn Fn(u32, Option<&str>) -> bool| -> Vec<RevisionKey> {
        let routed = made.split.iter().filter(|(_, percent, tag)| wanted(*percent, *tag));
        let name = |at: &usize| format!("{}-{:05}", made.name, at % made.revisions + 1);
        routed.map(|(at, _, _)| RevisionKey::new(made.namespace, name(at))).collect()
    };
    let of_service = all.values().find(|made| format!("{}.{}", made.name, made.namespace) == short);
    if let Some(made) = of_service {
        return keys(made, &|percent, _| percent > 0);
    }
    let of_tags = all.values().flat_map(|made| {
        keys(made, &|_, tag| {
            tag.is_some_and(|tag| format!("{tag}-{}.{}", made.name, made.namespace) == short)
        })
    });
    of_tags.collect()
}

fn catalog(services: &[Made]) -> (Catalog, BTreeMap<(&'static str, &'static str), Made>) {
    let catalog = Catalog::new("example.com", 1);
    let mut last = BTreeMap::new();
    for made in services {
        let before = last.insert((made.namespace, made.name), made.clone());
        if let Some(before) = before.filter(|before| before.apart || made.apart) {
            // Another maker has the name.
            before.remove(&catalog);
        }
        made.put(&catalog);
    }
    (catalog, last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_host_leads_to_what_its_service_or_tag_names_and_to_nothing_else(
        services in prop::collection::vec(made(), 0..6),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        asked in prop::collection::vec((hosts(), any::<u64>()), 1..20),
    ) {
        let (catalog, mut last) = catalog(&services);
        for index in gone {
            let keys: Vec<_> = last.keys().copied().collect();
            if keys.is_empty() {
                break;
            }
            let (namespace, name) = *index.get(&keys);
            let made = last.remove(&(namespace, name)).unwrap();
            made.remove(&catalog);
        }
        for (host, random) in asked {
            let wanted = expected(&last, &host);
            match catalog.choose(&host, None, || random) {
                Some(choice) => {
                    let key = &choice.route.revision.key;
                    prop_assert!(wanted.contains(key), "{host:?} led to {key}, not {wanted:?}");
                }
                None => prop_assert!(wanted.is_empty(), "{host:?} led nowhere, not to {wanted:?}"),
            }
        }
    }

    #[test]
    fn each_revision_gets_its_share_and_a_tag_all_of_its_own(one in made()) {
        let (catalog, _) = catalog(std::slice::from_ref(&one));
        let host = format!("{}.{}.example.com", one.name, one.namespace);
        let name = |at: usize| format!("{}-{:05}", one.name, at % one.revisions + 1);
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        let step = u64::MAX / 1000;
        for n in 0..1000 {
            let choice = catalog.choose(&host, None, || n * step).expect("it has a revision");
            *counts.entry(choice.route.revision.key.name.clone()).or_default() += 1;
        }
        let mut shares: BTreeMap<String, u32> = BTreeMap::new();
        for (at, percent, _) in &one.split {
            *shares.entry(name(*at)).or_default() += percent;
        }
        let entries = u32::try_from(one.split.len()).unwrap();
        for (revision, percent) in &shares {
            let found = counts.get(revision).copied().unwrap_or(0);
            // Each entry's edges are off by one at the most.
            prop_assert!(found.abs_diff(percent * 10) <= 2 * entries, "{revision}: {found}");
            prop_assert!(*percent > 0 || found == 0, "{revision} has no share and {found} requests");
        }
        prop_assert_eq!(counts.values().sum::<u32>(), 1000);
        for (at, _, tag) in &one.split {
            let choice = catalog.choose(&host, *tag, || 0).expect("it has a revision");
            if tag.is_some() {
                prop_assert_eq!(&choice.route.revision.key.name, &name(*at));
            }
        }
    }
}

//! Which events a trigger wants. Pure.
//!
//! # Source
//! Knative Eventing, `pkg/eventfilter`; CloudEvents, "Subscriptions API", filter dialects.

use std::collections::BTreeMap;

use super::event::Event;

/// One condition on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// `spec.filter.attributes`: every one is there and has this value; the empty one fits any.
    Attributes(BTreeMap<String, String>),
    /// Every attribute has this value.
    Exact(BTreeMap<String, String>),
    /// Every attribute begins so.
    Prefix(BTreeMap<String, String>),
    /// Every attribute ends so.
    Suffix(BTreeMap<String, String>),
    /// All of them hold.
    All(Vec<Self>),
    /// At least one of them holds.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
}

/// Attributes of the specification: `spec.filter.attributes` finds them in every event.
const STANDARD: [&str; 8] =
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"];

impl Filter {
    /// Whether an event is wanted.
    pub(crate) fn matches(&self, event: &Event) -> bool {
        let every = |wanted: &BTreeMap<String, String>, fits: fn(&str, &str) -> bool| {
            let mut each = wanted.iter();
            each.all(|(name, wanted)| event.get(name).is_some_and(|found| fits(found, wanted)))
        };
        match self {
            Self::Attributes(wanted) => wanted.iter().all(|(name, wanted)| {
                let standard = STANDARD.contains(&name.as_str()).then_some("");
                let found = event.get(name).or(standard);
                found.is_some_and(|found| wanted.is_empty() || found == wanted)
            }),
            Self::Exact(wanted) => every(wanted, |found, wanted| found == wanted),
            Self::Prefix(wanted) => every(wanted, |found, wanted| found.starts_with(wanted)),
            Self::Suffix(wanted) => every(wanted, |found, wanted| found.ends_with(wanted)),
            Self::All(filters) => filters.iter().all(|filter| filter.matches(event)),
            Self::Any(filters) => filters.iter().any(|filter| filter.matches(event)),
            Self::Not(filter) => !filter.matches(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn event(more: &[(&str, &str)]) -> Event {
        let mut all =
            map(&[("specversion", "1.0"), ("id", "1"), ("source", "/s"), ("type", "a.b")]);
        all.extend(map(more));
        Event::unchecked(all, Bytes::new())
    }

    #[test]
    fn attributes_match_exactly_and_the_empty_value_matches_any() {
        let one = event(&[("mine", "x")]);
        for (wanted, fits) in [
            (&[][..], true),
            (&[("type", "a.b")], true),
            (&[("type", "a.b"), ("source", "/s"), ("mine", "x")], true),
            (&[("type", "a.b"), ("source", "/t")], false),
            (&[("type", "a")], false),
            (&[("type", "A.B")], false),
            (&[("type", "")], true),
            (&[("mine", "")], true),
            (&[("other", "")], false),
            (&[("other", "x")], false),
            // Knative counts what the specification knows as there.
            (&[("subject", "")], true),
            (&[("subject", "x")], false),
        ] {
            assert_eq!(Filter::Attributes(map(wanted)).matches(&one), fits, "{wanted:?}");
        }
    }

    #[test]
    fn dialects_do_what_they_say() {
        let one = event(&[("mine", "xyz")]);
        let exact = |name, value| Filter::Exact(map(&[(name, value)]));
        let cases = [
            (exact("mine", "xyz"), true),
            (exact("mine", "xy"), false),
            (exact("subject", ""), false),
            (Filter::Prefix(map(&[("mine", "xy"), ("type", "a.")])), true),
            (Filter::Prefix(map(&[("mine", "yz")])), false),
            (Filter::Suffix(map(&[("mine", "yz")])), true),
            (Filter::Suffix(map(&[("none", "")])), false),
            (Filter::All(vec![exact("mine", "xyz"), exact("type", "a.b")]), true),
            (Filter::All(vec![exact("mine", "xyz"), exact("type", "b")]), false),
            (Filter::Any(vec![exact("mine", "no"), exact("type", "a.b")]), true),
            (Filter::Any(vec![exact("mine", "no")]), false),
            (Filter::Not(Box::new(exact("mine", "no"))), true),
        ];
        for (filter, fits) in cases {
            assert_eq!(filter.matches(&one), fits, "{filter:?}");
        }
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let pair = ("[ab]", "[xy]{0,2}").prop_map(|(name, value)| map(&[(&name, &value)]));
        let leaf = prop_oneof![
            pair.clone().prop_map(Filter::Exact),
            pair.clone().prop_map(Filter::Prefix),
            pair.prop_map(Filter::Suffix),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..3).prop_map(Filter::All),
                prop::collection::vec(inner.clone(), 1..3).prop_map(Filter::Any),
                inner.prop_map(|filter| Filter::Not(Box::new(filter))),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_laws_of_logic_hold(
            one in filter(),
            two in filter(),
            values in prop::collection::btree_map("[ab]", "[xy]{0,2}", 0..3),
        ) {
            let mut event = event(&[]);
            for (name, value) in values {
                event.set(&name, value);
            }
            let (a, b) = (one.matches(&event), two.matches(&event));
            let not = |filter: &Filter| Filter::Not(Box::new(filter.clone()));
            let (all, any) = (vec![one.clone(), two.clone()], vec![not(&one), not(&two)]);
            prop_assert_eq!(Filter::All(all.clone()).matches(&event), a && b);
            prop_assert_eq!(Filter::Any(all).matches(&event), a || b);
            prop_assert_eq!(Filter::Any(any).matches(&event), !(a && b));
            prop_assert_eq!(not(&not(&one)).matches(&event), a);
        }
    }
}

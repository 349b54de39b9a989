//! Invocations of each minute, in little memory: most functions have none in most minutes.

/// A function's invocations by minute.
#[derive(Clone, Debug)]
pub(super) enum Counts {
    /// The minutes that have some, ascending.
    Some(Box<[(u16, u32)]>),
    /// All, none of them above 255.
    Bytes(Box<[u8]>),
    /// All.
    Words(Box<[u32]>),
}

impl Counts {
    /// The form that takes the least memory.
    pub(super) fn new(all: &[u32]) -> Self {
        let there = all.iter().filter(|count| **count > 0).count();
        let small = all.iter().all(|count| u8::try_from(*count).is_ok());
        let each = if small { size_of::<u8>() } else { size_of::<u32>() };
        let sparse = there.saturating_mul(size_of::<(u16, u32)>());
        let numbered = u16::try_from(all.len()).is_ok();
        if numbered && sparse < all.len().saturating_mul(each) {
            let some = (0..).zip(all.iter().copied()).filter(|(_, count)| *count > 0);
            return Self::Some(some.collect());
        }
        if small {
            let byte = |count: &u32| u8::try_from(*count).unwrap_or(u8::MAX);
            return Self::Bytes(all.iter().map(byte).collect());
        }
        Self::Words(all.into())
    }

    pub(super) fn of(&self, minute: usize) -> u32 {
        match self {
            Self::Some(some) => {
                let Ok(minute) = u16::try_from(minute) else { return 0 };
                let found = some.binary_search_by_key(&minute, |(minute, _)| *minute);
                found.ok().and_then(|at| some.get(at)).map_or(0, |(_, count)| *count)
            }
            Self::Bytes(all) => all.get(minute).copied().unwrap_or(0).into(),
            Self::Words(all) => all.get(minute).copied().unwrap_or(0),
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Some(some) => some.is_empty(),
            Self::Bytes(all) => all.iter().all(|count| *count == 0),
            Self::Words(all) => all.iter().all(|count| *count == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_form_holds_the_same(
            dense in 0.0..1.0_f64, most in prop::sample::select(vec![1_u32, 200, 300, u32::MAX]),
            draws in prop::collection::vec((0.0..1.0_f64, any::<u32>()), 0..200),
        ) {
            let count = |(there, count): &(f64, u32)| if *there < dense { count % most } else { 0 };
            let all: Vec<u32> = draws.iter().map(count).collect();
            let counts = Counts::new(&all);
            let got: Vec<u32> = (0..all.len()).map(|minute| counts.of(minute)).collect();
            prop_assert_eq!(&got, &all);
            prop_assert_eq!(counts.of(all.len()), 0);
            prop_assert_eq!(counts.is_zero(), all.iter().all(|count| *count == 0));
        }
    }
}

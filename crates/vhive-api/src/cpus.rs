//! A set of the host's processors, as the kernel and people write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Above every number that a kernel gives (`CONFIG_NR_CPUS` is at most 8192).
const END: u32 = 8192;

/// Some processors of a host, at least one. Reads and writes the kernel's lists: `0-3,8`.
///
/// ```
/// use vhive_api::Cpus;
/// let cpus: Cpus = "3,0-1".parse().unwrap();
/// assert_eq!(cpus.to_string(), "0-1,3");
/// assert_eq!(cpus.first_not_in(&"0-2".parse().unwrap()), Some(3));
/// ```
///
/// # Source
/// cpuset(7), "List format".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cpus {
    /// Ascending, each once, never empty.
    numbers: Vec<u32>,
}

/// Why a text is no list of processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    /// It names none.
    #[error("no CPU is named; write for instance 1, or 0-3,8")]
    Empty,
    /// A part is neither a number nor a range of them.
    #[error("{0:?} is neither a CPU's number nor a range; write for instance 1, or 0-3,8")]
    Part(String),
    /// No host has so many.
    #[error("CPU {0} is beyond any host's; the highest number is 8191")]
    TooHigh(String),
}

impl Cpus {
    /// The processors' numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.numbers.iter().copied()
    }

    /// How many they are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Those of these numbers; none if there are none.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut numbers: Vec<u32> = numbers.into_iter().filter(|n| *n < END).collect();
        numbers.sort_unstable();
        numbers.dedup();
        (!numbers.is_empty()).then_some(Self { numbers })
    }

    /// The lowest of them that is not among others.
    #[must_use]
    pub fn first_not_in(&self, others: &Self) -> Option<u32> {
        self.iter().find(|n| others.numbers.binary_search(n).is_err())
    }
}

impl FromStr for Cpus {
    type Err = CpusError;

    fn from_str(text: &str) -> Result<Self, CpusError> {
        let mut numbers = Vec::new();
        let number = |text: &str| -> Result<u32, CpusError> {
            let digits = text.trim();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(CpusError::Part(text.trim().to_owned()));
            }
            let number = digits.parse().ok().filter(|n| *n < END);
            number.ok_or_else(|| CpusError::TooHigh(digits.to_owned()))
        };
        for part in text.trim().split(',').filter(|part| !part.trim().is_empty()) {
            let (first, last) = match part.split_once('-') {
                None => (number(part)?, number(part)?),
                Some((first, last)) => (number(first)?, number(last)?),
            };
            if first > last {
                return Err(CpusError::Part(part.trim().to_owned()));
            }
            numbers.extend(first..=last);
        }
        Self::of(numbers).ok_or(CpusError::Empty)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.numbers.as_slice();
        let mut separator = "";
        while let Some((&first, _)) = rest.split_first() {
            let run = rest.iter().zip(first..).take_while(|(n, wanted)| **n == *wanted).count();
            let last = rest[run - 1];
            f.write_str(separator)?;
            if first == last {
                write!(f, "{first}")?
            } else {
                write!(f, "{first}-{last}")?
            }
            separator = ",";
            rest = &rest[run..];
        }
        Ok(())
    }
}

impl Serialize for Cpus {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, canonical) in [
            ("0", "0"),
            ("0-3,8", "0-3,8"),
            ("2,1,0", "0-2"),
            (" 1 - 2 , 5,\n", "1-2,5"),
            ("3-3", "3"),
        ] {
            let cpus: Cpus = text.parse().expect(text);
            assert_eq!(cpus.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(cpus));
        }
    }

    #[test]
    fn what_names_no_processor_is_refused() {
        for (text, error) in [
            ("", CpusError::Empty),
            (",", CpusError::Empty),
            ("x", CpusError::Part("x".to_owned())),
            ("-1", CpusError::Part(String::new())),
            ("3-1", CpusError::Part("3-1".to_owned())),
            ("+1", CpusError::Part("+1".to_owned())),
            ("0-99999999999999999999", CpusError::TooHigh("99999999999999999999".to_owned())),
            ("8192", CpusError::TooHigh("8192".to_owned())),
        ] {
            assert_eq!(text.parse::<Cpus>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn it_is_a_string_in_documents() {
        let cpus: Cpus = serde_json::from_str("\"1,0\"").expect("a list");
        assert_eq!(serde_json::to_string(&cpus).expect("serialises"), "\"0-1\"");
        assert!(serde_json::from_str::<Cpus>("\"\"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_set_survives(numbers in proptest::collection::vec(0..END, 1..40)) {
            let cpus = Cpus::of(numbers.iter().copied()).expect("not empty");
            assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }

        #[test]
        fn no_text_panics(text in "[0-9,\\- x]{0,24}") {
            let _ = text.parse::<Cpus>();
        }
    }
}

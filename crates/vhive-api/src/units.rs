//! Sizes and time spans as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes. Reads `512MiB`, `1Gi`, `100M` (decimal), `4096`; writes the largest exact
/// binary unit.
///
/// ```
/// use vhive_api::Bytes;
/// assert_eq!("512MiB".parse(), Ok(Bytes::mib(512)));
/// assert_eq!("128Mi".parse(), Ok(Bytes::mib(128)));
/// assert_eq!("1M".parse(), Ok(Bytes(1_000_000)));
/// assert_eq!(Bytes::mib(2).to_string(), "2MiB");
/// ```
///
/// # Source
/// Kubernetes resource quantities (`Ki Mi Gi`, `k M G`), plus the `…iB` spelling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Whole mebibytes, rounded up.
    #[must_use]
    pub const fn mib_ceil(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

/// Why a text is not a size or a time span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The number in front is missing or is none.
    #[error("{0:?} does not begin with a whole number")]
    Number(String),
    /// The unit behind the number is not known.
    #[error("unknown unit in {text:?}; use one of {known}")]
    Unit {
        /// The whole text.
        text: String,
        /// The units that would have been understood.
        known: &'static str,
    },
    /// The value does not fit into 64 bits.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

fn split_number(text: &str) -> Result<(u64, &str), UnitError> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::Number(text.to_owned()));
    }
    let number = number.parse().map_err(|_| UnitError::TooLarge(text.to_owned()))?;
    Ok((number, unit.trim()))
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text)?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            "k" | "kB" => 1_000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            _ => {
                let known = "B, KiB, MiB, GiB, TiB, kB, MB, GB (the B may be left out)";
                return Err(UnitError::Unit { text: text.to_owned(), known });
            }
        };
        let bytes = number.checked_mul(factor);
        bytes.map(Self).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A time span in configuration files: `250ms`, `30s`, `5m`, `1h`.
///
/// ```
/// use std::time::Duration;
/// let span: vhive_api::Span = "30s".parse().unwrap();
/// assert_eq!(Duration::from(span), Duration::from_secs(30));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text)?;
        let scaled = |factor: u64| {
            let secs = number.checked_mul(factor);
            secs.map(Duration::from_secs).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
        };
        let span = match unit {
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => scaled(60)?,
            "h" => scaled(3600)?,
            _ => {
                return Err(UnitError::Unit { text: text.to_owned(), known: "us, ms, s, m, h" });
            }
        };
        Ok(Self(span))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        for (each, unit) in [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s")] {
            if micros != 0 && micros.is_multiple_of(each) {
                return write!(f, "{}{unit}", micros / each);
            }
        }
        if micros.is_multiple_of(1000) {
            return write!(f, "{}ms", micros / 1000);
        }
        write!(f, "{micros}us")
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl From<Duration> for Span {
    fn from(span: Duration) -> Self {
        Self(span)
    }
}

macro_rules! serde_as_text {
    ($($unit:ty),*) => {$(
        impl Serialize for $unit {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Bytes, Span);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_nonsense_by_kind() {
        assert!(matches!("MiB".parse::<Bytes>(), Err(UnitError::Number(_))));
        assert!(matches!("1 parsec".parse::<Bytes>(), Err(UnitError::Unit { .. })));
        assert!(matches!("99999999999TiB".parse::<Bytes>(), Err(UnitError::TooLarge(_))));
        assert!(matches!("30".parse::<Span>(), Err(UnitError::Unit { .. })));
    }

    proptest::proptest! {
        #[test]
        fn bytes_round_trip(n: u64) {
            assert_eq!(Bytes(n).to_string().parse(), Ok(Bytes(n)));
        }

        #[test]
        fn spans_round_trip(micros in 0_u64..1 << 50) {
            let span = Span(Duration::from_micros(micros));
            assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Span>();
        }
    }
}

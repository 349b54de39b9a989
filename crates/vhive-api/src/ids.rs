//! Identifiers, each a type of its own so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Names one sandbox for as long as its node keeps it: 16 lower-case hexadecimal digits, random.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(Arc<str>);

impl SandboxId {
    /// Makes a fresh random identifier.
    ///
    /// ```
    /// let a = vhive_api::SandboxId::random();
    /// assert_eq!(a.as_str().len(), 16);
    /// assert_ne!(a, vhive_api::SandboxId::random());
    /// ```
    #[must_use]
    pub fn random() -> Self {
        Self(InvocationId::random().as_str().into())
    }

    /// The identifier as text, safe in file, cgroup and host names.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one invocation in records, logs and traces: 16 lower-case hexadecimal digits, random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvocationId([u8; 16]);

impl InvocationId {
    /// Makes a fresh random identifier.
    #[must_use]
    pub fn random() -> Self {
        Self::from_bits(getrandom::u64().expect("the kernel's random source answers after boot"))
    }

    /// The identifier with these bits: for one who makes many and sees to it that they differ.
    ///
    /// ```
    /// assert_eq!(vhive_api::InvocationId::from_bits(0xBEEF).as_str(), "000000000000beef");
    /// ```
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let mut digits = [0; 16];
        for (byte, pair) in bits.to_be_bytes().into_iter().zip(digits.chunks_exact_mut(2)) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 0xF)];
        }
        Self(digits)
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl fmt::Debug for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InvocationId").field(&self.as_str()).finish()
    }
}

/// The text is no invocation identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invocation identifier {text:?} is not 16 lower-case hexadecimal digits")]
pub struct ParseInvocationIdError {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl FromStr for InvocationId {
    type Err = ParseInvocationIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = <[u8; 16]>::try_from(text.as_bytes()).ok();
        let digits = digits.filter(|all| all.iter().all(|digit| HEX.contains(digit)));
        let bad = || ParseInvocationIdError { text: text.chars().take(80).collect() };
        digits.map(Self).ok_or_else(bad)
    }
}

impl Serialize for InvocationId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for InvocationId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Names a revision on a node: namespace and revision name, as in `default/hello-00001`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RevisionKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the revision, e.g. `hello-00001`.
    pub name: String,
}

impl RevisionKey {
    /// Puts the two parts together.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A SHA-256 digest, written `sha256:<64 hex digits>` as in OCI descriptors.
///
/// # Source
/// OCI image-spec, `descriptor.md` §Digests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Identifies everything that decides what a function's memory will hold: the immutable part of a
/// revision. Snapshots are keyed by it, never by a sandbox.
pub type RevisionDigest = Digest;

impl Digest {
    /// Wraps 32 bytes that some hasher produced.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes `data` in one go.
    ///
    /// ```
    /// let d = vhive_api::Digest::of(b"");
    /// assert!(d.to_string().starts_with("sha256:e3b0c44298fc1c14"));
    /// assert_eq!(d.to_string().parse(), Ok(d));
    /// ```
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(data).into())
    }

    /// The 32 bytes themselves, as binary formats keep them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a digest that we accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest {text:?} is not `sha256:` and 64 lower-case hexadecimal digits")]
pub struct ParseDigestError {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseDigestError { text: text.chars().take(80).collect() };
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?;
        if digits.len() != 64 || digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! display_as_text {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
display_as_text!(SandboxId, InvocationId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_refuses_what_is_not_one() {
        for text in ["", "sha256:", "sha512:00", "sha256:zz", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn digest_text_round_trips(bytes: [u8; 32]) {
            let digest = Digest::from_bytes(bytes);
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }

        #[test]
        fn invocation_text_round_trips(bits: u64) {
            let id = InvocationId::from_bits(bits);
            assert_eq!(id.as_str(), format!("{bits:016x}"));
            assert_eq!(id.as_str().parse(), Ok(id));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,100}") {
            let _ = text.parse::<Digest>();
            let _ = text.parse::<InvocationId>();
        }
    }
}

//! What a snapshot says of itself, and what must agree before it is restored.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vhive_api::guest::GuestNetwork;
use vhive_api::{Bytes, Digest, RevisionDigest, RevisionKey, RuntimeName};

use super::{MANIFEST, MOST_MANIFEST, OpenError};

/// Version of the directory's format; written always, and every earlier one is read.
pub const FORMAT: u32 = 1;

// Tripwires. What changes here changes what published manifests mean, and they are never rewritten: write a new
// format and keep a reader of this one (docs/design/snapshot-format.md; the golden manifests beside the tests).
const _: () = assert!(FORMAT == 1);
/// The network is a word of the guest contract, which may grow; a manifest's may not.
const _: fn(GuestNetwork) -> (Ipv4Addr, u8, Ipv4Addr, Vec<Ipv4Addr>) = |network| {
    let GuestNetwork { address, prefix, gateway, dns } = network;
    (address, prefix, gateway, dns)
};

/// Most files that a snapshot may have.
const MOST_FILES: usize = 16;

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Whose it is.
    pub owner: Owner,
    /// Where it was taken.
    pub platform: Platform,
    /// The machine's size.
    pub shape: MemoryShape,
    /// The interface that the guest believes to have; absent for guests without one.
    pub network: Option<GuestNetwork>,
    /// When it was taken, by the host's clock, UTC.
    pub at: String,
    /// The guest's CLOCK_MONOTONIC then, in nanoseconds.
    pub guest_ns: u64,
    /// Length and digest of every file besides this one and working sets.
    pub files: BTreeMap<String, FileEntry>,
}

/// Whose snapshot it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The revision's namespace, which decides; and its name when it was taken, for people.
    pub revision: RevisionKey,
    /// The digest that decides: revisions of one namespace with the same one may share a snapshot.
    pub digest: RevisionDigest,
    /// The manifest of the image whose root file system the guest has mounted.
    pub image: Digest,
}

/// What a snapshot was taken on and can only be restored on. Fields are compared by
/// [`Manifest::check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// The runtime.
    pub runtime: RuntimeName,
    /// Its version in its own words, with everything that its saved state depends on.
    pub version: String,
    /// What the guest sees of the processor.
    pub cpu: String,
    /// Guest kernel and init together; absent without a kernel of ours.
    pub kernel: Option<Digest>,
    /// Bytes in a page of guest memory on the host.
    pub page_size: u32,
}

/// What separates the rate of the time stamp counter from what is before it.
const TSC: &str = ", TSC ";

/// How far two rates may be apart, in parts of ten thousand: a rate is measured, at best to one of them.
const TSC_APART: u64 = 10;

/// A text for [`Platform::cpu`] of a processor whose time stamp counter guests are told the rate of: they
/// would go by it for ever, on whatever host.
#[must_use]
pub fn with_tsc(cpu: &str, tsc_khz: u32) -> String {
    format!("{cpu}{TSC}{tsc_khz} kHz")
}

/// Whether two processors are the same as far as guests see. Rates that are not told do not count: earlier
/// versions told none.
fn same_cpu(was: &str, is: &str) -> bool {
    let parts = |text: &str| -> (String, Option<u64>) {
        let split = text.rsplit_once(TSC);
        let rate = split.and_then(|(_, rate)| rate.strip_suffix(" kHz")?.parse().ok());
        (split.filter(|_| rate.is_some()).map_or(text, |(cpu, _)| cpu).to_owned(), rate)
    };
    let ((was, was_khz), (is, is_khz)) = (parts(was), parts(is));
    let near = |(was, is): (u64, u64)| {
        was.abs_diff(is).saturating_mul(10_000) <= is.saturating_mul(TSC_APART)
    };
    was == is && was_khz.zip(is_khz).is_none_or(near)
}

/// Sizes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryShape {
    /// Guest memory.
    pub memory: Bytes,
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// [`page_digest`](super::page_digest) of its content.
    pub digest: Digest,
}

/// A field in which a snapshot and what is wanted disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The field, e.g. `platform.version`.
    pub field: &'static str,
    /// What the snapshot has.
    pub has: String,
    /// What is wanted.
    pub wanted: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, wanted {}", self.field, self.has, self.wanted)
    }
}

impl std::error::Error for Mismatch {}

impl Manifest {
    /// Reads and checks the file by itself.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn read(path: &Path) -> Result<Self, OpenError> {
        let read = |source| OpenError::Read { path: path.to_owned(), source };
        let bad = |source| OpenError::Manifest { path: path.to_owned(), source };
        let mut text = Vec::new();
        let file = File::open(path).map_err(read)?;
        file.take(MOST_MANIFEST).read_to_end(&mut text).map_err(read)?;
        // The version first: a later format need not parse.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(&text).map_err(bad)?;
        if format == 0 || format > FORMAT {
            return Err(OpenError::Format(format));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(bad)?;
        manifest.check_files(path)?;
        Ok(manifest)
    }

    /// File names are plain, few, and none of the names with a meaning of their own: a manifest
    /// may come from elsewhere.
    fn check_files(&self, path: &Path) -> Result<(), OpenError> {
        let damaged = |what| OpenError::Damaged { path: path.to_owned(), what };
        if self.files.len() > MOST_FILES {
            return Err(damaged(format!("it lists {} files", self.files.len())));
        }
        for name in self.files.keys() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name == MANIFEST {
                return Err(damaged(format!("it lists a file {name:?}")));
            }
        }
        Ok(())
    }

    /// Compares with what a restore needs; the first field that disagrees is named.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn check(&self, owner: &Owner, on: &Platform, shape: MemoryShape) -> Result<(), Mismatch> {
        let kernel = |p: &Platform| p.kernel.map_or_else(|| "none".to_owned(), |d| d.to_string());
        let (was, is) = (&self.platform, on);
        let cpu = if same_cpu(&was.cpu, &is.cpu) { &was.cpu } else { &is.cpu };
        let namespace = |owner: &Owner| owner.revision.namespace.clone();
        let pairs = [
            ("owner.namespace", namespace(&self.owner), namespace(owner)),
            ("owner.digest", self.owner.digest.to_string(), owner.digest.to_string()),
            ("owner.image", self.owner.image.to_string(), owner.image.to_string()),
            ("platform.runtime", was.runtime.to_string(), is.runtime.to_string()),
            ("platform.version", was.version.clone(), is.version.clone()),
            ("platform.cpu", was.cpu.clone(), cpu.clone()),
            ("platform.kernel", kernel(was), kernel(is)),
            ("platform.page_size", was.page_size.to_string(), is.page_size.to_string()),
            ("shape.memory", self.shape.memory.to_string(), shape.memory.to_string()),
            ("shape.vcpus", self.shape.vcpus.to_string(), shape.vcpus.to_string()),
        ];
        match pairs.into_iter().find(|(_, has, wanted)| has != wanted) {
            Some((field, has, wanted)) => Err(Mismatch { field, has, wanted }),
            None => Ok(()),
        }
    }
}

//! Which Firecracker it is, and what follows from that.

use std::fmt;
use std::path::Path;

use crate::command;
use crate::deadline::Deadline;
use crate::runtime::HostLacks;

/// The least version that is driven. Earlier ones call snapshots a preview, and know no PCI.
pub(super) const LEAST: Version = Version { major: 1, minor: 13, patch: 0 };

/// Where releases are.
const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases";

/// A release; what follows a hyphen is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) patch: u32,
}

/// Something that not every supported version can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ability {
    /// The balloon gives pages back by itself: `free_page_reporting`.
    FreePageReporting,
    /// Incremental snapshots of a guest whose memory lies in several pieces are right: earlier
    /// versions mix the pieces up (Firecracker #5705).
    DiffOfPieces,
}

impl Ability {
    /// The first version that has it.
    const fn since(self) -> Version {
        match self {
            Self::FreePageReporting => Version { major: 1, minor: 14, patch: 0 },
            Self::DiffOfPieces => Version { major: 1, minor: 15, patch: 0 },
        }
    }
}

impl Version {
    /// Reads `v1.16.1` or `1.17.0-dev-2b4d`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let text = text.split(['-', '+']).next()?;
        let mut numbers = text.split('.').map(|number| number.parse().ok());
        let version =
            Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    pub(super) fn has(self, ability: Ability) -> bool {
        self >= ability.since()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Asks the program for its version.
///
/// # Errors
/// [`HostLacks`] if it cannot be run, says something else, or is too old.
pub(super) fn of_program(binary: &Path) -> Result<Version, HostLacks> {
    read_version(binary, &ask(binary, "--version")?)
}

fn read_version(binary: &Path, said: &str) -> Result<Version, HostLacks> {
    // `Firecracker v1.16.1`, then a line of its log.
    let line = said.lines().next().unwrap_or_default();
    let word = line.split_whitespace().nth(1).unwrap_or_default();
    let version = Version::parse(word).ok_or_else(|| {
        let what = format!("{} says it is {line:?}, not which Firecracker", binary.display());
        lacks(what, "configure Firecracker's own program")
    })?;
    if version < LEAST {
        let what = format!("{} is version {version}, at least {LEAST} is needed", binary.display());
        return Err(lacks(what, RELEASES));
    }
    Ok(version)
}

/// Asks the program which format its snapshots have.
///
/// # Errors
/// [`HostLacks`] if it cannot be run or says something else.
pub(super) fn snapshot_format(binary: &Path) -> Result<Version, HostLacks> {
    let said = ask(binary, "--snapshot-version")?;
    let line = said.lines().next().unwrap_or_default();
    Version::parse(line.trim()).ok_or_else(|| {
        let what = format!("{} says {line:?} of its snapshots' format", binary.display());
        lacks(what, "configure Firecracker's own program")
    })
}

fn ask(binary: &Path, option: &str) -> Result<String, HostLacks> {
    command::ask(binary, option, "reinstall Firecracker", Deadline::after(command::PATIENCE))
}

fn lacks(what: String, fix: &str) -> HostLacks {
    HostLacks { what, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let parse = |text| Version::parse(text).expect(text);
        assert_eq!(parse("v1.16.1").to_string(), "1.16.1");
        assert_eq!(parse("1.17.0-dev-ab12.3"), Version { major: 1, minor: 17, patch: 0 });
        assert!(parse("v1.9.0") < LEAST && parse("v1.13.0") >= LEAST && parse("v2.0.0") > LEAST);
        assert!(!parse("v1.13.2").has(Ability::FreePageReporting));
        assert!(parse("v1.14.0").has(Ability::FreePageReporting));
        for text in ["", "v", "1.2", "1.2.3.4", "1.2.x", "-1.2.3", "v99999999999.0.0"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_too_old_or_another_is_named() {
        let said = |text: &str| read_version(Path::new("/opt/firecracker"), text);
        let old = said("Firecracker v1.7.0").expect_err("too old").to_string();
        assert!(old.contains("is version 1.7.0, at least 1.13.0 is needed"), "{old}");
        let other = said("QEMU emulator version 7.2.22").expect_err("another").to_string();
        assert!(other.contains("not which Firecracker"), "{other}");
        let new = said("Firecracker v1.16.1\n\n2026 exiting successfully\n").expect("new enough");
        assert_eq!(new, Version { major: 1, minor: 16, patch: 1 });
        let missing = of_program(Path::new("/nonexistent/firecracker")).expect_err("missing");
        assert!(missing.what.contains("No such file"), "{missing}");
    }
}

//! What the three programs have in common, and where they differ.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vhive_api::{Bytes, RuntimeName};

use super::abilities::Abilities;
use super::config::{ContainerConfig, CrunConfig, GvisorConfig, Platform};
use crate::deadline::Deadline;

/// One of the programs, as configured.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    pub(super) name: RuntimeName,
    pub(super) binary: PathBuf,
    /// Options before the command.
    options: Vec<String>,
    gvisor: Option<(Platform, Abilities)>,
    /// CRIU's program; of crun the one that it finds itself.
    pub(super) criu: PathBuf,
    /// Where it comes from on Debian.
    pub(super) package: &'static str,
    /// Least memory of a container: with less, not even its first process gets to run.
    pub(super) least_memory: Bytes,
}

impl Tool {
    pub(super) fn runc(config: ContainerConfig) -> Self {
        Self::plain(RuntimeName::Runc, config)
    }

    pub(super) fn crun(config: CrunConfig) -> Self {
        let CrunConfig { binary } = config;
        Self::plain(RuntimeName::Crun, ContainerConfig { binary, criu: None })
    }

    fn plain(name: RuntimeName, config: ContainerConfig) -> Self {
        let program = name.as_str();
        let criu = config.criu.unwrap_or_else(|| PathBuf::from("criu"));
        // crun is not told: the library that it may be built with runs `criu`.
        let is_runc = name == RuntimeName::Runc;
        Self {
            name,
            binary: config.binary.unwrap_or_else(|| PathBuf::from(program)),
            options: Vec::from_iter(is_runc.then(|| format!("--criu={}", criu.display()))),
            gvisor: None,
            criu,
            package: program,
            // runc copies itself into memory that counts as the container's.
            least_memory: Bytes::mib(24),
        }
    }

    pub(super) fn runsc(config: GvisorConfig) -> Self {
        let (platform, abilities) = (config.platform, Abilities::USUAL);
        Self {
            name: RuntimeName::Runsc,
            binary: config.binary,
            options: abilities.options(platform),
            gvisor: Some((platform, abilities)),
            criu: PathBuf::new(),
            package: "runsc, from Debian's backports",
            least_memory: Bytes::mib(64),
        }
    }

    /// The same, as far as the version on this host can follow.
    ///
    /// # Errors
    /// Why it does not say what it can do.
    pub(super) fn fitted(&self, deadline: Deadline) -> Result<Self, String> {
        let Some((platform, _)) = self.gvisor else { return Ok(self.clone()) };
        let abilities = Abilities::of(&self.binary, deadline)?;
        let options = abilities.options(platform);
        Ok(Self { options, gvisor: Some((platform, abilities)), ..self.clone() })
    }

    /// Whether it restores what it has checkpointed.
    pub(super) fn restores(&self) -> bool {
        self.gvisor.is_some_and(|(_, abilities)| abilities.restores())
    }

    /// Options of the command that restores.
    pub(super) fn restore_options(&self) -> &'static [&'static str] {
        self.gvisor.map_or(&[], |(_, abilities)| abilities.restore_options())
    }

    /// What is to be said of the version besides its name.
    pub(super) fn about(&self) -> String {
        let Some((platform, abilities)) = self.gvisor else { return String::new() };
        let platform = abilities.platform(platform).as_str();
        let restores = if abilities.restores() { "restores" } else { "restores nothing" };
        let loads = if abilities.restore_options().is_empty() { "" } else { " in the background" };
        format!(", {platform}, {restores}{loads}")
    }

    /// Whether it is gVisor: a kernel of its own, with its own overlay and network stack.
    pub(super) fn is_gvisor(&self) -> bool {
        self.name == RuntimeName::Runsc
    }

    /// Options before the command.
    pub(super) fn options(&self) -> &[String] {
        &self.options
    }

    /// The words of a command; its own files are below `root`.
    pub(super) fn words(&self, root: &Path, command: &[&str]) -> Vec<OsString> {
        let mut words = vec![OsString::from("--root"), root.into()];
        words.extend(self.options.iter().map(OsString::from));
        words.extend(command.iter().map(OsString::from));
        words
    }
}

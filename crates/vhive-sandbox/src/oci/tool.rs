//! What the three programs have in common, and where they differ.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vhive_api::{Bytes, RuntimeName};

use super::config::{ContainerConfig, GvisorConfig};

/// One of the programs, as configured.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    pub(super) name: RuntimeName,
    pub(super) binary: PathBuf,
    /// Options before the command.
    options: Vec<String>,
    /// CRIU's program.
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

    pub(super) fn crun(config: ContainerConfig) -> Self {
        Self::plain(RuntimeName::Crun, config)
    }

    fn plain(name: RuntimeName, config: ContainerConfig) -> Self {
        let program = name.as_str();
        let criu = config.criu.unwrap_or_else(|| PathBuf::from("criu"));
        // crun has it built in, or not at all.
        let is_runc = name == RuntimeName::Runc;
        Self {
            name,
            binary: config.binary.unwrap_or_else(|| PathBuf::from(program)),
            options: Vec::from_iter(is_runc.then(|| format!("--criu={}", criu.display()))),
            criu,
            package: program,
            // runc copies itself into memory that counts as the container's.
            least_memory: Bytes::mib(24),
        }
    }

    pub(super) fn runsc(config: GvisorConfig) -> Self {
        let options = [
            format!("--platform={}", config.platform.as_str()),
            // What the function writes is kept in the sandbox's own memory, so that a checkpoint
            // has it and nothing of it is left on the host.
            "--overlay2=root:memory".to_owned(),
            "--network=sandbox".to_owned(),
            // A connection that is only just closed counts as open, and would forbid a checkpoint.
            "--net-disconnect-ok".to_owned(),
            // A function sees as many processors as it may use.
            "--cpu-num-from-quota".to_owned(),
        ];
        Self {
            name: RuntimeName::Runsc,
            binary: config.binary,
            options: options.to_vec(),
            criu: PathBuf::new(),
            package: "runsc, from Debian's backports",
            least_memory: Bytes::mib(64),
        }
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

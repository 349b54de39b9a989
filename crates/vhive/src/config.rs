//! The configuration: one TOML file, each part owned by its component.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use vhive_sandbox::RunRoot;
use vhive_sandbox::firecracker::FirecrackerConfig;
use vhive_sandbox::network::NetworkConfig;
use vhive_sandbox::oci::{ContainerConfig, CrunConfig, GvisorConfig};
use vhive_sandbox::process::UIDS;
use vhive_sandbox::qemu::QemuConfig;
use vhive_sandbox::sim::SimConfig;

use crate::cli::Global;

/// The commented default, embedded; a test proves that it equals [`Config::default`].
pub(crate) const DEFAULT_TEXT: &str = include_str!("default-config.toml");

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The brain.
    pub(crate) node: vhive_node::Config,
    /// API, gateway, autoscaler.
    pub(crate) serving: vhive_serving::Config,
    /// Network slots.
    pub(crate) network: NetworkConfig,
    /// The runtime `qemu`.
    pub(crate) qemu: QemuConfig,
    /// The runtime `firecracker`.
    pub(crate) firecracker: FirecrackerConfig,
    /// The runtime `runsc`: gVisor.
    pub(crate) runsc: GvisorConfig,
    /// The runtime `runc`.
    pub(crate) runc: ContainerConfig,
    /// The runtime `crun`.
    pub(crate) crun: CrunConfig,
    /// The runtime `sim`.
    pub(crate) sim: SimConfig,
}

impl Config {
    /// Reads the file (if one is given), applies the flags, makes paths absolute.
    ///
    /// # Errors
    /// What cannot be read or is not understood, by key.
    pub(crate) fn load(global: &Global) -> anyhow::Result<Self> {
        let mut config = match &global.config {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                let used = || -> anyhow::Result<Self> {
                    let config: Self = toml::from_str(&text)?;
                    users_apart(config.qemu.first_uid, config.firecracker.first_uid)?;
                    Ok(config)
                };
                used()
                    .with_context(|| format!("cannot use the configuration {}", path.display()))?
            }
        };
        if let Some(dir) = &global.state_dir {
            config.node.state_dir = dir.clone();
        }
        let state_dir = &mut config.node.state_dir;
        *state_dir = canonical(state_dir)
            .with_context(|| format!("{} is not a path", state_dir.display()))?;
        if config.serving.api.socket.is_none() {
            config.serving.api.socket = Some(config.run_root().dir().join("api.sock"));
        }
        Ok(config)
    }

    /// The names that this node uses on the host.
    pub(crate) fn run_root(&self) -> RunRoot {
        RunRoot::below(&self.node.run_dir, &self.node.state_dir)
    }

    /// Where the node's API listens.
    pub(crate) fn api_socket(&self) -> PathBuf {
        let default = || self.run_root().dir().join("api.sock");
        self.serving.api.socket.clone().unwrap_or_else(default)
    }

    /// Where guest kernels are kept.
    pub(crate) fn kernels_dir(&self) -> PathBuf {
        self.node.state_dir.join("kernels")
    }

    /// Where images are kept.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.node.state_dir.join("images")
    }
}

/// That no QEMU has the user of a Firecracker.
fn users_apart(qemu: u32, firecracker: u32) -> anyhow::Result<()> {
    anyhow::ensure!(
        qemu.abs_diff(firecracker) >= UIDS,
        "the users of QEMU (qemu.first_uid = {qemu}) and Firecracker (firecracker.first_uid = \
         {firecracker}) overlap: they must be at least {UIDS} apart"
    );
    Ok(())
}

/// The path without symbolic links, of which the last parts need not exist yet: client and node
/// derive the same names from it.
fn canonical(path: &Path) -> std::io::Result<PathBuf> {
    let whole = std::path::absolute(path)?;
    for there in whole.ancestors() {
        if let Ok(real) = there.canonicalize() {
            let rest = whole.strip_prefix(there).unwrap_or(Path::new(""));
            return Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) });
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default_is_the_default() {
        let documented: Config = toml::from_str(DEFAULT_TEXT).expect("the default is TOML");
        assert_eq!(documented, Config::default());
    }

    #[test]
    fn a_criu_for_crun_is_refused_since_nobody_would_use_it() {
        let read = toml::from_str::<Config>;
        assert!(read("[runc]\ncriu = \"/opt/criu\"\n[crun]\nbinary = \"/opt/crun\"").is_ok());
        let error = read("[crun]\ncriu = \"/opt/criu\"").expect_err("without effect").to_string();
        assert!(error.contains("unknown field `criu`, expected `binary`"), "{error}");
    }

    #[test]
    fn users_of_two_runtimes_do_not_overlap() {
        let first = QemuConfig::default().first_uid;
        assert!(users_apart(first, FirecrackerConfig::default().first_uid).is_ok());
        assert!(
            users_apart(first, first + UIDS).is_ok() && users_apart(first + UIDS, first).is_ok()
        );
        for other in [first, first + UIDS - 1, first - UIDS + 1] {
            let error = users_apart(first, other).expect_err("they overlap").to_string();
            assert!(error.contains("firecracker.first_uid"), "{error}");
        }
    }

    #[test]
    fn every_key_is_documented() {
        let text = toml::to_string(&Config::default()).expect("the default serialises");
        for line in text.lines() {
            let key = line.split(" = ").next().unwrap_or(line);
            assert!(DEFAULT_TEXT.contains(key), "{key} is not in default-config.toml");
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = toml::from_str::<Config>("[node]\nmax_instance = 3").expect_err("unknown");
        assert!(error.to_string().contains("max_instance"));
    }
}

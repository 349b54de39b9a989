//! What a version of gVisor has, by its own list of options.
//!
//! Releases have dates, and distributions patch them; so nothing is concluded from a number.

use std::ffi::OsString;
use std::path::Path;

use super::command;
use super::config::Platform;
use crate::deadline::Deadline;
use crate::process::Exit;

/// The options that not every version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each option is there or not, by itself")]
pub(super) struct Abilities {
    /// The platform `systrap`; older ones trace.
    systrap: bool,
    /// `--overlay2`, with a choice of what lies under it.
    overlay2: bool,
    /// `--net-disconnect-ok`.
    disconnects: bool,
    /// `--cpu-num-from-quota`.
    processors: bool,
    /// `checkpoint --compression`; these versions also keep the pages in a file of their own.
    compression: bool,
    /// `restore --background`: memory is loaded while the sandbox goes on. Debian's versions (of 2022,
    /// and of July 2024 in its backports) have none; all that they restore is there before they go on.
    background: bool,
}

impl Abilities {
    /// What is taken for granted of one that has not been asked.
    pub(super) const USUAL: Self = Self {
        systrap: true,
        overlay2: true,
        disconnects: true,
        processors: true,
        compression: true,
        background: false,
    };

    /// Asks the program.
    ///
    /// # Errors
    /// Why it does not answer.
    pub(super) fn of(binary: &Path, deadline: Deadline) -> Result<Self, String> {
        let ask = |words: &[&str]| {
            let asked = words.join(" ");
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            match command::run(binary, &words, deadline) {
                Ok((Exit::Code(0), text)) => Ok(text),
                Ok((exit, text)) => Err(format!("`{asked}` {exit}: {text}")),
                Err(error) => Err(format!("`{asked}`: {error}")),
            }
        };
        let (flags, checkpoint) = (ask(&["flags"])?, ask(&["help", "checkpoint"])?);
        Ok(Self::read(&flags, &checkpoint, &ask(&["help", "restore"])?))
    }

    /// # Source
    /// Go's package `flag`: a line `  -name type`, then one with what it does.
    fn read(flags: &str, checkpoint: &str, restore: &str) -> Self {
        let has = |text: &str, name: &str| text.lines().any(|line| is(line, name));
        let after = |name: &str| flags.lines().skip_while(|line| !is(line, name)).nth(1);
        Self {
            systrap: after("-platform").is_some_and(|about| about.contains("systrap")),
            overlay2: has(flags, "-overlay2"),
            disconnects: has(flags, "-net-disconnect-ok"),
            processors: has(flags, "-cpu-num-from-quota"),
            compression: has(checkpoint, "-compression"),
            background: has(restore, "-background"),
        }
    }

    /// Whether its checkpoints are restored: with them whole and uncompressed, and although a
    /// connection has only just been closed.
    pub(super) fn restores(self) -> bool {
        self.overlay2 && self.disconnects && self.compression
    }

    /// The platform that stands for the one asked for.
    pub(super) fn platform(self, asked: Platform) -> Platform {
        match asked {
            Platform::Systrap if !self.systrap => Platform::Ptrace,
            other => other,
        }
    }

    /// Options before the command.
    pub(super) fn options(self, platform: Platform) -> Vec<String> {
        let optional = [
            // What the function writes is kept in the sandbox's own memory, so that a checkpoint
            // has it and nothing of it is left on the host.
            (true, if self.overlay2 { "--overlay2=root:memory" } else { "--overlay" }),
            (true, "--network=sandbox"),
            // A connection that is only just closed counts as open, and would forbid a checkpoint.
            (self.disconnects, "--net-disconnect-ok"),
            // A function sees as many processors as it may use.
            (self.processors, "--cpu-num-from-quota"),
        ];
        let optional = optional.into_iter().filter_map(|(has, option)| has.then_some(option));
        let platform = format!("--platform={}", self.platform(platform).as_str());
        std::iter::once(platform).chain(optional.map(str::to_owned)).collect()
    }

    /// Options of the command that restores.
    pub(super) fn restore_options(self) -> &'static [&'static str] {
        if self.background { &["--background"] } else { &[] }
    }
}

fn is(line: &str, name: &str) -> bool {
    line.split_whitespace().next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_FLAGS: &str = "\
  -cpu-num-from-quota
    \tset cpu number to cpu quota
  -overlay
    \tDEPRECATED: use --overlay2=all:memory to achieve the same effect
  -overlay2 value
    \twrap mounts with overlayfs.
  -platform string
    \tspecifies which platform to use: ptrace (default), kvm. (default \"ptrace\")
  -platform_device_path string
    \tpath to a platform-specific device file, for systrap and others
";

    #[test]
    fn a_version_of_2022_traces_and_restores_nothing() {
        let text = "checkpoint [flags] <container id> - save current state of container.
  -image-path string\n    \tdirectory path, see -compression\n";
        let old = Abilities::read(OLD_FLAGS, text, text);
        assert!(!old.restores());
        let options = old.options(Platform::Systrap);
        let wanted = [
            "--platform=ptrace",
            "--overlay2=root:memory",
            "--network=sandbox",
            "--cpu-num-from-quota",
        ];
        assert_eq!(options, wanted);
        assert_eq!(old.options(Platform::Kvm)[0], "--platform=kvm", "who asks for it means it");
        assert_eq!(old.restore_options(), [""; 0]);
    }

    #[test]
    fn a_later_version_loads_in_the_background() {
        let flags = OLD_FLAGS.replace("ptrace (default), kvm", "systrap (default), ptrace, kvm");
        let flags = format!("{flags}  -net-disconnect-ok\n    \tIndicates whether\n");
        let (checkpoint, restore) = ("  -compression value\n", "  -background\n");
        let later = Abilities::read(&flags, checkpoint, restore);
        assert_eq!(later, Abilities { background: true, ..Abilities::USUAL });
        assert!(later.restores());
        assert_eq!(later.restore_options(), ["--background"]);
    }

    #[test]
    fn who_says_nothing_can_do_nothing() {
        let none = Abilities::read("", "", "");
        assert!(!none.restores());
        assert_eq!(none.options(Platform::default())[..2], ["--platform=ptrace", "--overlay"]);
    }
}

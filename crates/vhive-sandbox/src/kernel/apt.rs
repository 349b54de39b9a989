//! Fetches Debian's kernel package through apt, without installing anything on the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Always depends on the newest kernel for virtual machines.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Last lines of a program's complaint that an error repeats.
const TAIL: usize = 5;

/// Why the package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// Not a Debian.
    #[error(
        "{program} is not on this host; give a kernel of your own: \
         `vhive kernel install --from <vmlinuz> --modules </lib/modules/release>`"
    )]
    NoApt {
        /// The missing program.
        program: &'static str,
    },
    /// A program failed.
    #[error("`{command}` failed: {tail}")]
    Failed {
        /// What was run.
        command: String,
        /// The end of what it said.
        tail: String,
    },
    /// Refreshing apt's lists failed.
    #[error(
        "apt knows no usable {METAPACKAGE}, and refreshing its lists failed: {tail}; check \
         /etc/apt/sources.list and the network, or run `apt-get update` as root"
    )]
    Update {
        /// The end of what apt said.
        tail: String,
    },
    /// Even fresh lists do not have it.
    #[error(
        "apt has no package {METAPACKAGE} (it is in Debian's main section); \
         give a kernel of your own: `vhive kernel install --from <vmlinuz> --modules <dir>`"
    )]
    NoPackage,
    /// The package is not put together as expected.
    #[error("package {package} has no {what}")]
    Content {
        /// Its file name.
        package: String,
        /// What was looked for.
        what: &'static str,
    },
    /// The private directory could not be used.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A directory for one download. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Workspace {
    dir: PathBuf,
}

impl Workspace {
    /// Makes the directory afresh; its place must be the caller's alone.
    pub(super) fn create(dir: PathBuf) -> Result<Self, AptError> {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("clear", &dir)(e)),
            _ => {}
        }
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        Ok(Self { dir })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "download directory not removed");
        }
    }
}

/// Where the parts of an unpacked kernel package are.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// File name of the package, with its version.
    pub(super) package: String,
    pub(super) vmlinuz: PathBuf,
    pub(super) modules: PathBuf,
}

/// Downloads and unpacks the newest kernel package.
pub(super) fn fetch(to: &Workspace, progress: &mut dyn FnMut(&str)) -> Result<Unpacked, AptError> {
    let deb = match download(to, progress) {
        Ok(deb) => deb,
        Err(AptError::NoPackage | AptError::Failed { .. }) => {
            // Lists that are missing, or so old that what they name is gone from the archive.
            progress("refreshing apt's package lists");
            run(Command::new("apt-get").args(["update", "--quiet"])).map_err(
                |error| match error {
                    AptError::Failed { tail, .. } => AptError::Update { tail },
                    other => other,
                },
            )?;
            download(to, progress)?
        }
        Err(other) => return Err(other),
    };
    let package = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
    progress(&format!("unpacking {package}"));
    let root = to.dir.join("root");
    run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&root))?;
    let missing = |what| AptError::Content { package: package.clone(), what };
    let vmlinuz = first_in(&root.join("boot"), "vmlinuz-").ok_or_else(|| missing("vmlinuz"))?;
    let modules = ["lib/modules", "usr/lib/modules"];
    let modules = modules.iter().find_map(|dir| first_in(&root.join(dir), ""));
    let modules = modules.ok_or_else(|| missing("modules"))?;
    Ok(Unpacked { package, vmlinuz, modules })
}

fn download(to: &Workspace, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, AptError> {
    let depends = run(Command::new("apt-cache").args(["depends", METAPACKAGE]))?;
    let package = kernel_package(&depends).ok_or(AptError::NoPackage)?;
    progress(&format!("downloading {package}"));
    // As root apt would fetch as a user that cannot write here; the file is verified either way.
    let options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"];
    run(Command::new("apt-get").current_dir(&to.dir).arg("download").args(options).arg(package))?;
    first_in(&to.dir, "linux-image-").ok_or(AptError::NoPackage)
}

/// The package that a metapackage stands for, from the output of `apt-cache depends`.
fn kernel_package(depends: &str) -> Option<&str> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let plain = |name: &&str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        name.starts_with("linux-image-") && name.chars().all(allowed)
    };
    names.map(str::trim).find(plain)
}

/// The first entry (by name) that begins so.
fn first_in(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let begins = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    entries.filter(begins).map(|entry| entry.path()).min()
}

/// Runs a program to its end and gives what it printed.
fn run(command: &mut Command) -> Result<String, AptError> {
    let program = match command.get_program().to_str() {
        Some("apt-cache") => "apt-cache",
        Some("dpkg-deb") => "dpkg-deb",
        _ => "apt-get",
    };
    let shown = std::iter::once(command.get_program()).chain(command.get_args());
    let shown = shown.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => AptError::NoApt { program },
        _ => AptError::Failed { command: shown.clone(), tail: source.to_string() },
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("; ");
    Err(AptError::Failed { command: shown, tail })
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> AptError + 'a {
    move |source| AptError::Io { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metapackage_is_resolved() {
        let depends = "linux-image-cloud-amd64\n  Recommends: apparmor\n  \
             Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_package(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        for none in ["", "Depends: libc6", "  Depends: linux-image-$(reboot)", " Depends: "] {
            assert_eq!(kernel_package(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo why >&2; exit 3"]));
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("failed: first; why"), "{error}");
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(matches!(error, AptError::NoApt { .. }), "{error}");
    }

    #[test]
    fn a_workspace_goes_with_its_guard() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("download");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("left-over"), "").unwrap();
        let workspace = Workspace::create(dir.clone()).unwrap();
        assert!(!dir.join("left-over").exists());
        drop(workspace);
        assert!(!dir.exists());
    }
}

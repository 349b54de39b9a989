//! Putting a kernel into the store: from Debian's package, or from files.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::apt::{self, AptError, Unpacked, Workspace};
use super::bzimage::{self, ImageError, extract_vmlinux};
use super::modules::{self, ModulesError};
use super::store::{GuestKernel, KernelStore, Parts, StoreError};

/// Largest kernel file that is read.
const MOST_BYTES: u64 = 512 << 20;

/// Why a kernel could not be installed. The one in use before is still in use.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The package could not be had.
    #[error("cannot get Debian's kernel package")]
    Apt(#[from] AptError),
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large for a kernel.
    #[error("{} is larger than {MOST_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The file is no usable kernel.
    #[error("{} cannot be used", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// The kernel does not say which release it is, so modules cannot be matched with it.
    #[error("{} has no version banner", .0.display())]
    NoRelease(PathBuf),
    /// Its modules could not be put together.
    #[error("cannot collect the guest's modules")]
    Modules(#[from] ModulesError),
    /// The result could not be stored.
    #[error("cannot store the kernel")]
    Store(#[from] StoreError),
}

impl KernelStore {
    /// Installs the kernel of Debian's metapackage `linux-image-cloud-amd64`, downloaded by apt into a
    /// private directory and unpacked there; nothing is installed on the host. `progress` hears
    /// what is going on.
    ///
    /// # Errors
    /// [`InstallError`]; the store is as it was.
    pub fn install_from_apt(
        &self,
        progress: &mut dyn FnMut(&str),
    ) -> Result<GuestKernel, InstallError> {
        let _only_one = self.lock("download.lock")?;
        let workspace = Workspace::create(self.dir().join("download"))?;
        let Unpacked { package, vmlinuz, modules } = apt::fetch(&workspace, progress)?;
        self.install(&vmlinuz, Some(&modules), package, progress)
    }

    /// Installs a `vmlinuz` or `vmlinux`. `modules` is its directory of modules, as
    /// `/lib/modules/<release>`; none means that everything init needs is built in.
    ///
    /// # Errors
    /// [`InstallError`]; the store is as it was.
    pub fn install_from(
        &self,
        kernel: &Path,
        modules: Option<&Path>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<GuestKernel, InstallError> {
        let source = kernel.canonicalize().unwrap_or_else(|_| kernel.to_owned());
        self.install(kernel, modules, source.display().to_string(), progress)
    }

    fn install(
        &self,
        path: &Path,
        modules: Option<&Path>,
        source: String,
        progress: &mut dyn FnMut(&str),
    ) -> Result<GuestKernel, InstallError> {
        let file = read(path)?;
        progress("extracting the kernel");
        let vmlinux = extract_vmlinux(&file)
            .map_err(|source| InstallError::Image { path: path.to_owned(), source })?;
        let release = bzimage::release(&vmlinux);
        let release = release.ok_or_else(|| InstallError::NoRelease(path.to_owned()))?;
        let modules = match modules {
            Some(dir) => modules::collect(dir, Some(&release))?,
            None => Vec::new(),
        };
        progress("storing kernel and initramfs");
        let parts = Parts { release, source, vmlinux: &vmlinux, stored_vmlinux: None, modules };
        Ok(self.publish(parts)?)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    let failed = |source| InstallError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(InstallError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

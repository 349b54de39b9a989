//! Installed kernels on disk: immutable, named by their digest, published by rename.
//!
//! ```text
//!   <dir>/lock                      held while something is published
//!   <dir>/current                   digest of the kernel in use; replaced by rename
//!   <dir>/<digest>/kernel.json      what is in it; written last, so it vouches for the rest
//!                  vmlinux  initramfs.cpio  modules/<name>.ko
//!   <dir>/draft-*                   being made, or left over; removed by the next publisher
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

use super::initramfs;
use super::modules::{Module, Stage};

/// Version of `kernel.json`; other versions are not read.
const FORMAT: u32 = 1;

/// A kernel that is ready to boot. Its files stay as they are as long as the store exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestKernel {
    /// Identifies kernel, modules and init together.
    pub digest: Digest,
    /// As `uname -r` prints it in the guest.
    pub release: String,
    /// Where it came from: package and version, or the file's path.
    pub source: String,
    /// The ELF kernel.
    pub vmlinux: PathBuf,
    /// The initramfs with modules and init.
    pub initramfs: PathBuf,
}

/// Why the store could not do something. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing has been installed yet.
    #[error("no guest kernel in {}; run `vhive kernel install`", .0.display())]
    None(PathBuf),
    /// What is stored is not what was installed.
    #[error("guest kernel in {} is damaged ({what}); run `vhive kernel install`", path.display())]
    Damaged {
        /// The damaged entry.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk refused.
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

/// The kernels in one directory. Any number of processes may use it at the same time.
#[derive(Clone, Debug)]
pub struct KernelStore {
    dir: PathBuf,
}

/// What goes into the store.
pub(super) struct Parts<'a> {
    pub(super) release: String,
    pub(super) source: String,
    pub(super) vmlinux: &'a [u8],
    /// A file of the store with the same bytes, to be shared instead of written again.
    pub(super) stored_vmlinux: Option<PathBuf>,
    pub(super) modules: Vec<Module>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    release: String,
    source: String,
    vmlinux: Digest,
    initramfs: Digest,
    init: Digest,
    modules: Vec<StoredModule>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredModule {
    name: String,
    stage: Stage,
    digest: Digest,
}

impl KernelStore {
    /// Uses a directory, making it if needed.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        Ok(Self { dir })
    }

    /// The kernel in use, with every file checked against its digest. If it was installed by a
    /// vHive with another init, it is first published anew with this one's.
    ///
    /// # Errors
    /// [`StoreError::None`] before the first installation, [`StoreError::Damaged`] with what to
    /// do about it.
    pub fn current(&self) -> Result<GuestKernel, StoreError> {
        let pointer = self.dir.join("current");
        let text = match fs::read_to_string(&pointer) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::None(self.dir.clone()));
            }
            Err(source) => return Err(io("read", &pointer)(source)),
        };
        let digest = text
            .trim()
            .parse::<Digest>()
            .map_err(|error| StoreError::Damaged { path: pointer, what: error.to_string() })?;
        let (kernel, manifest) = self.read(digest)?;
        if manifest.init == Digest::of(super::init_binary()) {
            return Ok(kernel);
        }
        tracing::info!(%digest, "guest kernel gets the init of this version");
        let vmlinux = fs::read(&kernel.vmlinux).map_err(io("read", &kernel.vmlinux))?;
        let modules = self.read_modules(&self.entry(digest), &manifest)?;
        let Manifest { release, source, .. } = manifest;
        let stored_vmlinux = Some(kernel.vmlinux);
        self.publish(Parts { release, source, vmlinux: &vmlinux, stored_vmlinux, modules })
    }

    /// Stores a kernel and makes it the one in use.
    pub(super) fn publish(&self, parts: Parts<'_>) -> Result<GuestKernel, StoreError> {
        let init = super::init_binary();
        let Parts { release, source, vmlinux, stored_vmlinux, modules } = parts;
        let initramfs = initramfs::build(init, &modules);
        let stored = |module: &Module| StoredModule {
            name: module.name.clone(),
            stage: module.stage,
            digest: Digest::of(&module.image),
        };
        let manifest = Manifest {
            format: FORMAT,
            release,
            source,
            vmlinux: Digest::of(vmlinux),
            initramfs: Digest::of(&initramfs),
            init: Digest::of(init),
            modules: modules.iter().map(stored).collect(),
        };
        let digest = manifest.identity();
        let _lock = self.lock("lock")?;
        if self.read(digest).is_err() {
            self.remove_drafts()?;
            let draft = self.dir.join(format!("draft-{}", digest.hex()));
            let modules_dir = draft.join("modules");
            fs::create_dir_all(&modules_dir).map_err(io("create", &modules_dir))?;
            let path = draft.join("vmlinux");
            // Where links are not possible, a copy serves as well.
            if stored_vmlinux.is_none_or(|stored| fs::hard_link(stored, &path).is_err()) {
                write(&path, vmlinux)?;
            }
            write(&draft.join("initramfs.cpio"), &initramfs)?;
            for module in &modules {
                write(&modules_dir.join(format!("{}.ko", module.name)), &module.image)?;
            }
            let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
            write(&draft.join("kernel.json"), &json)?;
            let entry = self.entry(digest);
            remove_tree(&entry)?;
            fs::rename(&draft, &entry).map_err(io("publish", &entry))?;
        }
        let pointer = self.dir.join("draft-current");
        write(&pointer, format!("{digest}\n").as_bytes())?;
        fs::rename(&pointer, self.dir.join("current")).map_err(io("publish", &pointer))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io("sync", &self.dir))?;
        Ok(self.kernel(digest, &manifest))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn entry(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn kernel(&self, digest: Digest, manifest: &Manifest) -> GuestKernel {
        let entry = self.entry(digest);
        GuestKernel {
            digest,
            release: manifest.release.clone(),
            source: manifest.source.clone(),
            vmlinux: entry.join("vmlinux"),
            initramfs: entry.join("initramfs.cpio"),
        }
    }

    /// Reads an entry and checks what a boot needs of it.
    fn read(&self, digest: Digest) -> Result<(GuestKernel, Manifest), StoreError> {
        let entry = self.entry(digest);
        let damaged = |what: String| StoreError::Damaged { path: entry.clone(), what };
        let json = fs::read(entry.join("kernel.json"));
        let json = json.map_err(|error| damaged(format!("kernel.json: {error}")))?;
        let manifest: Manifest = serde_json::from_slice(&json)
            .map_err(|error| damaged(format!("kernel.json: {error}")))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!("format {}, not {FORMAT}", manifest.format)));
        }
        if manifest.identity() != digest {
            return Err(damaged("kernel.json is not the one that was installed".to_owned()));
        }
        let kernel = self.kernel(digest, &manifest);
        for (path, expected) in
            [(&kernel.vmlinux, manifest.vmlinux), (&kernel.initramfs, manifest.initramfs)]
        {
            verify(path, expected).map_err(damaged)?;
        }
        Ok((kernel, manifest))
    }

    fn read_modules(&self, entry: &Path, manifest: &Manifest) -> Result<Vec<Module>, StoreError> {
        let damaged = |what: String| StoreError::Damaged { path: entry.to_owned(), what };
        let read = |stored: &StoredModule| {
            let path = entry.join("modules").join(format!("{}.ko", stored.name));
            verify(&path, stored.digest).map_err(damaged)?;
            let image = fs::read(&path).map_err(io("read", &path))?;
            Ok(Module { name: stored.name.clone(), stage: stored.stage, image })
        };
        manifest.modules.iter().map(read).collect()
    }

    /// Waits until no other process does the same kind of thing.
    pub(super) fn lock(&self, name: &str) -> Result<File, StoreError> {
        let path = self.dir.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(io("open", &path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| io("lock", &path)(error.into()))?;
        Ok(file)
    }

    /// Removes what a killed process left behind; only under the lock.
    fn remove_drafts(&self) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.dir).map_err(io("read", &self.dir))? {
            let entry = entry.map_err(io("read", &self.dir))?;
            if entry.file_name().to_string_lossy().starts_with("draft-") {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// The digest that names the whole: of what is booted, not of where it came from.
    fn identity(&self) -> Digest {
        let Self { release, vmlinux, initramfs, .. } = self;
        Digest::of(format!("vhive guest kernel\n{release}\n{vmlinux}\n{initramfs}\n").as_bytes())
    }
}

fn io<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { step, path: path.to_owned(), source }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = File::create(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("write", path))
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    removed.map_err(io("remove", path))
}

/// Says what is wrong with a file, if something is.
fn verify(path: &Path, expected: Digest) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hash = || -> io::Result<Digest> {
        let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
                got => hasher.update(&chunk[..got]),
            }
        }
    };
    match hash() {
        Ok(digest) if digest == expected => Ok(()),
        Ok(_) => Err(format!("{name} has changed")),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

#[cfg(test)]
mod tests;

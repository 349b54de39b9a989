//! Which modules go into the initramfs, and in which order init loads them.
//!
//! Dependencies are read from the modules themselves: Debian's package has no `modules.dep` (its
//! installation script makes that), and what a module states is what the kernel will ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::decompress::{DecompressError, decompress};
use super::modinfo::{ModInfo, canonical, parse, without_signature};

/// When init needs a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    /// Before its first message to the host.
    Channel,
    /// Before it sets up network and root file system.
    Root,
}

impl Stage {
    /// The word in the initramfs' list.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Root => "root",
        }
    }
}

/// What init needs, in this order, each after what it depends on.
const NEEDED: [(Stage, &str); 6] = [
    (Stage::Channel, "virtio_mmio"),
    (Stage::Channel, "virtio_console"),
    (Stage::Root, "virtio_blk"),
    (Stage::Root, "virtio_net"),
    (Stage::Root, "erofs"),
    (Stage::Root, "overlay"),
];

/// What provides things that modules ask for by another name than a module's.
const PROVIDERS: [(&str, &str); 1] = [("crc32c", "crc32c_generic")];

/// Largest module file, and deepest directory, that is looked at.
const MOST_BYTES: u64 = 64 << 20;
const DEEPEST: usize = 12;

/// One module, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) stage: Stage,
    pub(super) image: Vec<u8>,
}

/// Why the modules could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a module nor, as far as `modules.builtin` says, part of the kernel.
    #[error(
        "{} has no module {name}, and its modules.builtin does not list it either; \
         give the directory of this very kernel, e.g. /lib/modules/<release>", dir.display()
    )]
    Missing {
        /// The module.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It is larger than a module can be.
    #[error("{} is larger than {MOST_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A compressed module could not be unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// A file is not an ELF object.
    #[error("{} is no kernel module: {reason}", path.display())]
    Format {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A module was built for another kernel.
    #[error("{} is for kernel {module}, but this kernel is {kernel}", path.display())]
    Release {
        /// Which one.
        path: PathBuf,
        /// The release it was built for.
        module: String,
        /// The kernel's.
        kernel: String,
    },
}

/// Collects what init needs from a directory like `/lib/modules/<release>`, in load order.
pub(super) fn collect(dir: &Path, release: Option<&str>) -> Result<Vec<Module>, ModulesError> {
    let mut collection = Collection {
        dir,
        release,
        files: find_files(dir)?,
        builtin: read_builtin(dir)?,
        begun: BTreeSet::new(),
        modules: Vec::new(),
    };
    for (stage, name) in NEEDED {
        collection.add(stage, name)?;
    }
    Ok(collection.modules)
}

struct Collection<'a> {
    dir: &'a Path,
    release: Option<&'a str>,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    begun: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Collection<'_> {
    /// Adds a module after all that it depends on. (Depth is bounded: each name is begun once.)
    fn add(&mut self, stage: Stage, name: &str) -> Result<(), ModulesError> {
        if self.builtin.contains(name) || !self.begun.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name).cloned() else {
            return Err(ModulesError::Missing { name: name.to_owned(), dir: self.dir.to_owned() });
        };
        let (image, info) = read_module(&path)?;
        if let Some(kernel) = self.release.filter(|kernel| **kernel != *info.release) {
            let kernel = kernel.to_owned();
            return Err(ModulesError::Release { path, module: info.release, kernel });
        }
        for wanted in &info.wants {
            let provider = PROVIDERS.iter().find(|(what, _)| what == wanted);
            let wanted = provider.map_or(wanted.as_str(), |(_, module)| module);
            if self.files.contains_key(wanted) {
                self.add(stage, wanted)?;
            }
        }
        for needed in &info.depends {
            self.add(stage, needed)?;
        }
        self.modules.push(Module { name: name.to_owned(), stage, image });
        Ok(())
    }
}

fn read_module(path: &Path) -> Result<(Vec<u8>, ModInfo), ModulesError> {
    let read = |source| ModulesError::Read { path: path.to_owned(), source };
    let mut file = Vec::new();
    let source = File::open(path).map_err(read)?;
    source.take(MOST_BYTES + 1).read_to_end(&mut file).map_err(read)?;
    if file.len() as u64 > MOST_BYTES {
        return Err(ModulesError::TooLarge(path.to_owned()));
    }
    let image = decompress(&file);
    let image = image.map_err(|source| ModulesError::Unpack { path: path.to_owned(), source })?;
    let info = parse(&image).map_err(|error| {
        let reason = error.to_string();
        ModulesError::Format { path: path.to_owned(), reason }
    })?;
    Ok((without_signature(&image).to_vec(), info))
}

/// Every module file below a directory by the module's name. Symbolic links are not followed.
fn find_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut files = BTreeMap::new();
    let mut todo = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let read = |source| ModulesError::Read { path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(read)? {
            let entry = entry.map_err(read)?;
            let kind = entry.file_type().map_err(read)?;
            if kind.is_dir() && depth < DEEPEST {
                todo.push((entry.path(), depth + 1));
            } else if kind.is_file()
                && let Some(name) = entry.file_name().to_str().and_then(module_name)
            {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end));
    stem.map(canonical)
}

/// Names of what is part of the kernel itself.
fn read_builtin(dir: &Path) -> Result<BTreeSet<String>, ModulesError> {
    let path = dir.join("modules.builtin");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let file = |line: &str| line.rsplit('/').next().and_then(module_name);
            Ok(text.lines().filter_map(file).collect())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(ModulesError::Read { path, source }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::modinfo::tests::tiny_module;

    /// A modules directory with everything that init needs, for a kernel of this release.
    pub(crate) fn module_dir(release: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, depends) in [
            ("kernel/virtio/virtio_ring.ko", ""),
            ("kernel/virtio/virtio.ko", "virtio_ring"),
            ("kernel/virtio/virtio_mmio.ko", "virtio,virtio_ring"),
            ("kernel/char/virtio_console.ko", "virtio,virtio_ring"),
            ("kernel/net/virtio-net.ko", "virtio"),
            ("kernel/fs/erofs.ko", "libcrc32c"),
            ("kernel/lib/libcrc32c.ko", "\0softdep=pre: crc32c"),
            ("kernel/crypto/crc32c_generic.ko", ""),
            ("kernel/fs/overlay.ko", ""),
            ("kernel/fs/unneeded.ko", ""),
        ] {
            let module = tiny_module(&format!("depends={depends}\0vermagic={release} SMP\0"));
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module).unwrap();
        }
        let builtin = "kernel/drivers/block/virtio_blk.ko\n";
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        dir
    }

    #[test]
    fn dependencies_come_first_and_builtins_not_at_all() {
        let dir = module_dir("6.1");
        let modules = collect(dir.path(), Some("6.1")).unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(
            names.join(" "),
            "virtio_ring virtio virtio_mmio virtio_console virtio_net \
             crc32c_generic libcrc32c erofs overlay"
        );
        assert_eq!(modules[3].stage, Stage::Channel);
        assert_eq!(modules[4].stage, Stage::Root);
    }

    #[test]
    fn a_missing_module_and_a_foreign_one_are_named() {
        let dir = module_dir("6.1");
        let error = collect(dir.path(), Some("6.2")).unwrap_err();
        assert!(error.to_string().contains("6.2"), "{error}");
        fs::remove_file(dir.path().join("kernel/fs/erofs.ko")).unwrap();
        let error = collect(dir.path(), Some("6.1")).unwrap_err();
        assert!(matches!(&error, ModulesError::Missing { name, .. } if name == "erofs"));
        let error = collect(&dir.path().join("none"), None).unwrap_err();
        assert!(matches!(error, ModulesError::Read { .. }));
    }

    #[test]
    fn a_circle_of_dependencies_ends() {
        let dir = module_dir("6.1");
        let circle = tiny_module("depends=virtio_mmio\0vermagic=6.1 SMP\0");
        fs::write(dir.path().join("kernel/virtio/virtio_ring.ko"), circle).unwrap();
        assert_eq!(collect(dir.path(), None).unwrap().len(), 9);
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let dir = module_dir("6.1");
        let path = dir.path().join("kernel/fs/overlay.ko");
        let plain = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(path.with_extension("ko.zst"), zstd::encode_all(&*plain, 1).unwrap()).unwrap();
        let modules = collect(dir.path(), None).unwrap();
        assert_eq!(modules.last().unwrap().image, plain);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let dir = module_dir("6.1");
        let path = dir.path().join("kernel/fs/overlay.ko");
        fs::write(&path, b"\x7fELF").unwrap();
        assert!(matches!(collect(dir.path(), None), Err(ModulesError::Format { .. })));
        fs::write(&path, "text").unwrap();
        assert!(matches!(collect(dir.path(), None), Err(ModulesError::Unpack { .. })));
    }
}

use super::*;
use crate::kernel::bzimage::tests::{bzimage_of, tiny_vmlinux};
use crate::kernel::install::InstallError;
use crate::kernel::modules::tests::module_dir;

struct Host {
    dir: tempfile::TempDir,
    modules: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinuz"), bzimage_of(&tiny_vmlinux("6.1.0-t"))).unwrap();
        Self { dir, modules: module_dir("6.1.0-t") }
    }

    fn store(&self, name: &str) -> KernelStore {
        KernelStore::open(self.dir.path().join(name)).unwrap()
    }

    fn install(&self, store: &KernelStore) -> Result<GuestKernel, InstallError> {
        let vmlinuz = self.dir.path().join("vmlinuz");
        store.install_from(&vmlinuz, Some(self.modules.path()), &mut |_| {})
    }
}

#[test]
fn an_empty_store_says_what_to_do() {
    let host = Host::new();
    let error = host.store("s").current().unwrap_err();
    assert!(matches!(error, StoreError::None(_)));
    assert!(error.to_string().contains("vhive kernel install"), "{error}");
}

#[test]
fn what_is_installed_is_current_and_repeatable() {
    let host = Host::new();
    let (a, b) = (host.store("a"), host.store("b"));
    let installed = host.install(&a).unwrap();
    assert_eq!(a.current().unwrap(), installed);
    assert_eq!(installed.release, "6.1.0-t");
    assert_eq!(host.install(&b).unwrap().digest, installed.digest);
    assert_eq!(fs::read(&installed.vmlinux).unwrap(), tiny_vmlinux("6.1.0-t"));
    let again = host.install(&a).unwrap();
    assert_eq!(again, installed);
}

#[test]
fn a_damaged_file_is_noticed_and_healed_by_installing_again() {
    let host = Host::new();
    let store = host.store("s");
    let kernel = host.install(&store).unwrap();
    let manifest = kernel.vmlinux.with_file_name("kernel.json");
    let pointer = host.dir.path().join("s/current");
    for file in [&kernel.vmlinux, &kernel.initramfs, &manifest, &pointer] {
        fs::write(file, "x").unwrap();
        let error = store.current().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("vhive kernel install"), "{error}");
        assert_eq!(host.install(&store).unwrap(), kernel);
        fs::remove_file(file).unwrap();
        assert!(store.current().is_err(), "{}", file.display());
        host.install(&store).unwrap();
        assert_eq!(store.current().unwrap(), kernel);
    }
}

#[test]
fn another_init_is_replaced_by_ours_without_the_package() {
    let host = Host::new();
    let store = host.store("s");
    let kernel = host.install(&store).unwrap();
    // As an older vHive would have left it: everything as now, but with its own init.
    let entry = kernel.vmlinux.parent().unwrap();
    let json = fs::read(entry.join("kernel.json")).unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&json).unwrap();
    let modules = store.read_modules(entry, &manifest).unwrap();
    let initramfs = initramfs::build(b"old init", &modules);
    manifest.init = Digest::of(b"old init");
    manifest.initramfs = Digest::of(&initramfs);
    let old = store.entry(manifest.identity());
    fs::rename(entry, &old).unwrap();
    fs::write(old.join("initramfs.cpio"), initramfs).unwrap();
    fs::write(old.join("kernel.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    fs::write(host.dir.path().join("s/current"), manifest.identity().to_string()).unwrap();
    assert_eq!(store.current().unwrap(), kernel);
    assert!(old.exists(), "a guest may still be booting from it");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    assert_eq!(inode(&kernel.vmlinux), inode(&old.join("vmlinux")), "one copy on disk");
}

#[test]
fn a_failed_installation_changes_nothing() {
    let host = Host::new();
    let store = host.store("s");
    let kernel = host.install(&store).unwrap();
    fs::write(host.dir.path().join("vmlinuz"), "no kernel").unwrap();
    assert!(matches!(host.install(&store), Err(InstallError::Image { .. })));
    let missing = host.dir.path().join("missing");
    let error = store.install_from(&missing, None, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(store.current().unwrap(), kernel);
}

#[test]
fn what_a_killed_publisher_left_goes_away() {
    let host = Host::new();
    let store = host.store("s");
    let draft = host.dir.path().join("s/draft-0000");
    fs::create_dir(&draft).unwrap();
    fs::write(draft.join("vmlinux"), "half").unwrap();
    host.install(&store).unwrap();
    assert!(!draft.exists());
}

#[test]
fn two_installers_at_once_agree() {
    let host = Host::new();
    let kernels: Vec<GuestKernel> = std::thread::scope(|scope| {
        let install = || host.install(&host.store("s")).unwrap();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(install)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(kernels.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(host.store("s").current().unwrap(), kernels[0]);
}

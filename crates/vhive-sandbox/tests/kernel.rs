//! Debian's real kernel package through the store.

use std::fs;

use vhive_sandbox::kernel::{AptError, InstallError, KernelStore};

#[test]
fn debians_kernel_is_installed_and_can_be_taken_along() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = KernelStore::open(dir.path().join("kernels")).expect("a store");
    let mut told = Vec::new();
    let kernel = match store.install_from_apt(&mut |what| told.push(what.to_owned())) {
        Ok(kernel) => kernel,
        Err(InstallError::Apt(error @ (AptError::NoApt { .. } | AptError::Update { .. }))) => {
            eprintln!("SKIP debians_kernel_is_installed_and_can_be_taken_along: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    assert!(told.iter().any(|what| what.starts_with("downloading linux-image-")), "{told:?}");
    assert!(kernel.source.starts_with("linux-image-") && kernel.source.ends_with(".deb"));
    assert!(kernel.source.contains(&kernel.release), "{} {}", kernel.source, kernel.release);
    assert_eq!(store.current().expect("installed"), kernel);
    assert!(!dir.path().join("kernels/download").exists(), "the download is gone");

    let list = fs::read(&kernel.initramfs).expect("read");
    for line in ["channel virtio_console.ko\n", "root erofs.ko\n", "root overlay.ko\n"] {
        let found = list.windows(line.len()).any(|part| part == line.as_bytes());
        assert!(found, "{line}");
    }

    // On a machine without apt: the same files, by hand, are the same kernel.
    let other = KernelStore::open(dir.path().join("other")).expect("a store");
    let modules = kernel.vmlinux.with_file_name("modules");
    let copied = other.install_from(&kernel.vmlinux, Some(&modules), &mut |_| {});
    assert_eq!(copied.expect("installed").digest, kernel.digest);
}

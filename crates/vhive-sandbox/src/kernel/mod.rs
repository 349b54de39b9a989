//! The guest's kernel: where it comes from, and how it is kept.
//!
//! ```text
//!   Debian's package ─┐                       ┌─► vmlinux          (ELF, entered without a boot loader)
//!   vmlinuz, vmlinux ─┼─► KernelStore ──────► ┼─► initramfs.cpio   (modules in order, vhive-init)
//!   vhive-init (ours) ┘   <dir>/<digest>/     └─► kernel.json      (digests of everything)
//! ```
//!
//! Same input, same digest: nothing of the time, the machine or the order of a directory gets
//! into a stored kernel. Why it is done so: `docs/decisions/0003-guest-kernel.md`.

mod apt;
mod bzimage;
mod command_line;
mod decompress;
mod initramfs;
mod install;
mod modinfo;
mod modules;
mod store;
mod tsc;

pub use apt::AptError;
pub use bzimage::{ImageError, extract_vmlinux};
pub use command_line::{command_line, serial_command_line};
pub use decompress::DecompressError;
pub use install::InstallError;
pub use modules::ModulesError;
pub use store::{GuestKernel, KernelStore, StoreError};
pub use tsc::{TscError, tsc_khz};

/// The guest's init: a static program, built together with this crate.
#[must_use]
pub const fn init_binary() -> &'static [u8] {
    include_bytes!(env!("VHIVE_INIT"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_init_is_a_static_program() {
        use object::read::elf::{FileHeader as _, ProgramHeader as _};
        let init = super::init_binary();
        let header = object::elf::FileHeader64::<object::LittleEndian>::parse(init).unwrap();
        let segments = header.program_headers(object::LittleEndian, init).unwrap();
        let kinds = || segments.iter().map(|s| s.p_type(object::LittleEndian));
        assert!(kinds().any(|kind| kind == object::elf::PT_LOAD));
        assert!(kinds().all(|kind| kind != object::elf::PT_INTERP), "needs a dynamic loader");
        assert!(init.len() < 2 << 20, "{} bytes", init.len());
    }
}

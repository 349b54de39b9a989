//! The bare-metal test guest that this crate brings: an HTTP server without an operating system,
//! that fills memory, touches it in a known order, and returns a checksum. The page is
//! `docs/design/nano-guest.md`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use vhive_api::{Digest, SandboxId};

/// The guest: a static ELF with a PVH entry, built together with this crate.
#[must_use]
pub const fn elf() -> &'static [u8] {
    include_bytes!(env!("VHIVE_NANO"))
}

/// Writes the guest into a directory, which is made, unless it is there already, and says under
/// which name: one that its digest decides, for [`Guest::Bare`](crate::Guest::Bare). Everybody may
/// read it, whatever umask is set: a VMM opens it as a user of its own.
///
/// # Errors
/// Any error of writing; nothing is left behind.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let dir = tempfile::tempdir()?;
/// let kernel = vhive_sandbox::nano::write_to(dir.path())?;
/// assert_eq!(std::fs::read(&kernel)?, vhive_sandbox::nano::elf());
/// assert_eq!(vhive_sandbox::nano::write_to(dir.path())?, kernel);
/// # Ok(())
/// # }
/// ```
pub fn write_to(dir: &Path) -> io::Result<PathBuf> {
    let digest = Digest::of(elf()).to_string();
    let name = digest.rsplit(':').next().and_then(|hex| hex.get(..16)).unwrap_or("0");
    let path = dir.join(format!("nano-{name}.elf"));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!("draft-{}", SandboxId::random().as_str()));
    let written = write(&draft).and_then(|()| fs::rename(&draft, &path));
    if let Err(error) = written {
        // The first error is the one to be told.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    Ok(path)
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(elf())?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use object::elf::{PT_INTERP, PT_LOAD, PT_NOTE};
    use object::read::elf::{FileHeader as _, ProgramHeader as _};

    /// `XEN_ELFNOTE_PHYS32_ENTRY`.
    const ENTRY: object::elf::NoteType = object::elf::NoteType(18);

    #[test]
    fn the_guest_is_static_and_tells_its_entry() {
        let elf = super::elf();
        let header = object::elf::FileHeader64::<object::LittleEndian>::parse(elf).unwrap();
        let endian = object::LittleEndian;
        let segments = header.program_headers(endian, elf).unwrap();
        assert!(segments.iter().all(|segment| segment.p_type(endian) != PT_INTERP));
        let note = segments.iter().find(|segment| segment.p_type(endian) == PT_NOTE).unwrap();
        let note = note.notes(endian, elf).unwrap().unwrap().next().unwrap().unwrap();
        assert_eq!((note.name(), note.n_type(endian)), (&b"Xen"[..], ENTRY));
        let entry = u64::from_le_bytes(note.desc().try_into().unwrap());
        let code = segments.iter().find(|segment| segment.p_type(endian) == PT_LOAD).unwrap();
        let range = code.p_vaddr(endian)..code.p_vaddr(endian) + code.p_filesz(endian);
        assert!(range.contains(&entry), "{entry:#x} in {range:x?}");
        assert!(elf.len() < 256 << 10, "{} bytes", elf.len());
    }

    #[test]
    fn the_guest_uses_no_vector_registers() {
        // `xorps xmm0, xmm0` and `movups xmm0, [rsp]`: what a compiler with SSE cannot do without.
        for code in [&[0x0f, 0x57, 0xc0][..], &[0x0f, 0x11, 0x04, 0x24]] {
            assert_eq!(memchr::memmem::find(super::elf(), code), None, "{code:x?}");
        }
    }
}

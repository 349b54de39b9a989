//! From what distributions ship to what a VMM can enter directly: the ELF kernel inside a bzImage.
//!
//! # Source
//! Linux `Documentation/arch/x86/boot.rst` (setup header), `arch/x86/boot/header.S`;
//! `include/xen/interface/elfnote.h` (the PVH entry).

use std::borrow::Cow;

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use super::decompress::{DecompressError, MOST, decompress};

/// Why no kernel could be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither ELF nor a bzImage.
    #[error("not a kernel: neither an ELF file (vmlinux) nor a bzImage (vmlinuz)")]
    Format,
    /// A bzImage from before the header told where its payload is.
    #[error("boot protocol {}.{:02} is too old; 2.08 or newer is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// The header points outside the file.
    #[error("payload at {offset}, {length} bytes long, lies outside the file of {file} bytes")]
    Payload {
        /// Where the payload would be.
        offset: usize,
        /// Its length.
        length: usize,
        /// Length of the file.
        file: usize,
    },
    /// The payload could not be unpacked.
    #[error("cannot unpack the kernel inside the bzImage")]
    Unpack(#[from] DecompressError),
    /// What came out has not the length that the bzImage states.
    #[error("unpacked kernel has {got} bytes, but its bzImage states {stated}")]
    Length {
        /// Length of what came out.
        got: usize,
        /// Length that was stated.
        stated: usize,
    },
    /// Not an x86-64 kernel.
    #[error("the kernel is no ELF file for x86-64: {0}")]
    Elf(String),
    /// It cannot be entered by a VMM.
    #[error("the kernel has no PVH entry; build it with CONFIG_PVH=y")]
    NoPvhEntry,
}

/// Gives the ELF kernel of a `vmlinuz` (bzImage) or a `vmlinux`, checked to be enterable through
/// PVH. Any bytes are survived; at most 512 MiB come out.
///
/// # Errors
/// [`ImageError`]: what is wrong with the file.
pub fn extract_vmlinux(file: &[u8]) -> Result<Cow<'_, [u8]>, ImageError> {
    let vmlinux =
        if file.starts_with(b"\x7fELF") { Cow::Borrowed(file) } else { Cow::Owned(unpack(file)?) };
    check(&vmlinux)?;
    Ok(vmlinux)
}

/// The release in a kernel's banner, as `uname -r` would print it.
pub(super) fn release(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let finder = memchr::memmem::Finder::new(BANNER);
    finder.find_iter(vmlinux).find_map(|at| {
        let rest = &vmlinux[at + BANNER.len()..];
        let end = rest.iter().take(128).position(|byte| *byte == b' ')?;
        let release = std::str::from_utf8(&rest[..end]).ok()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~".contains(c);
        let fits = release.starts_with(|c: char| c.is_ascii_digit()) && release.chars().all(plain);
        fits.then(|| release.to_owned())
    })
}

fn unpack(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let word = |at: usize| file.get(at..at + 4)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
    let magic = |at: usize, expected: &[u8]| file.get(at..at + expected.len()) == Some(expected);
    if !magic(0x1fe, &[0x55, 0xaa]) || !magic(0x202, b"HdrS") {
        return Err(ImageError::Format);
    }
    let protocol = file.get(0x206..0x208).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    if protocol < 0x0208 {
        return Err(ImageError::Protocol(protocol));
    }
    let setup_sectors = match file.get(0x1f1) {
        Some(0) | None => 4,
        Some(n) => usize::from(*n),
    };
    let as_size = |word: Option<u32>| word.and_then(|w| usize::try_from(w).ok());
    let (Some(offset), Some(length)) = (as_size(word(0x248)), as_size(word(0x24c))) else {
        return Err(ImageError::Format);
    };
    let offset = offset.saturating_add((setup_sectors + 1) * 512);
    let outside = || ImageError::Payload { offset, length, file: file.len() };
    let payload = file.get(offset..offset.saturating_add(length)).ok_or_else(outside)?;
    // The kernel's build puts the unpacked length behind the compressed data; gzip has its own
    // there already.
    let (packed, stated) = payload.split_last_chunk::<4>().ok_or_else(outside)?;
    let stated = usize::try_from(u32::from_le_bytes(*stated)).unwrap_or(usize::MAX);
    if stated > MOST {
        return Err(DecompressError::TooLarge { format: "bzImage", limit: MOST }.into());
    }
    let gzip = packed.starts_with(&[0x1f, 0x8b]);
    let vmlinux = decompress(if gzip { payload } else { packed })?;
    if vmlinux.len() != stated {
        return Err(ImageError::Length { got: vmlinux.len(), stated });
    }
    Ok(vmlinux)
}

/// Checks that it is for this architecture and has the note that names its PVH entry.
fn check(vmlinux: &[u8]) -> Result<(), ImageError> {
    let elf = |error: object::Error| ImageError::Elf(error.to_string());
    let header = FileHeader64::<LittleEndian>::parse(vmlinux).map_err(elf)?;
    let endian = header.endian().map_err(elf)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(ImageError::Elf(format!("machine {}", header.e_machine(endian))));
    }
    for segment in header.program_headers(endian, vmlinux).map_err(elf)? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, vmlinux).map_err(elf)? else { continue };
        while let Some(note) = notes.next().map_err(elf)? {
            const PHYS32_ENTRY: NoteType = NoteType(18);
            if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                return Ok(());
            }
        }
    }
    Err(ImageError::NoPvhEntry)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::decompress::tests::lz4_pack;

    /// The smallest thing that passes for a kernel: an ELF header, one note, a banner.
    pub(crate) fn tiny_vmlinux(release: &str) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // EXEC, x86-64, version
        elf.extend(0x100_0000_u64.to_le_bytes()); // entry
        elf.extend(64_u64.to_le_bytes()); // program headers
        elf.extend(0_u64.to_le_bytes()); // section headers
        elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        let note = [&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &[0, 0, 0, 1]].concat();
        let (at, length) = (120_u64, note.len() as u64);
        elf.extend([4, 0, 0, 0, 4, 0, 0, 0]); // PT_NOTE, readable
        for word in [at, 0, 0, length, length, 4] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(note);
        elf.extend(format!("Linux version {release} (test)\0").bytes());
        elf
    }

    pub(crate) fn bzimage_of(vmlinux: &[u8]) -> Vec<u8> {
        let mut payload = lz4_pack(vmlinux);
        payload.extend(u32::try_from(vmlinux.len()).unwrap().to_le_bytes());
        let mut file = vec![0; 2 * 512 + 64];
        file[0x1f1] = 1;
        file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        file.extend(payload);
        file
    }

    #[test]
    fn the_kernel_comes_out_of_its_wrapping() {
        let vmlinux = tiny_vmlinux("6.1.0-9-test");
        assert_eq!(extract_vmlinux(&vmlinux).unwrap(), vmlinux);
        assert_eq!(extract_vmlinux(&bzimage_of(&vmlinux)).unwrap(), vmlinux);
        assert_eq!(release(&vmlinux).as_deref(), Some("6.1.0-9-test"));
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let vmlinux = tiny_vmlinux("1");
        let bzimage = bzimage_of(&vmlinux);
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut file = bzimage.clone();
            change(&mut file);
            extract_vmlinux(&file).map(Cow::into_owned).unwrap_err()
        };
        assert!(matches!(broken(&|f| f.truncate(100)), ImageError::Format));
        assert!(matches!(broken(&|f| f[0x202] = b'X'), ImageError::Format));
        assert!(matches!(broken(&|f| f[0x207] = 1), ImageError::Protocol(0x010f)));
        assert!(matches!(broken(&|f| f[0x24a] = 0xff), ImageError::Payload { .. }));
        assert!(matches!(broken(&|f| f.truncate(1100)), ImageError::Payload { .. }));
        assert!(matches!(broken(&|f| f[1088] = 0), ImageError::Unpack(_)));
        assert!(matches!(broken(&|f| *f.last_mut().unwrap() = 1), ImageError::Length { .. }));
        let mut other = vmlinux.clone();
        other[18] = 183;
        assert!(matches!(extract_vmlinux(&other), Err(ImageError::Elf(_))));
        let mut other = vmlinux;
        other[128] = 17; // another note
        assert!(matches!(extract_vmlinux(&other), Err(ImageError::NoPvhEntry)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = extract_vmlinux(&bytes);
            let _ = release(&bytes);
        }

        #[test]
        fn a_changed_kernel_is_survived(changes: Vec<(proptest::sample::Index, u8)>, wrap: bool) {
            let vmlinux = tiny_vmlinux("6.1");
            let mut file = if wrap { bzimage_of(&vmlinux) } else { vmlinux };
            for (at, to) in changes {
                let at = at.index(file.len());
                file[at] = to;
            }
            let _ = extract_vmlinux(&file);
        }
    }
}

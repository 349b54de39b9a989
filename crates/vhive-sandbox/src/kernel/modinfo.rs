//! What a kernel module says of itself.
//!
//! # Source
//! Linux `include/linux/moduleparam.h`: section `.modinfo`, NUL-terminated `name=value` strings.

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};

/// The part of `.modinfo` that deciding a load order needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModInfo {
    /// Release of the kernel it was built for.
    pub(super) release: String,
    /// Names of the modules it cannot be loaded without.
    pub(super) depends: Vec<String>,
    /// Names of what it wants loaded before, if there.
    pub(super) wants: Vec<String>,
}

/// Reads it from a module's ELF file.
pub(super) fn parse(module: &[u8]) -> Result<ModInfo, object::Error> {
    let header = FileHeader64::<LittleEndian>::parse(module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    let Some((_, section)) = sections.section_by_name(endian, b".modinfo") else {
        return Ok(ModInfo::default());
    };
    let mut info = ModInfo::default();
    for entry in section.data(endian, module)?.split(|byte| *byte == 0) {
        let Some((name, value)) = std::str::from_utf8(entry).ok().and_then(|e| e.split_once('='))
        else {
            continue;
        };
        match name {
            "depends" => info.depends.extend(names(value.split(','))),
            "softdep" => {
                if let Some(before) = value.trim_start().strip_prefix("pre:") {
                    let before = before.split("post:").next().unwrap_or_default();
                    info.wants.extend(names(before.split_ascii_whitespace()));
                }
            }
            "vermagic" => {
                info.release = value.split(' ').next().unwrap_or_default().to_owned();
            }
            _ => {}
        }
    }
    Ok(info)
}

/// A module without the signature that its build appended. Checking one costs an emulated guest
/// tens of milliseconds, and init is given nothing but what the store vouches for.
///
/// # Source
/// Linux `include/linux/module_signature.h`: signature, 12 bytes whose last four are the
/// signature's length in big endian, marker.
pub(super) fn without_signature(module: &[u8]) -> &[u8] {
    const MARKER: &[u8] = b"~Module signature appended~\n";
    let signed = module.strip_suffix(MARKER).and_then(|rest| rest.split_last_chunk::<12>());
    let Some((rest, [.., a, b, c, d])) = signed else {
        return module;
    };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    rest.len().checked_sub(length).map_or(module, |end| &rest[..end])
}

fn names<'a>(of: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    of.map(canonical).filter(|name| !name.is_empty())
}

/// A module's name with the kernel's spelling: dashes and underscores are the same.
pub(super) fn canonical(name: &str) -> String {
    name.trim().replace('-', "_")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The smallest ELF object with a `.modinfo` section.
    pub(crate) fn tiny_module(info: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let info = info.as_bytes();
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([1, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend([0; 16]);
        let (at_info, at_names) = (64, 64 + info.len() as u64);
        let sections = (at_names + names.len() as u64).next_multiple_of(8);
        elf.extend(sections.to_le_bytes());
        elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        elf.extend(info);
        elf.extend(names);
        elf.resize(usize::try_from(sections).unwrap(), 0);
        elf.extend([0; 64]);
        let mut section = |name: u32, kind: u32, at: u64, length: u64| {
            elf.extend([name, kind].map(u32::to_le_bytes).concat());
            elf.extend([0, 0, at, length].map(u64::to_le_bytes).concat());
            elf.extend([0; 8]);
            elf.extend([1, 0_u64].map(u64::to_le_bytes).concat());
        };
        section(1, 1, at_info, info.len() as u64);
        section(10, 3, at_names, names.len() as u64);
        elf
    }

    #[test]
    fn dependencies_and_release_are_found() {
        let module = tiny_module(
            "license=GPL\0depends=virtio,virtio-ring\0softdep=pre: crc32c  a-b post: late\0\
             vermagic=6.1.0-9-test SMP mod_unload\0",
        );
        let info = parse(&module).unwrap();
        assert_eq!(info.release, "6.1.0-9-test");
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
        assert_eq!(info.wants, ["crc32c", "a_b"]);
        assert_eq!(parse(&tiny_module("depends=\0")).unwrap(), ModInfo::default());
    }

    #[test]
    fn signatures_are_cut_off_and_odd_ones_left() {
        let signed = |length: u32| {
            let info = [&[0; 8][..], &length.to_be_bytes()].concat();
            [b"module+sig", &info[..], b"~Module signature appended~\n"].concat()
        };
        assert_eq!(without_signature(&signed(4)), b"module");
        assert_eq!(without_signature(&signed(11)), signed(11));
        assert_eq!(without_signature(b"module"), b"module");
        assert_eq!(without_signature(b"~Module signature appended~\n").len(), 28);
    }

    proptest::proptest! {
        #[test]
        fn any_module_is_survived(changes: Vec<(proptest::sample::Index, u8)>, bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = without_signature(&bytes);
            let mut module = tiny_module("depends=a,b\0vermagic=1 x\0");
            for (at, to) in changes {
                let at = at.index(module.len());
                module[at] = to;
            }
            let _ = parse(&module);
        }
    }
}

//! The guest's first file system: init, the modules it loads, and empty places to mount on.
//!
//! # Source
//! Linux `Documentation/driver-api/early-userspace/buffer-format.rst` (the "newc" cpio format).

use super::modules::Module;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;
const NULL: u32 = 0o020_666;

/// Writes the archive. Same input, same bytes: no times, no owners, inode numbers by position.
pub(super) fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "modules", "image", "changes", "root"] {
        archive.add(dir, DIRECTORY, &[]);
    }
    // The kernel opens it as init's standard streams before anything is mounted.
    archive.add_device("dev/console", CONSOLE, (5, 1));
    // Without a console, init's runtime library opens this one, and gives up if it cannot.
    archive.add_device("dev/null", NULL, (1, 3));
    archive.add("init", PROGRAM, init);
    let mut list = String::new();
    for Module { name, stage, image } in modules {
        archive.add(&format!("modules/{name}.ko"), FILE, image);
        list.push_str(&format!("{} {name}.ko\n", stage.word()));
    }
    archive.add("modules/list", FILE, list.as_bytes());
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, mode, (0, 0), content);
    }

    fn add_device(&mut self, path: &str, mode: u32, number: (u32, u32)) {
        self.entry(path, mode, number, &[]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("modules and init are bounded far below");
        let path_size = u32::try_from(path.len() + 1).expect("names of a few dozen bytes");
        let (inode, links, (major, minor)) = (self.entries, 1, device);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, path_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::modules::Stage;

    fn sample() -> Vec<u8> {
        let module = |name: &str, stage| {
            let image = name.repeat(3).into_bytes();
            Module { name: name.to_owned(), stage, image }
        };
        build(b"init!", &[module("virtio", Stage::Channel), module("erofs", Stage::Root)])
    }

    /// Paths and contents, read back by the format's own rules.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut all) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, path) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[at + 110..at + 109 + path].to_vec()).unwrap();
            let content = (at + 110 + path).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return all;
            }
            all.push((name, mode, archive[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn everything_is_in_the_archive() {
        let entries = entries(&sample());
        let get = |path: &str| entries.iter().find(|(name, ..)| name == path).unwrap();
        assert_eq!(get("init").2, b"init!");
        assert_eq!(get("init").1, PROGRAM);
        assert_eq!(get("modules/erofs.ko").2, b"erofserofserofs");
        assert_eq!(get("modules/list").2, b"channel virtio.ko\nroot erofs.ko\n");
        assert_eq!(get("proc").1, DIRECTORY);
    }

    #[test]
    fn same_input_same_bytes() {
        assert_eq!(sample(), sample());
    }
}

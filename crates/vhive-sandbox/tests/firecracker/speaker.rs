//! A guest without an operating system that keeps the guest contract over the serial port, as our
//! init does in a Linux guest: it boots also where a KVM runs no Linux.

use std::fs;
use std::path::Path;

use vhive_api::Digest;
use vhive_api::guest::{FromGuest, write_frame};
use vhive_sandbox::kernel::{KernelStore, init_binary};

/// Where the program and its messages lie in guest memory.
const ADDRESS: u64 = 2 << 20;

/// A store whose kernel says these messages, each group after one message of the host's.
pub(crate) fn store(dir: &Path, groups: &[Vec<FromGuest>]) -> KernelStore {
    let (vmlinux, initramfs) = (program(groups), b"none".to_vec());
    let (release, kernel) = ("speaker", Digest::of(&vmlinux));
    let disk = Digest::of(&initramfs);
    let text = format!("vhive guest kernel\n{release}\n{kernel}\n{disk}\n");
    let digest = Digest::of(text.as_bytes());
    let entry = dir.join(digest.hex());
    fs::create_dir_all(entry.join("modules")).expect("made");
    fs::write(entry.join("vmlinux"), vmlinux).expect("written");
    fs::write(entry.join("initramfs.cpio"), initramfs).expect("written");
    let manifest = serde_json::json!({
        "format": 1, "release": release, "source": "a test", "vmlinux": kernel,
        "initramfs": disk, "init": Digest::of(init_binary()), "modules": [],
    });
    fs::write(entry.join("kernel.json"), manifest.to_string()).expect("written");
    fs::write(dir.join("current"), format!("{digest}\n")).expect("written");
    KernelStore::open(dir).expect("a store")
}

/// An ELF file that is entered in 64-bit mode.
fn program(groups: &[Vec<FromGuest>]) -> Vec<u8> {
    let said: Vec<Vec<u8>> = groups
        .iter()
        .map(|group| {
            let mut bytes = Vec::new();
            group.iter().for_each(|message| write_frame(&mut bytes, message).expect("a frame"));
            bytes
        })
        .collect();
    let listen = listen();
    // Each group's code has the same length; the messages follow all code.
    let per_group = say(0, 0).len() + listen.len();
    let mut at = ADDRESS + (per_group * said.len()) as u64 + STOP.len() as u64;
    let mut content = Vec::new();
    for bytes in &said {
        content.extend(say(at, bytes.len() as u64));
        content.extend(&listen);
        at += bytes.len() as u64;
    }
    content.extend(STOP);
    said.iter().for_each(|bytes| content.extend(bytes));
    elf(&content)
}

/// `cli; hlt; jmp` back.
const STOP: &[u8] = b"\xfa\xf4\xeb\xfd";

/// Writes bytes to the port.
fn say(address: u64, length: u64) -> Vec<u8> {
    let mut code = b"\x48\xbe".to_vec(); // mov rsi, address
    code.extend(address.to_le_bytes());
    code.extend(b"\x48\xb9"); // mov rcx, length
    code.extend(length.to_le_bytes());
    code.extend(b"\x66\xba\xf8\x03"); // mov dx, 0x3f8
    code.extend(b"\xac\xee\x48\xff\xc9\x75\xf9"); // lodsb; out dx, al; dec rcx; jnz lodsb
    code
}

/// Reads one whole frame from the port.
fn listen() -> Vec<u8> {
    // mov dx, 0x3fd; in al, dx; test al, 1; jz back; mov dx, 0x3f8; in al, dx
    const BYTE: &[u8] = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec";
    // shr edi, 8; movzx eax, al; shl eax, 24; or edi, eax
    const HEADER: &[u8] = b"\xc1\xef\x08\x0f\xb6\xc0\xc1\xe0\x18\x09\xc7";
    // dec ecx; jnz back over so many bytes
    let again = |over: usize| {
        let back = u8::try_from(256 - (over + 4)).expect("a short loop");
        [0xff, 0xc9, 0x75, back]
    };
    let mut code = b"\x31\xff\xb9\x04\0\0\0".to_vec(); // xor edi, edi; mov ecx, 4
    code.extend(BYTE);
    code.extend(HEADER);
    code.extend(again(BYTE.len() + HEADER.len()));
    code.extend(b"\x89\xf9"); // mov ecx, edi
    code.extend(BYTE);
    code.extend(again(BYTE.len()));
    code
}

/// One segment, entered at its first byte.
pub(crate) fn elf(content: &[u8]) -> Vec<u8> {
    let (head, segment) = (64_u16, 56_u16);
    let begin = u64::from(head + segment);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([ADDRESS, u64::from(head), 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([head, segment, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1_u32, 5].iter().flat_map(|half| half.to_le_bytes()));
    let length = content.len() as u64;
    let words = [begin, ADDRESS, ADDRESS, length, length, 4096];
    elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(content);
    elf
}

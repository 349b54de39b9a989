//! The four functions that the compiler takes for granted. String instructions: short, and no loop
//! in which it could see the very function again.

use core::arch::asm;

/// # Safety
/// That of C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise: both are valid for so many bytes, and do not overlap.
    unsafe {
        asm!(
            "rep movsq", "mov ecx, {rest:e}", "rep movsb",
            rest = in(reg) length % 8,
            inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length / 8 => _,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// # Safety
/// That of C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= length {
        // SAFETY: going upwards, nothing is overwritten before it has been read.
        return unsafe { memcpy(to, from, length) };
    }
    let last = length.wrapping_sub(1);
    // SAFETY: the caller's promise; going downwards from the last byte, likewise.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(last) => _, inout("rsi") from.wrapping_add(last) => _,
            inout("rcx") length => _,
            options(nostack)
        );
    }
    to
}

/// # Safety
/// That of C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    let word = u64::from(byte.to_le_bytes()[0]) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's promise: it is valid for so many bytes.
    unsafe {
        asm!(
            "rep stosq", "mov ecx, {rest:e}", "rep stosb",
            rest = in(reg) length % 8,
            in("rax") word, inout("rdi") to => _, inout("rcx") length / 8 => _,
            options(nostack, preserves_flags)
        );
    }
    to
}

/// # Safety
/// That of C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
    let (after_one, after_other): (*const u8, *const u8);
    let equal: u8;
    // SAFETY: the caller's promise: both are valid for so many bytes.
    unsafe {
        asm!(
            // Equal, if there is nothing to compare.
            "cmp eax, eax", "repe cmpsb", "sete al",
            out("al") equal,
            inout("rsi") one => after_one, inout("rdi") other => after_other,
            inout("rcx") length => _,
            options(nostack, readonly)
        );
    }
    if equal != 0 {
        return 0;
    }
    // SAFETY: it stopped one after the bytes that differ.
    let one = unsafe { after_one.wrapping_sub(1).read() };
    // SAFETY: likewise.
    let other = unsafe { after_other.wrapping_sub(1).read() };
    i32::from(one) - i32::from(other)
}

/// # Safety
/// That of C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(one, other, length) }
}

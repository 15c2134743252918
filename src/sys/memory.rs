//! `memcpy` and `memmove` for the static program on x86-64.
//!
//! musl copies with `rep movsq`, which takes about 30 cycles to start. Rust moves values of 20 to 300 bytes all the
//! time: parsing YAML spent a quarter of its time in these starts.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};

/// From this number of bytes on, the string instruction is at least as fast as vector instructions.
#[cfg(target_arch = "x86_64")]
const MIN_STRING_COPY: usize = 1024;

/// Replaces the function of musl, which is not linked then.
///
/// # Safety
///
/// As in C: `from` is readable and `to` is writable for `length` bytes.
#[cfg(all(target_arch = "x86_64", target_env = "musl", not(test)))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller fulfils the same contract.
    unsafe { copy(to, from, length) };
    to
}

/// Replaces the function of musl, which refers to its `memcpy`.
///
/// # Safety
///
/// As in C: `from` is readable and `to` is writable for `length` bytes; they may overlap.
#[cfg(all(target_arch = "x86_64", target_env = "musl", not(test)))]
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller fulfils the same contract.
    unsafe { copy(to, from, length) };
    to
}

/// Copies bytes between ranges that may overlap. It calls nothing that the compiler turns into `memcpy`.
///
/// # Safety
///
/// `from` is readable and `to` is writable for `length` bytes.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(any(test, target_env = "musl")), allow(dead_code, reason = "other C libraries have a fast one"))]
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: all accesses are below `length`. Each branch reads a byte before one of its writes can overwrite it.
    unsafe {
        match length {
            0 => {}
            1 => *to = *from,
            2..4 => copy_ends::<u16>(to, from, length),
            4..8 => copy_ends::<u32>(to, from, length),
            8..16 => copy_ends::<u64>(to, from, length),
            16..33 => copy_ends::<__m128i>(to, from, length),
            _ if to.addr().wrapping_sub(from.addr()) < length => copy_backward(to, from, length),
            MIN_STRING_COPY.. => copy_string(to, from, length),
            _ => copy_forward(to, from, length),
        }
    }
}

/// Copies the first and the last `T` of the range. The two may overlap, and together they cover the range.
///
/// # Safety
///
/// As [`copy`], and `length` is one to two times the size of `T`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_ends<T: Copy>(to: *mut u8, from: *const u8, length: usize) {
    let last = length - size_of::<T>();
    // SAFETY: both accesses are within `length`.
    unsafe {
        let (head, tail) = (from.cast::<T>().read_unaligned(), from.add(last).cast::<T>().read_unaligned());
        to.cast::<T>().write_unaligned(head);
        to.add(last).cast::<T>().write_unaligned(tail);
    }
}

/// Copies from the first byte to the last.
///
/// # Safety
///
/// As [`copy`]; `to` is not within the bytes that follow `from`, and `length` is above 32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_forward(to: *mut u8, from: *const u8, length: usize) {
    let last = length - 16;
    // SAFETY: all accesses are within `length`. The tail is read before a write can reach it.
    unsafe {
        let tail = _mm_loadu_si128(from.add(last).cast());
        let mut at = 0;
        while at < last {
            let block = _mm_loadu_si128(from.add(at).cast());
            _mm_storeu_si128(to.add(at).cast(), block);
            at += 16;
        }
        _mm_storeu_si128(to.add(last).cast(), tail);
    }
}

/// Copies from the last byte to the first.
///
/// # Safety
///
/// As [`copy`]; `length` is above 32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_backward(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: all accesses are within `length`. The head is read before a write can reach it.
    unsafe {
        let head = _mm_loadu_si128(from.cast());
        let mut at = length;
        while at > 16 {
            at -= 16;
            let block = _mm_loadu_si128(from.add(at).cast());
            _mm_storeu_si128(to.add(at).cast(), block);
        }
        _mm_storeu_si128(to.cast(), head);
    }
}

/// Copies with the string instruction.
///
/// # Safety
///
/// As [`copy_forward`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_string(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: the instruction reads and writes `length` bytes in ascending order: by the ABI, the direction flag is
    // clear.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") length => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::copy;

    #[test]
    fn copies_all_lengths_at_all_distances() {
        let original: Vec<u8> = (0..8192_u32).map(|number| (number * 7 + number / 256) as u8).collect();
        let lengths = (0..200).chain([255, 256, 500, 1023, 1024, 1025, 1500, 4000]);
        for length in lengths {
            for distance in [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 1000, 4096] {
                for (from, to) in [(10, 10 + distance), (10 + distance, 10)] {
                    let mut bytes = original.clone();
                    let mut expected = original.clone();
                    expected.copy_within(from..from + length, to);
                    let start = bytes.as_mut_ptr();
                    // SAFETY: both ranges are within the 8,192 bytes.
                    unsafe { copy(start.add(to), start.add(from), length) };
                    assert!(bytes == expected, "{length} bytes from {from} to {to}");
                }
            }
        }
    }
}

//! Copies of whole lines between shared and private memory: the one place where that is not done word by word (D3).
//!
//! Vectors of 32 bytes need a quarter of the loads and stores, which shows where many lines cross: a bare ring in C carried
//! 1,024 bytes in 3.3 to 3.7x of a bare line's round trip with them, 4.7x with vectors of 16 bytes, and 5.7x with words. Up
//! to two lines words are as fast or faster (1.0x against 1.2x for 64 bytes), because they may be loaded right after they
//! were stored, where a vector waits until the words that it covers have left the store buffer.

use crate::layout::SLOT_BYTES;
use crate::scratch::LineWords;

/// As many lines as words carry as fast.
const FEW: usize = 2;

/// Whether [`copy_lines`] is to be used for so many lines, and can be on this machine.
#[inline(always)]
pub(crate) fn worthwhile(lines: usize) -> bool {
    lines > FEW && vectors::available()
}

/// Copies `lines` lines of 64 bytes.
///
/// # Safety
///
/// 1. `lines * 64` bytes are readable at `from` and writable at `to`, for the whole call, and do not overlap;
/// 2. each of the two is either private memory that the caller may so use, or shared memory that this process accesses in no
///    way but through atomics and this function;
/// 3. [`worthwhile`] has said yes.
#[inline(always)]
pub(crate) unsafe fn copy_lines(from: *const u8, to: *mut u8, lines: usize) {
    // SAFETY:
    // bounds, aliasing, lifetime: the caller's promises 1 and 2. alignment: none is needed.
    // initialised: the bytes are moved, not looked at. 3. AVX is there, because `worthwhile` asked.
    unsafe { vectors::copy_lines(from, to, lines) }
}

/// Copies `bytes` bytes, anywhere.
///
/// # Safety
///
/// As of [`copy_lines`], for so many bytes; 3. does not apply.
pub(crate) unsafe fn copy_bytes(from: *const u8, to: *mut u8, bytes: usize) {
    let lines = bytes / SLOT_BYTES;
    if worthwhile(lines) {
        // SAFETY: bounds: `lines` whole lines are at most `bytes`. aliasing, lifetime: the caller's promises. 3. asked above.
        unsafe { copy_lines(from, to, lines) };
        if lines * SLOT_BYTES < bytes {
            // The last 64 bytes, some of them again: `rep movsb` takes 20 to 40 ns for a few bytes.
            let last = bytes - SLOT_BYTES;
            let (from, to) = (from.wrapping_add(last), to.wrapping_add(last));
            // SAFETY: bounds: bytes - 64 + 64 = bytes, and there are more than two lines. The rest as above.
            unsafe { copy_lines(from, to, 1) };
        }
        return;
    }
    // SAFETY: bounds, aliasing, lifetime: the caller's promises. alignment: a byte needs none. initialised: the bytes are moved,
    // not looked at.
    unsafe { plain::copy(from, to, bytes) }
}

/// Calls `each` with each of so many pieces of 64 bytes, in their order, anywhere.
///
/// Loaded in vectors, so that a sum of lines takes vectors, too: of 4 MiB that lie in another core's cache it takes as long as that of a
/// slice, and 0.6x of that of single words, or of pieces of 4 KiB that are copied first.
///
/// # Safety
///
/// 1. `lines * 64` bytes are readable at `from`, for the whole call;
/// 2. they are private memory that nobody writes meanwhile, or shared memory that this process accesses in no way but through atomics
///    and this module.
#[inline(always)]
pub(crate) unsafe fn for_each_line(from: *const u8, lines: usize, mut each: impl FnMut(LineWords)) {
    for line in 0..lines {
        // SAFETY: bounds, aliasing, lifetime: line < lines, and the caller's promises.
        each(unsafe { plain::load_line(from.wrapping_add(line * SLOT_BYTES)) });
    }
}

#[cfg(all(target_arch = "x86_64", not(loom)))]
mod plain {
    use crate::scratch::LineWords;
    use core::arch::asm;
    use core::arch::x86_64::__m128i;

    /// # Safety
    ///
    /// As of [`super::for_each_line`], for one.
    #[inline(always)]
    pub(super) unsafe fn load_line(from: *const u8) -> LineWords {
        let [a, b, c, d]: [__m128i; 4];
        // Assembly for the reason given below.
        // SAFETY: bounds: 64 bytes, by the caller's promise. alignment: unaligned moves. aliasing: what another process changes
        // meanwhile is torn at most.
        unsafe {
            asm!(
                "movdqu {a}, xmmword ptr [{from}]",
                "movdqu {b}, xmmword ptr [{from} + 16]",
                "movdqu {c}, xmmword ptr [{from} + 32]",
                "movdqu {d}, xmmword ptr [{from} + 48]",
                from = in(reg) from,
                a = out(xmm_reg) a,
                b = out(xmm_reg) b,
                c = out(xmm_reg) c,
                d = out(xmm_reg) d,
                options(nostack, preserves_flags, readonly),
            );
        }
        // SAFETY: initialised: 64 bytes of any value are eight words.
        unsafe { core::mem::transmute([a, b, c, d]) }
    }

    /// # Safety
    ///
    /// As of [`super::copy_bytes`].
    #[inline(always)]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
        // Assembly for the reason given below.
        // SAFETY: bounds, aliasing: the caller's promises. alignment: none is needed. The direction flag is clear, as the ABI says.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") bytes => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(loom))))]
mod plain {
    use crate::scratch::LineWords;
    use crate::sync::{AtomicU8, Ordering};

    /// # Safety
    ///
    /// As of [`super::for_each_line`], for one.
    pub(super) unsafe fn load_line(from: *const u8) -> LineWords {
        let mut line = LineWords::default();
        // SAFETY: bounds: 64 bytes each. aliasing, lifetime: the caller's promises, and `line` is this function's own.
        unsafe { copy(from, line.as_mut_ptr().cast(), size_of::<LineWords>()) };
        line
    }

    /// # Safety
    ///
    /// As of [`super::copy_bytes`].
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
        for at in 0..bytes {
            // SAFETY: bounds, lifetime: the caller's promises. alignment: a byte needs none. aliasing: an atomic, so that whoever
            // writes it at the same time is no data race.
            let byte = unsafe { AtomicU8::from_ptr(from.add(at).cast_mut()) };
            // Relaxed: the header that leads here was read with Acquire; it pairs with the header's Release.
            let value = byte.load(Ordering::Relaxed);
            // SAFETY: bounds, aliasing, lifetime: the caller's promises: private memory.
            unsafe { to.add(at).write(value) };
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(loom)))]
mod vectors {
    use crate::layout::SLOT_BYTES;
    use core::arch::asm;

    cpufeatures::new!(avx, "avx");

    #[inline(always)]
    pub(super) fn available() -> bool {
        avx::get()
    }

    /// # Safety
    ///
    /// As of [`super::copy_lines`]. Never inlined: `vzeroupper` changes registers that only a call may change.
    #[target_feature(enable = "avx")]
    #[inline(never)]
    pub(super) unsafe fn copy_lines(from: *const u8, to: *mut u8, lines: usize) {
        const { assert!(SLOT_BYTES == 64) };
        // Assembly, because no other load or store of 32 bytes is defined on memory that another process may be writing.
        // Without `nomem` it is a barrier for the compiler: it stays behind the load of the header, and before its store.
        // SAFETY:
        // bounds: `lines * 64` bytes at each pointer, by the caller's promise; nothing is touched for 0.
        // alignment: unaligned moves. aliasing: the caller's promise 2; what another process changes meanwhile is torn at
        // most, never undefined, for it is the processor that reads it. The registers used are declared.
        unsafe {
            asm!(
                "test {lines}, {lines}",
                "jz 3f",
                "2:",
                "vmovdqu {low}, ymmword ptr [{from}]",
                "vmovdqu {high}, ymmword ptr [{from} + 32]",
                "vmovdqu ymmword ptr [{to}], {low}",
                "vmovdqu ymmword ptr [{to} + 32], {high}",
                "add {from}, 64",
                "add {to}, 64",
                "dec {lines}",
                "jnz 2b",
                "vzeroupper",
                "3:",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                lines = inout(reg) lines => _,
                low = out(ymm_reg) _,
                high = out(ymm_reg) _,
                options(nostack),
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(loom))))]
mod vectors {
    pub(super) fn available() -> bool {
        false
    }

    /// # Safety
    ///
    /// Never called, because nothing is [`available`].
    pub(super) unsafe fn copy_lines(_from: *const u8, _to: *mut u8, _lines: usize) {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::SLOT_BYTES;
    use alloc::vec::Vec;

    #[test]
    fn lines_are_copied_whole_and_nothing_beside_them() {
        for lines in 0..20 {
            if !worthwhile(lines) {
                continue;
            }
            for shift in [0, 1, 8, 31] {
                let from: Vec<u8> = (0..SLOT_BYTES * 20).map(|n| n as u8 | 1).collect();
                let mut to = [0u8; SLOT_BYTES * 22];
                // SAFETY: bounds: 20 lines less the shift are more than `lines`; aliasing: both are this function's own.
                unsafe { copy_lines(from.as_ptr(), to[shift..].as_mut_ptr(), lines) };
                let end = shift + lines * SLOT_BYTES;
                assert_eq!(to[shift..end], from[..lines * SLOT_BYTES]);
                assert!(to[..shift].iter().chain(&to[end..]).all(|&byte| byte == 0));
            }
        }
    }
}

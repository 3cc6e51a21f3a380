//! The private buffer into which an inline message is copied before anybody sees it as bytes (D4).
//!
//! It is laid out as the slots are, the place of the header word left empty, so that lines go over whole and aligned.

use crate::layout::{MAX_MESSAGE, MAX_SLOTS, PAYLOAD_BYTES};
use crate::lines::LINE_WORDS;
use core::cell::UnsafeCell;

/// Words of payload in the first slot of a message.
const FIRST_WORDS: usize = PAYLOAD_BYTES / 8;
/// Bytes in front of the payload.
const HEADER_BYTES: usize = 8;

/// The payload of a message's first slot.
pub(crate) type Chunk = [u64; FIRST_WORDS];
/// The payload of any other.
pub(crate) type LineWords = [u64; LINE_WORDS];

#[repr(C, align(64))]
struct Buffer([LineWords; MAX_SLOTS]);

const _: () = assert!(size_of::<Buffer>() == HEADER_BYTES + MAX_MESSAGE);

/// Room for the largest inline message.
pub(crate) struct Scratch(UnsafeCell<Buffer>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch(UnsafeCell::new(Buffer([[0; LINE_WORDS]; MAX_SLOTS])))
    }

    /// Overwrites the first chunk of the buffer.
    ///
    /// # Safety
    ///
    /// No slice returned by [`bytes`](Self::bytes) may be alive.
    #[inline(always)]
    pub(crate) unsafe fn fill_first(&self, chunk: Chunk) {
        // SAFETY: as of the caller's promise; the slice of the other lines is not used.
        let (first, _) = unsafe { self.parts() };
        first.copy_from_slice(&chunk);
    }

    /// The chunk that goes with a message's first slot, and the lines that go with the others, to be overwritten.
    ///
    /// # Safety
    ///
    /// No slice returned by [`bytes`](Self::bytes) may be alive, and none may be asked for while these are.
    #[inline(always)]
    pub(crate) unsafe fn parts(&self) -> (&mut [u64], &mut [LineWords]) {
        // SAFETY:
        // aliasing: the caller promises that no shared slice is alive, and the type is !Sync.
        // lifetime: the exclusive reference ends before the next slice is asked for, by the same promise.
        let Buffer(lines) = unsafe { &mut *self.0.get() };
        let (first, rest) = lines.split_at_mut(1);
        (&mut first[0][1..], rest)
    }

    /// The first `len` bytes, at most the whole buffer.
    #[inline(always)]
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        let len = len.min(MAX_MESSAGE);
        let buffer = self.0.get().cast::<u8>();
        // SAFETY: bounds: HEADER_BYTES is less than the buffer's size.
        let payload = unsafe { buffer.add(HEADER_BYTES) };
        // SAFETY:
        // bounds: HEADER_BYTES + len <= size of the buffer, by the first line and the assertion above.
        // alignment: u8 needs none. initialised: the array was zeroed, and words are written whole.
        // aliasing: the only writers are `fill_first` and who has `parts`, whose contracts exclude a living slice.
        unsafe { core::slice::from_raw_parts(payload, len) }
    }
}

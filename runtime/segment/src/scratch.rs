//! The private buffer into which an inline message is copied before anybody sees it as bytes (D4).
//!
//! It is laid out as the slots are, the place of the header word left empty, so that lines go over whole and aligned.

use crate::layout::{DEEP_INLINE, DEEP_SLOTS, PAYLOAD_BYTES};
use crate::lines::LINE_WORDS;
use core::cell::{Cell, UnsafeCell};

/// Words of payload in the first slot of a message.
const FIRST_WORDS: usize = PAYLOAD_BYTES / 8;
/// Bytes in front of the payload.
const HEADER_BYTES: usize = 8;

/// The payload of a message's first slot.
pub(crate) type Chunk = [u64; FIRST_WORDS];
/// The payload of any other.
pub(crate) type LineWords = [u64; LINE_WORDS];

#[repr(C, align(64))]
struct Buffer([LineWords; DEEP_SLOTS]);

const _: () = assert!(size_of::<Buffer>() == HEADER_BYTES + DEEP_INLINE);

/// Room for the largest inline message.
pub(crate) struct Scratch {
    buffer: UnsafeCell<Buffer>,
    /// Byte at which what is looked at begins.
    begin: Cell<usize>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch {
            buffer: UnsafeCell::new(Buffer([[0; LINE_WORDS]; DEEP_SLOTS])),
            begin: Cell::new(0),
        }
    }

    /// From now on [`bytes`](Self::bytes) begin at this byte, a multiple of 8.
    #[inline(always)]
    pub(crate) fn begin_at(&self, byte: usize) {
        self.begin.set(byte);
    }

    /// Has the buffer overwritten: the chunk that goes with a message's first slot, and the lines that go with the others.
    ///
    /// # Safety
    ///
    /// No slice returned by [`bytes`](Self::bytes) may be alive, and `write` asks for none.
    #[inline(always)]
    pub(crate) unsafe fn fill(&self, write: impl FnOnce(&mut [u64], &mut [LineWords])) {
        // SAFETY:
        // aliasing: the caller promises that no shared slice is alive or is asked for meanwhile, and the type is !Sync.
        // lifetime: the exclusive reference ends with this function.
        let Buffer(lines) = unsafe { &mut *self.buffer.get() };
        let (first, rest) = lines.split_at_mut(1);
        write(&mut first[0][1..], rest);
    }

    /// `len` bytes, at most as many as there are.
    #[inline(always)]
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        let begin = self.begin.get().min(DEEP_INLINE);
        let len = len.min(DEEP_INLINE - begin);
        let buffer = self.buffer.get().cast::<u8>();
        // SAFETY: bounds: HEADER_BYTES + begin is at most the buffer's size.
        let payload = unsafe { buffer.add(HEADER_BYTES + begin) };
        // SAFETY:
        // bounds: HEADER_BYTES + begin + len <= size of the buffer, by the first two lines and the assertion above.
        // alignment: u8 needs none. initialised: the array was zeroed, and words are written whole.
        // aliasing: the only writer is `fill`, whose contract excludes a living slice.
        unsafe { core::slice::from_raw_parts(payload, len) }
    }
}

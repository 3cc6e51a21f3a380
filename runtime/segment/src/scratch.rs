//! The private buffer into which an inline message is copied before anybody sees it as bytes (D4).

use crate::layout::{LINE_PAYLOAD_WORDS, MAX_SLOTS};
use core::cell::UnsafeCell;

/// The payload of one slot.
pub(crate) type Chunk = [u64; LINE_PAYLOAD_WORDS];

const BYTES: usize = MAX_SLOTS * size_of::<Chunk>();

/// Room for the largest inline message.
pub(crate) struct Scratch(UnsafeCell<[Chunk; MAX_SLOTS]>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch(UnsafeCell::new([[0; LINE_PAYLOAD_WORDS]; MAX_SLOTS]))
    }

    /// Overwrites the first chunks of the buffer with what `chunk` says for each, `count` at most all.
    ///
    /// # Safety
    ///
    /// No slice returned by [`bytes`](Self::bytes) may be alive.
    #[inline(always)]
    pub(crate) unsafe fn fill(&self, count: usize, chunk: impl Fn(usize) -> Chunk) {
        // SAFETY:
        // aliasing: the caller promises that no shared slice is alive, the type is !Sync, and `chunk` cannot reach `self`
        // because it only reads shared lines.
        // lifetime: the exclusive reference ends with this function.
        let buffer = unsafe { &mut *self.0.get() };
        for (n, to) in buffer.iter_mut().take(count).enumerate() {
            *to = chunk(n);
        }
    }

    /// The first `len` bytes, at most the whole buffer.
    #[inline(always)]
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        let len = len.min(BYTES);
        // SAFETY:
        // bounds: len <= size of the array, by the line above.
        // alignment: u8 needs none. initialised: the array was zeroed, and chunks are written whole.
        // aliasing: the only writer is `fill`, whose contract excludes a living slice.
        unsafe { core::slice::from_raw_parts(self.0.get().cast::<u8>(), len) }
    }
}

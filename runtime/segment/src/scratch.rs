//! The private buffer into which an inline message is copied before anybody sees it as bytes (D4).

use crate::layout::{LINE_PAYLOAD_WORDS, MAX_SLOTS};
use core::cell::UnsafeCell;

const WORDS: usize = MAX_SLOTS * LINE_PAYLOAD_WORDS;

/// Room for the largest inline message.
pub(crate) struct Scratch(UnsafeCell<[u64; WORDS]>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Scratch(UnsafeCell::new([0; WORDS]))
    }

    /// Overwrites the first words of the buffer with what `words` yields.
    ///
    /// # Safety
    ///
    /// No slice returned by [`bytes`](Self::bytes) may be alive.
    #[inline(always)]
    pub(crate) unsafe fn fill(&self, words: impl Iterator<Item = u64>) {
        // SAFETY:
        // aliasing: the caller promises that no shared slice is alive, the type is !Sync, and `words` cannot reach `self`
        // because it only reads shared lines.
        // lifetime: the exclusive reference ends with this function.
        let buffer = unsafe { &mut *self.0.get() };
        for (to, word) in buffer.iter_mut().zip(words) {
            *to = word;
        }
    }

    /// The first `len` bytes, at most the whole buffer.
    #[inline(always)]
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        let len = len.min(WORDS * 8);
        // SAFETY:
        // bounds: len <= size of the array, by the line above.
        // alignment: u8 needs none. initialised: the array was zeroed, and words are written whole.
        // aliasing: the only writer is `fill`, whose contract excludes a living slice.
        unsafe { core::slice::from_raw_parts(self.0.get().cast::<u8>(), len) }
    }
}

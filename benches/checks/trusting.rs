//! A receiver that believes its peer: the same ring, format and copies, without a single check. For comparison only.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use tightbeam_sys::block::SharedBlock;

/// Where things are, as in `runtime/segment/src/layout.rs` and `descriptor.rs`.
const WORDS: usize = 8;
const RING: usize = 24;
const CURSOR: usize = 2;
const JUMP: u64 = 5;
const BATCH: u64 = 4;

/// A segment's words.
pub(crate) struct Words(SharedBlock);

impl Words {
    pub(crate) fn map(segment: OwnedFd, bytes: usize) -> Words {
        Words(SharedBlock::open(segment, bytes / 8).expect("mapped"))
    }

    #[inline(always)]
    fn at(&self, line: usize) -> &AtomicU64 {
        // SAFETY: bounds: lines come from the library's own sender in this process, which keeps to the ring.
        unsafe { self.0.words().get_unchecked(line * WORDS) }
    }
}

/// Reads one segment and gives credit in another.
pub(crate) struct Trusting {
    ring: Words,
    own: Words,
    slot: usize,
    tag: u64,
    consumed: u64,
    scratch: Box<[u64; 352]>,
}

impl Trusting {
    pub(crate) fn new(ring: Words, own: Words) -> Trusting {
        Trusting {
            ring,
            own,
            slot: 0,
            tag: 1,
            consumed: 0,
            scratch: Box::new([0; 352]),
        }
    }

    /// Hands over the next message, or all of a batch; `false` if there is none.
    #[inline(always)]
    pub(crate) fn take(&mut self, mut each: impl FnMut(u16, &[u8])) -> bool {
        let mut line = self.ring.at(RING + self.slot);
        // Acquire: pairs with the Release of the sender's header.
        let mut header = line.load(Ordering::Acquire);
        if header & 0xff != self.tag {
            return false;
        }
        if header >> 8 & 7 == JUMP {
            self.slot = (header >> 28 & 0x7_ffff) as usize;
            self.consumed += 1;
            line = self.ring.at(RING + self.slot);
            header = line.load(Ordering::Acquire);
            if header & 0xff != self.tag {
                return false;
            }
        }
        let len = (header >> 16 & 0xfff) as usize;
        let to = self.scratch.as_mut_ptr().cast::<u8>();
        let from = line.as_ptr().cast::<u8>().wrapping_add(8);
        // SAFETY:
        // bounds: the library's sender, in this process, says no more than 2,808 bytes, and wrote them there.
        // aliasing: nobody writes them meanwhile: the sender is this very thread. initialised: memory of a memfd.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        // SAFETY: bounds, initialised: what was copied. aliasing, lifetime: nobody writes the scratch until the next message.
        let bytes = unsafe { std::slice::from_raw_parts(to, len) };
        if header >> 8 & 7 == BATCH {
            let mut at = 0;
            while at < len {
                let head = self.scratch[at / 8];
                let (len, more) = ((head & 0xffff) as usize, head >> 16 & 0xffff);
                at += 8;
                for _ in 0..=more {
                    // SAFETY: bounds: the sender's batch says where its messages are.
                    each((head >> 48) as u16, unsafe {
                        bytes.get_unchecked(at..at + len)
                    });
                    at += len.next_multiple_of(8).max(8);
                }
            }
        } else {
            each((header >> 48) as u16, bytes);
        }
        let slots = 1 + len.saturating_sub(56).div_ceil(64);
        self.consumed += slots as u64;
        self.slot += slots;
        if header & 1 << 12 != 0 {
            self.slot = 0;
            self.tag = self.tag % 255 + 1;
        }
        true
    }

    pub(crate) fn give_credit(&self) {
        // Release: pairs with the sender's load of its credit.
        self.own.at(CURSOR).store(self.consumed, Ordering::Release);
    }
}

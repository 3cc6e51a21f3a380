//! Where everything lies in a segment, who writes it, and how large that makes it.
//!
//! All numbers are in lines of 64 bytes. Both segments of a channel have the same shape:
//!
//! | line | words | written by its owner, read by the peer |
//! |---|---|---|
//! | 0 | 0..8 | identity: magic, version, layout hash, page size, incarnation (2), depth, lines |
//! | 2 | 0, 1 | credit cursor: slots consumed of the peer's ring; messages sent when that was published |
//! | 4 | 0, 1, 2, 3 | state: asleep?, open or closed, wake-up word, CPU (a hint) |
//! | 8..24 | 8 each | the free ring: which frames of the peer may be used again |
//! | 24.. | 8 each | the send ring: a message's first slot has a header word and 56 bytes of payload, the others 64 bytes |
//!
//! The hot lines lie 128 bytes apart, because adjacent-line prefetchers fetch pairs.
//!
//! # Capacity, as a sum with named terms
//!
//! `starts` = [`admitted`](Layout::admitted) (depth, but at least one largest message)
//! + `reserve` (replies to calls: [`MAX_CALLS`] largest messages, so that a reply always has room)
//! + `waste` (what a jump may leave unused: three largest messages).
//!
//! A message starts in one of `starts` slots and may run up to its most slots less one further, so none is split by the ring's end.

/// The protocol version; peers with different versions refuse each other at open.
pub const VERSION: u32 = 1;
/// Bytes in a slot: one cache line.
pub const SLOT_BYTES: usize = 64;
/// Payload bytes in the first slot of a message; further ones hold [`SLOT_BYTES`].
pub const PAYLOAD_BYTES: usize = SLOT_BYTES - 8;
/// The most slots that a message takes in any ring. (Models have fewer, so that all interleavings can be tried.)
pub const MAX_SLOTS: usize = if cfg!(loom) { 2 } else { 17 };
/// The longest message in bytes that travels in any ring itself; see [`Layout::max_inline`] for what deep ones carry.
pub const MAX_INLINE: usize = inline_of(MAX_SLOTS);
/// From this depth on a ring carries longer messages: of 44 slots. (Reserves for them take more memory than shallow rings are
/// made of. A round trip of 2,118 bytes took 354 ns in the ring and 462 in frames, of 4,080 bytes 622 and 608, where CPUs share a core
/// complex; 1.2x and 1.45x in favour of frames further apart.)
pub(crate) const DEEP: usize = 128;
pub(crate) const DEEP_SLOTS: usize = if cfg!(loom) { 2 } else { 44 };
/// The longest message in bytes that travels in a ring at all.
pub(crate) const DEEP_INLINE: usize = inline_of(DEEP_SLOTS);
/// The longest message in bytes: above [`Layout::max_inline`] it travels in frames.
pub const MAX_MESSAGE: usize = 64 << 20;
/// Bytes in front of a frame for headers.
pub const HEADROOM: usize = 128;
/// The most frames that one message is made of.
pub const MAX_PARTS: usize = 32;
/// Words of the free ring: the most frames that can be lent over a channel at a time, in each direction.
pub(crate) const RETURNS: usize = if cfg!(loom) { 8 } else { 128 };
/// The most frames that messages and calls may lend over a channel at a time, in each direction. Answers may lend a few more: who
/// has not read yet what it was sent is answered all the same.
pub const MAX_LOANS: usize = RETURNS - MAX_CALLS;
/// The most pieces of memory with frames that a side may pass to the other.
pub const MAX_SEGMENTS: usize = 64;
/// The most bytes of memory with frames that a side may pass to the other.
pub const MAX_GRANTED: usize = 1 << 30;
/// The most calls that may be unanswered at a time in one direction of a channel.
pub const MAX_CALLS: usize = if cfg!(loom) { 1 } else { 4 };
/// The smallest ring depth in slots.
pub const MIN_DEPTH: usize = 2;
/// The largest ring depth in slots.
pub const MAX_DEPTH: usize = 65_536;

pub(crate) const IDENTITY_LINE: usize = 0;
pub(crate) const CURSOR_LINE: usize = 2;
pub(crate) const CURSOR_CONSUMED: usize = 0;
pub(crate) const CURSOR_SENT: usize = 1;
pub(crate) const STATE_LINE: usize = 4;
pub(crate) const STATE_ASLEEP: usize = 0;
pub(crate) const STATE_CLOSED: usize = 1;
pub(crate) const STATE_WAKE: usize = 2;
pub(crate) const STATE_CPU: usize = 3;
pub(crate) const RETURNS_LINE: usize = 8;
pub(crate) const RING_LINE: usize = RETURNS_LINE + RETURNS / 8;

/// While a ring keeps draining it stays within about this many slots, whatever its depth (D2).
///
/// A bare slot ring's round trip against a bare cache line's on the build machine: 1.00-1.15 with 2 to 16 slots,
/// 1.15-1.6 with 256 or more. Fewer than 16 gain nothing, and cost a decision more often.
pub(crate) const HOT_SLOTS: usize = if cfg!(loom) { 2 } else { 16 };

/// The same for messages of so many slots: at least two of them and a slot, so that the next message is never where the last
/// one is still being read, and its lines can be fetched meanwhile.
#[inline(always)]
pub(crate) const fn hot_slots(slots: usize) -> usize {
    if slots == 1 { HOT_SLOTS } else { 2 * slots + 1 }
}

/// Largest messages in whose place a jump over a tail may leave nothing, until its marker is known to be consumed: what was too short
/// for one in front of the marker, and the tail, which is at most two, one in flight when the last ended its lap.
const WASTED: usize = 3;

const fn inline_of(slots: usize) -> usize {
    PAYLOAD_BYTES + (slots - 1) * SLOT_BYTES
}

/// Two sides with the same hash agree on every offset and bit in this file and in `descriptor.rs`.
pub const LAYOUT_HASH: u64 = hash(&[
    SLOT_BYTES as u64,
    MAX_SLOTS as u64,
    DEEP as u64,
    DEEP_SLOTS as u64,
    MAX_CALLS as u64,
    CURSOR_LINE as u64,
    STATE_LINE as u64,
    RETURNS_LINE as u64,
    RING_LINE as u64,
    RETURNS as u64,
    MAX_PARTS as u64,
    HOT_SLOTS as u64,
    WASTED as u64,
    // Bytes in the slots behind a message's first.
    SLOT_BYTES as u64,
    // Header fields: tag, kind, M, R, length, credit, W, target: the shift of each.
    0x00_08_0b_0c_10_1c_2f_30,
    // F; bits of a return word: tag, segment, slot, generation. A part: segment, slot, generation; begin, length.
    0x0f_00_08_18_28,
    0x00_10_20_00_20,
    // Kinds, in their order: message, reply, no handler, no reply, batch, jump.
    0x00_01_02_03_04_05,
    // Ways to sleep: not at all, on the word, on the connection.
    0x00_01_02,
    // The CPU of a state line, counted from 1.
    STATE_CPU as u64,
    // Head of a run in a batch: length, more, handler: the shift of each.
    0x00_10_30,
]);

/// FNV-1a over words (Fowler, Noll, Vo).
const fn hash(words: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < words.len() {
        hash = (hash ^ words[i]).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// A ring depth that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two.
    #[error("ring depth {depth} is not a power of two; the nearest are {below} and {above}")]
    NotPowerOfTwo {
        /// The depth asked for.
        depth: usize,
        /// The next smaller depth that works.
        below: usize,
        /// The next larger depth that works.
        above: usize,
    },
    /// Below [`MIN_DEPTH`] or above [`MAX_DEPTH`].
    #[error("ring depth {depth} is outside {MIN_DEPTH} to {MAX_DEPTH}")]
    OutOfRange {
        /// The depth asked for.
        depth: usize,
    },
}

/// The shape of a segment, from its ring depth alone: the `footprint` step of its life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    depth: usize,
}

impl Layout {
    /// A segment whose send ring holds `depth` slots: a power of two from [`MIN_DEPTH`] to [`MAX_DEPTH`].
    pub const fn new(depth: usize) -> Result<Layout, LayoutError> {
        if depth < MIN_DEPTH || depth > MAX_DEPTH {
            return Err(LayoutError::OutOfRange { depth });
        }
        if !depth.is_power_of_two() {
            let above = depth.next_power_of_two();
            return Err(LayoutError::NotPowerOfTwo {
                depth,
                below: above / 2,
                above,
            });
        }
        Ok(Layout { depth })
    }

    /// Slots that sends and calls may fill.
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// The longest message in bytes that travels in the ring itself: [`MAX_INLINE`], or 2,808 in a ring of 128 slots or more.
    pub const fn max_inline(&self) -> usize {
        inline_of(self.max_slots())
    }

    /// The most slots that a message takes.
    pub(crate) const fn max_slots(&self) -> usize {
        if self.depth < DEEP {
            MAX_SLOTS
        } else {
            DEEP_SLOTS
        }
    }

    /// Slots that sends and calls may fill at most: the depth, or one largest message in a ring shallower than that.
    pub(crate) const fn admitted(&self) -> usize {
        if self.depth < self.max_slots() {
            self.max_slots()
        } else {
            self.depth
        }
    }

    /// Slots that replies may fill beside that.
    pub(crate) const fn admitted_reply(&self) -> usize {
        self.admitted() + MAX_CALLS * self.max_slots()
    }

    /// A message starts in a slot below this.
    pub(crate) const fn starts(&self) -> usize {
        self.admitted_reply() + WASTED * self.max_slots()
    }

    /// A message ends at or below this slot.
    pub(crate) const fn slots(&self) -> usize {
        self.starts() + self.max_slots() - 1
    }

    /// How many 64-byte lines the segment has.
    pub const fn lines(&self) -> usize {
        RING_LINE + self.slots()
    }

    /// How many bytes the segment has, in whole pages.
    pub const fn bytes(&self, page_size: usize) -> usize {
        (self.lines() * SLOT_BYTES).next_multiple_of(page_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_peers_agree_on() {
        assert_eq!(
            (SLOT_BYTES, PAYLOAD_BYTES, MAX_SLOTS, MAX_INLINE),
            (64, 56, 17, 1080)
        );
        assert_eq!((DEEP, DEEP_SLOTS, DEEP_INLINE), (128, 44, 2808));
        let inline = |depth| Layout::new(depth).map(|layout| layout.max_inline());
        assert_eq!(
            [2, 64, 128, 65_536].map(inline),
            [1080, 1080, 2808, 2808].map(Ok)
        );
        assert_eq!(
            (IDENTITY_LINE, CURSOR_LINE, STATE_LINE, RING_LINE),
            (0, 2, 4, 24)
        );
        assert_eq!((CURSOR_CONSUMED, CURSOR_SENT), (0, 1));
        assert_eq!(
            (STATE_ASLEEP, STATE_CLOSED, STATE_WAKE, STATE_CPU),
            (0, 1, 2, 3)
        );
        assert_eq!(VERSION, 1);
        assert_eq!(LAYOUT_HASH, 0x1d9b_b42a_f342_d3c9);
    }

    #[test]
    fn footprints() {
        for (depth, lines, bytes) in [
            (2, 176, 12_288),
            (16, 176, 12_288),
            (64, 223, 16_384),
            (128, 503, 32_768),
            (256, 631, 40_960),
            (1024, 1399, 90_112),
            (65_536, 65_911, 4_218_880),
        ] {
            let layout = Layout::new(depth).unwrap();
            assert_eq!(
                (layout.lines(), layout.bytes(4096)),
                (lines, bytes),
                "depth {depth}"
            );
        }
    }

    #[test]
    fn depths_that_cannot_be_had_name_those_that_can() {
        assert_eq!(Layout::new(1), Err(LayoutError::OutOfRange { depth: 1 }));
        assert_eq!(
            Layout::new(1 << 17),
            Err(LayoutError::OutOfRange { depth: 1 << 17 })
        );
        let error = Layout::new(1000).unwrap_err();
        assert_eq!(
            error,
            LayoutError::NotPowerOfTwo {
                depth: 1000,
                below: 512,
                above: 1024
            }
        );
    }
}

//! A lap of the send ring: from a message in slot 0 to the one that says that the next is there again. See `send.rs`.

/// Stands where a lap has no jump.
pub(crate) const NO_JUMP: u64 = u64::MAX;

/// Where the slots of a lap lie: `base + n` is in slot `n`, or `n + skew` from the jump on.
#[derive(Clone, Copy)]
pub(crate) struct Lap {
    /// Count of slots sent before this lap.
    pub(crate) base: u64,
    /// Slots of this lap up to and including its jump marker.
    pub(crate) jump_after: u64,
    pub(crate) skew: usize,
    /// First slot behind the last message.
    pub(crate) end: usize,
}

impl Lap {
    pub(crate) fn starting(base: u64) -> Lap {
        Lap {
            base,
            jump_after: NO_JUMP,
            skew: 0,
            end: 0,
        }
    }

    pub(crate) fn slot(&self, count: u64) -> usize {
        let offset = count.wrapping_sub(self.base);
        offset as usize
            + if offset >= self.jump_after {
                self.skew
            } else {
                0
            }
    }

    /// One if this lap's jump marker is not known to be consumed.
    pub(crate) fn marker_in_flight(&self, acked: u64) -> u64 {
        let jumped = self.jump_after != NO_JUMP;
        u64::from(jumped && !reached(acked, self.base.wrapping_add(self.jump_after)))
    }
}

/// Whether a count that wraps has reached another.
#[inline(always)]
pub(crate) fn reached(count: u64, other: u64) -> bool {
    count.wrapping_sub(other) as i64 >= 0
}

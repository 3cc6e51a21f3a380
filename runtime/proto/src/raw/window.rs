//! Which of the last packets have been seen: 64 bits behind the highest number.

/// So many numbers back it is known whether a packet was seen.
pub const WINDOW: u32 = 64;

/// What a sequence number is to those that came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Higher than all before; so many between the last one and it have not come.
    New {
        /// How many.
        skipped: u32,
    },
    /// Overtaken by later ones, and now there.
    Reordered,
    /// Seen before.
    Duplicate,
    /// More than [`WINDOW`] back.
    Late,
}

/// A window over sequence numbers that wrap. Numbers up to 2^31 - 1 ahead of the highest are new, all others are old: a duplicate
/// that a network keeps for 2^31 packets would be taken for a new one, and networks do not keep packets for minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    next: u32,
    /// Bit `n`: number `next - 1 - n` has been seen, or was never sent.
    seen: u64,
}

impl Window {
    /// Expects this number first; none before it was ever sent.
    pub const fn new(first: u32) -> Window {
        Window {
            next: first,
            seen: u64::MAX,
        }
    }

    /// Looks at a number, and remembers it.
    #[inline]
    pub fn see(&mut self, seq: u32) -> Seen {
        let ahead = seq.wrapping_sub(self.next);
        if ahead < 1 << 31 {
            self.seen = shifted(self.seen, ahead + 1) | 1;
            self.next = seq.wrapping_add(1);
            return Seen::New { skipped: ahead };
        }
        let back = !ahead;
        if back >= WINDOW {
            return Seen::Late;
        }
        let bit = 1 << back;
        if self.seen & bit != 0 {
            return Seen::Duplicate;
        }
        self.seen |= bit;
        Seen::Reordered
    }

    /// Learns that all numbers below this one have been sent; how many of them that are news have not come.
    pub fn sent_below(&mut self, seq: u32) -> u32 {
        let ahead = seq.wrapping_sub(self.next);
        if ahead >= 1 << 31 {
            return 0;
        }
        self.seen = shifted(self.seen, ahead);
        self.next = seq;
        ahead
    }
}

#[inline(always)]
fn shifted(seen: u64, by: u32) -> u64 {
    seen.checked_shl(by).unwrap_or(0)
}

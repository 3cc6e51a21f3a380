//! Counters of what arrives over a Raw channel, or over none.

crate::counters! {
    /// What is counted of the packets that arrive. Each refusal adds one to exactly one counter (I8). An endpoint adds those that no
    /// channel is for to counters of its own.
    Counter, Counters {
        /// Packets of data that were accepted.
        Accepted = "accepted",
        /// Packets with which the peer closed the channel, or answered that.
        Closes = "closes",
        /// Packets that were sent, as their numbers show, and have not been accepted: lost, damaged, or too late.
        Lost = "lost",
        /// Packets that were accepted after later ones, and had been counted as lost.
        Reordered = "reordered",
        /// Refused: shorter than a header.
        Short = "drop_short",
        /// Refused: another version of the wire format.
        Version = "drop_version",
        /// Refused: a kind, or flags, that do not belong on a Raw channel.
        Kind = "drop_kind",
        /// Refused: not the cookie of this channel, or of any.
        Cookie = "drop_cookie",
        /// Refused: the CRC is wrong.
        Crc = "drop_crc",
        /// Refused: the peer packed messages so that they are not whole.
        Packed = "drop_packed",
        /// Refused: accepted once before.
        Duplicate = "drop_duplicate",
        /// Refused: so late that nobody knows whether it was accepted before.
        Late = "drop_late",
    }
}

impl Counters {
    #[inline(always)]
    pub(super) fn add_many(&mut self, counter: Counter, count: u64) {
        let cell = &mut self.0[counter as usize];
        *cell = cell.wrapping_add(count);
    }

    /// A packet that had been taken for lost has arrived.
    pub(super) fn found(&mut self) {
        let lost = &mut self.0[Counter::Lost as usize];
        *lost = lost.saturating_sub(1);
        self.add(Counter::Reordered);
    }
}

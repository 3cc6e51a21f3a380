//! Counters of what arrives: one enum, one label each.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What is counted of the packets that arrive. Each refusal adds one to exactly one counter (I8).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in the order in which they are printed.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// A stable lower-case name for logs and tools.
            pub const fn label(self) -> &'static str {
                match self { $(Counter::$name => $label,)* }
            }
        }
    };
}

counters! {
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

/// The counters of one channel, or of what belongs to none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    /// The count so far.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Every counter with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c, self.get(c)))
    }

    /// Adds one: what an endpoint does of packets that no channel is for.
    #[inline(always)]
    pub fn add(&mut self, counter: Counter) {
        self.add_many(counter, 1);
    }

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

/// Those that are not zero, by their labels.
impl core::fmt::Debug for Counters {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let counted = self.iter().filter(|(_, count)| *count > 0);
        f.debug_map()
            .entries(counted.map(|(counter, count)| (counter.label(), count)))
            .finish()
    }
}

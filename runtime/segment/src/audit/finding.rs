//! What an audit finds, and how it says so.

use core::fmt;

/// Which of the channel's two send rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// That of the port that was audited; of a pair, the left one's.
    Mine,
    /// That of its peer; of a pair, the right one's.
    Peers,
}

/// Where a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The sender may write it next.
    Free,
    /// Sent, and not known to be consumed.
    InFlight,
    /// It holds the message that is being handled.
    Handled,
    /// Nobody sent it, but the receiver would take it for a message.
    Unsent,
}

/// Who says how much has been credited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller {
    /// The sender's private ledger.
    Ledger,
    /// The cursor in the receiver's segment.
    Cursor,
    /// What the receiver's next header will say.
    Header,
}

/// A slot, a credit or a message that is in no place, or in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The slot is in two places.
    SlotTwice {
        /// Whose ring.
        ring: Ring,
        /// Number of the slot.
        slot: usize,
        /// Where it is.
        places: [Place; 2],
    },
    /// A slot was sent that the ring does not have.
    SlotOutside {
        /// Whose ring.
        ring: Ring,
        /// Number of the slot.
        slot: usize,
        /// How many there are.
        slots: usize,
    },
    /// The slot was sent, but what it holds is no message of this lap: it and what was sent after it are in no place.
    SlotLost {
        /// Whose ring.
        ring: Ring,
        /// Number of the slot.
        slot: usize,
        /// The lap's tag.
        tag: u8,
        /// The word where its header belongs.
        found: u64,
    },
    /// The two sides go on at different slots: what is sent to the one is not looked for there.
    SlotApart {
        /// Whose ring.
        ring: Ring,
        /// Slot and lap tag by the sender's ledger.
        sender: (usize, u8),
        /// Slot and lap tag by what the receiver finds.
        receiver: (usize, u8),
    },
    /// Credit for slots that were not consumed, or not even sent: they are free and in flight.
    CreditAhead {
        /// Whose ring.
        ring: Ring,
        /// Who says so.
        by: Teller,
        /// Slots credited since the channel was opened.
        credited: u64,
        /// The most that may be.
        most: u64,
    },
    /// Credit that was given before, or is due, is in no place.
    CreditBehind {
        /// Whose ring.
        ring: Ring,
        /// Who says so.
        by: Teller,
        /// Slots credited since the channel was opened.
        credited: u64,
        /// The least that may be.
        least: u64,
    },
    /// More slots were consumed than sent.
    ConsumedUnsent {
        /// Whose ring.
        ring: Ring,
        /// Slots consumed since the channel was opened, those being handled among them.
        consumed: u64,
        /// Slots sent.
        sent: u64,
    },
    /// Messages sent are not messages received and in flight.
    Messages {
        /// Whose ring.
        ring: Ring,
        /// Messages sent since the channel was opened, a batch being one.
        sent: u64,
        /// Messages consumed.
        received: u64,
        /// Messages that are being handled or in flight.
        waiting: u64,
    },
    /// More messages were dropped than received.
    Dropped {
        /// Sum of the counters of drops.
        dropped: u64,
        /// Messages received.
        received: u64,
    },
}

pub(super) fn twice(ring: Ring, slot: usize, one: Place, other: Place) -> Finding {
    let places = [one, other];
    Finding::SlotTwice { ring, slot, places }
}

pub(super) fn ahead(ring: Ring, by: Teller, credited: u64, most: u64) -> Finding {
    Finding::CreditAhead {
        ring,
        by,
        credited,
        most,
    }
}

pub(super) fn behind(ring: Ring, by: Teller, credited: u64, least: u64) -> Finding {
    Finding::CreditBehind {
        ring,
        by,
        credited,
        least,
    }
}

impl Finding {
    /// The same, as seen from the other side.
    pub(super) fn mirrored(mut self) -> Finding {
        match &mut self {
            Finding::SlotTwice { ring, .. }
            | Finding::SlotOutside { ring, .. }
            | Finding::SlotLost { ring, .. }
            | Finding::SlotApart { ring, .. }
            | Finding::CreditAhead { ring, .. }
            | Finding::CreditBehind { ring, .. }
            | Finding::ConsumedUnsent { ring, .. }
            | Finding::Messages { ring, .. } => {
                *ring = match ring {
                    Ring::Mine => Ring::Peers,
                    Ring::Peers => Ring::Mine,
                }
            }
            Finding::Dropped { .. } => {}
        }
        self
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ring::Mine => "my ring",
            Ring::Peers => "the peer's ring",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Free => "free",
            Place::InFlight => "in flight",
            Place::Handled => "being handled",
            Place::Unsent => "what the receiver would take for a message",
        })
    }
}

impl fmt::Display for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Teller::Ledger => "the sender's ledger",
            Teller::Cursor => "the receiver's cursor",
            Teller::Header => "the receiver's next header",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Finding::SlotTwice {
                ring,
                slot,
                places: [one, other],
            } => write!(f, "{ring}: slot {slot} is {one} and also {other}"),
            Finding::SlotOutside { ring, slot, slots } => {
                write!(
                    f,
                    "{ring}: slot {slot} was sent, but there are only {slots}"
                )
            }
            Finding::SlotLost {
                ring,
                slot,
                tag,
                found,
            } => write!(
                f,
                "{ring}: slot {slot} was sent, but holds {found:#018x}, which is no message of the lap with tag {tag}"
            ),
            Finding::SlotApart {
                ring,
                sender: (slot, tag),
                receiver: (other, other_tag),
            } => write!(
                f,
                "{ring}: the sender goes on at slot {slot} with tag {tag}, the receiver at slot {other} with tag {other_tag}"
            ),
            Finding::CreditAhead {
                ring,
                by,
                credited,
                most,
            } => write!(
                f,
                "{ring}: {by} has {credited} slots credited, but at most {most} can be"
            ),
            Finding::CreditBehind {
                ring,
                by,
                credited,
                least,
            } => write!(
                f,
                "{ring}: {by} has {credited} slots credited, but {least} were already"
            ),
            Finding::ConsumedUnsent {
                ring,
                consumed,
                sent,
            } => write!(
                f,
                "{ring}: {consumed} slots were consumed, but only {sent} sent"
            ),
            Finding::Messages {
                ring,
                sent,
                received,
                waiting,
            } => write!(
                f,
                "{ring}: {sent} messages were sent, but {received} received and {waiting} are on their way"
            ),
            Finding::Dropped { dropped, received } => {
                write!(
                    f,
                    "{dropped} messages were dropped, but only {received} received"
                )
            }
        }
    }
}

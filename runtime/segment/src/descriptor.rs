//! The header word of a message: what a slot says about itself.
//!
//! ```text
//!  63          48 47 46           28 27       16 15..13 12 11 10   8 7        0
//! +--------------+--+---------------+-----------+--+---+--+--+------+----------+
//! |handler / call|W | credit (19 b) |length 12 b|F | 0 |R |M | kind | lap tag  |
//! +--------------+--+---------------+-----------+--+---+--+--+------+----------+
//! ```
//!
//! * *lap tag*: 1 to 255; the receiver knows the tag that the next message will carry, so an older slot cannot be taken for
//!   a new one. 0 is "nothing here".
//! * *M*: the payload goes on in the slots that follow (the length is above one slot's payload).
//! * *R*: the next message is in slot 0, under the next tag.
//! * *F*: the payload is a list of the frames in which the message is (`frames`).
//! * *credit*: how many slots the writer has consumed of the ring in the other direction, modulo 2^19.
//! * *W*: a reply is wanted.
//!
//! The low 16 bits of a one-slot message for a handler equal the lap tag, so that one 16-bit compare finds the usual case.

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// For a handler: a send, or a call if a reply is wanted.
    Message = 0,
    /// The answer to a call.
    Reply = 1,
    /// The answer to a call for which no handler is registered.
    NoHandler = 2,
    /// The answer to a call whose handler gave none, or found the message malformed.
    NoReply = 3,
    /// Several messages for handlers, one behind the other (`batch.rs`).
    Batch = 4,
    /// Not a message: the ring goes on at another slot of the same lap.
    Jump = 5,
}

/// What is to be sent, and whom it is for: the parts of a header that are known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing(u64);

impl Outgoing {
    /// A one-way message to the handler with this index.
    #[inline(always)]
    pub const fn message(handler: u16) -> Self {
        Outgoing::answer(Kind::Message, handler)
    }

    /// A message to this handler that wants a reply. Its number is what [`Port::number`](crate::Port::number) says before it is sent.
    #[inline(always)]
    pub const fn call(handler: u16) -> Self {
        Outgoing(Outgoing::message(handler).0 | WANTED)
    }

    /// Several one-way messages in one.
    #[inline(always)]
    pub(crate) const fn batch() -> Self {
        Outgoing::answer(Kind::Batch, 0)
    }

    /// The same in frames.
    pub(crate) const fn framed(self) -> Self {
        Outgoing(self.0 | FRAMED)
    }

    /// Whether what is sent is the message itself: no list of frames and no batch.
    pub(crate) const fn is_plain(self) -> bool {
        self.0 & FRAMED == 0 && self.0 != Outgoing::batch().0
    }

    #[inline(always)]
    pub(crate) const fn answer(kind: Kind, call: u16) -> Self {
        Outgoing((kind as u64) << KIND_SHIFT | (call as u64) << TARGET_SHIFT)
    }

    /// Whether it is a call.
    #[inline(always)]
    pub const fn is_call(self) -> bool {
        self.0 & WANTED != 0
    }

    /// Whether it answers a call.
    #[inline(always)]
    pub(crate) const fn is_answer(self) -> bool {
        self.0 & ANSWER_MASK != 0
    }
}

const KIND_SHIFT: u32 = 8;
const KIND_MASK: u64 = 7 << KIND_SHIFT;
/// Of the kinds that are sent, only answers have one of these bits.
const ANSWER_MASK: u64 = 3 << KIND_SHIFT;
const MULTI: u64 = 1 << 11;
/// The next message starts a lap.
pub(crate) const RESTART: u64 = 1 << 12;
/// The payload says in which frames the message is.
const FRAMED: u64 = 1 << 15;
const KIND_AND_FLAGS: u64 = 0xff00;
const LEN_SHIFT: u32 = 16;
const LEN_MASK: u64 = (1 << 12) - 1;
const CREDIT_SHIFT: u32 = 28;
/// Credits travel modulo this plus one; far above what can be in flight.
pub(crate) const CREDIT_MASK: u64 = (1 << 19) - 1;
const WANTED: u64 = 1 << 47;
const TARGET_SHIFT: u32 = 48;

const _: () = assert!(crate::layout::DEEP_INLINE as u64 <= LEN_MASK);
const _: () = assert!((crate::MAX_DEPTH as u64) * 2 < CREDIT_MASK);

/// A header as found in a slot: an allegation until its parts have been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor(pub(crate) u64);

impl Descriptor {
    /// Bits 13 and 14 are zero on the wire; the receiver's private copy uses them.
    pub(crate) const COPIED: u64 = 1 << 13;
    pub(crate) const CONSUMED: u64 = 1 << 14;

    /// The header of a message that fits into one slot. `head` is the lap tag, with [`RESTART`] if it ends the lap;
    /// `credit` is what [`credit_word`] makes.
    #[inline(always)]
    pub(crate) fn short(head: u64, out: Outgoing, len: usize, credit: u64) -> Self {
        Descriptor(head | out.0 | (len as u64) << LEN_SHIFT | credit)
    }

    /// The header of a message that takes several slots.
    pub(crate) fn long(head: u64, out: Outgoing, len: usize, credit: u64) -> Self {
        Descriptor::short(head | MULTI, out, len, credit)
    }

    /// Of a message that came in this batch, which has been copied out: for the receiver's private use. It has the batch's
    /// credit, which may not have been taken yet.
    #[inline(always)]
    pub(crate) fn of_batch(self, handler: u16, len: usize) -> Self {
        let flags = if len > crate::PAYLOAD_BYTES { MULTI } else { 0 };
        let (handler, len) = (u64::from(handler), len as u64);
        let credit = self.0 & CREDIT_MASK << CREDIT_SHIFT;
        Descriptor(Self::COPIED | flags | len << LEN_SHIFT | credit | handler << TARGET_SHIFT)
    }

    /// The parts that were known beforehand.
    pub(crate) fn as_outgoing(self) -> Outgoing {
        Outgoing(self.0 & (KIND_MASK | WANTED | 0xffff << TARGET_SHIFT))
    }

    /// A jump carries its slot where other headers carry credit.
    pub(crate) fn jump(tag: u8, slot: usize) -> Descriptor {
        Descriptor(
            u64::from(tag)
                | (Kind::Jump as u64) << KIND_SHIFT
                | (slot as u64 & CREDIT_MASK) << CREDIT_SHIFT,
        )
    }

    #[inline(always)]
    pub(crate) fn tag(self) -> u8 {
        self.0 as u8
    }

    /// The tag and the kind: equals the tag alone for a message for a handler.
    #[inline(always)]
    pub(crate) fn tag_and_kind(self) -> u16 {
        (self.0 & !(RESTART | MULTI)) as u16
    }

    /// Whether it is a message for a handler under this tag, in frames.
    #[inline(always)]
    pub(crate) fn is_framed_message(self, tag: u32) -> bool {
        (self.0 & !(RESTART | MULTI)) as u16 == tag as u16 | FRAMED as u16
    }

    /// Whether the length is one that fits M, in a ring whose messages have at most so many bytes. (One that does not is refused where
    /// there is time for it.)
    #[inline(always)]
    pub(crate) fn length_fits(self, max: usize) -> bool {
        !self.multi() || (crate::PAYLOAD_BYTES + 1..=max).contains(&self.len())
    }

    /// The kind, or `None` for a kind or a flag that nobody defined.
    pub(crate) fn kind(self) -> Option<Kind> {
        const IN_FRAMES: u64 = FRAMED >> KIND_SHIFT;
        const REPLY_IN_FRAMES: u64 = IN_FRAMES | 1;
        match (self.0 & KIND_AND_FLAGS & !(RESTART | MULTI)) >> KIND_SHIFT {
            0 | IN_FRAMES => Some(Kind::Message),
            1 | REPLY_IN_FRAMES => Some(Kind::Reply),
            2 => Some(Kind::NoHandler),
            3 => Some(Kind::NoReply),
            4 => Some(Kind::Batch),
            5 => Some(Kind::Jump),
            _ => None,
        }
    }

    /// Of a checked header: the answer to a call, of whatever kind.
    #[inline(always)]
    pub(crate) fn is_reply(self) -> bool {
        self.0 & ANSWER_MASK != 0
    }

    /// Of a checked header: something is to be done about it beside taking its slots back.
    #[inline(always)]
    pub(crate) fn is_reply_or_framed(self) -> bool {
        self.0 & (ANSWER_MASK | FRAMED) != 0
    }

    #[inline(always)]
    pub(crate) fn framed(self) -> bool {
        self.0 & FRAMED != 0
    }

    pub(crate) fn kind_bits(self) -> u8 {
        (self.0 >> KIND_SHIFT) as u8
    }

    #[inline(always)]
    pub(crate) fn multi(self) -> bool {
        self.0 & MULTI != 0
    }

    #[inline(always)]
    pub(crate) fn restart(self) -> bool {
        self.0 & RESTART != 0
    }

    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        (self.0 >> LEN_SHIFT & LEN_MASK) as usize
    }

    #[inline(always)]
    pub(crate) fn credit(self) -> u64 {
        self.0 >> CREDIT_SHIFT & CREDIT_MASK
    }

    #[inline(always)]
    pub(crate) fn wanted(self) -> bool {
        self.0 & WANTED != 0
    }

    #[inline(always)]
    pub(crate) fn target(self) -> u16 {
        (self.0 >> TARGET_SHIFT) as u16
    }
}

/// A count of consumed slots as headers carry it.
#[inline(always)]
pub(crate) fn credit_word(consumed: u64) -> u64 {
    (consumed & CREDIT_MASK) << CREDIT_SHIFT
}

/// How many slots a message of this length takes.
#[inline(always)]
pub(crate) fn slots_of(len: usize) -> usize {
    if len <= crate::PAYLOAD_BYTES {
        1
    } else {
        1 + (len - crate::PAYLOAD_BYTES).div_ceil(crate::SLOT_BYTES)
    }
}

/// The tag of the lap after the one with this tag: 1 to 255, never 0.
#[inline(always)]
pub(crate) fn next_tag(tag: u8) -> u8 {
    if tag == u8::MAX { 1 } else { tag + 1 }
}

/// The tag of the lap before the one with this tag.
pub(crate) fn last_tag(tag: u8) -> u8 {
    if tag == 1 { u8::MAX } else { tag - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_part_comes_back(tag in 1u8.., target: u16, len in 0usize..=crate::layout::DEEP_INLINE, consumed: u64, wanted: bool, restart: bool) {
            let out = if wanted { Outgoing::call(target) } else { Outgoing::message(target) };
            let head = u64::from(tag) | if restart { RESTART } else { 0 };
            let d = match len > crate::PAYLOAD_BYTES {
                true => Descriptor::long(head, out, len, credit_word(consumed)),
                false => Descriptor::short(head, out, len, credit_word(consumed)),
            };
            prop_assert_eq!(d.as_outgoing(), out);
            prop_assert_eq!(d.tag(), tag);
            prop_assert_eq!(d.target(), target);
            prop_assert_eq!(d.len(), len);
            prop_assert_eq!(d.credit(), consumed & CREDIT_MASK);
            prop_assert_eq!(d.wanted(), wanted);
            prop_assert_eq!(d.restart(), restart);
            prop_assert_eq!(d.kind(), Some(Kind::Message));
            prop_assert_eq!(d.multi(), len > crate::PAYLOAD_BYTES);
            prop_assert_eq!(d.tag_and_kind(), u16::from(tag));
            prop_assert!(d.length_fits(crate::layout::DEEP_INLINE));
            prop_assert_eq!(d.0 as u16 == u16::from(tag), !d.multi() && !restart);
        }
    }

    #[test]
    fn an_unknown_kind_or_flag_is_refused() {
        for bits in 6u64..8 {
            assert_eq!(Descriptor(1 | bits << KIND_SHIFT).kind(), None);
        }
        for flag in [Descriptor::COPIED, Descriptor::CONSUMED] {
            assert_eq!(Descriptor(1 | flag).kind(), None);
        }
    }

    #[test]
    fn tags_skip_zero() {
        assert_eq!(next_tag(1), 2);
        assert_eq!(next_tag(255), 1);
        for tag in 1..=255 {
            assert_eq!(last_tag(next_tag(tag)), tag);
        }
    }

    #[test]
    fn slots_step_at_56_and_every_64_further() {
        for (len, slots) in [
            (0, 1),
            (1, 1),
            (56, 1),
            (57, 2),
            (120, 2),
            (121, 3),
            (1080, 17),
            (2808, 44),
        ] {
            assert_eq!(slots_of(len), slots, "{len} bytes");
        }
    }
}

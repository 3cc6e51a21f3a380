//! The rings as somebody without the library writes and reads them: see `layout.rs` and `descriptor.rs` in
//! `runtime/segment/src`. Legal traffic keeps a channel open and shows where the victim will look next; what is built here
//! with other arguments is a lie.

use crate::words::Words;
use std::collections::VecDeque;

pub(crate) const CURSOR_LINE: usize = 2;
pub(crate) const STATE_LINE: usize = 4;
pub(crate) const RING_LINE: usize = 24;
pub(crate) const RETURNS_LINE: usize = 8;
/// Slots in which a message may start in a ring of depth 64, and the longest message.
pub(crate) const STARTS: usize = 183;
pub(crate) const MAX_INLINE: usize = 1080;

/// Slots that a sender may have in flight.
const DEPTH: u64 = 64;
const CREDIT_MASK: u64 = (1 << 19) - 1;

pub(crate) const REPLY: u64 = 1;
pub(crate) const BATCH: u64 = 4;
pub(crate) const JUMP: u64 = 5;
/// Of a header's flags: the payload is a list of frames.
pub(crate) const FRAMED: u64 = 4;

/// What a header says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) tag: u8,
    pub(crate) kind: u64,
    pub(crate) multi: bool,
    pub(crate) restart: bool,
    /// Bits 13 to 15: the first two nobody defined, the third says that the message is in frames.
    pub(crate) flags: u64,
    pub(crate) len: usize,
    /// Or the slot of a jump.
    pub(crate) credit: u64,
    pub(crate) wanted: bool,
    /// The handler, or the number of the call.
    pub(crate) target: u16,
}

impl Header {
    pub(crate) fn word(self) -> u64 {
        u64::from(self.tag)
            | self.kind << 8
            | u64::from(self.multi) << 11
            | u64::from(self.restart) << 12
            | self.flags << 13
            | (self.len as u64 & 0xfff) << 16
            | (self.credit & CREDIT_MASK) << 28
            | u64::from(self.wanted) << 47
            | u64::from(self.target) << 48
    }

    fn of(word: u64) -> Header {
        Header {
            tag: word as u8,
            kind: word >> 8 & 7,
            multi: word >> 11 & 1 != 0,
            restart: word >> 12 & 1 != 0,
            flags: word >> 13 & 7,
            len: (word >> 16 & 0xfff) as usize,
            credit: word >> 28 & CREDIT_MASK,
            wanted: word >> 47 & 1 != 0,
            target: (word >> 48) as u16,
        }
    }
}

pub(crate) fn slots_of(len: usize) -> usize {
    1 + len.saturating_sub(56).div_ceil(64)
}

pub(crate) fn next_tag(tag: u8) -> u8 {
    if tag == u8::MAX { 1 } else { tag + 1 }
}

/// A place in a ring, and what was counted on the way there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) tag: u8,
    /// Slots, and messages.
    pub(crate) count: u64,
    pub(crate) messages: u64,
}

impl Place {
    const FIRST: Place = Place {
        slot: 0,
        tag: 1,
        count: 0,
        messages: 0,
    };

    fn pass(&mut self, slots: usize, restart: bool) {
        self.slot += slots;
        self.count += slots as u64;
        self.messages += 1;
        if restart {
            (self.slot, self.tag) = (0, next_tag(self.tag));
        }
    }
}

pub(crate) struct Pen {
    pub(crate) own: Words,
    /// The victim's segment.
    pub(crate) seen: Words,
    /// Where the next message goes, and where the victim's next will be.
    pub(crate) head: Place,
    pub(crate) tail: Place,
    /// Places of messages that the victim may not have read.
    sent: VecDeque<Place>,
    /// The next message goes over one that was sent.
    must_drain: bool,
}

impl Pen {
    pub(crate) fn new(own: Words, seen: Words) -> Pen {
        Pen {
            own,
            seen,
            head: Place::FIRST,
            tail: Place::FIRST,
            sent: VecDeque::new(),
            must_drain: false,
        }
    }

    /// Slots that the victim has not consumed, by its own words, which may have been scribbled over.
    pub(crate) fn in_flight(&self) -> u64 {
        self.head.count.wrapping_sub(self.seen.get(CURSOR_LINE, 0))
    }

    /// Goes back to where the victim is, if what lies there was overwritten. `false` if nobody knows where that is.
    pub(crate) fn go_back(&mut self) -> bool {
        let consumed = self.seen.get(CURSOR_LINE, 0);
        let known = self.sent.iter().find(|place| place.count == consumed);
        if let Some(place) = known {
            self.head = *place;
        }
        self.must_drain = false;
        known.is_some() || consumed == self.head.count
    }

    /// A header for the place where the victim will look.
    pub(crate) fn header(&self, kind: u64, len: usize, target: u16) -> Header {
        Header {
            tag: self.head.tag,
            kind,
            multi: len > 56,
            len,
            credit: self.tail.count,
            target,
            ..Header::default()
        }
    }

    /// Writes a word of the head's message: the header, then the payload.
    pub(crate) fn put_head(&self, word: usize, value: u64) {
        self.own.put(RING_LINE + self.head.slot, word, value);
    }

    /// Sends by the rules, with a payload that repeats these words. `false` if there is no room.
    pub(crate) fn say(&mut self, mut header: Header, payload: &[u64], restart: bool) -> bool {
        let (slots, in_flight) = (slots_of(header.len), self.in_flight());
        // Of a cursor that was scribbled over nothing is known.
        let known = in_flight < 2 * DEPTH;
        if known && (in_flight + slots as u64 > DEPTH || (self.must_drain && in_flight > 0)) {
            return false;
        }
        header.restart = self.head.slot + slots >= STARTS || (restart && in_flight == 0);
        let line = RING_LINE + self.head.slot;
        if !header.restart {
            self.own.put(line + slots, 0, 0);
        }
        let words = header.len.div_ceil(8);
        for (n, value) in payload.iter().cycle().take(words).enumerate() {
            self.own.put(line + (n + 1) / 8, (n + 1) % 8, *value);
        }
        self.own.publish(line, 0, header.word());
        self.pass(slots, header.restart);
        self.must_drain = header.restart;
        true
    }

    /// The victim will go on behind a message that was written by hand.
    pub(crate) fn pass(&mut self, slots: usize, restart: bool) {
        self.sent.push_back(self.head);
        if self.sent.len() > 2 * DEPTH as usize {
            self.sent.pop_front();
        }
        self.head.pass(slots, restart);
        self.must_drain |= restart;
    }

    /// Jumps by the rules.
    pub(crate) fn jump(&mut self, slot: usize) {
        if slot <= self.head.slot || slot >= STARTS {
            return;
        }
        self.own.put(RING_LINE + slot, 0, 0);
        let mut marker = self.header(JUMP, 0, 0);
        marker.credit = slot as u64;
        self.sent.push_back(self.head);
        self.own
            .publish(RING_LINE + self.head.slot, 0, marker.word());
        (self.head.slot, self.head.count) = (slot, self.head.count + 1);
    }

    /// Reads what the victim has sent and gives its slots back; returns the numbers of calls.
    pub(crate) fn listen(&mut self) -> Vec<u16> {
        let mut calls = Vec::new();
        for _ in 0..STARTS {
            let line = RING_LINE + self.tail.slot;
            if self.tail.slot >= STARTS || line >= self.seen.lines() {
                break;
            }
            let found = Header::of(self.seen.get(line, 0));
            if found.tag != self.tail.tag {
                break;
            }
            if found.kind == JUMP {
                (self.tail.slot, self.tail.count) = (found.credit as usize, self.tail.count + 1);
                continue;
            }
            if found.wanted {
                calls.push(self.tail.messages as u16);
            }
            self.tail.pass(slots_of(found.len), found.restart);
        }
        self.give_back();
        calls
    }

    /// Publishes the cursor as it is in truth.
    pub(crate) fn give_back(&self) {
        self.own.put(CURSOR_LINE, 1, self.head.messages);
        self.own.publish(CURSOR_LINE, 0, self.tail.count);
    }
}

//! What a receive ring means, written down a second time, slowly: `runtime/segment/src/receive.rs` must agree.

use super::lines::{Lines, RING};
use tightbeam_segment::{Answer, Arrival, Layout, MAX_PARTS, PAYLOAD_BYTES, PeerFault, SLOT_BYTES};

/// The parts of a header word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: u8,
    pub(crate) kind: u8,
    pub(crate) multi: bool,
    pub(crate) restart: bool,
    pub(crate) reserved: u8,
    pub(crate) len: usize,
    pub(crate) credit: u64,
    pub(crate) wanted: bool,
    pub(crate) target: u16,
}

pub(crate) const MESSAGE: u8 = 0;
pub(crate) const REPLY: u8 = 1;
pub(crate) const BATCH: u8 = 4;
pub(crate) const JUMP: u8 = 5;
/// Of the bits that are reserved in other messages: the payload is a list of frames.
pub(crate) const FRAMED: u8 = 4;

/// So many bits of a word from this one on.
fn bits(word: u64, from: u32, count: u32) -> u64 {
    (word >> from) & ((1 << count) - 1)
}

impl Header {
    pub(crate) fn decode(word: u64) -> Header {
        Header {
            tag: bits(word, 0, 8) as u8,
            kind: bits(word, 8, 3) as u8,
            multi: bits(word, 11, 1) == 1,
            restart: bits(word, 12, 1) == 1,
            reserved: bits(word, 13, 3) as u8,
            len: bits(word, 16, 12) as usize,
            credit: bits(word, 28, 19),
            wanted: bits(word, 47, 1) == 1,
            target: bits(word, 48, 16) as u16,
        }
    }

    pub(crate) fn encode(self) -> u64 {
        u64::from(self.tag)
            | u64::from(self.kind) << 8
            | u64::from(self.multi) << 11
            | u64::from(self.restart) << 12
            | u64::from(self.reserved) << 13
            | (self.len as u64) << 16
            | self.credit << 28
            | u64::from(self.wanted) << 47
            | u64::from(self.target) << 48
    }

    pub(crate) fn slots(self) -> usize {
        slots(self.len)
    }
}

pub(crate) fn slots(len: usize) -> usize {
    1 + len.saturating_sub(PAYLOAD_BYTES).div_ceil(SLOT_BYTES)
}

/// Slots in which a message of this ring may start.
pub(crate) fn starts(layout: Layout) -> usize {
    layout.lines() - RING - (slots(layout.max_inline()) - 1)
}

/// The tag after this one: never 0.
pub(crate) fn tag_after(tag: u8) -> u8 {
    tag % 255 + 1
}

/// Where a receiver stands.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) slot: usize,
    pub(crate) tag: u8,
    pub(crate) starts: usize,
    /// Bytes of the longest message of this ring.
    pub(crate) max: usize,
    /// Slots consumed.
    pub(crate) consumed: u64,
    /// Numbers of the calls that await an answer.
    pub(crate) calls: Vec<u16>,
}

impl Reader {
    pub(crate) fn new(layout: Layout, start: u64, tag: u8) -> Reader {
        Reader {
            slot: 0,
            tag,
            starts: starts(layout),
            max: layout.max_inline(),
            consumed: start,
            calls: Vec::new(),
        }
    }

    /// The header at which the receiver looks.
    pub(crate) fn head(&self, ring: &Lines) -> Header {
        Header::decode(ring.load(RING + self.slot, 0))
    }

    /// What the next look finds; the quick one that takes messages alone does not look at the length of a short one.
    pub(crate) fn look(&mut self, ring: &Lines, quick: bool) -> (Arrival, Header) {
        let mut found = self.head(ring);
        if found.tag != self.tag {
            return (Arrival::Empty, found);
        }
        if quick && (found.kind, found.multi, found.reserved) == (MESSAGE, false, 0) {
            found.len = found.len.min(PAYLOAD_BYTES);
        }
        if found.kind == JUMP && found.reserved == 0 {
            let (slot, slots) = (found.credit as usize, self.starts);
            if slot <= self.slot || slot >= slots {
                return (Arrival::Fault(PeerFault::Slot { slot, slots }), found);
            }
            self.slot = slot;
            self.consumed = self.consumed.wrapping_add(1);
            found = self.head(ring);
            if found.tag != self.tag {
                return (Arrival::Empty, found);
            }
        }
        (self.judge(ring, found), found)
    }

    /// The header at the head, if it is the reply to this open call.
    pub(crate) fn awaited(&self, ring: &Lines, call: u16) -> Option<Header> {
        let mut found = self.head(ring);
        let is_it = (found.tag, found.kind, found.reserved, found.target);
        match found.multi {
            false => found.len = found.len.min(PAYLOAD_BYTES),
            true if (PAYLOAD_BYTES + 1..=self.max).contains(&found.len) => {}
            true => return None,
        }
        (is_it == (self.tag, REPLY, 0, call)).then_some(found)
    }

    /// Nobody has passed any memory, so each message in frames names one that is not there.
    fn judge_frames(&self, ring: &Lines, found: Header) -> Arrival {
        let len = found.len;
        if len == 0 || !len.is_multiple_of(16) || len > 16 * MAX_PARTS {
            return Arrival::Fault(PeerFault::Length { len });
        }
        let first = ring.load(RING + self.slot, 1);
        Arrival::Fault(PeerFault::Frame {
            segment: bits(first, 0, 16) as u16,
            slot: bits(first, 16, 16) as u16,
        })
    }

    fn judge(&self, ring: &Lines, found: Header) -> Arrival {
        if found.reserved == FRAMED && matches!(found.kind, MESSAGE | REPLY) {
            let plain = Header {
                reserved: 0,
                ..found
            };
            return match self.judge(ring, plain) {
                Arrival::Fault(fault) => Arrival::Fault(fault),
                _ => self.judge_frames(ring, found),
            };
        }
        let Header { len, target, .. } = found;
        if len > self.max || found.multi != (len > PAYLOAD_BYTES) {
            return Arrival::Fault(PeerFault::Length { len });
        }
        let answer = match (found.kind, found.reserved, found.wanted) {
            (MESSAGE, 0, _) => return Arrival::Message { handler: target },
            (BATCH, 0, false) => return Arrival::Batch,
            (REPLY, 0, _) => Answer::Reply,
            (2, 0, _) => Answer::NoHandler,
            (3, 0, _) => Answer::NoReply,
            _ => {
                let kind = (found.encode() >> 8) as u8;
                return Arrival::Fault(PeerFault::Kind { kind });
            }
        };
        match self.calls.contains(&target) {
            true => Arrival::Reply {
                call: target,
                answer,
            },
            false => Arrival::Fault(PeerFault::UnknownCall { call: target }),
        }
    }

    /// Goes on behind a message; a fault if it does not start over where it must.
    pub(crate) fn consume(&mut self, found: Header) -> Option<PeerFault> {
        let end = self.slot + found.slots();
        self.consumed = self.consumed.wrapping_add(found.slots() as u64);
        if matches!(found.kind, 1..=3)
            && let Some(place) = self.calls.iter().position(|&call| call == found.target)
        {
            self.calls.remove(place);
        }
        let (slot, slots) = (end, self.starts);
        if found.restart {
            self.slot = 0;
            self.tag = tag_after(self.tag);
        } else if end < slots {
            self.slot = end;
        } else {
            return Some(PeerFault::Slot { slot, slots });
        }
        None
    }
}

/// Bytes that a message takes in a batch.
pub(crate) fn room(len: usize) -> usize {
    len.next_multiple_of(8).max(8)
}

/// The messages of a batch, and where it contradicts itself.
pub(crate) fn unpack(bytes: &[u8]) -> (Vec<(u16, Vec<u8>)>, Option<usize>) {
    let (mut messages, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let Some(head) = bytes.get(at..at + 8) else {
            return (messages, Some(at));
        };
        let head = u64::from_ne_bytes(head.try_into().expect("8 bytes"));
        let (len, handler) = (bits(head, 0, 16) as usize, bits(head, 48, 16) as u16);
        let (first, count) = (at + 8, 1 + bits(head, 16, 16) as usize);
        if first + count * room(len) > bytes.len() {
            return (messages, Some(at));
        }
        for number in 0..count {
            let from = first + number * room(len);
            messages.push((handler, bytes[from..from + len].to_vec()));
        }
        at = first + count * room(len);
    }
    (messages, None)
}

//! The receiving half of a port: one look at one line.
//!
//! The receiver polls the slot in which the next message will be, and reads no shared index (D2). What it finds is an
//! allegation of the peer: read once, checked, then used (I4). The header is kept in private memory while its message is
//! handled; the payload is copied out when somebody asks for it, or before the credit for it goes out.

use crate::descriptor::{Descriptor, Kind, next_tag, slots_of};
use crate::layout::{LINE_PAYLOAD_WORDS, Layout, MAX_MESSAGE, PAYLOAD_BYTES, RING_LINE};
use crate::lines::PeerLine;
use crate::port::Port;
use crate::{Answer, Arrival, PeerFault};
use core::cell::Cell;

/// Lap tags are 1 to 255.
const STOPPED: u16 = 0x8000;

/// Private state of the receiving half.
pub(crate) struct Receiver {
    /// Slot in which the next message will be.
    index: Cell<usize>,
    /// Its lap tag.
    tag: Cell<u16>,
    /// Slots consumed since the channel was opened.
    consumed: Cell<u64>,
    /// Value of `consumed` that the cursor line says.
    published: Cell<u64>,
    messages: Cell<u64>,
    /// Publish the cursor when this many slots have been consumed since.
    quarter: u64,
}

impl Receiver {
    pub(crate) fn new(layout: Layout, start: u64, tag: u8) -> Receiver {
        Receiver {
            index: Cell::new(0),
            tag: Cell::new(u16::from(tag)),
            consumed: Cell::new(start),
            published: Cell::new(start),
            messages: Cell::new(start),
            quarter: (layout.depth() as u64 / 4).max(1),
        }
    }

    #[inline(always)]
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed.get()
    }

    #[inline(always)]
    pub(crate) fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// Notes that the cursor line now says what has been consumed, and returns that.
    #[inline(always)]
    pub(crate) fn publish(&self) -> u64 {
        self.published.set(self.consumed.get());
        self.consumed.get()
    }

    /// From now on each look finds the fault: an index inside the mapping, and a tag that no honest peer writes.
    pub(crate) fn stop(&self) {
        self.index.set(0);
        self.tag.set(STOPPED);
    }

    fn advance(&self, slots: usize) {
        self.index.set(self.index.get() + slots);
        self.consumed.set(self.consumed.get().wrapping_add(slots as u64));
    }

    fn start_lap(&self) {
        self.index.set(0);
        self.tag.set(u16::from(next_tag(self.tag.get() as u8)));
    }
}

/// A message that has arrived and has not been consumed.
pub struct Incoming<'a>(&'a Port);

impl<'a> Incoming<'a> {
    /// The handler index that the sender gave.
    pub fn handler(&self) -> u16 {
        self.0.header.get().target()
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.0.header.get().payload_len()
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the sender wants a reply.
    #[inline(always)]
    pub fn wants_reply(&self) -> bool {
        self.0.header.get().wanted()
    }

    /// The payload, copied into private memory: the peer cannot change it any more (D4).
    #[inline(always)]
    pub fn bytes(self) -> &'a [u8] {
        self.0.copy_out(self.0.header.get());
        self.0.copied()
    }
}

impl Port {
    /// One look at the head of the receive ring. Costs one load if nothing is there.
    ///
    /// After [`Arrival::Message`] or [`Arrival::Reply`], look at it with [`incoming`](Self::incoming), then
    /// [`consume`](Self::consume) it; a second look before that finds the same.
    #[inline(always)]
    pub fn arrival(&mut self) -> Arrival {
        let word = self.head();
        if word as u16 == self.rx.tag.get() {
            PeerLine::acquire();
            self.header.set(Descriptor(word));
            return Arrival::Message {
                handler: Descriptor(word).target(),
            };
        }
        self.rare_arrival(Descriptor(word))
    }

    /// Whether a look would find something; changes nothing.
    pub fn has_arrival(&self) -> bool {
        Descriptor(self.head()).tag() == self.rx.tag.get() as u8 || self.fault.get().is_some()
    }

    #[inline(always)]
    fn head(&self) -> u64 {
        self.peer.line(RING_LINE + self.rx.index.get()).load(0)
    }

    /// Everything but a one-slot message for a handler.
    #[inline(always)]
    fn rare_arrival(&mut self, found: Descriptor) -> Arrival {
        if found.tag() != self.rx.tag.get() as u8 {
            return match self.fault.get() {
                None => Arrival::Empty,
                Some(fault) => Arrival::Fault(fault),
            };
        }
        PeerLine::acquire();
        self.flagged_arrival(found)
    }

    #[inline(never)]
    fn flagged_arrival(&mut self, mut found: Descriptor) -> Arrival {
        if let Some(fault) = self.fault.get() {
            return Arrival::Fault(fault);
        }
        if found.kind() == Some(Kind::Jump) {
            match self.follow_jump(found) {
                Ok(Some(next)) => found = next,
                Ok(None) => return Arrival::Empty,
                Err(fault) => return Arrival::Fault(self.fail(fault)),
            }
        }
        match self.check(found) {
            Ok(arrival) => {
                self.header.set(found);
                arrival
            }
            Err(fault) => Arrival::Fault(self.fail(fault)),
        }
    }

    /// Goes on at the slot that the marker names, and looks there. A marker that leads to a marker is a fault.
    fn follow_jump(&mut self, marker: Descriptor) -> Result<Option<Descriptor>, PeerFault> {
        let (slot, slots) = (marker.credit() as usize, self.peer_layout.starts());
        if slot >= slots || slot <= self.rx.index.get() {
            return Err(PeerFault::Slot { slot, slots });
        }
        self.rx.advance(1);
        self.rx.index.set(slot);
        let next = Descriptor(self.head());
        if next.tag() != self.rx.tag.get() as u8 {
            return Ok(None);
        }
        PeerLine::acquire();
        Ok(Some(next))
    }

    /// Turns an alleged header into an arrival; nothing of it is believed before this.
    fn check(&self, found: Descriptor) -> Result<Arrival, PeerFault> {
        let (len, kind) = (found.len(), found.kind());
        if len > MAX_MESSAGE || (len > PAYLOAD_BYTES) != found.multi() {
            return Err(PeerFault::Length { len });
        }
        let answer = match kind {
            Some(Kind::Message) => {
                return Ok(Arrival::Message {
                    handler: found.target(),
                });
            }
            Some(Kind::Reply) => Answer::Reply,
            Some(Kind::NoHandler) => Answer::NoHandler,
            Some(Kind::NoReply) => Answer::NoReply,
            Some(Kind::Jump) | None => {
                return Err(PeerFault::Kind {
                    kind: found.kind_bits(),
                });
            }
        };
        let call = found.target();
        if !self.calls.iter().any(|c| c.get() == Some(call)) {
            return Err(PeerFault::UnknownCall { call });
        }
        Ok(Arrival::Reply { call, answer })
    }

    /// Whether a message is being handled whose sender wants a reply.
    #[inline(always)]
    pub fn handling_wants_reply(&self) -> bool {
        let header = self.header.get();
        header.wanted() && header.0 & Descriptor::CONSUMED == 0
    }

    /// The message that [`arrival`](Self::arrival) found, and the port to reply through.
    #[inline(always)]
    pub fn incoming(&mut self) -> (Incoming<'_>, &Port) {
        (Incoming(self), self)
    }

    /// Gives the slots of the message that [`arrival`](Self::arrival) found back to the peer.
    #[inline(always)]
    pub fn consume(&mut self) {
        let header = self.header.get();
        self.header.set(Descriptor(header.0 | Descriptor::CONSUMED));
        self.rx.messages.set(self.rx.messages.get().wrapping_add(1));
        if header.is_plain() {
            self.rx.advance(1);
            if self.rx.index.get() >= self.peer_layout.starts() {
                self.overrun();
            }
        } else {
            self.consume_flagged(header);
        }
        let unpublished = self.rx.consumed.get().wrapping_sub(self.rx.published.get());
        if unpublished >= self.rx.quarter {
            self.publish_cursor();
        }
    }

    #[inline(never)]
    fn consume_flagged(&mut self, header: Descriptor) {
        if header.kind() != Some(Kind::Message) && header.0 & 0x700 != 0 {
            let call = Some(header.target());
            if let Some(open) = self.calls.iter().find(|c| c.get() == call) {
                open.set(None);
            }
        }
        self.rx.advance(header.slots());
        if header.restart() {
            self.rx.start_lap();
        } else if self.rx.index.get() >= self.peer_layout.starts() {
            self.overrun();
        }
    }

    /// The peer let a message run past the last slot without starting over.
    #[cold]
    fn overrun(&self) {
        self.fail(PeerFault::Slot {
            slot: self.rx.index.get(),
            slots: self.peer_layout.starts(),
        });
    }

    /// Publishes what has been consumed: call it when a drain ends, so that a peer that only sends gets its credit.
    #[inline(always)]
    pub fn finish_drain(&self) {
        if self.rx.consumed.get() != self.rx.published.get() {
            self.publish_cursor();
        }
    }

    /// The payload of the message that was looked at last, if it was copied out: of a reply, after it was consumed.
    #[inline(always)]
    pub fn copied(&self) -> &[u8] {
        let header = self.header.get();
        match header.0 & Descriptor::COPIED {
            0 => &[],
            _ => self.scratch.bytes(header.payload_len()),
        }
    }

    /// Number of messages of which the header has been seen, the one being handled among them.
    pub(crate) fn messages_seen(&self) -> u64 {
        let handling = self.header.get().0 & Descriptor::CONSUMED == 0;
        self.rx.messages.get().wrapping_add(u64::from(handling))
    }

    /// Copies the payload of the message being handled into private memory, once.
    #[inline(always)]
    pub(crate) fn copy_out(&self, header: Descriptor) {
        if header.0 & (Descriptor::COPIED | Descriptor::CONSUMED) != 0 {
            return;
        }
        self.header.set(Descriptor(header.0 | Descriptor::COPIED));
        let first = self.peer.line(RING_LINE + self.rx.index.get());
        let words = header.payload_len().div_ceil(8);
        if words <= LINE_PAYLOAD_WORDS {
            // SAFETY: aliasing: slices of the scratch are given out only while COPIED is set, and COPIED was clear until
            // two lines above: since the last `arrival`, which took the port exclusively and so ended every older slice.
            unsafe { self.scratch.fill((0..words).map(|n| first.load(1 + n))) }
        } else {
            self.copy_out_rest(words);
        }
    }

    #[inline(never)]
    fn copy_out_rest(&self, words: usize) {
        let start = RING_LINE + self.rx.index.get();
        let lines = (0..words.div_ceil(LINE_PAYLOAD_WORDS)).map(|n| self.peer.line(start + n));
        let words = lines
            .flat_map(|line| (0..LINE_PAYLOAD_WORDS).map(move |n| line.load(1 + n)))
            .take(words);
        // SAFETY: aliasing: as in `copy_out`, the only caller.
        unsafe { self.scratch.fill(words) }
    }
}

impl Descriptor {
    /// The length, of which a one-slot message cannot allege more than a slot holds.
    #[inline(always)]
    pub(crate) fn payload_len(self) -> usize {
        match self.multi() {
            false => self.len().min(PAYLOAD_BYTES),
            true => self.len(),
        }
    }

    #[inline(always)]
    pub(crate) fn slots(self) -> usize {
        slots_of(self.payload_len())
    }

    /// Neither kind nor flags: the private bits do not count.
    #[inline(always)]
    fn is_plain(self) -> bool {
        const PRIVATE: u16 = (Descriptor::COPIED | Descriptor::CONSUMED) as u16;
        (self.low() & !PRIVATE) >> 8 == 0
    }
}

//! The receiving half of a port: one look at one line.
//!
//! The receiver polls the slot in which the next message will be, and reads no shared index (D2). What it finds is an
//! allegation of the peer: read once, checked, then used (I4). The header is kept in private memory while its message is
//! handled; the payload is copied out when somebody asks for it, or before the credit for it goes out.

use crate::descriptor::{Descriptor, Kind, credit_word, next_tag, slots_of};
use crate::layout::{Layout, PAYLOAD_BYTES, RING_LINE};
use crate::lines::PeerLine;
use crate::port::Port;
use crate::sync::spin_loop;
use crate::{Answer, Arrival, PeerFault, Received};
use core::cell::Cell;

/// Equals the low 16 bits of no header at all; lap tags are 1 to 255.
const STOPPED: u32 = 1 << 16;

/// Private state of the receiving half.
pub(crate) struct Receiver {
    /// Slot in which the next message will be.
    pub(crate) index: Cell<usize>,
    /// At this slot there is something to decide: publish the cursor, or the peer went too far.
    bound: Cell<usize>,
    /// Its lap tag.
    pub(crate) tag: Cell<u32>,
    /// There is something that is not simply a message for a handler.
    other: Cell<bool>,
    /// `base + index` slots were consumed since the channel was opened.
    pub(crate) base: Cell<u64>,
    pub(crate) messages: Cell<u64>,
    /// Slots consumed, and those of a message whose payload has been copied out, as headers carry it.
    pub(crate) credit: Cell<u64>,
    /// Publish the cursor after this many slots of a lap.
    quarter: usize,
    starts: usize,
    /// Bytes of the longest message of this ring.
    max: usize,
}

impl Receiver {
    pub(crate) fn new(layout: Layout, start: u64, tag: u8) -> Receiver {
        let quarter = (layout.depth() / 4).max(1);
        Receiver {
            index: Cell::new(0),
            bound: Cell::new(quarter),
            tag: Cell::new(u32::from(tag)),
            other: Cell::new(false),
            base: Cell::new(start),
            messages: Cell::new(start),
            credit: Cell::new(credit_word(start)),
            quarter,
            starts: layout.starts(),
            max: layout.max_inline(),
        }
    }

    /// Slots consumed since the channel was opened.
    #[inline(always)]
    pub(crate) fn consumed(&self) -> u64 {
        self.base.get().wrapping_add(self.index.get() as u64)
    }

    #[inline(always)]
    pub(crate) fn messages(&self) -> u64 {
        self.messages.get()
    }

    #[inline(always)]
    pub(crate) fn credit(&self) -> u64 {
        self.credit.get()
    }

    /// From now on each look finds the fault: an index inside the mapping, and a tag that nothing matches.
    pub(crate) fn stop(&self) {
        self.base.set(self.consumed());
        self.index.set(0);
        self.tag.set(STOPPED);
    }

    #[inline(always)]
    fn start_lap(&self) {
        self.base.set(self.consumed());
        self.index.set(0);
        self.bound.set(self.quarter);
        // A handler's reply may have found the peer at fault: then nothing starts again.
        if self.tag.get() != STOPPED {
            self.tag.set(u32::from(next_tag(self.tag.get() as u8)));
        }
    }

    /// Goes on at another slot of the lap, past a marker that took one.
    fn jump_to(&self, slot: usize) {
        let consumed = self.consumed().wrapping_add(1);
        self.index.set(slot);
        self.base.set(consumed.wrapping_sub(slot as u64));
        self.credit.set(credit_word(consumed));
        self.bound.set((slot + self.quarter).min(self.starts));
    }
}

/// The right to look for the next message: whoever has it holds nothing of the last one any more.
pub struct Lookout<'a> {
    port: &'a Port,
    line: PeerLine<'a>,
}

impl<'a> Lookout<'a> {
    /// Looks at the head of the ring until something is there, at most `spins` times more, and takes it if it is a message for a
    /// handler: its index, the message, and the port to reply through. For anything else there is [`Port::arrival`].
    ///
    /// The loop is as tight as a bare cache-line ping-pong's and one 16-bit compare leads from the header to its handler:
    /// every instruction between the two is latency. (Through [`Arrival`], with its jump table, a round trip took 0.1x
    /// of that floor longer.)
    #[inline(always)]
    pub fn message(self, mut spins: u32) -> Option<(u16, Incoming<'a>, &'a Port)> {
        let Lookout { port, line } = self;
        let tag = port.rx.tag.get();
        if tag == STOPPED {
            port.rx.other.set(true);
            return None;
        }
        let found = loop {
            let found = Descriptor(line.load(0));
            if found.0 as u16 == tag as u16 {
                break found;
            }
            if found.tag() == tag as u8 {
                let fits = found.length_fits(port.rx.max);
                if found.tag_and_kind() == tag as u16 && fits {
                    break found;
                }
                if found.is_framed_message(tag) && fits && port.found_framed(found) {
                    return Some((found.target(), Incoming(port), port));
                }
                port.rx.other.set(true);
                return None;
            }
            if spins == 0 {
                return None;
            }
            spins -= 1;
            spin_loop();
        };
        PeerLine::acquire();
        port.header.set(found);
        Some((found.target(), Incoming(port), port))
    }
}

/// A message that has arrived and has not been consumed.
pub struct Incoming<'a>(&'a Port);

impl<'a> Incoming<'a> {
    #[inline(always)]
    pub(crate) fn of(port: &'a Port) -> Self {
        Incoming(port)
    }

    /// The handler index that the sender gave.
    pub fn handler(&self) -> u16 {
        self.0.header.get().target()
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        let header = self.0.header.get();
        match header.framed() {
            false => header.payload_len(),
            true => self.0.parts_len(),
        }
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
        let header = self.0.header.get();
        if header.framed() {
            self.0.gather();
        } else {
            self.0.copy_out(header);
        }
        self.0.copied()
    }

    /// The message in the frames that it came in, to be read there and kept as long as you like; `None` if it came in the ring,
    /// or was taken already.
    pub fn frames(&self) -> Option<Received> {
        match self.0.header.get().framed() {
            true => self.0.take_received(),
            false => None,
        }
    }
}

impl Port {
    /// One look at the head of the receive ring. Costs one load if nothing is there.
    ///
    /// After [`Arrival::Message`] or [`Arrival::Reply`], look at it with [`incoming`](Self::incoming), then
    /// [`consume`](Self::consume) it; a second look before that finds the same.
    #[inline]
    pub fn arrival(&mut self) -> Arrival {
        if self.holds_message() && self.fault.get().is_none() {
            return self.held_arrival();
        }
        let found = Descriptor(self.head());
        if found.tag() != self.rx.tag.get() as u8 {
            return match self.fault.get() {
                None => Arrival::Empty,
                Some(fault) => Arrival::Fault(fault),
            };
        }
        PeerLine::acquire();
        self.flagged_arrival(found)
    }

    /// What the message is that has been found and not consumed. Its slots are not looked at again: credit for them may be on its way, and
    /// with the next message that the peer sends they hold something else.
    #[cold]
    fn held_arrival(&self) -> Arrival {
        let own_bits = Descriptor::COPIED | Descriptor::CONSUMED;
        let header = Descriptor(self.header.get().0 & !own_bits);
        let call = header.target();
        let answer = match header.kind() {
            Some(Kind::Reply) => Answer::Reply,
            Some(Kind::NoHandler) => Answer::NoHandler,
            Some(Kind::NoReply) => Answer::NoReply,
            Some(Kind::Batch) => return Arrival::Batch,
            Some(Kind::Message | Kind::Jump) | None => return Arrival::Message { handler: call },
        };
        Arrival::Reply { call, answer }
    }

    /// Ends every use of the last message, to look for the next.
    #[inline(always)]
    pub fn lookout(&mut self) -> Lookout<'_> {
        let line = self.peer.line(RING_LINE + self.rx.index.get());
        Lookout { port: self, line }
    }

    /// Whether the last [`Lookout`] saw something that it did not take: then [`arrival`](Self::arrival) says what.
    #[inline(always)]
    pub fn saw_other(&self) -> bool {
        self.rx.other.take()
    }

    /// Whether a message has been found that has not been consumed.
    #[inline(always)]
    pub fn holds_message(&self) -> bool {
        self.header.get().0 & Descriptor::CONSUMED == 0
    }

    /// Whether that is a batch.
    pub fn holds_batch(&self) -> bool {
        let own_bits = Descriptor::COPIED | Descriptor::CONSUMED;
        let found = Descriptor(self.header.get().0 & !own_bits);
        found.kind() == Some(Kind::Batch)
    }

    /// Whether the reply to this open call is at the head of the ring; takes it if so. Looks up to `spins` times
    /// more while there is nothing at all.
    #[inline(always)]
    pub fn reply_within(&mut self, call: u16, spins: u32) -> bool {
        const REPLY: u32 = (Kind::Reply as u32) << 8;
        let tag = self.rx.tag.get();
        let found = self.spin(tag as u8, spins);
        let is_it = u32::from(found.tag_and_kind()) == tag | REPLY
            && found.target() == call
            && found.length_fits(self.rx.max);
        if is_it {
            PeerLine::acquire();
            self.header.set(found);
        }
        is_it
    }

    /// Looks at the head of the ring until something is there, at most `spins` times more; what was seen last.
    #[inline(always)]
    fn spin(&self, tag: u8, mut spins: u32) -> Descriptor {
        let line = self.peer.line(RING_LINE + self.rx.index.get());
        loop {
            let found = Descriptor(line.load(0));
            if found.tag() == tag || spins == 0 {
                return found;
            }
            spins -= 1;
            spin_loop();
        }
    }

    /// Whether a look would find something, or has found something that is not consumed; changes nothing.
    pub fn has_arrival(&self) -> bool {
        Descriptor(self.head()).tag() == self.rx.tag.get() as u8
            || self.holds_message()
            || self.fault.get().is_some()
    }

    fn head(&self) -> u64 {
        self.peer.line(RING_LINE + self.rx.index.get()).load(0)
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
                if !found.framed() {
                    self.header.set(found);
                    return arrival;
                }
                match self.take_framed(found) {
                    Ok(true) => arrival,
                    Ok(false) => Arrival::Empty,
                    Err(fault) => Arrival::Fault(self.fail(fault)),
                }
            }
            Err(fault) => Arrival::Fault(self.fail(fault)),
        }
    }

    /// Takes a message in frames, for who has the right to look for the next one. If it was not taken [`arrival`](Self::arrival) says why.
    #[inline(never)]
    fn found_framed(&self, found: Descriptor) -> bool {
        PeerLine::acquire();
        self.take_framed(found).unwrap_or_else(|fault| {
            self.fail(fault);
            false
        })
    }

    /// Goes on at the slot that the marker names, and looks there. A marker that leads to a marker is a fault.
    fn follow_jump(&mut self, marker: Descriptor) -> Result<Option<Descriptor>, PeerFault> {
        let (slot, slots) = (marker.credit() as usize, self.peer_layout.starts());
        if slot >= slots || slot <= self.rx.index.get() {
            return Err(PeerFault::Slot { slot, slots });
        }
        self.rx.jump_to(slot);
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
        if len > self.rx.max || (len > PAYLOAD_BYTES) != found.multi() {
            return Err(PeerFault::Length { len });
        }
        let answer = match kind {
            Some(Kind::Message) => {
                return Ok(Arrival::Message {
                    handler: found.target(),
                });
            }
            Some(Kind::Batch) if !found.wanted() => return Ok(Arrival::Batch),
            Some(Kind::Reply) => Answer::Reply,
            Some(Kind::NoHandler) => Answer::NoHandler,
            Some(Kind::NoReply) => Answer::NoReply,
            Some(Kind::Batch | Kind::Jump) | None => {
                return Err(PeerFault::Kind {
                    kind: found.kind_bits(),
                });
            }
        };
        let call = found.target();
        if self.open_call(call).is_none() {
            return Err(PeerFault::UnknownCall { call });
        }
        Ok(Arrival::Reply { call, answer })
    }

    /// Whether another message stands behind the one that is being handled. Changes nothing.
    pub fn is_followed(&self) -> bool {
        let (header, tag) = (self.header.get(), self.rx.tag.get() as u8);
        let (slot, tag) = match header.restart() {
            true => (0, next_tag(tag)),
            false => (self.rx.index.get() + header.slots(), tag),
        };
        slot < self.rx.starts && Descriptor(self.peer.line(RING_LINE + slot).load(0)).tag() == tag
    }

    /// Whether the sender of the message being handled wants a reply.
    #[inline(always)]
    pub fn handling_wants_reply(&self) -> bool {
        self.header.get().wanted()
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
        if header.is_reply_or_framed() {
            self.end_message(header);
        }
        let end = self.rx.index.get() + header.slots();
        self.rx.index.set(end);
        if header.0 & Descriptor::COPIED == 0 {
            self.rx.credit.set(credit_word(self.rx.consumed()));
        }
        if header.restart() {
            self.rx.start_lap();
        } else if end >= self.rx.bound.get() {
            self.at_bound(end);
        }
    }

    /// What is to be done about a reply, or about frames, when they are consumed.
    #[inline]
    fn end_message(&self, header: Descriptor) {
        if header.is_reply() {
            self.close_call(header.target());
        }
        if header.framed() {
            self.end_parts();
        }
    }

    /// Publishes the cursor in the middle of a long drain; refuses a peer that does not start over at the ring's end.
    #[cold]
    #[inline(never)]
    fn at_bound(&self, end: usize) {
        if end >= self.rx.starts {
            self.overrun();
        } else {
            self.rx
                .bound
                .set((end + self.rx.quarter).min(self.rx.starts));
            self.publish_cursor();
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
        self.woken.set(false);
        self.publish_cursor();
    }

    /// The payload of the message that was looked at last, if it was copied out: of a reply, after it was consumed.
    #[inline(always)]
    pub fn copied(&self) -> &[u8] {
        let header = self.header.get();
        if header.framed() {
            return self.gathered();
        }
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
        if header.multi() {
            return self.copy_out_long(header);
        }
        let consumed = self.rx.consumed().wrapping_add(1);
        self.rx.credit.set(credit_word(consumed));
        let chunk = self.peer.line(RING_LINE + self.rx.index.get()).load_chunk();
        // SAFETY: aliasing: slices of the scratch are given out only while COPIED is set, and COPIED was clear until
        // a few lines above: since the last `arrival` or `lookout`, which took the port exclusively and so ended every older slice.
        unsafe { self.scratch.fill(|first, _| first.copy_from_slice(&chunk)) }
    }

    #[inline(never)]
    fn copy_out_long(&self, header: Descriptor) {
        let (first, slots) = (RING_LINE + self.rx.index.get(), header.slots());
        let consumed = self.rx.consumed().wrapping_add(slots as u64);
        self.rx.credit.set(credit_word(consumed));
        // SAFETY: aliasing: as in `copy_out`, the only caller; what is called here reads shared lines only.
        unsafe {
            self.scratch.fill(|chunk, lines| {
                chunk.copy_from_slice(&self.peer.line(first).load_chunk());
                // A checked header's slots are at most as many as the buffer has.
                if let Some(lines) = lines.get_mut(..slots - 1) {
                    self.peer.load_lines(first + 1, lines);
                }
            })
        }
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
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing;

    /// An honest sender starts over in time; this one goes on.
    #[test]
    fn a_peer_that_runs_past_the_ring_is_at_fault() {
        let layout = Layout::new(64).unwrap();
        let (left, mut right) = testing::pair(layout);
        let header = Descriptor::short(1, crate::Outgoing::message(3), 0, 0);
        for slot in 0..layout.slots() {
            left.own.line(RING_LINE + slot).publish(0, header.0);
        }
        for _ in 0..layout.starts() {
            assert_eq!(right.arrival(), Arrival::Message { handler: 3 });
            right.consume();
        }
        let (slot, slots) = (layout.starts(), layout.starts());
        let fault = PeerFault::Slot { slot, slots };
        assert_eq!(right.arrival(), Arrival::Fault(fault));
        assert!(right.lookout().message(0).is_none() && right.saw_other());
        assert_eq!(right.arrival(), Arrival::Fault(fault));
    }
}

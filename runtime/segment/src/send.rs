//! The sending half of a port: where the next message goes.
//! ```text
//!   slot:   0 ... HOT                                        starts
//!          [m][m][m][m][m][m][m][R]   ring drained: start over at slot 0 (hot set)
//!          [m][m][m][m][m][m][m][m][m][m][m][m] ... [R]      backlog: go on to the end
//!          [m][m][J]·······[tail][m][m] ...          backlog that began after a restart: jump over the tail
//! ```
//!
//! Messages fill consecutive slots. A *lap* ends with a message that says "the next one is in slot 0" (R): at the end of the
//! ring, or earlier when everything before that message has been consumed. So a ring that keeps draining lives in its first
//! few slots whatever its depth (D2), and a backlog may still use all of it: what then lies in the way is at most the
//! unconsumed *tail* of the lap before, and a jump marker (J) leads over it.
//!
//! Why an old slot is never taken for a new one: the receiver looks at one slot, for one tag. A *clean* slot is one whose
//! first word cannot be taken for the next header: it begins with a header of an earlier lap, or it was cleared. Before a
//! message is published, the slot behind it is clean. In a lap of messages of one slot all slots stay so; the further slots
//! of a longer message hold payload in their first word, so after a lap with such a message only slot 0 is clean, and the
//! next lap clears as it goes.
//!
//! The fast path compares one index with `until`, the slot up to which nothing needs to be decided. What can be decided
//! for the next message is decided right after the last one left, while it is on its way (as the Horus protocol
//! accelerator does with headers): a ping-pong then never decides between receiving and answering. Where that clears the
//! slots of a long message, it also fetches their lines, of which the peer has had the last copy: of 1,024 bytes the round
//! trip took 2.6x of a bare line's instead of 3.7x (bare ring in C; as with `prefetchw`).

use crate::descriptor::{CREDIT_MASK, Descriptor, Outgoing, RESTART, next_tag, slots_of};
use crate::lap::{Lap, NO_JUMP, reached};
use crate::layout::{
    CURSOR_CONSUMED, CURSOR_LINE, CURSOR_SENT, HOT_SLOTS, Layout, PAYLOAD_BYTES, RING_LINE,
    hot_slots,
};
use crate::lines::OwnLine;
use crate::port::Port;
use crate::words::{store_words, words};
use crate::{Counter, FrameError, PeerFault};
use core::cell::Cell;

/// Why nothing was sent. The payload is still the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// The ring is full until the peer consumes something: poll, then try again.
    #[error("the send ring is full; poll, then try again")]
    Full,
    /// Longer than a channel carries.
    #[error("a message of {len} bytes is too large; the most is {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The longest length in bytes.
        max: usize,
    },
    /// As many calls are unanswered as a channel allows: poll until a reply comes.
    #[error(
        "{} calls are unanswered already; poll until one is answered",
        crate::MAX_CALLS
    )]
    TooManyCalls,
    /// There is no frame for it; see the error for whether it is worth trying again.
    #[error(transparent)]
    Frame(FrameError),
    /// This side has closed the channel.
    #[error("the channel is closed")]
    Closed,
    /// The peer broke the rules; the channel is over.
    #[error("the peer is at fault: {0}")]
    Fault(PeerFault),
}

/// Slots of a deep lap between two looks at whether the ring has drained; doubled while it has not.
const FIRST_STRIDE: usize = 32;
/// Private state of the sending half.
pub(crate) struct Sender {
    /// Slot of the next message.
    pub(crate) index: Cell<usize>,
    /// A message that ends at or before this slot needs no decision.
    pub(crate) until: Cell<usize>,
    /// Lap tag of the next message, and [`RESTART`] if it shall end the lap.
    pub(crate) head: Cell<u64>,
    /// How many more slots than messages were sent, modulo 2^64. (Counting messages instead would be a store a message: the stores between
    /// two lines are what bounds a stream. A bare ring in C sent 95 M lines a second, 52 M with eight private stores a line.)
    pub(crate) extra: Cell<u64>,
    batched: Cell<u64>,
    /// `base + index` slots were sent since the channel was opened, jump markers among them.
    pub(crate) base: Cell<u64>,
    /// Slots known to be consumed: `acked <= sent`, may be stale.
    pub(crate) acked: Cell<u64>,
    pub(crate) lap: Cell<Lap>,
    pub(crate) previous: Cell<Lap>,
    /// The slots from the next message's on, up to but not including this, are clean.
    pub(crate) clean_to: Cell<usize>,
    /// Slots behind the next message, or that it will leave behind, may hold payload in their first word.
    dirty: Cell<bool>,
    /// A message that ends at or behind this slot looks at the cursor, to start over if the ring has drained.
    look_at: Cell<usize>,
    stride: Cell<usize>,
    /// Credit in messages up to this number is older than what the cursor said.
    stale_until: Cell<u64>,
    /// Number of the last message whose credit was taken.
    credit_of: Cell<u64>,
    pub(crate) last_cursor: Cell<u64>,
    pub(crate) stopped: Cell<bool>,
}

impl Sender {
    pub(crate) fn new(layout: Layout, start: u64, tag: u8) -> Sender {
        Sender {
            index: Cell::new(0),
            until: Cell::new(0),
            head: Cell::new(u64::from(tag)),
            extra: Cell::new(0),
            batched: Cell::new(0),
            base: Cell::new(start),
            acked: Cell::new(start),
            lap: Cell::new(Lap::starting(start)),
            previous: Cell::new(Lap::starting(start)),
            clean_to: Cell::new(layout.slots()),
            dirty: Cell::new(false),
            look_at: Cell::new(HOT_SLOTS),
            stride: Cell::new(FIRST_STRIDE),
            stale_until: Cell::new(start),
            credit_of: Cell::new(start),
            last_cursor: Cell::new(start),
            stopped: Cell::new(false),
        }
    }

    pub(crate) fn tag(&self) -> u8 {
        self.head.get() as u8
    }

    /// Whether the next message ends the lap.
    fn set_restart(&self, restart: bool) {
        let tag = u64::from(self.tag());
        self.head.set(if restart { tag | RESTART } else { tag });
    }

    #[inline(always)]
    pub(crate) fn messages(&self) -> u64 {
        self.sent().wrapping_sub(self.extra.get())
    }

    /// As many messages more went with the last one.
    pub(crate) fn add_messages(&self, count: u64) {
        self.batched.set(self.batched.get().wrapping_add(count));
    }

    /// Messages that went in batches, less the batches.
    pub(crate) fn batched(&self) -> u64 {
        self.batched.get()
    }

    fn extra_slots(&self, slots: u64) {
        self.extra.set(self.extra.get().wrapping_add(slots));
    }

    /// From now on each attempt to send is refused.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.until.set(0);
    }

    /// Slots sent since the channel was opened, jump markers among them.
    #[inline(always)]
    pub(crate) fn sent(&self) -> u64 {
        self.base.get().wrapping_add(self.index.get() as u64)
    }

    fn in_flight(&self) -> u64 {
        self.sent().wrapping_sub(self.acked.get())
    }

    /// Whether starting over is worth it, and leaves a slot for a jump marker in front of what is in flight.
    fn drained_to(&self, in_flight: u64) -> bool {
        let acked = self.acked.get();
        let lap = self.lap.get();
        self.in_flight() <= in_flight && reached(acked, lap.base) && lap.slot(acked) > 0
    }

    /// Slots in flight that hold messages.
    fn messages_in_flight(&self) -> usize {
        let acked = self.acked.get();
        let markers =
            self.lap.get().marker_in_flight(acked) + self.previous.get().marker_in_flight(acked);
        (self.in_flight() - markers) as usize
    }

    fn admits(&self, layout: Layout, slots: usize, out: Outgoing) -> bool {
        let held = self.messages_in_flight();
        match out.is_answer() {
            false => held + slots <= layout.depth() || held == 0,
            true => held + slots <= layout.admitted_reply(),
        }
    }

    /// The slot before which the next message must end, as far as is known.
    fn limit(&self, layout: Layout) -> usize {
        let tail = self.tail(layout);
        // Leave a slot for the marker as long as a jump over the tail may be needed.
        match self.lap.get().jump_after == NO_JUMP && tail < layout.slots() {
            true if self.previous.get().end < layout.starts() => tail.saturating_sub(1),
            _ => tail,
        }
    }

    /// The first slot that holds something of the lap before which is not known to be consumed.
    fn tail(&self, layout: Layout) -> usize {
        let (acked, lap, previous) = (self.acked.get(), self.lap.get(), self.previous.get());
        if lap.jump_after != NO_JUMP || reached(acked, lap.base) {
            layout.slots()
        } else if reached(acked, previous.base) {
            previous.slot(acked)
        } else {
            0
        }
    }
}

impl Port {
    /// Sends a message if there is room, without waiting and without a system call.
    ///
    /// The payload is copied into my segment, of more than [`Layout::max_inline`] bytes into a frame; the peer sees it whole or not at all.
    #[inline(always)]
    pub fn try_send(&self, out: Outgoing, payload: &[u8]) -> Result<(), TrySendError> {
        if payload.len() > PAYLOAD_BYTES {
            return self.send_long(out, payload);
        }
        self.prepare(out, 1)?;
        let line = self.own.line(RING_LINE + self.tx.index.get());
        match payload.first_chunk() {
            Some(chunk) => line.store_chunk(&words(chunk)),
            None => store_words(line, 1, payload),
        }
        let header = Descriptor::short(self.tx.head.get(), out, payload.len(), self.credit());
        self.publish(line, header, 1);
        Ok(())
    }

    #[inline(never)]
    fn send_long(&self, out: Outgoing, payload: &[u8]) -> Result<(), TrySendError> {
        let len = payload.len();
        // What is longer than this port sends at all is refused there.
        if len > self.layout.max_inline() || (len > self.max_message() && out.is_plain()) {
            return self.send_framed(out, payload);
        }
        let slots = slots_of(len);
        self.prepare(out, slots)?;
        let index = self.tx.index.get();
        let line = self.own.line(RING_LINE + index);
        if let Some((chunk, rest)) = payload.split_first_chunk() {
            line.store_chunk(&words(chunk));
            self.store_rest(RING_LINE + index + 1, rest);
        }
        self.tx.dirty.set(true);
        let header = Descriptor::long(self.tx.head.get(), out, len, self.credit());
        self.publish(line, header, slots);
        Ok(())
    }

    /// Finds room, and notes a call.
    #[inline(always)]
    fn prepare(&self, out: Outgoing, slots: usize) -> Result<(), TrySendError> {
        // Before room is made: what that says about the slots ahead holds only if the message is then written.
        let call = match out.is_call() {
            true => Some(self.free_call().ok_or(TrySendError::TooManyCalls)?),
            false => None,
        };
        if self.tx.index.get() + slots > self.tx.until.get() {
            self.make_room(out, slots)?;
        }
        if let Some(call) = call {
            call.set(u32::from(self.next_call()));
        }
        Ok(())
    }

    #[inline(always)]
    fn publish(&self, line: OwnLine<'_>, header: Descriptor, slots: usize) {
        // Release: pairs with the acquire in `Port::arrival`; the payload is visible to who sees this header.
        line.publish(0, header.0);
        let tx = &self.tx;
        let end = tx.index.get() + slots;
        tx.index.set(end);
        if slots > 1 {
            tx.extra_slots(slots as u64 - 1);
        }
        if header.restart() || end + slots > tx.until.get() {
            self.plan(header, slots);
        }
    }

    /// Decides for a next message like the last one, from what is known without a cache miss.
    #[inline(never)]
    fn plan(&self, sent: Descriptor, slots: usize) {
        let (tx, count) = (&self.tx, self.tx.sent());
        // The usual case in a few instructions: the ring was drained when this message left.
        let before = count.wrapping_sub(slots as u64);
        let header = self.header.get();
        let drained = header.credit() == before & CREDIT_MASK
            && !reached(tx.stale_until.get(), self.messages_seen())
            && self.layout.depth() >= 4 * HOT_SLOTS
            && !tx.stopped.get();
        if !drained {
            return self.plan_slowly(sent, slots);
        }
        tx.acked.set(before);
        tx.credit_of.set(self.messages_seen());
        let end = tx.index.get();
        let (starts, hot) = (self.layout.starts(), hot_slots(slots));
        if sent.restart() {
            self.start_lap();
            // In front of the last lap's last message, less a slot for a jump marker.
            let tail = end - slots;
            self.go_on_to((tail - 1).min(reach(slots)));
            return;
        }
        let next = end + slots;
        if next < hot && hot <= starts {
            self.go_on_to(next.max(reach(slots)));
        } else if next >= hot && end > slots && end < starts {
            self.counters.add(Counter::Restarts);
            tx.set_restart(true);
            tx.until.set(next);
        } else {
            self.plan_slowly(sent, slots);
        }
    }

    /// Lets the fast path go on to this slot, of which is known that it and those before it are free.
    fn go_on_to(&self, slot: usize) {
        let tx = &self.tx;
        self.clear(tx.clean_to.get(), slot + 1);
        tx.until.set(slot);
    }

    /// Clears slots, which are free, up to but not including `to`; those before `from` are clean or will hold a message.
    fn clear(&self, from: usize, to: usize) {
        for slot in from..to {
            self.own.line(RING_LINE + slot).store(0, 0);
        }
        if from < to {
            self.tx.clean_to.set(to);
        }
    }

    #[inline(never)]
    fn plan_slowly(&self, sent: Descriptor, slots: usize) {
        let tx = &self.tx;
        if sent.restart() {
            self.start_lap();
        }
        tx.until.set(0);
        tx.set_restart(false);
        if tx.stopped.get() || self.take_credit_from_header().is_err() {
            return;
        }
        let (index, end) = (tx.index.get(), tx.index.get() + slots);
        let starts = self.layout.starts();
        if end > tx.limit(self.layout) || !tx.admits(self.layout, slots, sent.as_outgoing()) {
            return;
        }
        if end >= hot_slots(slots) && index < starts && tx.drained_to(slots as u64) {
            self.counters.add(Counter::Restarts);
            tx.set_restart(true);
            tx.until.set(end);
        } else if end < HOT_SLOTS && HOT_SLOTS <= tx.clean_to.get().min(starts) {
            self.set_until(HOT_SLOTS - 1, 0);
        } else if end < tx.clean_to.get().min(starts) && tx.in_flight() <= slots as u64 {
            self.set_until(end, 0);
        }
    }

    /// Lets the fast path go on to `wanted`, or as far as is known to be admitted, free and clean. `slots` are about to be
    /// sent and end before that.
    fn set_until(&self, wanted: usize, slots: usize) {
        let tx = &self.tx;
        let held = tx.messages_in_flight() + slots;
        let admitted = tx.index.get() + slots + self.layout.depth().saturating_sub(held);
        let until = wanted.min(admitted).min(tx.limit(self.layout));
        tx.until.set(
            until
                .min(self.layout.starts() - 1)
                .min(tx.clean_to.get() - 1),
        );
    }

    /// The slots behind the first of a long message: payload in all of them.
    #[inline(always)]
    fn store_rest(&self, first: usize, rest: &[u8]) {
        let (lines, last) = rest.as_chunks();
        self.own.store_lines(first, lines);
        if !last.is_empty() {
            store_words(self.own.line(first + lines.len()), 0, last);
        }
    }

    /// The slow path: takes credit, finds room, decides whether this message ends the lap, and how far the fast path goes.
    #[cold]
    #[inline(never)]
    fn make_room(&self, out: Outgoing, slots: usize) -> Result<(), TrySendError> {
        let tx = &self.tx;
        if tx.stopped.get() {
            return Err(self.refusal());
        }
        let news = self.take_credit_from_header()?;
        if !self.fits(slots, out) {
            self.take_credit_from_cursor()?;
            if !self.fits(slots, out) {
                self.counters.add(Counter::Full);
                return Err(TrySendError::Full);
            }
        }
        let end = tx.index.get() + slots;
        if end >= tx.look_at.get() && tx.in_flight() > 0 && !news {
            self.take_credit_from_cursor()?;
        }
        let restart = end >= self.layout.starts() || (end >= hot_slots(slots) && tx.drained_to(0));
        tx.set_restart(restart);
        if restart {
            self.counters.add(Counter::Restarts);
            tx.until.set(end);
        } else {
            self.extend(end, slots);
        }
        Ok(())
    }

    /// Why a stopped port sends nothing.
    #[cold]
    fn refusal(&self) -> TrySendError {
        match self.fault.get() {
            Some(fault) => TrySendError::Fault(fault),
            None => TrySendError::Closed,
        }
    }

    /// Whether a message of one slot may be sent: one that may has a place. Takes no news from the peer unless it must.
    pub(crate) fn has_room(&self, out: Outgoing) -> Result<(), TrySendError> {
        if self.tx.stopped.get() {
            return Err(self.refusal());
        }
        let admits = || self.tx.admits(self.layout, 1, out);
        if admits() {
            return Ok(());
        }
        self.take_credit_from_header()?;
        if !admits() {
            self.take_credit_from_cursor()?;
        }
        if admits() {
            return Ok(());
        }
        self.counters.add(Counter::Full);
        Err(TrySendError::Full)
    }

    /// Whether the message may be sent and has a place; jumps over the tail of the lap before if that gives it one.
    fn fits(&self, slots: usize, out: Outgoing) -> bool {
        let tx = &self.tx;
        if !tx.admits(self.layout, slots, out) {
            return false;
        }
        tx.index.get() + slots <= tx.limit(self.layout)
            || (self.jump() && tx.index.get() + slots <= tx.limit(self.layout))
    }

    /// Writes a jump marker, if the tail of the lap before is in the way and there is room behind it.
    fn jump(&self) -> bool {
        let tx = &self.tx;
        let (acked, mut lap, previous) = (tx.acked.get(), tx.lap.get(), tx.previous.get());
        let in_the_way = !reached(acked, lap.base) && reached(acked, previous.base);
        let index = tx.index.get();
        if lap.jump_after != NO_JUMP
            || !in_the_way
            || previous.end >= self.layout.starts()
            || index >= previous.slot(acked)
        {
            return false;
        }
        let target = previous.end;
        self.own.line(RING_LINE + target).store(0, 0);
        let marker = Descriptor::jump(tx.tag(), target);
        // Release: pairs with the acquire in `Port::arrival`; the cleared target is visible to who sees the marker.
        self.own.line(RING_LINE + index).publish(0, marker.0);
        lap.jump_after = index as u64 + 1;
        lap.skew = target - (index + 1);
        tx.lap.set(lap);
        tx.extra_slots(1);
        tx.index.set(target);
        tx.base.set(lap.base.wrapping_sub(lap.skew as u64));
        tx.clean_to.set(tx.clean_to.get().max(target + 1));
        // What was jumped over may hold payload of the lap before.
        tx.dirty.set(true);
        true
    }

    /// Clears slots ahead and sets how far the fast path may go after a message that ends at `end`.
    fn extend(&self, end: usize, slots: usize) {
        let (tx, starts) = (&self.tx, self.layout.starts());
        if end >= tx.look_at.get() {
            let stride = tx.stride.get();
            tx.stride.set((stride * 2).min(starts / 2));
            tx.look_at.set(end + stride);
        }
        if end >= tx.clean_to.get() {
            // What is free.
            let to = (end + FIRST_STRIDE).min(starts);
            let to = to.min(tx.tail(self.layout));
            self.clear(end, to);
            // A slot that is not free begins with a header of the lap before: that is clean.
            tx.clean_to.set(tx.clean_to.get().max(end + 1));
        }
        self.set_until(tx.look_at.get() - 1, slots);
    }

    fn start_lap(&self) {
        let tx = &self.tx;
        let mut ended = tx.lap.get();
        ended.end = tx.index.get();
        let sent = tx.sent();
        tx.previous.set(ended);
        tx.lap.set(Lap::starting(sent));
        tx.base.set(sent);
        tx.index.set(0);
        // Every lap begins with a header in slot 0.
        tx.clean_to.set(match tx.dirty.replace(false) {
            true => 1,
            false => ended.end.min(self.layout.starts()),
        });
        tx.look_at.set(HOT_SLOTS);
        tx.head.set(u64::from(next_tag(tx.tag())));
        tx.stride.set(FIRST_STRIDE);
    }

    /// Takes the credit that came with the last message; says whether there was a message that it was not taken from before.
    fn take_credit_from_header(&self) -> Result<bool, TrySendError> {
        let (tx, header, number) = (&self.tx, self.header.get(), self.messages_seen());
        if number == tx.credit_of.get() {
            return Ok(false);
        }
        tx.credit_of.set(number);
        if reached(tx.stale_until.get(), number) {
            return Ok(true);
        }
        let gained = header.credit().wrapping_sub(tx.acked.get()) & CREDIT_MASK;
        if gained > tx.in_flight() {
            let alleged = tx.acked.get().wrapping_add(gained);
            return Err(TrySendError::Fault(self.fail(PeerFault::CreditAhead {
                alleged,
                sent: tx.sent(),
            })));
        }
        tx.acked.set(tx.acked.get().wrapping_add(gained));
        Ok(true)
    }

    /// Whether the peer has published credit, or given back a frame, that has not been taken: what a sender that found the ring
    /// full asks between saying that it sleeps and sleeping. Changes nothing.
    pub fn has_credit(&self) -> bool {
        let published = self.peer.head::<CURSOR_LINE>().load(CURSOR_CONSUMED);
        published != self.tx.last_cursor.get() || self.has_returns()
    }

    /// Takes the credit in the peer's cursor line: a cache miss, so only when it is needed.
    pub(crate) fn take_credit_from_cursor(&self) -> Result<(), TrySendError> {
        let tx = &self.tx;
        let line = self.peer.head::<CURSOR_LINE>();
        let alleged = line.load_acquire(CURSOR_CONSUMED);
        let sent_then = line.load(CURSOR_SENT);
        let before = tx.last_cursor.get();
        let fault = if !reached(alleged, before) {
            Some(PeerFault::CreditBackwards { before, alleged })
        } else if !reached(tx.sent(), alleged) {
            let sent = tx.sent();
            Some(PeerFault::CreditAhead { alleged, sent })
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(TrySendError::Fault(self.fail(fault)));
        }
        tx.last_cursor.set(alleged);
        if reached(alleged, tx.acked.get()) {
            tx.acked.set(alleged);
            // Headers sent before the cursor was published say less than it; `sent_then` is at least their number.
            if reached(sent_then, tx.stale_until.get()) {
                tx.stale_until.set(sent_then);
            }
        }
        Ok(())
    }
}

/// How far the fast path goes from the beginning of a lap, with messages of so many slots.
fn reach(slots: usize) -> usize {
    match slots {
        1 => HOT_SLOTS - 1,
        _ => slots,
    }
}

//! One side's rings of a channel, and the private truth about them.
//!
//! A `Port` owns its [`Formatted`] segment and the peer's [`Attached`] one. The sending half is in `send.rs`, the receiving
//! half in `receive.rs`; both keep their indices in private memory and treat every word of the peer as an allegation.
//!
//! Shared references suffice to send (so that a handler can reply while its message is borrowed), an exclusive one is
//! needed to receive. A port belongs to one thread (`!Sync`).

use crate::batch::Next;
use crate::descriptor::{Descriptor, Outgoing};
use crate::frames::Loans;
use crate::identity::{Attached, Formatted};
use crate::lap::reached;
use crate::layout::{
    CURSOR_CONSUMED, CURSOR_LINE, CURSOR_SENT, Layout, MAX_CALLS, STATE_ASLEEP, STATE_CLOSED,
    STATE_CPU, STATE_LINE, STATE_WAKE,
};
use crate::lines::{OwnLines, PeerLines, WordAddress};
use crate::receive::Receiver;
use crate::scratch::Scratch;
use crate::send::Sender;
use crate::sync::compiler_barrier;
use crate::{Counter, Counters, PeerFault, TrySendError};
use alloc::boxed::Box;
use core::any::Any;
use core::cell::Cell;

/// Stands where no call is open.
const NO_CALL: u32 = u32::MAX;

/// Value of the closed word once its owner has closed the channel.
const CLOSED: u64 = 1;

/// How the peer's side of a channel stands, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The peer has not closed the channel.
    No,
    /// The peer has closed it; what it published before can still be received.
    Closed,
}

/// How who sleeps is to be woken. The values are those of the state line's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asleep {
    /// Not at all: it is awake.
    No = 0,
    /// By a change of the waker's wake-up word, and the wake-up call on it.
    Word = 1,
    /// By a message over the connection beside the rings.
    Connection = 2,
}

/// One side of a channel.
pub struct Port {
    pub(crate) own: OwnLines,
    pub(crate) peer: PeerLines,
    pub(crate) layout: Layout,
    pub(crate) peer_layout: Layout,
    pub(crate) tx: Sender,
    pub(crate) rx: Receiver,
    /// Private copy of the last header received, with `COPIED` and `CONSUMED` set as they come true.
    pub(crate) header: Cell<Descriptor>,
    pub(crate) scratch: Scratch,
    /// Messages that came in batches, less the batches.
    pub(crate) unpacked: Cell<u64>,
    /// Where in the batch being unpacked the next message is.
    pub(crate) in_batch: Cell<Next>,
    /// Numbers of our calls that await their answer, or [`NO_CALL`].
    pub(crate) calls: [Cell<u32>; MAX_CALLS],
    pub(crate) frames: Loans,
    /// A handler has woken the peer in this drain.
    pub(crate) woken: Cell<bool>,
    pub(crate) fault: Cell<Option<PeerFault>>,
    pub(crate) counters: Counters,
    /// What the peer was told last of where we run, counted from 1.
    cpu: Cell<u64>,
    companion: Option<Box<dyn Any>>,
    label: u64,
}

impl Port {
    /// Joins my segment and the peer's. The label is a number of the caller's choice.
    pub fn new(own: Formatted, peer: Attached, label: u64) -> Port {
        Port::starting_at(own, peer, label, 0, 1)
    }

    /// As [`new`](Self::new), but with all counts at `start` and the first lap's tag at `tag`: for tests of the wrap.
    pub(crate) fn starting_at(
        own: Formatted,
        peer: Attached,
        label: u64,
        start: u64,
        tag: u8,
    ) -> Port {
        let port = Port {
            tx: Sender::new(own.layout, start, tag),
            rx: Receiver::new(peer.layout, start, tag),
            frames: Loans::new(own.lines.share()),
            own: own.lines,
            peer: peer.lines,
            layout: own.layout,
            peer_layout: peer.layout,
            header: Cell::new(Descriptor(Descriptor::CONSUMED)),
            scratch: Scratch::new(),
            unpacked: Cell::new(0),
            in_batch: Cell::default(),
            calls: [const { Cell::new(NO_CALL) }; MAX_CALLS],
            woken: Cell::new(false),
            fault: Cell::new(None),
            counters: Counters::default(),
            cpu: Cell::new(0),
            companion: None,
            label,
        };
        port.publish_cursor();
        port
    }

    /// The number that the port was given when it was made.
    pub fn label(&self) -> u64 {
        self.label
    }

    /// The same port with another number.
    pub fn labelled(self, label: u64) -> Port {
        Port { label, ..self }
    }

    /// Gives the port something that whoever has a reference to it finds again, as handlers do.
    pub fn accompany(&mut self, companion: impl Any) {
        self.companion = Some(Box::new(companion));
    }

    /// What was [given](Self::accompany) to the port, if it is of this type.
    pub fn companion<T: Any>(&self) -> Option<&T> {
        self.companion.as_ref()?.downcast_ref()
    }

    /// The shape of my segment.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The shape of the peer's segment.
    pub fn peer_layout(&self) -> Layout {
        self.peer_layout
    }

    /// Slots of the peer's ring consumed since the channel was opened.
    pub fn consumed_slots(&self) -> u64 {
        self.rx.consumed()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        let sent = self.tx.messages().wrapping_add(self.tx.batched());
        let received = self.rx.messages();
        let received = received.wrapping_add(self.unpacked.get());
        self.counters.set(Counter::Sent, sent);
        self.counters.set(Counter::Received, received);
        &self.counters
    }

    /// Adds one to a counter of this channel.
    #[inline(always)]
    pub fn count(&self, counter: Counter) {
        self.counters.add(counter);
    }

    /// Adds so many to a counter of this channel.
    pub fn count_many(&self, counter: Counter, count: u64) {
        self.counters.add_many(counter, count);
    }

    /// The peer's mistake that ended this port, if any.
    pub fn fault(&self) -> Option<PeerFault> {
        self.fault.get()
    }

    /// Records a mistake of the peer: nothing is sent or received any more. The first one stays.
    #[cold]
    pub fn fail(&self, fault: PeerFault) -> PeerFault {
        // What is being handled stays what it was, wherever the receiver looks from now on.
        self.copy_out(self.header.get());
        let first = self.fault.get().unwrap_or(fault);
        self.fault.set(Some(first));
        self.tx.stop();
        self.rx.stop();
        first
    }

    /// Tells the peer that nothing more comes. What was sent before can still be received by it.
    pub fn close(&self) {
        self.publish_cursor();
        self.tx.stop();
        // Release: pairs with the acquire in `peer_ended`; all that was sent is visible to who sees this.
        self.own.head::<STATE_LINE>().publish(STATE_CLOSED, CLOSED);
    }

    /// Whether the peer has closed the channel. Ask *before* the look that finds the ring empty: then nothing is missed.
    pub fn peer_ended(&self) -> Ended {
        match self.peer.head::<STATE_LINE>().load_acquire(STATE_CLOSED) {
            0 => Ended::No,
            _ => Ended::Closed,
        }
    }

    /// Publishes in my segment that I am about to sleep and how I am to be woken, or that I am awake again.
    ///
    /// After arming, the caller must make the store visible to the peer's CPU (`membarrier`), look at the ring once more,
    /// and only then sleep, on [`peer_wake_word`](Self::peer_wake_word) or until something comes over the connection.
    pub fn set_asleep(&self, asleep: Asleep) {
        // Release: pairs with nothing by itself; `membarrier` in the sleeper orders it against the sender's look.
        self.own
            .head::<STATE_LINE>()
            .publish(STATE_ASLEEP, asleep as u64);
    }

    /// Whether the peer says that it sleeps. One load of a line that rarely changes; costs nothing while the peer is awake.
    #[inline(always)]
    pub fn peer_asleep(&self) -> bool {
        // What was sent must not be stored after this load; a sleeper's `membarrier` sees to it on the CPU.
        compiler_barrier();
        self.peer.head::<STATE_LINE>().load(STATE_ASLEEP) != 0
    }

    /// Whether the peer, if it says that it sleeps, is to be woken over the connection. Any other value is the word.
    pub fn peer_sleeps_on_connection(&self) -> bool {
        self.peer.head::<STATE_LINE>().load(STATE_ASLEEP) == Asleep::Connection as u64
    }

    /// Whether nobody has asked this since the last drain ended.
    pub fn take_wake(&self) -> bool {
        !self.woken.replace(true)
    }

    /// Changes the word that a sleeping peer waits on; the caller then makes the wake-up call on it.
    pub fn bump_wake_word(&self) -> WordAddress<'_> {
        self.counters.add(Counter::Wakes);
        let line = self.own.head::<STATE_LINE>();
        // Release: pairs with nothing by itself; a sleeper that sees the new value looks at the ring again.
        line.publish(STATE_WAKE, self.counters.get(Counter::Wakes));
        line.address(STATE_WAKE)
    }

    /// The word in the peer's segment that changes when the peer wakes us.
    pub fn peer_wake_word(&self) -> WordAddress<'_> {
        self.peer.head::<STATE_LINE>().address(STATE_WAKE)
    }

    /// What that word says now; only to be compared.
    pub fn peer_wake_value(&self) -> u64 {
        self.peer.head::<STATE_LINE>().load(STATE_WAKE)
    }

    /// Tells the peer on which CPU this thread runs; stores nothing if it was told that last.
    #[inline(always)]
    pub fn tell_cpu(&self, cpu: usize) {
        let told = cpu as u64 + 1;
        if self.cpu.replace(told) != told {
            let line = self.own.head::<STATE_LINE>();
            // Release: pairs with nothing; it is a hint.
            line.publish(STATE_CPU, told);
        }
    }

    /// On which CPU the peer says that it ran when it last had nothing to do. A hint: it may be old, or a lie.
    #[inline(always)]
    pub fn peer_cpu(&self) -> Option<usize> {
        let told = self.peer.head::<STATE_LINE>().load(STATE_CPU);
        usize::try_from(told.checked_sub(1)?).ok()
    }

    /// The number that the next message sent will have if it is a call.
    #[inline(always)]
    pub fn next_call(&self) -> u16 {
        self.tx.messages() as u16
    }

    /// The number of what is sent next, which is this. A call gets none that an open call has: 65,536 messages after that it would be its turn.
    /// Both sides pass over such a number by an empty batch, for which [there may be no room](TrySendError::Full).
    #[inline(always)]
    pub fn number(&self, out: Outgoing) -> Result<u16, TrySendError> {
        while !self.may_number(out) {
            self.pass_over()?;
        }
        Ok(self.next_call())
    }

    /// Whether the next number is that of no open call, if it is for one.
    #[inline(always)]
    pub(crate) fn may_number(&self, out: Outgoing) -> bool {
        !out.is_call() || self.open_call(self.next_call()).is_none()
    }

    /// How many of our calls await their answer.
    pub fn open_calls(&self) -> usize {
        self.calls
            .iter()
            .filter(|call| call.get() != NO_CALL)
            .count()
    }

    /// A place to note a call in, if one more may be open.
    #[inline(always)]
    pub(crate) fn free_call(&self) -> Option<&Cell<u32>> {
        self.calls.iter().find(|call| call.get() == NO_CALL)
    }

    /// Where an open call is noted.
    #[inline(always)]
    pub(crate) fn open_call(&self, number: u16) -> Option<&Cell<u32>> {
        self.calls
            .iter()
            .find(|call| call.get() == u32::from(number))
    }

    /// Forgets an open call.
    #[inline(always)]
    pub(crate) fn close_call(&self, number: u16) {
        if let Some(call) = self.open_call(number) {
            call.set(NO_CALL);
        }
    }

    /// Slots of my ring whose messages the peer has not consumed, as far as it says. Takes a line from it, changes nothing, and leaves it
    /// to who sends to find fault.
    pub fn slots_in_flight(&self) -> usize {
        let (sent, acked) = (self.tx.sent(), self.tx.acked.get());
        let alleged = self.peer.head::<CURSOR_LINE>().load(CURSOR_CONSUMED);
        let is_news = reached(alleged, acked) && reached(sent, alleged);
        let consumed = if is_news { alleged } else { acked };
        let laps = [&self.tx.lap, &self.tx.previous];
        let markers = laps.map(|lap| lap.get().marker_in_flight(consumed));
        let slots = sent.wrapping_sub(consumed);
        slots.wrapping_sub(markers.iter().sum()) as usize
    }

    /// Another number whenever credit, or frames that came back, were taken from the peer's segment: who found no room compares it, and
    /// [`has_credit`](Self::has_credit) says whether there is something to be taken.
    pub fn taken(&self) -> u64 {
        let cursor = self.tx.last_cursor.get();
        cursor.wrapping_add(self.frames.collected())
    }

    /// Tells the peer how much of its ring has been consumed.
    #[inline(always)]
    pub(crate) fn publish_cursor(&self) {
        let line = self.own.head::<CURSOR_LINE>();
        line.store(CURSOR_SENT, self.tx.messages());
        // Release: pairs with the acquire in `take_credit_from_cursor`; whoever sees the count also sees CURSOR_SENT.
        line.publish(CURSOR_CONSUMED, self.rx.consumed());
    }

    /// What an outgoing header says of credit. A message that is being handled counts as consumed, so its payload is
    /// copied out first if that has not happened: the peer may overwrite it as soon as it sees the credit.
    #[inline(always)]
    pub(crate) fn credit(&self) -> u64 {
        self.copy_out(self.header.get());
        self.rx.credit()
    }

    /// Answers the call that is being handled. Nothing is sent if no reply is wanted.
    ///
    /// There is room, because a peer has at most [`MAX_CALLS`] unanswered calls and the ring keeps as much in reserve; a
    /// peer with more is at fault.
    #[inline(always)]
    pub fn try_reply(&self, payload: &[u8]) -> Result<(), crate::TrySendError> {
        self.answer(crate::Kind::Reply, payload)
    }

    /// As [`try_reply`](Self::try_reply), with frames. [`TrySendError::Frame`](crate::TrySendError::Frame) if as many are lent as may be.
    pub fn try_reply_frames(&self, frames: &[crate::Frame]) -> Result<(), crate::TrySendError> {
        let call = self.rx.messages() as u16;
        let out = Outgoing::answer(crate::Kind::Reply, call);
        match self.try_lend(out, frames) {
            Ok(()) => {
                self.prepare_next(frames.iter().map(|frame| frame.len()).sum());
                Ok(())
            }
            Err(crate::TrySendError::Full) => Err(crate::TrySendError::Fault(
                self.fail(PeerFault::TooManyCalls),
            )),
            other => other,
        }
    }

    /// Tells the caller of the message that is being handled that there is no reply, and why. Nothing is sent if none is wanted.
    #[cold]
    pub fn try_refuse(&self, why: crate::Answer) -> Result<(), crate::TrySendError> {
        self.answer(why.kind(), &[])
    }

    /// The number of the message that is being handled, among all: its name if it is a call that will be answered later.
    pub fn handling(&self) -> u16 {
        self.rx.messages() as u16
    }

    /// Answers a call whose message was consumed before it was answered, by the number that it had. Once: a second answer is a
    /// fault to its peer.
    pub fn try_answer(
        &self,
        call: u16,
        answer: crate::Answer,
        payload: &[u8],
    ) -> Result<(), crate::TrySendError> {
        self.answer_to(call, answer.kind(), payload)
    }

    #[inline(always)]
    fn answer(&self, kind: crate::Kind, payload: &[u8]) -> Result<(), crate::TrySendError> {
        self.answer_to(self.rx.messages() as u16, kind, payload)
    }

    #[inline(always)]
    fn answer_to(
        &self,
        call: u16,
        kind: crate::Kind,
        payload: &[u8],
    ) -> Result<(), crate::TrySendError> {
        match self.try_send(Outgoing::answer(kind, call), payload) {
            Err(crate::TrySendError::Full) => Err(crate::TrySendError::Fault(
                self.fail(PeerFault::TooManyCalls),
            )),
            other => other,
        }
    }
}

// Endpoint-level types promise `!Sync`; the cells here see to it.
#[cfg(test)]
mod tests {
    use crate::{Arrival, Asleep, Counter, Ended, Layout, Outgoing, testing};

    #[test]
    fn closing_is_seen_after_what_was_sent() {
        let (left, mut right) = testing::pair(Layout::new(16).unwrap());
        assert_eq!(right.peer_ended(), Ended::No);
        left.try_send(Outgoing::message(1), b"last words").unwrap();
        left.close();
        assert_eq!(right.peer_ended(), Ended::Closed);
        assert_eq!(right.arrival(), Arrival::Message { handler: 1 });
        assert_eq!(right.incoming().0.bytes(), b"last words");
        right.consume();
        assert_eq!(right.arrival(), Arrival::Empty);
        assert!(left.try_send(Outgoing::message(1), b"").is_err());
    }

    #[test]
    fn the_peer_knows_where_we_run() {
        let (left, right) = testing::pair(Layout::new(2).unwrap());
        assert_eq!(left.peer_cpu(), None);
        for cpu in [0, 7, 7, 4095] {
            right.tell_cpu(cpu);
            assert_eq!(left.peer_cpu(), Some(cpu));
        }
        assert_eq!(right.peer_cpu(), None);
    }

    #[test]
    fn the_wake_word_changes_with_each_bump() {
        let (left, right) = testing::pair(Layout::new(2).unwrap());
        assert!(!left.peer_asleep());
        right.set_asleep(Asleep::Word);
        assert!(left.peer_asleep());
        let before = right.peer_wake_value();
        left.bump_wake_word();
        assert_ne!(right.peer_wake_value(), before);
        assert_eq!(left.counters().get(Counter::Wakes), 1);
        assert!(!left.peer_sleeps_on_connection());
        right.set_asleep(Asleep::Connection);
        assert!(left.peer_asleep() && left.peer_sleeps_on_connection());
        right.set_asleep(Asleep::No);
        assert!(!left.peer_asleep() && !left.peer_sleeps_on_connection());
    }
}

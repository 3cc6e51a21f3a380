//! One channel of an endpoint: a port, who is on the other side, and how it stands.

use crate::beside::Beside;
use crate::control::Seat;
use crate::handler::{self, Handlers, Message, Reply};
use crate::policy::Flow;
use crate::rest::Rest;
use crate::rounds::PATIENCE;
use crate::send::wake_if_asleep;
use std::cell::Cell;
use std::mem;
use std::net::SocketAddrV4;
use std::rc::Rc;
use tightbeam_segment::{
    Answer, Arrival, Counter, Outgoing, PeerFault, Port, Received, TrySendError,
};
use tightbeam_sys::control::Credentials;
use tightbeam_sys::memory::MemoryReport;

/// Names a channel of an endpoint; never used again for another one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub(crate) u64);

impl ChannelId {
    const SLOT_BITS: u32 = 20;

    pub(crate) fn new(slot: usize, unique: u64) -> ChannelId {
        ChannelId(unique << Self::SLOT_BITS | slot as u64)
    }

    /// Where the endpoint keeps the channel.
    pub(crate) fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

/// Who is on the other side of a channel, as the kernel vouched when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerIdentity {
    /// Process id, for logs only: ids are reused.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Of a peer on another host its address, as its packets say: an allegation that whoever is on the way can make. It has no process
    /// id (0) and no user (`u32::MAX`) that anybody would vouch for.
    pub host: Option<SocketAddrV4>,
}

impl PeerIdentity {
    pub(crate) fn new(credentials: Credentials) -> Self {
        PeerIdentity {
            pid: credentials.pid,
            uid: credentials.uid,
            gid: credentials.gid,
            host: None,
        }
    }

    /// Somebody on another host.
    pub(crate) fn at(host: SocketAddrV4) -> Self {
        PeerIdentity {
            pid: 0,
            uid: u32::MAX,
            gid: u32::MAX,
            host: Some(host),
        }
    }
}

/// What is known of a channel's end while it is still being drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The peer hung up; whether it closed, died or only hung up is not known yet.
    HungUp,
    /// The peer's process has ended.
    Exited,
    /// The peer is at fault.
    Faulted(PeerFault),
}

/// Whether the peer has been told to wake us over the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Armed {
    No,
    /// What came before it knew has not been looked for yet.
    Fresh,
    Yes,
}

pub(crate) struct Channel {
    pub(crate) id: ChannelId,
    pub(crate) port: Port,
    pub(crate) beside: Beside,
    pub(crate) armed: Armed,
    /// The endpoint itself watches the connection.
    pub(crate) watched: bool,
    /// Somebody found no room to send; what had been taken of credit and frames then.
    pub(crate) wants_room: Cell<Option<u64>>,
    pub(crate) rest: Rc<Rest>,
    pub(crate) peer: PeerIdentity,
    pub(crate) memory: MemoryReport,
    pub(crate) ending: Option<Ending>,
    /// Slots that may be consumed until it is over: what was there when its end was noticed fits into the ring once.
    last_slot: Option<u64>,
    /// The call that somebody waits for now, and its answer once it has come.
    pub(crate) awaited: Option<u16>,
    pub(crate) answer: Option<Answer>,
    /// The caller wants the reply's frames, not a copy of them; and here they are.
    pub(crate) in_place: bool,
    pub(crate) reply_frames: Option<Received>,
    /// The last reply has been read but not consumed: that is done when the next call is on its way.
    pub(crate) unsettled: bool,
    /// Looks until it counts as idle; 0 if it does.
    pub(crate) looks: u16,
    /// As how many messages more those count that were handled in the last turn.
    pub(crate) extra: usize,
    /// What becomes of messages for which there is no room.
    pub(crate) flow: Flow,
    /// Among those over devices over which something has come.
    pub(crate) arrived: bool,
    /// Given back when the channel is over.
    pub(crate) seat: Option<Seat>,
}

/// How far a call came without waiting.
pub(crate) enum Called {
    Answered,
    /// On its way; nothing was found for it yet.
    Sent,
    NotSent(TrySendError),
}

/// What became of something that was not simply a message for a handler.
enum Other {
    /// A handler ran; the message is not consumed yet.
    Handled,
    /// The same of so many messages.
    Batch(usize),
    /// The awaited reply.
    Answered,
    /// A reply that nobody awaits.
    Dropped,
    Nothing,
}

impl Channel {
    pub(crate) fn new(
        id: ChannelId,
        port: Port,
        beside: Beside,
        rest: Rc<Rest>,
        peer: PeerIdentity,
        memory: MemoryReport,
    ) -> Channel {
        let told = Rc::clone(&rest);
        port.tell_returns(move || told.note_returns());
        Channel {
            id,
            port,
            beside,
            armed: Armed::No,
            watched: false,
            wants_room: Cell::new(None),
            rest,
            peer,
            memory,
            ending: None,
            last_slot: None,
            awaited: None,
            answer: None,
            in_place: false,
            reply_frames: None,
            unsettled: false,
            looks: PATIENCE,
            extra: 0,
            flow: Flow::default(),
            arrived: false,
            seat: None,
        }
    }

    /// See [`Port::number`]. If one is passed over the peer is told at once: there may be no room for the call before it has seen that.
    #[inline(always)]
    pub(crate) fn number(&self, out: Outgoing) -> Result<u16, TrySendError> {
        let first = self.port.next_call();
        let number = self.port.number(out);
        if self.port.next_call() != first {
            wake_if_asleep(self);
        }
        number
    }

    /// Calls, and takes the reply if it comes while spinning and nothing else comes before it.
    #[inline(always)]
    pub(crate) fn call(&mut self, handler: u16, payload: &[u8], spins: u32) -> Called {
        let out = Outgoing::call(handler);
        let call = match self.number(out) {
            Ok(call) => call,
            Err(error) => return Called::NotSent(error),
        };
        if self.beside.send_past(&self.port, out, handler, payload) {
            self.settle();
            self.awaited = Some(call);
            return Called::Sent;
        }
        if let Err(error) = self.port.try_send(out, payload) {
            return Called::NotSent(error);
        }
        self.await_briefly(call, spins)
    }

    /// What follows a call that was sent: spins for its reply.
    #[inline(always)]
    pub(crate) fn await_briefly(&mut self, call: u16, spins: u32) -> Called {
        // Who sleeps does not answer within so short a time; a device never does.
        let spins = match wake_if_asleep(self) {
            true => 0,
            false => spins,
        };
        self.settle();
        self.awaited = Some(call);
        if !self.port.reply_within(call, spins) {
            return Called::Sent;
        }
        // Copied out here, because the caller may read it after the slot has been given back.
        let _ = self.port.incoming().0.bytes();
        self.awaited = None;
        self.unsettled = true;
        Called::Answered
    }

    /// Whether its other side is a device of this endpoint.
    #[inline(always)]
    pub(crate) fn is_over_device(&self) -> bool {
        matches!(self.beside, Beside::Device { .. })
    }

    /// Notes that the end is near.
    pub(crate) fn note_ending(&mut self, ending: Ending) {
        if let Ending::Faulted(fault) = ending
            && fault != PeerFault::HungUp
        {
            // What comes behind it is not believed, nor called another fault.
            self.port.fail(fault);
        }
        // A hang-up says less than an exit, and a fault more than both.
        let known = matches!(self.ending, Some(Ending::Faulted(_)))
            || (self.ending == Some(Ending::Exited) && ending == Ending::HungUp);
        if !known {
            self.ending = Some(ending);
        }
        let ring = self.port.peer_layout().lines() as u64;
        let last = self.port.consumed_slots().wrapping_add(ring);
        self.last_slot.get_or_insert(last);
    }

    /// Whether a look at it has found a fault, among others.
    #[inline(always)]
    pub(crate) fn is_at_fault(&self) -> bool {
        matches!(self.ending, Some(Ending::Faulted(_)))
    }

    /// Whether there is something left of what was sent before the end; somebody else who has the peer's segment may go on.
    pub(crate) fn has_rest(&self) -> bool {
        let left = |last: u64| last.wrapping_sub(self.port.consumed_slots()) as i64;
        // Only asked: what is there, a fault among it, the next drain takes.
        self.last_slot.is_none_or(|last| left(last) > 0) && self.port.has_arrival()
    }

    /// Consumes a reply that has been read.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        if self.unsettled {
            self.unsettled = false;
            self.port.consume();
            self.disarm();
        }
    }

    /// Handles what has arrived, at most `budget` messages, and stops early at the awaited reply. Spins for the first.
    #[inline(always)]
    pub(crate) fn drain<S>(
        &mut self,
        handlers: &Handlers<S>,
        state: &mut S,
        budget: usize,
        mut spins: u32,
    ) -> usize {
        let settled = self.unsettled;
        self.settle();
        let (mut handled, mut more) = (0, 0);
        if self.port.holds_message() {
            handled += self.go_on(handlers, state);
        }
        while handled + more < budget {
            let spins = mem::take(&mut spins);
            handler::dispatch(state, self.port.lookout(), handlers.table(), spins);
            if !self.port.holds_message() {
                if !self.port.saw_other() {
                    break;
                }
                match self.other(handlers, state) {
                    Other::Handled => {}
                    Other::Batch(messages) => {
                        handled += messages;
                        self.port.end_batch();
                        continue;
                    }
                    Other::Answered => {
                        handled += 1;
                        break;
                    }
                    Other::Dropped => {
                        handled += 1;
                        continue;
                    }
                    Other::Nothing => break,
                }
            }
            more += self.port.extra_cost();
            self.port.consume();
            handled += 1;
        }
        self.extra = more;
        if handled > 0 || settled || self.port.gave_back() {
            self.port.finish_drain();
            // It may sleep until there is room, or until there is what handlers have sent.
            wake_if_asleep(self);
        }
        handled
    }

    /// Tells the peer of frames that were given back since the last drain.
    pub(crate) fn tell_returns(&self) {
        if self.port.gave_back() {
            self.port.finish_drain();
            wake_if_asleep(self);
        }
    }

    /// Goes on after a handler that has unwound: its message counts as handled, the rest of its batch is handled now.
    #[cold]
    #[inline(never)]
    fn go_on<S>(&mut self, handlers: &Handlers<S>, state: &mut S) -> usize {
        self.port.count(Counter::HandlerUnwound);
        if !self.port.holds_batch() {
            self.port.consume();
            return 1;
        }
        let rest = match self.port.fault() {
            None => self.unpack(handlers, state),
            Some(_) => 0,
        };
        self.port.end_batch();
        1 + rest
    }

    fn unpack<S>(&mut self, handlers: &Handlers<S>, state: &mut S) -> usize {
        let table = handlers.table();
        self.port.unpack(|index, incoming, port| {
            handler::handle(table, index, state, Message(incoming), Reply::new(port));
        })
    }

    /// What is there besides a message that leads straight to its handler.
    #[inline(never)]
    fn other<S>(&mut self, handlers: &Handlers<S>, state: &mut S) -> Other {
        match self.port.arrival() {
            Arrival::Message { handler: index } => {
                let (incoming, port) = self.port.incoming();
                let (message, reply) = (Message(incoming), Reply::new(port));
                handler::handle(handlers.table(), index, state, message, reply);
                Other::Handled
            }
            // An empty one was something, too: a row of them would keep a poll busy that counts messages only.
            Arrival::Batch => Other::Batch(self.unpack(handlers, state).max(1)),
            Arrival::Empty => Other::Nothing,
            Arrival::Reply { call, answer } => match self.reply(call, answer) {
                true => Other::Answered,
                false => Other::Dropped,
            },
            Arrival::Fault(fault) => {
                self.ending = Some(Ending::Faulted(fault));
                Other::Nothing
            }
        }
    }

    /// Whether the channel with this name can be handed something past its ring: its end is not near, and nobody is about to take an answer,
    /// or wants frames.
    #[inline]
    pub(crate) fn may_take(&self, id: ChannelId) -> bool {
        self.id == id && self.ending.is_none() && self.answer.is_none() && !self.in_place
    }

    /// Keeps an answer that was handed over for its caller; drops one whose caller has given up.
    #[inline]
    pub(crate) fn take_answer(&mut self, call: u16, answer: Answer) {
        match self.awaited == Some(call) {
            true => {
                self.awaited = None;
                self.answer = Some(answer);
            }
            false => self.port.count(Counter::DropLateReply),
        }
    }

    /// Keeps the awaited reply for its caller; drops one whose caller has given up.
    #[inline(always)]
    fn reply(&mut self, call: u16, answer: Answer) -> bool {
        if self.awaited != Some(call) {
            self.port.count(Counter::DropLateReply);
            self.port.consume();
            return false;
        }
        let (incoming, _) = self.port.incoming();
        if self.in_place {
            self.reply_frames = incoming.frames();
        }
        // Copied out here, because the caller reads it after the slot has been given back.
        let _ = incoming.bytes();
        // Consumed when the next call is on its way: its stores would wait for those that give slots and frames back.
        self.unsettled = true;
        self.awaited = None;
        self.answer = Some(answer);
        true
    }
}

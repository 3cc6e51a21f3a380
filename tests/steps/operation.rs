//! What is stepped through, and what the victim and the survivor agree on: messages, and the words of the ledger.

use tightbeam::{MAX_INLINE, MAX_PARTS};

/// What the victim does between its two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Send,
    SendLong,
    /// The message after which the ring starts over.
    SendWrap,
    /// The message before which a marker leads over what is left of the lap before.
    SendJump,
    Batch,
    Receive,
    ReceiveLong,
    /// A drain past a quarter of the ring, in which the cursor is published early.
    Credit,
    /// A handler that sends, then reads its message, then replies.
    Reply,
    Call,
    CallAsleep,
    SendFrame,
    /// A frame for which there must be memory first, which the survivor has not got yet either.
    Grow,
    /// A frame to the survivor and to the third party.
    Publish,
    ReceiveFrame,
    /// A frame that the third party has, too.
    ReceivePublished,
    /// A frame in memory that must be mapped first.
    ReceiveGrant,
    /// A frame that all stages of a path have, and the word that it is this one's turn.
    TakeTurn,
    /// A call in a frame, which is answered in one.
    CallFrame,
    /// An offer for which there is no room, and which the policy has wait in the queue.
    Queue,
    /// The same when the queue is full: the oldest in it makes room.
    DropOldest,
    /// The same to the survivor and to the third party, in a frame: one has it, for the other it waits.
    PublishQueued,
    /// A poll that sends what waits in the queue.
    Unqueue,
    /// An offer that waits for room, asleep.
    Block,
    /// A call that is queued for a worker's thread.
    HandOver,
    /// A poll that sends what a worker has answered.
    Answer,
    /// To a survivor that sleeps on a descriptor.
    Wake,
    /// On a descriptor, until there is a message.
    Sleep,
    Connect,
    /// What the control thread of a listener does for one that connects.
    Accept,
    /// The polls of a listener until it has a new channel.
    Adopt,
    Close,
    CloseListener,
}

use Operation::*;

impl Operation {
    pub(crate) const ALL: [Operation; 33] = [
        Send,
        SendLong,
        SendWrap,
        SendJump,
        Batch,
        Receive,
        ReceiveLong,
        Credit,
        Reply,
        Call,
        CallAsleep,
        SendFrame,
        Grow,
        Publish,
        ReceiveFrame,
        ReceivePublished,
        ReceiveGrant,
        TakeTurn,
        CallFrame,
        Queue,
        DropOldest,
        PublishQueued,
        Unqueue,
        Block,
        HandOver,
        Answer,
        Wake,
        Sleep,
        Connect,
        Accept,
        Adopt,
        Close,
        CloseListener,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Send => "send, one slot",
            SendLong => "send, 17 slots",
            SendWrap => "send, starts the ring over",
            SendJump => "send, jumps over a tail",
            Batch => "batch of 10",
            Receive => "receive, one slot",
            ReceiveLong => "receive, 17 slots",
            Credit => "credit return in a drain",
            Reply => "reply from a handler",
            Call => "call, spinning",
            CallAsleep => "call, sleeping",
            SendFrame => "frame, sent",
            Grow => "frame, in new memory",
            Publish => "frame, published to two",
            ReceiveFrame => "frame, received",
            ReceivePublished => "frame, published, received",
            ReceiveGrant => "frame, received and mapped",
            TakeTurn => "frame, a turn on a path",
            CallFrame => "frame, call and answer",
            Queue => "offer, queued",
            DropOldest => "offer, drops the oldest",
            PublishQueued => "frame, published and queued",
            Unqueue => "poll sends a queue",
            Block => "offer, waits for room",
            HandOver => "handler, for a worker",
            Answer => "answer of a worker",
            Wake => "send to a sleeper",
            Sleep => "sleep on a descriptor",
            Connect => "open by connecting",
            Accept => "accept, control thread",
            Adopt => "accept, polling thread",
            Close => "close",
            CloseListener => "close of a listener",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Operation> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Messages that the survivor has handled before, and those that it has not.
    pub(crate) fn said_before(self) -> (u64, u64) {
        match self {
            // Number 1 is full of the next lap's tag.
            SendLong => (1, 0),
            SendWrap => (LAP - 1, 0),
            SendJump => (LAP - 1, LAP - 1),
            // The ring is full; nothing of the next lap fits.
            Queue | DropOldest | PublishQueued | Unqueue | Block => (3, LAP),
            Close | CloseListener => (3, 3),
            _ => (3, 0),
        }
    }

    /// Messages that the victim has handled before, and their lengths that wait for it. The first of these ends a lap of
    /// the ring: those that follow take its slot as soon as they may.
    pub(crate) fn told_before(self) -> (u64, &'static [usize]) {
        match self {
            Receive => (LAP - 1, &[SHORT]),
            ReceivePublished => (LAP - 1, &[]),
            ReceiveLong => (LAP - 1, &[LONG]),
            Credit => (LAP - 1, &[SHORT; 6]),
            ReceiveFrame | ReceiveGrant => (LAP - 1, &[FRAMED]),
            Reply => (LAP - 1, &[]),
            Close | CloseListener => (0, &[SHORT; 2]),
            _ => (0, &[]),
        }
    }

    /// Length of the messages that were exchanged before.
    pub(crate) fn len_before(self) -> usize {
        match self {
            SendFrame | Publish | ReceiveFrame | ReceivePublished | TakeTurn | CallFrame => FRAMED,
            _ => SHORT,
        }
    }

    /// Whether somebody sleeps until the other does something: then the survivor acts when the victim waits.
    pub(crate) fn sleeps(self) -> bool {
        matches!(self, CallAsleep | Sleep | Block)
    }

    /// Whether a survivor that polls in between would have the victim do something else.
    pub(crate) fn needs_rest(self) -> bool {
        self.sleeps() || matches!(self, Queue | DropOldest | PublishQueued)
    }

    /// Whether who is killed later has come as far at least: not so when that depends on the control thread of a listener, on how
    /// often it is looked for room until there is some, or on whether the third party sleeps and is to be woken first.
    pub(crate) fn is_steady(self) -> bool {
        !self.listens() && !matches!(self, Block | Publish | PublishQueued)
    }

    /// Whether messages wait in the victim's queue.
    pub(crate) fn queues(self) -> bool {
        matches!(self, Queue | DropOldest | PublishQueued | Unqueue)
    }

    /// Whether a worker's thread answers a call.
    pub(crate) fn works(self) -> bool {
        matches!(self, HandOver | Answer)
    }

    /// Whether the victim spins until the survivor has polled.
    pub(crate) fn spins(self) -> bool {
        matches!(self, Call | CallFrame)
    }

    /// Whether the victim listens and the survivor connects.
    pub(crate) fn listens(self) -> bool {
        matches!(self, Accept | Adopt | CloseListener)
    }

    pub(crate) fn closes(self) -> bool {
        matches!(self, Close | CloseListener)
    }
}

/// Messages that wait in a queue before the operation, and as many as there is room for.
pub(crate) const QUEUED: u64 = 3;
pub(crate) const QUEUE: usize = MAX_PARTS;

/// The rings are so deep, and a lap of one that drains has so many messages of one slot.
pub(crate) const DEPTH: usize = 16;
const LAP: u64 = 16;

pub(crate) const SHORT: usize = 56;
pub(crate) const LONG: usize = MAX_INLINE;
/// Of a message that goes in a frame.
pub(crate) const FRAMED: usize = MAX_INLINE + 200;
/// What is told of a path's frame.
pub(crate) const TICKET: u64 = 7;
/// What a worker is asked, and what is queued so that it is dropped.
pub(crate) const ASKED: u64 = 1 << 20;
pub(crate) const SCRAP: u64 = 1 << 21;

/// Words of the ledger. The victim writes how far it is; messages that it is about to send, and has sent; messages that it
/// has handled, and how many of them were not what was sent.
pub(crate) const STAGE: usize = 0;
pub(crate) const ATTEMPTED: usize = 1;
pub(crate) const PUBLISHED: usize = 2;
pub(crate) const HANDLED: usize = 3;
pub(crate) const WRONG: usize = 4;
/// The survivor writes how many it has handled, that all is ready for the operation, and how many it has sent when it
/// sends no more, plus one.
pub(crate) const DELIVERED: usize = 5;
pub(crate) const PREPARED: usize = 6;
pub(crate) const TOLD: usize = 7;

/// Stages.
pub(crate) const DONE: u64 = 1;
pub(crate) const VERIFIED: u64 = 2;

/// Handler indices, the same on both sides.
pub(crate) const NUMBERED: u16 = 1;
pub(crate) const ASK: u16 = 2;
pub(crate) const ECHO: u16 = 3;
pub(crate) const ON_PATH: u16 = 4;
pub(crate) const TURN: u16 = 5;
pub(crate) const LATER: u16 = 6;

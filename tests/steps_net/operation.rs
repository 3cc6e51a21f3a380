//! What is stepped through, and what the victim and the survivor agree on.

/// What the victim does between its two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Send,
    /// A message that lies in a frame on its way to the device.
    SendFramed,
    Batch,
    /// Messages that wait for each other and share a packet.
    Pack,
    Receive,
    ReceiveFramed,
    /// A handler that replies.
    Reply,
    Call,
    /// To a survivor that acts when the victim waits in the kernel.
    CallAsleep,
    Open,
    /// The polls of a listener until it has a new channel.
    Accept,
    Close,
}

use Operation::*;

impl Operation {
    pub(crate) const ALL: [Operation; 12] = [
        Send,
        SendFramed,
        Batch,
        Pack,
        Receive,
        ReceiveFramed,
        Reply,
        Call,
        CallAsleep,
        Open,
        Accept,
        Close,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Send => "send",
            SendFramed => "send, in a frame",
            Batch => "batch of 10",
            Pack => "packet of 5",
            Receive => "receive",
            ReceiveFramed => "receive, in a frame",
            Reply => "reply from a handler",
            Call => "call, spinning",
            CallAsleep => "call, sleeping",
            Open => "open",
            Accept => "accept",
            Close => "close",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Operation> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// The length of the messages that were exchanged before: memory for frames is there when there has been one.
    pub(crate) fn len_before(self) -> usize {
        match self {
            SendFramed | ReceiveFramed => FRAMED,
            _ => SHORT,
        }
    }

    /// The length of the message that waits for the victim.
    pub(crate) fn awaits(self) -> Option<usize> {
        match self {
            Receive => Some(SHORT),
            ReceiveFramed => Some(FRAMED),
            _ => None,
        }
    }

    /// Whether the victim waits in the kernel until the survivor acts.
    pub(crate) fn sleeps(self) -> bool {
        matches!(self, CallAsleep | Open | Accept)
    }

    /// Whether the victim spins until the survivor has polled.
    pub(crate) fn spins(self) -> bool {
        self == Call
    }

    /// Whether the points of it are kernel calls, not instructions.
    pub(crate) fn is_walked_by_calls(self) -> bool {
        matches!(self, Open | Accept)
    }
}

/// The rings are so deep.
pub(crate) const DEPTH: usize = 16;
/// Messages that the survivor has handled before, and the victim.
pub(crate) const BEFORE: u64 = 3;
pub(crate) const TOLD_BEFORE: u64 = 2;

pub(crate) const SHORT: usize = 56;
pub(crate) const FRAMED: usize = 1400;

/// Words of the ledger. The victim writes how far it is; messages that it is about to send, and has sent; messages that it has handled, and
/// the number of one that was not what was sent.
pub(crate) const STAGE: usize = 0;
pub(crate) const ATTEMPTED: usize = 1;
pub(crate) const PUBLISHED: usize = 2;
pub(crate) const HANDLED: usize = 3;
pub(crate) const WRONG: usize = 4;
/// And packets that it has sent when it sends no more, plus one.
pub(crate) const PACKETS: usize = 5;
/// The survivor writes how many it has handled, that all is ready for the operation, and when it sends no more how many messages and how many
/// packets it has sent, plus one each.
pub(crate) const DELIVERED: usize = 8;
pub(crate) const PREPARED: usize = 9;
pub(crate) const TOLD: usize = 10;
pub(crate) const TOLD_PACKETS: usize = 11;

/// Stages.
pub(crate) const DONE: u64 = 1;
pub(crate) const VERIFIED: u64 = 2;

/// Handler indices, the same on both sides.
pub(crate) const NUMBERED: u16 = 1;
pub(crate) const ASK: u16 = 2;
pub(crate) const ECHO: u16 = 3;

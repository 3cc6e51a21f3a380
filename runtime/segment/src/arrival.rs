//! What one look at the receive ring found.

use crate::PeerFault;

/// What is at the head of the receive ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// Nothing new.
    Empty,
    /// A message for the handler with this index; take it with [`Port::incoming`](crate::Port::incoming), then
    /// [`consume`](crate::Port::consume) it.
    Message {
        /// The handler's index as the peer gave it: any value.
        handler: u16,
    },
    /// Several messages for handlers; take them with [`Port::unpack`](crate::Port::unpack), then
    /// [`consume`](crate::Port::consume) the batch.
    Batch,
    /// The answer to a call of ours; its bytes are taken the same way.
    Reply {
        /// The number that [`Port::next_call`](crate::Port::next_call) gave the call.
        call: u16,
        /// Whether a handler answered.
        answer: Answer,
    },
    /// The peer broke the ring's rules: close the channel. It stays so.
    Fault(PeerFault),
}

/// How a call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// By its handler.
    Reply,
    /// No handler is registered for the index.
    NoHandler,
    /// The handler returned without a reply.
    NoReply,
}

impl Answer {
    pub(crate) fn kind(self) -> crate::Kind {
        match self {
            Answer::Reply => crate::Kind::Reply,
            Answer::NoHandler => crate::Kind::NoHandler,
            Answer::NoReply => crate::Kind::NoReply,
        }
    }
}

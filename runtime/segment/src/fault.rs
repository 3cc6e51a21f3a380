//! What a peer did wrong. A fault closes its channel and no other; it is never a panic.

/// A value in the peer's segment that no honest peer would have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// A message header names a length above [`Layout::max_inline`](crate::Layout::max_inline), or one that does not fit its slots.
    #[error("a message header alleges {len} bytes, which is no length for it")]
    Length {
        /// The alleged length in bytes.
        len: usize,
    },
    /// A message header has a kind or flags that this version does not know.
    #[error("a message header alleges the unknown kind {kind:#04x}")]
    Kind {
        /// The kind and flag bits as found.
        kind: u8,
    },
    /// A jump leads outside the ring, or a message runs over its end.
    #[error("the ring alleges to go on at slot {slot}, outside its {slots} slots")]
    Slot {
        /// The alleged slot.
        slot: usize,
        /// How many slots a message may start in.
        slots: usize,
    },
    /// A batch does not hold whole messages.
    #[error("a batch contradicts itself at byte {at}")]
    Batch {
        /// Where in the batch.
        at: usize,
    },
    /// The peer gives back credit for slots that were never sent to it.
    #[error("the peer alleges to have consumed {alleged} slots, but only {sent} were sent")]
    CreditAhead {
        /// The alleged count.
        alleged: u64,
        /// What was sent in truth.
        sent: u64,
    },
    /// The peer takes credit back that it gave before.
    #[error("the peer's credit cursor went back from {before} to {alleged}")]
    CreditBackwards {
        /// The value seen earlier.
        before: u64,
        /// The value seen now.
        alleged: u64,
    },
    /// More calls are unanswered than a channel allows, so there is no room for the reply.
    #[error("the peer has more than {} unanswered calls", crate::MAX_CALLS)]
    TooManyCalls,
    /// A reply to a call that was never made, or was answered before.
    #[error("a reply names call {call}, which is not outstanding")]
    UnknownCall {
        /// The call number in the reply.
        call: u16,
    },
    /// A message names a frame outside the memory that the peer has passed.
    #[error("a message alleges to be in frame {slot} of memory {segment}, or goes beyond it")]
    Frame {
        /// The alleged memory.
        segment: u16,
        /// The alleged frame.
        slot: u16,
    },
    /// The peer gives back a frame that was not lent to it.
    #[error("the peer gives back frame {slot} of memory {segment}, which it does not have")]
    Return {
        /// The alleged memory.
        segment: u16,
        /// The alleged frame.
        slot: u16,
    },
    /// The peer has passed memory for frames that this process has no room for: no descriptor, no memory. Not its fault.
    #[error("no descriptor or memory is left here for the frames that the peer has passed")]
    Exhausted,
    /// The control connection was closed, but the peer neither closed the channel nor ended.
    #[error("the peer hung up without closing the channel")]
    HungUp,
    /// Something came over the control connection that does not belong there.
    #[error("the peer sent something unexpected over the control socket")]
    Control,
}

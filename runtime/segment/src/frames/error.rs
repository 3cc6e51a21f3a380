//! Why there is no frame, or why it is not lent.

use crate::TrySendError;

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than any message.
    #[error("a frame of {len} bytes is too large; the most is {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The longest length in bytes.
        max: usize,
    },
    /// Never, with this limit.
    #[error(
        "a frame of {len} bytes does not fit into the pool's limit of {limit} bytes; raise it (Builder::frame_limit)"
    )]
    Limit {
        /// Its length in bytes.
        len: usize,
        /// The pool's limit in bytes.
        limit: usize,
    },
    /// All frames that are large enough are in use, and the pool may not grow: poll until some come back, then try again.
    #[error("all frames of {len} bytes or more are in use; poll until some come back")]
    InUse {
        /// The length asked for in bytes.
        len: usize,
    },
    /// As many frames are lent to the peer as a channel may lend: poll until some come back, then try again.
    #[error(
        "{} frames are lent to the peer already; poll until some come back",
        crate::MAX_LOANS
    )]
    Lent,
    /// The peer has as many bytes of shared frames as it may have: poll until some come back, then try again.
    #[error(
        "the peer has shared frames up to its quota of {quota} bytes; poll until some come back"
    )]
    QuotaLent {
        /// The quota in bytes.
        quota: usize,
    },
    /// Never, with this quota.
    #[error(
        "{bytes} bytes of shared frames are above the channel's quota of {quota} bytes; raise it (Builder::shared_quota)"
    )]
    Quota {
        /// How many bytes of memory the frames take.
        bytes: usize,
        /// The quota in bytes.
        quota: usize,
    },
    /// More parts than a message may have, or none.
    #[error("a message of {parts} frames; 1 to {} are possible", crate::MAX_PARTS)]
    Parts {
        /// How many were given.
        parts: usize,
    },
    /// There is not as much in front of the frame, or behind it.
    #[error("no room for {wanted} bytes in the frame, there are {room}")]
    Room {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes that there are.
        room: usize,
    },
    /// The frame lies in memory that is another channel's.
    #[error("the frame belongs to another channel: take it from this one, or a shared one")]
    Foreign,
    /// The peer has as much memory as may be passed to it: use fewer frames of different sizes, or fewer pools.
    #[error(
        "the peer has been passed all that a channel may pass: {} pieces of memory, {} bytes",
        crate::MAX_SEGMENTS,
        crate::MAX_GRANTED
    )]
    Granted,
    /// The peer has hung up, so that no memory can be passed to it any more.
    #[error("the peer has hung up")]
    HungUp,
    /// This channel carries no frames.
    #[error("this channel carries no frames")]
    None,
    /// The system has no memory or descriptor left, or the peer does not take it.
    #[error("cannot {call} memory of {bytes} bytes for frames (errno {errno})")]
    System {
        /// What failed.
        call: &'static str,
        /// How many bytes.
        bytes: usize,
        /// The error number.
        errno: i32,
    },
}

impl From<FrameError> for TrySendError {
    fn from(error: FrameError) -> Self {
        TrySendError::Frame(error)
    }
}

//! What can go wrong: one small enum a verb, each value saying what to do next.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;
use tightbeam_segment::{DeviceError, FrameError, LayoutError, Mismatch, PeerFault};
use tightbeam_sys::Errno;
use tightbeam_sys::memory::{MemoryError, PeerMemoryError};

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No colon.
    #[error("`{text}` is no address: write {known}")]
    NoScheme {
        /// What was given.
        text: String,
        /// How addresses look.
        known: String,
    },
    /// No scheme that this build knows.
    #[error("unknown scheme `{scheme}`: write {known}")]
    UnknownScheme {
        /// What was given.
        scheme: String,
        /// What is known.
        known: String,
    },
    /// Behind the scheme of a device stands something that it cannot read.
    #[error("{why}")]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong with it, and how one looks.
        why: String,
    },
    /// Nothing behind the colon.
    #[error("the address has no path: write shm:PATH, for example shm:/tmp/echo.sock")]
    NoPath,
    /// Longer than a Unix socket's path can be.
    #[error("the path {} has {len} bytes; a Unix socket's path has {max} at most", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A path cannot hold a NUL.
    #[error("the path holds a NUL byte")]
    NulInPath,
}

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address is wrong.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The ring depth is wrong.
    #[error(transparent)]
    Depth(#[from] LayoutError),
    /// There is something at the path that is no socket; it is left alone.
    #[error("{} exists and is no socket; choose another path, or remove it", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there already.
    #[error("{} has a live listener; choose another path, or stop that process", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens there.
    #[error("nobody listens at {}; start the server first", path.display())]
    NobodyListens {
        /// The path.
        path: PathBuf,
    },
    /// The path, or its directory, may not be used.
    #[error("no permission for {}: {errno}", path.display())]
    NoPermission {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The directory does not exist.
    #[error("the directory of {} does not exist", path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// A listener of another program.
    #[error("the listener at {} does not speak Tightbeam", path.display())]
    NotTightbeam {
        /// The path.
        path: PathBuf,
    },
    /// The two sides do not fit; the text names both.
    #[error("the two sides do not fit: {0}")]
    Mismatch(#[from] Mismatch),
    /// The listener's policy does not admit us.
    #[error(
        "the listener does not admit user {uid}; its policy decides (by default only its own user)"
    )]
    NotAdmitted {
        /// Our user id.
        uid: u32,
    },
    /// We do not trust who listens there.
    #[error("the listener at {} runs as user {uid}, whom our policy does not admit", path.display())]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// The listener's user id.
        uid: u32,
    },
    /// The listener could not make its half of the channel.
    #[error("the listener has no memory or descriptors left for another channel")]
    ListenerExhausted,
    /// The listener has as many channels as it may have.
    #[error(
        "the listener has as many channels as it allows; close some, or raise `Builder::max_channels` there"
    )]
    ListenerFull,
    /// The other side did not answer in time.
    #[error("{} did not answer the opening within {after:?}", path.display())]
    TimedOut {
        /// The path.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// The other side hung up during the opening.
    #[error("the other side hung up during the opening")]
    HungUp,
    /// The other side broke the rules of the opening.
    #[error("the other side broke the rules of the opening: {0}")]
    Opening(&'static str),
    /// The device cannot be opened, or has no way to the other host.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The listener's host gives no channel, and says why.
    #[error("{host} gives no channel: {why}")]
    Refused {
        /// The listener's address.
        host: SocketAddrV4,
        /// Why, as it says.
        why: String,
    },
    /// The device has 65,536 channels already.
    #[error("the device has as many channels as it can name, 65,536; close some")]
    TooManyChannels,
    /// Packets to the other host are shorter than a channel needs.
    #[error(
        "packets of {max_packet} bytes are too short for a channel, which needs {needed}; raise the MTU of the interfaces on the way"
    )]
    PacketsTooShort {
        /// What a packet carries at most, in bytes.
        max_packet: usize,
        /// What it has to.
        needed: usize,
    },
    /// Our segment could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The peer's segment is not acceptable.
    #[error(transparent)]
    PeerMemory(#[from] PeerMemoryError),
    /// A system call failed.
    #[error("cannot {call}: {errno}")]
    System {
        /// What was attempted.
        call: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
}

/// Why nothing was sent. The payload is still the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The ring is full, or all frames are in use: poll, then try again.
    #[error("the send ring is full, or all frames are in use; poll, then try again")]
    Full,
    /// The ring was full until the deadline.
    #[error("there was no room in the send ring, or no frame, until the deadline")]
    DeadlineExceeded,
    /// Longer than a channel carries.
    #[error("a message of {len} bytes is too large; the most is {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The longest length in bytes.
        max: usize,
    },
    /// There is no frame for it, and trying again will not help.
    #[error(transparent)]
    Frame(FrameError),
    /// The endpoint has no such channel, or none at all: it has ended. See the endpoint's events for why.
    #[error("the channel has ended; the endpoint's events say why")]
    NoChannel,
    /// The peer broke the rules.
    #[error("the peer is at fault: {0}")]
    Fault(PeerFault),
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request was not sent, so it was certainly not executed.
    #[error("the call was not sent: {0}")]
    NotSent(SendError),
    /// The peer has no handler for this index.
    #[error("the peer has no handler {handler}")]
    NoHandler {
        /// The index called.
        handler: u16,
    },
    /// The peer's handler returned without a reply, or found the message malformed.
    #[error("handler {handler} gave no reply")]
    NoReply {
        /// The index called.
        handler: u16,
    },
    /// No reply until the deadline. The call may have been executed, or may still be; a late reply is dropped and counted.
    #[error("no reply until the deadline; the call may have been executed")]
    DeadlineExceeded,
    /// The channel ended before a reply came. The call may have been executed.
    #[error("the channel ended before the reply; the call may have been executed")]
    Ended,
    /// The endpoint cannot wait on a descriptor; a call as a future has to. The call may have been executed.
    #[error("cannot wait for the reply: {0}; the call may have been executed")]
    Arm(crate::ArmError),
    /// The reply is not of the expected type.
    #[error("the reply has {len} bytes, which is not the size of its type")]
    Malformed {
        /// Length of the reply in bytes.
        len: usize,
    },
}

/// Why a loop could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The endpoint has neither a channel nor a listener, and never had.
    #[error("the endpoint has no channel and no listener; nothing can ever arrive")]
    NothingToDo,
}

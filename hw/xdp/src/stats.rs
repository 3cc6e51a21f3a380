//! What a device counts itself; the kernel counts more.

/// Counts since the device was opened.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Packets put into the send ring.
    pub(crate) queued: u64,
    /// Packets handed over.
    pub(crate) received: u64,
    /// System calls that send.
    pub(crate) send_calls: u64,
    /// System calls that look for packets.
    pub(crate) receive_calls: u64,
    /// Times the kernel could not send all, and was asked again; nothing is lost by it.
    pub(crate) busy: u64,
    /// Packets that the kernel has dropped instead of sending: the link is down at the other end, or its queue full.
    pub(crate) refused: u64,
    /// Packets that were in the send ring when the interface went.
    pub(crate) down: u64,
    /// Packets that the program let through and that are none we can read.
    pub(crate) malformed: u64,
    /// Packets to our port, but to another address.
    pub(crate) misaddressed: u64,
}

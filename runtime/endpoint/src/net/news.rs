//! What comes of a look at a line.

use crate::control::Seat;
use std::net::SocketAddrV4;
use tightbeam_segment::Port;

/// What came of a look at a line, of the channel in a slot.
pub(crate) enum News {
    /// Something came over this channel.
    Arrived(u16),
    /// The other side has closed it.
    Closed(u16),
    /// The other side does not know it, or not any more.
    Unknown(u16),
    /// Nothing has come for long, and somebody else wants its place.
    Silent(u16),
    /// A client was admitted.
    Opened(Box<Opened>),
}

impl News {
    /// Whether it is about the channel that is in this slot.
    pub(super) fn is_of(&self, slot: u16) -> bool {
        match self {
            News::Arrived(of) | News::Closed(of) | News::Unknown(of) | News::Silent(of) => {
                *of == slot
            }
            News::Opened(opened) => opened.slot == slot,
        }
    }
}

/// A channel that was opened over a line.
pub(crate) struct Opened {
    /// The endpoint's side of it.
    pub(crate) port: Port,
    pub(crate) slot: u16,
    /// The other host, as its packets say.
    pub(crate) host: SocketAddrV4,
    /// Of the channels that others may open, this is one.
    pub(crate) seat: Option<Seat>,
}

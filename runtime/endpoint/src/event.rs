//! What happened to the channels of an endpoint.

use crate::channel::{ChannelId, PeerIdentity};
use tightbeam_segment::{Counters, PeerFault};

/// Events that an endpoint keeps until they are taken.
pub const MAX_EVENTS: usize = 1024;

/// A change in an endpoint's channels, in the order in which they happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A client was admitted.
    Opened {
        /// Its channel.
        channel: ChannelId,
        /// Who it is.
        peer: PeerIdentity,
    },
    /// The peer closed the channel. Everything that it had sent has been handled.
    Closed {
        /// The channel, which is no more.
        channel: ChannelId,
        /// What it counted.
        counters: Counters,
    },
    /// The peer's process ended without closing the channel. Everything that it had sent has been handled.
    Dead {
        /// The channel, which is no more.
        channel: ChannelId,
        /// What it counted.
        counters: Counters,
    },
    /// The peer broke the rules. Nothing of it is believed from then on.
    Faulted {
        /// The channel, which is no more.
        channel: ChannelId,
        /// What the peer did.
        fault: PeerFault,
        /// What the channel counted.
        counters: Counters,
    },
}

impl Event {
    /// The channel that it is about.
    pub fn channel(&self) -> ChannelId {
        match self {
            Event::Opened { channel, .. }
            | Event::Closed { channel, .. }
            | Event::Dead { channel, .. }
            | Event::Faulted { channel, .. } => *channel,
        }
    }
}

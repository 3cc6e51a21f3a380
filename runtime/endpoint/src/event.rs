//! What happened to the channels of an endpoint.

use crate::channel::{ChannelId, PeerIdentity};
use std::time::Duration;
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
    /// The channel had no room for what was [offered](crate::Endpoint::offer_to): its policy decides what becomes of that, until it
    /// has recovered.
    Degraded {
        /// The channel.
        channel: ChannelId,
    },
    /// A channel that was degraded is not any more: nothing waits, and at most half of its ring is in flight.
    Recovered {
        /// The channel.
        channel: ChannelId,
        /// How long it was degraded.
        after: Duration,
    },
    /// The channel was closed by this side, because it had been degraded for as long as [`Policy::Evict`](crate::Policy::Evict)
    /// allows, or, of a client on another host, because nothing had come from it for [`Builder::idle_limit`](crate::Builder::idle_limit) and
    /// somebody else wanted its place. The peer still receives what was sent before.
    Evicted {
        /// The channel, which is no more.
        channel: ChannelId,
        /// What it counted.
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
            | Event::Faulted { channel, .. }
            | Event::Degraded { channel }
            | Event::Recovered { channel, .. }
            | Event::Evicted { channel, .. } => *channel,
        }
    }
}

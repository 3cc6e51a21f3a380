//! How much there is under way over a channel, to be looked at any time.

use crate::channel::ChannelId;
use crate::queue::Queue;
use crate::{Endpoint, Policy};
use std::time::Duration;
use tightbeam_segment::Counter;

/// How a channel stands, as far as its sender can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// What becomes of a message for which there is no room.
    pub policy: Policy,
    /// Slots of the send ring that the peer has not consumed.
    pub in_flight: usize,
    /// Slots of the send ring.
    pub depth: usize,
    /// Messages in the sender's queue.
    pub queued: usize,
    /// Bytes of them.
    pub queued_bytes: usize,
    /// How long senders have waited for room, or for a frame, since the channel was opened.
    pub blocked: Duration,
    /// Frames of ours that the peer has.
    pub frames_lent: usize,
    /// Frames of the peer that we have, handled or kept.
    pub frames_held: usize,
    /// How long the channel has been degraded, if it is.
    pub degraded: Option<Duration>,
}

impl<S, D> Endpoint<S, D> {
    /// How a channel stands: what is under way, what waits, since when. Takes a line of memory from the peer.
    pub fn load(&self, channel: ChannelId) -> Option<Load> {
        let channel = self.look_up(channel)?;
        let (port, flow) = (&channel.port, &channel.flow);
        port.collect();
        Some(Load {
            policy: flow.policy,
            in_flight: port.slots_in_flight(),
            depth: port.layout().depth(),
            queued: flow.queued(),
            queued_bytes: flow.queue.as_ref().map_or(0, Queue::bytes),
            blocked: Duration::from_nanos(port.counters().get(Counter::BlockedNs)),
            frames_lent: port.lent(),
            frames_held: port.frames_held(),
            degraded: flow.degraded.map(|since| since.elapsed()),
        })
    }
}

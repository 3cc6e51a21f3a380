//! Fan-out: one message to many receivers, each by its channel's policy.
//!
//! ```text
//!   frame, complete ---> ring of channel 1        lent
//!                   ---> ring of channel 2        lent
//!                   ---> queue of channel 3       kept, as this one is slow
//!                        channel 4: dropped       counted there, no other is concerned
//! ```
//!
//! A [shared frame](Endpoint::shared_frame) is written once and lent to all of them; it is free when the last has given it back. Whom
//! a slow receiver costs something is a matter of policy: with [`Policy::Block`] the publisher, and with it everybody; with any other
//! itself. What it may keep of the memory is its [quota](crate::Builder::shared_quota) and its [queue](crate::Builder::queue); a
//! receiver that dies gives everything back. So the publisher does not run out of frames if
//!
//! `frame_limit >= channels * (shared_quota + what a queue may hold) + what it is writing itself`,
//!
//! each frame counted with all the memory that it takes.

use crate::channel::ChannelId;
use crate::{Endpoint, Offered, Policy, SendError};
use tightbeam_segment::Frozen;

/// To how many receivers a message got. All of them together are those that it was published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Published {
    /// It is in their ring.
    pub sent: usize,
    /// It waits in their queue.
    pub queued: usize,
    /// There was no room, and it was dropped for them.
    pub dropped: usize,
    /// Nothing was done for them: there was no room and their policy gives it back, or their channel has ended, or they cannot get this
    /// message at all. [`Endpoint::offer_to`] and [`Endpoint::offer_frame_to`] say which of these it is.
    pub refused: usize,
}

impl Published {
    fn note(&mut self, offered: Result<Offered, SendError>) {
        let count = match offered {
            Ok(Offered::Sent) => &mut self.sent,
            Ok(Offered::Queued) => &mut self.queued,
            Ok(Offered::Dropped) => &mut self.dropped,
            Err(_) => &mut self.refused,
        };
        *count += 1;
    }
}

impl<S, D> Endpoint<S, D> {
    /// Offers a complete frame to each of these channels, without copying it; the [`Policy`] of each decides what becomes of it if
    /// there is no room. It is free again when it was dropped here, and all receivers have given it back.
    ///
    /// A channel whose policy is to [block](Policy::Block) is waited for when all others have been served.
    ///
    /// ```no_run
    /// # use tightbeam::{Endpoint, Policy};
    /// # fn publishes(publisher: &mut Endpoint, subscribers: &[tightbeam::ChannelId]) -> Result<(), tightbeam::SendError> {
    /// const QUOTES: u16 = 1;
    /// publisher.set_policy(subscribers[0], Policy::DropOldest);
    /// let mut frame = publisher.shared_frame(4096)?;
    /// frame.fill(7);
    /// let published = publisher.publish(subscribers, QUOTES, &frame.freeze());
    /// assert_eq!(published.refused, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish(&mut self, channels: &[ChannelId], handler: u16, frame: &Frozen) -> Published {
        let mut published = Published::default();
        for blocking in [false, true] {
            for channel in channels {
                if self.blocks(*channel) == blocking {
                    published.note(self.offer_clone(*channel, handler, frame));
                }
            }
        }
        published
    }

    /// As [`publish`](Self::publish), to all channels that there are.
    pub fn publish_to_all(&mut self, handler: u16, frame: &Frozen) -> Published {
        let mut published = Published::default();
        for blocking in [false, true] {
            for slot in 0..self.channels.len() {
                let id = self.channels[slot].as_ref().map(|channel| channel.id);
                if let Some(id) = id
                    && self.blocks(id) == blocking
                {
                    published.note(self.offer_clone(id, handler, frame));
                }
            }
        }
        published
    }

    fn blocks(&self, channel: ChannelId) -> bool {
        let found = self.look_up(channel);
        found.is_some_and(|channel| matches!(channel.flow.policy, Policy::Block(_)))
    }

    fn offer_clone(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frame: &Frozen,
    ) -> Result<Offered, SendError> {
        let offered = self.offer_frame_to(channel, handler, frame.clone());
        offered.map_err(|refused| refused.error)
    }
}

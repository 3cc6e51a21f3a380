//! Policies: what becomes of a message for which there is no room, chosen for each channel.
//!
//! ```text
//!   offer ---- room ----------------------------------------------> ring          Offered::Sent
//!     |
//!     +------ no room:  Block: wait    Fail: an error    DropNewest, Evict: drop it
//!                       DropOldest: -> queue (drops its oldest) -- poll --> ring   Offered::Queued
//! ```
//!
//! [`send`](Endpoint::send) and [`try_send`](Endpoint::try_send) decide at each call what to do without room; they know no policy.
//! To [offer](Endpoint::offer_to) a message leaves that to the channel. Each message that a policy has taken is sent, is in the queue, or
//! was dropped and counted by its cause, exactly once (I8):
//!
//! `offered = sent + queued + drop_newest + drop_oldest + drop_evict + drop_queued`
//!
//! for a channel over which nothing else is sent. A channel for which there was no room is *degraded* until at most half of its ring is
//! in flight ([`Event::Degraded`], [`Event::Recovered`]).

use crate::channel::{Channel, ChannelId};
use crate::frames::Frames;
use crate::queue::{Bounds, Queue, Waiting};
use crate::send::{is_for_want_of_room, not_sent, wake_if_asleep};
use crate::{Endpoint, Event, NotSent, SendError};
use std::time::{Duration, Instant};
use tightbeam_segment::{Counter, Frame, FrameError, MAX_INLINE, Outgoing, TrySendError};

/// What becomes of a message that is [offered](Endpoint::offer_to) to a channel which has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It waits for room at most so long, and then is given back with [`SendError::DeadlineExceeded`]. Meanwhile what arrives is handled.
    Block(Duration),
    /// It is given back at once, with [`SendError::Full`].
    #[default]
    Fail,
    /// It is dropped: who is slow gets the oldest.
    DropNewest,
    /// It waits in a queue on the sender's side ([`Builder::queue`](crate::Builder::queue)), of which the oldest are dropped if it is full: who is
    /// slow gets the newest, behind what lies in the ring already (so choose a small [depth](crate::Builder::depth)). It is sent by
    /// [`poll`](Endpoint::poll), and whatever polls, as soon as there is room; what is sent meanwhile without being offered
    /// overtakes it.
    DropOldest,
    /// It is dropped; and if the channel has been degraded for so long, that is closed ([`Event::Evicted`]). With a duration of zero a
    /// receiver gets everything, or is evicted at the first message for which there is no room. Looked at by offers and polls.
    Evict(Duration),
}

/// What became of a message that was offered, and that its channel's [`Policy`] has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is in the ring.
    Sent,
    /// It waits in the channel's queue.
    Queued,
    /// It was dropped, and counted.
    Dropped,
}

/// What each new channel of an endpoint gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) policy: Policy,
    pub(crate) queue: Bounds,
    /// Bytes of shared frames that the peer may have at a time.
    pub(crate) quota: Option<usize>,
}

/// What a channel knows of its policy.
#[derive(Default)]
pub(crate) struct Flow {
    pub(crate) policy: Policy,
    /// While the policy is one with a queue.
    pub(crate) queue: Option<Queue>,
    /// Since when there is more than the peer takes.
    pub(crate) degraded: Option<Instant>,
    /// It is among those that the endpoint looks after in each poll.
    listed: bool,
    /// What of the peer's credit had been taken when there was no room, if nothing was sent since.
    stuck_at: Option<u64>,
    /// It has recovered when the peer has no more frames than this.
    most_lent: usize,
    /// What of the peer's credit had been taken when the queue's oldest found no room.
    no_room_at: Option<u64>,
    /// Memory of its frames could not be passed to the peer then: that this has room again is said nowhere, so it is tried in each poll.
    passes_memory: bool,
}

impl Flow {
    pub(crate) fn new(terms: &Terms) -> Flow {
        let mut flow = Flow::default();
        flow.follow(terms.policy, terms.queue);
        flow
    }

    fn follow(&mut self, policy: Policy, bounds: Bounds) {
        self.policy = policy;
        match policy {
            Policy::DropOldest => drop(self.queue.get_or_insert_with(|| Queue::new(bounds))),
            _ => self.queue = None,
        }
    }

    /// Messages that wait.
    pub(crate) fn queued(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::len)
    }

    /// Why a message of so many bytes can never wait, if it cannot.
    fn refuses(&self, len: usize) -> Option<SendError> {
        let max = self.queue.as_ref()?.bounds().bytes;
        (len > max).then_some(SendError::TooLarge { len, max })
    }
}

/// A message that is offered.
trait Offer {
    fn len(&self) -> usize;

    /// Sends it if there is room.
    fn send(&mut self, channel: &Channel) -> Result<(), TrySendError>;

    /// Puts it into the queue; what became of it, and how many were dropped for that, itself among them.
    fn wait(&mut self, channel: &mut Channel) -> Result<(Offered, u64), TrySendError>;
}

struct Bytes<'a> {
    handler: u16,
    payload: &'a [u8],
}

impl Offer for Bytes<'_> {
    fn len(&self) -> usize {
        self.payload.len()
    }

    fn send(&mut self, channel: &Channel) -> Result<(), TrySendError> {
        let out = Outgoing::message(self.handler);
        channel.port.try_send(out, self.payload)
    }

    fn wait(&mut self, channel: &mut Channel) -> Result<(Offered, u64), TrySendError> {
        // What can never be sent is refused now: in the queue it would keep back all that comes behind it.
        let (len, max) = (self.payload.len(), channel.port.max_message());
        if len > max {
            return Err(TrySendError::TooLarge { len, max });
        }
        let Some(queue) = &mut channel.flow.queue else {
            return Ok((Offered::Dropped, 1));
        };
        if len <= MAX_INLINE {
            let dropped = queue.push_bytes(self.handler, self.payload);
            return Ok((Offered::Queued, dropped));
        }
        // Copied into a frame now; the oldest make room for it if they have frames.
        let mut dropped = 0;
        let mut frame = loop {
            match channel.port.frame(self.payload.len()) {
                Ok(frame) => break frame,
                Err(FrameError::InUse { .. }) if !queue.is_empty() => queue.pop(),
                // All are with the peer: nothing is older than this one that could be dropped.
                Err(FrameError::InUse { .. }) => return Ok((Offered::Dropped, dropped + 1)),
                Err(error) => return Err(error.into()),
            }
            dropped += 1;
        };
        frame.copy_from_slice(self.payload);
        let frame = frame.freeze();
        dropped += queue.push_frames(self.handler, (1, self.payload.len()), |push| push(frame));
        Ok((Offered::Queued, dropped))
    }
}

/// Frames that are offered, until they have been taken.
struct Moved<F> {
    handler: u16,
    frames: Option<F>,
}

impl<F: Frames> Moved<F> {
    fn list(&self) -> &[Frame] {
        self.frames.as_ref().map_or(&[], |frames| frames.list())
    }
}

impl<F: Frames> Offer for Moved<F> {
    fn len(&self) -> usize {
        self.list().iter().map(|frame| frame.len()).sum()
    }

    fn send(&mut self, channel: &Channel) -> Result<(), TrySendError> {
        let out = Outgoing::message(self.handler);
        channel.port.try_lend(out, self.list())
    }

    fn wait(&mut self, channel: &mut Channel) -> Result<(Offered, u64), TrySendError> {
        // What can never be sent is refused now, not when it is too late to give it back.
        channel.port.check_frames(self.list())?;
        let size = (self.list().len(), self.len());
        let (Some(queue), Some(frames)) = (&mut channel.flow.queue, self.frames.take()) else {
            return Ok((Offered::Dropped, 1));
        };
        let dropped = queue.push_frames(self.handler, size, |push| frames.complete(push));
        Ok((Offered::Queued, dropped))
    }
}

impl Channel {
    /// Sends what waits, oldest first, as far as there is room; at most so many messages.
    fn send_queued(&mut self, most: usize) {
        if !self.has_room_for_queued() && !self.flow.passes_memory {
            return;
        }
        self.flow.no_room_at = None;
        self.flow.passes_memory = false;
        let Some(queue) = &mut self.flow.queue else {
            return;
        };
        let mut sent = false;
        for _ in 0..most {
            let Some((handler, waiting)) = queue.front() else {
                break;
            };
            let out = Outgoing::message(handler);
            let attempt = match waiting {
                Waiting::Bytes(bytes) => self.port.try_send(out, bytes),
                Waiting::Frames(frames) => self.port.try_lend(out, frames),
            };
            match attempt {
                Ok(()) => {
                    queue.pop();
                    sent = true;
                }
                Err(error) if is_for_want_of_room(error) => {
                    self.flow.no_room_at = Some(self.port.taken());
                    self.flow.passes_memory =
                        matches!(error, TrySendError::Frame(FrameError::InUse { .. }));
                    break;
                }
                // The channel is over, or this message can never be sent (its memory cannot be passed any more).
                Err(TrySendError::Frame(_)) => {
                    queue.pop();
                    self.port.count(Counter::DropQueued);
                }
                Err(_) => break,
            }
        }
        if sent {
            self.flow.stuck_at = None;
            wake_if_asleep(self);
        }
    }

    /// Whether what waits could be sent now.
    pub(crate) fn has_room_for_queued(&self) -> bool {
        let port = &self.port;
        let has_come = |taken| taken != port.taken() || port.has_credit();
        self.flow.queued() > 0 && self.flow.no_room_at.is_none_or(has_come)
    }

    /// Counts what will not be sent any more.
    pub(crate) fn drop_queued(&mut self) {
        let queued = self.flow.queued() as u64;
        self.port.count_many(Counter::DropQueued, queued);
        self.flow.queue = None;
    }

    /// Sends what waits if there is room, for the last time.
    pub(crate) fn finish_queued(&mut self) {
        self.send_queued(self.flow.queued());
        self.drop_queued();
    }

    /// Whether it has been degraded for as long as its policy allows.
    fn is_to_be_evicted(&self) -> bool {
        match (self.flow.policy, self.flow.degraded) {
            (Policy::Evict(limit), Some(since)) => since.elapsed() >= limit,
            _ => false,
        }
    }

    /// Notes that there was no room; whether that is news.
    fn degrade(&mut self) -> bool {
        let port = &self.port;
        self.flow.stuck_at = Some(port.taken());
        if self.flow.degraded.is_some() {
            return false;
        }
        self.flow.degraded = Some(Instant::now());
        self.flow.most_lent = match port.is_strained() {
            true => usize::MAX,
            // Then there was no memory for frames.
            false => port.lent() / 2,
        };
        true
    }

    /// Whether it has been degraded and is not any more; for how long it was.
    fn recover(&mut self) -> Option<Duration> {
        let since = self.flow.degraded?;
        let is_stuck = |taken| taken == self.port.taken() && !self.port.has_credit();
        let stuck = self.flow.stuck_at.is_some_and(is_stuck);
        self.port.collect();
        let strained = self.port.is_strained() || self.port.lent() > self.flow.most_lent;
        if stuck || strained || self.flow.queued() > 0 {
            return None;
        }
        self.flow.degraded = None;
        Some(since.elapsed())
    }

    /// What a message that found no room meets, unless its policy is to wait.
    fn without_room(&mut self, offer: &mut dyn Offer) -> Result<Offered, TrySendError> {
        let cause = match self.flow.policy {
            Policy::Block(_) | Policy::Fail => return Err(TrySendError::Full),
            Policy::DropNewest => Counter::DropNewest,
            Policy::Evict(_) => Counter::DropEvict,
            Policy::DropOldest => {
                let (offered, dropped) = offer.wait(self)?;
                self.port.count(Counter::Offered);
                self.port.count_many(Counter::DropOldest, dropped);
                if dropped > 0 {
                    // What is the oldest now may find room.
                    self.flow.no_room_at = None;
                }
                // Before the next sleep it is looked whether it does.
                self.rest.disturb();
                return Ok(offered);
            }
        };
        self.port.count(Counter::Offered);
        self.port.count(cause);
        Ok(Offered::Dropped)
    }
}

/// Messages of a queue that are sent in one poll.
const AT_ONCE: usize = 256;

impl<S, D> Endpoint<S, D> {
    /// Decides what becomes of messages for which this channel has no room, from now on; `false` if there is no such channel. At first
    /// it is what [`Builder::policy`](crate::Builder::policy) says.
    ///
    /// What waits in a queue is sent, as far as there is room for it, if the new policy has none; the rest is dropped and counted.
    pub fn set_policy(&mut self, channel: ChannelId, policy: Policy) -> bool {
        let bounds = self.terms.queue;
        let Some(channel) = self.channel(channel) else {
            return false;
        };
        if policy != Policy::DropOldest {
            channel.finish_queued();
        }
        channel.flow.follow(policy, bounds);
        true
    }

    /// Offers a message over the endpoint's first channel. See [`offer_to`](Self::offer_to).
    #[inline]
    pub fn offer(&mut self, handler: u16, payload: &[u8]) -> Result<Offered, SendError> {
        let channel = self.first().ok_or(SendError::NoChannel)?;
        self.offer_to(channel, handler, payload)
    }

    /// Offers a message to a channel, whose [`Policy`] decides what becomes of it if there is no room. As
    /// [`try_send_to`](Self::try_send_to) if there is.
    ///
    /// With an error the policy has not taken it, and nothing of it was sent, queued, or counted as dropped. Under
    /// [`Policy::DropOldest`] a message that is longer than the whole queue is [`SendError::TooLarge`], with room or without.
    #[inline]
    pub fn offer_to(
        &mut self,
        channel: ChannelId,
        handler: u16,
        payload: &[u8],
    ) -> Result<Offered, SendError> {
        self.offer_any(channel, &mut Bytes { handler, payload })
    }

    /// Offers a frame, or several as one message. As [`offer_to`](Self::offer_to), but that the payload is not copied. With an error the
    /// frames come back; dropped ones go back to where they came from.
    ///
    /// To offer one frame to several channels, see [`publish`](Self::publish).
    pub fn offer_frame_to<F: Frames>(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: F,
    ) -> Result<Offered, NotSent<F>> {
        let mut moved = Moved {
            handler,
            frames: Some(frames),
        };
        match (self.offer_any(channel, &mut moved), moved.frames) {
            (Ok(offered), _) => Ok(offered),
            (Err(error), Some(frames)) => Err(NotSent::new(error, frames)),
            // An error comes before they are taken.
            (Err(_), None) => Ok(Offered::Dropped),
        }
    }

    #[inline]
    fn offer_any(&mut self, id: ChannelId, offer: &mut impl Offer) -> Result<Offered, SendError> {
        let channel = self.channel(id).ok_or(SendError::NoChannel)?;
        if let Some(error) = channel.flow.refuses(offer.len()) {
            return Err(error);
        }
        if !channel.flow.listed {
            match offer.send(channel) {
                Ok(()) => {
                    channel.port.count(Counter::Offered);
                    wake_if_asleep(channel);
                    return Ok(Offered::Sent);
                }
                Err(error) if is_for_want_of_room(error) => self.degrade(id),
                Err(error) => return Err(error.into()),
            }
        }
        self.offer_slowly(id, offer)
    }

    /// To a channel that is degraded.
    #[cold]
    #[inline(never)]
    fn offer_slowly(&mut self, id: ChannelId, offer: &mut dyn Offer) -> Result<Offered, SendError> {
        self.relieve(id);
        let channel = self.channel(id).ok_or(SendError::NoChannel)?;
        let policy = channel.flow.policy;
        match try_offer(channel, offer) {
            Err(SendError::Full) => {}
            other => return other,
        }
        self.degrade(id);
        match policy {
            Policy::Block(within) => self.with_room(id, within, |endpoint| {
                let channel = endpoint.channel(id).ok_or(SendError::NoChannel)?;
                try_offer(channel, offer)
            }),
            Policy::Evict(_) => {
                let channel = self.channel(id).ok_or(SendError::NoChannel)?;
                let offered = channel.without_room(offer);
                if channel.is_to_be_evicted() {
                    self.evict(id);
                }
                Ok(offered?)
            }
            _ => {
                let channel = self.channel(id).ok_or(SendError::NoChannel)?;
                Ok(channel.without_room(offer)?)
            }
        }
    }

    /// Notes that there was no room in a channel.
    #[cold]
    fn degrade(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        let is_news = channel.degrade();
        if !std::mem::replace(&mut channel.flow.listed, true) {
            self.strained.push(id);
            self.due.set_strained(true);
        }
        if is_news {
            self.note(Event::Degraded { channel: id });
        }
    }

    /// Looks after the channels that are degraded: sends what waits, closes who is to be evicted, notes who has recovered.
    #[cold]
    pub(crate) fn relieve_all(&mut self) {
        // From behind, because some are taken out.
        for place in (0..self.strained.len()).rev() {
            let id = self.strained[place];
            self.relieve(id);
            if self.channel(id).is_some_and(|it| it.is_to_be_evicted()) {
                self.evict(id);
            }
            match self.channel(id) {
                Some(channel) if channel.flow.degraded.is_some() => continue,
                Some(channel) => channel.flow.listed = false,
                None => {}
            }
            self.strained.swap_remove(place);
        }
        self.due.set_strained(!self.strained.is_empty());
    }

    /// Whether something that waits could be sent now.
    pub(crate) fn has_room_for_queued(&self) -> bool {
        let mut strained = self.strained.iter().filter_map(|id| self.look_up(*id));
        strained.any(Channel::has_room_for_queued)
    }

    fn relieve(&mut self, id: ChannelId) {
        let Some(channel) = self.channel(id) else {
            return;
        };
        channel.send_queued(AT_ONCE);
        if let Some(after) = channel.recover() {
            self.note(Event::Recovered { channel: id, after });
        }
    }

    #[cold]
    pub(crate) fn evict(&mut self, id: ChannelId) {
        if let Some(counters) = self.leave(id) {
            self.note(Event::Evicted {
                channel: id,
                counters,
            });
        }
    }
}

fn try_offer(channel: &mut Channel, offer: &mut dyn Offer) -> Result<Offered, SendError> {
    // Behind what waits already.
    if channel.flow.queued() > 0 {
        return Err(SendError::Full);
    }
    offer
        .send(channel)
        .map_err(|error| not_sent(channel, error))?;
    channel.flow.stuck_at = None;
    channel.port.count(Counter::Offered);
    wake_if_asleep(channel);
    Ok(Offered::Sent)
}

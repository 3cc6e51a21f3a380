//! Sending: at once, or with a deadline and polling meanwhile.

use crate::channel::{Channel, ChannelId};
use crate::wait::Waiting;
use crate::{Endpoint, SendError, TypedMessage};
use std::time::Duration;
use tightbeam_segment::{Batch, Counter, FrameError, Outgoing, Port, TrySendError};
use tightbeam_sys::wake;

/// Wakes the peer if it says that it sleeps, which is returned; costs one load of a shared line while it does not (D7).
#[inline(always)]
pub(crate) fn wake_if_asleep(channel: &Channel) -> bool {
    let asleep = channel.port.peer_asleep();
    if asleep {
        wake_peer(channel);
    }
    asleep
}

#[cold]
#[inline(never)]
fn wake_peer(channel: &Channel) {
    if !channel.port.peer_sleeps_on_connection() {
        return wake_by_word(&channel.port);
    }
    channel.port.count(Counter::Wakes);
    channel.beside.wake();
}

#[cold]
#[inline(never)]
fn wake_by_word(port: &Port) {
    wake::wake_one(port.bump_wake_word());
}

/// The same from a handler: once a drain, which wakes again when it ends. A peer that always says that it sleeps costs two
/// system calls a drain then, not one for each message that it has answered. Who is to be woken over the connection is only
/// woken when the drain ends.
#[inline(always)]
pub(crate) fn wake_from_handler(port: &Port) {
    if port.peer_asleep() && !port.peer_sleeps_on_connection() && port.take_wake() {
        wake_by_word(port);
    }
}

#[inline(always)]
fn try_send(channel: &Channel, handler: u16, payload: &[u8]) -> Result<(), SendError> {
    let out = Outgoing::message(handler);
    if channel
        .beside
        .send_past(&channel.port, out, handler, payload)
    {
        return Ok(());
    }
    let sent = channel.port.try_send(out, payload);
    sent.map_err(|error| not_sent(channel, error))?;
    wake_if_asleep(channel);
    Ok(())
}

/// Notes that there was no room, for who waits on a descriptor until there is.
#[cold]
pub(crate) fn not_sent(channel: &Channel, error: TrySendError) -> SendError {
    if is_for_want_of_room(error) {
        channel.want_room();
    }
    error.into()
}

/// Whether it is worth trying again after the receiver has consumed something.
pub(crate) fn is_for_want_of_room(error: TrySendError) -> bool {
    use FrameError::{InUse, Lent, QuotaLent};
    matches!(
        error,
        TrySendError::Full | TrySendError::Frame(InUse { .. } | Lent | QuotaLent { .. })
    )
}

impl From<TrySendError> for SendError {
    fn from(error: TrySendError) -> Self {
        match error {
            error if is_for_want_of_room(error) => SendError::Full,
            TrySendError::TooLarge { len, max } => SendError::TooLarge { len, max },
            TrySendError::Closed | TrySendError::Frame(FrameError::HungUp) => SendError::NoChannel,
            TrySendError::Frame(error) => SendError::Frame(error),
            TrySendError::Fault(fault) => SendError::Fault(fault),
            _ => SendError::Full,
        }
    }
}

/// A typed message, or frames, not sent: it comes back with the reason.
#[derive(Debug)]
pub struct NotSent<T> {
    /// Why.
    pub error: SendError,
    /// The message.
    pub message: T,
}

impl<T> NotSent<T> {
    pub(crate) fn new(error: SendError, message: T) -> NotSent<T> {
        NotSent { error, message }
    }
}

impl<S, D> Endpoint<S, D> {
    /// Sends a message over the endpoint's first channel, without waiting. See [`try_send_to`](Self::try_send_to).
    #[inline(always)]
    pub fn try_send(&mut self, handler: u16, payload: &[u8]) -> Result<(), SendError> {
        let channel = self.first_channel().ok_or(SendError::NoChannel)?;
        try_send(channel, handler, payload)
    }

    /// Sends a message to the peer's handler with this index if there is room in the send ring, without waiting.
    ///
    /// Copies the payload, up to 2,808 bytes into the ring ([`MAX_INLINE`](crate::MAX_INLINE) if it is shallower than 128 slots), more into
    /// a [frame](Self::frame); at most [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes. Makes no system call unless the peer sleeps, or memory for frames is needed.
    ///
    /// Over a device (`udp:`, `xdp:`) the first message since the last [`poll`](Self::poll) goes on its way at once; those that follow
    /// share packets and wait for the next poll, call or [`arm`](Self::arm), for the 256th of them, or for the channel to be closed.
    #[inline(always)]
    pub fn try_send_to(
        &mut self,
        channel: ChannelId,
        handler: u16,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let channel = self.channel(channel).ok_or(SendError::NoChannel)?;
        try_send(channel, handler, payload)
    }

    /// Sends a batch over a channel if there is room, without waiting, and empties it; otherwise it stays as it is.
    ///
    /// Its messages arrive as if they had been sent one after the other, sooner for a stream of small ones: they share lines,
    /// where a message by itself takes one or more.
    pub fn try_send_batch_to(
        &mut self,
        channel: ChannelId,
        batch: &mut Batch,
    ) -> Result<(), SendError> {
        let channel = self.channel(channel).ok_or(SendError::NoChannel)?;
        let sent = channel.port.try_send_batch(batch);
        sent.map_err(|error| not_sent(channel, error))?;
        wake_if_asleep(channel);
        Ok(())
    }

    /// Sends a batch over the endpoint's first channel, without waiting. See [`try_send_batch_to`](Self::try_send_batch_to).
    pub fn try_send_batch(&mut self, batch: &mut Batch) -> Result<(), SendError> {
        let channel = self.first().ok_or(SendError::NoChannel)?;
        self.try_send_batch_to(channel, batch)
    }

    /// Sends a batch over the endpoint's first channel, waiting for room until the endpoint's deadline. Unless it was sent
    /// the batch stays as it is.
    pub fn send_batch(&mut self, batch: &mut Batch) -> Result<(), SendError> {
        let channel = self.first().ok_or(SendError::NoChannel)?;
        self.with_room(channel, self.deadline, |endpoint| {
            endpoint.try_send_batch_to(channel, batch)
        })
    }

    /// Sends over the endpoint's first channel, waiting for room until the endpoint's deadline.
    #[inline(always)]
    pub fn send(&mut self, handler: u16, payload: &[u8]) -> Result<(), SendError> {
        match self.try_send(handler, payload) {
            Err(SendError::Full) => self.send_patiently(handler, payload),
            other => other,
        }
    }

    #[cold]
    #[inline(never)]
    fn send_patiently(&mut self, handler: u16, payload: &[u8]) -> Result<(), SendError> {
        let channel = self.first().ok_or(SendError::NoChannel)?;
        self.send_to(channel, handler, payload, self.deadline)
    }

    /// Sends, waiting for room at most as long as `within`. Meanwhile what arrives is handled.
    pub fn send_to(
        &mut self,
        channel: ChannelId,
        handler: u16,
        payload: &[u8],
        within: Duration,
    ) -> Result<(), SendError> {
        self.with_room(channel, within, |endpoint| {
            endpoint.try_send_to(channel, handler, payload)
        })
    }

    /// Tries until there is room in a channel, at most as long as `within`. Meanwhile what arrives is handled; the time is counted.
    pub(crate) fn with_room<T>(
        &mut self,
        channel: ChannelId,
        within: Duration,
        mut attempt: impl FnMut(&mut Self) -> Result<T, SendError>,
    ) -> Result<T, SendError> {
        /// Messages handled between two attempts.
        const BUDGET: usize = 64;
        let mut waiting = Waiting::new(within);
        loop {
            match attempt(self) {
                Err(SendError::Full) => {}
                other => {
                    self.waited(&waiting);
                    self.count_blocked(channel, &waiting);
                    return other;
                }
            }
            let room = self.no_room(channel);
            let handled = self.poll(BUDGET) > 0;
            if !self.wait_for_room(&mut waiting, handled, room) {
                self.count_blocked(channel, &waiting);
                return Err(SendError::DeadlineExceeded);
            }
        }
    }

    fn count_blocked(&self, channel: ChannelId, waiting: &Waiting) {
        let (Some(since), Some(channel)) = (waiting.since, self.look_up(channel)) else {
            return;
        };
        let ns = since.elapsed().as_nanos() as u64;
        channel.port.count_many(Counter::BlockedNs, ns);
    }

    /// Sends a typed message over the endpoint's first channel, without waiting. If there is no room the message comes back.
    pub fn try_send_typed<T: TypedMessage>(&mut self, message: T) -> Result<(), NotSent<T>> {
        self.try_send(T::HANDLER, message.as_bytes())
            .map_err(|error| NotSent { error, message })
    }
}

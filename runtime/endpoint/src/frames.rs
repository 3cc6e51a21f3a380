//! Frames: messages that are moved, not copied (fbufs: Druschel and Peterson, 1993).
//!
//! [`send`](Endpoint::send) and [`call`](Endpoint::call) carry messages of any size up to [`MAX_MESSAGE`](crate::MAX_MESSAGE). Short
//! ones are copied through the ring: up to 2,808 bytes if it has 128 slots or more, else up to [`MAX_INLINE`](crate::MAX_INLINE).
//! Longer ones are copied into a frame, which the receiver reads where it lies. Who writes into a frame to begin with saves that copy: [`Endpoint::frame`], then
//! [`Endpoint::send_frame`], which takes the frame away.
//!
//! There are three strengths of handing over. *Moved*, as above: the compiler sees to it that the sender does not write any more.
//! *Secured*, [`Frozen::secure`]: its own memory management sees to it as well. *Copied in*, [`Message::bytes`](crate::Message::bytes): the
//! receiver works on its own copy, and so need not trust the sender at all; [`Received::copy_to`] does the same piece by piece.

use crate::channel::{Called, Channel, ChannelId};
use crate::send::{not_sent, wake_if_asleep};
use crate::{CallError, Endpoint, NotSent, SendError};
use std::time::Duration;
use tightbeam_segment::{Frame, Frozen, Outgoing, PoolAudit, Received};

/// What a message may be moved in: a [`Frame`], a [`Frozen`] one, or an array or a vector of frames. Never a reference: they are
/// given away.
pub trait Frames: sealed::List {}

impl<F: sealed::List> Frames for F {}

mod sealed {
    use tightbeam_segment::{Frame, Frozen};

    pub trait List {
        fn list(&self) -> &[Frame];

        /// Hands over each of them, complete.
        fn complete(self, to: &mut dyn FnMut(Frozen));
    }

    impl List for Frame {
        fn list(&self) -> &[Frame] {
            std::slice::from_ref(self)
        }

        fn complete(self, to: &mut dyn FnMut(Frozen)) {
            to(self.freeze());
        }
    }

    impl List for Frozen {
        fn list(&self) -> &[Frame] {
            std::slice::from_ref(self.as_ref())
        }

        fn complete(self, to: &mut dyn FnMut(Frozen)) {
            to(self);
        }
    }

    impl<const N: usize> List for [Frame; N] {
        fn list(&self) -> &[Frame] {
            self
        }

        fn complete(self, to: &mut dyn FnMut(Frozen)) {
            self.into_iter().map(Frame::freeze).for_each(to);
        }
    }

    impl List for Vec<Frame> {
        fn list(&self) -> &[Frame] {
            self
        }

        fn complete(self, to: &mut dyn FnMut(Frozen)) {
            self.into_iter().map(Frame::freeze).for_each(to);
        }
    }
}

/// What a call was answered with, where the caller can read it.
#[derive(Debug)]
pub enum Response<'a> {
    /// It came through the ring, and has been copied out of it.
    Bytes(&'a [u8]),
    /// It came in frames: read it there. Dropped, they go back.
    Frames(Received),
}

impl Response<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Response::Bytes(bytes) => bytes.len(),
            Response::Frames(received) => received.len(),
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with every 64 bytes, as eight words; says how many bytes that were. See [`Received::for_each_line`].
    #[inline(always)]
    pub fn for_each_line(&self, mut each: impl FnMut([u64; 8])) -> usize {
        match self {
            Response::Frames(received) => received.for_each_line(each),
            Response::Bytes(bytes) => {
                let (words, _) = bytes.as_chunks::<8>();
                let (lines, _) = words.as_chunks::<8>();
                lines
                    .iter()
                    .for_each(|line| each(line.map(u64::from_ne_bytes)));
                lines.len() * 64
            }
        }
    }

    /// Copies bytes from `offset` on, as many as there are and fit; says how many that were.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        match self {
            Response::Frames(received) => received.copy_to(offset, to),
            Response::Bytes(bytes) => {
                let rest = bytes.get(offset..).unwrap_or_default();
                let count = rest.len().min(to.len());
                to[..count].copy_from_slice(&rest[..count]);
                count
            }
        }
    }
}

impl<S, D> Endpoint<S, D> {
    /// A frame of `len` bytes to be sent over the endpoint's first channel, waiting for one until the endpoint's deadline. See
    /// [`frame_for`](Self::frame_for).
    pub fn frame(&mut self, len: usize) -> Result<Frame, SendError> {
        let channel = self.first().ok_or(SendError::NoChannel)?;
        self.frame_for(channel, len, self.deadline)
    }

    /// A frame of `len` bytes to be sent over this channel, waiting for one at most as long as `within`. Meanwhile what arrives
    /// is handled. See [`try_frame_for`](Self::try_frame_for).
    pub fn frame_for(
        &mut self,
        channel: ChannelId,
        len: usize,
        within: Duration,
    ) -> Result<Frame, SendError> {
        match self.try_frame_for(channel, len) {
            Err(SendError::Full) => self.with_room(channel, within, |endpoint| {
                endpoint.try_frame_for(channel, len)
            }),
            other => other,
        }
    }

    /// A frame of `len` bytes to be sent over this channel, and no other: its peer can read all of the channel's frames, and
    /// nobody else can.
    ///
    /// Takes a frame that has come back, or makes memory for more, up to [`Builder::frame_limit`](crate::Builder::frame_limit) for
    /// each channel; that takes a few system calls, and the time to zero it. [`SendError::Full`] if all are in use: it does not
    /// wait. What is in a frame is left over from earlier use, or zero.
    pub fn try_frame_for(&mut self, channel: ChannelId, len: usize) -> Result<Frame, SendError> {
        let channel = self.channel(channel).ok_or(SendError::NoChannel)?;
        let frame = channel.port.frame(len);
        frame.map_err(|error| not_sent(channel, error.into()))
    }

    /// A frame of `len` bytes that may be sent over any channel of this endpoint, also over several
    /// ([`Frame::freeze`]). Each peer that was sent one of them can read all such frames.
    pub fn shared_frame(&mut self, len: usize) -> Result<Frame, SendError> {
        for channel in self.channels.iter().flatten() {
            channel.port.collect();
        }
        self.visit_graves();
        self.shared.frame(len).map_err(|error| {
            for channel in self.channels.iter().flatten() {
                if channel.port.lent() > 0 {
                    channel.port.take_credit();
                    channel.want_room();
                }
            }
            tightbeam_segment::TrySendError::from(error).into()
        })
    }

    /// Sends a frame, or several as one message, over the endpoint's first channel, waiting until the endpoint's deadline. See
    /// [`send_frame_to`](Self::send_frame_to).
    pub fn send_frame<F: Frames>(&mut self, handler: u16, frames: F) -> Result<(), NotSent<F>> {
        match self.first() {
            Some(channel) => self.send_frame_to(channel, handler, frames, self.deadline),
            None => Err(NotSent::new(SendError::NoChannel, frames)),
        }
    }

    /// Sends a frame, or up to [`MAX_PARTS`](crate::MAX_PARTS) as one message, waiting for room at most as long as `within`.
    /// Meanwhile what arrives is handled.
    ///
    /// The frames are moved: nothing is copied, and they are the receiver's until it has done with them. Then they come back by
    /// themselves. A receiver that ends gives all of them back; one that never does holds at most
    /// [`MAX_LOANS`](crate::MAX_LOANS) of them. If they are not sent they come back with the error.
    ///
    /// ```compile_fail,E0382
    /// # use tightbeam::Endpoint;
    /// # fn sends(endpoint: &mut Endpoint) {
    /// let mut frame = endpoint.frame(4096).unwrap();
    /// endpoint.send_frame(1, frame).unwrap();
    /// frame[0] = 1; // it is the receiver's now
    /// # }
    /// ```
    pub fn send_frame_to<F: Frames>(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: F,
        within: Duration,
    ) -> Result<(), NotSent<F>> {
        let sent = self.with_room(channel, within, |endpoint| {
            endpoint.try_lend(channel, handler, frames.list())
        });
        sent.map_err(|error| NotSent::new(error, frames))
    }

    /// Sends a frame, or several as one message, if there is room, without waiting. See
    /// [`send_frame_to`](Self::send_frame_to).
    pub fn try_send_frame_to<F: Frames>(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: F,
    ) -> Result<(), NotSent<F>> {
        match self.try_lend(channel, handler, frames.list()) {
            Ok(()) => Ok(()),
            Err(error) => Err(NotSent::new(error, frames)),
        }
    }

    /// Lends a complete frame to one receiver of several, if there is room, without waiting and without copying. It is free
    /// again when it was dropped here and the last receiver has given it back: one that is slow delays nobody else.
    pub fn try_publish_to(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frame: &Frozen,
    ) -> Result<(), SendError> {
        let channel = self.channel(channel).ok_or(SendError::NoChannel)?;
        let sent = channel.port.try_publish(Outgoing::message(handler), frame);
        sent.map_err(|error| not_sent(channel, error))?;
        wake_if_asleep(channel);
        Ok(())
    }

    /// Calls with a frame, or several, as the message, over the endpoint's first channel; waits until the endpoint's deadline at
    /// most.
    pub fn call_frame<F: Frames>(&mut self, handler: u16, frames: F) -> Result<&[u8], CallError> {
        match self.first() {
            Some(channel) => self.call_frame_to(channel, handler, frames, self.deadline),
            None => Err(CallError::NotSent(SendError::NoChannel)),
        }
    }

    /// Calls with a frame, or several, as the message. As [`call_to`](Self::call_to), but that the payload is not copied. If the
    /// call is not sent the frames are dropped.
    pub fn call_frame_to<F: Frames>(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: F,
        within: Duration,
    ) -> Result<&[u8], CallError> {
        let spins = self.spins();
        let Some(found) = self.channel(channel) else {
            return Err(CallError::NotSent(SendError::NoChannel));
        };
        let mut frames = Some(frames);
        let called = found.call_frames(handler, &mut frames, spins);
        if !matches!(called, Called::Answered) {
            self.finish_call(channel, called, handler, within, &mut |channel| {
                channel.call_frames(handler, &mut frames, spins)
            })?;
        }
        self.reply_of(channel)
    }

    /// As [`call_frame`](Self::call_frame), but the reply is not copied either if it comes in frames.
    pub fn call_frame_in_place<F: Frames>(
        &mut self,
        handler: u16,
        frames: F,
    ) -> Result<Response<'_>, CallError> {
        match self.first() {
            Some(channel) => self.call_frame_in_place_to(channel, handler, frames, self.deadline),
            None => Err(CallError::NotSent(SendError::NoChannel)),
        }
    }

    /// As [`call_frame_to`](Self::call_frame_to), but the reply is not copied either if it comes in frames.
    pub fn call_frame_in_place_to<F: Frames>(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: F,
        within: Duration,
    ) -> Result<Response<'_>, CallError> {
        let Some(found) = self.channel(channel) else {
            return Err(CallError::NotSent(SendError::NoChannel));
        };
        found.in_place = true;
        let mut frames = Some(frames);
        let called = found.call_frames(handler, &mut frames, 0);
        let ended = self.finish_call(channel, called, handler, within, &mut |channel| {
            channel.call_frames(handler, &mut frames, 0)
        });
        let received = self.channel(channel).and_then(|found| {
            found.in_place = false;
            found.reply_frames.take()
        });
        ended?;
        match received {
            Some(received) => Ok(Response::Frames(received)),
            None => self.reply_of(channel).map(Response::Bytes),
        }
    }

    /// Where the frames of a channel's own are.
    pub fn frames(&self, channel: ChannelId) -> Option<PoolAudit> {
        self.look_up(channel).map(|channel| {
            channel.port.collect();
            channel.port.audit_frames()
        })
    }

    /// Where the frames are that may be sent over any channel.
    pub fn shared_frames(&self) -> PoolAudit {
        self.shared.audit()
    }

    /// How many frames a channel's peer has of ours.
    pub fn frames_lent(&self, channel: ChannelId) -> Option<usize> {
        self.look_up(channel).map(|channel| {
            channel.port.collect();
            channel.port.lent()
        })
    }

    fn try_lend(
        &mut self,
        channel: ChannelId,
        handler: u16,
        frames: &[Frame],
    ) -> Result<(), SendError> {
        let channel = self.channel(channel).ok_or(SendError::NoChannel)?;
        let sent = channel.port.try_lend(Outgoing::message(handler), frames);
        sent.map_err(|error| not_sent(channel, error))?;
        wake_if_asleep(channel);
        Ok(())
    }
}

impl Channel {
    /// Takes the frames once they are lent.
    fn call_frames<F: Frames>(
        &mut self,
        handler: u16,
        frames: &mut Option<F>,
        spins: u32,
    ) -> Called {
        let out = Outgoing::call(handler);
        let call = match self.number(out) {
            Ok(call) => call,
            Err(error) => return Called::NotSent(error),
        };
        let list = frames.as_ref().map_or(&[][..], |frames| frames.list());
        let len = list.iter().map(|frame| frame.len()).sum();
        if let Err(error) = self.port.try_lend(out, list) {
            return Called::NotSent(error);
        }
        wake_if_asleep(self);
        // While the call is on its way: to let go of them, and to fetch the line with the returns, which takes as long to come as one with a
        // message.
        frames.take();
        self.port.prepare_next(len);
        self.await_briefly(call, spins)
    }
}

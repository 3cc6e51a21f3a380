//! Calls: a message that wants a reply, and the wait for it.

use crate::channel::ChannelId;
use crate::send::wake_if_asleep;
use crate::wait::Waiting;
use crate::{CallError, Endpoint, SendError, TypedMessage};
use std::time::Duration;
use tightbeam_segment::{Answer, Outgoing, TrySendError};
use zerocopy::FromBytes;

impl<S> Endpoint<S> {
    /// Calls the peer's handler with this index over the endpoint's first channel and returns its reply; waits until the
    /// endpoint's deadline at most. See [`call_to`](Self::call_to).
    #[inline]
    pub fn call(&mut self, handler: u16, payload: &[u8]) -> Result<&[u8], CallError> {
        let channel = self.first().ok_or(CallError::NotSent(SendError::NoChannel))?;
        self.call_to(channel, handler, payload, self.deadline)
    }

    /// Calls a handler of the peer and returns its reply, waiting at most as long as `within`. Meanwhile what arrives, also
    /// over other channels, is handled: calls in a circle do not lock up.
    ///
    /// At most [`MAX_CALLS`](crate::MAX_CALLS) calls of a channel are unanswered at a time; those given up count until
    /// their late reply comes.
    pub fn call_to(
        &mut self,
        channel: ChannelId,
        handler: u16,
        payload: &[u8],
        within: Duration,
    ) -> Result<&[u8], CallError> {
        let mut waiting = Waiting::new(within);
        self.request(channel, handler, payload, &mut waiting)?;
        let answer = self.await_reply(channel, &mut waiting)?;
        match answer {
            Answer::Reply => match self.channel(channel) {
                Some(found) => Ok(found.port.copied()),
                None => Err(CallError::Ended),
            },
            Answer::NoHandler => Err(CallError::NoHandler { handler }),
            Answer::NoReply => Err(CallError::NoReply { handler }),
        }
    }

    /// Calls the handler of a typed message over the endpoint's first channel.
    pub fn call_typed<T: TypedMessage>(&mut self, message: &T) -> Result<T::Reply, CallError> {
        let bytes = self.call(T::HANDLER, message.as_bytes())?;
        T::Reply::read_from_bytes(bytes).map_err(|_| CallError::Malformed { len: bytes.len() })
    }

    #[inline(always)]
    fn request(
        &mut self,
        id: ChannelId,
        handler: u16,
        payload: &[u8],
        waiting: &mut Waiting,
    ) -> Result<(), CallError> {
        loop {
            let channel =
                self.channel(id).ok_or(CallError::NotSent(SendError::NoChannel))?;
            let call = channel.port.next_call();
            match channel.port.try_send(Outgoing::call(handler), payload) {
                Ok(()) => {
                    wake_if_asleep(&channel.port);
                    channel.awaited = Some(call);
                    channel.answer = None;
                    return Ok(());
                }
                Err(TrySendError::Full | TrySendError::TooManyCalls) => {}
                Err(error) => return Err(CallError::NotSent(error.into())),
            }
            if !self.wait_once(Some(id), waiting) {
                return Err(CallError::NotSent(SendError::DeadlineExceeded));
            }
        }
    }

    #[inline(always)]
    fn await_reply(
        &mut self,
        id: ChannelId,
        waiting: &mut Waiting,
    ) -> Result<Answer, CallError> {
        /// Messages of the same peer that are handled before the deadline is looked at again.
        const BUDGET: usize = 64;
        loop {
            let Some(Some(channel)) = self.channels.get_mut(id.slot()) else {
                return Err(CallError::Ended);
            };
            if channel.id != id {
                return Err(CallError::Ended);
            }
            channel.drain(&self.handlers, &mut self.state, BUDGET);
            if let Some(answer) = channel.answer.take() {
                return Ok(answer);
            }
            if !self.wait_once(Some(id), waiting) {
                if let Some(channel) = self.channel(id) {
                    channel.awaited = None;
                }
                return Err(CallError::DeadlineExceeded);
            }
        }
    }
}

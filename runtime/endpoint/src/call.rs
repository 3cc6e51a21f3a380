//! Calls: a message that wants a reply, and the wait for it.

use crate::channel::{Called, Channel, ChannelId};
use crate::send::is_for_want_of_room;
use crate::wait::Waiting;
use crate::{CallError, Endpoint, SendError, TypedMessage};
use std::time::Duration;
use tightbeam_segment::{Answer, TrySendError};
use zerocopy::FromBytes;

/// Messages handled before the deadline is looked at again.
const BUDGET: usize = 64;

/// Somebody who waits for an answer. Dropped only if a handler unwinds meanwhile: then he does not take it any more, and what follows it in the
/// ring would wait for him.
struct Calling<'a, S, D> {
    endpoint: &'a mut Endpoint<S, D>,
    id: ChannelId,
}

impl<S, D> Drop for Calling<'_, S, D> {
    fn drop(&mut self) {
        self.endpoint.give_up(self.id);
        if let Some(channel) = self.endpoint.channel(self.id) {
            channel.in_place = false;
            channel.reply_frames = None;
        }
    }
}

impl<S, D> Endpoint<S, D> {
    /// Calls the peer's handler with this index over the endpoint's first channel and returns its reply; waits until the
    /// endpoint's deadline at most. See [`call_to`](Self::call_to).
    #[inline(always)]
    pub fn call(&mut self, handler: u16, payload: &[u8]) -> Result<&[u8], CallError> {
        self.call_slot(self.first, handler, payload, self.deadline)
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
        match self.channel(channel) {
            Some(_) => self.call_slot(channel.slot(), handler, payload, within),
            None => Err(CallError::NotSent(SendError::NoChannel)),
        }
    }

    /// Calls the handler of a typed message over the endpoint's first channel.
    pub fn call_typed<T: TypedMessage>(&mut self, message: &T) -> Result<T::Reply, CallError> {
        let bytes = self.call(T::HANDLER, message.as_bytes())?;
        T::Reply::read_from_bytes(bytes).map_err(|_| CallError::Malformed { len: bytes.len() })
    }

    #[inline(always)]
    fn call_slot(
        &mut self,
        slot: usize,
        handler: u16,
        payload: &[u8],
        within: Duration,
    ) -> Result<&[u8], CallError> {
        let spins = self.spins();
        let Some(Some(channel)) = self.channels.get_mut(slot) else {
            return Err(CallError::NotSent(SendError::NoChannel));
        };
        let called = channel.call(handler, payload, spins);
        if !matches!(called, Called::Answered) {
            let id = channel.id;
            self.finish_call(id, called, handler, within, &mut |channel| {
                channel.call(handler, payload, spins)
            })?;
        }
        match self.channels.get(slot) {
            Some(Some(channel)) => Ok(channel.port.copied()),
            _ => Err(CallError::Ended),
        }
    }

    /// The reply that a call over this channel got last.
    pub(crate) fn reply_of(&self, id: ChannelId) -> Result<&[u8], CallError> {
        let channel = self.look_up(id).ok_or(CallError::Ended)?;
        Ok(channel.port.copied())
    }

    /// The rest of a call that was not answered at once, and may have to be tried again.
    #[cold]
    #[inline(never)]
    pub(crate) fn finish_call(
        &mut self,
        id: ChannelId,
        called: Called,
        handler: u16,
        within: Duration,
        again: &mut dyn FnMut(&mut Channel) -> Called,
    ) -> Result<(), CallError> {
        let calling = Calling { endpoint: self, id };
        let finished = calling.endpoint.finish(id, called, handler, within, again);
        std::mem::forget(calling);
        finished
    }

    fn finish(
        &mut self,
        id: ChannelId,
        mut called: Called,
        handler: u16,
        within: Duration,
        again: &mut dyn FnMut(&mut Channel) -> Called,
    ) -> Result<(), CallError> {
        let mut waiting = Waiting::new(within);
        while let Called::NotSent(error) = called {
            let room = match error {
                error if is_for_want_of_room(error) => self.no_room(id),
                TrySendError::TooManyCalls => None,
                error => return Err(CallError::NotSent(error.into())),
            };
            let handled = self.poll(BUDGET) > 0;
            if !self.wait_for_room(&mut waiting, handled, room) {
                return Err(CallError::NotSent(SendError::DeadlineExceeded));
            }
            let channel = self
                .channel(id)
                .ok_or(CallError::NotSent(SendError::NoChannel))?;
            called = again(channel);
        }
        if let Called::Answered = called {
            return Ok(());
        }
        let answer = self.await_reply(id, &mut waiting)?;
        self.waited(&waiting);
        match answer {
            Answer::Reply => Ok(()),
            Answer::NoHandler => Err(CallError::NoHandler { handler }),
            Answer::NoReply => Err(CallError::NoReply { handler }),
        }
    }

    fn await_reply(&mut self, id: ChannelId, waiting: &mut Waiting) -> Result<Answer, CallError> {
        loop {
            let spins = self.spins();
            // With devices there is more to look at than one ring.
            let (ring, all) = match self.lines.is_empty() {
                true => (spins, 0),
                false => (0, spins),
            };
            let Some(Some(channel)) = self.channels.get_mut(id.slot()) else {
                return Err(CallError::Ended);
            };
            if channel.id != id {
                return Err(CallError::Ended);
            }
            // A reply that the poll below has found comes first: what is handled after it would overwrite it.
            if channel.answer.is_none() {
                channel.drain(&self.handlers, &mut self.state, BUDGET, ring);
            }
            if let Some(answer) = channel.answer.take() {
                return Ok(answer);
            }
            // The other channels too; a reply that is found here is taken in the next round, or at once where it is sure to be there:
            // a look at the clock takes as long as a hundredth of a round trip over a device.
            let handled = self.poll_spinning(BUDGET, all) > 0;
            if handled && !self.lines.is_empty() {
                let channel = self.channel(id).ok_or(CallError::Ended)?;
                if let Some(answer) = channel.answer.take() {
                    return Ok(answer);
                }
            }
            if !self.wait_unless(waiting, handled) {
                if self.channel(id).is_none() {
                    return Err(CallError::Ended);
                }
                // What that poll has found is the answer to this call.
                return self.give_up(id).ok_or(CallError::DeadlineExceeded);
            }
        }
    }

    /// Nobody waits for the answer to the call over this channel any more: one that comes later is dropped and counted, and one that has come
    /// is returned, because it would be taken for that to the next call.
    pub(crate) fn give_up(&mut self, id: ChannelId) -> Option<Answer> {
        let channel = self.channel(id)?;
        let call = channel.awaited.take();
        call.inspect(|call| channel.beside.give_up(*call));
        let answer = channel.answer.take();
        self.look_often(id.slot());
        answer
    }
}

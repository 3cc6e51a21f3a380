//! Typed messages: plain data whose bytes are the message, with a handler index of its own.

use crate::{Message, Reply};
use std::marker::PhantomData;
use tightbeam_segment::{Answer, Counter};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A message that is a value of plain data: fixed size, no padding, every bit pattern valid (`zerocopy` sees to it).
///
/// Both sides must be built from the same definition; the size is checked, the meaning cannot be.
///
/// ```
/// use tightbeam_endpoint::TypedMessage;
/// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
///
/// #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
/// #[repr(C)]
/// struct Add {
///     amount: u64,
/// }
///
/// impl TypedMessage for Add {
///     const HANDLER: u16 = 1;
///     type Reply = u64;
/// }
/// ```
pub trait TypedMessage: FromBytes + IntoBytes + Immutable + KnownLayout {
    /// The index of its handler.
    const HANDLER: u16;
    /// What a call with it returns; `()` for messages that are only sent.
    type Reply: FromBytes + IntoBytes + Immutable + KnownLayout;
}

/// A state that handles a typed message.
pub trait Handle<T: TypedMessage> {
    /// Consumes the message.
    fn handle(&mut self, message: &T, reply: TypedReply<'_, T::Reply>);
}

/// As [`Reply`], for an answer of one type.
pub struct TypedReply<'a, R> {
    reply: Reply<'a>,
    of: PhantomData<fn(&R)>,
}

impl<R: IntoBytes + Immutable> TypedReply<'_, R> {
    /// Answers; see [`Reply::send`].
    #[inline(always)]
    pub fn send(self, answer: &R) {
        self.reply.send(answer.as_bytes());
    }

    /// Whether the sender waits for an answer.
    pub fn wanted(&self) -> bool {
        self.reply.wanted()
    }

    /// The untyped token, to send other messages to the same peer.
    pub fn untyped(&self) -> &Reply<'_> {
        &self.reply
    }
}

/// What stands in the handler table for a typed message.
pub(crate) fn handle<S: Handle<T>, T: TypedMessage>(
    state: &mut S,
    message: Message<'_>,
    reply: Reply<'_>,
) {
    match T::read_from_bytes(message.bytes()) {
        Ok(value) => state.handle(
            &value,
            TypedReply {
                reply,
                of: PhantomData,
            },
        ),
        Err(_) => {
            reply.count(Counter::DropMalformed);
            reply.refuse(Answer::NoReply);
        }
    }
}

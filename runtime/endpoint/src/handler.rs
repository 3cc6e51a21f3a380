//! What a message meets: the handler table, and the two things that a handler is given.
//!
//! After Active Messages (von Eicken, Culler, Goldstein, Schauser, 1992): a message names the handler that consumes it. Here
//! by a bounded index instead of an address, so that no peer needs to be trusted.

use crate::channel::ChannelId;
use crate::later::{Desk, Later};
use crate::send::wake_from_handler;
use crate::{NotSent, SendError, TypedMessage};
use tightbeam_segment::{
    Answer, Counter, Frame, Incoming, Lookout, Outgoing, Port, Received, TrySendError,
};

/// A handler: a function, or a closure that captures nothing. What it needs to remember is in the state `S`.
///
/// It runs inside [`Endpoint::poll`](crate::Endpoint::poll), on the endpoint's thread. It can reply and send without
/// blocking; it cannot poll or call, because it has no endpoint.
pub type Handler<S> = fn(&mut S, Message<'_>, Reply<'_>);

/// A table of handlers by index, 0 to 65,535.
///
/// ```
/// use tightbeam_endpoint::{Handlers, Message, Reply};
///
/// const ADD: u16 = 1;
/// let handlers = Handlers::new().on(ADD, |total: &mut u64, message: Message<'_>, reply: Reply<'_>| {
///     *total += message.len() as u64;
///     reply.send(&total.to_le_bytes());
/// });
/// assert!(handlers.has(ADD));
/// ```
pub struct Handlers<S = ()> {
    table: Vec<Handler<S>>,
}

impl<S> Handlers<S> {
    /// An empty table: every message is dropped and counted, every call is answered with `NoHandler`.
    pub fn new() -> Self {
        Handlers { table: Vec::new() }
    }

    /// Registers a handler. A second one under the same index replaces the first.
    #[must_use]
    pub fn on(mut self, index: u16, handler: Handler<S>) -> Self {
        let index = usize::from(index);
        if self.table.len() <= index {
            self.table.resize(index + 1, unregistered::<S>);
        }
        self.table[index] = handler;
        self
    }

    /// Registers the state's handler for a typed message, under the type's own index.
    #[must_use]
    pub fn on_typed<T: TypedMessage>(self) -> Self
    where
        S: crate::Handle<T>,
    {
        self.on(T::HANDLER, crate::typed::handle::<S, T>)
    }

    /// Whether a handler is registered under this index.
    pub fn has(&self, index: u16) -> bool {
        let none: Handler<S> = unregistered::<S>;
        self.table
            .get(usize::from(index))
            .is_some_and(|&handler| !std::ptr::fn_addr_eq(handler, none))
    }

    #[inline(always)]
    pub(crate) fn table(&self) -> &[Handler<S>] {
        &self.table
    }
}

/// Calls the handler with this index, or what stands in for it.
#[inline(always)]
pub(crate) fn handle<S>(
    table: &[Handler<S>],
    index: u16,
    state: &mut S,
    message: Message<'_>,
    reply: Reply<'_>,
) {
    match table.get(usize::from(index)) {
        Some(handler) => handler(state, message, reply),
        None => unregistered(state, message, reply),
    }
}

/// Looks for a message, spinning at most `spins` times for it, and calls its handler. What it was, the port knows.
///
/// A function of its own whose first arguments are those of a handler, and which ends with the handler's call: so most of
/// what the call needs is in its place before the header comes. `cargo bench --bench instructions` counts the rest.
#[inline(never)]
pub(crate) fn dispatch<S>(state: &mut S, lookout: Lookout<'_>, table: &[Handler<S>], spins: u32) {
    if let Some((index, incoming, port)) = lookout.message(spins) {
        handle(table, index, state, Message(incoming), Reply(port));
    }
}

impl<S> Default for Handlers<S> {
    fn default() -> Self {
        Handlers::new()
    }
}

impl<S> Clone for Handlers<S> {
    fn clone(&self) -> Self {
        Handlers {
            table: self.table.clone(),
        }
    }
}

/// Stands where no handler is registered.
#[cold]
#[inline(never)]
fn unregistered<S>(_state: &mut S, _message: Message<'_>, reply: Reply<'_>) {
    reply.count(Counter::DropNoHandler);
    reply.refuse(Answer::NoHandler);
}

/// A message that has arrived.
pub struct Message<'a>(pub(crate) Incoming<'a>);

impl<'a> Message<'a> {
    /// The payload, in private memory: the sender cannot change it any more (D4). 8-byte aligned up to
    /// [`MAX_INLINE`](crate::MAX_INLINE) bytes. A message that came in frames is copied out of its frames here; see [`frames`](Self::frames) for how
    /// to save that.
    #[inline(always)]
    pub fn bytes(self) -> &'a [u8] {
        self.0.bytes()
    }

    /// The message in the frames in which it came, to be read there, and to be kept as long as you like; `None` if it came
    /// through the ring, or was taken already. After this [`bytes`](Self::bytes) is empty.
    ///
    /// While it is kept, its sender has as many frames less.
    pub fn frames(&self) -> Option<Received> {
        self.0.frames()
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The index under which the message was sent.
    pub fn handler(&self) -> u16 {
        self.0.handler()
    }
}

/// The right to answer a message, once; and the way to send to the peer it came from.
///
/// Dropped without an answer, it tells a waiting caller that there will be none.
///
/// ```compile_fail,E0382
/// # use tightbeam_endpoint::Reply;
/// fn twice(reply: Reply<'_>) {
///     reply.send(b"one");
///     reply.send(b"two"); // the token is gone
/// }
/// ```
pub struct Reply<'a>(&'a Port);

impl<'a> Reply<'a> {
    #[inline(always)]
    pub(crate) fn new(port: &'a Port) -> Self {
        Reply(port)
    }

    /// Whether the sender waits for an answer: it called, it did not merely send.
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        self.0.handling_wants_reply()
    }

    /// The channel that the message came over.
    pub fn channel(&self) -> ChannelId {
        ChannelId(self.0.label())
    }

    /// Answers. Never waits: room for replies is kept in reserve.
    ///
    /// A message that was sent, not called, has nobody to answer; then nothing is sent and `reply_unwanted` counts one. An
    /// answer that is too long for the ring, as a message would be, takes a frame. If there is none, because the caller keeps all those
    /// that it got, nothing is sent, `call_unanswered` counts one, and the caller gets
    /// [`CallError::NoReply`](crate::CallError::NoReply).
    #[inline(always)]
    pub fn send(self, payload: &[u8]) {
        let port = self.0;
        std::mem::forget(self);
        if !port.handling_wants_reply() {
            port.count(Counter::ReplyUnwanted);
            return;
        }
        match port.try_reply(payload) {
            Ok(()) => wake_from_handler(port),
            Err(error) => unsent(port, error),
        }
    }

    /// A frame of `len` bytes, for [`send_frame`](Self::send_frame) or [`try_send_frame`](Self::try_send_frame). See
    /// [`Endpoint::frame_for`](crate::Endpoint::frame_for).
    pub fn frame(&self, len: usize) -> Result<Frame, SendError> {
        Ok(self.0.frame(len).map_err(TrySendError::from)?)
    }

    /// Answers with a frame, which is not copied. As [`send`](Self::send).
    pub fn send_frame(self, frame: Frame) {
        let port = self.0;
        std::mem::forget(self);
        if !port.handling_wants_reply() {
            port.count(Counter::ReplyUnwanted);
            return;
        }
        match port.try_reply_frames(std::slice::from_ref(&frame)) {
            Ok(()) => wake_from_handler(port),
            Err(error) => unsent(port, error),
        }
    }

    /// Sends a frame to the same peer, without waiting. If there is no room it comes back.
    pub fn try_send_frame(&self, handler: u16, frame: Frame) -> Result<(), NotSent<Frame>> {
        let out = Outgoing::message(handler);
        match self.0.try_lend(out, std::slice::from_ref(&frame)) {
            Ok(()) => {
                wake_from_handler(self.0);
                Ok(())
            }
            Err(error) => Err(NotSent::new(error.into(), frame)),
        }
    }

    /// Sends another message to the same peer, without waiting. [`SendError::Full`] if there is no room now.
    pub fn try_send(&self, handler: u16, payload: &[u8]) -> Result<(), SendError> {
        self.0.try_send(Outgoing::message(handler), payload)?;
        wake_from_handler(self.0);
        Ok(())
    }

    /// Takes the right to answer elsewhere: it may be given to another thread, and answered after the handler has returned.
    ///
    /// # Panics
    ///
    /// Where no endpoint has received the message.
    pub fn later(self) -> Later {
        let desk = self
            .desk()
            .expect("every channel of an endpoint has a desk");
        let later = self.later_too(desk);
        self.leave();
        later
    }

    /// The same right once more; one of both must not be used.
    pub(crate) fn later_too(&self, desk: &Desk) -> Later {
        Later::new(desk, self.0)
    }

    /// Says nothing: the answer is somebody else's.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    pub(crate) fn desk(&self) -> Option<&'a Desk> {
        Desk::of(self.0)
    }

    pub(crate) fn count(&self, counter: Counter) {
        self.0.count(counter);
    }

    /// Tells a waiting caller that there will be no answer, and why.
    #[cold]
    pub(crate) fn refuse(self, why: Answer) {
        let port = self.0;
        std::mem::forget(self);
        refuse(port, why);
    }
}

impl Drop for Reply<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.0.handling_wants_reply() {
            self.0.count(Counter::CallUnanswered);
            refuse(self.0, Answer::NoReply);
        }
    }
}

#[cold]
fn refuse(port: &Port, why: Answer) {
    if port.handling_wants_reply() && port.try_refuse(why).is_ok() {
        wake_from_handler(port);
    }
}

/// A reply that could not be sent: too large, or no frame for it, or the channel is over.
#[cold]
fn unsent(port: &Port, error: TrySendError) {
    if let TrySendError::TooLarge { .. } | TrySendError::Frame(_) = error {
        port.count(Counter::CallUnanswered);
        refuse(port, Answer::NoReply);
    }
}

//! Handing what a packet brought straight to its channel: between a packet and its handler there is then no ring.

use crate::channel::{Channel, ChannelId, Ending};
use crate::handler::{self, Handlers, Message, Reply};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tightbeam_segment::{Answer, Counter, Outgoing, Port};

/// What is handed over.
pub(crate) enum Handing {
    /// A message or a call.
    Message(Outgoing),
    /// The answer to the call with this number.
    Answer(u16, Answer),
}

/// Takes what has come over the channel with this label, whose far port this is, and handles it; `false` if it must go through the ring.
pub(crate) type Deliver<'a> = dyn FnMut(u64, &Port, Handing, &[u8]) -> bool + 'a;

/// Where nobody can take anything.
pub(super) fn keep(_: u64, _: &Port, _: Handing, _: &[u8]) -> bool {
    false
}

/// The channels of an endpoint, to one of which something is to be delivered.
pub(super) struct Doorstep<'a, S> {
    pub(super) channels: &'a mut [Option<Box<Channel>>],
    pub(super) handlers: &'a Handlers<S>,
    pub(super) state: &'a mut S,
    /// Messages that may be handled so far in this turn, and those that were.
    pub(super) budget: usize,
    pub(super) handled: usize,
    /// Of some channel the end is near.
    pub(super) faulted: bool,
    /// What a handler has unwound with, to go on when the device holds nothing any more that it would take along.
    pub(super) unwound: Option<Box<dyn Any + Send>>,
}

impl<'a, S> Doorstep<'a, S> {
    pub(super) fn new(
        channels: &'a mut [Option<Box<Channel>>],
        handlers: &'a Handlers<S>,
        state: &'a mut S,
    ) -> Self {
        Doorstep {
            channels,
            handlers,
            state,
            budget: 0,
            handled: 0,
            faulted: false,
            unwound: None,
        }
    }

    /// See [`Deliver`].
    pub(super) fn take(&mut self, label: u64, far: &Port, what: Handing, bytes: &[u8]) -> bool {
        let id = ChannelId(label);
        let Some(Some(channel)) = self.channels.get_mut(id.slot()) else {
            return false;
        };
        if self.handled >= self.budget || self.unwound.is_some() || !channel.may_take(id) {
            return false;
        }
        if channel.unsettled {
            channel.settle();
            // No drain is to come that would see that there is room again.
            channel.port.finish_drain();
        }
        let taken = match what {
            Handing::Message(out) => {
                let (handlers, state, unwound) =
                    (self.handlers, &mut *self.state, &mut self.unwound);
                let handled = far.hand_over(&mut channel.port, out, bytes, |port| {
                    *unwound = handle(handlers, state, port);
                });
                handled.is_some()
            }
            Handing::Answer(call, answer) => {
                let taken = far.hand_answer(&mut channel.port, call, answer, bytes);
                if taken {
                    channel.take_answer(call, answer);
                }
                taken
            }
        };
        if taken {
            channel.disarm();
            self.handled += 1;
            if let Some(fault) = channel.port.fault() {
                channel.note_ending(Ending::Faulted(fault));
                self.faulted = true;
            }
        }
        taken
    }
}

/// Calls the handler of what was handed over; what it has unwound with.
///
/// Caught here, and resumed when the device is done: it has a packet in hand, which would else be in no place any more. (The state may be
/// in whatever state the handler left it in, as after every handler that unwinds.)
fn handle<S>(
    handlers: &Handlers<S>,
    state: &mut S,
    port: &mut Port,
) -> Option<Box<dyn Any + Send>> {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let (incoming, port) = port.incoming();
        let index = incoming.handler();
        handler::handle(
            handlers.table(),
            index,
            state,
            Message(incoming),
            Reply::new(port),
        );
    }));
    let unwound = caught.err()?;
    port.count(Counter::HandlerUnwound);
    Some(unwound)
}

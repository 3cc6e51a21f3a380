//! Calls that are under way over a device, by their two numbers.

use tightbeam_proto::raw;
use tightbeam_segment::{Answer, MAX_CALLS};

/// A call, by its number on either side of the border.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// As the port numbers it.
    pub(super) port: u16,
    /// As packets do.
    pub(super) packet: u32,
}

/// Calls under way in one direction.
#[derive(Default)]
pub(super) struct Calls([Option<Call>; MAX_CALLS]);

impl Calls {
    /// A port has no more calls open than there are places.
    pub(super) fn note(&mut self, call: Call) {
        if let Some(free) = self.0.iter_mut().find(|place| place.is_none()) {
            *free = Some(call);
        }
    }

    pub(super) fn find(&self, is_it: impl Fn(&Call) -> bool) -> Option<Call> {
        self.0.iter().flatten().copied().find(is_it)
    }

    pub(super) fn remove(&mut self, port: u16) {
        for place in &mut self.0 {
            if place.is_some_and(|call| call.port == port) {
                *place = None;
            }
        }
    }
}

pub(super) fn to_wire(answer: Answer) -> raw::Answer {
    match answer {
        Answer::Reply => raw::Answer::Reply,
        Answer::NoHandler => raw::Answer::NoHandler,
        Answer::NoReply => raw::Answer::NoReply,
    }
}

pub(super) fn from_wire(answer: raw::Answer) -> Answer {
    match answer {
        raw::Answer::Reply => Answer::Reply,
        raw::Answer::NoHandler => Answer::NoHandler,
        raw::Answer::NoReply => Answer::NoReply,
    }
}

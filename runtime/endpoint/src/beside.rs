//! What is beside the rings of a channel: a way to wake who is on the other side, and what tells of its end.

use crate::connection::Connection;
use crate::net::Line;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use tightbeam_segment::{Outgoing, Port};

/// What a channel has beside its rings.
#[derive(Clone)]
pub(crate) enum Beside {
    /// The peer is a process of this host.
    Process {
        connection: Rc<Connection>,
        /// Tells when the process ends.
        pidfd: Arc<OwnedFd>,
    },
    /// The other side is a device of this endpoint, which has the channel in this slot.
    Device { line: Rc<Line>, slot: u16 },
}

impl Beside {
    /// Has what was sent looked at by a peer that sleeps on more than a word.
    pub(crate) fn wake(&self) {
        match self {
            Beside::Process { connection, .. } => connection.wake(),
            Beside::Device { line, slot } => line.wake(*slot),
        }
    }

    /// Sends a message past the ring if the other side is a device, and nothing is in the way; see [`Line::send_past`].
    #[inline(always)]
    pub(crate) fn send_past(&self, near: &Port, out: Outgoing, handler: u16, bytes: &[u8]) -> bool {
        match self {
            Beside::Process { .. } => false,
            Beside::Device { line, slot } => line.send_past(*slot, near, (out, handler), bytes),
        }
    }

    /// The connection to a peer process.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        match self {
            Beside::Process { connection, .. } => Some(connection),
            Beside::Device { .. } => None,
        }
    }

    /// The descriptor that is readable when the peer wakes us.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.connection().map(AsFd::as_fd)
    }

    /// A call over the channel is given up: its answer may never come.
    pub(crate) fn give_up(&self, call: u16) {
        if let Beside::Device { line, slot } = self {
            line.give_up(*slot, call);
        }
    }
}

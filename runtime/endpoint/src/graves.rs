//! Channels that are over while their peer still has frames that others share.
//!
//! A peer whose channel has ended may go on reading what it was lent, as long as it lives. Frames of the channel's own simply
//! stay as they are: nobody writes to them again. But shared ones would be handed out to be written. So they stay lent until
//! the peer gives them back, in the free ring that it still has, or its process ends: only that recycles its memory (D6). It is looked
//! whether that is so when somebody wants a shared frame, when the control thread has something to say, and when a client is turned
//! away for want of a place.

use crate::Endpoint;
use crate::beside::Beside;
use crate::channel::Channel;
use crate::control::Seat;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tightbeam_segment::Port;
use tightbeam_sys::control::wait_readable;

pub(crate) struct Grave {
    port: Port,
    pidfd: Arc<OwnedFd>,
    /// Whoever comes and goes, and keeps frames each time, gets no further channel in the end.
    _seat: Option<Seat>,
}

impl<S, D> Endpoint<S, D> {
    /// Keeps what is needed of a channel that is over.
    pub(crate) fn bury(&mut self, ended: Channel) {
        let Channel {
            port, beside, seat, ..
        } = ended;
        let Beside::Process { pidfd, .. } = beside else {
            return;
        };
        port.collect();
        if port.has_lent_shared() {
            self.graves.push(Grave {
                port,
                pidfd,
                _seat: seat,
            });
        }
    }

    /// Takes back what has become free since.
    pub(crate) fn visit_graves(&mut self) {
        self.graves.retain(|grave| {
            grave.port.collect();
            grave.port.has_lent_shared() && !wait_readable(grave.pidfd.as_fd(), Duration::ZERO)
        });
    }
}

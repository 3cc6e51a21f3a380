//! What the control thread, and others that work for it, have for one endpoint.

use super::Opened;
use crate::later::Answered;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use tightbeam_sys::control::Alarm;
use tightbeam_sys::wake::{Bell, Watched};

/// Something that has happened elsewhere.
pub(crate) enum Notice {
    /// A client has been admitted; its channel is ready.
    Opened(Box<Opened>),
    /// The peer of this channel has hung up.
    HungUp(u64),
    /// The process of this channel's peer has ended.
    Exited(u64),
    /// The peer hung up some time ago, lives, and has not closed the channel.
    Lingering(u64),
    /// The peer has sent something over the connection of this channel, which is not watched for more.
    Input(u64),
    /// An answer that comes later than its handler has returned.
    Answered(Answered),
}

/// The receiving side, owned by an endpoint.
pub(crate) struct Mailbox {
    notices: Receiver<Notice>,
    seen: u64,
    door: Door,
}

/// The sending side: for the control thread, and for whoever wants the endpoint to stop.
#[derive(Clone)]
pub(crate) struct Door {
    notices: Sender<Notice>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    bell: Bell,
    stop: AtomicBool,
    /// For an endpoint that waits on descriptors.
    alarm: OnceLock<Alarm>,
}

impl Shared {
    fn ring(&self) {
        self.bell.ring();
        if let Some(alarm) = self.alarm.get() {
            alarm.raise();
        }
    }
}

impl Mailbox {
    pub(crate) fn new() -> Mailbox {
        let (sender, receiver) = channel();
        let door = Door {
            notices: sender,
            shared: Arc::default(),
        };
        Mailbox {
            notices: receiver,
            seen: 0,
            door,
        }
    }

    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Whether there may be something new: one load.
    #[inline(always)]
    pub(crate) fn rang(&self) -> bool {
        self.door.shared.bell.value() != self.seen
    }

    /// From now on whoever rings makes this readable, too.
    pub(crate) fn alarm(&self, alarm: Alarm) -> &Alarm {
        self.door.shared.alarm.get_or_init(|| alarm)
    }

    /// Makes it unreadable again; that somebody rang can still be seen.
    pub(crate) fn silence(&self) {
        if let Some(alarm) = self.door.shared.alarm.get() {
            alarm.clear();
        }
    }

    /// Not all that has come was taken.
    pub(crate) fn look_again(&self) {
        self.door.shared.ring();
    }

    /// Notes that what has come so far will now be looked at.
    pub(crate) fn answer(&mut self) {
        self.seen = self.door.shared.bell.value();
    }

    pub(crate) fn take(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// Whether somebody wants the endpoint to stop.
    pub(crate) fn stopped(&self) -> bool {
        // Acquire: pairs with the Release in `Door::stop`.
        self.door.shared.stop.load(Ordering::Acquire)
    }

    /// Takes a wish to stop as fulfilled.
    pub(crate) fn clear_stop(&self) {
        self.door.shared.stop.store(false, Ordering::Relaxed);
    }

    /// The bell's word, for a sleeper that has looked at everything so far.
    pub(crate) fn watched(&self) -> Watched<'_> {
        self.door.shared.bell.watched(self.seen)
    }
}

impl Door {
    pub(crate) fn put(&self, notice: Notice) {
        // A receiver that is gone was dropped with its endpoint: nobody is left to tell.
        let _ = self.notices.send(notice);
        self.shared.ring();
    }

    /// Has the endpoint look around.
    pub(crate) fn ring(&self) {
        self.shared.ring();
    }

    /// Whether both belong to one endpoint.
    pub(crate) fn same(&self, other: &Door) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Names the endpoint, for as long as somebody has a door of it.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    pub(crate) fn stop(&self) {
        // Release: pairs with the Acquire in `Mailbox::stopped`.
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
    }
}

/// Ends an endpoint's [`run`](crate::Endpoint::run) from another thread.
#[derive(Clone)]
pub struct Stopper(Door);

impl Stopper {
    pub(crate) fn new(door: Door) -> Stopper {
        Stopper(door)
    }

    /// Makes `run` return soon, or the next `run` at once. It does not close anything.
    pub fn stop(&self) {
        self.0.stop();
    }
}

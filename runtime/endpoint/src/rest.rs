//! What an endpoint, its channels, and messages that were taken from them know of its sleep.

use crate::control::Door;
use std::cell::Cell;

pub(crate) struct Rest {
    all_armed: Cell<bool>,
    /// Somebody waits on the endpoint's descriptor, for as long as it takes.
    armed: Cell<bool>,
    returned: Cell<bool>,
    granted: Cell<bool>,
    door: Door,
}

impl Rest {
    pub(crate) fn new(door: Door) -> Rest {
        Rest {
            all_armed: Cell::default(),
            armed: Cell::default(),
            returned: Cell::default(),
            granted: Cell::default(),
            door,
        }
    }

    /// Whether all channels are armed, and nobody waits for room: then nothing of them has to be looked at before the next sleep. With a
    /// thousand channels that is 100 us every 10 ms, because nothing of them is in a cache any more.
    pub(crate) fn is_undisturbed(&self) -> bool {
        self.all_armed.get()
    }

    pub(crate) fn settle(&self, all_armed: bool) {
        self.all_armed.set(all_armed);
    }

    /// They have to be looked at before the next sleep.
    pub(crate) fn disturb(&self) {
        self.all_armed.set(false);
    }

    /// Notes that frames that were kept are given back. Who waits on the descriptor, while another one's handler does this, is woken to tell it.
    pub(crate) fn note_returns(&self) {
        self.returned.set(true);
        if self.armed.get() {
            self.door.ring();
        }
    }

    /// Whether that was noted since this was last asked.
    pub(crate) fn had_returns(&self) -> bool {
        self.returned.take()
    }

    pub(crate) fn set_armed(&self, armed: bool) {
        self.armed.set(armed);
    }

    /// Notes that there is room for who has found none.
    pub(crate) fn grant_room(&self) {
        self.granted.set(true);
    }

    /// Whether that was noted since this was last asked: by somebody who slept for something else, perhaps.
    pub(crate) fn was_granted(&self) -> bool {
        self.granted.take()
    }
}

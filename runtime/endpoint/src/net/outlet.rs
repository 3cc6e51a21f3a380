//! The way out: from the channels of a device into its send ring.

use super::far::Way;
use super::line::Inner;
use tightbeam_segment::{DeviceError, Outgoing, Port};

/// Times that a device whose send ring is full is asked to make room before the rest waits for the next turn.
const TRIES: usize = 3;

impl Inner {
    /// Sends what the desk has to say.
    #[inline]
    pub(super) fn answer_desk(&mut self) {
        if self.desk.has_answers() {
            self.unkicked |= self.desk.send_answers(&mut *self.device);
        }
    }

    /// Whether there is something that an earlier turn could not send.
    pub(super) fn waits(&self) -> bool {
        self.unkicked || !self.pending.is_empty() || self.desk.has_answers()
    }

    pub(super) fn send_past(
        &mut self,
        slot: u16,
        near: &Port,
        what: (Outgoing, u16),
        bytes: &[u8],
    ) -> bool {
        if self.waits() {
            return false;
        }
        let Some(Some(far)) = self.fars.get_mut(usize::from(slot)) else {
            return false;
        };
        let mut way = Way {
            device: &mut *self.device,
            alone: true,
            kicked: None,
        };
        let sent = far.send_past(near, what, bytes, &mut way);
        self.news.extend(far.take_ended());
        if let Some(kicked) = way.kicked {
            self.unkicked = note_kick(kicked, &mut self.failed);
        }
        sent
    }

    /// Sends what waits, and has the device send it on its way. Whether the device has had no room for all of it.
    pub(super) fn flush(&mut self) -> bool {
        for _ in 0..TRIES {
            self.answer_desk();
            let full = self.send_pending() || self.desk.has_answers();
            let left = self.kick();
            if !full {
                return left;
            }
            self.device.reclaim();
        }
        true
    }

    /// Whether the device's send ring is full before all is sent. What cannot be sent for another reason stays, and keeps nobody else
    /// from sending.
    fn send_pending(&mut self) -> bool {
        let mut next = 0;
        while let Some(&slot) = self.pending.get(next) {
            let Inner {
                device,
                fars,
                unkicked,
                failed,
                news,
                desk,
                pending,
                ..
            } = self;
            if let Some(Some(far)) = fars.get_mut(usize::from(slot)) {
                let mut way = Way {
                    device: &mut **device,
                    alone: pending.len() == 1 && !desk.has_answers(),
                    kicked: None,
                };
                let sent = far.send(&mut way);
                news.extend(far.take_ended());
                match (sent, way.kicked) {
                    (Ok(_), Some(kicked)) => *unkicked = note_kick(kicked, failed),
                    (Ok(sent), None) => *unkicked |= sent,
                    (Err(DeviceError::Full), _) => {
                        *unkicked = true;
                        // Next time the others come first.
                        self.pending.rotate_left(next + 1);
                        return true;
                    }
                    (Err(error), _) => {
                        *failed = Some(error);
                        next += 1;
                        continue;
                    }
                }
            }
            self.pending.swap_remove(next);
        }
        false
    }

    /// Whether something is left that the device is to be asked for again soon.
    pub(super) fn kick(&mut self) -> bool {
        if !self.unkicked {
            return false;
        }
        let kicked = self.device.kick();
        let went = kicked.is_ok();
        self.unkicked = note_kick(kicked, &mut self.failed);
        self.unkicked && went
    }
}

/// Whether a device that was told to send is to be told again.
fn note_kick(kicked: Result<bool, DeviceError>, failed: &mut Option<DeviceError>) -> bool {
    kicked.unwrap_or_else(|error| {
        *failed = Some(error);
        // What it keeps until it is up again, each turn asks for.
        true
    })
}

//! Memory for frames that a peer has passed: taken a little at a time, because it is the peer who decides how much there is.

use crate::PeerFault;
use crate::frames::Arrived;
use crate::layout::{MAX_GRANTED, MAX_SEGMENTS, SLOT_BYTES};
use crate::port::Port;
use alloc::rc::Rc;

/// What is taken at a look of what has come beside the ring: to map a small piece of memory takes 10 to 40 us.
const TAKEN_AT_ONCE: usize = 8;

/// What [`Port::take_grants`] has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// Nothing.
    No,
    /// It has taken enough for one look.
    Now,
    /// The next piece is being made ready.
    Later,
}

impl Port {
    /// Takes memory that the peer has passed, a bounded number of pieces. Whether there may be more.
    pub fn take_grants(&self) -> Result<More, PeerFault> {
        let Some(equipment) = &self.frames.equipment else {
            return Ok(More::No);
        };
        let mut shelf = self.frames.shelf.borrow_mut();
        for _ in 0..TAKEN_AT_ONCE {
            let granted = match equipment.courier.granted()? {
                Arrived::Memory(granted) => granted,
                Arrived::Other => continue,
                Arrived::Later => return Ok(More::Later),
                Arrived::Nothing => return Ok(More::No),
            };
            let more = granted.memory.lines() * SLOT_BYTES;
            let taken = self.frames.taken.get() + more;
            if shelf.len() >= MAX_SEGMENTS || taken > MAX_GRANTED {
                return Err(PeerFault::Control);
            }
            self.frames.taken.set(taken);
            shelf.push(Rc::new(granted));
        }
        Ok(More::Now)
    }
}

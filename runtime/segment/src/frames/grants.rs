//! Memory for frames that a peer has passed: taken a little at a time, because it is the peer who decides how much there is.

use crate::PeerFault;
use crate::frames::Arrived;
use crate::layout::{MAX_GRANTED, MAX_PIECE, MAX_SEGMENTS, SLOT_BYTES};
use crate::port::Port;
use alloc::rc::Rc;

/// What is taken at a look of what has come beside the ring: to map a piece of memory takes some 6 us. And no further piece after the one with
/// which they are together a quarter of the longest, because all of its pages are looked for.
const TAKEN_AT_ONCE: usize = 8;

impl Port {
    /// Takes memory that the peer has passed, a bounded number of pieces; `false` if all that has come was taken.
    pub fn take_grants(&self) -> Result<bool, PeerFault> {
        let Some(equipment) = &self.frames.equipment else {
            return Ok(false);
        };
        let mut shelf = self.frames.shelf.borrow_mut();
        let mut looked_at = 0;
        for _ in 0..TAKEN_AT_ONCE {
            let granted = match equipment.courier.granted()? {
                Arrived::Memory(granted) => granted,
                Arrived::Other => continue,
                Arrived::Nothing => return Ok(false),
            };
            let more = granted.memory.lines() * SLOT_BYTES;
            let taken = self.frames.taken.get() + more;
            if shelf.len() >= MAX_SEGMENTS || taken > MAX_GRANTED {
                return Err(PeerFault::Control);
            }
            self.frames.taken.set(taken);
            shelf.push(Rc::new(granted));
            looked_at += more;
            if looked_at >= MAX_PIECE / 4 {
                break;
            }
        }
        Ok(true)
    }
}

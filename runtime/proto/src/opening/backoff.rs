//! When something is said again: after 20 ms, then after twice as long each time, up to a second, until patience ends.

/// Nanoseconds until the first repetition. A round trip in one building takes less than 1 ms, so what has not come by then is lost,
/// or somebody has been woken.
const FIRST: u64 = 20_000_000;
const DOUBLINGS: u32 = 6;
const LONGEST: u64 = 1_000_000_000;

/// What it is time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// To send the packet that has just been written, so many bytes; of a bare [`Backoff`], to write and send it: the number is 0.
    Send(usize),
    /// To wait until then, in nanoseconds, for an answer.
    Wait(u64),
    /// To give up: nobody has answered.
    GiveUp,
}

/// Repeats with growing intervals. A CLOSE goes by a bare one, until it is answered:
///
/// ```
/// use tightbeam_proto::opening::{Backoff, Turn};
///
/// let mut closing = Backoff::new(100_000_000, 0);
/// assert_eq!(closing.turn(0), Turn::Send(0));
/// let Turn::Wait(until) = closing.turn(1) else { panic!() };
/// assert_eq!(closing.turn(until), Turn::Send(0));
/// assert_eq!(closing.turn(100_000_000), Turn::GiveUp);
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    tries: u32,
    due: u64,
    end: u64,
}

impl Backoff {
    /// Begins now, in nanoseconds of the caller's clock, and gives up after so many.
    pub fn new(patience: u64, now: u64) -> Backoff {
        Backoff {
            tries: 0,
            due: now,
            end: now.saturating_add(patience),
        }
    }

    /// What it is time for.
    pub fn turn(&mut self, now: u64) -> Turn {
        if now >= self.end {
            return Turn::GiveUp;
        }
        if now < self.due {
            return Turn::Wait(self.due.min(self.end));
        }
        let interval = (FIRST << self.tries.min(DOUBLINGS)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        self.due = now.saturating_add(interval);
        Turn::Send(0)
    }

    /// How often it was said.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// There has been an answer to which something else is to be said, at once; patience ends when it would have.
    pub(super) fn start_over(&mut self, now: u64) {
        (self.tries, self.due) = (0, now);
    }

    /// The same, said once more at once, without the intervals starting over.
    pub(super) fn at_once(&mut self, now: u64) {
        self.due = now;
    }
}

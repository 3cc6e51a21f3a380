//! What a path must be able to do to be measured: one side of a two-way link.
//!
//! Each file in `paths/` implements it once for both of its sides; `near` and
//! `far` are generic over it, so that the compiler sees each path as one piece.
//! Nothing in here waits: a full ring and an empty one are answers.

use crate::fault::Fault;
use crate::payload::{answer, seed};
use crate::wait::until;

/// One side of a link. `number` counts messages since the link was opened, and
/// both sides know which one is next.
pub(crate) trait Link {
    /// Writes a whole message that starts with `seed` and publishes it.
    /// `false`: no room now, nothing was sent.
    fn send(&mut self, seed: u64) -> Result<bool, Fault>;

    /// Takes one message, reads all of it and checks that it starts with `seed`.
    /// `false`: nothing there now.
    fn receive(&mut self, number: u64, seed: u64) -> Result<bool, Fault>;

    /// Takes message `number` and answers it. `false`: nothing there now.
    #[inline(always)]
    fn echo(&mut self, number: u64) -> Result<bool, Fault> {
        let seed = seed(number);
        if !self.receive(number, seed)? {
            return Ok(false);
        }
        until(|| self.send(answer(seed)))?;
        Ok(true)
    }

    /// Sends at least none and at most `most` messages from number `first` on;
    /// says how many. A path with a batch interface overrides it.
    #[inline(always)]
    fn send_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        debug_assert!(most > 0);
        self.send(seed(first)).map(u64::from)
    }

    /// Takes and checks at least none and at most `most` messages from number
    /// `first` on; says how many.
    #[inline(always)]
    fn receive_some(&mut self, first: u64, most: u64) -> Result<u64, Fault> {
        debug_assert!(most > 0);
        self.receive(first, seed(first)).map(u64::from)
    }

    /// Tells the sender's side that a one-way batch is over and that `next` is
    /// the next number, for a path that counts answers by itself.
    fn streamed(&mut self, _next: u64) {}
}

//! Two processes that write and read plain shared memory in turns: what the bench compares frames with.
//!
//! ```text
//!   my block     | turn |  ...  | words that I write, then count the turn |
//!   the other's  | turn |  ...  | words that I read, once its turn counts |
//! ```
//!
//! Ordinary stores and loads, as fast as the compiler can make them. No check, no ledger: both processes must be trusted.

use crate::Errno;
use crate::block::SharedBlock;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// Where the turn is counted, and where the words begin: a page further, so that they share no line and no prefetch.
const TURN: usize = 0;
const BEGIN: usize = 512;

/// One side of an exchange in turns.
pub struct Turns {
    own: SharedBlock,
    other: SharedBlock,
    /// Turns that this side has taken, and the other.
    taken: u64,
    heard: u64,
}

/// Makes a block for one direction of at most `words` words.
pub fn block(words: usize) -> Result<SharedBlock, Errno> {
    SharedBlock::create(BEGIN + words)
}

impl Turns {
    /// Joins the block that this side writes with that of the other side; both of `words` words.
    pub fn new(own: SharedBlock, other: OwnedFd, words: usize) -> Result<Turns, Errno> {
        let other = SharedBlock::open(other, BEGIN + words)?;
        Ok(Turns {
            own,
            other,
            taken: 0,
            heard: 0,
        })
    }

    /// The descriptor of the block that this side writes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.own.fd()
    }

    /// Writes `first`, `first + 1` and so on into `words` words, at most as many as there are, and counts the turn.
    pub fn say(&mut self, words: usize, first: u64) {
        let room = &self.own.words()[BEGIN..];
        let count = words.min(room.len());
        let at = room.as_ptr().cast_mut().cast::<u64>();
        for number in 0..count {
            // SAFETY:
            // bounds: number < count <= the words from BEGIN on. alignment: as an AtomicU64. initialised: written, not read.
            // aliasing: only this side writes the block, and the other reads it between this turn's count and its own next one,
            // which `hear` has waited for if it was used in turns; who does not gets wrong sums, both being trusted.
            unsafe {
                at.wrapping_add(number)
                    .write(first.wrapping_add(number as u64))
            };
        }
        self.taken += 1;
        // Release: pairs with the Acquire in `hear`.
        self.own.words()[TURN].store(self.taken, Ordering::Release);
    }

    /// The sum of the first `words` words that the other side has written, once it has counted its next turn; `None` before.
    pub fn hear(&mut self, words: usize) -> Option<u64> {
        // Acquire: pairs with the Release in `say`.
        if self.other.words()[TURN].load(Ordering::Acquire) == self.heard {
            return None;
        }
        self.heard += 1;
        let room = &self.other.words()[BEGIN..];
        let count = words.min(room.len());
        let at = room.as_ptr().cast::<u64>();
        let mut sum = 0u64;
        for number in 0..count {
            // SAFETY:
            // bounds: number < count <= the words from BEGIN on. alignment: as an AtomicU64. initialised: any bits are a u64.
            // aliasing: the other side writes them before it counts its turn, and again only after ours, which follows this.
            sum = sum.wrapping_add(unsafe { at.wrapping_add(number).read() });
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_says_the_other_hears_once() {
        let [left, right] = [(), ()].map(|()| block(100).unwrap());
        let [of_left, of_right] = [&left, &right].map(|b| b.fd().try_clone_to_owned().unwrap());
        let mut left = Turns::new(left, of_right, 100).unwrap();
        let mut right = Turns::new(right, of_left, 100).unwrap();
        assert_eq!(right.hear(100), None);
        left.say(100, 5);
        assert_eq!(right.hear(100), Some((5..105).sum()));
        assert_eq!(right.hear(100), None);
        right.say(1, 7);
        assert_eq!(left.hear(1), Some(7));
        // No more than there are.
        left.say(1 << 30, 0);
        assert!(right.hear(1 << 30).is_some());
    }
}

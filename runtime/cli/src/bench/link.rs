//! What both processes share besides the path: the floor's two words, and a word by which the first process says what comes next.
//!
//! ```text
//!   first process                              second process
//!   PING  ---- floor, there ---->
//!         <--- floor, back ------  PONG
//!   COMMAND -- step, cell, n --->
//!         <--- n handled --------  DONE, after the CPU time of that in USED
//! ```
//!
//! **The floor** is what the hardware takes to move one word from one CPU to the other and one back: each direction in a cache
//! line of its own, both sides spinning. Every latency is put in proportion to it.
//!
//! Each word has one writer. The first process gives the next command only when the last one is finished, so none is missed.

use super::fault::Broken;
use super::spec::Pause;
use super::watch::spin;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use tightbeam_sys::memory::SharedWords;

const PING: usize = 0;
const PONG: usize = 1;
const COMMAND: usize = 2;
const DONE: usize = 3;
const USED: usize = 4;
const WORDS: usize = 5;

/// The most messages or exchanges of one step.
pub(crate) const MAX_COUNT: u32 = 1 << 24;
/// The most cells of a group.
pub(crate) const MAX_CELLS: usize = 256;

/// What the second process shall do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Answer on the floor.
    Floor,
    /// Answer exchanges of a cell, or take its one-way messages.
    Serve(u8),
    /// Leave the group.
    Quit,
}

/// Sequence number (24 bits), kind (8), cell (8), count (24).
fn encode(sequence: u32, step: Step, count: u32) -> u64 {
    let (kind, cell) = match step {
        Step::Floor => (1, 0),
        Step::Serve(cell) => (2, cell),
        Step::Quit => (3, 0),
    };
    let count = u64::from(count.min(MAX_COUNT - 1));
    (u64::from(sequence) << 40) | (kind << 32) | (u64::from(cell) << 24) | count
}

fn decode(word: u64) -> (Step, u32) {
    let cell = (word >> 24) as u8;
    let step = match (word >> 32) as u8 {
        1 => Step::Floor,
        2 => Step::Serve(cell),
        _ => Step::Quit,
    };
    (step, (word & u64::from(MAX_COUNT - 1)) as u32)
}

/// One side of the shared words.
pub(crate) struct Link {
    words: SharedWords,
    pause: Pause,
    /// Sequence number of the last command.
    sequence: u32,
    /// The last command word seen.
    command: u64,
    /// The last value that went over the floor.
    bounced: u64,
}

impl Link {
    pub(crate) fn create(pause: Pause) -> std::io::Result<Link> {
        Ok(Link::new(SharedWords::create(WORDS)?, pause))
    }

    pub(crate) fn open(fd: OwnedFd, pause: Pause) -> std::io::Result<Link> {
        Ok(Link::new(SharedWords::open(fd, WORDS)?, pause))
    }

    fn new(words: SharedWords, pause: Pause) -> Link {
        Link {
            words,
            pause,
            sequence: 0,
            command: 0,
            bounced: 0,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.words.fd()
    }

    /// First process: says what comes next.
    pub(crate) fn command(&mut self, step: Step, count: u32) {
        self.sequence = (self.sequence + 1) & 0xff_ffff;
        let word = encode(self.sequence, step, count);
        // Release: pairs with the Acquire in `next`.
        self.words.word(COMMAND).store(word, Ordering::Release);
    }

    /// Second process: waits for the next command.
    pub(crate) fn next(&mut self) -> Result<(Step, u32), Broken> {
        let (words, last) = (&self.words, self.command);
        let word = spin(self.pause, || {
            // Acquire: pairs with the Release in `command`.
            let word = words.word(COMMAND).load(Ordering::Acquire);
            Ok((word != last).then_some(word))
        })?;
        self.command = word;
        Ok(decode(word))
    }

    /// Second process: so many messages of the last command came, which took so many nanoseconds of its CPU's time.
    pub(crate) fn done(&self, count: u32, used: u64) {
        // It is read after `DONE`, whose Release covers it.
        self.words.word(USED).store(used, Ordering::Relaxed);
        let word = (self.command & !u64::from(MAX_COUNT - 1)) | u64::from(count);
        // Release: pairs with the Acquire in `wait_done`.
        self.words.word(DONE).store(word, Ordering::Release);
    }

    /// First process: waits until the last command is done; returns how many messages came.
    pub(crate) fn wait_done(&self) -> Result<u32, Broken> {
        let sequence = self.sequence;
        spin(self.pause, || {
            // Acquire: pairs with the Release in `done`.
            let word = self.words.word(DONE).load(Ordering::Acquire);
            let same = (word >> 40) as u32 == sequence;
            Ok(same.then_some((word & u64::from(MAX_COUNT - 1)) as u32))
        })
    }

    /// First process, after [`wait_done`](Self::wait_done): nanoseconds of CPU time that the second one took for the last command.
    pub(crate) fn used(&self) -> u64 {
        self.words.word(USED).load(Ordering::Relaxed)
    }

    /// First process: `count` round trips on the floor.
    #[inline(never)]
    pub(crate) fn floor_there(&mut self, count: u32) -> Result<(), Broken> {
        let (ping, pong) = (self.words.word(PING), self.words.word(PONG));
        for value in self.bounced + 1..=self.bounced + u64::from(count) {
            // Release, Acquire: pair with those in `floor_back`, as a message's header would.
            ping.store(value, Ordering::Release);
            spin(self.pause, || {
                Ok((pong.load(Ordering::Acquire) == value).then_some(()))
            })?;
        }
        self.bounced += u64::from(count);
        Ok(())
    }

    /// Second process: its side of them.
    #[inline(never)]
    pub(crate) fn floor_back(&mut self, count: u32) -> Result<(), Broken> {
        let (ping, pong) = (self.words.word(PING), self.words.word(PONG));
        for value in self.bounced + 1..=self.bounced + u64::from(count) {
            // Acquire, Release: pair with those in `floor_there`.
            spin(self.pause, || {
                Ok((ping.load(Ordering::Acquire) == value).then_some(()))
            })?;
            pong.store(value, Ordering::Release);
        }
        self.bounced += u64::from(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_word() {
        for (step, count) in [
            (Step::Floor, 1),
            (Step::Serve(255), 1000),
            (Step::Serve(7), MAX_COUNT - 1),
            (Step::Quit, 0),
        ] {
            assert_eq!(decode(encode(0xff_ffff, step, count)), (step, count));
        }
        assert_ne!(encode(1, Step::Floor, 5), encode(2, Step::Floor, 5));
    }
}

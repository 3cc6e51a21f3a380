//! The hardware floor: two sides bounce one atomic word, each direction on
//! its own 128-byte line.
//!
//! `near` and `far` call the two halves in a batch between the batches of the
//! path under measurement. No message, no ring, no payload: nothing that moves
//! bytes between these two CPUs through the cache can be faster. Never used as
//! a way to synchronise.

use std::sync::atomic::Ordering::{Acquire, Release};

use crate::fault::Fault;
use crate::wait::until;
use crate::words::{Word, Words};

/// The side that starts and measures: `count` round trips after the first `start`.
#[inline(never)]
pub(crate) fn ping(words: &Words, start: u64, count: u64) -> Result<(), Fault> {
    let (ping, pong) = (words.word(Word::Ping), words.word(Word::Pong));
    for turn in start + 1..=start + count {
        ping.store(turn, Release);
        until(|| Ok(pong.load(Acquire) == turn))?;
    }
    Ok(())
}

/// The side that answers.
#[inline(never)]
pub(crate) fn pong(words: &Words, start: u64, count: u64) -> Result<(), Fault> {
    let (ping, pong) = (words.word(Word::Ping), words.word(Word::Pong));
    for turn in start + 1..=start + count {
        until(|| Ok(ping.load(Acquire) == turn))?;
        pong.store(turn, Release);
    }
    Ok(())
}

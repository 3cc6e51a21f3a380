//! The near side: runs one batch at a time and says how long it took.
//!
//! `harness` holds one [`Near`] for each path under measurement, behind
//! [`Runner`], and decides which batch comes next. It never decides how a
//! figure is made out of batches.

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use tightbeam_sys::clock::TickClock;

use crate::far::{Command, FIRST, Far};
use crate::fault::Fault;
use crate::floor;
use crate::link::Link;
use crate::payload::{answer, seed};
use crate::wait::until;
use crate::words::{Word, Words};

/// Exchanges before the clock starts, in each batch: the far side has just
/// been woken, and neither side's caches hold what this batch uses.
const WARM_UP: u64 = 64;

fn wait_for(words: &Words, word: Word, value: u64) -> Result<(), Fault> {
    let word = words.word(word);
    until(|| Ok(word.load(Acquire) == value))
}

/// A path under measurement, whatever it is made of.
pub(crate) trait Runner {
    /// `count` round trips of the bare word.
    fn floor(&mut self, count: u64) -> Result<Duration, Fault>;

    /// `count` round trips of messages, with a look at the clock only before and after.
    fn ping(&mut self, count: u64) -> Result<Duration, Fault>;

    /// The same, with a look at the clock after each; leaves the ticks that each
    /// single round trip took in `each`.
    fn ping_each(
        &mut self,
        count: u64,
        clock: &TickClock,
        each: &mut Vec<u64>,
    ) -> Result<(), Fault>;

    /// `count` messages one way, from before the first is sent until the far
    /// side has read the last.
    fn stream(&mut self, count: u64) -> Result<Duration, Fault>;

    /// Ends the far side and says whether it ended well.
    fn stop(&mut self) -> Result<(), Fault>;
}

/// The near side of one link.
pub(crate) struct Near<L> {
    link: L,
    far: Far,
    words: Words,
    /// Commands given, as the far side counts them.
    given: u64,
    /// Round trips of the bare word so far.
    turn: u64,
    /// Number of the next message.
    next: u64,
}

impl<L: Link> Near<L> {
    /// Waits until the far side is there.
    pub(crate) fn meet(link: L, far: Far, words: Words) -> Result<Self, Fault> {
        Self::meet_then(far, words, || Ok(link))
    }

    /// The same for a path whose near side can be opened only then.
    pub(crate) fn meet_then(
        mut far: Far,
        words: Words,
        open: impl FnOnce() -> Result<L, Fault>,
    ) -> Result<Self, Fault> {
        let ready = words.word(Word::Ready);
        let met = until(|| match ready.load(Acquire) {
            FIRST => Ok(true),
            _ if far.ended() => Err(Fault::Far("it ended at once".into())),
            _ => Ok(false),
        });
        if met.is_err() {
            // What it says itself explains more.
            far.stop()?;
        }
        met?;
        Ok(Self {
            link: open()?,
            far,
            words,
            given: FIRST,
            turn: 0,
            next: 0,
        })
    }

    /// Gives a command and returns when the far side has begun to obey.
    fn begin(&mut self, command: Command, count: u64) -> Result<(), Fault> {
        self.far.command(command, count)?;
        self.given += 1;
        wait_for(&self.words, Word::Ready, self.given)
    }

    #[inline(always)]
    fn exchange(&mut self) -> Result<(), Fault> {
        let (number, seed) = (self.next, seed(self.next));
        until(|| self.link.send(seed))?;
        until(|| self.link.receive(number, answer(seed)))?;
        self.next += 1;
        Ok(())
    }

    #[inline(never)]
    fn exchanges(&mut self, count: u64) -> Result<(), Fault> {
        for _ in 0..count {
            self.exchange()?;
        }
        Ok(())
    }

    #[inline(never)]
    fn send_all(&mut self, count: u64) -> Result<(), Fault> {
        let (mut next, end) = (self.next, self.next + count);
        while next < end {
            until(|| {
                let sent = self.link.send_some(next, end - next)?;
                next += sent;
                Ok(sent > 0)
            })?;
        }
        self.next = end;
        self.link.streamed(end);
        Ok(())
    }
}

impl<L: Link> Runner for Near<L> {
    fn floor(&mut self, count: u64) -> Result<Duration, Fault> {
        self.begin(Command::Floor, WARM_UP + count)?;
        floor::ping(&self.words, self.turn, WARM_UP)?;
        let start = Instant::now();
        floor::ping(&self.words, self.turn + WARM_UP, count)?;
        let took = start.elapsed();
        self.turn += WARM_UP + count;
        Ok(took)
    }

    fn ping(&mut self, count: u64) -> Result<Duration, Fault> {
        self.begin(Command::Echo, WARM_UP + count)?;
        self.exchanges(WARM_UP)?;
        let start = Instant::now();
        self.exchanges(count)?;
        Ok(start.elapsed())
    }

    fn ping_each(
        &mut self,
        count: u64,
        clock: &TickClock,
        each: &mut Vec<u64>,
    ) -> Result<(), Fault> {
        each.clear();
        // Before the batch: growing it in between would be measured.
        each.reserve(count as usize);
        self.begin(Command::Echo, WARM_UP + count)?;
        self.exchanges(WARM_UP)?;
        let mut last = clock.now();
        for _ in 0..count {
            self.exchange()?;
            let now = clock.now();
            each.push(now.wrapping_sub(last));
            last = now;
        }
        Ok(())
    }

    fn stream(&mut self, count: u64) -> Result<Duration, Fault> {
        self.begin(Command::Drain, count)?;
        let start = Instant::now();
        self.send_all(count)?;
        wait_for(&self.words, Word::Done, self.given)?;
        Ok(start.elapsed())
    }

    fn stop(&mut self) -> Result<(), Fault> {
        self.far.stop()
    }
}

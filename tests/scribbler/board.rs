//! Numbers that all processes of a run share beside the library, the seeded random numbers, and the clocks.

use rustix::time::{ClockId, clock_gettime};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use tightbeam_sys::memory::SharedWords;

/// What is on the board. Each word has one writer, but [`Panics`](Word::Panics).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Word {
    // Written by the test.
    Seed,
    /// The victim sleeps when there is nothing to do.
    Sleeps,
    /// What the scribbler shall do: [`REST`], [`IDLE`], [`SCRIBBLE`] or [`STOP`].
    Mode,
    StopClient,
    StopVictim,
    /// The victim shall say how much it holds.
    Measure,
    // Written by the victim.
    Ready,
    /// Channels that the scribbler has had.
    Opened,
    /// The number of the one that it has now, or 0.
    Current,
    Measured,
    Descriptors,
    Mappings,
    Kibibytes,
    Polls,
    Handled,
    Sends,
    Calls,
    CallsAnswered,
    /// Payloads that changed under their handler, or had another length than they said.
    Torn,
    /// Ends of channels that were not the scribbler's.
    Strangers,
    PollMax,
    PollP9999,
    PollOver,
    PollStolen,
    RestPolls,
    RestMax,
    RestP9999,
    RestOver,
    RestStolen,
    // Written by the client.
    ClientPid,
    Asked,
    /// Its CPU time in nanoseconds, and calls until then; the calls that took longer than
    /// [`SLOW`](crate::client::SLOW).
    Ran,
    AskedThen,
    Slow,
    Wrong,
    Lost,
    // Written by the scribbler.
    /// The mode in which it does nothing, plus one; or 0.
    Resting,
    Mutations,
    OnOpen,
    Legal,
    Wakes,
    Babbles,
    Refused,
    // Written by all.
    Panics,
    /// The first of as many as [`ENDS`](crate::victim::ENDS).
    Ends,
}

const WORDS: usize = 128;

/// Modes of the scribbler. Without a channel, and with one that it does not touch, it spins on private memory.
pub(crate) const REST: u64 = 0;
pub(crate) const IDLE: u64 = 1;
pub(crate) const SCRIBBLE: u64 = 2;
pub(crate) const STOP: u64 = 3;

pub(crate) struct Board(SharedWords);

impl Board {
    /// The board that belongs to an address; whoever asks first makes it.
    pub(crate) fn of(address: &str) -> Board {
        let socket = address.strip_prefix("shm:").expect("a shm address");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(format!("{socket}.board"))
            .expect("a file in a private directory");
        file.set_len(1 << 16).expect("room for the board");
        Board(SharedWords::open(OwnedFd::from(file), WORDS).expect("a mapping"))
    }

    pub(crate) fn get(&self, word: Word) -> u64 {
        self.at(word, 0)
    }

    pub(crate) fn set(&self, word: Word, value: u64) {
        self.0.word(word as usize).store(value, Ordering::Release);
    }

    /// The word so many behind this one.
    pub(crate) fn at(&self, word: Word, behind: usize) -> u64 {
        self.0.word(word as usize + behind).load(Ordering::Acquire)
    }

    pub(crate) fn add_at(&self, word: Word, behind: usize, count: u64) {
        let word = self.0.word(word as usize + behind);
        word.fetch_add(count, Ordering::AcqRel);
    }

    pub(crate) fn add(&self, word: Word, count: u64) {
        self.add_at(word, 0, count);
    }
}

/// The random numbers of Marsaglia's xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // Spread, so that neighbouring seeds have nothing in common; and never 0.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `end`.
    #[inline]
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 32) as usize * end) >> 32
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// CPU time of this thread in nanoseconds.
pub(crate) fn own_time() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Keeps this thread, and those that it starts, on the first CPU or on the second.
pub(crate) fn pin(which: usize) {
    if let Ok(cpus) = tightbeam_sys::cpu::allowed()
        && let Some(cpu) = cpus.get(which)
    {
        let _ = tightbeam_sys::cpu::pin(*cpu);
    }
}

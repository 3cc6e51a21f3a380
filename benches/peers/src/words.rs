//! A few atomic words, each on its own 128-byte line, that two threads or two
//! processes share.
//!
//! `floor` bounces two of them, `near` and `far` keep step with the others.
//! They are the words that `tightbeam bench` bounces, in a memfd in either
//! case, so that the floor of two threads and that of two processes is the
//! same code over the same kind of memory. Never holds a payload.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use rustix::io::{FdFlags, dup, fcntl_setfd};
use tightbeam_sys::memory::SharedWords;

use crate::fault::Fault;

/// What each word is for. One writer each.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(crate) enum Word {
    /// The floor's way there. Written by the near side.
    Ping,
    /// The floor's way back. Written by the far side.
    Pong,
    /// How many commands the far side has taken up. Written by the far side.
    Ready,
    /// The last command that the far side has finished. Written by the far side.
    Done,
}

const WORDS: usize = 4;

/// The shared words. The memory goes when the last side unmaps it.
pub(crate) struct Words(SharedWords);

impl Words {
    /// New words, all zero.
    pub(crate) fn create() -> Result<Self, Fault> {
        SharedWords::create(WORDS)
            .map(Self)
            .map_err(Fault::doing("creating the shared words"))
    }

    /// The words that the parent process created, by the number of its descriptor.
    pub(crate) fn inherited(number: RawFd) -> Result<Self, Fault> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{number}"))
            .map_err(Fault::doing("opening the inherited words"))?;
        SharedWords::open(file.into(), WORDS)
            .map(Self)
            .map_err(Fault::doing("mapping the inherited words"))
    }

    /// The same words once more, for the other side in the same process.
    pub(crate) fn twin(&self) -> Result<Self, Fault> {
        let fd = dup(self.0.fd()).map_err(Fault::doing("duplicating the shared words"))?;
        SharedWords::open(fd, WORDS)
            .map(Self)
            .map_err(Fault::doing("mapping the shared words"))
    }

    /// A descriptor that a child process inherits while the parent holds it.
    pub(crate) fn for_a_child(&self) -> Result<Inheritable, Fault> {
        let fd = dup(self.0.fd()).map_err(Fault::doing("duplicating the shared words"))?;
        fcntl_setfd(&fd, FdFlags::empty()).map_err(Fault::doing("passing on the shared words"))?;
        Ok(Inheritable(fd))
    }

    /// One of the words.
    #[inline(always)]
    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        self.0.word(word as usize)
    }
}

/// The words' descriptor, open across `exec`.
#[derive(Debug)]
pub(crate) struct Inheritable(OwnedFd);

impl Inheritable {
    /// What to hand to [`Words::inherited`] in the child.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

//! The paths that are compared. One file each; a new path is a new file and a line in [`ALL`].
//!
//! ```text
//!   first process                                     second process
//!   offer(spec) -> Offer -- descriptors, address -->  join(spec) -> Station
//!   Offer::finish() -> Lane
//!   Lane::Exchange, Lane::Pour   == messages ==       Station::serve
//! ```
//!
//! The traits with `dyn` are called once a batch. What runs once a message is generic and has no dynamic call in it:
//! [`Initiator`], [`Responder`], and for most paths [`wire::Stream`] or [`datagram::Datagram`].

mod datagram;
mod device;
mod futex;
mod ours;
mod pipe;
mod rings;
mod shm;
mod tcp;
mod udp;
mod unix;
mod uring;
mod wire;

use super::fault::Broken;
use super::spec::{Job, Spec, Wait};
use super::watch::Release;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path as FilePath, PathBuf};
use tightbeam_sys::clock::TickClock;

/// All paths within a host, in the order of the table.
pub(crate) const ALL: &[&dyn Path] = &[
    &shm::Shm,
    &futex::Futex,
    &pipe::Pipe { coalesced: false },
    &pipe::Pipe { coalesced: true },
    &unix::UnixStream { coalesced: false },
    &unix::UnixStream { coalesced: true },
    &unix::UnixSeqpacket,
    &tcp::Tcp { coalesced: false },
    &tcp::Tcp { coalesced: true },
    &udp::Udp {
        over: udp::Over::Loopback,
        gather: false,
    },
    &uring::UdpUring {
        over: udp::Over::Loopback,
    },
];

/// Those between two hosts.
pub(crate) const NET: &[&dyn Path] = &[
    &ours::Ours {
        by: ours::By::Udp,
        gather: false,
    },
    &ours::Ours {
        by: ours::By::Udp,
        gather: true,
    },
    &ours::Ours {
        by: ours::By::UdpUring,
        gather: false,
    },
    &ours::Ours {
        by: ours::By::XdpGeneric,
        gather: false,
    },
    &ours::Ours {
        by: ours::By::XdpGeneric,
        gather: true,
    },
    &device::Bare {
        mode: device::Mode::Generic,
        floor: true,
    },
    &device::Bare {
        mode: device::Mode::Generic,
        floor: false,
    },
    &ours::Ours {
        by: ours::By::XdpNative,
        gather: false,
    },
    &ours::Ours {
        by: ours::By::XdpNative,
        gather: true,
    },
    &device::Bare {
        mode: device::Mode::Native,
        floor: true,
    },
    &device::Bare {
        mode: device::Mode::Native,
        floor: false,
    },
    &udp::Udp {
        over: udp::Over::Cable,
        gather: false,
    },
    &udp::Udp {
        over: udp::Over::Cable,
        gather: true,
    },
    &uring::UdpUring {
        over: udp::Over::Cable,
    },
];

/// The path of this name.
pub(crate) fn find(name: &str) -> Option<&'static dyn Path> {
    let mut all = ALL.iter().chain(NET).copied();
    all.find(|path| path.name() == name)
}

/// What a path counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Shared memory or a pipe: compared with sockets, never the reference.
    Other,
    /// A socket that is given each message by itself. The best of them is the reference.
    Socket,
    /// A pipe or a stream socket when the application packs many messages into one write. The best of them is a reference of
    /// its own.
    Packed,
}

/// One way for two processes to exchange messages.
pub(crate) trait Path: Sync {
    /// The name in options and rows.
    fn name(&self) -> &'static str;

    /// The name that selects it: another path's if it is a variant of that.
    fn family(&self) -> &'static str {
        self.name()
    }

    /// What it counts as when rows are compared.
    fn class(&self) -> Class {
        Class::Socket
    }

    /// The path that is the bare loop over the same kind of rings, if there is one.
    fn floor(&self) -> Option<&'static str> {
        None
    }

    /// Whether this job makes sense in this way of waiting.
    fn does(&self, job: Job, wait: Wait) -> bool;

    /// Bytes of a null call's request and reply.
    fn call_size(&self) -> usize {
        1
    }

    /// First process: makes both halves as far as it can.
    fn offer(&self, spec: &Spec) -> Result<Offer, Broken>;

    /// Second process: takes its half.
    fn join(
        &self,
        spec: &Spec,
        fds: Vec<OwnedFd>,
        address: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken>;
}

/// The first process's half, ready as soon as the second process has its own.
pub(crate) struct Offer {
    /// For the second process.
    pub(crate) fds: Vec<OwnedFd>,
    /// For the second process, where a path has a place in the file system.
    pub(crate) address: Option<PathBuf>,
    finish: Box<dyn FnOnce() -> Result<(Lane, Release), Broken>>,
}

impl Offer {
    fn new(
        fds: impl IntoIterator<Item = OwnedFd>,
        finish: impl FnOnce() -> Result<(Lane, Release), Broken> + 'static,
    ) -> Offer {
        Offer {
            fds: fds.into_iter().collect(),
            address: None,
            finish: Box::new(finish),
        }
    }

    /// Once the second process has joined: the half that measures, and how to end its sleep from outside.
    pub(crate) fn finish(self) -> Result<(Lane, Release), Broken> {
        (self.finish)()
    }
}

/// The first process's half, by what it does.
pub(crate) enum Lane {
    Exchange(Box<dyn Exchange>),
    Pour(Box<dyn Pour>),
    Pace(Box<dyn Pace>),
}

/// System calls of one end, and its messages, since it was opened.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Calls {
    pub(crate) calls: u64,
    pub(crate) messages: u64,
}

/// Round trips in batches.
pub(crate) trait Exchange {
    /// So many round trips.
    fn run(&mut self, count: u32) -> Result<(), Broken>;
    /// One round trip for each place in `ends`, which gets the clock's reading after it. Returns the reading before the first.
    fn stamped(&mut self, clock: &TickClock, ends: &mut [u64]) -> Result<u64, Broken>;
}

/// One-way messages in batches.
pub(crate) trait Pour {
    /// So many messages, all on their way when it returns.
    fn run(&mut self, count: u32) -> Result<(), Broken>;

    /// Its system calls, if it counts them.
    fn calls(&self) -> Option<Calls> {
        None
    }
}

/// One-way messages, each at a moment that somebody else chooses.
pub(crate) trait Pace {
    /// Messages begin anew.
    fn begin(&mut self);
    /// Sends one now: it is on its way when this returns.
    fn send(&mut self) -> Result<(), Broken>;
}

/// The second process's half.
pub(crate) trait Station {
    /// Answers so many exchanges, or takes so many messages; returns how many came.
    fn serve(&mut self, count: u32) -> Result<u32, Broken>;

    /// While the first process finishes its half: does what that needs of this one.
    fn settle(&mut self) {}

    /// Its system calls, if it counts them.
    fn calls(&self) -> Option<Calls> {
        None
    }
}

/// The half that begins an exchange: what a path implements once a message.
pub(crate) trait Initiator {
    /// Writes a message, sends it, waits for the answer, reads all of it.
    fn round_trip(&mut self) -> Result<(), Broken>;
}

impl<I: Initiator> Exchange for I {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        for _ in 0..count {
            self.round_trip()?;
        }
        Ok(())
    }

    fn stamped(&mut self, clock: &TickClock, ends: &mut [u64]) -> Result<u64, Broken> {
        let start = clock.now();
        for end in ends {
            self.round_trip()?;
            *end = clock.now();
        }
        Ok(start)
    }
}

/// The half that answers: what a path implements once a message.
pub(crate) trait Responder {
    /// Waits for a message, reads all of it, writes an answer, sends it.
    fn answer(&mut self) -> Result<(), Broken>;

    /// Sends what is still on this side, after the last answer of a batch.
    fn flush(&mut self) -> Result<(), Broken> {
        Ok(())
    }
}

/// Makes a [`Station`] of a [`Responder`].
struct Answering<R>(R);

impl<R: Responder> Station for Answering<R> {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        for _ in 0..count {
            self.0.answer()?;
        }
        self.0.flush()?;
        Ok(count)
    }
}

/// The only descriptor that came, or one of several.
fn take(fds: &mut Vec<OwnedFd>) -> Result<OwnedFd, Broken> {
    fds.pop().ok_or(Broken::Closed)
}

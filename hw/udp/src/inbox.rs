//! The receive ring, in both ways in which a kernel fills it.

use crate::address::Engine;
use crate::open::BATCH;
use rustix::io::Errno;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};
use tightbeam_sys::mmsg::MessageBatch;
use tightbeam_sys::multishot::MultishotReceive;

/// So many looks in a row that have found something are a run, of which several may have come.
const RUN: u32 = 2;

pub(crate) enum Inbox {
    Calls {
        batch: MessageBatch,
        /// Looks in a row that have brought something; the first in vain after a run does not count.
        lucky: u32,
    },
    Ring(Box<MultishotReceive>),
}

/// What one look has brought.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) handed: usize,
    /// Did not fit into a buffer, and were thrown away.
    pub(crate) truncated: usize,
    pub(crate) calls: usize,
}

impl Inbox {
    pub(crate) fn new(
        engine: Engine,
        socket: BorrowedFd<'_>,
        size: usize,
        connected: bool,
    ) -> io::Result<Inbox> {
        Ok(match engine {
            Engine::Ring => {
                let ring = MultishotReceive::new(socket, size, 2 * BATCH as u16)?;
                Inbox::Ring(Box::new(ring))
            }
            Engine::Calls => Inbox::Calls {
                batch: match connected {
                    true => MessageBatch::new(BATCH, size),
                    false => MessageBatch::with_names(BATCH, size),
                },
                lucky: 0,
            },
        })
    }

    /// Hands over at most `most` packets that have arrived, each with its sender where that is not the connected host.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        most: usize,
        take: &mut dyn FnMut(Option<SocketAddrV4>, &[u8]),
    ) -> Result<Look, Errno> {
        let mut look = Look::default();
        match self {
            Inbox::Calls { batch, lucky } => {
                // One, until one after the other comes: most looks of who waits find nothing, and find that out sooner.
                let most = if *lucky < RUN { most.min(1) } else { most };
                let got = match batch.receive_at_most(most, socket, false) {
                    Ok(got) => got,
                    Err(error) => match errno(&error) {
                        Errno::AGAIN | Errno::INTR => 0,
                        errno => return Err(errno),
                    },
                };
                *lucky = match got {
                    // Who rests behind a run to let packets gather comes back for several.
                    0 if *lucky > RUN => RUN,
                    0 => 0,
                    _ => lucky.saturating_add(1),
                };
                look.calls = 1;
                for index in 0..got {
                    match batch.truncated(index) {
                        true => look.truncated += 1,
                        false => take(batch.sender(index), batch.incoming(index)),
                    }
                }
                look.handed = got - look.truncated;
            }
            Inbox::Ring(ring) => {
                let before = ring.calls();
                let truncated = &mut look.truncated;
                let got = ring.receive(most, |datagram| match datagram.truncated {
                    true => *truncated += 1,
                    false => take(datagram.sender, datagram.bytes),
                });
                let got = got.map_err(|error| errno(&error))?;
                look.handed = got - look.truncated;
                look.calls = (ring.calls() - before) as usize;
            }
        }
        Ok(look)
    }

    /// What is readable when there is something to receive.
    pub(crate) fn readable<'a>(&'a self, socket: BorrowedFd<'a>) -> BorrowedFd<'a> {
        match self {
            Inbox::Calls { .. } => socket,
            Inbox::Ring(ring) => ring.as_fd(),
        }
    }
}

/// The number of an error of the kernel.
pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

//! The send ring: packets that are written and not yet on their way.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use tightbeam_sys::mmsg::MessageBatch;

/// Packets from `first` to `end` are waiting; the ring starts over when it has drained.
pub(crate) struct Outbox {
    batch: MessageBatch,
    /// Where each goes.
    to: Box<[Option<SocketAddrV4>]>,
    first: usize,
    end: usize,
}

impl Outbox {
    pub(crate) fn new(batch: MessageBatch) -> Outbox {
        Outbox {
            to: vec![None; batch.capacity()].into(),
            batch,
            first: 0,
            end: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end == self.batch.capacity()
    }

    /// Puts a packet of at most `len` bytes into a ring that [is not full](Self::is_full).
    pub(crate) fn push(
        &mut self,
        to: SocketAddrV4,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) {
        let used = write(&mut self.batch.outgoing(self.end)[..len]).min(len);
        self.batch.address(self.end, used, to);
        self.to[self.end] = Some(to);
        self.end += 1;
    }

    /// One system call: how many packets the kernel has taken.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let sent = self.batch.send(socket, self.first, self.end, false)?;
        self.drop_first(sent);
        Ok(sent)
    }

    /// Takes out the packets that are first, at most as many as there are.
    pub(crate) fn drop_first(&mut self, count: usize) {
        self.first = (self.first + count).min(self.end);
        if self.is_empty() {
            (self.first, self.end) = (0, 0);
        }
    }

    /// Where the first one goes, if there is one.
    pub(crate) fn next_to(&self) -> Option<SocketAddrV4> {
        match self.is_empty() {
            true => None,
            false => self.to[self.first],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.first
    }
}

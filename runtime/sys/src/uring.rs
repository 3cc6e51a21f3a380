//! Datagrams over `io_uring`, set up the way the kernel serves them fastest.
//!
//! ```text
//!   queue(fill) -> outbox slot + SQE ----\                       /--> multishot receive -> provided buffer -> each(bytes)
//!                                         io_uring_enter (one)  -
//!   receive() --------------------------/                        \--> buffer goes back to the ring
//! ```
//!
//! One issuer, deferred task work, the socket registered as a fixed file, one multishot receive that takes its buffers from a
//! provided ring, sends that post no completion unless they fail. Sending and waiting share one system call. Used by the bench
//! as the strongest standard UDP path; a Tightbeam channel never uses it.
//!
//! Needs Linux 6.1 (`IORING_SETUP_DEFER_TASKRUN`); older kernels and locked-down ones give an error from [`UringDatagrams::new`].

use crate::provided::Provided;
use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Marks completions of sends.
const SEND: u64 = 1;
/// Marks completions of the multishot receive.
const RECEIVE: u64 = 2;
/// Marks the completion that ends a wait from outside.
const WOKEN: u64 = 3;
/// Requests beside the sends that may have to be queued at once: the multishot receive and the poll of the waker.
const STANDING: u32 = 2;
/// The only buffer group.
const GROUP: u16 = 0;

/// How long [`UringDatagrams::receive`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UringWait {
    /// Not at all; enters the kernel only to send or when it says that there is something.
    Look,
    /// Until something arrives or the waker is used.
    Block,
    /// Until something arrives or this long is over.
    AtMost(Duration),
}

/// A connected datagram socket driven by its own ring.
pub struct UringDatagrams {
    ring: IoUring,
    inbox: Provided,
    outbox: Box<[u8]>,
    /// Bytes of the longest message, and of one slot of the outbox.
    message: usize,
    stride: usize,
    /// Slots of the outbox that were filled since the kernel last took all.
    queued: usize,
    /// The multishot receive is in force, or on its way.
    armed: bool,
    /// Something was pushed that the kernel has not taken yet.
    pending: bool,
    socket: OwnedFd,
    /// Readable once somebody has written to `waker`; the ring polls it.
    woken: OwnedFd,
    waker: OwnedFd,
}

impl UringDatagrams {
    /// Takes a connected datagram socket. Messages are at most `message` bytes long; `inbound` buffers, a power of two,
    /// stand ready for arrivals, and `outbound` sends can be queued.
    pub fn new(
        socket: OwnedFd,
        message: usize,
        inbound: u16,
        outbound: u16,
    ) -> io::Result<UringDatagrams> {
        if message == 0 || outbound == 0 || !Provided::may_be(inbound) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(2 * u32::from(inbound).max(u32::from(outbound)))
            .build((u32::from(outbound) + STANDING).next_power_of_two())?;
        ring.submitter().register_files(&[socket.as_raw_fd()])?;
        let inbox = Provided::new(inbound, message);
        inbox.register(&ring, GROUP)?;
        let stride = message.next_multiple_of(64);
        let (woken, waker) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut datagrams = UringDatagrams {
            ring,
            inbox,
            outbox: vec![0; stride * usize::from(outbound)].into_boxed_slice(),
            message,
            stride,
            queued: 0,
            armed: false,
            pending: false,
            socket,
            woken,
            waker,
        };
        datagrams.inbox.provide_all();
        let poll = opcode::PollAdd::new(Fd(datagrams.woken.as_raw_fd()), libc::POLLIN as u32);
        datagrams.push(&poll.build().user_data(WOKEN))?;
        Ok(datagrams)
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A pipe: whoever writes a byte to it ends a [`receive`](Self::receive) with [`io::ErrorKind::Interrupted`], now or later.
    /// Shutting the socket down would not, because a datagram socket that is shut down has nothing to say to `io_uring`.
    pub fn waker(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }

    /// How many more sends can be queued before [`flush`](Self::flush).
    pub fn room(&self) -> usize {
        self.outbox.len() / self.stride - self.queued
    }

    /// Lets `fill` write a message of `size` bytes and queues it. `WouldBlock` if there is no [`room`](Self::room).
    #[inline]
    pub fn queue(&mut self, size: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<()> {
        if size > self.message {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.queued * self.stride;
        let Some(slot) = self.outbox.get_mut(start..start + size) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        fill(slot);
        // DONTWAIT: the kernel copies the bytes or fails during the submission, so that the slot is free after it.
        let entry = opcode::Send::new(Fixed(0), slot.as_ptr(), slot.len() as u32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(SEND);
        self.push(&entry)?;
        self.queued += 1;
        Ok(())
    }

    /// Hands everything queued to the kernel, without waiting.
    pub fn flush(&mut self) -> io::Result<()> {
        self.arm()?;
        self.enter(UringWait::Look)
    }

    /// Sends what is queued, then gives each message that has arrived to `each` and says how many there were.
    #[inline]
    pub fn receive(&mut self, wait: UringWait, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        self.arm()?;
        if self.pending {
            self.enter(wait)?;
        }
        let taken = self.reap(&mut each)?;
        if taken > 0 {
            return Ok(taken);
        }
        self.arm()?;
        if wait == UringWait::Look && !self.pending && !self.ring.submission().taskrun() {
            return Ok(0);
        }
        self.enter(wait)?;
        self.reap(&mut each)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY:
        // lifetime: a send's slot is not reused before the submission that consumes it (`queued` is reset only when the queue is
        // empty); the receive's buffers live in `inbox`. Drop cancels what is in flight before either goes.
        let pushed = unsafe { self.ring.submission().push(entry) };
        self.pending |= pushed.is_ok();
        pushed.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// Puts the multishot receive in force if it is not.
    #[inline]
    fn arm(&mut self) -> io::Result<()> {
        if !self.armed {
            let entry = opcode::RecvMulti::new(Fixed(0), GROUP)
                .build()
                .user_data(RECEIVE);
            self.push(&entry)?;
            self.armed = true;
        }
        Ok(())
    }

    /// Enters the kernel until it has taken all that is queued, at least once.
    #[inline]
    fn enter(&mut self, wait: UringWait) -> io::Result<()> {
        loop {
            let entered = match wait {
                UringWait::Look => self.ring.submit(),
                UringWait::Block => self.ring.submit_and_wait(1),
                UringWait::AtMost(bound) => {
                    let timeout = Timespec::from(bound);
                    let args = SubmitArgs::new().timespec(&timeout);
                    self.ring.submitter().submit_with_args(1, &args)
                }
            };
            match entered {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
                Err(error) => return Err(error),
            }
            if self.ring.submission().is_empty() {
                self.queued = 0;
                self.pending = false;
                return Ok(());
            }
        }
    }

    /// Takes all completions.
    #[inline]
    fn reap(&mut self, each: &mut impl FnMut(&[u8])) -> io::Result<usize> {
        let mut taken = 0;
        let mut failed = None;
        for entry in self.ring.completion() {
            let outcome = match entry.user_data() {
                SEND => sent(&entry),
                WOKEN => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    self.armed &= cqueue::more(entry.flags());
                    received(&entry)
                }
            };
            match outcome {
                Ok(None) => {}
                Ok(Some((buffer, length))) => {
                    each(self.inbox.bytes(buffer, length));
                    self.inbox.provide(buffer);
                    taken += 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(taken),
        }
    }
}

impl Drop for UringDatagrams {
    fn drop(&mut self) {
        // What is queued but not submitted has no hold on memory; what is in flight is cancelled and waited for.
        let bound = Timespec::from(Duration::from_secs(1));
        let cancelled = self
            .ring
            .submitter()
            .register_sync_cancel(Some(bound), CancelBuilder::any());
        let gone = match cancelled {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let released = self.ring.submitter().unregister_buf_ring(GROUP).is_ok();
        if !(gone && released) {
            self.inbox.leak();
        }
    }
}

/// What the completion of a send means. Successful ones are skipped, so it is a failure.
fn sent(entry: &cqueue::Entry) -> io::Result<Option<(u16, usize)>> {
    match entry.result() {
        failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
        _ => Ok(None),
    }
}

/// What a completion of the multishot receive means: a buffer and the bytes in it.
fn received(entry: &cqueue::Entry) -> io::Result<Option<(u16, usize)>> {
    let result = entry.result();
    match cqueue::buffer_select(entry.flags()) {
        Some(buffer) => Ok(Some((buffer, usize::try_from(result).unwrap_or(0)))),
        // All buffers are taken: the receive is armed again once some are back.
        None if result == -libc::ENOBUFS => Ok(None),
        None if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        // Nothing and no buffer.
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn pair(message: usize, inbound: u16, outbound: u16) -> Option<(UringDatagrams, UdpSocket)> {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        match UringDatagrams::new(near.into(), message, inbound, outbound) {
            Ok(near) => Some((near, far)),
            Err(error) => {
                eprintln!("skipped: io_uring: {error}");
                None
            }
        }
    }

    #[test]
    fn messages_go_both_ways_for_longer_than_the_buffers_last() {
        let Some((mut near, far)) = pair(8, 4, 2) else {
            return;
        };
        let mut answer = [0; 8];
        for round in 0..64u64 {
            near.queue(8, |slot| slot.copy_from_slice(&round.to_ne_bytes()))
                .unwrap();
            near.flush().unwrap();
            assert_eq!(far.recv(&mut answer).unwrap(), 8);
            far.send(&answer).unwrap();
            let mut got = 0;
            while near
                .receive(UringWait::Block, |bytes| {
                    got = u64::from_ne_bytes(bytes.try_into().unwrap())
                })
                .unwrap()
                == 0
            {}
            assert_eq!(got, round);
        }
    }

    #[test]
    fn a_burst_beyond_the_buffers_is_received_after_arming_again() {
        let Some((mut near, far)) = pair(1, 4, 2) else {
            return;
        };
        assert_eq!(near.receive(UringWait::Look, |_| {}).unwrap(), 0);
        for byte in 0..16u8 {
            far.send(&[byte]).unwrap();
        }
        let mut got = Vec::new();
        while got.len() < 16 {
            near.receive(UringWait::AtMost(Duration::from_secs(5)), |bytes| {
                got.extend_from_slice(bytes)
            })
            .unwrap();
        }
        assert_eq!(got, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn looking_alone_finds_what_arrives() {
        let Some((mut near, far)) = pair(1, 4, 2) else {
            return;
        };
        assert_eq!(near.receive(UringWait::Look, |_| {}).unwrap(), 0);
        far.send(b"x").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while near
            .receive(UringWait::Look, |bytes| assert_eq!(bytes, b"x"))
            .unwrap()
            == 0
        {
            assert!(std::time::Instant::now() < deadline, "it was never seen");
        }
    }

    #[test]
    fn a_sleep_is_ended_from_another_thread() {
        let Some((mut near, _far)) = pair(1, 2, 1) else {
            return;
        };
        let waker = near.waker().try_clone_to_owned().unwrap();
        let other = std::thread::spawn(move || rustix::io::write(&waker, &[0]).unwrap());
        let ended = near.receive(UringWait::Block, |_| {});
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
        other.join().unwrap();
    }

    #[test]
    fn a_full_outbox_and_a_silent_peer_are_reported() {
        let Some((mut near, _far)) = pair(1, 2, 1) else {
            return;
        };
        near.queue(1, |slot| slot[0] = 1).unwrap();
        assert_eq!(near.room(), 0);
        assert_eq!(
            near.queue(1, |_| {}).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            near.receive(UringWait::AtMost(Duration::from_millis(1)), |_| {})
                .unwrap(),
            0
        );
        assert_eq!(near.room(), 1);
    }
}

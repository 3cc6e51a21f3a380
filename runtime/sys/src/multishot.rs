//! Datagrams that the kernel receives on its own: one standing request of an `io_uring`, which takes a buffer for each.
//!
//! While nothing comes, looking costs no system call: the kernel says in shared memory when it has something to do. Needs Linux 6.1
//! (`IORING_SETUP_DEFER_TASKRUN`); older kernels and locked-down ones give an error from [`MultishotReceive::new`].

use crate::provided::Provided;
use io_uring::types::{CancelBuilder, Fixed, RecvMsgOut, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The only buffer group.
const GROUP: u16 = 0;
/// After so many looks in vain the alarm is silenced whether it was raised or not: it may have been raised behind the look that took what
/// it was about, and who waits for it would never sleep.
const SILENCE: u32 = 64;
/// What the kernel puts before each datagram: lengths and flags, then room for an address.
const HEAD: usize = 16 + NAME;
const NAME: usize = size_of::<libc::sockaddr_in>();

/// A datagram that has arrived.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Who sent it; `None` if the kernel does not say.
    pub sender: Option<SocketAddrV4>,
    /// Its bytes, as many as fit into a buffer.
    pub bytes: &'a [u8],
    /// There were more.
    pub truncated: bool,
}

/// Receives the datagrams of one socket. From the first [`receive`](Self::receive) on it belongs to the thread that has called it:
/// another one gets an error, and if it drops it, the buffers are never freed and the socket stays open a little longer.
pub struct MultishotReceive {
    ring: IoUring,
    buffers: Provided,
    /// What the standing request says about room for addresses. The kernel reads it when it takes the request.
    header: Box<Header>,
    /// Somebody has received, and the ring is that thread's.
    enabled: bool,
    /// The standing request is in force, or on its way.
    armed: bool,
    /// An error that came behind datagrams which were handed over first.
    failed: Option<io::Error>,
    calls: u64,
    /// Readable when the kernel has had something to do since it was silenced. (The ring's own descriptor is, too, but who sleeps on that is
    /// not woken: with deferred task work, on Linux 6.18, the kernel tells its waiters only when the work is done, which is for us to do.)
    alarm: OwnedFd,
    /// Somebody has asked for the alarm: only then it is to be silenced.
    watched: Cell<bool>,
    /// It may have been raised.
    raised: bool,
    vain: u32,
    /// The process that has made it.
    owner: u32,
}

struct Header(libc::msghdr);

// SAFETY: aliasing: its pointers are null, so there is nothing to share.
unsafe impl Send for Header {}

impl MultishotReceive {
    /// For datagrams of at most `size` bytes; `buffers`, a power of two, stand ready for them.
    pub fn new(socket: BorrowedFd<'_>, size: usize, buffers: u16) -> io::Result<MultishotReceive> {
        if !Provided::may_be(buffers) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Disabled, so that the issuer is who receives and not who opens.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(2 * u32::from(buffers))
            .build(4)?;
        ring.submitter().register_files(&[socket.as_raw_fd()])?;
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(alarm.as_raw_fd())?;
        let mut provided = Provided::new(buffers, HEAD + size);
        provided.register(&ring, GROUP)?;
        provided.provide_all();
        // SAFETY: initialised: all zero bytes are a valid msghdr, with null pointers and no lengths.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_namelen = NAME as libc::socklen_t;
        Ok(MultishotReceive {
            ring,
            buffers: provided,
            header: Box::new(Header(header)),
            enabled: false,
            armed: false,
            failed: None,
            calls: 0,
            alarm,
            watched: Cell::new(false),
            raised: true,
            vain: 0,
            owner: std::process::id(),
        })
    }

    /// System calls made so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Gives at most `most` datagrams to `each`, without waiting; how many there were. An error is given once, after the datagrams
    /// that came before it.
    pub fn receive(
        &mut self,
        most: usize,
        mut each: impl FnMut(Datagram<'_>),
    ) -> io::Result<usize> {
        let taken = self.receive_once(most, &mut each)?;
        if taken > 0 || !self.watched.get() {
            return Ok(taken);
        }
        self.vain = self.vain.wrapping_add(1);
        if !self.raised && !self.vain.is_multiple_of(SILENCE) {
            return Ok(0);
        }
        self.calls += 1;
        // What has come meanwhile has raised it before, and is looked for now; what comes later raises it again.
        let _ = rustix::io::read(&self.alarm, &mut [0; 8]);
        self.raised = false;
        self.receive_once(most, &mut each)
    }

    fn receive_once(
        &mut self,
        most: usize,
        each: &mut impl FnMut(Datagram<'_>),
    ) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.ring.completion().is_empty() {
            self.look()?;
        }
        let (mut taken, header) = (0, &self.header.0);
        while taken < most && self.failed.is_none() {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            self.raised = true;
            self.armed &= cqueue::more(entry.flags());
            match cqueue::buffer_select(entry.flags()) {
                Some(buffer) => {
                    let length = usize::try_from(entry.result()).unwrap_or(0);
                    let parsed = RecvMsgOut::parse(self.buffers.bytes(buffer, length), header);
                    if let Ok(message) = parsed {
                        each(datagram(&message));
                        taken += 1;
                    }
                    self.buffers.provide(buffer);
                }
                // All buffers are taken: the request is made again once some are back.
                None if entry.result() == -libc::ENOBUFS => {}
                None if entry.result() < 0 => {
                    self.failed = Some(io::Error::from_raw_os_error(-entry.result()));
                }
                None => {}
            }
        }
        // Who waits for the descriptor now would wait for a request that is not there.
        if !self.armed && self.failed.is_none() && self.ring.completion().is_empty() {
            self.failed = self.look().err();
        }
        match self.failed.take() {
            Some(error) if taken == 0 => Err(error),
            failed => {
                self.failed = failed;
                Ok(taken)
            }
        }
    }

    /// Enters the kernel if there is a reason to.
    fn look(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        if !self.armed {
            let request = opcode::RecvMsgMulti::new(Fixed(0), &raw const self.header.0, GROUP);
            // SAFETY: lifetime: the header is in a box of self, and the buffers in `buffers`; Drop cancels the request before either
            // goes.
            let pushed = unsafe { self.ring.submission().push(&request.build()) };
            pushed.map_err(|_| io::ErrorKind::WouldBlock)?;
            self.armed = true;
        } else if !self.ring.submission().taskrun() && self.ring.submission().is_empty() {
            return Ok(());
        }
        (self.calls, self.raised) = (self.calls + 1, true);
        match self.ring.submit() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

impl AsFd for MultishotReceive {
    /// Readable when [`receive`](MultishotReceive::receive) has something to do, once that has been called; and sometimes when it has not,
    /// until it has found nothing once or a few times.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.set(true);
        self.alarm.as_fd()
    }
}

impl Drop for MultishotReceive {
    fn drop(&mut self) {
        // A fork has the ring of its parent, who goes on with it.
        if self.owner != std::process::id() {
            return self.buffers.leak();
        }
        let mut gone = true;
        if self.enabled {
            let bound = Timespec::from(Duration::from_secs(1));
            let cancelled = self
                .ring
                .submitter()
                .register_sync_cancel(Some(bound), CancelBuilder::any());
            gone = match cancelled {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
        }
        // The ring goes some time after its descriptor; its hold on the socket, and so on the port, shall not.
        let _ = self.ring.submitter().unregister_files();
        let released = self.ring.submitter().unregister_buf_ring(GROUP).is_ok();
        if !(gone && released) {
            self.buffers.leak();
        }
    }
}

fn datagram<'a>(message: &'a RecvMsgOut<'a>) -> Datagram<'a> {
    Datagram {
        sender: address(message.name_data()),
        bytes: message.payload_data(),
        truncated: message.flags() & libc::MSG_TRUNC as u32 != 0,
    }
}

/// A `sockaddr_in`: family in the host's order, then port and address in the network's.
fn address(bytes: &[u8]) -> Option<SocketAddrV4> {
    let [family @ .., _, _, _, _, _, _] = bytes.first_chunk::<8>()?;
    if u16::from_ne_bytes(*family) != libc::AF_INET as u16 {
        return None;
    }
    let [_, _, port_high, port_low, a, b, c, d] = *bytes.first_chunk::<8>()?;
    let port = u16::from_be_bytes([port_high, port_low]);
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn receiver(size: usize, buffers: u16) -> Option<(UdpSocket, MultishotReceive)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        match MultishotReceive::new(socket.as_fd(), size, buffers) {
            Ok(ring) => Some((socket, ring)),
            Err(error) => {
                eprintln!("skipped: io_uring: {error}");
                None
            }
        }
    }

    #[test]
    fn more_than_the_buffers_arrive_with_their_senders_and_in_parts() {
        let Some((near, mut ring)) = receiver(4, 4) else {
            return;
        };
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(ring.receive(8, |_| {}).unwrap(), 0);
        let calls = ring.calls();
        for _ in 0..100 {
            assert_eq!(ring.receive(8, |_| {}).unwrap(), 0);
        }
        assert_eq!(ring.calls(), calls, "looking made a system call");
        for byte in 0..20u8 {
            far.send_to(
                &vec![byte; usize::from(byte % 6)],
                near.local_addr().unwrap(),
            )
            .unwrap();
        }
        let mut came = 0;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while came < 20 {
            let got = ring.receive(3, |datagram| {
                let length = came % 6;
                assert_eq!(datagram.bytes, vec![came as u8; length.min(4)]);
                assert_eq!(datagram.truncated, length > 4);
                assert_eq!(
                    datagram.sender.map(Into::into),
                    Some(far.local_addr().unwrap())
                );
                came += 1;
            });
            assert!(got.unwrap() <= 3);
            assert!(std::time::Instant::now() < deadline, "{came} came");
        }
        assert_eq!(ring.receive(8, |_| {}).unwrap(), 0);
    }

    #[test]
    fn its_descriptor_says_that_there_is_more_than_the_buffers_held() {
        let Some((near, mut ring)) = receiver(4, 4) else {
            return;
        };
        assert_eq!(ring.receive(64, |_| {}).unwrap(), 0);
        for _ in 0..20 {
            near.send_to(b"x", near.local_addr().unwrap()).unwrap();
        }
        let patience = Duration::from_secs(10);
        let mut came = 0;
        while came < 20 {
            assert!(
                crate::control::wait_readable(ring.as_fd(), patience),
                "{came} came"
            );
            came += ring.receive(64, |_| {}).unwrap();
        }
    }

    #[test]
    fn it_belongs_to_the_thread_that_receives_and_its_descriptor_says_when() {
        let Some((near, mut ring)) = receiver(4, 4) else {
            return;
        };
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = near.local_addr().unwrap();
        let ring = std::thread::spawn(move || {
            assert_eq!(ring.receive(1, |_| {}).unwrap(), 0);
            let patience = Duration::from_secs(10);
            assert!(!crate::control::wait_readable(ring.as_fd(), Duration::ZERO));
            far.send_to(b"x", to).unwrap();
            assert!(crate::control::wait_readable(ring.as_fd(), patience));
            assert_eq!(ring.receive(1, |_| {}).unwrap(), 1);
            ring
        });
        drop(ring.join().unwrap());
    }

    /// Whoever sleeps on it before anything has come is woken when something does.
    #[test]
    fn its_descriptor_wakes_who_sleeps_on_it() {
        let Some((near, mut ring)) = receiver(4, 4) else {
            return;
        };
        let to = near.local_addr().unwrap();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let me = rustix::thread::gettid().as_raw_nonzero();
        assert_eq!(ring.receive(1, |_| {}).unwrap(), 0);
        for _ in 0..10 {
            while crate::control::wait_readable(ring.as_fd(), Duration::ZERO) {
                assert_eq!(ring.receive(1, |_| {}).unwrap(), 0);
            }
            let far = far.try_clone().unwrap();
            let sender = std::thread::spawn(move || {
                let stat = format!("/proc/self/task/{me}/stat");
                let sleeps = || std::fs::read_to_string(&stat).unwrap().contains(") S ");
                while !sleeps() {
                    std::thread::yield_now();
                }
                far.send_to(b"x", to).unwrap();
            });
            let patience = Duration::from_secs(10);
            assert!(crate::control::wait_readable(ring.as_fd(), patience));
            assert_eq!(ring.receive(1, |_| {}).unwrap(), 1);
            sender.join().unwrap();
        }
    }
}

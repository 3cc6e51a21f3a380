//! What `SOCK_SEQPACKET` and UDP sockets have in common: single messages for exchanges, batches for rates, and a window for
//! those that would lose messages otherwise.

use super::wire::{Wire, transfer};
use super::{Pace, Pour, Station};
use crate::bench::fault::Broken;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Pause, Spec, Wait};
use crate::bench::watch::called_off;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tightbeam_sys::mmsg::MessageBatch;

/// Messages of one `sendmmsg` or `recvmmsg`: more gain nothing.
pub(super) const BATCH: usize = 64;
/// A receiver that got nothing for so long takes what is missing for lost.
pub(super) const SILENCE: Duration = Duration::from_millis(250);
/// What is asked for as socket buffer; the kernel gives at most its own limit.
const SOCKET_BUFFER: usize = 4 << 20;
/// What the kernel charges for a datagram beside its bytes, at most.
const OVERHEAD: usize = 2048;
/// Messages under way at most, whatever the buffers hold: beyond, caches suffer.
const MAX_WINDOW: usize = 1024;
/// Acknowledgements in one window.
const ACKS: u32 = 4;

/// A connected socket that keeps messages apart.
pub(super) trait Datagram {
    fn fd(&self) -> BorrowedFd<'_>;
    /// What to do while there is nothing; `None` sleeps in the kernel.
    fn spinning(&self) -> Option<Pause>;
}

/// The plain one.
pub(super) struct DatagramSocket {
    socket: OwnedFd,
    spinning: Option<Pause>,
    send: SendFlags,
    recv: RecvFlags,
}

impl DatagramSocket {
    pub(super) fn new(socket: OwnedFd, spec: &Spec) -> DatagramSocket {
        let spin = spec.wait == Wait::Spin;
        DatagramSocket {
            socket,
            spinning: spin.then_some(spec.pause()),
            send: SendFlags::NOSIGNAL
                | if spin {
                    SendFlags::DONTWAIT
                } else {
                    SendFlags::empty()
                },
            recv: if spin {
                RecvFlags::DONTWAIT
            } else {
                RecvFlags::empty()
            },
        }
    }
}

impl Datagram for DatagramSocket {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn spinning(&self) -> Option<Pause> {
        self.spinning
    }
}

impl Wire for DatagramSocket {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Result<(), Broken> {
        transfer(self.spinning, || {
            rustix::net::send(&self.socket, message, self.send)
        })
        .map(drop)
    }

    #[inline(always)]
    fn recv(&mut self, message: &mut [u8]) -> Result<(), Broken> {
        let count = transfer(self.spinning, || {
            rustix::net::recv(&self.socket, &mut *message, self.recv).map(|(_, count)| count)
        })?;
        match count == message.len() {
            true => Ok(()),
            false => Err(io::Error::other("a datagram is shorter than it was sent").into()),
        }
    }
}

/// How many messages may be under way on a path that drops what does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window(u32);

impl Window {
    /// Makes the buffers of a socket as large as allowed, bounds its waits, and says how much can be under way without loss.
    pub(super) fn open(socket: BorrowedFd<'_>, size: usize) -> Result<Window, Broken> {
        sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
        sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(SILENCE))?;
        let room = sockopt::socket_recv_buffer_size(socket)?
            .min(sockopt::socket_send_buffer_size(socket)?);
        // Half of it: the kernel gives a receiver's room back late.
        let messages = room / 2 / (size.next_power_of_two() + OVERHEAD);
        Ok(Window(messages.clamp(ACKS as usize, MAX_WINDOW) as u32))
    }

    pub(super) fn messages(self) -> u32 {
        self.0
    }

    /// After how many messages the receiver acknowledges.
    pub(super) fn stride(self) -> u32 {
        self.0 / ACKS
    }
}

/// The sender's account of what is under way.
pub(super) struct Credit {
    window: u32,
    sent: u32,
    /// Received by the other side, or given up.
    settled: u32,
}

impl Credit {
    pub(super) fn new(window: Window) -> Credit {
        Credit {
            window: window.messages(),
            sent: 0,
            settled: 0,
        }
    }

    pub(super) fn room(&self) -> u32 {
        self.window - (self.sent - self.settled)
    }

    pub(super) fn sent(&mut self, count: u32) {
        self.sent += count;
    }

    /// The other side has received so many in all. A count from an earlier burst is ignored.
    pub(super) fn acknowledged(&mut self, ack: &[u8]) {
        if let Ok(bytes) = ack.try_into() {
            let count = u32::from_le_bytes(bytes);
            if count <= self.sent {
                self.settled = self.settled.max(count);
            }
        }
    }

    /// Nothing came back for [`SILENCE`]: what is under way is lost.
    pub(super) fn give_up(&mut self) {
        self.settled = self.sent;
    }
}

/// Sends messages in batches.
pub(super) struct Source<D> {
    socket: D,
    batch: MessageBatch,
    window: Option<Window>,
}

impl<D: Datagram> Source<D> {
    pub(super) fn new(socket: D, size: usize, window: Option<Window>) -> Source<D> {
        Source {
            socket,
            batch: MessageBatch::new(BATCH, size),
            window,
        }
    }

    fn send(&mut self, messages: usize) -> Result<(), Broken> {
        let spinning = self.socket.spinning();
        let mut sent = 0;
        while sent < messages {
            let (batch, fd) = (&mut self.batch, self.socket.fd());
            sent += transfer(spinning, || {
                errno(batch.send(fd, sent, messages, spinning.is_none()))
            })?;
        }
        Ok(())
    }

    /// Takes one acknowledgement, waiting if told to; false if none came.
    fn acknowledgement(&mut self, credit: &mut Credit, wait: bool) -> Result<bool, Broken> {
        let mut ack = [0; 4];
        let block = wait && self.socket.spinning().is_none();
        let flags = if block {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        let mut since = None;
        loop {
            match rustix::net::recv(self.socket.fd(), &mut ack, flags) {
                Ok((_, 0)) => return Err(Broken::Closed),
                Ok((_, count)) => {
                    credit.acknowledged(&ack[..count.min(ack.len())]);
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if !wait || block || silent(&mut since) => return Ok(false),
                Err(Errno::AGAIN) => {
                    if let Some(pause) = self.socket.spinning() {
                        pause.once();
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl<D: Datagram> Pour for Source<D> {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        let mut sequence = Sequence::new();
        let mut credit = self.window.map(Credit::new);
        if let Some(credit) = &mut credit {
            // Acknowledgements of the end of the last burst.
            while self.acknowledgement(credit, false)? {}
        }
        let mut left = count;
        while left > 0 {
            let messages = left.min(BATCH as u32);
            let messages = credit
                .as_ref()
                .map_or(messages, |credit| messages.min(credit.window));
            if let Some(credit) = &mut credit {
                while credit.room() < messages {
                    if !self.acknowledgement(credit, true)? {
                        credit.give_up();
                    }
                }
                credit.sent(messages);
            }
            for index in 0..messages as usize {
                sequence.write(self.batch.outgoing(index));
            }
            self.send(messages as usize)?;
            left -= messages;
        }
        Ok(())
    }
}

/// Receives messages in batches, looks at each, and acknowledges if there is a window.
pub(super) struct Sink<D> {
    socket: D,
    batch: MessageBatch,
    window: Option<Window>,
}

impl<D: Datagram> Sink<D> {
    pub(super) fn new(socket: D, size: usize, window: Option<Window>) -> Sink<D> {
        Sink {
            socket,
            batch: MessageBatch::new(BATCH, size),
            window,
        }
    }

    /// How many messages came; 0 after [`SILENCE`] where messages can be lost.
    fn receive(&mut self) -> Result<usize, Broken> {
        let mut since = None;
        loop {
            let spinning = self.socket.spinning();
            match errno(self.batch.receive(self.socket.fd(), spinning.is_none())) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN)
                    if self.window.is_some() && (spinning.is_none() || silent(&mut since)) =>
                {
                    return Ok(0);
                }
                Err(Errno::AGAIN) => {
                    if let Some(pause) = spinning {
                        pause.once();
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
            if called_off() {
                return Err(Broken::CalledOff);
            }
        }
    }
}

impl<D: Datagram> Station for Sink<D> {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let mut burst = Burst::new(count, self.window);
        while !burst.complete() {
            let came = self.receive()?;
            if came == 0 {
                break;
            }
            for index in 0..came {
                let message = self.batch.incoming(index);
                if message.is_empty() {
                    return Err(Broken::Closed);
                }
                burst.take(message);
            }
            if let Some(ack) = burst.acknowledgement() {
                acknowledge(self.socket.fd(), ack)?;
            }
        }
        burst.end()
    }
}

/// One message a call, sent at its moment and waited for by itself.
pub(super) struct Single {
    socket: DatagramSocket,
    /// After something has come it sleeps for so long and takes all there is; if nothing has come meanwhile, it waits for the next.
    pause: Option<Duration>,
    sequence: Sequence,
    message: Box<[u8]>,
}

impl Single {
    pub(super) fn new(socket: DatagramSocket, size: usize, pause: Option<Duration>) -> Single {
        Single {
            socket,
            pause,
            sequence: Sequence::new(),
            message: vec![0; size].into_boxed_slice(),
        }
    }
}

impl Pace for Single {
    fn begin(&mut self) {
        self.sequence = Sequence::new();
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Broken> {
        self.sequence.write(&mut self.message);
        self.socket.send(&self.message)
    }
}

impl Station for Single {
    /// A socket that blocks has a time-out, which ends the wait for what was lost.
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let (mut burst, mut since) = (Burst::new(count, None), None);
        let Single {
            socket,
            message,
            pause,
            ..
        } = self;
        let mut due = *pause;
        while !burst.complete() {
            let flags = match due {
                Some(_) => RecvFlags::DONTWAIT,
                None => socket.recv,
            };
            match rustix::net::recv(&socket.socket, &mut **message, flags) {
                Ok((_, 0)) => return Err(Broken::Closed),
                Ok((_, length)) => {
                    burst.take(&message[..length]);
                    (since, due) = (None, *pause);
                    continue;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if let Some(pause) = due.take() => std::thread::sleep(pause),
                Err(Errno::AGAIN) if socket.spinning.is_none() || silent(&mut since) => break,
                Err(Errno::AGAIN) => {
                    if let Some(pause) = socket.spinning {
                        pause.once();
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
            if called_off() {
                return Err(Broken::CalledOff);
            }
        }
        burst.end()
    }
}

/// The receiver's account of one burst.
pub(super) struct Burst {
    sequence: Sequence,
    expected: u32,
    received: u32,
    stride: u32,
    acknowledged: u32,
    /// The first message that was not the one expected: damage, or what follows a loss.
    odd: Option<Broken>,
}

impl Burst {
    pub(super) fn new(expected: u32, window: Option<Window>) -> Burst {
        let stride = window.map_or(u32::MAX, Window::stride);
        Burst {
            sequence: Sequence::new(),
            expected,
            received: 0,
            stride,
            acknowledged: 0,
            odd: None,
        }
    }

    #[inline(always)]
    pub(super) fn take(&mut self, message: &[u8]) {
        self.received += 1;
        if let Err(broken) = self.sequence.check(message) {
            self.odd.get_or_insert(broken);
        }
    }

    pub(super) fn complete(&self) -> bool {
        self.received >= self.expected
    }

    /// What to tell the sender now, if anything.
    #[inline(always)]
    pub(super) fn acknowledgement(&mut self) -> Option<[u8; 4]> {
        let due = self.received - self.acknowledged >= self.stride;
        due.then(|| {
            self.acknowledged = self.received;
            self.received.to_le_bytes()
        })
    }

    /// How many came. After a loss the rest cannot be what was expected; without one it must be.
    pub(super) fn end(self) -> Result<u32, Broken> {
        match self.odd {
            Some(broken) if self.received == self.expected => Err(broken),
            _ => Ok(self.received),
        }
    }
}

/// Sends an acknowledgement; one that does not fit is made up for by the next.
pub(super) fn acknowledge(socket: BorrowedFd<'_>, ack: [u8; 4]) -> Result<(), Broken> {
    match rustix::net::send(socket, &ack, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether [`SILENCE`] is over since the first call with this `since`.
pub(super) fn silent(since: &mut Option<Instant>) -> bool {
    since.get_or_insert_with(Instant::now).elapsed() > SILENCE
}

fn errno(result: io::Result<usize>) -> Result<usize, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

//! The first process's end of each way that messages go.

use super::flow::{By, Order};
use crate::bench::second::other;
use std::io::{self, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use tightbeam::{Endpoint, SendError};
use tightbeam_sys::mmsg::MessageBatch;

/// The handler of the second process.
pub(super) const TAKE: u16 = 1;
/// Slots of a channel's ring.
pub(super) const DEPTH: usize = 4096;
/// Messages of one `sendmmsg`.
const BATCH: usize = 64;
/// An opening takes a packet there and back, twice; on a machine that is busy otherwise that may be long.
const OPENING: Duration = Duration::from_secs(15);
/// A stream that does not move for so long is broken.
const STUCK: Duration = Duration::from_secs(5);

/// Takes messages.
pub(super) trait Source {
    /// Whether it was taken; if not, an error has said so.
    fn send(&mut self, message: &[u8]) -> io::Result<bool>;

    /// Between bursts.
    fn turn(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Sends what is still on this side.
    fn finish(&mut self) -> io::Result<()> {
        self.turn()
    }

    /// Losses that were counted on this side.
    fn causes(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// Opens the end to what the second process listens to.
pub(super) fn open(order: &Order, connect: &str) -> io::Result<Box<dyn Source>> {
    let there = (order.host, order.port);
    let udp = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(there)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    };
    Ok(match order.by {
        By::Udp => Box::new(udp()?),
        By::UdpMmsg => Box::new(Batched {
            socket: udp()?,
            batch: MessageBatch::new(BATCH, order.size),
            held: 0,
        }),
        By::Tcp => {
            let stream = TcpStream::connect(there)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(STUCK))?;
            Box::new(stream)
        }
        By::TightbeamUdp | By::Xdp | By::Shm => {
            let endpoint = Endpoint::builder().depth(DEPTH).open_within(OPENING);
            Box::new(Ours(endpoint.connect(connect).map_err(other)?))
        }
    })
}

/// Whether a socket took it.
fn taken(sent: io::Result<usize>) -> io::Result<bool> {
    match sent {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl Source for UdpSocket {
    fn send(&mut self, message: &[u8]) -> io::Result<bool> {
        taken(UdpSocket::send(self, message))
    }
}

/// Many messages a call.
struct Batched {
    socket: UdpSocket,
    batch: MessageBatch,
    held: usize,
}

impl Source for Batched {
    fn send(&mut self, message: &[u8]) -> io::Result<bool> {
        self.batch.outgoing(self.held).copy_from_slice(message);
        self.held += 1;
        if self.held == BATCH {
            self.finish()?;
        }
        Ok(true)
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.held {
            match self.batch.send(self.socket.as_fd(), sent, self.held, false) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.held = 0;
        Ok(())
    }
}

impl Source for TcpStream {
    fn send(&mut self, message: &[u8]) -> io::Result<bool> {
        self.write_all(message).map(|()| true)
    }
}

/// A channel of an endpoint.
struct Ours(Endpoint);

impl Source for Ours {
    fn send(&mut self, message: &[u8]) -> io::Result<bool> {
        match self.0.try_send(TAKE, message) {
            Ok(()) => Ok(true),
            Err(SendError::Full) => Ok(false),
            Err(error) => Err(other(error)),
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        self.0.poll(0);
        Ok(())
    }

    fn causes(&self) -> Vec<(String, u64)> {
        causes(&self.0)
    }
}

/// Losses that an endpoint, its device and the kernel have counted for it.
pub(super) fn causes<S>(endpoint: &Endpoint<S>) -> Vec<(String, u64)> {
    /// Beside those that begin with `lost_`: the channel's own.
    const OTHERS: [&str; 2] = ["channel_no_room", "channel_too_long"];
    let channel = endpoint.channels().next();
    let status = channel.and_then(|channel| endpoint.device_status(channel));
    let counts = status.map(|status| status.counts).unwrap_or_default();
    let is_loss = |name: &str| name.starts_with("lost_") || OTHERS.contains(&name);
    counts
        .into_iter()
        .filter(|(name, count)| *count > 0 && is_loss(name))
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

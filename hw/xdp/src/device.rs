//! The device: Tightbeam's four verbs over the kernel's four rings.

use crate::envelopes::Envelopes;
use crate::fix::{self, down};
use crate::mode::{Attempt, HEADROOM};
use crate::open::way;
use crate::socket::{self, SIZES, Socket};
use crate::stats::Stats;
use crate::status;
use crate::steering::Steering;
use rustix::io::Errno;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tightbeam_proto::wire::{Datagram, ENVELOPE, UdpSum};
use tightbeam_segment::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};
use tightbeam_sys::Network;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::{self, Received};

/// Where in a frame a packet to be sent starts: its payload then starts a cache line.
pub(crate) const AT: usize = HEADROOM as usize;
/// Of IPv4 and UDP.
const HEADERS: u32 = 28;
/// Frames that are given back to the kernel at once: it reads our index no more often than that.
const GIVE_BACK: usize = 32;
/// How long the kernel may take to find a host on the link.
const FIND: Duration = Duration::from_millis(20);
/// The port of the discard protocol (RFC 863).
const DISCARD: u16 = 9;
/// Calls of one kick at most, more than those that the kernel's budget makes necessary.
pub(crate) const MORE_CALLS: u32 = 8;
/// Looks that find nothing, after which the socket is asked whether it still has its interface.
const IDLE: u32 = 1 << 16;

/// Where a device is.
pub(crate) struct Place {
    /// Its namespace.
    pub(crate) network: Network,
    pub(crate) link: Link,
    pub(crate) driver: String,
    pub(crate) queue: u32,
    pub(crate) queues: u32,
}

/// Packets through an AF_XDP socket on one queue of an interface.
///
/// It ends in this order: packets are no longer steered to it, its rings are unmapped, its socket is closed. Then its queue is free.
pub struct XdpDevice {
    /// `None` if whoever has opened it holds that.
    pub(crate) steering: Option<Steering>,
    pub(crate) socket: Socket,
    /// Has the port.
    reserve: UdpSocket,
    pub(crate) place: Place,
    pub(crate) attempt: Attempt,
    pub(crate) local: SocketAddrV4,
    pub(crate) sum: UdpSum,
    pub(crate) envelopes: Envelopes,
    pub(crate) max_packet: usize,
    pub(crate) stats: Stats,
    /// Packets are in TX of which the kernel has not been told.
    untold: bool,
    /// The interface is gone.
    pub(crate) gone: bool,
    idle: u32,
    /// Why it is not the best way that was wanted.
    pub(crate) fell_back: Option<String>,
}

impl XdpDevice {
    pub(crate) fn over(
        place: Place,
        (socket, steering, attempt): (Socket, Option<Steering>, Attempt),
        (reserve, local): (UdpSocket, SocketAddrV4),
        fell_back: Option<String>,
    ) -> XdpDevice {
        // No byte breaks on the way to another process of this host, and a half-made sum would be worse than none.
        let virtual_link = place.link.loopback || place.driver == "veth";
        let (mtu, source) = (place.link.mtu, place.link.address);
        let mut device = XdpDevice {
            steering,
            socket,
            reserve,
            place,
            attempt,
            local,
            sum: if virtual_link {
                UdpSum::None
            } else {
                UdpSum::Full
            },
            envelopes: Envelopes::new(local, source),
            max_packet: 0,
            stats: Stats::default(),
            untold: false,
            gone: false,
            idle: 0,
            fell_back,
        };
        device.follow_mtu(mtu);
        device
    }

    /// What another process can use, and what only the opener may have.
    pub(crate) fn into_parts(self) -> (Option<Steering>, Socket, UdpSocket) {
        (self.steering, self.socket, self.reserve)
    }

    /// The longest IP packet that fits into a frame.
    pub(crate) fn room(&self) -> u32 {
        let frame = self.socket.umem.frame_bytes();
        socket::room(frame, self.socket.got.headroom.max(HEADROOM))
    }

    fn follow_mtu(&mut self, mtu: u32) {
        let most = mtu.min(self.room());
        self.max_packet = most.saturating_sub(HEADERS) as usize;
    }

    pub(crate) fn checksum(&self) -> &'static str {
        match self.sum {
            UdpSum::None => "none",
            UdpSum::Full => "software",
        }
    }

    /// The link address of the next hop to a host. Has the kernel look for it if need be.
    fn next_hop(&self, to: SocketAddrV4) -> Result<[u8; 6], DeviceError> {
        let (link, network) = (&self.place.link, &self.place.network);
        let way = way(&self.place, to)?;
        if link.loopback {
            return Ok([0; 6]);
        }
        let hop = way.gateway.unwrap_or(*to.ip());
        let no_route = |why| DeviceError::NoRoute { to, why };
        let unknown = || {
            let name = &link.name;
            no_route(format!(
                "{hop} does not answer on {name}; is it up? `ip neigh show {hop} dev {name}` says what the kernel knows, `arping -I {name} {hop}` asks"
            ))
        };
        let failed = |errno: Errno| {
            let errno = errno.raw_os_error();
            no_route(format!(
                "the kernel does not say who is on the link (errno {errno})"
            ))
        };
        let known = network.neighbour(link.index, hop);
        if let Some(found) = known.map_err(failed)? {
            return Ok(found);
        }
        // A packet makes the kernel ask for it; one to the port that is there to throw packets away.
        let _ = self
            .reserve
            .send_to(&[], SocketAddrV4::new(*to.ip(), DISCARD));
        let found = network.wait_for_neighbour(link.index, hop, FIND);
        found.map_err(failed)?.ok_or_else(unknown)
    }

    /// The interface is gone: what is in TX, now or when more is put there, will never be sent.
    #[cold]
    fn lose_all(&mut self) {
        self.gone = true;
        let waiting = self.socket.xsk.transmit_outstanding();
        self.stats.down = waiting.map_or(self.stats.down, u64::from);
    }

    /// Asks the kernel to send, until it has taken all; a bounded number of times.
    fn send_all(&mut self) -> Result<bool, DeviceError> {
        let most = SIZES.transmit / self.socket.got.budget + MORE_CALLS;
        let mut waiting = u32::MAX;
        for _ in 0..most {
            self.stats.send_calls += 1;
            match xdp::kick_transmit(self.socket.xsk.as_fd()) {
                Ok(()) => {
                    self.untold = false;
                    return Ok(false);
                }
                Err(Errno::INTR) => {}
                // One packet is lost; the others are waiting still.
                Err(Errno::BUSY) => self.stats.refused += 1,
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    let now = self.socket.xsk.transmit_outstanding().map_err(fix::ring)?;
                    if now >= waiting {
                        break;
                    }
                    waiting = now;
                }
                // Down: what is in TX is sent when it is up again.
                Err(errno @ Errno::NETDOWN) => return Err(down(errno)),
                Err(errno @ (Errno::NXIO | Errno::NODEV)) => {
                    self.lose_all();
                    return Err(down(errno));
                }
                Err(errno) => {
                    let fix = "this is not expected; the device's status may say more";
                    return Err(fix::system("send", errno, fix));
                }
            }
        }
        self.stats.busy += 1;
        Ok(true)
    }

    /// Nothing has come. Whoever must be called to receive is; at times the socket is asked whether it has its interface.
    #[inline]
    fn nothing(&mut self) -> Result<(), DeviceError> {
        if self.socket.got.busy_poll || self.socket.xsk.fill_needs_wakeup() {
            self.stats.receive_calls += 1;
            // What went wrong the next kick, or the next look at the socket, says.
            let _ = xdp::kick_receive(self.socket.xsk.as_fd());
        }
        self.idle += 1;
        if self.idle < IDLE {
            return Ok(());
        }
        self.idle = 0;
        let place = &self.place;
        if self.gone || place.network.link_by_index(place.link.index).is_err() {
            self.lose_all();
            return Err(down(Errno::NXIO));
        }
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<Option<Received>, DeviceError> {
        let socket = &mut self.socket;
        socket.xsk.receive(&mut socket.umem).map_err(fix::ring)
    }

    /// Hands a packet over, or counts why not; says whether it did.
    #[inline]
    fn hand(&mut self, received: &Received, take: &mut dyn FnMut(Packet<'_>)) -> bool {
        let Received { frame, at, len, .. } = received;
        let bytes = &self.socket.umem.bytes(frame)[*at..*at + *len];
        let Ok(datagram) = Datagram::parse(bytes) else {
            self.stats.malformed += 1;
            return false;
        };
        if datagram.destination != self.local {
            self.stats.misaddressed += 1;
            return false;
        }
        let from = Route {
            to: datagram.source,
            link: datagram.link.source,
        };
        take(Packet {
            from,
            bytes: datagram.payload,
        });
        true
    }
}

impl Device for XdpDevice {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_packet: self.max_packet,
            batch: SIZES.transmit as usize,
            local: self.local,
        }
    }

    fn route(&mut self, to: SocketAddrV4) -> Result<Route, DeviceError> {
        match self.place.network.link_by_index(self.place.link.index) {
            Ok(link) => self.follow_mtu(link.mtu),
            Err(errno) => return Err(down(errno)),
        }
        let link = self.next_hop(to)?;
        Ok(Route { to, link })
    }

    fn transmit(
        &mut self,
        to: &Route,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<(), DeviceError> {
        if len > self.max_packet {
            return Err(DeviceError::TooLong {
                len,
                max: self.max_packet,
            });
        }
        if self.socket.to_send.is_empty() {
            self.reclaim();
        }
        if self.socket.xsk.transmit_room(1).map_err(fix::ring)? == 0 {
            return Err(DeviceError::Full);
        }
        let Some(mut frame) = self.socket.to_send.pop() else {
            return Err(DeviceError::Full);
        };
        let packet = &mut self.socket.umem.bytes_mut(&mut frame)[AT..];
        let used = write(&mut packet[ENVELOPE..ENVELOPE + len]).min(len);
        let whole = self.envelopes.to(to).seal(packet, used, self.sum);
        let socket = &mut self.socket;
        socket.xsk.queue(&mut socket.umem, frame, AT, whole);
        self.stats.queued += 1;
        self.untold = true;
        Ok(())
    }

    fn kick(&mut self) -> Result<bool, DeviceError> {
        if !self.untold {
            return Ok(false);
        }
        self.socket.xsk.publish_queued();
        if !self.socket.xsk.transmit_needs_wakeup() {
            self.untold = false;
            return Ok(false);
        }
        let done = self.send_all();
        // In copy mode they have left already. The frame that comes back last is the one in the cache, and the next to be used.
        self.reclaim();
        done
    }

    fn receive(
        &mut self,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<usize, DeviceError> {
        let (mut seen, mut handed) = (0, 0);
        while seen < most
            && let Some(received) = self.next()?
        {
            seen += 1;
            handed += usize::from(self.hand(&received, take));
            self.socket.to_fill.push(received.frame);
        }
        if seen == 0 {
            self.nothing()?;
            return Ok(0);
        }
        self.idle = 0;
        self.stats.received += handed as u64;
        self.socket.xsk.release_received();
        if self.socket.to_fill.len() >= GIVE_BACK {
            self.provide();
        }
        Ok(handed)
    }

    fn provide(&mut self) {
        // A fault of the ring is found again, and told, by the next verb that can tell.
        let _ = self.socket.provide();
    }

    fn reclaim(&mut self) -> usize {
        self.socket.reclaim().map_or(0, |count| count as usize)
    }

    fn status(&self) -> DeviceStatus {
        status::status(self)
    }
}

impl AsFd for XdpDevice {
    /// Readable when there is something to receive.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.xsk.as_fd()
    }
}

//! The device: Tightbeam's four verbs over the kernel's four rings.

use crate::envelopes::Envelopes;
use crate::fix::{self, down};
use crate::mode::{Attempt, HEADROOM};
use crate::open::way;
use crate::socket::{self, Queue, SIZES, Sockets};
use crate::stats::Stats;
use crate::status;
use crate::steering::Steering;
use rustix::io::Errno;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tightbeam_proto::wire::{Datagram, ENVELOPE, UdpSum};
use tightbeam_segment::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};
use tightbeam_sys::Network;
use tightbeam_sys::control::Watcher;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::{self, Received};

/// Where in a frame a packet to be sent starts: its payload then starts a cache line.
pub(crate) const AT: usize = HEADROOM as usize;
/// Of IPv4 and UDP.
const HEADERS: u32 = 28;
/// Frames that are given back to the kernel at once, when there is nothing else to do: it reads our index no more often than that. (Done
/// between a packet and its answer, each such time took 900 instructions of a round trip's 4,200.)
const GIVE_BACK: usize = 32;
/// As many, whatever there is to do.
const GIVE_BACK_NOW: usize = 2 * GIVE_BACK;
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
    /// The queues that are ours.
    pub(crate) bound: Range<u32>,
}

/// Packets through AF_XDP sockets, one on each queue of an interface or on one queue alone, over one memory.
///
/// It ends in this order: packets are no longer steered to it, its rings are unmapped, its sockets are closed. Then its queues are free.
pub struct XdpDevice {
    /// `None` if whoever has opened it holds that.
    pub(crate) steering: Option<Steering>,
    pub(crate) sockets: Sockets,
    /// Readable when one of several sockets is.
    any: Option<Watcher>,
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
    /// The queue that is looked at next, by its place among ours.
    turn: usize,
    /// Why it is not the best way that was wanted.
    pub(crate) fell_back: Option<String>,
}

impl XdpDevice {
    pub(crate) fn over(
        place: Place,
        (sockets, steering, attempt): (Sockets, Option<Steering>, Attempt),
        (reserve, local): (UdpSocket, SocketAddrV4),
        fell_back: Option<String>,
    ) -> Result<XdpDevice, DeviceError> {
        // No byte breaks on the way to another process of this host, and a half-made sum would be worse than none.
        let virtual_link = place.link.loopback || place.driver == "veth";
        let (mtu, source) = (place.link.mtu, place.link.address);
        let mut device = XdpDevice {
            steering,
            any: watch(&sockets.queues)?,
            sockets,
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
            turn: 0,
            fell_back,
        };
        device.follow_mtu(mtu);
        Ok(device)
    }

    /// What another process can use, and what only the opener may have.
    pub(crate) fn into_parts(self) -> (Option<Steering>, Sockets, UdpSocket) {
        (self.steering, self.sockets, self.reserve)
    }

    /// The longest IP packet that fits into a frame.
    pub(crate) fn room(&self) -> u32 {
        let frame = self.sockets.umem.frame_bytes();
        socket::room(frame, self.sockets.got.headroom.max(HEADROOM))
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
        let waiting = self.sockets.sender().transmit_outstanding();
        self.stats.down = waiting.map_or(self.stats.down, u64::from);
    }

    /// Asks the kernel to send, until it has taken all; a bounded number of times.
    fn send_all(&mut self) -> Result<bool, DeviceError> {
        let most = SIZES.transmit / self.sockets.got.budget + MORE_CALLS;
        let mut waiting = u32::MAX;
        for _ in 0..most {
            self.stats.send_calls += 1;
            match xdp::kick_transmit(self.sockets.sender().as_fd()) {
                Ok(()) => {
                    self.untold = false;
                    return Ok(false);
                }
                Err(Errno::INTR) => {}
                // One packet is lost; the others are waiting still.
                Err(Errno::BUSY) => self.stats.refused += 1,
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    let now = self.sockets.sender().transmit_outstanding();
                    let now = now.map_err(fix::ring)?;
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
        let Sockets { queues, umem, .. } = &mut self.sockets;
        for queue in queues {
            if queue.to_fill.len() >= GIVE_BACK {
                // As in `receive_at`.
                let _ = queue.provide(umem);
            }
            if queue.busy_poll || queue.xsk.fill_needs_wakeup() {
                self.stats.receive_calls += 1;
                // What went wrong the next kick, or the next look at the socket, says.
                let _ = xdp::kick_receive(queue.xsk.as_fd());
            }
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

    /// Hands over what has arrived at a queue, by its place among ours; how many packets were seen and how many handed over.
    #[inline]
    fn receive_at(
        &mut self,
        place: usize,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<(usize, usize), DeviceError> {
        let (mut seen, mut handed) = (0, 0);
        while seen < most
            && let Some(received) = self.sockets.receive(place).map_err(fix::ring)?
        {
            seen += 1;
            handed += usize::from(self.hand(&received, take));
            self.sockets.queues[place].to_fill.push(received.frame);
        }
        if seen > 0 {
            let Sockets { queues, umem, .. } = &mut self.sockets;
            let queue = &mut queues[place];
            queue.xsk.release_received();
            if queue.to_fill.len() >= GIVE_BACK_NOW {
                // A fault of the ring is found again, and told, by the next verb that can tell.
                let _ = queue.provide(umem);
            }
        }
        Ok((seen, handed))
    }

    /// Hands a packet over, or counts why not; says whether it did.
    #[inline]
    fn hand(&mut self, received: &Received, take: &mut dyn FnMut(Packet<'_>)) -> bool {
        let Received { frame, at, len, .. } = received;
        let bytes = &self.sockets.umem.bytes(frame)[*at..*at + *len];
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

/// What is readable when one of several sockets is. One by itself needs no such thing.
fn watch(queues: &[Queue]) -> Result<Option<Watcher>, DeviceError> {
    if queues.len() <= 1 {
        return Ok(None);
    }
    let fix = "is the limit of descriptors reached? `ulimit -n` says what it is";
    let failed = |errno| fix::system("watch several sockets", errno, fix);
    let any = Watcher::new().map_err(failed)?;
    for (token, queue) in (0..).zip(queues) {
        any.add(queue.xsk.as_fd(), token).map_err(failed)?;
    }
    Ok(Some(any))
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
        if self.sockets.to_send.is_empty() {
            self.reclaim();
        }
        let (sender, _) = self.sockets.sending();
        if sender.transmit_room(1).map_err(fix::ring)? == 0 {
            return Err(DeviceError::Full);
        }
        let Some(mut frame) = self.sockets.to_send.pop() else {
            return Err(DeviceError::Full);
        };
        let (sender, umem) = self.sockets.sending();
        let packet = &mut umem.bytes_mut(&mut frame)[AT..];
        let used = write(&mut packet[ENVELOPE..ENVELOPE + len]).min(len);
        let whole = self.envelopes.to(to).seal(packet, used, self.sum);
        sender.queue(umem, frame, AT, whole);
        self.stats.queued += 1;
        self.untold = true;
        Ok(())
    }

    fn kick(&mut self) -> Result<bool, DeviceError> {
        if !self.untold {
            return Ok(false);
        }
        let (sender, _) = self.sockets.sending();
        sender.publish_queued();
        if !sender.transmit_needs_wakeup() {
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
        let queues = self.sockets.queues.len();
        let (mut seen, mut handed) = (0, 0);
        for _ in 0..queues {
            let arrived = self.receive_at(self.turn, most - seen, take)?;
            (seen, handed) = (seen + arrived.0, handed + arrived.1);
            self.turn += 1;
            if self.turn == queues {
                self.turn = 0;
            }
            if seen == most {
                break;
            }
        }
        if seen == 0 {
            self.nothing()?;
            return Ok(0);
        }
        self.idle = 0;
        self.stats.received += handed as u64;
        Ok(handed)
    }

    fn provide(&mut self) {
        let Sockets { queues, umem, .. } = &mut self.sockets;
        for queue in queues {
            // As in `receive_at`.
            let _ = queue.provide(umem);
        }
    }

    fn reclaim(&mut self) -> usize {
        self.sockets.reclaim().map_or(0, |count| count as usize)
    }

    fn status(&self) -> DeviceStatus {
        status::status(self)
    }
}

impl AsFd for XdpDevice {
    /// Readable when there is something to receive.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.any {
            Some(any) => any.as_fd(),
            None => self.sockets.sender().as_fd(),
        }
    }
}

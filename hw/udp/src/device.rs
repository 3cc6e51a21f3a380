//! The device: four verbs over one socket.

use crate::address::Options;
use crate::counts::{Count, Counts, OVERFLOW, cause};
use crate::inbox::{Inbox, errno};
use crate::open::{self, BATCH, LONGEST, payload, system};
use crate::outbox::Outbox;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use tightbeam_segment::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};
use tightbeam_sys::Network;
use tightbeam_sys::link::Link;
use tightbeam_sys::mmsg::MessageBatch;
use tightbeam_sys::udp;

/// Reports that are taken from the kernel at once; what is left comes with the next error.
const REPORTS: usize = 256;
/// Errors of one kick that are about packets sent before; more wait for the next kick.
const OLD_NEWS: usize = 4;

/// A UDP socket as a device.
///
/// While [`kick`](Device::kick) is told that the kernel's send buffer is full, packets stay in the send ring. Errors from the network
/// (nobody there, too long for a link on the way) are counted and change nothing else.
pub struct UdpDevice {
    socket: UdpSocket,
    local: SocketAddrV4,
    /// The only host that it talks to.
    peer: Option<SocketAddrV4>,
    options: Options,
    outbox: Outbox,
    inbox: Inbox,
    /// The most bytes of a packet, now.
    longest: usize,
    link: Option<Link>,
    checksum: bool,
    counts: Counts,
}

impl UdpDevice {
    /// Listens at an address for anyone; port 0 takes any that is free, and address 0.0.0.0 is all of the host's.
    pub fn listen(at: SocketAddrV4, options: Options) -> Result<UdpDevice, DeviceError> {
        let socket = open::bind(at)?;
        let link = match at.ip().is_unspecified() {
            true => None,
            false => open::link_of(*at.ip()),
        };
        let longest = link
            .as_ref()
            .map_or(LONGEST, |link| payload(link.mtu as usize));
        UdpDevice::new(socket, None, options, link, longest)
    }

    /// Talks to one host alone, from any free port.
    pub fn connect(to: SocketAddrV4, options: Options) -> Result<UdpDevice, DeviceError> {
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(system(
                format!("talk to {to}"),
                Errno::DESTADDRREQ,
                "name the address and the port of the other host",
            ));
        }
        let way = open::way(std::net::Ipv4Addr::UNSPECIFIED, to)?;
        let socket = open::bind(SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to).map_err(|error| {
            system(
                format!("connect a UDP socket to {to}"),
                errno(&error),
                "an address of one host is needed, no broadcast",
            )
        })?;
        UdpDevice::new(socket, Some(to), options, way.link, payload(way.mtu))
    }

    fn new(
        socket: UdpSocket,
        peer: Option<SocketAddrV4>,
        options: Options,
        link: Option<Link>,
        longest: usize,
    ) -> Result<UdpDevice, DeviceError> {
        open::set_up(&socket, &options)?;
        let inbox = Inbox::new(options.engine, socket.as_fd(), LONGEST, peer.is_some());
        let inbox = inbox.map_err(|error| {
            system(
                "set up an io_uring",
                errno(&error),
                "it needs Linux 6.1 and kernel.io_uring_disabled=0; without engine=io_uring it is not used",
            )
        })?;
        let batch = match peer {
            Some(_) => MessageBatch::new(BATCH, LONGEST),
            None => MessageBatch::with_names(BATCH, LONGEST),
        };
        let mut device = UdpDevice {
            local: open::local(&socket)?,
            outbox: Outbox::new(batch),
            inbox,
            socket,
            peer,
            options,
            longest,
            link,
            checksum: true,
            counts: Counts::default(),
        };
        device.choose_checksum();
        Ok(device)
    }

    /// Leaves the checksum to nobody where no hardware would finish it.
    fn choose_checksum(&mut self) {
        let wanted = !self.link.as_ref().is_some_and(open::is_virtual);
        if wanted != self.checksum && udp::set_no_checksum(self.socket.as_fd(), !wanted).is_ok() {
            self.checksum = wanted;
        }
    }

    /// Takes what there is to hear about packets that did not arrive.
    fn take_reports(&mut self) -> News {
        let mut news = News::default();
        for taken in 0.. {
            // What is left makes the next call fail, too.
            if taken == REPORTS {
                return news;
            }
            let Ok(Some(report)) = udp::take_report(self.socket.as_fd()) else {
                break;
            };
            if report.local {
                news.refused = true;
                continue;
            }
            news.earlier = true;
            self.counts.add(cause(report.errno), 1);
            if report.errno == Errno::MSGSIZE {
                self.measure_way(None);
            }
        }
        // Taking reports leaves the last one's error behind, which is no news any more.
        let _ = sockopt::socket_error(&self.socket);
        news
    }

    /// Finds out how long a packet may be now.
    fn measure_way(&mut self, to: Option<SocketAddrV4>) {
        let longest = match (self.peer, to) {
            (Some(_), _) => sockopt::ip_mtu(&self.socket).map(|mtu| payload(mtu as usize)),
            (None, Some(to)) => open::way(*self.local.ip(), to)
                .map(|way| payload(way.mtu).min(self.longest))
                .map_err(|_| Errno::NETUNREACH),
            (None, None) => return,
        };
        // Without an answer the length stays as it was.
        self.longest = longest.unwrap_or(self.longest);
    }

    /// The kernel has refused the first packet of the ring, for this reason, or has told of an earlier one. What the device's error
    /// is, if it is one.
    fn refused(&mut self, errno: Errno) -> Option<DeviceError> {
        let news = self.take_reports();
        if news.earlier && !news.refused {
            return None;
        }
        if errno == Errno::CONNREFUSED {
            // It can only be of an earlier one, of which there is no report.
            self.counts.add(Count::Unreachable, 1);
            return None;
        }
        let to = self.outbox.next_to();
        self.lose(1, cause(errno));
        match cause(errno) {
            Count::TooLong => self.measure_way(to),
            Count::Down => {
                self.lose(self.outbox.len(), Count::Down);
                return Some(down(errno));
            }
            // Of a way to one host this is all there is.
            Count::NoRoute if self.peer.is_some() => return Some(down(errno)),
            _ => {}
        }
        None
    }

    /// The first packets of the ring are lost.
    fn lose(&mut self, count: usize, cause: Count) {
        self.outbox.drop_first(count);
        self.counts.add(Count::Sent, count);
        self.counts.add(cause, count);
    }
}

/// What the reports that were taken are about.
#[derive(Debug, Default)]
struct News {
    /// Packets that were sent before.
    earlier: bool,
    /// The packet that was to be sent: this host's kernel finds it too long.
    refused: bool,
}

fn down(errno: Errno) -> DeviceError {
    DeviceError::Down {
        errno: errno.raw_os_error(),
    }
}

impl Device for UdpDevice {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_packet: self.longest,
            batch: BATCH,
            local: self.local,
        }
    }

    fn route(&mut self, to: SocketAddrV4) -> Result<Route, DeviceError> {
        let route = Route { to, link: [0; 6] };
        match self.peer {
            Some(peer) if peer == to => self.measure_way(None),
            Some(peer) => {
                return Err(DeviceError::NoRoute {
                    to,
                    why: format!("this device talks to {peer} only; open another one"),
                });
            }
            None => {
                let way = open::way(*self.local.ip(), to)?;
                self.longest = self.longest.min(payload(way.mtu));
                if self.link.is_none() {
                    self.link = way.link;
                    self.choose_checksum();
                }
            }
        }
        Ok(route)
    }

    fn transmit(
        &mut self,
        to: &Route,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<(), DeviceError> {
        if len > self.longest {
            return Err(DeviceError::TooLong {
                len,
                max: self.longest,
            });
        }
        if self.peer.is_some_and(|peer| peer != to.to) {
            return self.route(to.to).map(drop);
        }
        if self.outbox.is_full() {
            return Err(DeviceError::Full);
        }
        self.outbox.push(to.to, len, write);
        Ok(())
    }

    fn kick(&mut self) -> Result<bool, DeviceError> {
        let mut failed = None;
        // Each turn takes packets out of the ring, or hears of an earlier one.
        for _ in 0..BATCH + OLD_NEWS {
            if self.outbox.is_empty() {
                break;
            }
            self.counts.add(Count::SendCalls, 1);
            match self
                .outbox
                .send(self.socket.as_fd())
                .map_err(|error| errno(&error))
            {
                Ok(sent) => {
                    self.counts.add(Count::Sent, sent);
                    if !self.outbox.is_empty() {
                        // What stopped the kernel is said now, or by the next call if it is about the packet that is next.
                        self.take_reports();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.counts.add(Count::Busy, 1);
                    break;
                }
                Err(errno) => {
                    if let Some(error) = self.refused(errno) {
                        failed = Some(error);
                    }
                }
            }
        }
        failed.map_or(Ok(!self.outbox.is_empty()), Err)
    }

    fn receive(
        &mut self,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<usize, DeviceError> {
        let peer = self.peer;
        let mut hand = |sender: Option<SocketAddrV4>, bytes: &[u8]| {
            // A packet without a sender cannot be answered, and IPv4 has none.
            if let Some(to) = peer.or(sender) {
                let from = Route { to, link: [0; 6] };
                take(Packet { from, bytes });
            }
        };
        let mut look = self.inbox.receive(self.socket.as_fd(), most, &mut hand);
        if look.is_err() {
            // It is about a packet that was sent: what has arrived is still there.
            self.take_reports();
            look = self.inbox.receive(self.socket.as_fd(), most, &mut hand);
        }
        match look {
            Ok(look) => {
                self.counts.add(Count::Received, look.handed);
                self.counts.add(Count::Truncated, look.truncated);
                self.counts.add(Count::ReceiveCalls, look.calls);
                Ok(look.handed)
            }
            Err(Errno::EXIST) => Err(system(
                "receive",
                Errno::EXIST,
                "with engine=io_uring a device belongs to the thread that has received first",
            )),
            // More news of packets that were sent; it is counted when that is over.
            Err(_) => Ok(0),
        }
    }

    fn provide(&mut self) {}

    fn reclaim(&mut self) -> usize {
        0
    }

    fn status(&self) -> DeviceStatus {
        let mut status = DeviceStatus::new("udp");
        status.facts = self.facts();
        status.counts.extend(self.counts.iter());
        let dropped = udp::dropped(self.socket.as_fd()).map_or(0, u64::from);
        status.counts.push((OVERFLOW, dropped));
        status
    }
}

impl UdpDevice {
    fn facts(&self) -> Vec<(&'static str, String)> {
        let buffer = |size: Result<usize, Errno>| {
            size.map_or_else(|_| "unknown".into(), |size| size.to_string())
        };
        let unknown = || "unknown".to_owned();
        let of_link = |get: &dyn Fn(&Link) -> String| self.link.as_ref().map_or_else(unknown, get);
        vec![
            ("engine", self.options.engine.name().into()),
            ("local", self.local.to_string()),
            (
                "peer",
                self.peer
                    .map_or_else(|| "any".into(), |peer| peer.to_string()),
            ),
            ("interface", of_link(&|link| link.name.clone())),
            (
                "driver",
                of_link(&|link| match link.loopback {
                    true => "loopback".into(),
                    false => Network::open()
                        .and_then(|network| network.driver(&link.name))
                        .unwrap_or_else(|_| unknown()),
                }),
            ),
            ("max_packet", self.longest.to_string()),
            (
                "checksum",
                if self.checksum { "kernel" } else { "none" }.into(),
            ),
            (
                "receive_buffer",
                buffer(sockopt::socket_recv_buffer_size(&self.socket)),
            ),
            (
                "send_buffer",
                buffer(sockopt::socket_send_buffer_size(&self.socket)),
            ),
        ]
    }
}

impl AsFd for UdpDevice {
    /// Readable when there is something to receive. With `engine=io_uring` that holds once [`receive`](Device::receive) was called, and it may be
    /// readable until that has found nothing a few times.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.readable(self.socket.as_fd())
    }
}

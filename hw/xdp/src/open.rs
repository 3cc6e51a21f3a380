//! Opening a device: from an address to sockets that packets are steered to.

use crate::address::XdpAddress;
use crate::device::{Place, XdpDevice};
use crate::fix::{self, refused, system};
use crate::interface;
use crate::mode::{Attempt, attempts};
use crate::socket::Sockets;
use crate::steering::Steering;
use rustix::io::Errno;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use tightbeam_segment::DeviceError;
use tightbeam_sys::Network;
use tightbeam_sys::link::Link;
use tightbeam_sys::route::Way;

impl XdpDevice {
    /// Opens a device to which others send: the address is one of the interface's own, and port 0 takes any that is free.
    pub fn listen(address: &XdpAddress) -> Result<XdpDevice, DeviceError> {
        XdpDevice::listen_unsealed(address)?.sealed()
    }

    /// A listener whose memory another process can map yet.
    pub(crate) fn listen_unsealed(address: &XdpAddress) -> Result<XdpDevice, DeviceError> {
        let place = Place::find(address)?;
        let own = place.network.addresses_of(place.link.index);
        let own = own.unwrap_or_default();
        if !own.contains(address.at.ip()) && !place.link.loopback {
            let (name, ip) = (&place.link.name, address.at.ip());
            let what = format!("listen at {ip} on {name}");
            let fix = format!(
                "that is no address of it: `ip address show dev {name}` says which there are, `ip address add {ip}/24 dev {name}` adds one"
            );
            return Err(refused(what, fix));
        }
        XdpDevice::open(place, address, address.at)
    }

    /// Opens a device to talk to the host at the address, from an address of the interface's and a port that the kernel chooses.
    pub fn connect(address: &XdpAddress) -> Result<XdpDevice, DeviceError> {
        let place = Place::find(address)?;
        let source = way(&place, address.at)?.source;
        XdpDevice::open(place, address, SocketAddrV4::new(source, 0))?.sealed()
    }

    /// From now on nobody else can map its memory and write there.
    fn sealed(self) -> Result<XdpDevice, DeviceError> {
        let sealed = self.sockets.umem.seal();
        sealed.map_err(|errno| system("seal the frames' memory", errno, "this is not expected"))?;
        Ok(self)
    }

    fn open(
        place: Place,
        address: &XdpAddress,
        at: SocketAddrV4,
    ) -> Result<XdpDevice, DeviceError> {
        let (reserve, local) = reserve(at)?;
        let zero_copy = place.network.has_zero_copy(place.link.index);
        let zero_copy = zero_copy.unwrap_or(false);
        let mut failed = None;
        for attempt in attempts(&place.link, zero_copy, &address.options) {
            match try_open(&place, &attempt, local.port()) {
                Ok((sockets, steering)) => {
                    let opened = (sockets, Some(steering), attempt);
                    return XdpDevice::over(place, opened, (reserve, local), failed);
                }
                Err(error) if may_fall_back(&error) => {
                    let tried = format!("{} {}", attempt.mode(), attempt.copy());
                    failed.get_or_insert(format!("not {tried}: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        let why = failed.unwrap_or_default();
        Err(refused(format!("open {}", place.link.name), why))
    }
}

/// One way: the sockets first, then what steers packets to them.
fn try_open(
    place: &Place,
    attempt: &Attempt,
    port: u16,
) -> Result<(Sockets, Steering), DeviceError> {
    place.is_free()?;
    let sockets = Sockets::open(&place.link, place.bound.clone(), attempt)?;
    let steering = Steering::start(place, attempt, port, &sockets.queues)?;
    Ok((sockets, steering))
}

/// Whether another way may do what this one could not: it was the driver that refused, or its limits.
fn may_fall_back(error: &DeviceError) -> bool {
    let driver = [
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::RANGE,
        Errno::NOSPC,
        Errno::PROTONOSUPPORT,
    ];
    let driver = driver.map(Errno::raw_os_error);
    matches!(error, DeviceError::System { errno, .. } if driver.contains(errno))
}

impl Place {
    fn find(address: &XdpAddress) -> Result<Place, DeviceError> {
        let name = &address.interface;
        let network = Network::open();
        let network = network.map_err(|errno| fix::no_link(name, errno))?;
        let link = network
            .link(name)
            .map_err(|errno| fix::no_link(name, errno))?;
        if !link.up {
            let queue = address.options.queue.unwrap_or(0);
            return Err(fix::bind(&link, queue, Errno::NETDOWN));
        }
        let queues = interface::queues(&network, &link);
        let bound = match address.options.queue {
            None => 0..queues.max(1),
            Some(queue) if queue < queues => queue..queue + 1,
            Some(queue) => return Err(fix::no_queue(&link, queue, queues)),
        };
        Ok(Place::of(network, link, bound))
    }

    /// Queues of an interface.
    pub(crate) fn of(network: Network, link: Link, bound: Range<u32>) -> Place {
        Place {
            driver: interface::driver(&network, &link),
            network,
            link,
            bound,
        }
    }

    /// Whether no program is attached to the interface.
    pub(crate) fn is_free(&self) -> Result<(), DeviceError> {
        let name = &self.link.name;
        let now = self.network.link_by_index(self.link.index);
        let now = now.map_err(|errno| fix::no_link(name, errno))?;
        match now.program {
            Some(foreign) => Err(fix::foreign(name, Some(foreign.id), Errno::BUSY)),
            None => Ok(()),
        }
    }
}

/// A kernel socket that has the port: so nobody else gets it, nobody who sends to it is told that it is unreachable, and the kernel can be
/// asked to find hosts on the link.
fn reserve(at: SocketAddrV4) -> Result<(UdpSocket, SocketAddrV4), DeviceError> {
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let fix = match errno {
            Errno::ADDRINUSE => format!(
                "another socket has the port: `ss -lunp sport = :{}` says whose it is",
                at.port()
            ),
            Errno::ADDRNOTAVAIL => {
                "no interface has that address: `ip address` says which there are".into()
            }
            Errno::ACCESS => "ports below 1024 need CAP_NET_BIND_SERVICE; take a higher one".into(),
            _ => "this is not expected".to_owned(),
        };
        system(format!("reserve {at}"), errno, fix)
    };
    let socket = UdpSocket::bind(at).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    // Nobody reads what comes here past the program; it shall not take memory.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 0);
    match socket.local_addr().map_err(failed)? {
        SocketAddr::V4(local) => Ok((socket, local)),
        SocketAddr::V6(_) => Err(system(format!("reserve {at}"), Errno::AFNOSUPPORT, "")),
    }
}

/// How the kernel would send to a host over an interface.
pub(crate) fn way(place: &Place, to: SocketAddrV4) -> Result<Way, DeviceError> {
    let link = &place.link;
    let no_route = |why: String| DeviceError::NoRoute { to, why };
    let (name, ip) = (&link.name, to.ip());
    // Not asked for this interface alone: then the kernel takes any host to be on the link.
    let way = place.network.way_to(*ip).map_err(|errno| {
        no_route(format!(
            "the kernel has no route (errno {}); `ip route get {ip}` says what it knows, `ip route add {ip} dev {name}` adds one",
            errno.raw_os_error()
        ))
    })?;
    if way.local && !link.loopback {
        let why = format!("{ip} is an address of this host; use xdp:lo/{to}");
        return Err(no_route(why));
    }
    if way.interface != link.index {
        let why = format!("it does not go over {name}: `ip route get {ip}` says over which");
        return Err(no_route(why));
    }
    Ok(way)
}

//! Opening: the socket, what is asked of it, and what the way to a host is like.

use crate::address::Options;
use crate::inbox::errno;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use tightbeam_segment::DeviceError;
use tightbeam_sys::Network;
use tightbeam_sys::link::Link;
use tightbeam_sys::udp;

/// Packets of one call: more gain nothing.
pub(crate) const BATCH: usize = 64;
/// The longest payload of a packet, in bytes: of the largest frames that Ethernet has in practice. Only a host's own interface takes
/// longer ones.
pub(crate) const LONGEST: usize = 9_000 - HEADERS;
/// IPv4 without options, and UDP.
pub(crate) const HEADERS: usize = 28;

/// An error of a call that was made to `what`, with what mends it.
pub(crate) fn system(what: impl Into<String>, errno: Errno, fix: impl Into<String>) -> DeviceError {
    DeviceError::System {
        what: what.into(),
        errno: errno.raw_os_error(),
        fix: fix.into(),
    }
}

/// A socket at this address, which does not block.
pub(crate) fn bind(at: SocketAddrV4) -> Result<UdpSocket, DeviceError> {
    let socket = UdpSocket::bind(at).map_err(|error| {
        let errno = errno(&error);
        let fix = match errno {
            Errno::ADDRINUSE => format!(
                "another socket has the port: `ss -lunp sport = :{}` says whose it is",
                at.port()
            ),
            Errno::ADDRNOTAVAIL => {
                "no interface has that address: `ip address` says which there are".into()
            }
            Errno::ACCESS => "ports below 1024 need CAP_NET_BIND_SERVICE; take a higher one".into(),
            _ => "is there a network in this namespace? `ip address` says".to_owned(),
        };
        system(format!("bind a UDP socket to {at}"), errno, fix)
    })?;
    socket
        .set_nonblocking(true)
        .map_err(|error| system("set up a UDP socket", errno(&error), "this is not expected"))?;
    Ok(socket)
}

/// Where a socket is.
pub(crate) fn local(socket: &UdpSocket) -> Result<SocketAddrV4, DeviceError> {
    match socket.local_addr() {
        Ok(SocketAddr::V4(at)) => Ok(at),
        Ok(SocketAddr::V6(_)) => Err(no_answer(Errno::AFNOSUPPORT)),
        Err(error) => Err(no_answer(errno(&error))),
    }
}

fn no_answer(errno: Errno) -> DeviceError {
    system(
        "ask a UDP socket for its address",
        errno,
        "this is not expected",
    )
}

/// What a device needs of its socket, and buffers as large as the options say, or as the kernel allows.
pub(crate) fn set_up(socket: &UdpSocket, options: &Options) -> Result<(), DeviceError> {
    let refused = |errno| system("set up a UDP socket", errno, "this is not expected");
    sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DO).map_err(refused)?;
    udp::report_errors(socket.as_fd()).map_err(refused)?;
    let receive = options.receive_buffer.unwrap_or(Options::BUFFER);
    let send = options.send_buffer.unwrap_or(Options::BUFFER);
    // Whoever may, may have more than the limit of the host.
    if sockopt::set_socket_recv_buffer_size_force(socket, receive).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, receive).map_err(refused)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, send).is_err() {
        sockopt::set_socket_send_buffer_size(socket, send).map_err(refused)?;
    }
    Ok(())
}

/// The way to a host, as the kernel would go it now.
#[derive(Debug)]
pub(crate) struct Way {
    /// The most bytes of an IP packet.
    pub(crate) mtu: usize,
    /// The interface that packets leave through, if the kernel says.
    pub(crate) link: Option<Link>,
}

/// Asks the kernel for the way from an address (which may be unspecified) to a host. Sends nothing.
pub(crate) fn way(from: Ipv4Addr, to: SocketAddrV4) -> Result<Way, DeviceError> {
    let no_route = |errno: Errno| DeviceError::NoRoute {
        to,
        why: format!(
            "the kernel has no route (errno {}); `ip route get {}` says what it knows",
            errno.raw_os_error(),
            to.ip()
        ),
    };
    let asking = bind(SocketAddrV4::new(from, 0))?;
    let connected = asking.connect(to);
    connected.map_err(|error: io::Error| no_route(errno(&error)))?;
    // Of a route's MTU and the link's, whichever is less.
    let mtu = sockopt::ip_mtu(&asking).map_err(no_route)?;
    let link = || {
        let network = Network::open().ok()?;
        let way = network.way_to(*to.ip()).ok()?;
        network.link_by_index(way.interface).ok()
    };
    Ok(Way {
        mtu: mtu as usize,
        link: link(),
    })
}

/// The interface that has this address, if the kernel says.
pub(crate) fn link_of(address: Ipv4Addr) -> Option<Link> {
    // What is not known is said to be unknown in the status.
    let network = Network::open().ok()?;
    let number = network.interface_with(address).ok().flatten()?;
    network.link_by_index(number).ok()
}

/// It has no hardware that would finish a checksum.
pub(crate) fn is_virtual(link: &Link) -> bool {
    link.loopback || link.kind.as_deref() == Some("veth")
}

/// The payload of a packet on a way with this MTU, in bytes.
pub(crate) fn payload(mtu: usize) -> usize {
    mtu.saturating_sub(HEADERS).min(LONGEST)
}

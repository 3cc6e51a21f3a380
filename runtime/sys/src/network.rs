//! The network namespace in which something was opened: whom to ask about its interfaces and routes.

use crate::Errno;
use crate::netlink::Netlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::OwnedFd;

/// The group that hears of changed neighbours.
const NEIGHBOURS: u32 = 1 << 2;

/// Sockets through which a network namespace is asked about its links ([`crate::link`]) and routes ([`crate::route`]).
///
/// They stay in the namespace in which the opening thread was, wherever that thread goes, and need no privilege. A question is a system call or
/// two on an open socket.
pub struct Network {
    pub(crate) route: Netlink,
    pub(crate) generic: Netlink,
    /// Hears of neighbours from the opening on.
    pub(crate) neighbours: Netlink,
    /// For what has no netlink message.
    pub(crate) control: OwnedFd,
}

impl Network {
    /// Opens those of the calling thread's namespace.
    pub fn open() -> Result<Network, Errno> {
        let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
        Ok(Network {
            route: Netlink::route(0)?,
            generic: Netlink::generic()?,
            neighbours: Netlink::route(NEIGHBOURS)?,
            control: rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?,
        })
    }
}

//! The way to a host: which interface, which next hop, and what the link calls that.

use crate::Errno;
use crate::netlink::{Netlink, Request, attribute, attributes, u32_at};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::RecvFlags;
use rustix::time::Timespec;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const GET_NEIGHBOUR: u16 = 30;
/// The group that hears of changed neighbours.
const NEIGHBOURS: u32 = 1 << 2;
/// `struct rtmsg`, `struct ndmsg`, `struct ifaddrmsg`.
const ROUTE_FIXED: usize = 12;
const NEIGHBOUR_FIXED: usize = 12;
const ADDRESS_FIXED: usize = 8;
const INET: u8 = 2;
/// The kind of a route to an address of this host.
const LOCAL: u8 = 2;
/// States in which a neighbour's link address can be used: reachable, stale, delay, probe, without ARP, permanent.
const VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// How the kernel would send to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The interface.
    pub interface: u32,
    /// The address of ours that the packets would have.
    pub source: Ipv4Addr,
    /// The router, unless the host is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The address is one of this host.
    pub local: bool,
}

/// Asks for the way to an address, over an interface if one is given.
///
/// [`Errno::NETUNREACH`] or [`Errno::HOSTUNREACH`] if there is none.
pub fn way_to(to: Ipv4Addr, interface: Option<u32>) -> Result<Way, Errno> {
    let mut fixed = [0; ROUTE_FIXED];
    (fixed[0], fixed[1]) = (INET, 32);
    let mut request = Request::new(&fixed).with(1, &to.octets());
    if let Some(interface) = interface {
        request = request.with(4, &interface.to_ne_bytes());
    }
    let answer = Netlink::route(0)?.ask(GET_ROUTE, request)?;
    let parse = || {
        let rest = answer.get(ROUTE_FIXED..)?;
        Some(Way {
            interface: u32_at(attribute(rest, 4)?, 0)?,
            source: address(attribute(rest, 7)?)?,
            gateway: attribute(rest, 5).and_then(address),
            local: *answer.get(7)? == LOCAL,
        })
    };
    parse().ok_or(Errno::NETUNREACH)
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.try_into().ok()?;
    Some(octets.into())
}

/// The IPv4 addresses of an interface.
pub fn addresses_of(interface: u32) -> Result<Vec<Ipv4Addr>, Errno> {
    let all = all_addresses()?.into_iter();
    let of = all.filter(|(number, _)| *number == interface);
    Ok(of.map(|(_, address)| address).collect())
}

/// The number of the interface that has this address, if one has.
pub fn interface_with(own: Ipv4Addr) -> Result<Option<u32>, Errno> {
    let all = all_addresses()?;
    let found = all.iter().find(|(_, address)| *address == own);
    Ok(found.map(|(number, _)| *number))
}

/// Every IPv4 address of this host, behind the number of its interface.
fn all_addresses() -> Result<Vec<(u32, Ipv4Addr)>, Errno> {
    let mut fixed = [0; ADDRESS_FIXED];
    fixed[0] = INET;
    let answers = Netlink::route(0)?.ask_all(GET_ADDRESS, Request::new(&fixed))?;
    let all = answers.iter().filter_map(|answer| {
        let rest = answer.get(ADDRESS_FIXED..)?;
        // The local end; of a link between two hosts the other attribute would be the remote one.
        let own = attribute(rest, 2).or(attribute(rest, 1))?;
        Some((u32_at(answer, 4)?, address(own)?))
    });
    Ok(all.collect())
}

/// The link address of a neighbour, if the kernel knows one.
pub fn neighbour(interface: u32, of: Ipv4Addr) -> Result<Option<[u8; 6]>, Errno> {
    look_up(&mut Netlink::route(0)?, interface, of)
}

fn look_up(netlink: &mut Netlink, interface: u32, of: Ipv4Addr) -> Result<Option<[u8; 6]>, Errno> {
    let mut fixed = [0; NEIGHBOUR_FIXED];
    fixed[0] = INET;
    fixed[4..8].copy_from_slice(&interface.to_ne_bytes());
    let request = Request::new(&fixed).with(1, &of.octets());
    match netlink.ask(GET_NEIGHBOUR, request) {
        Ok(answer) => Ok(parse_neighbour(&answer, of)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn parse_neighbour(answer: &[u8], of: Ipv4Addr) -> Option<[u8; 6]> {
    let state = u16::from_ne_bytes(answer.get(8..10)?.try_into().ok()?);
    let mut link = None;
    for (kind, value) in attributes(answer.get(NEIGHBOUR_FIXED..)?) {
        match kind {
            1 if address(value) != Some(of) => return None,
            2 => link = value.try_into().ok(),
            _ => {}
        }
    }
    link.filter(|_| state & VALID != 0)
}

/// Hears of changes to neighbours from its opening on.
pub struct NeighbourWatch {
    changes: Netlink,
    questions: Netlink,
}

impl NeighbourWatch {
    /// Starts to listen.
    pub fn new() -> Result<NeighbourWatch, Errno> {
        Ok(NeighbourWatch {
            changes: Netlink::route(NEIGHBOURS)?,
            questions: Netlink::route(0)?,
        })
    }

    /// Waits until the kernel knows a neighbour's link address, `bound` at most.
    pub fn wait_for(
        &mut self,
        interface: u32,
        of: Ipv4Addr,
        bound: Duration,
    ) -> Result<Option<[u8; 6]>, Errno> {
        let end = Instant::now() + bound;
        let mut buffer = [0; 4096];
        loop {
            // Changes are queued from before this question on: none is missed between it and the wait.
            if let Some(link) = look_up(&mut self.questions, interface, of)? {
                return Ok(Some(link));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            let mut watched = [PollFd::from_borrowed_fd(self.changes.fd(), PollFlags::IN)];
            match poll(&mut watched, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            // What has changed is asked for anew; this only makes the next wait wait.
            let _ = rustix::net::recv(self.changes.fd(), &mut buffer, RecvFlags::DONTWAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        let lo = crate::link::find("lo").unwrap().index;
        let way = way_to(Ipv4Addr::LOCALHOST, None).unwrap();
        assert!(way.local);
        assert_eq!((way.interface, way.gateway), (lo, None));
        assert_eq!(way.source, Ipv4Addr::LOCALHOST);
        assert!(addresses_of(lo).unwrap().contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn a_neighbour_that_nobody_has_is_none_after_the_bound() {
        let lo = crate::link::find("lo").unwrap().index;
        let nobody = Ipv4Addr::new(192, 0, 2, 77);
        assert_eq!(neighbour(lo, nobody), Ok(None));
        let mut watch = NeighbourWatch::new().unwrap();
        let waited = watch.wait_for(lo, nobody, Duration::from_millis(3));
        assert_eq!(waited, Ok(None));
    }
}

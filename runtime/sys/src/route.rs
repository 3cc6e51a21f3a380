//! The way to a host: which interface, which next hop, and what the link calls that.

use crate::Errno;
use crate::netlink::{Request, attribute, attributes, u32_at};
use crate::network::Network;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::RecvFlags;
use rustix::time::Timespec;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const GET_NEIGHBOUR: u16 = 30;
/// Changes that are forgotten at once, at most.
const MOST_CHANGES: usize = 4096;
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

impl Network {
    /// Asks for the way to an address.
    ///
    /// [`Errno::NETUNREACH`] or [`Errno::HOSTUNREACH`] if there is none.
    pub fn way_to(&self, to: Ipv4Addr) -> Result<Way, Errno> {
        let mut fixed = [0; ROUTE_FIXED];
        (fixed[0], fixed[1]) = (INET, 32);
        let request = Request::new(&fixed).with(1, &to.octets());
        let answer = self.route.ask(GET_ROUTE, request)?;
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

    /// The IPv4 addresses of an interface.
    pub fn addresses_of(&self, interface: u32) -> Result<Vec<Ipv4Addr>, Errno> {
        let all = self.all_addresses()?.into_iter();
        let of = all.filter_map(|(number, address)| (number == interface).then_some(address));
        Ok(of.collect())
    }

    /// The number of the interface that has this address, if one has.
    pub fn interface_with(&self, own: Ipv4Addr) -> Result<Option<u32>, Errno> {
        let all = self.all_addresses()?;
        let found = all.iter().find(|(_, address)| *address == own);
        Ok(found.map(|(number, _)| *number))
    }

    /// Every IPv4 address of this host, behind the number of its interface.
    fn all_addresses(&self) -> Result<Vec<(u32, Ipv4Addr)>, Errno> {
        let mut fixed = [0; ADDRESS_FIXED];
        fixed[0] = INET;
        let answers = self.route.ask_all(GET_ADDRESS, Request::new(&fixed))?;
        let all = answers.iter().filter_map(|answer| {
            let rest = answer.get(ADDRESS_FIXED..)?;
            // The local end; of a link between two hosts the other attribute would be the remote one.
            let own = attribute(rest, 2).or(attribute(rest, 1))?;
            Some((u32_at(answer, 4)?, address(own)?))
        });
        Ok(all.collect())
    }

    /// The link address of a neighbour, if the kernel knows one.
    pub fn neighbour(&self, interface: u32, of: Ipv4Addr) -> Result<Option<[u8; 6]>, Errno> {
        let mut fixed = [0; NEIGHBOUR_FIXED];
        fixed[0] = INET;
        fixed[4..8].copy_from_slice(&interface.to_ne_bytes());
        let request = Request::new(&fixed).with(1, &of.octets());
        match self.route.ask(GET_NEIGHBOUR, request) {
            Ok(answer) => Ok(parse_neighbour(&answer, of)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Waits until the kernel knows a neighbour's link address, `bound` at most.
    pub fn wait_for_neighbour(
        &self,
        interface: u32,
        of: Ipv4Addr,
        bound: Duration,
    ) -> Result<Option<[u8; 6]>, Errno> {
        let end = Instant::now() + bound;
        loop {
            // Changes are queued since the opening: none is missed between this question and the wait.
            self.forget_changes();
            if let Some(link) = self.neighbour(interface, of)? {
                return Ok(Some(link));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            let mut watched = [PollFd::from_borrowed_fd(
                self.neighbours.fd(),
                PollFlags::IN,
            )];
            match poll(&mut watched, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What has changed is asked for anew; what was said of it only makes the next wait wait.
    fn forget_changes(&self) {
        let mut buffer = [0; 4096];
        for _ in 0..MOST_CHANGES {
            let heard = rustix::net::recv(self.neighbours.fd(), &mut buffer, RecvFlags::DONTWAIT);
            // Too many for the socket's buffer is an error too, and no end.
            if heard == Err(Errno::AGAIN) {
                return;
            }
        }
    }
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.try_into().ok()?;
    Some(octets.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        let network = Network::open().unwrap();
        let lo = network.link("lo").unwrap().index;
        let way = network.way_to(Ipv4Addr::LOCALHOST).unwrap();
        assert!(way.local);
        assert_eq!((way.interface, way.gateway), (lo, None));
        assert_eq!(way.source, Ipv4Addr::LOCALHOST);
        let own = network.addresses_of(lo).unwrap();
        assert!(own.contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn a_neighbour_that_nobody_has_is_none_after_the_bound() {
        let network = Network::open().unwrap();
        let lo = network.link("lo").unwrap().index;
        let nobody = Ipv4Addr::new(192, 0, 2, 77);
        assert_eq!(network.neighbour(lo, nobody), Ok(None));
        let waited = network.wait_for_neighbour(lo, nobody, Duration::from_millis(3));
        assert_eq!(waited, Ok(None));
    }
}

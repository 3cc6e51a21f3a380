//! Network interfaces: what they are, and what stands in the way of AF_XDP on them.

use crate::Errno;
use crate::netlink::{GENERIC_FIXED, Request, attribute, attributes, generic, text, u32_at};
use crate::network::Network;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const GET_LINK: u16 = 18;
/// `struct ifinfomsg`.
const LINK_FIXED: usize = 16;
const UP: u32 = 1;
const LOOPBACK: u32 = 8;

const ETHTOOL_GET_FEATURES: u8 = 11;
const ETHTOOL_GET_CHANNELS: u8 = 17;
const NETDEV_GET: u8 = 1;
const XDP_BASIC: u64 = 1;
const XDP_REDIRECT: u64 = 2;
const XDP_ZERO_COPY: u64 = 8;

/// An XDP program that is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The kernel's number of it: `bpftool prog show id N`.
    pub id: u32,
    /// It runs in the driver, not behind it.
    pub native: bool,
}

/// What an interface's driver says that it can do for XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs itself.
    pub native: bool,
    /// Those may redirect packets, as to a socket.
    pub redirect: bool,
    /// It receives into, and sends from, memory of a socket's.
    pub zero_copy: bool,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The longest IP packet in bytes.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
    /// It leads to this host.
    pub loopback: bool,
    /// Its Ethernet address.
    pub address: [u8; 6],
    /// What kind of virtual interface it is, as `veth`; none for a NIC.
    pub kind: Option<String>,
    /// Queues that were made for it; not all need be in use.
    pub receive_queues: u32,
    /// The XDP program that is attached to it.
    pub program: Option<AttachedProgram>,
}

impl Network {
    /// Finds an interface by its name. [`Errno::NODEV`] if there is none.
    pub fn link(&self, name: &str) -> Result<Link, Errno> {
        // IFNAMSIZ, with the zero.
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return Err(Errno::NODEV);
        }
        let mut zeroed = name.as_bytes().to_vec();
        zeroed.push(0);
        self.ask_link(Request::new(&[0; LINK_FIXED]).with(3, &zeroed))
    }

    /// Finds an interface by its number. [`Errno::NODEV`] if there is none any more.
    pub fn link_by_index(&self, index: u32) -> Result<Link, Errno> {
        let mut fixed = [0; LINK_FIXED];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        self.ask_link(Request::new(&fixed))
    }

    fn ask_link(&self, request: Request) -> Result<Link, Errno> {
        let answer = self.route.ask(GET_LINK, request)?;
        parse(&answer).ok_or(Errno::IO)
    }

    /// The name of an interface's driver; of the loopback interface, which has none, an error.
    pub fn driver(&self, name: &str) -> Result<String, Errno> {
        driver(self.control.as_fd(), name)
    }

    /// Receive queues that are in use, as the driver says; [`Errno::OPNOTSUPP`] if it says nothing.
    pub fn queues(&self, index: u32) -> Result<u32, Errno> {
        let answer = self.ethtool(index, ETHTOOL_GET_CHANNELS)?;
        let count = |kind| attribute(&answer, kind).and_then(|value| u32_at(value, 0));
        // Those for receiving alone, and those for both.
        Ok(count(6).unwrap_or(0) + count(9).unwrap_or(0))
    }

    /// The names of the offloads that are on, as `ethtool -k` knows them.
    pub fn offloads(&self, index: u32) -> Result<Vec<String>, Errno> {
        let answer = self.ethtool(index, ETHTOOL_GET_FEATURES)?;
        let active = attribute(&answer, 4).unwrap_or(&[]);
        let bits = attribute(active, 3).unwrap_or(&[]);
        let names = attributes(bits).filter_map(|(_, bit)| attribute(bit, 2).map(text));
        Ok(names.collect())
    }

    fn ethtool(&self, index: u32, command: u8) -> Result<Vec<u8>, Errno> {
        let family = self.generic.family("ethtool")?;
        let request = Request::new(&generic(command));
        let request = request.with_nested(1, 1, &index.to_ne_bytes());
        let answer = self.generic.ask(family, request)?;
        Ok(answer.get(GENERIC_FIXED..).unwrap_or(&[]).to_vec())
    }

    /// What an interface's driver can do for XDP. [`Errno::NOENT`] or [`Errno::OPNOTSUPP`] where the kernel does not say, before Linux 6.3.
    pub fn xdp_features(&self, index: u32) -> Result<XdpFeatures, Errno> {
        let family = self.generic.family("netdev")?;
        let request = Request::new(&generic(NETDEV_GET)).with(1, &index.to_ne_bytes());
        let answer = self.generic.ask(family, request)?;
        let features = answer.get(GENERIC_FIXED..);
        let features = features.and_then(|rest| attribute(rest, 3)?.try_into().ok());
        let features = features.map_or(0, u64::from_ne_bytes);
        Ok(XdpFeatures {
            native: features & XDP_BASIC != 0,
            redirect: features & XDP_REDIRECT != 0,
            zero_copy: features & XDP_ZERO_COPY != 0,
        })
    }

    /// Whether an interface's driver can receive into, and send from, memory of a socket's.
    pub fn has_zero_copy(&self, index: u32) -> Result<bool, Errno> {
        Ok(self.xdp_features(index)?.zero_copy)
    }
}

fn parse(answer: &[u8]) -> Option<Link> {
    let flags = u32_at(answer, 8)?;
    let mut link = Link {
        index: u32_at(answer, 4)?,
        up: flags & UP != 0,
        loopback: flags & LOOPBACK != 0,
        receive_queues: 1,
        ..Link::default()
    };
    for (kind, value) in attributes(answer.get(LINK_FIXED..)?) {
        match kind {
            1 => link.address = value.try_into().unwrap_or_default(),
            3 => link.name = text(value),
            4 => link.mtu = u32_at(value, 0)?,
            18 => link.kind = attribute(value, 1).map(text),
            32 => link.receive_queues = u32_at(value, 0)?,
            43 => link.program = program(value),
            _ => {}
        }
    }
    Some(link)
}

fn program(xdp: &[u8]) -> Option<AttachedProgram> {
    let id = |kind| attribute(xdp, kind).and_then(|value| u32_at(value, 0));
    let native = id(5).or(id(7));
    let id = native.or(id(6)).or(id(4)).filter(|&id| id != 0)?;
    Some(AttachedProgram {
        id,
        native: native.is_some(),
    })
}

/// Asks through any socket of the namespace.
fn driver(socket: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    const GET_DRIVER_INFO: u32 = 3;
    // struct ethtool_drvinfo has 196 bytes: the command, then 32 bytes of the driver's name, then more.
    let mut info = [0u32; 49];
    info[0] = GET_DRIVER_INFO;
    let mut bytes = [0u8; libc::IFNAMSIZ];
    if name.len() >= bytes.len() {
        return Err(Errno::NODEV);
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let mut request = libc::ifreq {
        ifr_name: bytes.map(|b| b as libc::c_char),
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: info.as_mut_ptr().cast(),
        },
    };
    // SAFETY: bounds: the kernel reads and writes the ifreq, and 196 bytes at `ifru_data`, as many as `info` has; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done != 0 {
        return Err(crate::last_errno());
    }
    let name: Vec<u8> = info[1..9].iter().flat_map(|w| w.to_ne_bytes()).collect();
    Ok(text(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_by_name_and_number() {
        let network = Network::open().unwrap();
        let link = network.link("lo").unwrap();
        assert!(link.loopback);
        assert_eq!((link.address, link.mtu), ([0; 6], 65536));
        assert_eq!(network.link_by_index(link.index).unwrap(), link);
        assert_eq!(network.queues(link.index), Err(Errno::OPNOTSUPP));
        assert!(network.driver("lo").is_err());
        assert_eq!(network.has_zero_copy(link.index), Ok(false));
        assert!(!network.xdp_features(link.index).unwrap().native);
    }

    #[test]
    fn offloads_have_the_names_that_ethtool_shows() {
        let network = Network::open().unwrap();
        let index = network.link("lo").unwrap().index;
        let offloads = network.offloads(index).unwrap();
        let has = |name: &str| offloads.iter().any(|found| found == name);
        assert!(
            has("tx-checksum-ip-generic") && has("rx-gro"),
            "{offloads:?}"
        );
        assert!(!has("rx-gro-hw"));
    }

    #[test]
    fn there_is_no_such_interface() {
        let network = Network::open().unwrap();
        for name in ["", "no-such", "much-too-long-a-name", "l\0"] {
            assert_eq!(network.link(name).err(), Some(Errno::NODEV), "{name:?}");
        }
        assert_eq!(network.link_by_index(0x7fff_0000).err(), Some(Errno::NODEV));
    }
}

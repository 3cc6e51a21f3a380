//! What an interface offers, before anything is opened: for whoever wants to know whether a device can be, and how.

use crate::address::Options;
use crate::fix;
use crate::mode::attempts;
use crate::socket;
use std::net::Ipv4Addr;
use tightbeam_segment::DeviceError;
use tightbeam_sys::link::{Link, XdpFeatures};
use tightbeam_sys::{Errno, Network, xdp};

/// Offloads that merge packets, or leave checksums to be done, by the names that `ethtool -k` shows. Packets on an AF_XDP socket are as they
/// are on the wire: what was merged is not what was sent, or goes past the program.
const IN_THE_WAY: [&str; 4] = [
    "rx-gro-hw",
    "rx-lro",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
];

/// An interface, as the kernel and its driver describe it. Asking needs no privilege and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// The interface, and the program that is attached to it.
    pub link: Link,
    /// The name of its driver; `loopback`, or `unknown` if it does not say.
    pub driver: String,
    /// Receive queues in use.
    pub queues: u32,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// What its driver can do; `None` if the kernel does not say.
    pub features: Option<XdpFeatures>,
    /// The offloads that are on and in the way; `None` if the driver does not say.
    pub in_the_way: Option<Vec<String>>,
}

impl Interface {
    /// Asks about an interface of the calling thread's network namespace. The error says what to do if there is none of that name.
    pub fn find(name: &str) -> Result<Interface, DeviceError> {
        let missing = |errno| fix::no_link(name, errno);
        let network = Network::open().map_err(missing)?;
        let link = network.link(name).map_err(missing)?;
        Ok(Interface {
            driver: driver(&network, &link),
            queues: queues(&network, &link),
            addresses: network.addresses_of(link.index).unwrap_or_default(),
            features: network.xdp_features(link.index).ok(),
            in_the_way: in_the_way(&network, link.index).ok(),
            link,
        })
    }

    /// What is tried when a device is opened without options, best first: each a mode, `native` or `generic`, and `copy` or `zerocopy`.
    pub fn ways(&self) -> Vec<(&'static str, &'static str)> {
        let zero_copy = self.features.is_some_and(|can| can.zero_copy);
        let tried = attempts(&self.link, zero_copy, &Options::default());
        let mut ways: Vec<_> = tried.iter().map(|way| (way.mode(), way.copy())).collect();
        ways.dedup();
        ways
    }

    /// The longest IP packet in bytes that its driver's native programs take, if that is known.
    pub fn native_ceiling(&self) -> Option<u32> {
        fix::ceiling(&self.driver)
    }

    /// The longest IP packet in bytes that fits into a frame, whatever the driver and the MTU.
    pub fn frame_ceiling() -> u32 {
        let [_, large] = xdp::FRAME_SIZES;
        socket::room(large, crate::mode::HEADROOM)
    }

    /// The bytes of each frame of a device, for IP packets of `mtu` bytes.
    pub fn frame_bytes(mtu: u32) -> u32 {
        socket::frame_bytes(mtu)
    }

    /// The command that turns off the offloads that are in the way, if there are any.
    pub fn offloads_off(&self) -> Option<String> {
        let names = self.in_the_way.as_deref().unwrap_or_default();
        (!names.is_empty()).then(|| turn_off(&self.link.name, names))
    }
}

/// The name of an interface's driver.
pub(crate) fn driver(network: &Network, link: &Link) -> String {
    let driver = match link.loopback {
        true => Ok("loopback".into()),
        false => network.driver(&link.name),
    };
    driver.unwrap_or_else(|_| "unknown".into())
}

/// Receive queues in use. A driver that says nothing has as many as were made.
pub(crate) fn queues(network: &Network, link: &Link) -> u32 {
    let said = network.queues(link.index).unwrap_or(0);
    if said == 0 { link.receive_queues } else { said }
}

/// The offloads that are on and in the way.
pub(crate) fn in_the_way(network: &Network, index: u32) -> Result<Vec<String>, Errno> {
    let mut active = network.offloads(index)?;
    active.retain(|name| IN_THE_WAY.contains(&name.as_str()));
    Ok(active)
}

/// The command that turns offloads off.
pub(crate) fn turn_off(name: &str, offloads: &[String]) -> String {
    let off: Vec<String> = offloads.iter().map(|name| format!("{name} off")).collect();
    format!("ethtool -K {name} {}", off.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lo_is_used_generic_with_a_copy() {
        let lo = Interface::find("lo").unwrap();
        assert_eq!(lo.driver, "loopback");
        assert_eq!((lo.queues, lo.native_ceiling()), (1, None));
        assert_eq!(lo.ways(), [("generic", "copy")]);
        assert_eq!(lo.offloads_off(), None);
    }

    #[test]
    fn what_is_in_the_way_is_turned_off_by_one_command() {
        let interface = Interface {
            link: Link {
                name: "eth7".into(),
                ..Link::default()
            },
            driver: "ena".into(),
            queues: 4,
            addresses: Vec::new(),
            features: Some(XdpFeatures {
                native: true,
                redirect: true,
                zero_copy: true,
            }),
            in_the_way: Some(vec!["rx-gro-hw".into(), "rx-lro".into()]),
        };
        assert_eq!(
            interface.offloads_off().as_deref(),
            Some("ethtool -K eth7 rx-gro-hw off rx-lro off")
        );
        assert_eq!(
            interface.ways(),
            [
                ("native", "zerocopy"),
                ("native", "copy"),
                ("generic", "copy")
            ]
        );
        let missing = Interface::find("no-such").unwrap_err().to_string();
        assert!(missing.contains("`ip link`"), "{missing}");
    }
}

//! Devices: what carries packets between hosts, the far side of the rings.
//!
//! U-Net's rings, as one trait (von Eicken et al., 1995). Each verb serves one ring and moves at most a batch; none blocks, and none
//! makes more than a constant number of system calls. A device carries the payload of UDP packets over IPv4 and knows nothing of what
//! is in it; who speaks the protocol knows no device.
//!
//! | ring | verb | AF_XDP | UDP socket |
//! |---|---|---|---|
//! | send | [`transmit`](Device::transmit), then [`kick`](Device::kick) | TX, `sendto` | a batch, `sendmmsg` |
//! | receive | [`receive`](Device::receive) | RX | `recvmmsg` |
//! | free | [`provide`](Device::provide) | FILL | nothing to do |
//! | completion | [`reclaim`](Device::reclaim) | COMPLETION | nothing to do |
//!
//! The memory of a process that is on the other side of a *local* channel needs no device: there the send ring is the peer's receive
//! ring.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddrV4;

/// Where a packet goes, or came from: an address, and what the link calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// Address and UDP port of the other host.
    pub to: SocketAddrV4,
    /// Ethernet address of the next hop; zeros where the kernel sees to that.
    pub link: [u8; 6],
}

/// A packet that has arrived, where the device has put it.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Who sent it, as the packet says: an allegation.
    pub from: Route,
    /// The payload of its UDP packet.
    pub bytes: &'a [u8],
}

/// Why a device does not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The send ring is full: [`kick`](Device::kick), [`reclaim`](Device::reclaim), then try again.
    #[error("the device's send ring is full")]
    Full,
    /// Longer than a packet may be.
    #[error("a packet of {len} bytes is too long for the device; the most is {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest length in bytes.
        max: usize,
    },
    /// The interface is down or gone. What was in flight is lost, and counted.
    #[error("the interface is down or gone (errno {errno})")]
    Down {
        /// The error number.
        errno: i32,
    },
    /// There is no way to that address.
    #[error("no way to {to}: {why}")]
    NoRoute {
        /// The address.
        to: SocketAddrV4,
        /// What is missing, and the command that mends it.
        why: String,
    },
    /// It cannot be opened, or a call failed. Says what is missing, and the command that mends it.
    #[error("cannot {what} (errno {errno}); {fix}")]
    System {
        /// What was attempted.
        what: String,
        /// The error number; 0 if the kernel was not asked.
        errno: i32,
        /// What to do about it.
        fix: String,
    },
}

/// What a device can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The most bytes of a packet.
    pub max_packet: usize,
    /// Packets that fit into the send ring.
    pub batch: usize,
    /// The address and port to which others send.
    pub local: SocketAddrV4,
}

/// Names of counts that are losses, beside those that begin with `lost` or `drop_`: what the kernel counts of an AF_XDP socket, and what a channel
/// does.
const LOSSES: [&str; 6] = [
    "rx_invalid_descs",
    "tx_invalid_descs",
    "channel_no_room",
    "channel_too_long",
    "channel_late_answers",
    "wrong_address",
];

/// How a device stands: what it is, and how it does it, as the kernel says, not as was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// `xdp` or `udp`.
    pub kind: &'static str,
    /// Each a name and a value: mode, driver, MTU, NAPI id, offloads in the way, ...
    pub facts: Vec<(&'static str, String)>,
    /// Each a name and a count since the device was opened: what the kernel, or the device, has dropped, by cause; packets and
    /// system calls.
    pub counts: Vec<(&'static str, u64)>,
}

impl DeviceStatus {
    /// Nothing said yet.
    pub fn new(kind: &'static str) -> DeviceStatus {
        DeviceStatus {
            kind,
            ..DeviceStatus::default()
        }
    }

    /// A fact by its name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        let found = self.facts.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What was lost or dropped, each cause with its count; only those that are not zero. One packet may be in two of them:
    /// what this side's device dropped is missing in its channel's `lost` too.
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let is_loss = |name: &str| {
            let ours = name.starts_with("lost") || name.starts_with("drop_");
            ours || LOSSES.contains(&name)
        };
        let counts = self.counts.iter().copied();
        counts.filter(move |&(name, count)| count > 0 && is_loss(name))
    }

    /// A count by its name.
    pub fn count(&self, name: &str) -> Option<u64> {
        let found = self.counts.iter().find(|(known, _)| *known == name);
        found.map(|(_, count)| *count)
    }
}

/// What carries packets: it belongs to one thread.
pub trait Device {
    /// What it can do. The same at each call, but for `max_packet`, which follows the interface.
    fn capabilities(&self) -> Capabilities;

    /// Finds the way to a host. Control, not data: may make system calls, send what is needed to find it, and wait for that up to a
    /// few milliseconds.
    fn route(&mut self, to: SocketAddrV4) -> Result<Route, DeviceError>;

    /// Send ring: puts a packet of at most `len` bytes to a host into it, not yet on its way. `write` is given `len` bytes of the
    /// frame, and says how many of them it has used, from the first on. [`DeviceError::Full`] without calling it if there is no room.
    fn transmit(
        &mut self,
        to: &Route,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<(), DeviceError>;

    /// Sends what is in the send ring on its way: one system call, or a constant number. Whether something is left that the kernel would
    /// not take now: kick again, soon. An error is of the device: each packet that is lost by it is counted in the status.
    fn kick(&mut self) -> Result<bool, DeviceError>;

    /// Receive ring: hands over at most `most` packets that have arrived; how many that were. A frame is the device's again when
    /// `take` returns.
    fn receive(
        &mut self,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<usize, DeviceError>;

    /// Free ring: gives frames that hold nothing any more back to be received into. [`receive`](Self::receive) does it by itself.
    fn provide(&mut self);

    /// Completion ring: takes back frames whose packets have left; how many. [`transmit`](Self::transmit) does it by itself when it
    /// runs out.
    fn reclaim(&mut self) -> usize;

    /// How it stands. Makes system calls.
    fn status(&self) -> DeviceStatus;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn losses_are_those_counts_that_name_a_cause_and_are_not_zero() {
        let mut status = DeviceStatus::new("xdp");
        status.counts = vec![
            ("sent", 9),
            ("lost_queue_full", 2),
            ("lost", 0),
            ("lost_rx_dropped", 3),
            ("rx_fill_ring_empty_descs", 3),
            ("drop_crc", 1),
            ("tx_ring_empty_descs", 7),
        ];
        let losses: Vec<_> = status.losses().collect();
        assert_eq!(
            losses,
            [
                ("lost_queue_full", 2),
                ("lost_rx_dropped", 3),
                ("drop_crc", 1)
            ]
        );
    }
}

//! What the tests share: devices at both ends of a link, and waits that have a bound.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod netns;

use netns::{END, Namespace, Pair};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};
use tightbeam_segment::{Device, DeviceError, Route};
use tightbeam_xdp::{XdpAddress, XdpDevice};

/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const LEFT: &str = "10.77.0.1";
pub(crate) const RIGHT: &str = "10.77.0.2";

/// An address text at an end of a pair.
pub(crate) fn at(host: &str, port: u16, options: &str) -> XdpAddress {
    let mark = if options.is_empty() { "" } else { "?" };
    let text = format!("xdp:{END}/{host}:{port}{mark}{options}");
    text.parse().expect("an address of a test")
}

pub(crate) fn listen(
    namespace: &Namespace,
    address: &XdpAddress,
) -> Result<XdpDevice, DeviceError> {
    namespace.run(|| XdpDevice::listen(address))
}

pub(crate) fn connect(
    namespace: &Namespace,
    address: &XdpAddress,
) -> Result<XdpDevice, DeviceError> {
    namespace.run(|| XdpDevice::connect(address))
}

/// A listener at the right end, port 7000, and a client of it at the left one, with the way between.
pub(crate) fn both(pair: &Pair, options: &str) -> (XdpDevice, XdpDevice, Route) {
    let address = at(RIGHT, 7000, options);
    let server = listen(&pair.right, &address).expect("a listener");
    let mut client = connect(&pair.left, &address).expect("a client");
    let route = route(&pair.left, &mut client, address.at);
    (server, client, route)
}

/// The way to a host, asked for in the device's namespace.
pub(crate) fn route(namespace: &Namespace, device: &mut XdpDevice, to: SocketAddrV4) -> Route {
    namespace.run(|| device.route(to)).expect("a way")
}

/// Sends one packet.
pub(crate) fn send(device: &mut XdpDevice, to: &Route, bytes: &[u8]) {
    let mut write = |frame: &mut [u8]| {
        frame[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    };
    let sent = device.transmit(to, bytes.len(), &mut write);
    sent.expect("room in the send ring");
    device.kick().expect("the interface is up");
}

/// The packets that arrive until there are `count`; each with who sent it.
pub(crate) fn receive(device: &mut XdpDevice, count: usize) -> Vec<(Route, Vec<u8>)> {
    let end = Instant::now() + PATIENCE;
    let mut packets = Vec::new();
    while packets.len() < count {
        assert!(
            Instant::now() < end,
            "{} of {count} packets came: {:?}",
            packets.len(),
            device.status()
        );
        let mut take = |packet: tightbeam_segment::Packet<'_>| {
            packets.push((packet.from, packet.bytes.to_vec()));
        };
        device
            .receive(64, &mut take)
            .expect("a device that receives");
    }
    packets
}

/// The modes in which a link of ours can be used.
pub(crate) const MODES: [&str; 2] = ["mode=generic&strict", "mode=native&strict"];

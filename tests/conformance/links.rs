//! UDP devices on links that change under them.

use crate::netns::{Cable, ip};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};
use tightbeam_segment::{Device, DeviceError, Route};
use tightbeam_udp::{Options, UdpDevice};

/// A listener at one end of a cable and a device that talks to it at the other.
fn pair() -> Result<(Cable, UdpDevice, UdpDevice, Route), String> {
    let cable = Cable::lay()?;
    let at = SocketAddrV4::new(Cable::ADDRESSES[1], 7000);
    let open = |end, open: fn(SocketAddrV4, Options) -> Result<UdpDevice, DeviceError>| {
        cable.at(end, || open(at, Options::default())).unwrap()
    };
    let far = open(1, UdpDevice::listen);
    let mut near = open(0, UdpDevice::connect);
    let there = near.route(at).unwrap();
    Ok((cable, near, far, there))
}

fn put(device: &mut UdpDevice, to: &Route, len: usize) -> Result<(), DeviceError> {
    device.transmit(to, len, &mut |frame| {
        frame.fill(1);
        len
    })
}

/// The lengths of so many packets, or of those that have come in ten seconds.
fn lengths(device: &mut UdpDevice, count: usize) -> Vec<usize> {
    let (mut came, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    while came.len() < count && Instant::now() < deadline {
        let looked = device.receive(8, &mut |packet| came.push(packet.bytes.len()));
        looked.unwrap();
    }
    came
}

#[test]
fn what_has_become_too_long_is_lost_alone_and_the_limit_follows() {
    let (cable, mut near, mut far, there) = match pair() {
        Ok(pair) => pair,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    assert_eq!(near.capabilities().max_packet, 1500 - 28);
    assert_eq!(far.capabilities().max_packet, 1500 - 28);
    for len in [100, 1400, 200] {
        put(&mut near, &there, len).unwrap();
    }
    ip(&format!("-n {} link set eth mtu 1000", cable.name(0))).unwrap();
    near.kick().unwrap();
    let status = near.status();
    assert_eq!(status.count("sent"), Some(3));
    assert_eq!(status.count("lost_too_long"), Some(1));
    assert_eq!(near.capabilities().max_packet, 1000 - 28);
    assert_eq!(lengths(&mut far, 2), [100, 200]);
    let refused = put(&mut near, &there, 1400);
    let expected = DeviceError::TooLong {
        len: 1400,
        max: 1000 - 28,
    };
    assert_eq!(refused, Err(expected));
    // A listener has to find the way again to hear of it.
    let back = SocketAddrV4::new(Cable::ADDRESSES[0], near.capabilities().local.port());
    let back = Route {
        to: back,
        link: [0; 6],
    };
    ip(&format!("-n {} link set eth mtu 900", cable.name(1))).unwrap();
    put(&mut far, &back, 1400).unwrap();
    cable.at(1, || far.kick()).unwrap();
    assert_eq!(far.status().count("lost_too_long"), Some(1));
    assert_eq!(far.capabilities().max_packet, 900 - 28);
}

#[test]
fn an_interface_that_goes_down_is_said_and_counted_and_comes_back() {
    let (cable, mut near, mut far, there) = match pair() {
        Ok(pair) => pair,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let eth = |what| ip(&format!("-n {} link set eth {what}", cable.name(0))).unwrap();
    eth("down");
    for _ in 0..3 {
        put(&mut near, &there, 10).unwrap();
    }
    let down = near.kick();
    assert!(matches!(down, Err(DeviceError::Down { .. })), "{down:?}");
    let status = near.status();
    let lost =
        status.count("lost_no_route").unwrap() + status.count("lost_interface_down").unwrap();
    assert_eq!((status.count("sent"), lost), (Some(3), 3), "{status:?}");
    eth("up");
    put(&mut near, &there, 11).unwrap();
    near.kick().unwrap();
    assert_eq!(lengths(&mut far, 1), [11]);
}

#[test]
fn over_a_virtual_cable_the_checksum_is_left_out() {
    let (_cable, near, far, _) = match pair() {
        Ok(pair) => pair,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    for device in [&near, &far] {
        assert_eq!(device.status().fact("checksum"), Some("none"));
        assert_eq!(device.status().fact("interface"), Some("eth"));
    }
}

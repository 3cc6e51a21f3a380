//! Device to device over `veth`, and device to kernel socket, both ways; and a device to itself over `lo`.

mod support;

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Instant;
use support::netns::{self, Namespace, Pair};
use support::{LEFT, MODES, PATIENCE, RIGHT, at, both, listen, receive, route, send};
use tightbeam_segment::{Device, DeviceError};
use tightbeam_xdp::XdpDevice;

#[test]
fn packets_go_both_ways() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let (mut server, mut client, to) = both(&pair, mode);
        for n in 0..3000u32 {
            // Of all lengths, from the shortest to the longest.
            let len = (n as usize * 7) % client.capabilities().max_packet + 1;
            let bytes = vec![n as u8; len];
            send(&mut client, &to, &bytes);
            let (from, got) = receive(&mut server, 1).remove(0);
            assert_eq!(from.to, client.capabilities().local);
            assert_eq!(got, bytes);
            // The way back is where it came from: nothing is asked for.
            send(&mut server, &from, &got);
            let (from, got) = receive(&mut client, 1).remove(0);
            assert_eq!((from.to, got), (to.to, bytes));
        }
        for device in [&server, &client] {
            let status = device.status();
            assert_eq!(status.count("sent"), Some(3000), "{mode}: {status:?}");
            for lost in ["lost_rx_dropped", "lost_queue_full", "lost_malformed"] {
                assert_eq!(status.count(lost), Some(0), "{mode}: {status:?}");
            }
        }
    }
}

#[test]
fn a_burst_goes_in_few_calls_and_loses_nothing_that_is_not_counted() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let (mut server, mut client, to) = both(&pair, mode);
        let batch = client.capabilities().batch;
        let before = client.status().count("send_calls").unwrap();
        for n in 0..batch {
            let mut write = |frame: &mut [u8]| {
                frame.copy_from_slice(&(n as u32).to_be_bytes());
                4
            };
            client.transmit(&to, 4, &mut write).unwrap();
        }
        let full = client.transmit(&to, 4, &mut |_| unreachable!("there is no room"));
        assert_eq!(full, Err(DeviceError::Full));
        client.kick().unwrap();
        let calls = client.status().count("send_calls").unwrap() - before;
        // The budget is raised where the kernel can, from 32 a call.
        let budget: usize = client
            .status()
            .fact("transmit_budget")
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            calls as usize <= batch / budget + 8,
            "{mode}: {calls} calls"
        );
        let status = client.status();
        assert_eq!(
            status.count("sent"),
            Some(batch as u64),
            "{mode}: {status:?}"
        );
        // veth's own ring, of 256, is the only place where some may be lost, and only without room for a sleeping receiver.
        let lost = status.count("lost_queue_full").unwrap() as usize;
        let wanted = match mode.contains("generic") {
            true => batch - lost,
            false => batch.min(256) - lost,
        };
        let got = receive(&mut server, wanted);
        let numbers = got
            .iter()
            .map(|(_, bytes)| u32::from_be_bytes(bytes[..].try_into().unwrap()));
        let numbers: Vec<u32> = numbers.collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{mode}: {numbers:?}");
        // All frames come back: as many can be sent again.
        let end = Instant::now() + PATIENCE;
        for n in 0..batch {
            while client.transmit(&to, 4, &mut |_| 4) == Err(DeviceError::Full) {
                client.reclaim();
                assert!(Instant::now() < end, "{mode}: {n} of {batch}");
            }
        }
    }
}

#[test]
fn over_lo_a_device_hears_itself() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let host = Namespace::new();
    let address = "xdp:lo/127.0.0.1:7000".parse().unwrap();
    let mut device = listen(&host, &address).unwrap();
    let to = route(&host, &mut device, address.at);
    for n in 0..100u8 {
        send(&mut device, &to, &[n; 56]);
        let (from, got) = receive(&mut device, 1).remove(0);
        assert_eq!((from, got), (to, vec![n; 56]));
    }
    let status = device.status();
    assert_eq!(status.fact("mode"), Some("generic"));
    assert_eq!(status.fact("copy"), Some("copy"));
    assert_eq!(status.fact("checksum"), Some("none"));
}

/// The kernel's sockets leave half a sum over `veth`, or none if they are asked for it; and take none, or a right one. All that arrives.
#[test]
fn a_kernel_socket_and_a_device_talk_whatever_the_checksum() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let mut device = listen(&pair.right, &at(RIGHT, 7000, mode)).unwrap();
        let local: SocketAddrV4 = format!("{LEFT}:7001").parse().unwrap();
        let socket = pair.left.run(|| UdpSocket::bind(local)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for no_check in [false, true] {
            tightbeam_sys::udp::set_no_checksum(std::os::fd::AsFd::as_fd(&socket), no_check)
                .unwrap();
            for len in [1usize, 2, 31, 32, 56, 1000, 1472] {
                let bytes = vec![len as u8; len];
                socket.send_to(&bytes, device.capabilities().local).unwrap();
                let (from, got) = receive(&mut device, 1).remove(0);
                assert_eq!((from.to, &got), (local, &bytes), "{mode}, {no_check}");
                send(&mut device, &from, &got);
                let mut buffer = [0; 2000];
                let (got, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..got], bytes, "{mode}");
                assert_eq!(from, device.capabilities().local.into());
            }
        }
    }
}

/// What the program passes on reaches the kernel's socket of the same host: the NIC is shared.
#[test]
fn the_kernel_keeps_its_interface() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let device = listen(&pair.right, &at(RIGHT, 7000, mode)).unwrap();
        let other = pair.right.run(|| UdpSocket::bind((RIGHT, 7002))).unwrap();
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = pair.left.run(|| UdpSocket::bind((LEFT, 0))).unwrap();
        socket.send_to(b"to the kernel", (RIGHT, 7002)).unwrap();
        let mut buffer = [0; 100];
        let (got, _) = other.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..got], b"to the kernel", "{mode}");
        let taken = pair.right.run(|| UdpSocket::bind((RIGHT, 7000)));
        assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        drop(device);
        pair.right.run(|| UdpSocket::bind((RIGHT, 7000))).unwrap();
    }
}

#[test]
fn what_is_for_another_address_is_counted() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    pair.right.ip("addr add 10.77.0.3/24 dev ve0");
    let mut device = listen(&pair.right, &at(RIGHT, 7000, "strict")).unwrap();
    let socket = pair.left.run(|| UdpSocket::bind((LEFT, 0))).unwrap();
    for _ in 0..3 {
        socket.send_to(b"no", ("10.77.0.3", 7000)).unwrap();
    }
    socket.send_to(b"yes", (RIGHT, 7000)).unwrap();
    let (_, got) = receive(&mut device, 1).remove(0);
    assert_eq!(got, b"yes");
    let status = device.status();
    assert_eq!(status.count("lost_other_address"), Some(3), "{status:?}");
}

#[test]
fn there_is_no_way_to_a_host_that_does_not_answer() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let mut device = listen(&pair.left, &at(LEFT, 7000, "")).unwrap();
    let mut why = |to: &str| {
        let to = to.parse().unwrap();
        let refused = pair.left.run(|| device.route(to)).unwrap_err();
        assert!(matches!(refused, DeviceError::NoRoute { .. }), "{refused}");
        refused.to_string()
    };
    assert!(why("10.77.0.9:7000").contains("10.77.0.9 does not answer on ve0"));
    assert!(why("192.0.2.1:7000").contains("ip route get 192.0.2.1"));
    assert!(why("10.77.0.1:7000").contains("use xdp:lo/10.77.0.1:7000"));
    let elsewhere = pair
        .left
        .run(|| XdpDevice::connect(&at("192.0.2.1", 7000, "")));
    assert!(matches!(elsewhere, Err(DeviceError::NoRoute { .. })));
}

//! Packets there and back, waiting for them, and what is left of a device.

use super::bare::{SIZES, bare, filled, in_both_modes, long, until};
use super::support::netns::END;
use super::support::{PATIENCE, RIGHT, at, both, listen, receive, send};
use super::{COUNT, PORT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::time::Instant;
use tightbeam_proto::wire::ENVELOPE;
use tightbeam_segment::Device;
use tightbeam_sys::Network;

#[test]
fn send_receive() {
    in_both_modes(|pair, mode| {
        // Frames of 2 KiB, then, because packets are longer, of 4 KiB.
        for (mtu, frame) in [(1500, "2048"), (3000, "4096")] {
            for end in [&pair.left, &pair.right] {
                end.ip(&format!("link set {END} mtu {mtu}"));
            }
            let (mut server, mut client, to) = both(pair, mode);
            let status = server.status();
            assert!(status.fact("frames").unwrap().contains(frame), "{status:?}");
            for first in (0..COUNT).step_by(64) {
                for n in first..first + 64 {
                    let mut write = |bytes: &mut [u8]| {
                        bytes.fill(n as u8);
                        bytes[..4].copy_from_slice(&n.to_be_bytes());
                        bytes.len()
                    };
                    client
                        .transmit(&to, 4 + n as usize % 1000, &mut write)
                        .unwrap();
                }
                client.kick().unwrap();
                for (n, (_, bytes)) in (first..).zip(receive(&mut server, 64)) {
                    assert_eq!(bytes[..4], n.to_be_bytes(), "{mode}");
                    assert_eq!(bytes.len(), 4 + n as usize % 1000);
                    assert!(bytes[4..].iter().all(|&byte| byte == n as u8));
                }
            }
        }
    });
}

#[test]
fn send_receive_single_pkt() {
    in_both_modes(|pair, mode| {
        let (mut server, mut client, to) = both(pair, mode);
        send(&mut client, &to, b"one");
        assert_eq!(receive(&mut server, 1)[0].1, b"one");
    });
}

#[test]
fn bidirectional() {
    in_both_modes(|pair, mode| {
        let (mut server, mut client, to) = both(pair, mode);
        send(&mut client, &to, b"who");
        let back = receive(&mut server, 1)[0].0;
        for n in 0..COUNT / 4 {
            send(&mut client, &to, &n.to_be_bytes());
            send(&mut server, &back, &(!n).to_be_bytes());
            assert_eq!(receive(&mut server, 1)[0].1, n.to_be_bytes(), "{mode}");
            assert_eq!(receive(&mut client, 1)[0].1, (!n).to_be_bytes(), "{mode}");
        }
    });
}

fn polled(socket: &impl AsFd, events: PollFlags, millis: i64) -> bool {
    let mut watched = [PollFd::new(socket, events)];
    let bound = Timespec {
        tv_sec: 0,
        tv_nsec: millis * 1_000_000,
    };
    poll(&mut watched, Some(&bound)).expect("poll") == 1
}

#[test]
fn poll_rx() {
    in_both_modes(|pair, mode| {
        let (mut server, mut client, to) = both(pair, mode);
        for n in 0..COUNT / 16 {
            send(&mut client, &to, &n.to_be_bytes());
            assert!(polled(&server, PollFlags::IN, 900), "{mode}: {n}");
            assert_eq!(receive(&mut server, 1)[0].1, n.to_be_bytes());
        }
    });
}

/// In copy mode `poll` sends what is in TX.
#[test]
fn poll_tx() {
    in_both_modes(|pair, mode| {
        let mut socket = bare(&pair.right, mode, filled(64));
        for _ in 0..4 {
            socket.queue(32, ENVELOPE + 8);
            let end = Instant::now() + PATIENCE;
            while socket.xsk.transmit_outstanding().unwrap() > 0 {
                polled(&socket.xsk, PollFlags::OUT, 10);
                assert!(Instant::now() < end, "{mode}");
            }
        }
        let mut back = Vec::new();
        until("all frames come back", || {
            socket.reclaim(&mut back);
            back.len() == 128
        });
    });
}

#[test]
fn poll_rxq_empty_and_txq_full() {
    in_both_modes(|pair, mode| {
        let mut socket = bare(&pair.right, mode, filled(64));
        assert!(
            !polled(&socket.xsk, PollFlags::IN, 3),
            "{mode}: nothing has come"
        );
        // A device whose send ring is full says so, and nothing is sent before it is told.
        socket.queue(SIZES.transmit, ENVELOPE + 8);
        assert_eq!(socket.xsk.transmit_room(1), Ok(0));
        assert_eq!(socket.xsk.transmit_outstanding(), Ok(SIZES.transmit));
    });
}

#[test]
fn xdp_prog_cleanup_and_teardown() {
    in_both_modes(|pair, mode| {
        for round in 0..long(10) as u8 {
            let (mut server, mut client, to) = both(pair, mode);
            send(&mut client, &to, &[round]);
            assert_eq!(receive(&mut server, 1)[0].1, [round], "{mode}");
            drop(server);
            let network = pair.right.run(Network::open).unwrap();
            assert_eq!(network.link(END).unwrap().program, None, "{mode}");
            drop(listen(&pair.right, &at(RIGHT, PORT, mode)).unwrap());
        }
    });
}

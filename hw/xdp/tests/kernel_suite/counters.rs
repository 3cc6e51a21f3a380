//! Where packets are put, and what the kernel counts of those that it does not put anywhere.

use super::bare::{SIZES, Wanted, bare, filled, flood, in_both_modes, until};
use super::support::{PATIENCE, both, send};
use std::os::fd::AsFd;
use std::time::Instant;
use tightbeam_proto::wire::ENVELOPE;
use tightbeam_segment::Device;
use tightbeam_sys::xdp;

#[test]
fn umem_headroom() {
    in_both_modes(|pair, mode| {
        for headroom in [0, 22, 128] {
            let mut socket = bare(
                &pair.right,
                mode,
                Wanted {
                    headroom,
                    ..filled(64)
                },
            );
            flood(pair, 1, 56);
            let mut received = None;
            let end = Instant::now() + PATIENCE;
            while received.is_none() {
                received = socket.xsk.receive(&mut socket.umem).unwrap();
                assert!(Instant::now() < end, "{mode}");
            }
            let received = received.unwrap();
            assert_eq!(received.at, 256 + headroom as usize, "{mode}");
            assert_eq!(received.len, ENVELOPE + 56);
        }
        // So the payload that a device hands over starts a cache line.
        let (mut server, mut client, to) = both(pair, mode);
        assert_eq!(server.status().fact("headroom"), Some("22"));
        send(&mut client, &to, b"aligned");
        let mut address = None;
        let end = Instant::now() + PATIENCE;
        while address.is_none() {
            server
                .receive(1, &mut |p| address = Some(p.bytes.as_ptr().addr()))
                .unwrap();
            assert!(Instant::now() < end, "{mode}");
        }
        assert_eq!(address.unwrap() % 64, 0, "{mode}");
    });
}

/// Packets that do not fit behind the headroom.
#[test]
fn stat_rx_dropped() {
    in_both_modes(|pair, mode| {
        let socket = bare(
            &pair.right,
            mode,
            Wanted {
                headroom: 1024,
                ..filled(64)
            },
        );
        flood(pair, 20, 300);
        flood(pair, 10, 1000);
        until("long packets are dropped", || {
            socket.statistics().rx_dropped >= 10
        });
        let counted = socket.statistics();
        assert_eq!(
            (counted.rx_dropped, counted.rx_ring_full),
            (10, Some(0)),
            "{mode}"
        );
    });
}

#[test]
fn stat_rx_full() {
    in_both_modes(|pair, mode| {
        let socket = bare(&pair.right, mode, filled(128));
        flood(pair, SIZES.receive + 10, 56);
        until("the ring is full", || {
            socket.statistics().rx_ring_full >= Some(10)
        });
        assert_eq!(socket.statistics().rx_ring_full, Some(10), "{mode}");
    });
}

#[test]
fn stat_fill_empty() {
    in_both_modes(|pair, mode| {
        let socket = bare(&pair.right, mode, filled(8));
        flood(pair, 18, 56);
        until("frames run out", || {
            socket.statistics().rx_fill_ring_empty_descs >= Some(10)
        });
        // Each of those packets is lost, and counted as such.
        assert_eq!(socket.statistics().rx_dropped, 10, "{mode}");
    });
}

/// What a device never queues, the kernel finds invalid: a packet without bytes. One beside its frame cannot be queued at all.
#[test]
fn stat_tx_invalid() {
    in_both_modes(|pair, mode| {
        let mut socket = bare(&pair.right, mode, filled(64));
        socket.queue(3, 0);
        socket.queue(2, ENVELOPE + 8);
        until("all are taken", || {
            // Each call ends at the first that is invalid.
            let _ = xdp::kick_transmit(socket.xsk.as_fd());
            socket.xsk.transmit_outstanding() == Ok(0)
        });
        assert_eq!(socket.statistics().tx_invalid_descs, 3, "{mode}");
        let mut frame = socket.frames.pop().unwrap();
        socket.umem.bytes_mut(&mut frame).fill(0);
        let beside =
            std::panic::AssertUnwindSafe(|| socket.xsk.queue(&mut socket.umem, frame, 2000, 49));
        assert!(std::panic::catch_unwind(beside).is_err(), "{mode}");
    });
}

/// One call sends as many as the budget says, and the kernel's index says how many that were.
#[test]
fn tx_queue_consumer() {
    in_both_modes(|pair, mode| {
        let mut socket = bare(&pair.right, mode, filled(64));
        socket.queue(100, ENVELOPE + 8);
        let mut left = Vec::new();
        for _ in 0..4 {
            let kicked = xdp::kick_transmit(socket.xsk.as_fd());
            left.push((kicked.is_ok(), socket.xsk.transmit_outstanding().unwrap()));
        }
        assert_eq!(
            left,
            [(false, 68), (false, 36), (false, 4), (true, 0)],
            "{mode}"
        );
        until("all have left", || {
            socket.reclaim_all();
            socket.frames.len() == 256 - 64
        });
        // With a larger budget all go at once.
        if xdp::set_transmit_budget(socket.xsk.as_fd(), SIZES.transmit).is_ok() {
            socket.queue(90, ENVELOPE + 8);
            assert_eq!(xdp::kick_transmit(socket.xsk.as_fd()), Ok(()), "{mode}");
            assert_eq!(socket.xsk.transmit_outstanding(), Ok(0), "{mode}");
        }
    });
}

//! The cases of the kernel's own AF_XDP suite (`tools/testing/selftests/bpf`), by their names, over our layer: [`CASES`] says which are here, which
//! are elsewhere, and which have nothing to be applied to.

mod support;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;
use support::netns::{self, END, Namespace, Pair};
use support::{MODES, PATIENCE, RIGHT, at, both, listen, receive, send};
use tightbeam_proto::wire::{ENVELOPE, Envelope, UdpSum, ethernet};
use tightbeam_segment::Device;
use tightbeam_sys::Network;
use tightbeam_sys::bpf::{self, Attach, SocketMap};
use tightbeam_sys::xdp::{self, Copying, Frame, Opening, RingSizes, Statistics, Umem, Xsk};
use tightbeam_xdp::program::{key, steering};

const COUNT: u32 = 4096;
const PORT: u16 = 7000;

/// Every case of the kernel's suite: the test that is it, or why there is none.
const CASES: [(&str, &str); 36] = [
    ("SEND_RECEIVE", "send_receive"),
    ("SEND_RECEIVE_2K_FRAME", "send_receive"),
    ("SEND_RECEIVE_SINGLE_PKT", "send_receive_single_pkt"),
    ("POLL_RX", "poll_rx"),
    ("POLL_TX", "poll_tx"),
    ("POLL_RXQ_FULL", "poll_rxq_empty_and_txq_full"),
    ("POLL_TXQ_FULL", "poll_rxq_empty_and_txq_full"),
    ("ALIGNED_INV_DESC", "stat_tx_invalid"),
    ("ALIGNED_INV_DESC_2K_FRAME_SIZE", "stat_tx_invalid"),
    ("UMEM_HEADROOM", "umem_headroom"),
    ("BIDIRECTIONAL", "bidirectional"),
    ("STAT_RX_DROPPED", "stat_rx_dropped"),
    ("STAT_TX_INVALID", "stat_tx_invalid"),
    ("STAT_RX_FULL", "stat_rx_full"),
    ("STAT_FILL_EMPTY", "stat_fill_empty"),
    ("XDP_PROG_CLEANUP", "xdp_prog_cleanup_and_teardown"),
    ("TX_QUEUE_CONSUMER", "tx_queue_consumer"),
    ("TEARDOWN", "xdp_prog_cleanup_and_teardown"),
    ("XDP_DROP_HALF", "none: it is of the suite's own program"),
    ("XDP_SHARED_UMEM", "none: a device has one socket"),
    ("XDP_METADATA_COPY", "none: our program writes no metadata"),
    (
        "XDP_METADATA_COPY_MULTI_BUFF",
        "none: our program writes no metadata",
    ),
    (
        "ALIGNED_INV_DESC_MULTI_BUFF",
        "none: a packet is in one frame",
    ),
    ("TOO_MANY_FRAGS", "none: a packet is in one frame"),
    (
        "XDP_ADJUST_TAIL_SHRINK",
        "none: our program changes no packet",
    ),
    (
        "XDP_ADJUST_TAIL_SHRINK_MULTI_BUFF",
        "none: our program changes no packet",
    ),
    (
        "XDP_ADJUST_TAIL_GROW",
        "none: our program changes no packet",
    ),
    (
        "XDP_ADJUST_TAIL_GROW_MULTI_BUFF",
        "none: our program changes no packet",
    ),
    ("SEND_RECEIVE_9K_PACKETS", "none: a packet is in one frame"),
    ("SEND_RECEIVE_UNALIGNED", "none: frames are aligned"),
    ("UNALIGNED_INV_DESC", "none: frames are aligned"),
    (
        "UNALIGNED_INV_DESC_4001_FRAME_SIZE",
        "none: frames are aligned",
    ),
    (
        "SEND_RECEIVE_UNALIGNED_9K_PACKETS",
        "none: frames are aligned",
    ),
    ("UNALIGNED_INV_DESC_MULTI_BUFF", "none: frames are aligned"),
    ("HW_SW_MIN_RING_SIZE", "none: veth has no rings of a NIC"),
    ("HW_SW_MAX_RING_SIZE", "none: veth has no rings of a NIC"),
];

#[test]
fn every_case_is_a_test_or_has_a_reason() {
    let this = include_str!("kernel_suite.rs");
    for (name, test) in CASES {
        let known = this.contains(&format!("\nfn {test}()")) || test.starts_with("none: ");
        assert!(known, "{name}: {test}");
    }
}

/// A socket at the right end, with what steers packets to it, and as many frames as are asked for in FILL.
struct Bare {
    xsk: Xsk,
    umem: Umem,
    frames: Vec<Frame>,
    _map: SocketMap,
    _link: OwnedFd,
}

const SIZES: RingSizes = RingSizes {
    fill: 128,
    completion: 128,
    receive: 64,
    transmit: 128,
};

fn bare(namespace: &Namespace, mode: &str, headroom: u32, filled: usize) -> Bare {
    namespace.run(|| {
        let (mut umem, mut frames) = Umem::create(256, 2048).expect("memory");
        let mut opening = Opening::new().expect("a socket");
        opening
            .register(&umem, headroom)
            .expect("registered memory");
        let mut xsk = opening.map(SIZES).expect("rings");
        let mut first = frames.split_off(frames.len() - filled);
        xsk.provide(&mut umem, &mut first).expect("room in FILL");
        xsk.publish_provided();
        let index = Network::open()
            .expect("a network")
            .link(END)
            .expect("the end")
            .index;
        // The kernel takes its time to clean up behind the socket before.
        let mut bound = Err(Errno::BUSY);
        until("the queue becomes free", || {
            bound = xsk.bind(index, 0, Copying::Copy);
            bound != Err(Errno::BUSY)
        });
        assert_eq!(bound, Ok(()));
        let map = SocketMap::create(1).expect("a map");
        map.insert(key(0, 0), xsk.as_fd())
            .expect("a socket in the map");
        let code = steering(PORT, map.as_fd().as_raw_fd());
        let program = bpf::load_program(&code).expect("a program");
        let attach = match mode.contains("native") {
            true => Attach::Native,
            false => Attach::Generic,
        };
        let link = bpf::attach(program.as_fd(), index, attach).expect("it is attached");
        Bare {
            xsk,
            umem,
            frames,
            _map: map,
            _link: link,
        }
    })
}

impl Bare {
    fn statistics(&self) -> Statistics {
        xdp::statistics(self.xsk.as_fd()).expect("statistics")
    }

    /// Puts so many packets to nobody into TX.
    fn queue(&mut self, count: u32, len: usize) {
        let link = ethernet::Repr {
            destination: [0xff; 6],
            source: [2; 6],
        };
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 9);
        let envelope = Envelope::new(link, to, to);
        assert!(self.xsk.transmit_room(count).expect("rings") >= count);
        for _ in 0..count {
            let mut frame = self.frames.pop().expect("a frame");
            envelope.seal(self.umem.bytes_mut(&mut frame), 8, UdpSum::None);
            self.xsk.queue(&mut self.umem, frame, 0, len);
        }
        self.xsk.publish_queued();
    }
}

/// Packets from the left end's device to the right one, which is a bare socket.
fn flood(pair: &Pair, count: u32, bytes: usize) {
    let mut client = support::connect(&pair.left, &at(RIGHT, PORT, "")).expect("a client");
    let to = client.route(at(RIGHT, PORT, "").at).expect("a way");
    for _ in 0..count {
        send(&mut client, &to, &vec![1; bytes]);
    }
}

/// Waits until the kernel has counted what it shall.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// Does something in both modes, over a pair of its own.
fn in_both_modes(case: impl Fn(&Pair, &str)) {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        case(&Pair::new(""), mode);
    }
}

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
        let mut socket = bare(&pair.right, mode, 0, 64);
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
            socket.xsk.reclaim(&mut socket.umem, &mut back).unwrap();
            back.len() == 128
        });
    });
}

#[test]
fn poll_rxq_empty_and_txq_full() {
    in_both_modes(|pair, mode| {
        let mut socket = bare(&pair.right, mode, 0, 64);
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
fn umem_headroom() {
    in_both_modes(|pair, mode| {
        for headroom in [0, 22, 128] {
            let mut socket = bare(&pair.right, mode, headroom, 64);
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
        let socket = bare(&pair.right, mode, 1024, 64);
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
        let socket = bare(&pair.right, mode, 0, 128);
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
        let socket = bare(&pair.right, mode, 0, 8);
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
        let mut socket = bare(&pair.right, mode, 0, 64);
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
        let mut socket = bare(&pair.right, mode, 0, 64);
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
            socket
                .xsk
                .reclaim(&mut socket.umem, &mut socket.frames)
                .unwrap();
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

#[test]
fn xdp_prog_cleanup_and_teardown() {
    in_both_modes(|pair, mode| {
        for round in 0..10 {
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

//! Packets in several frames. Our device has none such; the layer below it hands them over part by part, and takes them so.

use super::PORT;
use super::bare::{Bare, Wanted, bare, filled, in_both_modes, long, numbered, sealed, until};
use super::support::netns::{END, Pair};
use super::support::{LEFT, PATIENCE, RIGHT};
use std::net::UdpSocket;
use tightbeam_proto::wire::ENVELOPE;
use tightbeam_sys::Network;

/// Frames in which the kernel takes a packet: its own 17 and the packet's head, which `CONFIG_MAX_SKB_FRAGS` may change.
const MOST_PARTS: usize = 18;
/// Bytes of a part.
const PART: usize = 100;

/// A bare socket at the right end, and a kernel's socket at the left one, with what it takes to send to that.
struct Both {
    socket: Bare,
    receiver: UdpSocket,
    link: [u8; 6],
    next: u32,
}

impl Both {
    fn new(pair: &Pair, mode: &str) -> Both {
        let receiver = pair.left.run(|| UdpSocket::bind((LEFT, 0)));
        let receiver = receiver.expect("a socket");
        receiver.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let network = pair.left.run(Network::open).expect("a network");
        Both {
            socket: bare(&pair.right, mode, filled(64)),
            receiver,
            link: network.link(END).expect("the end").address,
            next: 0,
        }
    }

    /// Puts a numbered packet into TX in so many parts, of which one may be without bytes; what it is.
    fn put(&mut self, parts: usize, empty: Option<usize>) -> Vec<u8> {
        let mut lens = vec![PART; parts];
        if let Some(empty) = empty {
            lens[empty] = 0;
        }
        let bytes = lens.iter().sum::<usize>();
        let bytes = bytes.max(PART) - ENVELOPE;
        let payload = numbered(self.next, bytes);
        self.next += 1;
        let port = self.receiver.local_addr().expect("a port").port();
        let packet = sealed(self.link, port, &payload);
        self.socket.put(&packet, &lens);
        payload
    }

    /// Of packets that have left so many frames; whether those of dropped packets do too, kernels differ.
    fn frames_come_back(&mut self, count: usize) {
        let before = self.socket.frames.len();
        until("frames come back", || {
            self.socket.reclaim_all();
            self.socket.frames.len() >= before + count
        });
    }

    /// The next packet that arrives is this one.
    fn arrives(&self, packet: &[u8], mode: &str) {
        let mut buffer = [0; 4096];
        let len = self.receiver.recv(&mut buffer).expect("a packet");
        assert_eq!(&buffer[..len], packet, "{mode}");
    }
}

/// A packet of which a part is invalid is dropped, and those around it are not.
#[test]
fn aligned_inv_desc_multi_buff() {
    in_both_modes(|pair, mode| {
        let mut both = Both::new(pair, mode);
        for round in 1..=u64::from(long(4)) {
            let first = both.put(3, None);
            both.put(3, Some(2));
            let second = both.put(1, None);
            both.put(1, Some(0));
            let last = both.put(2, None);
            both.socket.send_all();
            for packet in [&first, &second, &last] {
                both.arrives(packet, mode);
            }
            // The empty ones, and what was there of the first one's packet.
            let invalid = both.socket.statistics().tx_invalid_descs;
            assert_eq!(invalid, 4 * round, "{mode}");
            both.frames_come_back(6);
        }
    });
}

#[test]
fn too_many_frags() {
    in_both_modes(|pair, mode| {
        for end in [&pair.left, &pair.right] {
            end.ip(&format!("link set {END} mtu 3000"));
        }
        let mut both = Both::new(pair, mode);
        for round in 1..=u64::from(long(4)) {
            let most = both.put(MOST_PARTS, None);
            both.put(MOST_PARTS + 1, None);
            let after = both.put(1, None);
            both.socket.send_all();
            both.arrives(&most, mode);
            both.arrives(&after, mode);
            let invalid = both.socket.statistics().tx_invalid_descs;
            assert_eq!(invalid, (MOST_PARTS as u64 + 1) * round, "{mode}");
            both.frames_come_back(MOST_PARTS + 1);
        }
    });
}

#[test]
fn send_receive_9k_packets() {
    in_both_modes(|pair, mode| {
        for end in [&pair.left, &pair.right] {
            end.ip(&format!("link set {END} mtu 9000"));
        }
        let wanted = Wanted {
            in_parts: true,
            ..filled(64)
        };
        let mut socket = bare(&pair.right, mode, wanted);
        let sender = pair.left.run(|| UdpSocket::bind((LEFT, 0)));
        let sender = sender.expect("a socket");
        for n in 0..long(400) {
            let sent = numbered(n, 8972);
            sender.send_to(&sent, (RIGHT, PORT)).expect("a way");
            let got = socket.arrives();
            assert_eq!(got.payload(), sent, "{mode}");
            assert!(got.parts > 4, "{mode}: {} frames of 2 KiB", got.parts);
        }
        assert_eq!(socket.statistics().rx_dropped, 0, "{mode}");
    });
}

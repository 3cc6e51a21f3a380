//! Several sockets over one memory, each with rings of its own: on the queues of an interface, and on another interface.

use super::PORT;
use super::bare::{SIZES, attach, bound, in_both_modes_over, numbered, sealed, steer, until};
use super::support::netns::{END, Namespace};
use super::support::{RIGHT, at as at_right, connect, send};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tightbeam_proto::wire::Datagram;
use tightbeam_segment::Device;
use tightbeam_sys::Network;
use tightbeam_sys::bpf::{self, SocketMap};
use tightbeam_sys::xdp::{self, Copying, Frame, Opening, Umem, Xsk};
use tightbeam_xdp::program::{key, steering};

/// Frames, of which each socket gets so many to receive into.
const FRAMES: u32 = 512;
const EACH: usize = 64;
/// Queues of an end, each with a socket; one more socket is on the other interface.
const QUEUES: u32 = 4;
const SOCKETS: usize = QUEUES as usize + 1;
/// Packets to each queue.
const PACKETS: u32 = 40;

/// The sockets, all over one memory.
struct Sharing {
    sockets: Vec<Xsk>,
    umem: Umem,
    frames: Vec<Frame>,
    _steering: Vec<(SocketMap, OwnedFd)>,
}

impl Sharing {
    fn new(right: &Namespace, mode: &str) -> Sharing {
        right.run(|| {
            let (umem, frames) = Umem::create(FRAMES, 2048).expect("memory");
            let mut sharing = Sharing {
                sockets: Vec::new(),
                umem,
                frames,
                _steering: Vec::new(),
            };
            for (name, queues) in [(END, QUEUES), ("ve1", 1)] {
                let map = SocketMap::create(key(queues, 0)).expect("a map");
                let link = Network::open().expect("a network").link(name);
                let index = link.expect("an interface").index;
                for queue in 0..queues {
                    let socket = sharing.open(index, queue);
                    steer(&map, queue, &socket);
                    sharing.sockets.push(socket);
                }
                let code = steering(PORT, map.as_fd().as_raw_fd());
                let program = bpf::load_program(&code).expect("a program");
                let link = bpf::attach(program.as_fd(), index, attach(mode));
                let link = link.expect("it is attached");
                sharing._steering.push((map, link));
            }
            sharing
        })
    }

    /// The first one registers the memory, the others share it.
    fn open(&mut self, interface: u32, queue: u32) -> Xsk {
        let mut opening = Opening::new().expect("a socket");
        match self.sockets.first() {
            None => opening.register(&self.umem, 0).expect("registered memory"),
            Some(_) => opening.share(&self.umem),
        }
        let mut socket = opening.map(SIZES).expect("rings");
        let mut first = self.frames.split_off(self.frames.len() - EACH);
        let filled = socket.provide(&mut self.umem, &mut first);
        filled.expect("room in FILL");
        socket.publish_provided();
        bound(|| match self.sockets.first() {
            None => socket.bind(interface, queue, Copying::Copy),
            Some(owner) => socket.bind_shared(interface, queue, owner),
        });
        socket
    }

    /// The numbers of so many packets, with the socket at which each has arrived. Their frames go back to it.
    fn arrived(&mut self, count: usize) -> Vec<(u32, usize)> {
        let mut arrived = Vec::new();
        let mut used = Vec::new();
        let (sockets, umem) = (&mut self.sockets, &mut self.umem);
        until("all packets arrive", || {
            for (n, socket) in sockets.iter_mut().enumerate() {
                while let Some(received) = socket.receive(umem).expect("rings") {
                    let bytes = &umem.bytes(&received.frame)[received.at..][..received.len];
                    let payload = Datagram::parse(bytes).expect("a packet").payload;
                    let number = payload[..4].try_into().map(u32::from_be_bytes);
                    let number = number.expect("four bytes");
                    assert_eq!(payload, numbered(number, payload.len()));
                    arrived.push((number, n));
                    used.push(received.frame);
                }
                socket.release_received();
                socket.provide(umem, &mut used).expect("room in FILL");
                socket.publish_provided();
            }
            arrived.len() >= count
        });
        arrived
    }
}

impl Sharing {
    /// Each socket sends so many packets to nobody, and has their frames back.
    fn send(&mut self, count: u32, mode: &str) {
        let packet = sealed([0xff; 6], 9, &[0; 8]);
        for (n, socket) in self.sockets.iter_mut().enumerate() {
            assert!(socket.transmit_room(count).expect("rings") >= count);
            for _ in 0..count {
                let mut frame = self.frames.pop().expect("a frame");
                self.umem.bytes_mut(&mut frame)[..packet.len()].copy_from_slice(&packet);
                socket.queue(&mut self.umem, frame, 0, packet.len());
            }
            socket.publish_queued();
            let mut back = Vec::new();
            until("the packets leave", || {
                let _ = xdp::kick_transmit(socket.as_fd());
                let reclaimed = socket.reclaim(&mut self.umem, &mut back);
                reclaimed.expect("frames that were sent");
                back.len() >= count as usize
            });
            assert_eq!(back.len(), count as usize, "{mode}, socket {n}");
            self.frames.append(&mut back);
        }
    }
}

#[test]
fn xdp_shared_umem() {
    in_both_modes_over("numrxqueues 4 numtxqueues 4", |pair, mode| {
        let right = pair.right.name();
        let other = format!("link add ve1 type veth peer name ve1 netns {right}");
        pair.left.ip(&other);
        for (end, address) in [(&pair.left, "10.78.0.1/24"), (&pair.right, "10.78.0.2/24")] {
            end.ip(&format!("addr add {address} dev ve1"));
            end.ip("link set ve1 up");
        }
        let mut sharing = Sharing::new(&pair.right, mode);
        let (mut number, mut at) = (0, [0; SOCKETS]);
        let mut arrive = |sharing: &mut Sharing, sent: u32| {
            for (found, socket) in sharing.arrived(sent as usize) {
                assert_eq!(found, number, "{mode}: in order, each once");
                number += 1;
                at[socket] += 1;
            }
        };
        // A sender's queue says at which queue a packet arrives.
        for queue in 0..QUEUES {
            let to = at_right(RIGHT, PORT, &format!("queue={queue}"));
            let mut client = connect(&pair.left, &to).expect("a client");
            let route = client.route(to.at).expect("a way");
            for n in 0..PACKETS {
                send(&mut client, &route, &numbered(queue * PACKETS + n, 56));
            }
            arrive(&mut sharing, PACKETS);
        }
        let other = pair.left.run(|| UdpSocket::bind(("10.78.0.1", 0)));
        let other = other.expect("a socket");
        for n in 0..PACKETS {
            let sent = other.send_to(&numbered(QUEUES * PACKETS + n, 56), ("10.78.0.2", PORT));
            sent.expect("a way");
        }
        arrive(&mut sharing, PACKETS);
        // In generic mode the kernel does not tell the sender's second queue from its first.
        let wanted = match mode.contains("native") {
            true => [PACKETS; SOCKETS],
            false => [2 * PACKETS, PACKETS, PACKETS, 0, PACKETS],
        };
        assert_eq!(at, wanted, "{mode}");
        sharing.send(PACKETS, mode);
        // What is not in FILL is ours.
        let ours = FRAMES as usize - SOCKETS * EACH;
        assert_eq!(sharing.frames.len(), ours, "{mode}");
    });
}

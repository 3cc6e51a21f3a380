//! A socket of the layer below the device, with what steers packets to it, and packets for it.

use super::PORT;
use super::support::netns::{self, END, Namespace, Pair};
use super::support::{self, MODES, PATIENCE, RIGHT, at, send};
use rustix::io::Errno;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;
use tightbeam_proto::wire::{ENVELOPE, Envelope, UdpSum, ethernet};
use tightbeam_segment::Device;
use tightbeam_sys::Network;
use tightbeam_sys::bpf::{self, Attach, Instruction, SocketMap};
use tightbeam_sys::xdp::{self, Copying, Frame, Opening, RingSizes, Statistics, Umem, Xsk};
use tightbeam_xdp::program::{SLOTS, key, steering};

pub(crate) const SIZES: RingSizes = RingSizes {
    fill: 128,
    completion: 128,
    receive: 64,
    transmit: 128,
};
const FRAMES: u32 = 256;
const FRAME_BYTES: u32 = 2048;

/// How a bare socket is to be.
#[derive(Default)]
pub(crate) struct Wanted {
    pub(crate) headroom: u32,
    /// So many frames are in FILL.
    pub(crate) filled: usize,
    /// What the program does before it steers; the packet's context is in register 1, before and after.
    pub(crate) before: Vec<Instruction>,
    /// Packets may be longer than a frame.
    pub(crate) in_parts: bool,
}

/// One with so many frames in FILL, and nothing else.
pub(crate) fn filled(filled: usize) -> Wanted {
    Wanted {
        filled,
        ..Wanted::default()
    }
}

/// A socket on queue 0 of an end.
pub(crate) struct Bare {
    pub(crate) xsk: Xsk,
    pub(crate) umem: Umem,
    pub(crate) frames: Vec<Frame>,
    _map: SocketMap,
    _link: OwnedFd,
}

/// A packet that has arrived.
pub(crate) struct Arrived {
    /// The four bytes in front of it.
    pub(crate) before: [u8; 4],
    pub(crate) bytes: Vec<u8>,
    /// Frames in which it was.
    pub(crate) parts: usize,
}

impl Arrived {
    /// What is behind the headers.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[ENVELOPE..]
    }
}

/// Binds a socket once the kernel has cleaned up behind the one before, for which it takes its time.
pub(crate) fn bound(mut bind: impl FnMut() -> Result<(), Errno>) {
    let mut done = Err(Errno::BUSY);
    until("the queue becomes free", || {
        done = bind();
        done != Err(Errno::BUSY)
    });
    assert_eq!(done, Ok(()));
}

pub(crate) fn attach(mode: &str) -> Attach {
    match mode.contains("native") {
        true => Attach::Native,
        false => Attach::Generic,
    }
}

/// All packets of a queue go to a socket, whatever slot they name.
pub(crate) fn steer(map: &SocketMap, queue: u32, socket: &Xsk) {
    for slot in 0..SLOTS {
        let inserted = map.insert(key(queue, slot), socket.as_fd());
        inserted.expect("a socket in the map");
    }
}

pub(crate) fn bare(namespace: &Namespace, mode: &str, wanted: Wanted) -> Bare {
    namespace.run(|| {
        let (mut umem, mut frames) = Umem::create(FRAMES, FRAME_BYTES).expect("memory");
        let mut opening = Opening::new().expect("a socket");
        opening
            .register(&umem, wanted.headroom)
            .expect("registered memory");
        let mut xsk = opening.map(SIZES).expect("rings");
        let mut first = frames.split_off(frames.len() - wanted.filled);
        xsk.provide(&mut umem, &mut first).expect("room in FILL");
        xsk.publish_provided();
        let network = Network::open().expect("a network");
        let index = network.link(END).expect("the end").index;
        bound(|| match wanted.in_parts {
            true => xsk.bind_for_parts(index, 0, Copying::Copy),
            false => xsk.bind(index, 0, Copying::Copy),
        });
        let map = SocketMap::create(key(1, 0)).expect("a map");
        steer(&map, 0, &xsk);
        let mut code = wanted.before;
        code.extend(steering(PORT, map.as_fd().as_raw_fd()));
        let program = match wanted.in_parts {
            true => bpf::load_program_for_parts(&code),
            false => bpf::load_program(&code),
        };
        let program = program.expect("a program");
        let link = bpf::attach(program.as_fd(), index, attach(mode)).expect("it is attached");
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
    pub(crate) fn statistics(&self) -> Statistics {
        xdp::statistics(self.xsk.as_fd()).expect("statistics")
    }

    /// Puts so many packets to nobody into TX.
    pub(crate) fn queue(&mut self, count: u32, len: usize) {
        let packet = sealed([0xff; 6], 9, &[0; 8]);
        for _ in 0..count {
            self.put(&packet, &[len]);
        }
        self.xsk.publish_queued();
    }

    /// Puts one packet into TX, in parts of so many bytes; not seen by the kernel yet.
    pub(crate) fn put(&mut self, packet: &[u8], parts: &[usize]) {
        let room = self.xsk.transmit_room(parts.len() as u32).expect("rings");
        assert!(room as usize >= parts.len(), "room for {room}");
        let mut rest = packet;
        for (n, &len) in parts.iter().enumerate() {
            let mut frame = self.frames.pop().expect("a frame");
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            self.umem.bytes_mut(&mut frame)[..len].copy_from_slice(bytes);
            match n + 1 == parts.len() {
                true => self.xsk.queue(&mut self.umem, frame, 0, len),
                false => self.xsk.queue_part(&mut self.umem, frame, 0, len),
            }
        }
    }

    /// Has the kernel take all that is in TX. Each call ends at what is invalid.
    pub(crate) fn send_all(&mut self) {
        self.xsk.publish_queued();
        until("all are taken", || {
            let _ = xdp::kick_transmit(self.xsk.as_fd());
            self.xsk.transmit_outstanding() == Ok(0)
        });
    }

    pub(crate) fn reclaim(&mut self, frames: &mut Vec<Frame>) {
        let back = self.xsk.reclaim(&mut self.umem, frames);
        back.expect("frames that were sent");
    }

    pub(crate) fn reclaim_all(&mut self) {
        let back = self.xsk.reclaim(&mut self.umem, &mut self.frames);
        back.expect("frames that were sent");
    }

    /// The packet that arrives next, whose frames go back to the kernel.
    pub(crate) fn arrives(&mut self) -> Arrived {
        let mut arrived = Arrived {
            before: [0; 4],
            bytes: Vec::new(),
            parts: 0,
        };
        let mut used = Vec::new();
        until("a packet arrives", || {
            let Some(received) = self.xsk.receive(&mut self.umem).expect("rings") else {
                return false;
            };
            let bytes = self.umem.bytes(&received.frame);
            if arrived.parts == 0 {
                let before = &bytes[received.at - 4..received.at];
                arrived.before.copy_from_slice(before);
            }
            let part = &bytes[received.at..received.at + received.len];
            arrived.bytes.extend_from_slice(part);
            arrived.parts += 1;
            let whole = !received.goes_on();
            used.push(received.frame);
            whole
        });
        self.xsk.release_received();
        let back = self.xsk.provide(&mut self.umem, &mut used);
        back.expect("room in FILL");
        self.xsk.publish_provided();
        arrived
    }
}

/// A packet from the right end to a port of the left one, with all its headers.
pub(crate) fn sealed(to_link: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let link = ethernet::Repr {
        destination: to_link,
        source: [2; 6],
    };
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), port);
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), PORT);
    let mut packet = vec![0; ENVELOPE + payload.len()];
    packet[ENVELOPE..].copy_from_slice(payload);
    Envelope::new(link, from, to).seal(&mut packet, payload.len(), UdpSum::None);
    packet
}

/// The bytes of a packet: its number, and what follows from that.
pub(crate) fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (number as usize + at) as u8).collect();
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Packets from the left end's device to the right one, which is a bare socket.
pub(crate) fn flood(pair: &Pair, count: u32, bytes: usize) {
    let mut client = support::connect(&pair.left, &at(RIGHT, PORT, "")).expect("a client");
    let to = client.route(at(RIGHT, PORT, "").at).expect("a way");
    for _ in 0..count {
        send(&mut client, &to, &vec![1; bytes]);
    }
}

/// Waits until the kernel has counted what it shall.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}: it does not happen");
        std::thread::yield_now();
    }
}

/// Does something in both modes, over a pair of its own.
pub(crate) fn in_both_modes(case: impl Fn(&Pair, &str)) {
    in_both_modes_over("", case);
}

/// Does something in both modes, over a pair of its own with these options.
pub(crate) fn in_both_modes_over(options: &str, case: impl Fn(&Pair, &str)) {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        case(&Pair::new(options), mode);
    }
}

/// How many there are of something: so many, and ten times more in a long run.
pub(crate) fn long(count: u32) -> u32 {
    match std::env::var_os("TIGHTBEAM_LONG") {
        Some(_) => count * 10,
        None => count,
    }
}

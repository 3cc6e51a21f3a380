//! The steering program: which packets are ours.
//!
//! It redirects UDP packets over plain IPv4 to one port, and passes everything else on to the kernel: other protocols, other ports, IP
//! options, fragments, VLAN tags, what is too short. So the kernel keeps its interface.
//!
//! Several sockets may share a queue's packets. Each has a slot; the cookie in our header says which: the high bits of its low 16 bits, which
//! the receiver has chosen. A packet without a cookie, as the first of an opening, has slot 0.
//!
//! ```text
//!   0        12    14                    34        42                50
//!   | Ethernet | IPv4, 20 bytes          | UDP     | kind, ... , crc | cookie: low byte, high byte, ...
//!                                                                               ^ slot: its 4 high bits
//! ```

use crate::asm::Register::{R0, R1, R2, R3, R4, R5};
use crate::asm::{Assembler, Width};
use tightbeam_sys::bpf::Instruction;

/// Bits of the slot.
const SLOT_BITS: i32 = 4;
/// Sockets that can share a queue's packets.
pub const SLOTS: u32 = 1 << SLOT_BITS;

/// What the program returns for a packet that the kernel shall have.
pub const PASS: u32 = 2;
/// What it returns for a packet that goes to a socket.
pub const REDIRECT: u32 = 4;
/// The number of the helper `bpf_redirect_map`.
pub const REDIRECT_MAP: u32 = 51;

// Where things are in a packet. Numbers in it are in network order, and read as the machine has them.
const ETHERNET_TYPE: i16 = 12;
const IP_VERSION: i16 = 14;
const IP_FRAGMENT: i16 = 20;
const IP_PROTOCOL: i16 = 23;
const UDP_PORT: i16 = 36;
const UDP_END: i32 = 42;
const COOKIE_HIGH_BYTE: i16 = 51;

/// IPv4 of five words: no options.
const PLAIN_IPV4: i32 = 0x45;
const UDP: i32 = 17;
/// More fragments to come, or not the first one.
const FRAGMENT: u16 = 0x3fff;

/// A number of 16 bits as it is in a packet, as the machine reads it there.
const fn network(number: u16) -> i32 {
    u16::from_ne_bytes(number.to_be_bytes()) as i32
}

/// The map's key of a socket: which queue it is bound to, and its slot.
pub const fn key(queue: u32, slot: u32) -> u32 {
    (queue << SLOT_BITS) | slot
}

/// Assembles the program for a UDP port and a map of sockets, given by its descriptor.
pub fn steering(port: u16, map: i32) -> Vec<Instruction> {
    let mut a = Assembler::new();
    let (pass, redirect) = (a.label(), a.label());

    // r2 = first byte, r3 = end of the packet
    a.load(Width::Word, R2, R1, 0);
    a.load(Width::Word, R3, R1, 4);
    a.copy(R4, R2);
    a.add(R4, UDP_END);
    a.jump_if_greater(R4, R3, pass);

    a.load(Width::Half, R4, R2, ETHERNET_TYPE);
    a.jump_if_not(R4, network(0x0800), pass);
    a.load(Width::Byte, R4, R2, IP_VERSION);
    a.jump_if_not(R4, PLAIN_IPV4, pass);
    a.load(Width::Half, R4, R2, IP_FRAGMENT);
    a.and(R4, network(FRAGMENT));
    a.jump_if_not(R4, 0, pass);
    a.load(Width::Byte, R4, R2, IP_PROTOCOL);
    a.jump_if_not(R4, UDP, pass);
    a.load(Width::Half, R4, R2, UDP_PORT);
    a.jump_if_not(R4, network(port), pass);

    // r5 = key of the queue's slot 0, then of the cookie's slot if there is one
    a.load(Width::Word, R5, R1, 16);
    a.shift_left(R5, SLOT_BITS);
    a.copy(R4, R2);
    a.add(R4, i32::from(COOKIE_HIGH_BYTE) + 1);
    a.jump_if_greater(R4, R3, redirect);
    a.load(Width::Byte, R4, R2, COOKIE_HIGH_BYTE);
    a.shift_right(R4, 8 - SLOT_BITS);
    a.or(R5, R4);

    // A slot without a socket: the helper returns its third argument.
    a.put(redirect);
    a.load_map(R1, map);
    a.copy(R2, R5);
    a.set(R3, PASS as i32);
    a.call(REDIRECT_MAP as i32);
    a.exit();

    a.put(pass);
    a.set(R0, PASS as i32);
    a.exit();
    a.finish()
}

//! The steering program, over packets of all kinds: in `rbpf`, which needs no privilege, and in the kernel, which does.

mod support;

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd};
use support::netns;
use tightbeam_sys::bpf::{self, Instruction, SocketMap};
use tightbeam_sys::xdp::{Opening, RingSizes, Umem};
use tightbeam_xdp::program::{PASS, REDIRECT, REDIRECT_MAP, SLOTS, key, steering};

const PORT: u16 = 7000;
/// A map's descriptor that is seen again as the helper's argument.
const MAP: i32 = 77;

/// A UDP packet to our port, with a cookie whose slot is `slot`.
fn ours(slot: u8) -> Vec<u8> {
    let mut packet = vec![0u8; 74];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&60u16.to_be_bytes());
    packet[20] = 0x40;
    packet[22] = 64;
    packet[23] = 17;
    packet[34..36].copy_from_slice(&9999u16.to_be_bytes());
    packet[36..38].copy_from_slice(&PORT.to_be_bytes());
    packet[38..40].copy_from_slice(&40u16.to_be_bytes());
    packet[51] = slot << 4 | 0x0f;
    packet
}

/// What shall become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The kernel gets it.
    Kernel,
    /// The socket of this slot gets it.
    Slot(u32),
}

fn changed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = ours(0);
    change(&mut packet);
    packet
}

fn packets() -> Vec<(String, Vec<u8>, Fate)> {
    use Fate::{Kernel, Slot};
    let mut all: Vec<(String, Vec<u8>, Fate)> = (0..SLOTS)
        .map(|slot| (format!("slot {slot}"), ours(slot as u8), Slot(slot)))
        .collect();
    let set = |at: usize, value: u8| changed(move |packet| packet[at] = value);
    let mut add = |name: &str, packet: Vec<u8>, fate| all.push((name.into(), packet, fate));
    add(
        "VLAN tag",
        changed(|p| {
            p.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
        }),
        Kernel,
    );
    add(
        "IPv6",
        changed(|p| p[12..14].copy_from_slice(&[0x86, 0xdd])),
        Kernel,
    );
    add(
        "ARP",
        changed(|p| p[12..14].copy_from_slice(&[0x08, 0x06])),
        Kernel,
    );
    add("IP options", set(14, 0x46), Kernel);
    add("no IPv4 at all", set(14, 0x65), Kernel);
    add("first fragment", set(20, 0x20), Kernel);
    add("later fragment", set(21, 1), Kernel);
    add(
        "last fragment",
        changed(|p| (p[20], p[21]) = (0x1f, 0xff)),
        Kernel,
    );
    add("may be fragmented", set(20, 0), Slot(0));
    add("reserved bit", set(20, 0x80), Slot(0));
    add("TCP", set(23, 6), Kernel);
    add("ICMP", set(23, 1), Kernel);
    add("UDP-Lite", set(23, 136), Kernel);
    add("port, high byte", set(36, 0), Kernel);
    add("port, low byte", set(37, 0), Kernel);
    add(
        "our port, but the sender's",
        changed(|p| {
            p.copy_within(36..38, 34);
            p[36..38].copy_from_slice(&[0, 53]);
        }),
        Kernel,
    );
    add("empty", changed(|p| p.truncate(42)), Slot(0));
    add("no whole cookie", changed(|p| p.truncate(51)), Slot(0));
    add(
        "just a cookie's low half",
        changed(|p| {
            p[51] = 0xa0;
            p.truncate(52);
        }),
        Slot(10),
    );
    for short in [41, 34, 20, 14] {
        add(
            &format!("{short} bytes"),
            changed(|p| p.truncate(short)),
            Kernel,
        );
    }
    all
}

/// The program as the kernel rewrites it when it loads it: a packet's ends are pointers of 64 bits, whose fields the program names by the offsets
/// of 32-bit ones.
fn as_loaded(code: &[Instruction]) -> Vec<u8> {
    let (word, pointer) = (0x61, 0x79);
    let bytes = code.iter().flat_map(|instruction| {
        let mut i = *instruction;
        if i.code == word && i.registers >> 4 == 1 && i.offset < 8 {
            (i.code, i.offset) = (pointer, i.offset * 2);
        }
        let [low, high] = i.offset.to_le_bytes();
        let [a, b, c, d] = i.constant.to_le_bytes();
        [i.code, i.registers, low, high, a, b, c, d]
    });
    bytes.collect()
}

thread_local! {
    static CALLED: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Stands for `bpf_redirect_map`, of a map in which every key has a socket.
fn redirect(map: u64, key: u64, otherwise: u64, _: u64, _: u64) -> u64 {
    assert_eq!(otherwise, u64::from(PASS));
    CALLED.set(Some((map, key)));
    u64::from(REDIRECT)
}

#[test]
fn packets_go_where_they_shall_in_rbpf() {
    let code = as_loaded(&steering(PORT, MAP));
    let mut machine = rbpf::EbpfVmMbuff::new(Some(&code)).expect("a program that rbpf takes");
    let helper = machine.register_helper(REDIRECT_MAP, redirect);
    helper.expect("a helper that the program calls");
    for queue in [0u32, 1, 7] {
        for (name, packet, fate) in packets() {
            let start = packet.as_ptr() as u64;
            let mut context = Vec::new();
            context.extend_from_slice(&start.to_ne_bytes());
            context.extend_from_slice(&(start + packet.len() as u64).to_ne_bytes());
            context.extend_from_slice(&queue.to_ne_bytes());
            CALLED.set(None);
            let returned = machine.execute_program(&packet, &context);
            let returned = returned.unwrap_or_else(|error| panic!("{name}: {error}"));
            let wanted = match fate {
                Fate::Kernel => (u64::from(PASS), None),
                Fate::Slot(slot) => {
                    let key = u64::from(key(queue, slot));
                    (u64::from(REDIRECT), Some((MAP as u64, key)))
                }
            };
            assert_eq!((returned, CALLED.get()), wanted, "{name}, queue {queue}");
        }
    }
}

/// A socket with rings, bound to nothing: enough to be in a map.
fn socket() -> tightbeam_sys::xdp::Xsk {
    let (umem, _) = Umem::create(4, 2048).expect("memory");
    let mut opening = Opening::new().expect("a socket");
    opening
        .register(&umem, 0)
        .expect("memory that is registered");
    let sizes = RingSizes {
        fill: 4,
        completion: 4,
        receive: 4,
        transmit: 4,
    };
    opening.map(sizes).expect("rings")
}

#[test]
fn packets_go_where_they_shall_in_the_kernel() {
    let Some(_alone) = netns::may() else {
        return;
    };
    // Without a device a test run's queue is 0.
    let map = SocketMap::create(SLOTS).expect("a map");
    let code = steering(PORT, map.as_fd().as_raw_fd());
    let program = bpf::load_program(&code).expect("a program that the verifier takes");
    let socket = socket();
    for filled in [None, Some(0), Some(10)] {
        if let Some(slot) = filled {
            map.insert(key(0, slot), socket.as_fd()).expect("a socket");
        }
        for (name, packet, fate) in packets() {
            // The kernel runs nothing shorter than an Ethernet header and a byte.
            if packet.len() < 15 {
                continue;
            }
            let (returned, _) = bpf::test_run(program.as_fd(), &packet, 1)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let wanted = match fate {
                Fate::Slot(slot) if filled == Some(slot) => REDIRECT,
                _ => PASS,
            };
            assert_eq!(returned, wanted, "{name}, with a socket in {filled:?}");
        }
        if let Some(slot) = filled {
            map.remove(key(0, slot)).expect("it was there");
        }
    }
}

//! Programs that do more than ours before they steer a packet: what they do to it is what arrives.

use super::PORT;
use super::bare::{Arrived, Bare, Wanted, bare, filled, in_both_modes, long, numbered};
use super::support::netns::{END, Pair};
use super::support::{LEFT, RIGHT};
use std::net::UdpSocket;
use tightbeam_proto::wire::ENVELOPE;
use tightbeam_sys::bpf::Instruction;

const DROP: i32 = 1;
const ADJUST_META: i32 = 54;
const ADJUST_TAIL: i32 = 65;
/// A packet of ours is at least so long, and one that looks for a host's link address is not.
const LEAST: usize = 100;
const SHORT: usize = LEAST - ENVELOPE;
/// Longer than a page and than four frames.
const LONG: usize = 8972;
const PACKETS: u32 = 256;

/// An instruction: operation, the register it is done to, the one it is done with, an offset, a constant.
fn op(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        constant,
    }
}

fn copy(to: u8, from: u8) -> Instruction {
    op(0xbf, to, from, 0, 0)
}

fn set(to: u8, constant: i32) -> Instruction {
    op(0xb7, to, 0, 0, constant)
}

fn add(to: u8, constant: usize) -> Instruction {
    op(0x07, to, 0, 0, constant as i32)
}

fn load_word(to: u8, from: u8, at: i16) -> Instruction {
    op(0x61, to, from, at, 0)
}

fn skip_if_greater(a: u8, b: u8, instructions: i16) -> Instruction {
    op(0x2d, a, b, instructions, 0)
}

fn call(helper: i32) -> Instruction {
    op(0x85, 0, 0, 0, helper)
}

/// Drops each packet of ours whose number is odd.
fn drop_half() -> Vec<Instruction> {
    let number = ENVELOPE as i16;
    vec![
        load_word(2, 1, 0),
        load_word(3, 1, 4),
        copy(4, 2),
        add(4, LEAST),
        skip_if_greater(4, 3, 5),
        op(0x71, 4, 2, number + 3, 0), // r4 = the last byte of the number
        op(0x57, 4, 0, 0, 1),          // r4 &= 1
        op(0x15, 4, 0, 2, 0),          // if r4 == 0, skip two
        set(0, DROP),
        op(0x95, 0, 0, 0, 0), // return
    ]
}

/// Puts a packet's number in front of it.
fn number_in_front() -> Vec<Instruction> {
    let number = ENVELOPE as i16;
    vec![
        copy(6, 1),
        set(2, -4),
        call(ADJUST_META),
        op(0x55, 0, 0, 11, 0), // if r0 != 0, skip eleven
        load_word(2, 6, 0),
        load_word(3, 6, 8),
        load_word(5, 6, 4),
        copy(4, 3),
        add(4, 4),
        skip_if_greater(4, 2, 5),
        copy(4, 2),
        add(4, LEAST),
        skip_if_greater(4, 5, 2),
        load_word(4, 2, number),
        op(0x63, 3, 4, 0, 0), // the number, to where r3 points
        copy(1, 6),
    ]
}

/// Makes each packet of ours so many bytes longer, or shorter.
fn adjust_tail(by: i32) -> Vec<Instruction> {
    vec![
        copy(6, 1),
        load_word(2, 1, 0),
        load_word(3, 1, 4),
        copy(4, 2),
        add(4, LEAST),
        skip_if_greater(4, 3, 2),
        set(2, by),
        call(ADJUST_TAIL),
        copy(1, 6),
    ]
}

/// A bare socket behind a program, and a kernel's socket that sends to it.
fn behind(pair: &Pair, mode: &str, before: Vec<Instruction>, len: usize) -> (Bare, UdpSocket) {
    let in_parts = len == LONG;
    if in_parts {
        for end in [&pair.left, &pair.right] {
            end.ip(&format!("link set {END} mtu 9000"));
        }
    }
    let wanted = Wanted {
        before,
        in_parts,
        ..filled(64)
    };
    let socket = bare(&pair.right, mode, wanted);
    let sender = pair.left.run(|| UdpSocket::bind((LEFT, 0)));
    (socket, sender.expect("a socket"))
}

/// Sends numbered packets through a program, one at a time, and checks each as it arrives: in one part, or if it is long in several.
fn each_arrives(
    pair: &Pair,
    mode: &str,
    before: Vec<Instruction>,
    len: usize,
    check: impl Fn(&[u8], &Arrived),
) {
    let (mut socket, sender) = behind(pair, mode, before, len);
    for n in 0..long(PACKETS) {
        let sent = numbered(n, len);
        sender.send_to(&sent, (RIGHT, PORT)).expect("a way");
        let got = socket.arrives();
        assert_eq!(got.parts > 1, len == LONG, "{mode}");
        check(&sent, &got);
    }
    assert_eq!(socket.statistics().rx_dropped, 0, "{mode}");
}

#[test]
fn xdp_drop_half() {
    in_both_modes(|pair, mode| {
        let (mut socket, sender) = behind(pair, mode, drop_half(), SHORT);
        for n in 0..long(PACKETS) {
            let sent = numbered(n, SHORT);
            sender.send_to(&sent, (RIGHT, PORT)).expect("a way");
            if n % 2 == 0 {
                assert_eq!(socket.arrives().payload(), sent, "{mode}");
            }
        }
    });
}

#[test]
fn xdp_metadata_copy() {
    in_both_modes(|pair, mode| number_is_in_front(pair, mode, SHORT));
}

#[test]
fn xdp_metadata_copy_multi_buff() {
    in_both_modes(|pair, mode| number_is_in_front(pair, mode, LONG));
}

fn number_is_in_front(pair: &Pair, mode: &str, len: usize) {
    each_arrives(pair, mode, number_in_front(), len, |sent, got| {
        assert_eq!(got.before, sent[..4], "{mode}");
        assert_eq!(got.payload(), sent, "{mode}");
    });
}

#[test]
fn xdp_adjust_tail_shrink() {
    in_both_modes(|pair, mode| tail_is_adjusted(pair, mode, SHORT, -4));
}

#[test]
fn xdp_adjust_tail_shrink_multi_buff() {
    in_both_modes(|pair, mode| tail_is_adjusted(pair, mode, LONG, -256));
}

#[test]
fn xdp_adjust_tail_grow() {
    in_both_modes(|pair, mode| tail_is_adjusted(pair, mode, SHORT, 4));
}

/// What is cut off is gone, what is added is zero, the rest is as it was sent.
fn tail_is_adjusted(pair: &Pair, mode: &str, len: usize, by: i32) {
    each_arrives(pair, mode, adjust_tail(by), len, |sent, got| {
        let wanted = sent
            .len()
            .checked_add_signed(by as isize)
            .expect("a length");
        assert_eq!(got.payload().len(), wanted, "{mode}");
        let (same, added) = got.payload().split_at(wanted.min(sent.len()));
        assert_eq!(same, &sent[..same.len()], "{mode}");
        assert!(added.iter().all(|&byte| byte == 0), "{mode}");
    });
}

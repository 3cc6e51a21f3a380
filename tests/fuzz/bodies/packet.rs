//! A packet from another host, any bytes: over every view, and near the truth to one Raw channel, beside what a second reading of the
//! rules says of each.

use super::input::Input;
use std::collections::HashSet;
use tightbeam_proto::raw::{Accepted, Answer, Counter, Receiver, Refused};
use tightbeam_proto::wire::message::{self, Cookie, HEADER, Kind, Repr, seal};
use tightbeam_proto::wire::{Datagram, control, ethernet, ipv4, packed, udp};

const COOKIE: Cookie = Cookie::new(3, 0x0123_4567_89ab_cdef);
const MOST_STEPS: usize = 60;
/// Numbers so far back are remembered.
const WINDOW: i64 = 64;

pub(crate) fn packet(input: &[u8]) {
    views(input);
    let mut input = Input::new(input);
    let first = input.one_of(&[0, 1, u32::MAX, u32::MAX - 70, 1 << 31]);
    let mut receiver = Receiver::starting_at(COOKIE, first);
    let mut reference = Reference::default();
    let mut arrived = 0;
    for _ in 0..MOST_STEPS {
        if input.is_over() {
            break;
        }
        let packet = near(&mut input, first, reference.next);
        let said = receiver.accept(&packet);
        let expected = reference.judge(&packet, first);
        assert_eq!(
            said.as_ref().err(),
            expected.err().as_ref(),
            "{packet:02x?}"
        );
        if let Ok(accepted) = said {
            whole(&accepted, &packet);
        }
        arrived += 1;
    }
    let counters = receiver.counters();
    let (accepted, lost) = (reference.seen.len() as u64, reference.lost());
    assert_eq!(counters.get(Counter::Accepted), accepted);
    assert_eq!(counters.get(Counter::Lost), lost);
    let not_one_each = [Counter::Lost, Counter::Reordered];
    let each = counters.iter().filter(|(c, _)| !not_one_each.contains(c));
    assert_eq!(each.map(|(_, count)| count).sum::<u64>(), arrived);
}

/// Every view: a reason, or a value that says the bytes again.
fn views(bytes: &[u8]) {
    let _ = Datagram::parse(bytes).map(|read| read.checksum_holds());
    if let Ok(packet) = ethernet::Packet::new_checked(bytes)
        && let Ok(repr) = ethernet::Repr::parse(&packet)
    {
        let mut out = [0; ethernet::HEADER];
        repr.emit(&mut out);
        assert_eq!(out, bytes[..ethernet::HEADER]);
    }
    if let Ok(packet) = ipv4::Packet::new_checked(bytes)
        && let Ok(repr) = ipv4::Repr::parse(&packet)
    {
        let mut out = [0; ipv4::HEADER];
        repr.emit(&mut out);
        // Zero has two forms in ones' complement, and one of them is ours.
        let checksum = 10..12;
        if bytes[checksum.clone()] != [0xff; 2] {
            assert_eq!(out, bytes[..ipv4::HEADER]);
        }
    }
    if let Ok(packet) = udp::Packet::new_checked(bytes) {
        let mut out = [0; udp::HEADER];
        udp::Repr::parse(&packet).emit(&mut out);
        assert_eq!(out, bytes[..udp::HEADER]);
    }
    if let Ok(packet) = message::Packet::new_checked(bytes) {
        let parsed = message::Repr::parse(&packet);
        assert_eq!(parsed.is_ok(), packet.crc_holds());
        if let Ok(repr) = parsed {
            let mut out = bytes.to_vec();
            repr.emit(&mut out);
            seal(&mut out);
            assert_eq!(out, bytes);
        }
    }
    if let Ok(packet) = control::Packet::new_checked(bytes) {
        let mut out = [0; control::CONTROL];
        control::Repr::parse(&packet).emit(&mut out);
        assert_eq!(out, bytes[..control::CONTROL]);
    }
    let count = bytes.len() as u16 / 6;
    if let Ok(packed) = packed::Packed::new_checked(bytes, count) {
        let whole: usize = packed.map(|(_, message)| packed::room(message.len())).sum();
        assert_eq!(whole, bytes.len());
    }
}

/// A packet as an honest peer might write it, and then perhaps not.
fn near(input: &mut Input<'_>, first: u32, next: i64) -> Vec<u8> {
    let kind = match input.below(8) {
        0 => Kind::from_number(input.byte() & 0xf).unwrap_or(Kind::Close),
        _ => Kind::Data,
    };
    let step = input.one_of(&[
        0, 0, 0, 1, 2, -1, -1, -2, 63, 64, 65, -63, -64, -65, -66, 1000,
    ]);
    let number = next + step;
    let flags = input.one_of(&[0, 0, 1, 2, 3, 4, 8, 8, 5, 16, 0xff]);
    let mut payload = vec![0; input.below(48)];
    let mut used = 0;
    let mut count = 0;
    if flags == message::PACKED {
        while let Some(more) = {
            let len = input.below(12);
            packed::push(&mut payload, used, 7, input.take(len))
        } {
            (used, count) = (more, count + 1);
        }
        payload.truncate(used);
        count += u16::from(input.one_in(8));
        if input.one_in(8) {
            payload.extend_from_slice(input.take(9));
        }
    }
    let header = Repr {
        flags,
        handler: count,
        seq: first.wrapping_add(number as u32),
        ..Repr::new(kind, COOKIE)
    };
    let mut packet = vec![0; HEADER];
    header.emit(&mut packet);
    packet.extend_from_slice(&payload);
    match input.below(16) {
        0 => packet.truncate(input.below(packet.len() + 1)),
        1 => change(input, &mut packet),
        2 => {
            seal(&mut packet);
            change(input, &mut packet);
        }
        _ => {}
    }
    if packet.len() >= HEADER && !input.one_in(16) {
        seal(&mut packet);
    }
    packet
}

fn change(input: &mut Input<'_>, packet: &mut [u8]) {
    let at = input.below(packet.len().min(256));
    packet[at] ^= input.byte();
}

/// The rules, said a second time, slowly: nothing is forgotten here.
#[derive(Default)]
struct Reference {
    /// Numbers from the first packet on, without wrap.
    seen: HashSet<i64>,
    next: i64,
}

impl Reference {
    fn judge(&mut self, packet: &[u8], first: u32) -> Result<(), Refused> {
        let Some(header) = packet.get(..HEADER) else {
            return Err(Refused::Short);
        };
        let half = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        let (kind, flags) = (header[0] & 0xf, header[1]);
        let known = match kind {
            1 => flags <= 4 || flags == 8,
            5 => flags <= 1,
            2..=10 => flags == 0,
            _ => false,
        };
        let mut unsealed = packet.to_vec();
        unsealed[4..8].fill(0);
        if header[0] >> 4 != 1 {
            return Err(Refused::Version);
        } else if !known {
            return Err(Refused::Kind);
        } else if header[8..16] != COOKIE.to_wire().to_le_bytes() {
            return Err(Refused::Cookie);
        } else if crc(&unsealed) != half(4) {
            return Err(Refused::Crc);
        } else if kind != 1 && kind != 5 {
            return Err(Refused::Kind);
        }
        let ahead = half(16).wrapping_sub(first.wrapping_add(self.next as u32)) as i32;
        let number = self.next + i64::from(ahead);
        if kind == 5 {
            self.next = self.next.max(number);
            return Ok(());
        }
        let count = u16::from_le_bytes([header[2], header[3]]);
        if flags == 8 && !is_packed(&packet[HEADER..], count) {
            return Err(Refused::Packed);
        } else if number < self.next - WINDOW {
            return Err(Refused::Late);
        } else if number < 0 || !self.seen.insert(number) {
            return Err(Refused::Duplicate);
        }
        self.next = self.next.max(number + 1);
        Ok(())
    }

    fn lost(&self) -> u64 {
        self.next as u64 - self.seen.len() as u64
    }
}

fn is_packed(payload: &[u8], count: u16) -> bool {
    let (mut at, mut messages) = (0, 0);
    while at + 4 <= payload.len() && messages < count {
        let len = usize::from(payload[at]) | usize::from(payload[at + 1]) << 8;
        at += 4 + len;
        messages += 1;
    }
    at == payload.len() && messages == count && count > 0
}

/// CRC32C, a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// What was accepted is in the packet.
fn whole(accepted: &Accepted<'_>, packet: &[u8]) {
    let payload = &packet[HEADER..];
    let role = packet[1] & message::ROLE;
    match accepted {
        Accepted::Message { bytes, .. } => assert_eq!((*bytes, role), (payload, 0)),
        Accepted::Call { bytes, .. } => assert_eq!((*bytes, role), (payload, 1)),
        Accepted::Answer { bytes, answer, .. } => {
            let expected = match answer {
                Answer::Reply => 2,
                Answer::NoHandler => 3,
                Answer::NoReply => 4,
            };
            assert_eq!((*bytes, role), (payload, expected));
        }
        Accepted::Packed(messages) => {
            let count = messages.len();
            let whole: usize = messages.clone().map(|(_, m)| packed::room(m.len())).sum();
            assert_eq!((whole, messages.clone().count()), (payload.len(), count));
        }
        Accepted::Close { .. } => assert_eq!(packet[0], 0x15),
    }
}

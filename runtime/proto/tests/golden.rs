//! Bytes that must not change: what a version 1 peer built from any other release expects, written out by hand.

use tightbeam_proto::wire::message::{CLOSE_ACK, Cookie, HEADER, Kind, PACKED, Repr, Role, seal};
use tightbeam_proto::wire::{ENVELOPE, Envelope, UdpSum, checksum, control, ethernet, packed};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|d| (d[0] << 4 | d[1]) as u8).collect()
}

fn packet(header: Repr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    header.emit(&mut packet);
    packet.extend_from_slice(payload);
    seal(&mut packet);
    packet
}

const COOKIE: Cookie = Cookie::from_wire(0x1122_3344_5566_0007);

#[test]
fn a_message() {
    let header = Repr {
        handler: 0x0201,
        seq: 0x0403_0201,
        ..Repr::new(Kind::Data, COOKIE)
    };
    let expected =
        "11 00 0102 4c014056 0700665544332211 01020304 00000000 00000000 00000000 68656c6c6f";
    assert_eq!(packet(header, b"hello"), bytes(expected));
}

#[test]
fn each_kind_and_flag_has_its_number() {
    let first = |kind, flags| {
        let header = Repr {
            flags,
            ..Repr::new(kind, COOKIE)
        };
        let packet = packet(header, b"");
        (packet[0], packet[1])
    };
    let kinds = [
        Kind::Data,
        Kind::Hello,
        Kind::HelloAck,
        Kind::Retry,
        Kind::Close,
        Kind::Unknown,
        Kind::Ack,
        Kind::Credit,
        Kind::Busy,
        Kind::Probe,
    ];
    for (number, kind) in (0x11..).zip(kinds) {
        assert_eq!(first(kind, 0), (number, 0));
        assert_eq!(Kind::from_number(number & 0xf), Some(kind));
    }
    assert_eq!(first(Kind::Close, CLOSE_ACK), (0x15, 1));
    assert_eq!(first(Kind::Data, PACKED), (0x11, 8));
    let roles = [
        Role::Message,
        Role::Call,
        Role::Reply,
        Role::NoHandler,
        Role::NoReply,
    ];
    for (number, role) in (0..).zip(roles) {
        assert_eq!(Role::from_flags(number), Some(role));
        assert_eq!(role as u8, number);
    }
}

#[test]
fn what_the_sides_say_of_themselves() {
    let said = control::Repr {
        versions: (1, 2),
        class: control::Class::Reliable,
        refusal: Some(control::Refusal::Full),
        max_packet: 1472,
        max_message: 0x0102_0304,
        credit: 7,
        table: 0x1112_1314_1516_1718,
        cookie: COOKIE,
        incarnation: [0x21, 0x31],
        token: *b"0123456789abcdef",
    };
    let mut out = [0xff; 72];
    said.emit(&mut out);
    let expected = "01 02 01 02 c0050000 04030201 07000000 1817161514131211 0700665544332211
        2100000000000000 3100000000000000 30313233343536373839616263646566 0000000000000000";
    assert_eq!(out[..], bytes(expected));
    let read = control::Packet::new_checked(&out[..]).expect("long enough");
    assert_eq!(control::Repr::parse(&read), said);
}

#[test]
fn packed_messages() {
    let mut out = [0xff; 32];
    let used = packed::push(&mut out, 0, 0x0102, b"abcde").expect("room");
    let used = packed::push(&mut out, used, 3, b"").expect("room");
    let expected = "0500 0201 6162636465 0000 0300";
    assert_eq!(out[..used], bytes(expected));
}

#[test]
fn an_envelope() {
    let link = ethernet::Repr {
        destination: [2, 0, 0, 0, 0, 2],
        source: [2, 0, 0, 0, 0, 1],
    };
    let [from, to] = ["10.0.0.1:7000", "10.0.0.2:7001"].map(|a| a.parse().expect("an address"));
    let mut frame = [0; ENVELOPE + 2];
    frame[ENVELOPE..].copy_from_slice(b"hi");
    Envelope::new(link, from, to).seal(&mut frame, 2, UdpSum::Full);
    let expected = "020000000002 020000000001 0800
        45 00 001e 0000 4000 40 11 26cd 0a000001 0a000002
        1b58 1b59 000a 4cbd 6869";
    assert_eq!(frame[..], bytes(expected));
}

/// RFC 3720, appendix B.4.
#[test]
fn crc32c_of_the_rfc() {
    let up: Vec<u8> = (0..32).collect();
    let down: Vec<u8> = (0..32).rev().collect();
    let read = "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018
        28000000 00000000 02000000 00000000";
    let cases: [(&[u8], u32); 5] = [
        (&[0; 32], 0x8a91_36aa),
        (&[0xff; 32], 0x62a8_ab43),
        (&up, 0x46dd_794e),
        (&down, 0x113f_db5c),
        (&bytes(read), 0xd996_3a56),
    ];
    for (bytes, crc) in cases {
        assert_eq!(checksum::crc(bytes), crc);
        let (a, b) = bytes.split_at(13);
        assert_eq!(checksum::crc_append(checksum::crc(a), b), crc);
    }
}

//! `etherparse` as the second opinion on Ethernet, IPv4 and UDP, both ways, and any bytes for every view.

use core::net::{Ipv4Addr, SocketAddrV4};
use etherparse::{Ethernet2Header, Ipv4Header, PacketBuilder, SlicedPacket, UdpHeader};
use proptest::collection::vec;
use proptest::prelude::*;
use tightbeam_proto::wire::{
    Datagram, ENVELOPE, Envelope, Malformed, UdpSum, checksum, control, ethernet, ipv4, message,
    packed, udp,
};

fn address() -> impl Strategy<Value = SocketAddrV4> {
    (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV4::new(ip.into(), port))
}

fn link() -> impl Strategy<Value = ethernet::Repr> {
    any::<([u8; 6], [u8; 6])>().prop_map(|(destination, source)| ethernet::Repr {
        destination,
        source,
    })
}

/// A frame as etherparse builds it.
fn built(link: ethernet::Repr, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(link.source, link.destination)
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port());
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("it fits");
    frame
}

proptest! {
    #[test]
    fn ours_is_read_by_etherparse(
        (link, from, to) in (link(), address(), address()),
        payload in vec(any::<u8>(), 0..1600),
        full in any::<bool>(),
    ) {
        let mut frame = vec![0; ENVELOPE];
        frame.extend_from_slice(&payload);
        let sum = if full { UdpSum::Full } else { UdpSum::None };
        let len = Envelope::new(link, from, to).seal(&mut frame, payload.len(), sum);
        prop_assert_eq!(len, frame.len());

        let (ethernet, rest) = Ethernet2Header::from_slice(&frame).expect("Ethernet");
        prop_assert_eq!((ethernet.source, ethernet.destination), (link.source, link.destination));
        let (ip, rest) = Ipv4Header::from_slice(rest).expect("IPv4");
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        prop_assert_eq!((ip.source, ip.destination), (from.ip().octets(), to.ip().octets()));
        prop_assert!(ip.dont_fragment && !ip.is_fragmenting_payload());
        let (header, rest) = UdpHeader::from_slice(rest).expect("UDP");
        prop_assert_eq!((header.source_port, header.destination_port), (from.port(), to.port()));
        prop_assert_eq!(rest, &payload[..]);
        let right = header.calc_checksum_ipv4(&ip, rest).expect("short");
        prop_assert_eq!(header.checksum, if full { right } else { 0 });
    }

    #[test]
    fn etherparse_s_is_read_by_us(
        (link, from, to) in (link(), address(), address()),
        payload in vec(any::<u8>(), 0..1600),
        padding in 0_usize..50,
    ) {
        let mut frame = built(link, from, to, &payload);
        let bare = frame.len();
        frame.resize(bare + padding, 0xee);
        let read = Datagram::parse(&frame).expect("a good frame");
        prop_assert_eq!((read.link, read.source, read.destination), (link, from, to));
        prop_assert_eq!(read.payload, &payload[..]);
        prop_assert!(read.checksum_holds());
        // Ours is theirs, byte for byte, checksums included.
        let mut ours = vec![0; bare];
        ours[ENVELOPE..].copy_from_slice(&payload);
        Envelope::new(link, from, to).seal(&mut ours, payload.len(), UdpSum::Full);
        let ident = 18..20;
        if frame[ident] == [0, 0] {
            prop_assert_eq!(&ours[..], &frame[..bare]);
        }
    }

    #[test]
    fn a_changed_bit_is_seen(
        (link, from, to) in (link(), address(), address()),
        payload in vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let mut frame = built(link, from, to, &payload);
        let good = frame.clone();
        let at = at.index(frame.len() - ethernet::HEADER) + ethernet::HEADER;
        frame[at] ^= 1_u8 << bit;
        match Datagram::parse(&frame) {
            Err(_) => {}
            // Behind the IPv4 header only the UDP checksum covers it; a field of zero is none.
            Ok(read) => prop_assert!(!read.checksum_holds() || read.checksum == 0, "{:02x?} for {:02x?}", frame, good),
        }
    }

    #[test]
    fn whatever_is_accepted_is_emitted_again(mut bytes in vec(any::<u8>(), 0..120), near in any::<bool>()) {
        if near && bytes.len() >= ENVELOPE {
            bytes[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
            let total = (bytes.len() - ethernet::HEADER) as u16;
            bytes[16..18].copy_from_slice(&total.to_be_bytes());
            bytes[20] &= 0x40;
            bytes[21] = 0;
            bytes[23] = ipv4::UDP;
            bytes[24..26].fill(0);
            let sum = checksum::finish(checksum::sum(&bytes[14..34], 0));
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            bytes[38] = 0;
            bytes[39] %= 90;
        }
        again(&bytes)?;
    }

    #[test]
    fn packed_messages_come_out_as_they_went_in(messages in vec((any::<u16>(), vec(any::<u8>(), 0..40)), 1..30)) {
        let mut out = [0; 2000];
        let mut used = 0;
        for (handler, message) in &messages {
            used = packed::push(&mut out, used, *handler, message).expect("room");
        }
        let read = packed::Packed::new_checked(&out[..used], messages.len() as u16).expect("whole");
        prop_assert_eq!(read.len(), messages.len());
        let read: Vec<_> = read.map(|(handler, message)| (handler, message.to_vec())).collect();
        prop_assert_eq!(&read, &messages);
        for count in [0, messages.len() as u16 - 1, messages.len() as u16 + 1] {
            prop_assert!(packed::Packed::new_checked(&out[..used], count).is_err());
        }
        prop_assert!(packed::Packed::new_checked(&out[..used - 1], messages.len() as u16).is_err());
    }

    #[test]
    fn any_payload_is_packed_messages_or_is_not(payload in vec(0_u8..12, 0..80), count in 0_u16..8) {
        if let Ok(read) = packed::Packed::new_checked(&payload, count) {
            let whole: usize = read.clone().map(|(_, message)| packed::room(message.len())).sum();
            prop_assert_eq!((read.count(), whole), (usize::from(count), payload.len()));
        }
    }

    #[test]
    fn any_sum_patched_is_the_sum(mut bytes in vec(any::<u8>(), 2..60), at in any::<prop::sample::Index>(), value in any::<u16>()) {
        let at = at.index(bytes.len() / 2) * 2;
        let before = checksum::finish(checksum::sum(&bytes, 0));
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        let after = checksum::finish(checksum::sum(&bytes, 0));
        let patched = checksum::patched(before, old, value);
        // Zero has two forms in ones' complement.
        prop_assert!(patched == after || patched ^ after == 0xffff && [patched, after].contains(&0));
    }
}

/// Every view over these bytes: a reason, or a value that says them again.
fn again(bytes: &[u8]) -> Result<(), TestCaseError> {
    let _ = Datagram::parse(bytes);
    let _ = SlicedPacket::from_ethernet(bytes);
    let mut out = [0; ENVELOPE];
    let Ok(frame) = ethernet::Packet::new_checked(bytes) else {
        return Ok(());
    };
    let Ok(repr) = ethernet::Repr::parse(&frame) else {
        return Ok(());
    };
    repr.emit(&mut out);
    let Ok(packet) = ipv4::Packet::new_checked(frame.payload()) else {
        return Ok(());
    };
    let Ok(repr) = ipv4::Repr::parse(&packet) else {
        return Ok(());
    };
    repr.emit(&mut out[ethernet::HEADER..]);
    prop_assert_eq!(&out[..34], &bytes[..34]);
    let Ok(packet) = udp::Packet::new_checked(packet.payload()) else {
        return Ok(());
    };
    udp::Repr::parse(&packet).emit(&mut out[34..]);
    prop_assert_eq!(&out[..], &bytes[..ENVELOPE]);
    Ok(())
}

proptest! {
    #[test]
    fn any_header_is_refused_or_emitted_again(mut bytes in vec(any::<u8>(), 0..100), near in any::<bool>(), sealed in any::<bool>()) {
        if near && bytes.len() >= message::HEADER {
            bytes[0] = 0x10 | bytes[0] & 0xf;
            bytes[1] &= 0xf;
        }
        if sealed && bytes.len() >= message::HEADER {
            message::seal(&mut bytes);
        }
        let Ok(packet) = message::Packet::new_checked(&bytes[..]) else {
            return Ok(());
        };
        match message::Repr::parse(&packet) {
            Err(error) => prop_assert_eq!(error, Malformed::Checksum { of: "message" }),
            Ok(repr) => {
                let mut out = bytes.clone();
                out[..message::HEADER].fill(0xaa);
                repr.emit(&mut out);
                message::seal(&mut out);
                prop_assert_eq!(out, bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_said_is_said_again(bytes in vec(any::<u8>(), 0..100)) {
        match control::Packet::new_checked(&bytes[..]) {
            Err(_) => prop_assert!(bytes.len() < control::CONTROL),
            Ok(packet) => {
                let mut out = [0xaa; control::CONTROL];
                control::Repr::parse(&packet).emit(&mut out);
                prop_assert_eq!(&out[..], &bytes[..control::CONTROL]);
            }
        }
    }
}

/// What stays the kernel's, or nobody's.
#[test]
fn foreign_frames_are_refused_by_name() {
    let link = ethernet::Repr {
        destination: [2; 6],
        source: [4; 6],
    };
    let ends = [1, 2].map(|n| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 7000));
    let good = built(link, ends[0], ends[1], b"payload of some length");
    let changed = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        Datagram::parse(&frame).expect_err("foreign")
    };
    let foreign = |error: Malformed| matches!(error, Malformed::Foreign { .. });
    assert!(Datagram::parse(&good).is_ok());
    assert!(foreign(changed(12, 0x81)), "VLAN");
    assert!(foreign(changed(14, 0x46)), "IP options");
    assert!(foreign(changed(14, 0x65)), "IPv6");
    assert!(foreign(changed(20, 0x20)), "more fragments");
    assert!(foreign(changed(21, 0x01)), "a later fragment");
    assert!(
        matches!(changed(22, 63), Malformed::Checksum { .. }),
        "a checksum"
    );
    assert!(
        matches!(changed(17, 200), Malformed::Short { .. }),
        "cut off"
    );
    assert!(
        matches!(changed(39, 7), Malformed::Short { .. }),
        "UDP shorter than its header"
    );
    assert!(
        matches!(changed(38, 1), Malformed::Short { .. }),
        "UDP longer than IP"
    );
    for cut in 0..good.len() {
        assert!(Datagram::parse(&good[..cut]).is_err());
    }
}

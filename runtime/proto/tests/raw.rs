//! Raw channels against the faults of a network. Names of the tests carry the rows of the fault catalogue (N1 to N16).

mod support;

use std::collections::HashSet;
use support::{Faults, Link, Rng, long, seed};
use tightbeam_proto::raw::{
    Accepted, Answer, Counter, Outgoing, Receiver, Refused, Seen, Sender, TooLarge, WINDOW, Window,
};
use tightbeam_proto::wire::message::{
    CLOSE_ACK, Cookie, HEADER, Kind, PACKED, Packet, Repr, Role, seal,
};
use tightbeam_proto::wire::packed;

const COOKIE: Cookie = Cookie::new(5, 0x0123_4567_89ab_cdef);
const MAX: usize = 1472;

fn pair() -> (Sender, Receiver) {
    (Sender::new(COOKIE, MAX), Receiver::new(COOKIE))
}

fn write(sender: &mut Sender, outgoing: Outgoing, handler: u16, message: &[u8]) -> Vec<u8> {
    let mut out = [0xee; MAX];
    let written = sender
        .write(&mut out, outgoing, handler, message)
        .expect("short");
    out[..written.len].to_vec()
}

fn sealed(header: Repr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    header.emit(&mut packet);
    packet.extend_from_slice(payload);
    seal(&mut packet);
    packet
}

#[test]
fn what_is_written_is_accepted() {
    let (mut sender, mut receiver) = pair();
    let message = write(&mut sender, Outgoing::Message, 9, b"one");
    let call = write(&mut sender, Outgoing::Call, 8, b"");
    assert_eq!(
        receiver.accept(&message),
        Ok(Accepted::Message {
            handler: 9,
            bytes: b"one"
        })
    );
    let accepted = Accepted::Call {
        handler: 8,
        call: 1,
        bytes: b"",
    };
    assert_eq!(receiver.accept(&call), Ok(accepted));
    for answer in [Answer::Reply, Answer::NoHandler, Answer::NoReply] {
        let outgoing = Outgoing::Answer {
            call: 0xffff_fff0,
            answer,
        };
        let packet = write(&mut sender, outgoing, 0, b"two");
        let accepted = Accepted::Answer {
            call: 0xffff_fff0,
            answer,
            bytes: b"two",
        };
        assert_eq!(receiver.accept(&packet), Ok(accepted));
    }
    assert_eq!(receiver.counters().get(Counter::Accepted), 5);
    assert_eq!(receiver.counters().get(Counter::Lost), 0);
}

/// The header that was made ready is the one that would have been written.
#[test]
fn the_ready_header_is_the_header() {
    let mut sender = Sender::starting_at(COOKIE, MAX, u32::MAX);
    for seq in [u32::MAX, 0, 1] {
        let outgoing = Outgoing::Answer {
            call: 77,
            answer: Answer::NoReply,
        };
        assert_eq!(sender.next_seq(), seq);
        let packet = write(&mut sender, outgoing, 3, b"payload");
        let header = Repr {
            flags: Role::NoReply as u8,
            handler: 3,
            seq,
            ack: 77,
            ..Repr::new(Kind::Data, COOKIE)
        };
        assert_eq!(packet, sealed(header, b"payload"));
    }
    assert_eq!(sender.peer(), COOKIE);
}

#[test]
fn too_large_is_refused_before_anything_is_written() {
    let (mut sender, _) = pair();
    let mut out = [0xee; MAX + 10];
    let most = sender.max_message();
    assert_eq!(most, MAX - HEADER);
    let message = [1; MAX];
    let refused = sender.write(&mut out, Outgoing::Message, 1, &message[..most + 1]);
    let (len, max) = (most + 1, most);
    assert_eq!(refused, Err(TooLarge { len, max }));
    let refused = sender.write(&mut out[..40], Outgoing::Message, 1, &message[..9]);
    assert_eq!(refused, Err(TooLarge { len: 9, max: 8 }));
    let refused = sender.write(&mut out[..31], Outgoing::Message, 1, b"");
    assert_eq!(refused, Err(TooLarge { len: 0, max: 0 }));
    assert_eq!((out, sender.next_seq()), ([0xee; MAX + 10], 0));
    let written = sender.write(&mut out, Outgoing::Message, 1, &message[..most]);
    assert_eq!(written.map(|w| (w.len, w.seq)), Ok((MAX, 0)));
    sender.set_max_packet(100);
    assert_eq!(sender.max_message(), 68);
}

#[test]
fn a_backlog_shares_packets() {
    let (mut sender, mut receiver) = pair();
    let mut out = [0; MAX];
    assert_eq!(sender.pack(&mut out).finish(), None, "nothing to send");
    assert!(
        !sender.pack(&mut out[..20]).push(0, b""),
        "not even a header"
    );
    let mut pack = sender.pack(&mut out);
    let mut count = 0;
    while pack.push(count, &[count as u8; 12]) {
        count += 1;
    }
    assert_eq!(
        (pack.count(), usize::from(count)),
        (count, (MAX - HEADER) / 16)
    );
    let written = pack.finish().expect("messages");
    assert_eq!((written.len, written.seq, sender.next_seq()), (MAX, 0, 1));
    let Ok(Accepted::Packed(messages)) = receiver.accept(&out) else {
        panic!("packed");
    };
    for (n, (handler, message)) in messages.enumerate() {
        assert_eq!((usize::from(handler), message), (n, &[n as u8; 12][..]));
        count -= 1;
    }
    assert_eq!(count, 0);
}

/// A peer that packs badly: refused whole, and its number stays lost.
#[test]
fn packed_messages_that_are_not_whole() {
    let mut payload = [0; 32];
    let used = packed::push(&mut payload, 0, 1, b"abc").expect("room");
    let used = packed::push(&mut payload, used, 2, b"d").expect("room");
    let header = |count, seq| Repr {
        flags: PACKED,
        handler: count,
        seq,
        ..Repr::new(Kind::Data, COOKIE)
    };
    let (_, mut receiver) = pair();
    for (count, used) in [
        (0, 0),
        (1, used),
        (3, used),
        (2, used - 1),
        (2, used + 1),
        (2, 0),
    ] {
        let packet = sealed(header(count, 0), &payload[..used]);
        assert_eq!(receiver.accept(&packet), Err(Refused::Packed));
    }
    assert_eq!(receiver.counters().get(Counter::Packed), 6);
    assert!(
        receiver
            .accept(&sealed(header(2, 1), &payload[..used]))
            .is_ok()
    );
    assert_eq!(receiver.counters().get(Counter::Lost), 1);
}

/// N2, situation by situation: each number, and what is to be said of it.
#[test]
fn n02_the_window_case_by_case() {
    let (new, late) = (|skipped| Seen::New { skipped }, Seen::Late);
    let (reordered, duplicate) = (Seen::Reordered, Seen::Duplicate);
    let w = WINDOW;
    let rows: &[(&str, &[(u32, Seen)])] = &[
        (
            "in order",
            &[
                (0, new(0)),
                (1, new(0)),
                (2, new(0)),
                (1, duplicate),
                (2, duplicate),
                (0, duplicate),
            ],
        ),
        (
            "a gap that is filled",
            &[
                (0, new(0)),
                (9, new(8)),
                (8, reordered),
                (1, reordered),
                (8, duplicate),
                (9, duplicate),
            ],
        ),
        (
            "the first ones never came",
            &[(5, new(5)), (0, reordered), (0, duplicate), (4, reordered)],
        ),
        (
            "before the first",
            &[
                (0, new(0)),
                (u32::MAX, duplicate),
                (u32::MAX - 62, duplicate),
                (u32::MAX - 63, late),
            ],
        ),
        (
            "the last of the window",
            &[(w, new(w)), (1, reordered), (0, late), (1, duplicate)],
        ),
        (
            "the window moves by one",
            &[
                (w - 1, new(w - 1)),
                (0, reordered),
                (w, new(0)),
                (0, late),
                (1, reordered),
            ],
        ),
        (
            "a jump of the window less one",
            &[
                (0, new(0)),
                (w - 1, new(w - 2)),
                (0, duplicate),
                (1, reordered),
            ],
        ),
        (
            "a jump of the window",
            &[(0, new(0)), (w, new(w - 1)), (0, late), (1, reordered)],
        ),
        (
            "a jump over the window",
            &[
                (0, new(0)),
                (4 * w, new(4 * w - 1)),
                (3 * w + 1, reordered),
                (3 * w, late),
                (0, late),
            ],
        ),
        (
            "the widest jump",
            &[
                (0, new(0)),
                (1 << 31, new((1 << 31) - 1)),
                (2, late),
                (1 << 31, duplicate),
            ],
        ),
        (
            "half the numbers away",
            &[(0, new(0)), ((1 << 31) + 1, late)],
        ),
        (
            "backwards",
            &[
                (w + 3, new(w + 3)),
                (w + 2, reordered),
                (w + 1, reordered),
                (4, reordered),
                (3, late),
            ],
        ),
    ];
    for (name, cases) in rows {
        // Wherever the numbers begin, also about where they wrap.
        for first in [
            0,
            1,
            u32::MAX,
            u32::MAX - 7,
            u32::MAX - w,
            1 << 31,
            (1 << 31) - 5,
        ] {
            let mut window = Window::new(first);
            for (n, (seq, seen)) in cases.iter().enumerate() {
                let said = window.see(seq.wrapping_add(first));
                assert_eq!(said, *seen, "{name}, from {first}, step {n}");
            }
        }
    }
}

/// N2: any numbers, against a set that forgets nothing.
#[test]
fn n02_the_window_against_a_set() {
    let mut rng = Rng::new(seed("window"));
    for _ in 0..long(1000) {
        let first = rng.word() as u32 % 200;
        let (mut window, mut set, mut highest) =
            (Window::new(first.wrapping_sub(100)), HashSet::new(), -1);
        for _ in 0..20_000 {
            let step = match rng.below(50) {
                0 => rng.below(200) as i64,
                _ => rng.below(8) as i64,
            };
            let number = (highest + step - rng.below(70) as i64).max(0);
            let seq = (number as u32).wrapping_add(first.wrapping_sub(100));
            let expected = if number > highest {
                let skipped = (number - highest - 1) as u32;
                Seen::New { skipped }
            } else if highest - number >= i64::from(WINDOW) {
                Seen::Late
            } else if set.contains(&number) {
                Seen::Duplicate
            } else {
                Seen::Reordered
            };
            assert_eq!(window.see(seq), expected, "{number} after {highest}");
            set.insert(number);
            highest = highest.max(number);
        }
    }
}

/// N3: each single bit, a burst, and edits that keep a ones' complement sum, all over a packet.
#[test]
fn n03_damage_is_seen() {
    let (mut sender, receiver) = pair();
    let good = write(
        &mut sender,
        Outgoing::Call,
        0x0102,
        b"a payload, of which two words change places",
    );
    let refused = |packet: &[u8]| receiver.clone().accept(packet).expect_err("damaged");
    let mut causes = HashSet::new();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        causes.insert(refused(&bad));
    }
    let expected = [
        Refused::Version,
        Refused::Kind,
        Refused::Cookie,
        Refused::Crc,
    ];
    assert_eq!(causes, HashSet::from(expected));
    for from in 0..good.len() - 4 {
        let mut bad = good.clone();
        bad[from..from + 4].fill(0x5a);
        refused(&bad);
    }
    for from in (HEADER..good.len() - 4).step_by(2) {
        let mut bad = good.clone();
        let (left, right) = bad[from..from + 4].split_at_mut(2);
        left.swap_with_slice(right);
        if bad != good {
            assert_eq!(refused(&bad), Refused::Crc);
        }
    }
    assert!(receiver.clone().accept(&good).is_ok());
}

/// N4: shorter, longer, nothing, and each kind that has no place on a Raw channel.
#[test]
fn n04_short_long_and_foreign_packets() {
    let (mut sender, mut receiver) = pair();
    let good = write(&mut sender, Outgoing::Message, 1, b"payload");
    for cut in 0..good.len() {
        let cause = if cut < HEADER {
            Refused::Short
        } else {
            Refused::Crc
        };
        assert_eq!(receiver.accept(&good[..cut]), Err(cause));
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(receiver.accept(&longer), Err(Refused::Crc));
    for first in 0..=255 {
        for flags in 0..=255 {
            let mut packet = good.clone();
            (packet[0], packet[1]) = (first, flags);
            seal(&mut packet);
            let data = first == 0x11 && flags < 5;
            let close = first == 0x15 && flags & !CLOSE_ACK == 0;
            let accepted = receiver.clone().accept(&packet).is_ok();
            assert_eq!(accepted, data || close, "{first:#x} {flags:#x}");
        }
    }
    assert_eq!(receiver.counters().get(Counter::Short), HEADER as u64);
}

/// N6: what was meant for an earlier life of the channel, with the same slot, is not heard in this one.
#[test]
fn n06_nothing_of_an_earlier_channel() {
    let mut rng = Rng::new(seed("restarts"));
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for _ in 0..10_000 {
        let cookie = Cookie::new(5, rng.word());
        let mut sender = Sender::new(cookie, MAX);
        let mut receiver = Receiver::new(cookie);
        for packet in earlier.iter().rev().take(5) {
            assert_eq!(receiver.accept(packet), Err(Refused::Cookie));
        }
        let packet = write(&mut sender, Outgoing::Call, 1, b"of this life");
        assert!(receiver.accept(&packet).is_ok());
        earlier.push(packet);
    }
}

/// N7: random packets, and good ones whose cookie, and then CRC, is made anew by someone who does not know it.
#[test]
fn n07_blind_forgery() {
    let mut rng = Rng::new(seed("forgery"));
    let (mut sender, mut receiver) = pair();
    let good = write(&mut sender, Outgoing::Call, 1, b"seen on another link");
    let rounds = 1_000_000 * long(100) as u64;
    for round in 0..rounds {
        let mut packet = good.clone();
        match round % 4 {
            0 => {
                let len = 20 + rng.below(40) as usize;
                packet = rng.bytes(len);
            }
            1 => {
                let guess = Cookie::new(COOKIE.slot(), rng.word());
                packet[8..16].copy_from_slice(&guess.to_wire().to_le_bytes());
                seal(&mut packet);
            }
            2 => {
                let bit = rng.below(48) + 16;
                let near = COOKIE.to_wire() ^ 1 << bit;
                packet[8..16].copy_from_slice(&near.to_le_bytes());
                seal(&mut packet);
            }
            _ => {
                let at = rng.below(packet.len() as u64) as usize;
                packet[at] ^= 1 << rng.below(8);
            }
        }
        assert!(receiver.accept(&packet).is_err(), "{packet:02x?}");
    }
    let counters = receiver.counters();
    let refused = counters.iter().map(|(_, count)| count).sum::<u64>();
    assert_eq!((refused, counters.get(Counter::Accepted)), (rounds, 0));
    assert!(receiver.accept(&good).is_ok(), "the window has not moved");
}

/// N1, N2, N3, N13: over a bad link each call is executed at most once, and every packet is counted, once on each side of the account.
#[test]
fn n13_at_most_once_and_every_loss_counted() {
    let mut rng = Rng::new(seed("at most once"));
    let profiles = [
        (0, 0, 0, 0),
        (1, 5, 1, 10),
        (20, 0, 0, 0),
        (30, 50, 5, 300),
        (0, 100, 0, 40),
        (5, 5, 50, 100),
    ];
    for (lose, duplicate, damage, jitter) in profiles {
        for first in [0, u32::MAX - 500] {
            let faults = Faults {
                lose,
                duplicate,
                damage,
                jitter,
                delay: 5,
                widest: None,
            };
            at_most_once(faults, first, &mut rng);
        }
    }
}

fn at_most_once(faults: Faults, first: u32, rng: &mut Rng) {
    let mut link = Link::new(faults);
    let mut sender = Sender::starting_at(COOKIE, MAX, first);
    let mut receiver = Receiver::starting_at(COOKIE, first);
    let (mut executed, mut arrived) = (HashSet::new(), 0);
    const CALLS: u64 = 2_000;
    for now in 0..CALLS + 1_000 {
        if now < CALLS {
            let packet = write(&mut sender, Outgoing::Call, 1, &now.to_le_bytes());
            link.send(now, &packet, rng);
        }
        while let Some(packet) = link.arrived(now) {
            arrived += 1;
            if let Ok(Accepted::Call { bytes, call, .. }) = receiver.accept(&packet) {
                assert!(executed.insert(bytes.to_vec()), "executed twice");
                let number = u64::from(call.wrapping_sub(first));
                assert_eq!(bytes, number.to_le_bytes(), "whole");
            }
        }
    }
    // The last ones may have been lost too: the close says how many there were.
    let mut close = [0; HEADER];
    sender.close(&mut close, false);
    for _ in 0..2 {
        let closed = receiver.accept(&close);
        assert_eq!(closed, Ok(Accepted::Close { answers: false }));
    }
    let counters = receiver.counters();
    let accepted = counters.get(Counter::Accepted);
    assert_eq!(accepted, executed.len() as u64);
    assert_eq!(
        accepted + counters.get(Counter::Lost),
        CALLS,
        "sent = accepted + lost"
    );
    let no_refusal = [
        Counter::Accepted,
        Counter::Lost,
        Counter::Reordered,
        Counter::Closes,
    ];
    let refused = counters.iter().filter(|(c, _)| !no_refusal.contains(c));
    let refused: u64 = refused.map(|(_, count)| count).sum();
    assert_eq!(accepted + refused, arrived, "arrived = accepted + refused");
    if (faults.lose, faults.damage, faults.jitter) == (0, 0, 0) {
        assert_eq!(accepted, CALLS);
    }
}

#[test]
fn a_close_may_come_twice_late_and_before_what_it_closes() {
    let (mut sender, mut receiver) = pair();
    let first = write(&mut sender, Outgoing::Message, 1, b"first");
    let mut close = [0; HEADER];
    assert_eq!(sender.close(&mut close, true), HEADER);
    let _lost = write(&mut sender, Outgoing::Message, 1, b"after");
    assert_eq!(
        receiver.accept(&close),
        Ok(Accepted::Close { answers: true })
    );
    assert_eq!(receiver.counters().get(Counter::Lost), 1);
    assert!(receiver.accept(&first).is_ok(), "overtaken by the close");
    assert!(receiver.accept(&close).is_ok());
    let counters = receiver.counters();
    let counts = [Counter::Lost, Counter::Reordered, Counter::Closes].map(|c| counters.get(c));
    assert_eq!(counts, [0, 1, 2]);
}

#[test]
fn cookies_are_never_none_and_keep_their_slot() {
    for random in [0, 1, 0xffff, 0x1_0000, u64::MAX] {
        for slot in [0, 1, u16::MAX] {
            let cookie = Cookie::new(slot, random);
            assert_eq!(cookie.slot(), slot);
            assert!(cookie.to_wire() >> 16 != 0 && cookie != Cookie::NONE);
            assert_eq!(Cookie::from_wire(cookie.to_wire()), cookie);
        }
    }
    let packet = sealed(Repr::new(Kind::Data, COOKIE), b"");
    let seen = Packet::new_checked(&packet[..]).expect("a header");
    assert_eq!(seen.cookie(), COOKIE);
}

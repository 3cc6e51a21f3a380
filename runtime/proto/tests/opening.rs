//! The opening exchange against who does not play by the rules. Names of the tests carry the rows of the fault catalogue.

mod support;

use core::net::{Ipv4Addr, SocketAddrV4};
use support::{Rng, long, seed};
use tightbeam_proto::opening::{
    Agreed, Class, Client, Counter, Heard, Ignored, Offer, Progress, Refusal, SHORTEST, Server,
    TOKEN_LIFE, Turn, Unknown, Wish, unknown_cookie,
};
use tightbeam_proto::raw::{Accepted, Outgoing, Receiver, Refused, Sender};
use tightbeam_proto::wire::control;
use tightbeam_proto::wire::message::{self, Cookie, HEADER, Kind, Packet, Repr, seal};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4000);
const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 4000);
const SECOND: u64 = 1_000_000_000;
const OURS: Cookie = Cookie::new(7, 0xc11e_4700_0000);
const THEIRS: Cookie = Cookie::new(9, 0x5e7e_4100_0000);
type Buffer = [u8; 1472];

fn client() -> Client {
    Client::new(Offer::raw(1472), OURS, [1, 2], 60 * SECOND, 0)
}

fn server() -> Server {
    Server::new(Offer::raw(1472), [3, 4])
}

fn hello(client: &mut Client, now: u64) -> Vec<u8> {
    let mut out: Buffer = [0; 1472];
    match client.turn(now, &mut out) {
        Turn::Send(len) => out[..len].to_vec(),
        other => panic!("{other:?}"),
    }
}

/// What the server answers without asking anybody.
fn answer(server: &mut Server, now: u64, from: SocketAddrV4, packet: &[u8]) -> Vec<u8> {
    let mut out: Buffer = [0; 1472];
    match server.handle(now, from, packet, &mut out) {
        Heard::Answer(len) | Heard::Again { len, .. } => out[..len].to_vec(),
        other => panic!("{other:?}"),
    }
}

fn wish(server: &mut Server, now: u64, from: SocketAddrV4, packet: &[u8]) -> Option<Wish> {
    match server.handle(now, from, packet, &mut [0; 1472]) {
        Heard::Wish(wish) => Some(wish),
        _ => None,
    }
}

/// A client whose next HELLO carries a token that the server has given it, and that HELLO.
fn with_token(server: &mut Server, client: &mut Client, now: u64) -> Vec<u8> {
    let first = hello(client, now);
    let retry = answer(server, now, CLIENT, &first);
    assert_eq!(client.handle(now, &retry), Progress::Again);
    hello(client, now)
}

fn open(server: &mut Server, client: &mut Client) -> (Agreed, Agreed, Vec<u8>, Vec<u8>) {
    let hello = with_token(server, client, 0);
    let wish = wish(server, 0, CLIENT, &hello).expect("a wish");
    let mut out: Buffer = [0; 1472];
    let (len, theirs) = server.accept(&wish, THEIRS, [5, 6], &mut out);
    let ack = out[..len].to_vec();
    let Progress::Opened(ours) = client.handle(0, &ack) else {
        panic!("opened");
    };
    (ours, theirs, hello, ack)
}

#[test]
fn a_repeated_hello_gets_the_same_answer_and_no_second_channel() {
    let (mut server, mut client) = (server(), client());
    let (.., hello, ack) = open(&mut server, &mut client);
    for _ in 0..3 {
        assert_eq!(answer(&mut server, SECOND, CLIENT, &hello), ack);
    }
    let counters = server.counters();
    assert_eq!((server.open(), counters.get(Counter::Again)), (1, 3));
    assert_eq!(counters.get(Counter::Accepted), 1);
    // When the channel has ended, it is a wish again, as long as the token lives.
    server.closed(THEIRS);
    assert_eq!(server.open(), 0);
    assert!(wish(&mut server, SECOND, CLIENT, &hello).is_some());
    assert!(wish(&mut server, 3 * TOKEN_LIFE, CLIENT, &hello).is_none());
}

/// N16: two clients that took the same random numbers from a snapshot are two, as long as one thing differs.
#[test]
fn n16_clones_of_a_client_do_not_share_a_channel() {
    let (mut server, mut first) = (server(), client());
    open(&mut server, &mut first);
    let mut clone = Client::new(
        Offer::raw(1472),
        Cookie::new(7, 0xffff_0000),
        [1, 2],
        60 * SECOND,
        0,
    );
    let hello = with_token(&mut server, &mut clone, 0);
    assert!(
        wish(&mut server, 0, CLIENT, &hello).is_some(),
        "another cookie"
    );
    // And the tokens of a server that was cloned are worth nothing after it has changed its key, twice.
    let mut cloned = server.clone();
    cloned.change_key([8, 8]);
    assert!(
        wish(&mut cloned, 0, CLIENT, &hello).is_some(),
        "still under way"
    );
    cloned.change_key([9, 9]);
    assert!(wish(&mut cloned, 0, CLIENT, &hello).is_none());
}

/// N7, N10: a token is good for the address, cookie and incarnation that it was made for, and for its time.
#[test]
fn n07_a_token_is_nobody_else_s() {
    let (mut server, mut client) = (server(), client());
    let good = with_token(&mut server, &mut client, 0);
    assert!(wish(&mut server, 0, CLIENT, &good).is_some());
    assert!(wish(&mut server, TOKEN_LIFE, CLIENT, &good).is_some());
    assert!(
        wish(&mut server, 2 * TOKEN_LIFE, CLIENT, &good).is_none(),
        "too old"
    );
    assert!(wish(&mut server, 0, OTHER, &good).is_none(), "another host");
    let port = SocketAddrV4::new(*CLIENT.ip(), 4001);
    assert!(wish(&mut server, 0, port, &good).is_none(), "another port");
    // Each byte of cookie, incarnation and token.
    for at in HEADER + 24..HEADER + control::CONTROL {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(wish(&mut server, 0, CLIENT, &bad).is_none(), "damaged");
        seal(&mut bad);
        assert!(wish(&mut server, 0, CLIENT, &bad).is_none(), "{at}");
    }
}

/// N7: what is not from the server, as far as its packets show, changes nothing.
#[test]
fn n07_forged_answers() {
    let (mut server, mut client) = (server(), client());
    let hello = with_token(&mut server, &mut client, 0);
    let wish = wish(&mut server, 0, CLIENT, &hello).expect("a wish");
    let mut ack: Buffer = [0; 1472];
    let (len, _) = server.accept(&wish, THEIRS, [5, 6], &mut ack);
    assert_eq!(len, 1472);
    let forged = |at: usize, byte: u8| {
        let mut forged = ack;
        forged[at] = byte;
        seal(&mut forged);
        client.clone().handle(0, &forged)
    };
    for (at, byte) in ack.iter().enumerate().take(16).skip(8) {
        assert_eq!(forged(at, !byte), Progress::Nothing, "another cookie");
    }
    assert_eq!(
        forged(HEADER, 2),
        Progress::Nothing,
        "a version that we have not"
    );
    assert_eq!(forged(HEADER + 2, 1), Progress::Nothing, "another class");
    assert_eq!(
        forged(HEADER + 5, 6),
        Progress::Nothing,
        "longer than we take"
    );
    let mut short = ack;
    short[HEADER + 4..HEADER + 8].copy_from_slice(&95_u32.to_le_bytes());
    seal(&mut short);
    assert_eq!(
        client.clone().handle(0, &short),
        Progress::Nothing,
        "no packet is that short"
    );
    let mut none = ack;
    none[HEADER + 24..HEADER + 32].fill(0);
    seal(&mut none);
    assert_eq!(
        client.clone().handle(0, &none),
        Progress::Nothing,
        "no cookie"
    );
    let mut rng = Rng::new(seed("forged answers"));
    for _ in 0..100_000 * long(10) {
        let len = 90 + rng.below(100) as usize;
        let mut packet = rng.bytes(len);
        let kind = [Kind::Retry, Kind::HelloAck][rng.below(2) as usize];
        Repr::new(kind, Cookie::new(OURS.slot(), rng.word())).emit(&mut packet);
        seal(&mut packet);
        assert_eq!(client.handle(0, &packet), Progress::Nothing);
    }
    assert!(matches!(client.handle(0, &ack), Progress::Opened(_)));
}

/// N9, N10: many HELLOs, true, false and random: nothing is kept, and no answer is longer than what it answers.
#[test]
fn n09_n10_a_flood_of_hellos_leaves_nothing_and_amplifies_nothing() {
    let mut rng = Rng::new(seed("flood"));
    let fresh = server();
    let mut server = fresh.clone();
    let (mut heard, mut said) = (0, 0);
    let mut out: Buffer = [0; 1472];
    let rounds = 100_000 * long(100) as u64;
    for round in 0..rounds {
        let from = SocketAddrV4::new((rng.word() as u32).into(), rng.word() as u16);
        let len = [SHORTEST, SHORTEST, SHORTEST + 4, 200, 40][rng.below(5) as usize];
        let mut packet = rng.bytes(len);
        if round % 8 != 0 {
            Repr::new(Kind::Hello, Cookie::NONE).emit(&mut packet);
            seal(&mut packet);
        }
        match server.handle(round, from, &packet, &mut out) {
            Heard::Answer(len) => {
                assert!(len <= packet.len());
                said += len;
            }
            Heard::Ignored(_) => {}
            other => panic!("{other:?}"),
        }
        heard += packet.len();
    }
    assert!(said > heard / 4, "most were answered: {said} of {heard}");
    assert!(said <= heard);
    assert_eq!(server.open(), 0);
    let counters = server.counters();
    let (ignored, retries) = (
        counters.get(Counter::Ignored),
        counters.get(Counter::Retries),
    );
    assert_eq!(ignored + retries, rounds);
    // But for its counters it is what it was before the first of them.
    let state = |server: &Server| {
        let shown = format!("{server:?}");
        let (state, _counters) = shown.split_once("counters").expect("they come last");
        state.to_owned()
    };
    assert_eq!(state(&server), state(&fresh));
}

#[test]
fn n09_answers_of_every_kind_are_no_longer_than_what_they_answer() {
    let (mut server, mut client) = (server(), client());
    for len in [SHORTEST, 200, 548, 1472] {
        let mut padded = hello_of(len);
        assert!(answer(&mut server, 0, CLIENT, &padded).len() <= len);
        let retry = answer(&mut server, 0, CLIENT, &padded);
        padded[HEADER + 48..SHORTEST].copy_from_slice(&retry[HEADER + 48..SHORTEST]);
        seal(&mut padded);
        let wish = wish(&mut server, 0, CLIENT, &padded).expect("a wish");
        let mut out: Buffer = [0; 1472];
        assert!(server.refuse(&wish, Refusal::Full, &mut out) <= len);
        let (given, agreed) = server.accept(&wish, THEIRS, [1, 1], &mut out);
        assert!(given <= len);
        assert_eq!(agreed.max_packet, len, "as wide as what has come");
        assert!(answer(&mut server, 0, CLIENT, &padded).len() <= len);
        server.closed(THEIRS);
    }
    let shortest = hello(&mut client, 0);
    let heard = server.handle(0, CLIENT, &shortest, &mut [0; SHORTEST - 1]);
    assert_eq!(heard, Heard::Ignored(Ignored::TooLong));
}

fn hello_of(len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    Repr::new(Kind::Hello, Cookie::NONE).emit(&mut packet);
    let said = control::Repr {
        versions: (1, 1),
        class: Class::Raw,
        refusal: None,
        max_packet: 1472,
        max_message: 1440,
        credit: 0,
        table: 0,
        cookie: OURS,
        incarnation: [7, len as u64],
        token: [0; control::TOKEN],
    };
    said.emit(&mut packet[HEADER..]);
    seal(&mut packet);
    packet
}

/// N4: a HELLO cut anywhere, any bit of it changed, other kinds, and a HELLO that is meant for a channel.
#[test]
fn n04_what_is_no_hello_is_ignored() {
    let (mut server, mut client) = (server(), client());
    let good = hello(&mut client, 0);
    let mut ignored = |packet: &[u8]| {
        let heard = server.handle(0, CLIENT, packet, &mut [0; 1472]);
        assert_eq!(heard, Heard::Ignored(Ignored::NotHello));
    };
    for cut in 0..good.len() {
        ignored(&good[..cut]);
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        ignored(&bad);
    }
    for first in (0..=255).filter(|&first| first != good[0]) {
        let mut other = good.clone();
        other[0] = first;
        seal(&mut other);
        ignored(&other);
    }
    let mut meant = good.clone();
    meant[8..16].copy_from_slice(&THEIRS.to_wire().to_le_bytes());
    seal(&mut meant);
    ignored(&meant);
}

#[test]
fn refusals_say_why() {
    let mut server = Server::new(
        Offer {
            versions: (2, 3),
            ..Offer::raw(1472)
        },
        [3, 4],
    );
    let mut client = client();
    let packet = with_token(&mut server, &mut client, 0);
    let refusal = answer(&mut server, 0, CLIENT, &packet);
    let (why, versions) = (Refusal::Version, (2, 3));
    assert_eq!(
        client.handle(0, &refusal),
        Progress::Refused { why, versions }
    );
    assert_eq!(server.counters().get(Counter::Version), 1);

    let offer = Offer {
        versions: (1, 2),
        class: Class::Reliable,
        ..Offer::raw(1472)
    };
    let mut client = Client::new(offer, OURS, [1, 2], SECOND, 0);
    let packet = with_token(&mut server, &mut client, 0);
    let wish = wish(&mut server, 0, CLIENT, &packet).expect("version 2 is common");
    assert_eq!(
        (wish.class(), wish.incarnation(), wish.from),
        (Class::Reliable, [1, 2], CLIENT)
    );
    for why in [
        Refusal::Full,
        Refusal::NotAdmitted,
        Refusal::Class,
        Refusal::Other(99),
    ] {
        let mut out: Buffer = [0; 1472];
        let len = server.refuse(&wish, why, &mut out);
        assert_eq!(
            client.handle(0, &out[..len]),
            Progress::Refused { why, versions }
        );
    }
    assert_eq!(
        (server.counters().get(Counter::Refused), server.open()),
        (4, 0)
    );
    let (_, agreed) = server.accept(&wish, THEIRS, [1, 1], &mut [0; 1472]);
    assert_eq!((agreed.version, agreed.class), (2, Class::Reliable));
}

/// N6: the server has restarted. What the client sends is answered with UNKNOWN, which it believes, and nobody else.
#[test]
fn n06_a_peer_that_has_restarted() {
    let (mut server, mut client) = (server(), client());
    let (ours, ..) = open(&mut server, &mut client);
    let mut sender = Sender::new(ours.theirs, ours.max_packet);
    let (mut packet, mut out): (Buffer, Buffer) = ([0; 1472], [0; 1472]);
    let written = sender
        .write(&mut packet, Outgoing::Message, 1, b"")
        .expect("short");
    // In the server's next life the slot may have another channel: the random bits tell.
    let next_life = Cookie::new(THEIRS.slot(), 0xaaaa_0000);
    let mut receiver = Receiver::new(next_life);
    assert_eq!(
        receiver.accept(&packet[..written.len]),
        Err(Refused::Cookie)
    );
    let packet = Packet::new_checked(&packet[..written.len]).expect("whole");
    let mut unknown = Unknown::new(10, 2);
    let len = unknown.answer(0, &packet, &mut out).expect("an answer");
    assert!(len <= written.len, "N9");
    let said = Packet::new_checked(&out[..len]).expect("whole");
    assert_eq!(
        unknown_cookie(&said),
        Some(ours.theirs),
        "it is about this channel"
    );
    // It says nothing to a channel itself, and is not answered: two sides do not throw it back and forth.
    assert_eq!(
        Receiver::new(ours.ours).accept(&out[..len]),
        Err(Refused::Cookie)
    );
    assert_eq!(unknown.answer(0, &said, &mut [0; HEADER]), None);
    let mut damaged = out[..len].to_vec();
    damaged[17] ^= 1;
    let damaged = Packet::new_checked(&damaged[..]).expect("a header");
    assert_eq!(unknown_cookie(&damaged), None);
}

#[test]
fn unknown_is_said_at_a_limited_rate() {
    let mut packet: Buffer = [0; 1472];
    let written = Sender::new(THEIRS, 1472)
        .write(&mut packet, Outgoing::Message, 1, b"x")
        .expect("short");
    let good = Packet::new_checked(&packet[..written.len]).expect("whole");
    let mut unknown = Unknown::new(10, 5);
    let mut say = |now| {
        (0..100)
            .filter(|_| unknown.answer(now, &good, &mut [0; 64]).is_some())
            .count()
    };
    assert_eq!(say(0), 5, "the burst");
    assert_eq!(say(SECOND / 20), 0);
    assert_eq!(say(SECOND / 10), 1);
    assert_eq!(say(0), 0, "a clock that goes back earns nothing");
    assert_eq!(say(SECOND), 5, "no more than the burst is saved");
    assert_eq!(say(u64::MAX), 5);
    let mut damaged = packet;
    damaged[written.len - 1] ^= 1;
    let damaged = Packet::new_checked(&damaged[..written.len]).expect("a header");
    assert_eq!(
        Unknown::new(10, 5).answer(0, &damaged, &mut [0; 64]),
        None,
        "guessed or broken: not worth an answer"
    );
}

#[test]
fn a_close_is_answered_or_unknown() {
    let (mut server, mut client) = (server(), client());
    let (ours, theirs, ..) = open(&mut server, &mut client);
    let (sender, mut receiver) = (Sender::new(ours.theirs, 1472), Receiver::new(theirs.ours));
    let mut close = [0; HEADER];
    sender.close(&mut close, false);
    assert_eq!(
        receiver.accept(&close),
        Ok(Accepted::Close { answers: false })
    );
    let mut answer = [0; HEADER];
    Sender::new(theirs.theirs, 1472).close(&mut answer, true);
    assert_eq!(
        Receiver::new(ours.ours).accept(&answer),
        Ok(Accepted::Close { answers: true })
    );
    // The answer was lost, and the server has forgotten: UNKNOWN says as much. The answer to a close is not answered.
    let mut unknown = Unknown::new(10, 2);
    let close = Packet::new_checked(&close[..]).expect("whole");
    let mut out = [0; HEADER];
    assert_eq!(unknown.answer(0, &close, &mut out), Some(HEADER));
    let said = message::Packet::new_checked(&out[..]).expect("whole");
    assert_eq!(unknown_cookie(&said), Some(ours.theirs));
    let answer = Packet::new_checked(&answer[..]).expect("whole");
    assert_eq!(unknown.answer(0, &answer, &mut out), None);
}

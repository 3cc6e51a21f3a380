//! Client and server against each other, over a link that has every fault. Names of the tests carry the rows of the fault catalogue.

mod support;

use core::net::SocketAddrV4;
use std::collections::HashMap;
use support::{Faults, Link, Rng, long, seed};
use tightbeam_proto::opening::{Agreed, Client, Heard, Offer, Progress, SHORTEST, Server, Turn};
use tightbeam_proto::raw::{Accepted, Counter, Outgoing, Receiver, Sender};
use tightbeam_proto::wire::message::Cookie;

const MS: u64 = 1_000_000;
const PATIENCE: u64 = 20_000 * MS;
const CLIENT: SocketAddrV4 = SocketAddrV4::new(core::net::Ipv4Addr::new(10, 0, 0, 1), 4000);

/// A client and a server, a link each way, and a clock that moves from event to event.
struct Pair {
    now: u64,
    rng: Rng,
    client: Client,
    server: Server,
    there: Link,
    back: Link,
    /// Channels that the server has opened, by its cookie; the last says how wide the path is.
    opened: HashMap<Cookie, Agreed>,
    /// Bytes that the server was sent, and that it sent.
    heard: usize,
    said: usize,
}

impl Pair {
    fn new(ours: Offer, theirs: Offer, there: Faults, back: Faults, seed: u64) -> Pair {
        let mut rng = Rng::new(seed);
        let cookie = Cookie::new(1, rng.word());
        let incarnation = [rng.word(), rng.word()];
        Pair {
            now: 0,
            client: Client::new(ours, cookie, incarnation, PATIENCE, 0),
            server: Server::new(theirs, [rng.word(), rng.word()]),
            there: Link::new(there),
            back: Link::new(back),
            opened: HashMap::new(),
            heard: 0,
            said: 0,
            rng,
        }
    }

    /// Until the channel is open at the client, refused, or given up.
    fn open(&mut self) -> Option<Progress> {
        let mut out = [0; 2048];
        loop {
            while let Some(packet) = self.there.arrived(self.now) {
                self.server_hears(&packet);
            }
            while let Some(packet) = self.back.arrived(self.now) {
                match self.client.handle(self.now, &packet) {
                    Progress::Nothing | Progress::Again => {}
                    end => return Some(end),
                }
            }
            let due = match self.client.turn(self.now, &mut out) {
                Turn::Send(len) => {
                    self.there.send(self.now, &out[..len], &mut self.rng);
                    continue;
                }
                Turn::Wait(until) => until,
                Turn::GiveUp => return None,
            };
            let arrivals = [self.there.next_arrival(), self.back.next_arrival()];
            let next = arrivals.into_iter().flatten().min().unwrap_or(due);
            self.now = next.min(due).max(self.now);
        }
    }

    fn server_hears(&mut self, packet: &[u8]) {
        let mut out = [0; 2048];
        let len = match self.server.handle(self.now, CLIENT, packet, &mut out) {
            Heard::Ignored(_) => return,
            Heard::Answer(len) => len,
            Heard::Again {
                len,
                ours,
                max_packet,
            } => {
                let agreed = self.opened.get_mut(&ours).expect("it was opened");
                assert!(max_packet <= agreed.max_packet);
                agreed.max_packet = max_packet;
                len
            }
            Heard::Wish(wish) => {
                let ours = Cookie::new(2, self.rng.word());
                let incarnation = [self.rng.word(), self.rng.word()];
                let (len, agreed) = self.server.accept(&wish, ours, incarnation, &mut out);
                self.opened.insert(ours, agreed);
                len
            }
        };
        assert!(len <= packet.len(), "N9: answered with more than was sent");
        self.heard += packet.len();
        self.said += len;
        self.back.send(self.now, &out[..len], &mut self.rng);
    }
}

fn opened(progress: Option<Progress>) -> Agreed {
    match progress {
        Some(Progress::Opened(agreed)) => agreed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn over_a_good_link_it_takes_two_round_trips() {
    let faults = Faults {
        delay: MS / 2,
        ..Faults::default()
    };
    let mut pair = Pair::new(Offer::raw(1472), Offer::raw(1472), faults, faults, 1);
    let ours = opened(pair.open());
    assert_eq!(pair.now, 2 * MS);
    let theirs = pair.opened[&ours.theirs];
    assert_eq!((ours.ours, ours.theirs), (theirs.theirs, theirs.ours));
    assert_eq!((ours.max_packet, theirs.max_packet), (1472, 1472));
    assert_eq!((ours.max_message, ours.version), (1440, 1));
    assert_eq!((pair.heard, pair.said), (SHORTEST + 1472, SHORTEST + 1472));
}

#[test]
fn each_side_says_what_it_takes() {
    let client = Offer {
        max_message: 100,
        table: 7,
        ..Offer::raw(9000 - 28)
    };
    let server = Offer {
        table: 8,
        ..Offer::raw(1472)
    };
    // The server's own buffer is as long as the client's packets.
    let mut pair = Pair::new(
        Offer {
            max_packet: 2000,
            ..client
        },
        server,
        Faults::default(),
        Faults::default(),
        2,
    );
    let ours = opened(pair.open());
    let theirs = pair.opened[&ours.theirs];
    assert_eq!((ours.max_packet, theirs.max_packet), (1472, 1472));
    assert_eq!((ours.max_message, theirs.max_message), (1440, 100));
    assert!(ours.tables_differ && theirs.tables_differ);
}

/// N1, N2, N3, N9: whatever the link does, the channel opens, once, and both ends mean the same.
#[test]
fn n01_n02_n03_it_opens_over_bad_links() {
    let seed = seed("openings");
    let mut rng = Rng::new(seed);
    let rounds = 2_000 * long(20) as u64;
    let mut gave_up = 0;
    for round in 0..rounds {
        let mut faults = || Faults {
            lose: rng.below(40),
            duplicate: rng.below(60),
            damage: rng.below(10),
            delay: rng.below(30 * MS),
            jitter: rng.below(60 * MS),
            widest: [None, None, Some(1300), Some(600)][rng.below(4) as usize],
        };
        let (there, back) = (faults(), faults());
        let mut pair = Pair::new(
            Offer::raw(1472),
            Offer::raw(1472),
            there,
            back,
            seed ^ round,
        );
        let Some(progress) = pair.open() else {
            gave_up += 1;
            continue;
        };
        let ours = opened(Some(progress));
        let theirs = pair.opened[&ours.theirs];
        assert_eq!((ours.ours, ours.theirs), (theirs.theirs, theirs.ours));
        assert!(
            theirs.max_packet <= ours.max_packet,
            "what it sends is taken"
        );
        assert_eq!(
            pair.opened.len(),
            1,
            "a HELLO that comes again opens no second channel"
        );
        assert_eq!(pair.server.open(), 1);
        assert!(pair.said <= pair.heard, "N9");
        for link in [&pair.there, &pair.back] {
            let widest = link.faults.widest.unwrap_or(usize::MAX);
            assert!(ours.max_packet <= widest, "N5");
        }
        exchange(&mut pair, ours, theirs);
    }
    assert!(gave_up * 20 < rounds, "{gave_up} of {rounds} gave up");
}

/// Calls over the channel, on the same links: none is executed twice.
fn exchange(pair: &mut Pair, ours: Agreed, theirs: Agreed) {
    let mut sender = Sender::new(ours.theirs, ours.max_packet);
    let mut receiver = Receiver::new(theirs.ours);
    let mut out = [0; 2048];
    let mut executed = 0;
    for round in 0..50 {
        let at = pair.now + round * MS;
        let written = sender
            .write(&mut out, Outgoing::Call, 1, b"once")
            .expect("short");
        pair.there.send(at, &out[..written.len], &mut pair.rng);
    }
    while let Some(packet) = pair.there.arrived(u64::MAX) {
        if let Ok(Accepted::Call { call, .. }) = receiver.accept(&packet) {
            assert!(executed & 1_u64 << call == 0);
            executed |= 1 << call;
        }
    }
    let accepted = receiver.counters().get(Counter::Accepted);
    assert_eq!(accepted, executed.count_ones().into());
}

/// N1: nobody there, then somebody.
#[test]
fn n01_a_black_out_ends_or_patience_does() {
    let dead = Faults {
        lose: 100,
        ..Faults::default()
    };
    let mut pair = Pair::new(Offer::raw(1472), Offer::raw(1472), dead, dead, 3);
    assert_eq!(pair.open(), None);
    assert!(pair.now >= PATIENCE && pair.now < PATIENCE + 1000 * MS);
    assert_eq!((pair.opened.len(), pair.server.open()), (0, 0));

    let mut pair = Pair::new(Offer::raw(1472), Offer::raw(1472), dead, dead, 4);
    let mut out = [0; 1472];
    for _ in 0..6 {
        let until = match pair.client.turn(pair.now, &mut out) {
            Turn::Wait(until) => until,
            _ => continue,
        };
        pair.now = until;
    }
    (pair.there.faults.lose, pair.back.faults.lose) = (0, 0);
    opened(pair.open());
    assert!(pair.now < 2_500 * MS, "{}", pair.now);
}

/// N5: a path that loses long packets without a word, there, back, or both ways; both ends come to what passes.
#[test]
fn n05_black_holes_for_long_packets() {
    for (there, back) in [
        (1300, 9000),
        (9000, 1300),
        (1300, 1300),
        (600, 9000),
        (9000, 600),
        (600, 1300),
        (1472, 1471),
    ] {
        let faults = |widest| Faults {
            delay: MS,
            widest: Some(widest),
            ..Faults::default()
        };
        let mut pair = Pair::new(
            Offer::raw(2000),
            Offer::raw(2000),
            faults(there),
            faults(back),
            5,
        );
        let ours = opened(pair.open());
        let theirs = pair.opened[&ours.theirs];
        assert_eq!(ours.max_packet, theirs.max_packet, "{there} {back}");
        let widest = [1472, 1252, 548]
            .into_iter()
            .find(|&w| w <= there.min(back));
        assert_eq!(Some(ours.max_packet), widest);
        assert!(pair.now < 2_000 * MS, "{}", pair.now);
    }
}

/// A server that comes to read only after several tries finds them all waiting: the path is not taken for a narrow one.
#[test]
fn a_slow_server_does_not_narrow_the_path() {
    let slow = Faults {
        delay: 700 * MS,
        ..Faults::default()
    };
    let mut pair = Pair::new(
        Offer::raw(1472),
        Offer::raw(1472),
        slow,
        Faults::default(),
        6,
    );
    let ours = opened(pair.open());
    assert_eq!(
        (ours.max_packet, pair.opened[&ours.theirs].max_packet),
        (1472, 1472)
    );
    // What is still under way changes nothing.
    while let Some(packet) = pair.there.arrived(u64::MAX) {
        pair.server_hears(&packet);
    }
    assert_eq!(pair.opened[&ours.theirs].max_packet, 1472);
    while let Some(packet) = pair.back.arrived(u64::MAX) {
        assert!(!matches!(
            pair.client.handle(pair.now, &packet),
            Progress::Refused { .. }
        ));
    }
}

/// Tokens expire while the client's packets are late: it gets a new one, and opens.
#[test]
fn a_token_that_is_too_old_is_replaced() {
    let late = Faults {
        delay: 6_000 * MS,
        jitter: 3_000 * MS,
        ..Faults::default()
    };
    let mut pair = Pair::new(
        Offer::raw(1472),
        Offer::raw(1472),
        Faults::default(),
        Faults::default(),
        7,
    );
    pair.client = Client::new(
        Offer::raw(1472),
        Cookie::new(1, 0xabc_0000),
        [1, 1],
        200_000 * MS,
        0,
    );
    pair.there.faults = late;
    let ours = opened(pair.open());
    assert_eq!(pair.opened.len(), 1);
    assert_eq!(pair.opened[&ours.theirs].theirs, ours.ours);
}

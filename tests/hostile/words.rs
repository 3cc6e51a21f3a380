//! Rows S7, S8, S12 to S15: words that change while they are used, and words that say something else.

use crate::liar::{
    ASLEEP, CLOSED, CURSOR_LINE, Liar, MULTI, Opener, RESTART, RING_LINE, STATE_LINE, Side, WAKE,
    WANTED, Words, length, report, target,
};
use crate::lies::HONEST;
use crate::long;
use crate::support::{Ledger, Peer, patiently};
use crate::victim::{ECHO, GO, NOTE, NUMBER, Stage};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use tightbeam::{Counter, Event, PeerFault};
use tightbeam_segment::{Arrival, Outgoing};

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "flip headers" => flip_headers(side, address),
        "flip payload" => flip_payload(side, address),
        "rewrite its head" => rewrite_head(side, address),
        "closed and alive" => closed_and_alive(side, address),
        "every low half" => every_low_half(side, address),
        "half a message" => half_a_message(side, address),
        "look for canaries" => look_for_canaries(side, address),
        "leave canaries" => leave_canaries(address),
        _ => return false,
    }
    true
}

/// The random numbers of Marsaglia's xorshift.
pub(crate) struct Random(u64);

impl Random {
    /// Of a seed that is printed, and can be given.
    pub(crate) fn new() -> Random {
        let given = std::env::var("TIGHTBEAM_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(88_172_645_463_325_252u64).max(1);
        eprintln!("TIGHTBEAM_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Channels over which headers are flipped.
fn flips() -> u64 {
    if long() { 20_000 } else { 25 }
}

/// Headers that are legal, and others, in quick succession and always in slot 0.
fn flip_headers(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    for _ in 0..flips() {
        let liar = opener.open();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (own, seen, over) = (&liar.own, &liar.seen, &over);
            scope.spawn(move || {
                for tag in (1..=255).cycle() {
                    // Until the victim has taken one.
                    let taken = seen.read(CURSOR_LINE, 0);
                    while seen.read(CURSOR_LINE, 0) == taken {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        flip(own, tag);
                    }
                }
            });
            liar.wait_for_hang_up();
            over.store(true, Ordering::Relaxed);
        });
    }
}

fn flip(own: &Words, tag: u64) {
    let always = tag | RESTART | target(NOTE);
    for _ in 0..20 {
        for rest in [
            length(8),
            MULTI | length(1080),
            length(4095),
            MULTI | length(57),
            length(0) | WANTED,
        ] {
            own.write(RING_LINE, 0, always | rest);
        }
        // One that is wrong, so that the channel ends, but not before others have been seen.
        if tag > 8 {
            own.write(RING_LINE, 0, always | MULTI | length(4095));
        }
    }
}

/// Whatever the header becomes, what the victim checked is what it uses: lengths are legal, and there is no other fault.
#[test]
fn s07_a_header_changes_between_check_and_use() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s07");
        let liar = stage.liar(side, "flip headers");
        let mut messages = 0;
        for _ in 0..flips() {
            let channel = stage.meet(side);
            let fault = stage.faulted(channel);
            let told = [PeerFault::Length { len: 4095 }, PeerFault::TooManyCalls];
            assert!(told.contains(&fault), "{fault:?}");
            let log = stage.log(channel);
            let legal = |len: &usize| [0, 8, 56, 57, 1080].contains(len);
            assert!(log.lengths.iter().all(legal), "{:?}", log.lengths);
            messages += log.messages;
            stage.quarantined(channel);
        }
        println!("{messages} messages of flipping headers, {side:?}");
        assert!(messages > flips(), "hardly any was seen in between");
        assert!(liar.finish());
        stage.end();
    }
}

/// Sends by the rules, and writes to the payload of what it has sent.
fn flip_payload(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (own, over) = (&liar.own, &over);
        scope.spawn(move || {
            let mut random = Random::new();
            while !over.load(Ordering::Relaxed) {
                for line in RING_LINE..RING_LINE + 40 {
                    // Not the first word: there may be a header.
                    own.write(line, 1 + (random.next() % 7) as usize, random.next());
                }
            }
        });
        let payload = [0x55; 56 + 64 + 64];
        for number in 0..messages() {
            patiently(|| {
                let sent = liar.port.try_send(Outgoing::message(NOTE), &payload).ok();
                while liar.port.arrival() != Arrival::Empty {
                    liar.port.consume();
                }
                sent
            });
            report(address, number + 1);
        }
        over.store(true, Ordering::Relaxed);
    });
    Ledger::of(address).wait_for(GO, 1);
    liar.port.close();
}

fn messages() -> u64 {
    if long() { 1_000_000 } else { 5_000 }
}

/// What a handler looks at does not change under it; [`Stage::quarantined`] asserts that nothing did.
#[test]
fn s08_a_payload_changes_while_it_is_handled() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s08");
        let liar = stage.liar(side, "flip payload");
        let channel = stage.meet(side);
        stage.until_noted(channel, messages());
        let log = stage.log(channel);
        assert_eq!(log.unstable, 0, "a payload changed under its handler");
        assert!(log.lengths.iter().all(|len| *len == 184));
        stage.goes_on();
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Writes to every word in front of its ring but its credit, while it sends by the rules.
fn rewrite_head(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (own, over) = (&liar.own, &over);
        scope.spawn(move || {
            let mut random = Random::new();
            while !over.load(Ordering::Relaxed) {
                for word in 0..RING_LINE * 8 {
                    let (line, word) = (word / 8, word % 8);
                    if line != CURSOR_LINE || word > 1 {
                        own.write(line, word, random.next());
                    }
                }
            }
        });
        for number in 0..messages() {
            liar.say(number..number + 1);
            report(address, number + 1);
        }
        over.store(true, Ordering::Relaxed);
    });
    // What it says of itself in the end is that it has closed the channel.
    liar.own.write(STATE_LINE, CLOSED, 1);
    Ledger::of(address).wait_for(GO, 1);
}

/// Magic, version, layout, depth and all the rest were read once, at the opening.
#[test]
fn s12_an_identity_is_rewritten_after_the_opening() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s12");
        let liar = stage.liar(side, "rewrite its head");
        let channel = stage.meet(side);
        stage.until_noted(channel, messages());
        let log = stage.log(channel);
        assert_eq!(log.last, (messages() - 1).to_ne_bytes());
        assert!(log.lengths.iter().all(|len| *len == 8));
        stage.goes_on();
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Says that it has closed the channel, and sends on.
fn closed_and_alive(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.own.write(STATE_LINE, CLOSED, u64::MAX);
    liar.own.write(STATE_LINE, ASLEEP, u64::MAX);
    liar.own.write(STATE_LINE, WAKE, u64::MAX);
    liar.say(0..1000);
    Ledger::of(address).wait_for(GO, 1);
}

/// It is believed once it has hung up, and what it has sent is handled all the same.
#[test]
fn s12_a_state_that_is_not_true() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s12-state");
        let liar = stage.liar(side, "closed and alive");
        let channel = stage.meet(side);
        stage.until_noted(channel, 1000);
        stage.goes_on();
        assert!(stage.victim.next_event().is_none(), "it is still there");
        let counters = stage.victim.counters(channel).expect("still open");
        assert_eq!(counters.get(Counter::Received), 1000);
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// What comes with a low half: lengths, and a wish for a reply.
const HIGH_HALVES: [u64; 5] = [
    length(0),
    length(56),
    length(57) | WANTED,
    length(1080),
    length(1081) | WANTED,
];

/// What a first header of a channel leads to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Nothing,
    Noted {
        len: usize,
    },
    /// An empty batch: it takes a number, and brings nothing.
    Passed,
    Fault(PeerFault),
}

/// Of the three bits that are zero in most messages.
const FRAMED: u64 = 4;

/// The rules of `runtime/segment/src/descriptor.rs` once more.
fn outcome(header: u64) -> Outcome {
    let (tag, kind) = (header & 0xff, header >> 8 & 7);
    let (multi, flags) = (header & MULTI != 0, header >> 13 & 7);
    let (len, wanted) = ((header >> 16 & 0xfff) as usize, header & WANTED != 0);
    let bits = (header >> 8) as u8;
    if tag != 1 {
        return Outcome::Nothing;
    }
    if kind == 5 && flags == 0 {
        // The slot is where credit is elsewhere, and that is 0 here.
        return Outcome::Fault(PeerFault::Slot {
            slot: 0,
            slots: 183,
        });
    }
    let is_short_message = kind == 0 && flags == 0 && !multi;
    if is_short_message {
        return Outcome::Noted { len: len.min(56) };
    }
    if len > 1080 || (len > 56) != multi {
        return Outcome::Fault(PeerFault::Length { len });
    }
    match kind {
        0 if flags == FRAMED && (len == 0 || !len.is_multiple_of(16) || len > 512) => {
            Outcome::Fault(PeerFault::Length { len })
        }
        // No memory was ever passed.
        0 if flags == FRAMED => Outcome::Fault(PeerFault::Frame {
            segment: u16::MAX,
            slot: u16::MAX,
        }),
        1 if flags == FRAMED => Outcome::Fault(PeerFault::UnknownCall { call: NOTE }),
        _ if flags != 0 => Outcome::Fault(PeerFault::Kind { kind: bits }),
        0 => Outcome::Noted { len },
        1..=3 => Outcome::Fault(PeerFault::UnknownCall { call: NOTE }),
        4 if !wanted && len == 0 => Outcome::Passed,
        4 if !wanted => Outcome::Fault(PeerFault::Batch { at: 0 }),
        _ => Outcome::Fault(PeerFault::Kind { kind: bits }),
    }
}

/// Headers between two at which the victim certainly looks.
fn looks() -> u64 {
    if long() { 1 } else { 8 }
}

/// Tells each outcome but nothing over a channel of its own; nothing is told often over one.
fn every_low_half(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    let ledger = Ledger::of(address);
    let quiet = opener.open();
    let mut told = 0;
    for low in 0..=u64::from(u16::MAX) {
        for high in HIGH_HALVES {
            let header = low | high | target(NOTE);
            if outcome(header) == Outcome::Nothing {
                quiet.own.slot(0, header, &[]);
            }
        }
        // Now and then the victim has certainly looked.
        if low % looks() == 0 {
            told += 1;
            ledger.write(NUMBER, told);
            patiently(|| (ledger.read(GO) == told).then_some(()));
        }
    }
    quiet.own.slot(0, 0, &[]);
    quiet.leave();
    for (n, header) in (0..).zip(seen_headers()) {
        ledger.wait_for(GO, ROUNDS + 2 * n);
        let liar = opener.open();
        // A batch in which not even a head fits into what it alleges.
        liar.own.slot(0, header, &[u64::MAX; 7]);
        match outcome(header) {
            Outcome::Fault(_) => liar.wait_for_hang_up(),
            _ => {
                ledger.wait_for(GO, ROUNDS + 2 * n + 1);
                liar.leave();
            }
        }
    }
}

/// The first of the steps behind those in which nothing is seen.
const ROUNDS: u64 = 1 << 32;

/// Every low half that leads to something, with one high half, or with each in the long run.
fn seen_headers() -> impl Iterator<Item = u64> {
    let lows = (0..=u64::from(u16::MAX)).filter(|low| low & 0xff == 1);
    lows.flat_map(|low| {
        let first = (low >> 8) as usize % HIGH_HALVES.len();
        let highs = HIGH_HALVES.into_iter().cycle().skip(first);
        let count = if long() { HIGH_HALVES.len() } else { 1 };
        highs.take(count).map(move |high| low | high | target(NOTE))
    })
}

/// All 65,536 low halves of a header, as the first of a channel: each is nothing, a message, or a fault, as the rules have it.
#[test]
fn s13_every_low_half_of_a_first_header() {
    let mut stage = Stage::new("s13");
    let liar = stage.liar(Side::Client, "every low half");
    let quiet = stage.meet(Side::Client);
    let end = stage.until(|stage| {
        let told = stage.ledger.read(NUMBER);
        stage.victim.poll(1);
        stage.go(told);
        stage.victim.next_event()
    });
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    assert_eq!(stage.log(quiet).messages, 0, "another lap's, or nobody's");
    stage.goes_on();
    let (mut noted, mut faults) = (0, 0);
    for (n, header) in (0..).zip(seen_headers()) {
        stage.go(ROUNDS + 2 * n);
        let channel = stage.meet(Side::Client);
        match outcome(header) {
            Outcome::Nothing => unreachable!("not among these"),
            Outcome::Noted { len } => {
                stage.until_noted(channel, 1);
                assert_eq!(stage.log(channel).lengths, [len], "{header:#x}");
                noted += 1;
                stage.go(ROUNDS + 2 * n + 1);
                let end = stage.event();
                assert!(matches!(end, Event::Closed { .. }), "{header:#x}: {end:?}");
            }
            Outcome::Passed => {
                stage.go(ROUNDS + 2 * n + 1);
                let end = stage.event();
                assert!(matches!(end, Event::Closed { .. }), "{header:#x}: {end:?}");
                assert_eq!(stage.log(channel).messages, 0, "{header:#x}");
            }
            Outcome::Fault(wanted) => {
                assert_eq!(stage.faulted(channel), wanted, "{header:#x}");
                assert_eq!(stage.log(channel).messages, 0);
                faults += 1;
            }
        }
        stage.quarantined(channel);
    }
    println!("{noted} messages, {faults} faults");
    assert!(liar.finish());
    stage.end();
}

/// Stops with a payload written and no header before it.
fn half_a_message(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.say(0..HONEST);
    let head = HONEST as usize;
    for word in 1..8 {
        liar.own.write(RING_LINE + head, word, 7);
    }
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.own.slot(head, crate::lies::honest(), &[HONEST]);
    liar.port.close();
}

/// There is no lock to hold: whoever is stopped in the middle of a message has said nothing yet.
#[test]
fn s14_stopped_in_the_middle_of_a_message() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s14");
        let liar = stage.liar(side, "half a message");
        let channel = stage.meet(side);
        stage.until_progress(1);
        liar.stop();
        stage.until_noted(channel, HONEST);
        stage.goes_on();
        assert_eq!(stage.log(channel).messages, HONEST);
        assert_eq!(stage.victim.try_send_to(channel, NOTE, b"later"), Ok(()));
        assert!(stage.victim.next_event().is_none(), "stopped, not dead");
        liar.signal(Signal::CONT);
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        let log = stage.log(channel);
        assert_eq!(log.messages, HONEST + 1);
        assert_eq!(log.last, HONEST.to_ne_bytes());
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Eight bytes that nobody writes by accident.
const CANARY: u64 = 0xc0a1_111e_0b5e_55ed;

/// Sends canaries by the rules, has them sent back, and leaves.
fn leave_canaries(address: &str) {
    let canaries: Vec<u8> = [CANARY; 135].iter().flat_map(|c| c.to_ne_bytes()).collect();
    let mut client = crate::support::connect(address);
    for round in 0..300 {
        let len = [8, 56, 120, 1080][round % 4];
        let answer = client.call(ECHO, &canaries[..len]).map(<[u8]>::to_vec);
        assert_eq!(answer.as_deref(), Ok(&canaries[..len]));
        client.send(NOTE, &canaries[..len]).expect("room");
    }
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
}

/// Looks at every word that the victim lets it see, as long as it may.
fn look_for_canaries(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    let written = |liar: &Liar| {
        let all = (RING_LINE..liar.seen.lines()).flat_map(|line| (0..8).map(move |w| (line, w)));
        all.filter(|(line, word)| liar.seen.read(*line, *word) != 0)
            .count()
    };
    assert_eq!(written(&liar), 0, "a new segment's slots are empty");
    let ledger = Ledger::of(address);
    let mut asked = 0u64;
    while ledger.read(GO) < 2 {
        // Answers of all lengths, so that slots are used in all ways.
        let len = (asked * 7 % 1081) as usize;
        let call = liar.port.next_call();
        let payload = [0x11; 1080];
        patiently(|| {
            liar.port
                .try_send(Outgoing::call(ECHO), &payload[..len])
                .ok()
        });
        patiently(|| match liar.port.arrival() {
            Arrival::Reply { call: of, .. } if of == call => Some(()),
            Arrival::Empty => None,
            other => panic!("{other:?}"),
        });
        let (answer, _) = liar.port.incoming();
        assert_eq!(answer.bytes(), &payload[..len]);
        liar.port.consume();
        liar.port.finish_drain();
        asked += 1;
        for line in 0..liar.seen.lines() {
            for word in 0..8 {
                assert_ne!(liar.seen.read(line, word), CANARY, "line {line}");
            }
        }
        ledger.write(NUMBER, asked);
    }
    assert!(written(&liar) > 0, "or else there is nothing to be seen");
    liar.port.close();
}

/// What one peer says is never where another can see it: each has segments of its own, new and empty.
#[test]
fn s15_bytes_of_another_peer() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s15");
        let canary = Peer::start("Client leave canaries", &stage.address());
        let honest = stage.meet(Side::Client);
        // While the other is there, and in memory that may have been its own.
        let liar = stage.liar(side, "look for canaries");
        let channel = stage.meet(side);
        stage.until_progress(1);
        let asked = stage.ledger.read(NUMBER);
        stage.until(|stage| (stage.ledger.read(NUMBER) > asked + 20).then_some(()));
        assert_eq!(stage.log(honest).messages, 300);
        stage.go(1);
        let end = stage.event();
        assert_eq!(end.channel(), honest, "{end:?}");
        assert!(canary.finish());
        let asked = stage.ledger.read(NUMBER);
        stage.until(|stage| (stage.ledger.read(NUMBER) > asked + 20).then_some(()));
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        let second = stage.ledger.read(NUMBER);
        assert!(second > 40);
        stage.end();
    }
}

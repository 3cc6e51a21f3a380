//! Rows S1 to S6, S9 to S11: what a peer can say in its ring, its credit and its answers.

use crate::liar::{CURSOR_LINE, Opener, REPLY, RING_LINE, Side, credit, kind, report, target};
use crate::lies::{HONEST, honest, lies};
use crate::long;
use crate::support::{Ledger, PATIENCE, patiently};
use crate::victim::{ECHO, FEED, GO, NOTE, NUMBER, PANIC, Stage};
use std::time::Duration;
use tightbeam::{CallError, Counter, Event, PeerFault, SendError};
use tightbeam_segment::{Answer, Arrival, Outgoing};

/// Credit cursors that go back from [`GIVEN`], and where a victim that has sent [`SENT`] looks at them.
const BACKWARDS: [u64; 4] = [GIVEN - 1, 0, u64::MAX, GIVEN.wrapping_add(1 << 63)];
const GIVEN: u64 = 40;
/// Credit for more than was sent, by the cursor and in a header.
const AHEAD: [u64; 5] = [
    SENT + 1,
    SENT + 2,
    SENT + (1 << 19),
    1 << 40,
    i64::MAX as u64,
];
const SENT: u64 = 64;
const AHEAD_IN_HEADERS: [u64; 4] = [100, 5_000, 1 << 18, (1 << 19) - 1];

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act.split_once(' ') {
        Some(("lies", row)) => tell(side, row, address),
        _ => match act {
            "cursor backwards" => move_cursor(side, address, &BACKWARDS, true),
            "cursor ahead" => move_cursor(side, address, &AHEAD, false),
            "credit ahead" => give_credit(side, address),
            "flood" => flood(side, address),
            "answer twice" => answer_twice(side, address),
            "give no credit" => give_none(side, address),
            "every index" => name_every_index(side, address),
            _ => return false,
        },
    }
    true
}

/// Tells each lie of a row over a channel of its own, behind honest messages and in front of more that look honest.
fn tell(side: Side, row: &str, address: &str) {
    let opener = Opener::new(side, address);
    for lie in lies(row) {
        let liar = opener.open();
        liar.say(0..HONEST);
        let behind = lie.slots.iter().map(|(slot, ..)| slot + 1).max();
        let behind = behind.expect("a lie has a slot");
        (behind..behind + 8)
            .filter(|slot| RING_LINE + *slot < liar.own.lines())
            .for_each(|slot| liar.own.slot(slot, honest(), &[0]));
        for (slot, header, payload) in lie.slots.iter().rev() {
            liar.own.slot(*slot, *header, payload);
        }
        liar.wait_for_hang_up();
        // Nobody listens any more.
        liar.own.slot(HONEST as usize, honest(), &[0]);
    }
}

/// Each lie of a row ends its channel, whoever opened that, and no other.
fn each_lie_ends_one_channel(row: &str) {
    for side in Side::BOTH {
        let mut stage = Stage::new(row);
        let liar = stage.liar(side, &format!("lies {row}"));
        let lies = lies(row);
        println!("{row}: {} lies, {side:?}", lies.len());
        for lie in lies {
            let channel = stage.meet(side);
            let (fault, counters) = stage.faulted_with(channel);
            assert_eq!(fault, lie.fault);
            assert_eq!(stage.log(channel).messages, lie.noted, "{fault:?}");
            if row == "s04" {
                assert_eq!(counters.get(Counter::Received), lie.noted, "{fault:?}");
            }
            stage.quarantined(channel);
        }
        assert!(liar.finish());
        stage.end();
    }
}

#[test]
fn s01_a_jump_leads_out_of_the_ring() {
    each_lie_ends_one_channel("s01");
}

#[test]
fn s03_messages_run_ahead_of_the_ring() {
    each_lie_ends_one_channel("s03");
}

#[test]
fn s04_a_batch_points_outside_of_itself() {
    each_lie_ends_one_channel("s04");
}

#[test]
fn s05_lengths_that_do_not_fit() {
    each_lie_ends_one_channel("s05");
}

#[test]
fn s06_jumps_that_loop() {
    each_lie_ends_one_channel("s06");
}

#[test]
fn s09_an_answer_to_no_call() {
    each_lie_ends_one_channel("s09");
}

#[test]
fn s10_answers_that_nobody_takes() {
    each_lie_ends_one_channel("s10");
}

/// Steps of a round, of which there is one for each cursor.
const STEPS: u64 = 10;

/// Writes one cursor after the other, each over a channel of its own; before it an honest one if asked for.
fn move_cursor(side: Side, address: &str, cursors: &[u64], first_honest: bool) {
    let opener = Opener::new(side, address);
    for (round, cursor) in (1..).zip(cursors) {
        let liar = opener.open();
        let mut step = round * STEPS;
        report(address, step);
        for cursor in first_honest.then_some(&GIVEN).into_iter().chain([cursor]) {
            step += 1;
            Ledger::of(address).wait_for(GO, step);
            liar.own.write(CURSOR_LINE, 0, *cursor);
            report(address, step);
        }
        liar.wait_for_hang_up();
    }
}

/// The fault that a send has run into is the one that ends the channel.
fn sends_give_the_fault(stage: &mut Stage, channel: tightbeam::ChannelId, fault: PeerFault) {
    let refused = stage.victim.try_send_to(channel, NOTE, b"again");
    assert_eq!(refused, Err(SendError::Fault(fault)));
    let refused = stage.victim.call_to(channel, ECHO, b"again", PATIENCE);
    let wanted = CallError::NotSent(SendError::Fault(fault));
    assert_eq!(refused.err(), Some(wanted));
    assert_eq!(stage.faulted(channel), fault);
    stage.quarantined(channel);
}

#[test]
fn s02_a_cursor_goes_backwards() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s02");
        let liar = stage.liar(side, "cursor backwards");
        for (round, alleged) in (1..).zip(BACKWARDS) {
            let channel = stage.meet(side);
            stage.until_progress(round * STEPS);
            assert_eq!(stage.fill(channel), (SENT, SendError::Full));
            stage.step(round * STEPS + 1);
            assert_eq!(stage.fill(channel), (GIVEN, SendError::Full));
            stage.step(round * STEPS + 2);
            let before = GIVEN;
            let fault = PeerFault::CreditBackwards { before, alleged };
            assert_eq!(stage.fill(channel), (0, SendError::Fault(fault)));
            sends_give_the_fault(&mut stage, channel, fault);
        }
        assert!(liar.finish());
        stage.end();
    }
}

#[test]
fn s03_a_cursor_is_ahead_of_what_was_sent() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s03-cursor");
        let liar = stage.liar(side, "cursor ahead");
        for (round, alleged) in (1..).zip(AHEAD) {
            let channel = stage.meet(side);
            stage.until_progress(round * STEPS);
            assert_eq!(stage.fill(channel), (SENT, SendError::Full));
            stage.step(round * STEPS + 1);
            let sent = SENT;
            let fault = PeerFault::CreditAhead { alleged, sent };
            assert_eq!(stage.fill(channel), (0, SendError::Fault(fault)));
            sends_give_the_fault(&mut stage, channel, fault);
        }
        assert!(liar.finish());
        stage.end();
    }
}

/// Gives credit with a message of which all else is true.
fn give_credit(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    for given in AHEAD_IN_HEADERS {
        let liar = opener.open();
        liar.own.slot(0, honest() | credit(given), &[0]);
        liar.wait_for_hang_up();
    }
}

#[test]
fn s03_credit_in_a_header_is_ahead_of_what_was_sent() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s03-credit");
        let liar = stage.liar(side, "credit ahead");
        for given in AHEAD_IN_HEADERS {
            let channel = stage.meet(side);
            stage.until_noted(channel, 1);
            let (sent, error) = stage.fill(channel);
            assert!(sent <= SENT, "{sent} went into a ring of {SENT}");
            let SendError::Fault(fault) = error else {
                panic!("{error:?}");
            };
            let ahead = matches!(fault, PeerFault::CreditAhead { alleged, .. } if alleged == given);
            assert!(ahead, "{fault:?}");
            sends_give_the_fault(&mut stage, channel, fault);
        }
        assert!(liar.finish());
        stage.end();
    }
}

/// Never stops sending.
fn flood(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    let mut number = 0u64;
    loop {
        if liar
            .port
            .try_send(Outgoing::message(NOTE), &[0; 40])
            .is_ok()
        {
            number += 1;
        }
        if number.is_multiple_of(1000) {
            report(address, number / 1000);
        }
        while liar.port.arrival() != Arrival::Empty {
            liar.port.consume();
        }
    }
}

/// No poll handles more than its budget, and the third party gets its share: [`Stage::poll`] asserts the one.
#[test]
fn s03_a_flood_is_handled_a_budget_at_a_time() {
    let mut stage = Stage::new("s03-flood");
    let liar = stage.liar(Side::Client, "flood");
    let channel = stage.meet(Side::Client);
    for thousands in 1..20 {
        stage.until_progress(thousands);
        stage.goes_on();
    }
    drop(liar);
    let end = stage.event();
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_eq!(stage.log(channel).unstable, 0);
    stage.quarantined(channel);
    stage.end();
}

/// Answers a call as it should, and then once more.
fn answer_twice(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    patiently(|| matches!(liar.port.arrival(), Arrival::Message { .. }).then_some(()));
    liar.port.try_reply(b"once").expect("room");
    liar.port.consume();
    // It was the first message, so its number is 0, and the answer is in slot 0.
    liar.own.slot(1, 1 | kind(REPLY) | target(0), &[]);
    liar.wait_for_hang_up();
}

#[test]
fn s09_a_call_is_answered_twice() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s09-twice");
        let liar = stage.liar(side, "answer twice");
        let channel = stage.meet(side);
        let answer = stage.victim.call_to(channel, ECHO, b"a call", PATIENCE);
        assert_eq!(answer, Ok(b"once".as_slice()));
        let fault = PeerFault::UnknownCall { call: 0 };
        assert_eq!(stage.faulted(channel), fault);
        stage.quarantined(channel);
        assert!(liar.finish());
        stage.end();
    }
}

/// Takes part in nothing, until it is told to leave.
fn give_none(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    Ledger::of(address).wait_for(GO, 1);
    liar.wait_for_hang_up();
}

/// That is no fault: whoever sends is told that there is no room, at once or at its deadline, and may close the channel.
#[test]
fn s10_credit_is_never_given() {
    const SOON: Duration = Duration::from_millis(20);
    let mut stage = Stage::new("s10-none");
    let liar = stage.liar(Side::Client, "give no credit");
    let channel = stage.meet(Side::Client);
    for _ in 0..4 {
        let call = stage.victim.call_to(channel, ECHO, b"?", SOON);
        assert_eq!(call.err(), Some(CallError::DeadlineExceeded));
    }
    assert_eq!(stage.fill(channel), (SENT - 4, SendError::Full));
    let refused = stage.victim.send_to(channel, NOTE, b"?", SOON);
    assert_eq!(refused, Err(SendError::DeadlineExceeded));
    let refused = stage.victim.call_to(channel, ECHO, b"?", SOON);
    let wanted = CallError::NotSent(SendError::DeadlineExceeded);
    assert_eq!(refused.err(), Some(wanted));
    stage.goes_on();
    assert!(stage.victim.next_event().is_none());
    assert!(stage.victim.close(channel));
    stage.go(1);
    assert!(liar.finish());
    stage.quarantined(channel);
    stage.end();
}

/// Handler indices between two that are called.
fn stride() -> usize {
    if long() { 1 } else { 601 }
}

/// Sends to each handler index there can be, and calls some of them.
fn name_every_index(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    for index in (0..=u16::MAX).filter(|index| ![PANIC, FEED].contains(index)) {
        patiently(|| liar.port.try_send(Outgoing::message(index), b"?").ok());
    }
    report(address, 1);
    let mut refused = 0;
    for index in (FEED + 1..=u16::MAX).step_by(stride()) {
        let call = liar.port.next_call();
        let sent = liar.port.try_send(Outgoing::call(index), b"?");
        sent.expect("the last one is answered");
        let answer = patiently(|| match liar.port.arrival() {
            Arrival::Empty => None,
            Arrival::Reply { call: of, answer } if of == call => Some(answer),
            other => panic!("{other:?}"),
        });
        assert_eq!(answer, Answer::NoHandler);
        liar.port.consume();
        liar.port.finish_drain();
        refused += 1;
    }
    Ledger::of(address).write(NUMBER, refused);
    report(address, 2);
    Ledger::of(address).wait_for(GO, 1);
    liar.port.close();
}

/// Not a fault either: what has no handler is dropped and counted, and a caller is told.
#[test]
fn s11_every_handler_index() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s11");
        let liar = stage.liar(side, "every index");
        let channel = stage.meet(side);
        stage.until_progress(1);
        stage.goes_on();
        stage.until_progress(2);
        let calls = stage.ledger.read(NUMBER);
        let counters = stage.victim.counters(channel).expect("still open");
        // All but ECHO and NOTE; PANIC and FEED are not sent to.
        assert_eq!(counters.get(Counter::DropNoHandler), 65_532 + calls);
        assert_eq!(counters.get(Counter::ReplyUnwanted), 1);
        assert_eq!(counters.get(Counter::Received), 65_534 + calls);
        assert_eq!(stage.log(channel).messages, 1);
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// The honest part of a liar works, or else the rest proves nothing.
#[test]
fn a_liar_that_does_not_lie_is_a_peer() {
    for side in Side::BOTH {
        let mut stage = Stage::new("honest");
        let liar = stage.liar(side, "every index");
        let channel = stage.meet(side);
        stage.until_noted(channel, 1);
        assert_eq!(stage.log(channel).lengths, [1]);
        drop(liar);
        let end = stage.event();
        assert!(matches!(end, Event::Dead { .. }), "{end:?}");
        stage.end();
    }
}

//! Each finding, from a ledger or a segment that was spoilt on purpose; and none from honest sides.

use super::*;
use crate::descriptor::credit_word;
use crate::lap::Lap;
use crate::{Arrival, Batch, Layout, Outgoing, PeerFault, testing};
use std::string::{String, ToString};

/// Slots of a ring of depth 64, and its first lap's tag.
const SLOTS: usize = 199;
const TAG: u8 = 1;

/// A left port that has sent so many messages of one slot, which the right one has not looked at.
fn sent(messages: usize) -> (Port, Port) {
    let (left, right) = testing::pair(Layout::new(64).unwrap());
    for _ in 0..messages {
        left.try_send(Outgoing::message(1), b"a message").unwrap();
    }
    assert_eq!(audit_pair(&left, &right), []);
    (left, right)
}

fn look(port: &mut Port) {
    assert_eq!(port.arrival(), Arrival::Message { handler: 1 });
}

#[test]
fn honest_sides_have_counts_and_no_findings() {
    let (left, mut right) = sent(3);
    look(&mut right);
    right.consume();
    look(&mut right);
    let (one, other) = (left.audit(), right.audit());
    assert_eq!((one.sent, one.credited, one.in_flight), (3, 0, 3));
    assert_eq!((other.consumed, other.handling, other.waiting), (1, 1, 1));
    assert_eq!(
        one.to_string(),
        "slots: 3 sent, 0 credited, 3 in flight; 0 consumed, 0 being handled; 0 messages wait"
    );
    assert_eq!(audit_pair(&left, &right), []);
    // Once it is copied out, the message that is being handled counts as consumed.
    let _ = right.incoming().0.bytes();
    right.try_send(Outgoing::message(1), b"").unwrap();
    assert_eq!(audit_pair(&left, &right), []);
}

#[test]
fn inside_a_batch_nothing_is_found_either() {
    let (left, mut right) = sent(0);
    let mut batch = Batch::new();
    while batch.push(7, &[1; 100]) {}
    left.try_send_batch(&mut batch).unwrap();
    assert_eq!(right.arrival(), Arrival::Batch);
    assert_eq!(audit_pair(&left, &right), []);
    right.unpack(|_, _, port| {
        assert_eq!(port.audit().handling, 17);
        assert_eq!(audit_pair(&left, port), []);
    });
    right.consume();
    assert_eq!(audit_pair(&left, &right), []);
}

#[test]
fn a_slot_in_flight_twice() {
    let (left, _right) = sent(3);
    // As if the lap had begun again behind two messages that are still in flight.
    left.tx.lap.set(Lap::starting(2));
    let wanted = twice(Ring::Mine, 0, Place::InFlight, Place::InFlight);
    assert_eq!(left.audit().findings, [wanted]);
    assert_eq!(
        wanted.to_string(),
        "my ring: slot 0 is in flight and also in flight"
    );
}

#[test]
fn a_slot_free_and_in_flight() {
    let (left, _right) = sent(3);
    // The next message would be written over the last two.
    left.tx.index.set(1);
    left.tx.base.set(2);
    let found = [1, 2].map(|slot| twice(Ring::Mine, slot, Place::Free, Place::InFlight));
    assert_eq!(left.audit().findings, found);
}

#[test]
fn a_slot_that_the_ring_does_not_have() {
    let (left, _right) = sent(3);
    left.tx.index.set(1000);
    let (ring, slot, slots) = (Ring::Mine, SLOTS, SLOTS);
    let wanted = Finding::SlotOutside { ring, slot, slots };
    assert_eq!(left.audit().findings, [wanted]);
    assert_eq!(
        wanted.to_string(),
        "my ring: slot 199 was sent, but there are only 199"
    );
}

#[test]
fn a_slot_sent_that_holds_no_message() {
    for word in [0, 2, 1 | 7 << 8, 1 | 2000 << 16 | 1 << 11, 1 | 5 << 8] {
        let (left, right) = sent(3);
        left.own.line(RING_LINE + 1).publish(0, word);
        let wanted = Finding::SlotLost {
            ring: Ring::Mine,
            slot: 1,
            tag: TAG,
            found: word,
        };
        assert_eq!(audit_pair(&left, &right), [wanted]);
    }
}

#[test]
fn a_message_that_is_longer_than_what_was_sent() {
    let (left, right) = sent(3);
    let long = u64::from(TAG) | 1 << 11 | 300 << 16;
    left.own.line(RING_LINE + 2).publish(0, long);
    let wanted = Finding::SlotLost {
        ring: Ring::Mine,
        slot: 2,
        tag: TAG,
        found: long,
    };
    assert_eq!(audit_pair(&left, &right), [wanted]);
    assert_eq!(
        wanted.to_string(),
        "my ring: slot 2 was sent, but holds 0x00000000012c0801, which is no message of the lap with tag 1"
    );
}

#[test]
fn sides_that_go_on_at_different_slots() {
    type Spoiled = (fn(&Port), (usize, u8));
    let spoil: [Spoiled; 2] = [
        (
            |right| {
                right.rx.index.set(1);
                right.rx.base.set(u64::MAX);
            },
            (1, TAG),
        ),
        (|right| right.rx.tag.set(2), (0, 2)),
    ];
    for (spoil, receiver) in spoil {
        let (left, right) = sent(3);
        spoil(&right);
        let wanted = Finding::SlotApart {
            ring: Ring::Mine,
            sender: (0, TAG),
            receiver,
        };
        assert_eq!(audit_pair(&left, &right), [wanted]);
        // The same, asked from the other side.
        assert_eq!(audit_pair(&right, &left), [wanted.mirrored()]);
    }
    // A jump that leads elsewhere than the sender goes on.
    let (left, right) = sent(3);
    left.own
        .line(RING_LINE + 2)
        .publish(0, Descriptor::jump(TAG, 9).0);
    let wanted = Finding::SlotApart {
        ring: Ring::Mine,
        sender: (3, TAG),
        receiver: (9, TAG),
    };
    assert_eq!(audit_pair(&left, &right), [wanted]);
}

#[test]
fn a_slot_that_nobody_sent() {
    for ahead in [0, 5] {
        let (left, right) = sent(3);
        left.own
            .line(RING_LINE + 3 + ahead)
            .publish(0, u64::from(TAG));
        let wanted = twice(Ring::Mine, 3 + ahead, Place::Free, Place::Unsent);
        assert_eq!(audit_pair(&left, &right), [wanted]);
    }
}

#[test]
fn credit_in_the_ledger_for_what_was_not_consumed() {
    let (left, mut right) = sent(3);
    left.tx.acked.set(4);
    let wanted = ahead(Ring::Mine, Teller::Ledger, 4, 3);
    assert_eq!(left.audit().findings, [wanted]);
    // Not consumed, and the payload of the message that is being handled can be overwritten.
    left.tx.acked.set(2);
    assert_eq!(left.audit().findings, []);
    let free = |slot, place| twice(Ring::Mine, slot, Place::Free, place);
    let wanted = ahead(Ring::Mine, Teller::Ledger, 2, 0);
    let both = [wanted, free(0, Place::InFlight), free(1, Place::InFlight)];
    assert_eq!(audit_pair(&left, &right), both);
    look(&mut right);
    let both = [wanted, free(0, Place::Handled), free(1, Place::InFlight)];
    assert_eq!(audit_pair(&left, &right), both);
    assert_eq!(
        wanted.to_string(),
        "my ring: the sender's ledger has 2 slots credited, but at most 0 can be"
    );
}

#[test]
fn credit_at_the_cursor() {
    let say = |right: &Port, consumed| {
        let line = right.own.head::<CURSOR_LINE>();
        line.publish(CURSOR_CONSUMED, consumed);
    };
    let (left, right) = sent(3);
    say(&right, 2);
    assert_eq!(left.audit().findings, []);
    let wanted = ahead(Ring::Mine, Teller::Cursor, 2, 0);
    assert_eq!(audit_pair(&left, &right), [wanted]);
    say(&right, 9);
    assert_eq!(
        left.audit().findings,
        [ahead(Ring::Mine, Teller::Cursor, 9, 3)]
    );
    left.tx.last_cursor.set(2);
    say(&right, 1);
    let wanted = behind(Ring::Mine, Teller::Cursor, 1, 2);
    assert_eq!(left.audit().findings, [wanted]);
    assert_eq!(
        wanted.to_string(),
        "my ring: the receiver's cursor has 1 slots credited, but 2 were already"
    );
}

#[test]
fn credit_in_the_next_header() {
    let (left, mut right) = sent(3);
    look(&mut right);
    right.consume();
    right.rx.credit.set(credit_word(3));
    let wanted = ahead(Ring::Peers, Teller::Header, 3, 1);
    assert_eq!(right.audit().findings, [wanted]);
    assert_eq!(audit_pair(&left, &right), [wanted.mirrored()]);
    right.rx.credit.set(credit_word(0));
    let wanted = behind(Ring::Peers, Teller::Header, 0, 1);
    assert_eq!(right.audit().findings, [wanted]);
}

#[test]
fn more_consumed_than_sent() {
    let (left, right) = sent(3);
    right.rx.base.set(5);
    right.rx.credit.set(credit_word(5));
    let wanted = Finding::ConsumedUnsent {
        ring: Ring::Mine,
        consumed: 5,
        sent: 3,
    };
    assert_eq!(audit_pair(&left, &right), [wanted]);
    assert_eq!(
        wanted.to_string(),
        "my ring: 5 slots were consumed, but only 3 sent"
    );
}

#[test]
fn messages_that_are_not_conserved() {
    let (left, right) = sent(3);
    right.rx.messages.set(1);
    let wanted = Finding::Messages {
        ring: Ring::Mine,
        sent: 3,
        received: 1,
        waiting: 3,
    };
    assert_eq!(audit_pair(&left, &right), [wanted]);
    // The peer alone sees that less is there than was said.
    let (left, right) = sent(3);
    left.finish_drain();
    left.own.line(RING_LINE + 1).publish(0, 0);
    let wanted = Finding::Messages {
        ring: Ring::Peers,
        sent: 3,
        received: 0,
        waiting: 1,
    };
    assert_eq!(right.audit().findings, [wanted]);
    assert_eq!(
        wanted.to_string(),
        "the peer's ring: 3 messages were sent, but 0 received and 1 are on their way"
    );
}

#[test]
fn more_dropped_than_received() {
    let (_left, right) = sent(3);
    right.count(Counter::DropNoHandler);
    let wanted = Finding::Dropped {
        dropped: 1,
        received: 0,
    };
    let audit = right.audit();
    assert_eq!(audit.findings, [wanted]);
    let lines: String = audit.to_string();
    assert!(lines.ends_with("wait\n1 messages were dropped, but only 0 received"));
}

/// Of a port at fault the counts are still right, and the other direction is still looked at.
#[test]
fn a_port_at_fault_keeps_its_counts() {
    let (left, mut right) = sent(3);
    look(&mut right);
    right.fail(PeerFault::TooManyCalls);
    assert_eq!(audit_pair(&left, &right), []);
    right.consume();
    assert_eq!(audit_pair(&left, &right), []);
    assert_eq!(right.audit().consumed, 1);
    right.own.line(RING_LINE).publish(0, u64::from(TAG));
    let wanted = twice(Ring::Peers, 0, Place::Free, Place::Unsent);
    assert_eq!(audit_pair(&left, &right), [wanted]);
}

/// A peer that writes anything anywhere gets findings at most, and nothing is changed by looking.
#[test]
fn a_spoilt_segment_does_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut found = 0;
    for _ in 0..2_000 {
        let (left, mut right) = sent(3);
        for slot in 0..SLOTS {
            // Plausible: of this lap or the next ones, of any kind.
            let word = random() & 0xffff_0000_ffff_1f00 | (random() % 4);
            left.own.line(RING_LINE + slot).publish(0, word);
        }
        let line = left.own.head::<CURSOR_LINE>();
        line.store(CURSOR_SENT, random() % 8);
        line.publish(CURSOR_CONSUMED, random() % 8);
        let audit = right.audit();
        assert_eq!(right.audit(), audit);
        found += audit_pair(&left, &right).len();
        let _ = right.arrival();
    }
    assert!(found > 2_000);
}

//! There is always room for the answers to the calls that a peer may have open, whatever lies in the ring.

use tightbeam_segment::{Arrival, Layout, MAX_CALLS, Outgoing, Port, testing};

fn send(port: &Port, len: usize) {
    let sent = port.try_send(Outgoing::message(1), &vec![7; len]);
    sent.expect("room, as the peer's credit says");
}

fn take(port: &mut Port) {
    assert!(matches!(port.arrival(), Arrival::Message { .. }));
    port.consume();
}

/// The jump over an old tail leaves a gap, and it stays as long as its marker is not known to be consumed. Here it is the longest one: two of the
/// longest messages lie behind what was drained, and the answers to four calls come in front of and behind it.
#[test]
fn answers_have_room_behind_the_longest_gap() {
    for depth in [8, 16, 64, 128] {
        let layout = Layout::new(depth).unwrap();
        let (longest, slots) = (layout.max_inline(), 1 + (layout.max_inline() - 56) / 64);
        for before in 0..depth {
            for small in 0..=depth.saturating_sub(2 * slots) {
                for taken in [0, small / 2, small] {
                    answers_have_room(layout, longest, [before, small, taken]);
                }
            }
        }
    }
}

fn answers_have_room(layout: Layout, longest: usize, [before, small, taken]: [usize; 3]) {
    let (mut near, mut far) = testing::pair(layout);
    (0..before).for_each(|_| send(&near, 8));
    (0..before).for_each(|_| take(&mut far));
    far.try_send(Outgoing::message(2), b"").unwrap();
    for _ in 0..MAX_CALLS {
        far.try_send(Outgoing::call(3), b"").unwrap();
    }
    // In the handler of the message that brings the credit.
    assert_eq!(near.arrival(), Arrival::Message { handler: 2 });
    near.incoming();
    for _ in 0..2 {
        if near
            .try_send(Outgoing::message(1), &vec![1; longest])
            .is_err()
        {
            return;
        }
    }
    for _ in 0..small {
        if near.try_send(Outgoing::message(1), b"small").is_err() {
            return;
        }
    }
    near.consume();
    for call in 0..MAX_CALLS {
        assert_eq!(near.arrival(), Arrival::Message { handler: 3 });
        let answered = near.incoming().1.try_reply(&vec![2; longest]);
        assert_eq!(
            answered,
            Ok(()),
            "call {call}, {before} before, {small} small, {taken} taken"
        );
        near.consume();
        if call == 0 {
            (0..2 + taken).for_each(|_| take(&mut far));
            while near.try_send(Outgoing::message(1), b"more").is_ok() {}
        }
    }
    assert_eq!(near.fault(), None);
}

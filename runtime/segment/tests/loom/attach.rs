//! Attach and detach: who finds a segment finds all of it, and gets everything that was published before it was closed.
//!
//! Not seen: the opening exchange and the seals (`segments.rs` of `tests/hostile`, `tests/bad_peers.rs`), and an owner that is
//! killed at any point of this (`tests/steps`: "open by connecting", "accept", "close").

use crate::model;
use loom::thread;
use tightbeam_segment::{
    Arrival, Ended, Identity, Incarnation, Layout, Mismatch, Outgoing, Port, testing,
};

const PAGE: u32 = 4096;

#[test]
fn a_segment_is_found_whole_and_drained_to_its_end() {
    model(|| {
        let layout = Layout::new(2).unwrap();
        let identity = move |seed| Identity::ours(layout, PAGE, Incarnation([seed, !seed]));
        let (left_own, left_seen) = testing::segment(layout);
        let (right_own, right_seen) = testing::segment(layout);
        let right_own = layout.format(right_own, &identity(2));
        let right_seen = Layout::attach(right_seen, &identity(2), PAGE).ok().unwrap();
        let owner = thread::spawn(move || {
            let left_own = layout.format(left_own, &identity(1));
            let left = Port::new(left_own, right_seen, 0);
            left.try_send(Outgoing::message(1), b"last words").unwrap();
            left.close();
            left
        });
        // What is not there yet is refused; what is there is all there.
        match Layout::attach(left_seen, &identity(1), PAGE) {
            Err(Mismatch::Magic { found: 0 }) => {}
            Err(other) => panic!("{other}"),
            Ok(left_seen) => drain(Port::new(right_own, left_seen, 1)),
        }
        owner.join().unwrap();
    });
}

fn drain(mut right: Port) {
    let (mut received, mut ends) = (0, 0);
    // Looks on after the end: it is found once and nothing comes behind it.
    while ends < 2 {
        let ended = right.peer_ended();
        match right.arrival() {
            Arrival::Message { handler: 1 } => {
                assert_eq!(ends, 0, "a message behind the end");
                assert_eq!(right.incoming().0.bytes(), b"last words");
                right.consume();
                received += 1;
            }
            Arrival::Empty if ended == Ended::Closed => ends += 1,
            Arrival::Empty => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, 1);
}

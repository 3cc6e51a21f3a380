//! Publish and consume, credit return, calls, and the end of a channel.
//!
//! Not seen: more than a few laps and slots, jumps over a tail (`model.rs`), and a peer that is killed between two stores
//! (`tests/steps`).

use crate::model;
use loom::thread;
use tightbeam_segment::{Answer, Arrival, Ended, Layout, Outgoing, Port, TrySendError, testing};

/// The payload of message `n`: long enough for two slots when odd.
fn payload(n: u8) -> Vec<u8> {
    vec![n; if n % 2 == 1 { 64 } else { 8 }]
}

/// Looks for message `n`, and checks it.
fn receive(port: &mut Port, n: u8) -> bool {
    match port.arrival() {
        Arrival::Empty => false,
        Arrival::Message { handler } => {
            assert_eq!(handler, u16::from(n));
            assert_eq!(port.incoming().0.bytes(), payload(n));
            port.consume();
            port.finish_drain();
            true
        }
        other => panic!("{other:?}"),
    }
}

/// Publish and consume; the third message waits for the credit of the first (depth 2), laps start over.
#[test]
fn messages_arrive_whole_and_in_order_and_credit_comes_back() {
    model(|| {
        let (left, mut right) = testing::pair(Layout::new(2).unwrap());
        let sender = thread::spawn(move || {
            let mut sent = 0;
            for _ in 0..4 {
                match left.try_send(Outgoing::message(sent.into()), &payload(sent)) {
                    Ok(()) => sent += 1,
                    Err(TrySendError::Full) => (),
                    Err(error) => panic!("{error}"),
                }
            }
            (left, sent)
        });
        let mut received = 0;
        for _ in 0..3 {
            received += u8::from(receive(&mut right, received));
        }
        let (left, sent) = sender.join().unwrap();
        while receive(&mut right, received) {
            received += 1;
        }
        assert_eq!(received, sent);
        // All credit is back.
        for n in sent..sent + 2 {
            left.try_send(Outgoing::message(n.into()), b"").unwrap();
        }
    });
}

/// Credit rides on the reply; the second call starts a lap over a drained ring.
#[test]
fn calls_are_answered() {
    model(|| {
        let (mut left, mut right) = testing::pair(Layout::new(2).unwrap());
        let server = thread::spawn(move || {
            for _ in 0..2 {
                while right.arrival() == Arrival::Empty {
                    thread::yield_now();
                }
                let (incoming, port) = right.incoming();
                port.try_reply(incoming.bytes()).unwrap();
                right.consume();
            }
            right
        });
        for n in 0..2u8 {
            let call = left.next_call();
            left.try_send(Outgoing::call(9), &[n; 3]).unwrap();
            while left.arrival() == Arrival::Empty {
                thread::yield_now();
            }
            assert_eq!(
                left.arrival(),
                Arrival::Reply {
                    call,
                    answer: Answer::Reply
                }
            );
            assert_eq!(left.incoming().0.bytes(), [n; 3]);
            left.consume();
        }
        server.join().unwrap();
    });
}

/// Who sees the channel closed, then looks, has missed nothing.
#[test]
fn closing_is_seen_after_everything_sent() {
    model(|| {
        let (left, mut right) = testing::pair(Layout::new(2).unwrap());
        let sender = thread::spawn(move || {
            left.try_send(Outgoing::message(0), &payload(0)).unwrap();
            left.try_send(Outgoing::message(0), &payload(0)).unwrap();
            left.close();
            left
        });
        let mut received = 0;
        loop {
            let ended = right.peer_ended();
            match right.arrival() {
                Arrival::Message { .. } => {
                    right.consume();
                    received += 1;
                }
                Arrival::Empty if ended == Ended::Closed => break,
                Arrival::Empty => thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, 2);
        sender.join().unwrap();
    });
}

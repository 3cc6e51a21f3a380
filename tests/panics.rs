//! Handlers that panic: their message counts as handled, nothing else is lost or handled twice, and a caller is told.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use support::{PATIENCE, Scratch, patiently};
use tightbeam::{Batch, CallError, Counter, Endpoint, Event, Handlers};

const TAKE: u16 = 1;
const MESSAGES: u8 = 20;
/// Numbers of the messages that make their handler panic, the last one among them.
const BAD: [u8; 3] = [3, 7, MESSAGES - 1];

/// Runs a server that survives its handlers' panics, and a client on a thread of its own.
fn check(name: &str, work: impl FnOnce(&mut Endpoint) + Send + 'static) {
    let scratch = Scratch::new(name);
    let take = Handlers::new().on(TAKE, |seen: &mut Vec<u8>, message, _reply| {
        let number = message.bytes()[0];
        seen.push(number);
        assert!(!BAD.contains(&number), "on purpose");
    });
    let builder = Endpoint::builder().state(Vec::new()).handlers(take);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let builder = Endpoint::builder().deadline(PATIENCE);
        work(&mut builder.connect(&address).expect("it listens"));
    });
    let mut panics = 0;
    let end = patiently(|| {
        let polled = catch_unwind(AssertUnwindSafe(|| server.poll(100)));
        panics += usize::from(polled.is_err());
        let event = server.next_event();
        event.filter(|event| !matches!(event, Event::Opened { .. }))
    });
    client.join().expect("the client's asserts hold");
    assert_eq!(panics, BAD.len());
    assert_eq!(*server.state(), (0..MESSAGES).collect::<Vec<_>>());
    let Event::Closed { counters, .. } = end else {
        panic!("{end:?}");
    };
    assert_eq!(counters.get(Counter::HandlerUnwound), BAD.len() as u64);
    assert_eq!(counters.get(Counter::Received), MESSAGES.into());
}

#[test]
fn a_message_whose_handler_panics_is_handled_once() {
    check("panic-one", |client| {
        for number in 0..MESSAGES {
            client.send(TAKE, &[number]).expect("room");
        }
    });
}

#[test]
fn the_rest_of_a_batch_is_handled() {
    check("panic-batch", |client| {
        let mut batch = Batch::new();
        assert!((0..MESSAGES).all(|number| batch.push(TAKE, &[number; 20])));
        client.send_batch(&mut batch).expect("room");
    });
}

#[test]
fn its_caller_is_told() {
    check("panic-call", |client| {
        for number in 0..MESSAGES {
            let answer = client.call(TAKE, &[number]).map(<[u8]>::len);
            assert!(matches!(answer, Err(CallError::NoReply { handler: TAKE })));
        }
    });
}

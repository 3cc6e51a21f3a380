//! Batches between processes: what goes in comes out, in order, between other messages,
//! with handlers that send back, and to indices without a handler.

mod support;

use support::{PATIENCE, Peer, Scratch, connect, next_event, opened, role};
use tightbeam::{Batch, Counter, Endpoint, Event, Handlers, MAX_INLINE, Message, Reply};

const NUMBERED: u16 = 1;
const PLAIN: u16 = 2;
const NOBODY: u16 = 9;
const ROUNDS: u64 = 3_000;

/// What the server has seen: the number that must come next, and what was wrong.
#[derive(Default)]
struct Seen {
    next: u64,
    wrong: u64,
}

/// A message says its number, then as many bytes as the number says.
fn numbered(number: u64) -> Vec<u8> {
    let length = (number * 7 % 61) as usize;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..length).map(|n| (number as usize + n) as u8));
    bytes
}

fn check(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    assert!(!reply.wanted(), "nobody waits for an answer");
    // What a handler sends meanwhile must not disturb what is still to be unpacked.
    if seen.next.is_multiple_of(50) {
        let _ = reply.try_send(PLAIN, &[0xff; 300]);
    }
    seen.wrong += u64::from(message.bytes() != numbered(seen.next));
    seen.next += 1;
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    match role() {
        Some((role, address)) if role == "batches" => send_batches(&address),
        Some((role, _)) => panic!("no such role: {role}"),
        None => {}
    }
}

fn send_batches(address: &str) {
    let mut client = connect(address);
    let mut batch = Batch::new();
    let mut number = 0;
    for round in 0..ROUNDS {
        let most = round % 40;
        for _ in 0..most {
            if !batch.push(NUMBERED, &numbered(number)) {
                break;
            }
            number += 1;
        }
        assert!(batch.len() as u64 <= most);
        client.send_batch(&mut batch).expect("room");
        assert!(batch.is_empty());
        // Others between them, a long one now and then.
        client.send(NUMBERED, &numbered(number)).expect("room");
        number += 1;
        if round % 16 == 0 {
            client.send(PLAIN, &[7; MAX_INLINE]).expect("room");
        }
        client.poll(64);
    }
    assert!(batch.push(NOBODY, b"lost") && batch.push(NOBODY, b""));
    client.send_batch(&mut batch).expect("room");
    let channel = client.channels().next().expect("a channel");
    let sent = client.counters(channel).expect("it lives");
    let others = ROUNDS.div_ceil(16) + 2;
    assert_eq!(sent.get(Counter::Sent), number + others);
}

#[test]
fn batches_arrive_whole_and_in_order() {
    let scratch = Scratch::new("batches");
    let handlers = Handlers::new()
        .on(NUMBERED, check)
        .on(PLAIN, |_, message, _| assert_eq!(message.len(), MAX_INLINE));
    let builder = Endpoint::builder()
        .state(Seen::default())
        .handlers(handlers);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let client = Peer::start("batches", &scratch.address());
    let counters = loop {
        match next_event(&mut server) {
            Event::Opened { .. } => {}
            Event::Closed { counters, .. } => break counters,
            other => panic!("{other:?}"),
        }
    };
    assert!(client.finish(), "its asserts hold");
    let Seen { next, wrong } = server.state();
    assert!(*next > 10 * ROUNDS);
    assert_eq!(*wrong, 0);
    let others = ROUNDS.div_ceil(16) + 2;
    assert_eq!(counters.get(Counter::Received), next + others);
    assert_eq!(counters.get(Counter::DropNoHandler), 2);
}

#[test]
fn a_batch_that_was_not_sent_stays() {
    let scratch = Scratch::new("kept");
    let address = scratch.address();
    let mut server = Endpoint::<()>::listen(&address, Handlers::new()).expect("a free path");
    let mut batch = Batch::new();
    assert!(batch.push(1, b"early"));
    assert_eq!(
        server.try_send_batch(&mut batch),
        Err(tightbeam::SendError::NoChannel)
    );
    assert_eq!(batch.len(), 1);
    let builder = Endpoint::builder().depth(2).deadline(PATIENCE);
    let mut client = builder.connect(&address).expect("it listens");
    while client.try_send_batch(&mut batch) == Ok(()) {
        assert!(batch.push(1, b"more"));
    }
    assert_eq!(batch.len(), 1, "a full ring keeps it");
    batch.clear();
    assert!(batch.is_empty());
    assert!(!batch.push(1, &[0; MAX_INLINE]), "no room for its head");
    assert!(batch.push(1, &[0; MAX_INLINE - 8]));
}

/// The control thread has told of the hang-up before the first batch is looked at.
#[test]
fn a_batch_that_is_found_after_the_hang_up_is_handled_once() {
    const BATCHES: u64 = 200;
    let scratch = Scratch::new("batch-late");
    let handlers = Handlers::new().on(PLAIN, |seen: &mut Seen, _, _| seen.next += 1);
    let builder = Endpoint::builder()
        .state(Seen::default())
        .handlers(handlers);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let mut client = connect(&scratch.address());
    opened(&mut server);
    let mut batch = Batch::new();
    for _ in 0..BATCHES {
        assert!((0..5).all(|_| batch.push(PLAIN, b"late")));
        client.send_batch(&mut batch).expect("room");
    }
    drop(client);
    // What the one thread does for these, it does after that.
    let other = Scratch::new("batch-other");
    let _listens = Endpoint::builder()
        .listen(&other.address())
        .expect("a free path");
    (0..3).for_each(|_| drop(connect(&other.address())));
    let end = next_event(&mut server);
    let Event::Closed { counters, .. } = end else {
        panic!("{end:?}");
    };
    assert_eq!(server.state().next, 5 * BATCHES);
    assert_eq!(counters.get(Counter::Received), 5 * BATCHES);
}

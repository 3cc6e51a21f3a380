//! Handlers that panic: their message counts as handled, nothing else is lost or handled twice, and a caller is told.

mod support;

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{PATIENCE, Scratch, patiently};
use tightbeam::{Batch, CallError, Counter, Endpoint, Event, Handlers, SendError};

const TAKE: u16 = 1;
const MESSAGES: u8 = 20;
/// Numbers of the messages that make their handler panic, the last one among them.
const BAD: [u8; 3] = [3, 7, MESSAGES - 1];

/// Runs a server that survives its handlers' panics, and a client on a thread of its own: a process, then one over a device, whose packets
/// lead straight to their handlers.
fn check(name: &str, work: impl Fn(&mut Endpoint) + Copy + Send + 'static) {
    let scratch = Scratch::new(name);
    check_at(scratch.address(), work);
    let free = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    let address = format!("udp:{}", free.local_addr().expect("it has one"));
    drop(free);
    check_at(address, work);
}

fn check_at(address: String, work: impl Fn(&mut Endpoint) + Send + 'static) {
    let take = Handlers::new().on(TAKE, |seen: &mut Vec<u8>, message, _reply| {
        let number = message.bytes()[0];
        seen.push(number);
        assert!(!BAD.contains(&number), "on purpose");
    });
    let builder = Endpoint::builder().state(Vec::new()).handlers(take);
    let mut server = builder.listen(&address).expect("a free place");
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

/// A handler of another channel unwinds through a call whose answer is there already: nobody takes it, and nothing waits behind it.
#[test]
fn a_call_that_is_unwound_leaves_no_answer() {
    const BOOM: u16 = 2;
    const CALLS: u64 = 20_000;
    let scratch = Scratch::new("panic-through");
    let handlers = Handlers::new()
        .on(TAKE, |taken: &mut u64, _, _| *taken += 1)
        // Without a word on the terminal.
        .on(BOOM, |_, _, _| std::panic::resume_unwind(Box::new(())));
    let builder = Endpoint::builder().state(0).handlers(handlers);
    let mut caller = builder.listen(&scratch.address()).expect("a free path");
    let address = scratch.address();
    // Answers, and says something behind each answer.
    let calls = Arc::new(AtomicU64::new(0));
    let answered = Arc::clone(&calls);
    let answering = std::thread::spawn(move || {
        let echo = Handlers::new().on(TAKE, |calls: &mut Arc<AtomicU64>, message, reply| {
            for _ in 0..calls.load(Ordering::Relaxed) % 200 {
                std::hint::spin_loop();
            }
            let bytes = message.bytes().to_vec();
            let said = reply.try_send(TAKE, &[]).is_ok();
            calls.fetch_add(said.into(), Ordering::Relaxed);
            reply.send(&bytes);
        });
        let builder = Endpoint::builder().state(answered).handlers(echo);
        let mut server = builder.connect(&address).expect("it listens");
        while server.next_event().is_none() {
            server.poll_for(64, PATIENCE);
        }
    });
    let answers = patiently(|| {
        caller.poll(1);
        caller.next_event()
    });
    let answers = answers.channel();
    let address = scratch.address();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let booming = std::thread::spawn(move || {
        let mut client = Endpoint::builder().connect(&address).expect("it listens");
        while !stopped.load(Ordering::Relaxed) {
            let _ = client.try_send(BOOM, &[]);
        }
    });
    patiently(|| {
        let _ = catch_unwind(AssertUnwindSafe(|| caller.poll(64)));
        caller.next_event()
    });
    let mut unwound = 0;
    for number in 0..CALLS {
        let call = AssertUnwindSafe(|| {
            let said = number.to_le_bytes();
            let answer = caller.call_to(answers, TAKE, &said, PATIENCE);
            match answer {
                Ok(answer) => assert_eq!(answer, said, "the answer to another call"),
                Err(error) => assert!(
                    matches!(error, CallError::NotSent(SendError::DeadlineExceeded)),
                    "{error}"
                ),
            }
        });
        if let Err(panic) = catch_unwind(call) {
            if panic.is::<String>() {
                std::panic::resume_unwind(panic);
            }
            unwound += 1;
        }
    }
    assert!(unwound > 0);
    stop.store(true, Ordering::Relaxed);
    booming.join().expect("it only sends");
    // What was said behind each answer comes, behind those too that nobody took.
    let said = Arc::clone(&calls);
    patiently(|| {
        let _ = catch_unwind(AssertUnwindSafe(|| caller.poll(64)));
        (*caller.state() == said.load(Ordering::Relaxed)).then_some(())
    });
    caller.close(answers);
    answering.join().expect("it only answers");
}

//! Endpoints in tokio programs: nothing is missed, others of the thread run meanwhile, and futures may be dropped at any point.

mod support;

use futures_util::future::{Either, select};
use futures_util::stream::TryStreamExt;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use support::{PATIENCE, Peer, Scratch, role};
use tightbeam::{CallError, Counter, Endpoint, Event, Handlers, Message, Reply, Wait};
use tokio::task::yield_now;

const ECHO: u16 = 1;
const SILENT: u16 = 2;
const ASK_BACK: u16 = 3;
const NOBODY: u16 = 9;
const ROUNDS: u64 = 3_000;

fn handlers() -> Handlers<u64> {
    Handlers::new()
        .on(ECHO, |count, message: Message<'_>, reply: Reply<'_>| {
            *count += 1;
            reply.send(message.bytes());
        })
        .on(SILENT, |_, _, _| {})
        .on(ASK_BACK, |_, message: Message<'_>, reply: Reply<'_>| {
            // Something else before the answer, which must not be taken for it.
            let _ = reply.try_send(ECHO, b"something else");
            reply.send(message.bytes());
        })
}

fn builder(wait: Wait) -> tightbeam::Builder<u64> {
    let builder = Endpoint::builder().state(0).handlers(handlers());
    builder.depth(64).deadline(PATIENCE).wait(wait)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let limit = tokio::time::timeout(4 * PATIENCE, future);
        limit.await.expect("it hangs")
    })
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    match role.as_str() {
        "call" => call(&address, Wait::Adaptive),
        "call and sleep" => call(&address, Wait::Park),
        "serve" => {
            let mut server = builder(Wait::Adaptive).listen(&address).expect("a path");
            while !matches!(server.next_event(), Some(Event::Closed { .. })) {
                server.poll_for(16, PATIENCE);
            }
        }
        other => panic!("no such role: {other}"),
    }
}

fn call(address: &str, wait: Wait) {
    let mut client = builder(wait).connect(address).expect("it listens");
    for round in 0..ROUNDS {
        if round % 7 == 0 {
            std::thread::sleep(Duration::from_micros(round % 50));
        }
        let said = round.to_ne_bytes();
        assert_eq!(client.call(ECHO, &said), Ok(&said[..]));
    }
}

/// An async server between clients that sleep and clients that spin; the stream of events says when all have left.
#[test]
fn a_server_in_a_runtime() {
    for wait in [Wait::Adaptive, Wait::Park] {
        let scratch = Scratch::new("tokio-server");
        let mut server = builder(wait).listen(&scratch.address()).expect("a path");
        let peers = ["call", "call and sleep"].map(|role| Peer::start(role, &scratch.address()));
        block_on(async {
            let (mut closed, mut events) = (0, pin!(server.events()));
            while closed < peers.len() {
                match events.try_next().await.expect("descriptors") {
                    Some(Event::Closed { counters, .. }) => {
                        assert_eq!(counters.get(Counter::Received), ROUNDS);
                        closed += 1;
                    }
                    Some(Event::Opened { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        assert_eq!(*server.state(), 2 * ROUNDS);
        peers.into_iter().for_each(|peer| assert!(peer.finish()));
    }
}

#[test]
fn calls_as_futures() {
    for wait in [Wait::Adaptive, Wait::Park] {
        let scratch = Scratch::new("tokio-calls");
        let peer = Peer::start("serve", &scratch.address());
        let address = scratch.address();
        let mut client = support::patiently(|| builder(wait).connect(&address).ok());
        block_on(async {
            for round in 0..ROUNDS {
                let said = round.to_ne_bytes();
                let index = if round % 3 == 0 { ASK_BACK } else { ECHO };
                assert_eq!(client.call_async(index, &said).await, Ok(said.to_vec()));
            }
            let none = client.call_async(NOBODY, b"").await;
            assert_eq!(none, Err(CallError::NoHandler { handler: NOBODY }));
            let none = client.call_async(SILENT, b"").await;
            assert_eq!(none, Err(CallError::NoReply { handler: SILENT }));
        });
        assert_eq!(*client.state(), ROUNDS.div_ceil(3));
        drop(client);
        assert!(peer.finish());
    }
}

/// A call that was given up leaves nothing behind that the next one could take for its answer.
#[test]
fn calls_that_are_given_up() {
    let scratch = Scratch::new("tokio-given-up");
    let mut server = builder(Wait::Adaptive)
        .listen(&scratch.address())
        .expect("a path");
    let mut client = builder(Wait::Park)
        .connect(&scratch.address())
        .expect("it listens");
    let channel = client.channels().next().expect("one");
    support::opened(&mut server);
    let given_up = block_on(async {
        let short = Duration::from_millis(1);
        client.call_to_async(channel, ECHO, b"late", short).await
    });
    assert_eq!(given_up, Err(CallError::DeadlineExceeded));
    // Dropped in the middle, at its first and at its second rest.
    for rests in 1..=2 {
        block_on(async {
            let call = pin!(client.call_async(ECHO, b"dropped"));
            let rest = pin!(async {
                for _ in 0..rests {
                    yield_now().await;
                }
            });
            assert!(matches!(select(call, rest).await, Either::Right(_)));
        });
    }
    while *server.state() < 3 {
        server.poll(16);
    }
    let answer = block_on(async {
        let call = pin!(client.call_async(ECHO, b"the right one"));
        let serve = pin!(async {
            while *server.state() < 4 {
                server.ready().await.expect("descriptors");
            }
            std::future::pending::<()>().await;
        });
        match select(call, serve).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => unreachable!("it never ends"),
        }
    });
    assert_eq!(answer, Ok(b"the right one".to_vec()));
    let counters = client.counters(channel).expect("open");
    assert_eq!(counters.get(Counter::DropLateReply), 3);
}

/// Who waits for a message does not keep others of its thread from running.
#[test]
fn others_of_the_thread_run_meanwhile() {
    let scratch = Scratch::new("tokio-others");
    let mut server = builder(Wait::Spin)
        .listen(&scratch.address())
        .expect("a path");
    let stopper = server.stopper();
    let ticks = Rc::new(Cell::new(0));
    block_on(async {
        let others = pin!(async {
            for tick in 1..=10 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks.set(tick);
            }
            stopper.stop();
            std::future::pending::<()>().await;
        });
        match select(pin!(server.ready()), others).await {
            Either::Left((handled, _)) => assert_eq!(handled, Ok(0), "it was stopped"),
            Either::Right(_) => unreachable!("it never ends"),
        }
    });
    assert_eq!(ticks.get(), 10);
}

/// Whoever keeps its peer busy keeps no deadline from passing, and nobody else of the thread from running.
#[test]
fn a_backlog_does_not_hide_a_deadline() {
    let scratch = Scratch::new("tokio-backlog");
    let server = builder(Wait::Adaptive).depth(1 << 15);
    let mut server = server.listen(&scratch.address()).expect("a path");
    let slow = |_: &mut (), _: Message<'_>, _: Reply<'_>| {
        std::thread::sleep(Duration::from_micros(100));
    };
    let client = Endpoint::builder().handlers(Handlers::new().on(SILENT, slow));
    let mut client = client.connect(&scratch.address()).expect("it listens");
    while server.channels().next().is_none() {
        server.poll(1);
    }
    // More than three seconds of it, in front of an answer that will not come: it is not polled any more.
    let mut sent = 0;
    while server.try_send(SILENT, b"something else").is_ok() {
        sent += 1;
    }
    let channel = client.channels().next().expect("a channel");
    let ran = Cell::new(0);
    let within = Duration::from_millis(50);
    let called = block_on(async {
        let call = pin!(client.call_to_async(channel, ECHO, b"?", within));
        let others = pin!(async {
            loop {
                ran.set(ran.get() + 1);
                yield_now().await;
            }
        });
        match select(call, others).await {
            Either::Left((called, _)) => called.map(drop),
            Either::Right((never, _)) => never,
        }
    });
    assert_eq!(called, Err(CallError::DeadlineExceeded));
    let received = client.counters(channel).expect("a channel");
    let received = received.get(Counter::Received);
    assert!(received < sent, "all {sent} were handled before");
    assert!(ran.get() > 1, "nobody else of the thread has run");
}

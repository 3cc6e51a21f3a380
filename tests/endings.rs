//! How channels end: closed, dead, killed in the middle, stopped. Everything that was published before is handled first,
//! and the end is told once.

mod support;

use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use support::{Ledger, PATIENCE, Peer, Scratch, connect, next_event, opened, patiently, role};
use tightbeam::{
    CallError, Counter, Endpoint, Event, Handlers, MAX_INLINE, Message, PeerFault, Reply, SendError,
};

const ECHO: u16 = 1;
const NUMBERED: u16 = 2;
const DIE: u16 = 3;
const LAST: u16 = 4;
const NOTE: u16 = 5;

/// Words of the ledger: what a child was about to send, what it has sent, what its channel counted, that it has gone.
const ATTEMPTED: usize = 0;
const PUBLISHED: usize = 1;
const COUNTED: usize = 2;
const GONE: usize = 3;

/// How many messages a child sends before it ends on its own.
const STREAM: u64 = 10_000;

/// Messages are numbered; each must be the next.
#[derive(Default)]
struct Seen {
    next: u64,
    out_of_order: u64,
    leave: bool,
}

fn numbered(seen: &mut Seen, message: Message<'_>, _reply: Reply<'_>) {
    let bytes = message.bytes();
    let number = bytes.first_chunk().map(|n| u64::from_ne_bytes(*n));
    seen.out_of_order += u64::from(number != Some(seen.next));
    seen.next += 1;
}

/// More than a waiting call handles at a time, so that the answer is behind what is handled first.
const NOTES: u64 = 70;

fn last(seen: &mut Seen, _message: Message<'_>, reply: Reply<'_>) {
    for _ in 0..NOTES {
        let _ = reply.try_send(NOTE, b"a note");
    }
    reply.send(b"the answer");
    seen.leave = true;
}

fn server(address: &str) -> Endpoint<Seen> {
    let handlers = Handlers::new()
        .on(ECHO, |_, message, reply| reply.send(message.bytes()))
        .on(NUMBERED, numbered)
        .on(DIE, |_, _, _| {
            kill_process(getpid(), Signal::KILL).expect("this process");
        })
        .on(LAST, last);
    Endpoint::listen(address, handlers).expect("a free path")
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    match role.as_str() {
        "serve" => server(&address).run().expect("it listens"),
        "stream and close" => drop(stream(&address, STREAM)),
        "stream and exit" => {
            let _client = stream(&address, STREAM);
            std::process::exit(0);
        }
        "stream until killed" => drop(stream(&address, u64::MAX)),
        "stay" => {
            let _client = connect(&address);
            std::thread::sleep(2 * PATIENCE);
        }
        "answer and close" => drop(answer(&address, 0)),
        "answer, send and close" => drop(answer(&address, 1)),
        "answer, send and exit" => {
            let _server = answer(&address, 1);
            Ledger::of(&address).write(GONE, 1);
            std::process::exit(0);
        }
        "run out of descriptors" => run_out(&address),
        other => panic!("no such role: {other}"),
    }
    Ledger::of(&address).write(GONE, 1);
}

/// Sends numbered messages of all sizes, each written down before and after.
fn stream(address: &str, count: u64) -> Endpoint {
    let ledger = Ledger::of(address);
    let mut client = connect(address);
    let mut payload = [0; MAX_INLINE];
    for n in 0..count {
        payload[..8].copy_from_slice(&n.to_ne_bytes());
        let len = 8 + (n as usize * 13) % (MAX_INLINE - 7);
        ledger.write(ATTEMPTED, n + 1);
        client.send(NUMBERED, &payload[..len]).expect("room");
        ledger.write(PUBLISHED, n + 1);
    }
    let channel = client.channels().next().expect("a channel");
    let counters = client.counters(channel).expect("it lives");
    ledger.write(COUNTED, counters.get(Counter::Sent));
    client
}

/// Serves one client until it has made its last call, then sends a few messages more.
fn answer(address: &str, more: u64) -> Endpoint<Seen> {
    let mut server = server(address);
    opened(&mut server);
    patiently(|| {
        server.poll(64);
        server.state().leave.then_some(())
    });
    for _ in 0..more {
        server.try_send(NOTE, b"one more").expect("room");
    }
    server
}

/// Nothing more is told of a channel that has ended, for longer than the control thread may still have something to say.
fn assert_told_once(server: &mut Endpoint<Seen>) {
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        assert_eq!(server.poll(64), 0);
        let more = server.next_event();
        assert!(more.is_none(), "{more:?}");
    }
    assert_eq!(server.channels().count(), 0);
}

/// Closed and dead are different, each is told once, and both come after everything that was sent.
#[test]
fn the_end_comes_after_everything_that_was_sent() {
    for (role, clean) in [("stream and close", true), ("stream and exit", false)] {
        let scratch = Scratch::new(if clean { "close" } else { "exit" });
        let ledger = Ledger::of(&scratch.address());
        let mut server = server(&scratch.address());
        let client = Peer::start(role, &scratch.address());
        opened(&mut server);
        let end = next_event(&mut server);
        assert_eq!(matches!(end, Event::Closed { .. }), clean, "{end:?}");
        assert_eq!(matches!(end, Event::Dead { .. }), !clean, "{end:?}");
        if let Event::Closed { counters, .. } | Event::Dead { counters, .. } = &end {
            assert_eq!(counters.get(Counter::Received), STREAM);
        }
        assert_eq!(ledger.read(COUNTED), STREAM);
        assert_eq!(
            (server.state().next, server.state().out_of_order),
            (STREAM, 0)
        );
        assert!(client.finish());
        assert_told_once(&mut server);
    }
}

/// Killed while it streams: what it has published is handled, once and in order, and then it is dead.
#[test]
fn a_client_killed_in_the_middle_of_a_stream() {
    for round in 0..12 {
        let scratch = Scratch::new("midstream");
        let ledger = Ledger::of(&scratch.address());
        let mut server = server(&scratch.address());
        let client = Peer::start("stream until killed", &scratch.address());
        opened(&mut server);
        patiently(|| {
            server.poll(1);
            (server.state().next > round * 379).then_some(())
        });
        // In every other round the ring has filled before, and nobody polls while it dies.
        if round % 2 == 0 {
            patiently(|| (ledger.read(ATTEMPTED) > server.state().next + 50).then_some(()));
        }
        client.signal(Signal::KILL);
        assert_eq!(client.killed_by(), Some(Signal::KILL.as_raw()));
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Dead { .. }), "{end:?}");
        let (published, attempted) = (ledger.read(PUBLISHED), ledger.read(ATTEMPTED));
        let seen = server.state();
        assert!(
            (published..=attempted).contains(&seen.next),
            "{published} published, {attempted} attempted, {} handled",
            seen.next
        );
        assert_eq!(seen.out_of_order, 0);
        if round == 0 {
            assert_told_once(&mut server);
        }
    }
}

#[test]
fn killed_while_idle() {
    let scratch = Scratch::new("idle");
    let mut server = server(&scratch.address());
    let client = Peer::start("stay", &scratch.address());
    opened(&mut server);
    client.signal(Signal::KILL);
    let end = next_event(&mut server);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_told_once(&mut server);
    drop(server);

    let child = Peer::start("serve", &scratch.address());
    let mut client = connect(&scratch.address());
    assert_eq!(client.call(ECHO, b"alive").expect("an answer"), b"alive");
    child.signal(Signal::KILL);
    let end = next_event(&mut client);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_eq!(client.try_send(ECHO, b""), Err(SendError::NoChannel));
    let error = client.call(ECHO, b"").expect_err("nobody is there");
    assert_eq!(error, CallError::NotSent(SendError::NoChannel));
    assert!(client.next_event().is_none());
    // The path that the killed server left is replaced by the next one.
    drop(child);
    let _next = self::server(&scratch.address());
}

/// Who waits for a peer that dies learns of it by its death, long before the deadline.
#[test]
fn a_death_ends_waiting_calls_and_sends() {
    let scratch = Scratch::new("waiting");
    let child = Peer::start("serve", &scratch.address());
    let mut client = connect(&scratch.address());
    let error = client.call(DIE, b"").expect_err("it kills itself");
    assert_eq!(error, CallError::Ended);
    let end = next_event(&mut client);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_eq!(child.killed_by(), Some(Signal::KILL.as_raw()));

    let child = Peer::start("serve", &scratch.address());
    let mut client = connect(&scratch.address());
    client.call(ECHO, b"x").expect("an answer");
    child.stop();
    while client.try_send(ECHO, b"fill").is_ok() {}
    assert_eq!(client.try_send(ECHO, b"fill"), Err(SendError::Full));
    // A stopped process can be killed, but does not look at its ring.
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        child.signal(Signal::KILL);
        child.killed_by()
    });
    assert_eq!(client.send(ECHO, b"waits"), Err(SendError::NoChannel));
    assert_eq!(
        killer.join().expect("no panic"),
        Some(Signal::KILL.as_raw())
    );
    let end = next_event(&mut client);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
}

#[test]
fn a_stopped_server_is_no_dead_server() {
    let scratch = Scratch::new("stop");
    let child = Peer::start("serve", &scratch.address());
    let mut client = connect(&scratch.address());
    client.call(ECHO, b"x").expect("an answer");
    let channel = client.channels().next().expect("a channel");
    child.stop();
    let late = client.call_to(channel, ECHO, b"late", Duration::from_millis(50));
    assert_eq!(
        late.expect_err("it is stopped"),
        CallError::DeadlineExceeded
    );
    assert!(client.next_event().is_none());
    child.signal(Signal::CONT);
    // The late reply is dropped and counted, and the next call gets its own.
    assert_eq!(client.call(ECHO, b"next").expect("an answer"), b"next");
    let counters = client.counters(channel).expect("the channel lives");
    assert_eq!(counters.get(Counter::DropLateReply), 1);
}

/// What the calling side of [`an_answer_outlives_who_gave_it`] remembers.
struct Caller {
    ledger: Ledger,
    notes: u64,
}

fn note(caller: &mut Caller, _message: Message<'_>, _reply: Reply<'_>) {
    if caller.notes == 0 {
        caller.ledger.wait_for(GONE, 1);
        // The hang-up is on its way to us. The test holds whether or not it has come; so that it mostly has:
        std::thread::sleep(Duration::from_millis(50));
    }
    caller.notes += 1;
}

/// An answer that was published arrives, also if its sender has gone before the caller looks at it.
#[test]
fn an_answer_outlives_who_gave_it() {
    for (role, more, clean) in [
        ("answer and close", 0, true),
        ("answer, send and close", 1, true),
        ("answer, send and exit", 1, false),
    ] {
        let scratch = Scratch::new("answer");
        let child = Peer::start(role, &scratch.address());
        let caller = || Caller {
            ledger: Ledger::of(&scratch.address()),
            notes: 0,
        };
        let builder = || Endpoint::builder().state(caller()).deadline(PATIENCE);
        let handlers = Handlers::new().on(NOTE, note);
        let mut client = patiently(|| {
            let builder = builder().handlers(handlers.clone());
            builder.connect(&scratch.address()).ok()
        });
        let answer = client.call(LAST, b"").map(<[u8]>::to_vec);
        assert_eq!(answer.as_deref(), Ok(b"the answer".as_slice()), "{role}");
        let end = next_event(&mut client);
        assert_eq!(matches!(end, Event::Closed { .. }), clean, "{end:?}");
        assert_eq!(matches!(end, Event::Dead { .. }), !clean, "{end:?}");
        assert_eq!(client.state().notes, NOTES + more, "{role}");
        assert!(child.finish());
    }
}

/// A client that may have no descriptor more when memory for frames comes, and is told why its channel is over.
fn run_out(address: &str) {
    let mut client = connect(address);
    let free = std::fs::File::open("/dev/null").expect("a descriptor");
    let (current, maximum) = (
        Some(free.as_raw_fd() as u64),
        getrlimit(Resource::Nofile).maximum,
    );
    drop(free);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("below the hard limit");
    client.send(NOTE, b"ready").expect("room");
    let event = next_event(&mut client);
    let Event::Faulted { fault, .. } = event else {
        panic!("{event:?}");
    };
    assert_eq!(fault, PeerFault::Exhausted);
}

/// Who is short of something does not let its peer think that it was at fault, or hung up without a word.
#[test]
fn who_runs_out_of_descriptors_closes() {
    let scratch = Scratch::new("endings-exhausted");
    let mut server = server(&scratch.address());
    for _ in 0..2 {
        let child = Peer::start("run out of descriptors", &scratch.address());
        opened(&mut server);
        let channel = server.channels().next().expect("a channel");
        patiently(|| {
            server.poll(1);
            let counters = server.counters(channel)?;
            (counters.get(Counter::Received) == 1).then_some(())
        });
        let long = vec![7; 100_000];
        server.try_send_to(channel, NOTE, &long).expect("room");
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(child.finish());
    }
}

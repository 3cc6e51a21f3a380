//! Real processes on both sides of a channel. Children are this test binary again; see `support`.

mod support;

use std::time::{Duration, Instant};
use support::{Peer, Scratch, connect, next_event, opened, patiently, role};
use tightbeam::{
    CallError, Counter, Endpoint, Event, Handle, Handlers, MAX_MESSAGE, Message, Reply, SendError,
    TypedMessage, TypedReply, Wait,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const SILENT: u16 = 3;
const DOUBLE: u16 = 4;

/// What the serving side has seen.
#[derive(Default)]
struct Seen {
    messages: u64,
    torn: u64,
    bytes: u64,
}

fn echo(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    seen.messages += 1;
    reply.send(message.bytes());
}

/// Each message must be of one pattern.
fn count(seen: &mut Seen, message: Message<'_>, _reply: Reply<'_>) {
    let bytes = message.bytes();
    seen.messages += 1;
    seen.bytes += bytes.len() as u64;
    seen.torn += u64::from(bytes.windows(2).any(|pair| pair[0] != pair[1]));
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct Double(u64);

impl TypedMessage for Double {
    const HANDLER: u16 = DOUBLE;
    type Reply = u64;
}

impl Handle<Double> for Seen {
    fn handle(&mut self, message: &Double, reply: TypedReply<'_, u64>) {
        reply.send(&(message.0 * 2));
    }
}

fn handlers() -> Handlers<Seen> {
    Handlers::new()
        .on(ECHO, echo)
        .on(COUNT, count)
        .on(SILENT, |_, _, _| {})
        .on_typed::<Double>()
}

fn server(address: &str) -> Endpoint<Seen> {
    Endpoint::listen(address, handlers()).expect("a free path")
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    match role.as_str() {
        "serve" => server(&address).run().expect("it listens"),
        "serve parked" => {
            let builder = Endpoint::builder()
                .state(Seen::default())
                .handlers(handlers());
            let mut server = builder
                .wait(Wait::Park)
                .listen(&address)
                .expect("a free path");
            server.run().expect("it listens");
        }
        "echo all sizes" => echo_all_sizes(&address),
        "stream and close" => {
            let mut client = connect(&address);
            for n in 0..STREAM {
                client.send(COUNT, &[n as u8; 9]).expect("room");
            }
        }
        "stream and exit" => {
            let mut client = connect(&address);
            for n in 0..STREAM {
                client.send(COUNT, &[n as u8; 9]).expect("room");
            }
            std::process::exit(0);
        }
        "stream patterns" => stream_patterns(&address),
        "stay" => {
            let _client = connect(&address);
            std::thread::sleep(support::PATIENCE);
        }
        other => panic!("no such role: {other}"),
    }
}

const STREAM: u64 = 10_000;

fn echo_all_sizes(address: &str) {
    let mut client = connect(address);
    let mut payload = Vec::new();
    for len in 0..=MAX_MESSAGE {
        payload.clear();
        payload.extend((0..len).map(|i| (i * 7 + len) as u8));
        assert_eq!(
            client.call(ECHO, &payload).expect("an answer"),
            payload,
            "{len} bytes"
        );
    }
}

fn stream_patterns(address: &str) {
    let mut client = connect(address);
    for n in 0..200_000usize {
        let pattern = if n % 2 == 0 { 0x00 } else { 0xff };
        let len = [8, 56, 57, 112, 500, MAX_MESSAGE][n % 6];
        client
            .send(COUNT, &[pattern; MAX_MESSAGE][..len])
            .expect("room");
    }
}

#[test]
fn many_clients_exchange_all_sizes_with_one_listener() {
    let scratch = Scratch::new("sizes");
    let mut server = server(&scratch.address());
    let clients: Vec<Peer> = (0..4)
        .map(|_| Peer::start("echo all sizes", &scratch.address()))
        .collect();
    let (mut came, mut closed) = (0, 0);
    while closed < clients.len() {
        match next_event(&mut server) {
            Event::Opened { .. } => came += 1,
            Event::Closed { counters, .. } => {
                let handled = counters.get(Counter::Received);
                assert_eq!(handled, MAX_MESSAGE as u64 + 1);
                assert_eq!(counters.get(Counter::Sent), handled);
                closed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(came, clients.len());
    assert_eq!(
        server.state().messages,
        (clients.len() * (MAX_MESSAGE + 1)) as u64
    );
    assert!(clients.into_iter().all(Peer::finish));
}

#[test]
fn no_message_is_torn_under_load() {
    let scratch = Scratch::new("torn");
    let mut server = server(&scratch.address());
    let client = Peer::start("stream patterns", &scratch.address());
    opened(&mut server);
    let end = next_event(&mut server);
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    assert_eq!((server.state().messages, server.state().torn), (200_000, 0));
    assert!(client.finish());
}

/// Closed and dead are different, each is told once, and both come after everything that was sent.
#[test]
fn the_end_comes_after_everything_that_was_sent() {
    for (role, clean) in [("stream and close", true), ("stream and exit", false)] {
        let scratch = Scratch::new(if clean { "close" } else { "exit" });
        let mut server = server(&scratch.address());
        let client = Peer::start(role, &scratch.address());
        opened(&mut server);
        let end = next_event(&mut server);
        assert_eq!(matches!(end, Event::Closed { .. }), clean, "{end:?}");
        assert_eq!(matches!(end, Event::Dead { .. }), !clean, "{end:?}");
        assert_eq!(server.state().messages, STREAM);
        assert!(client.finish());
        server.poll(1);
        assert!(server.next_event().is_none());
        assert_eq!(server.channels().count(), 0);
    }
}

#[test]
fn a_killed_client_is_dead_and_a_killed_server_too() {
    let scratch = Scratch::new("kill");
    let mut server = server(&scratch.address());
    let client = Peer::start("stay", &scratch.address());
    opened(&mut server);
    client.signal(rustix::process::Signal::KILL);
    let end = next_event(&mut server);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    drop(server);

    let child = Peer::start("serve", &scratch.address());
    let mut client = connect(&scratch.address());
    assert_eq!(client.call(ECHO, b"alive").expect("an answer"), b"alive");
    child.signal(rustix::process::Signal::KILL);
    let end = next_event(&mut client);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_eq!(client.try_send(COUNT, b""), Err(SendError::NoChannel));
    let error = client.call(ECHO, b"").expect_err("nobody is there");
    assert_eq!(error, CallError::NotSent(SendError::NoChannel));
    // The path that the killed server left is replaced by the next one.
    drop(child);
    let _next = self::server(&scratch.address());
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
    child.signal(rustix::process::Signal::CONT);
    // The late reply is dropped and counted, and the next call gets its own.
    assert_eq!(client.call(ECHO, b"next").expect("an answer"), b"next");
    let counters = client.counters(channel).expect("the channel lives");
    assert_eq!(counters.get(Counter::DropLateReply), 1);
}

#[test]
fn calls_that_nobody_answers() {
    let scratch = Scratch::new("unanswered");
    let mut server = server(&scratch.address());
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let mut client = connect(&address);
        assert_eq!(
            client.call(99, b"?"),
            Err(CallError::NoHandler { handler: 99 })
        );
        assert_eq!(
            client.call(u16::MAX, b"?"),
            Err(CallError::NoHandler { handler: u16::MAX })
        );
        assert_eq!(
            client.call(SILENT, b"?"),
            Err(CallError::NoReply { handler: SILENT })
        );
        assert_eq!(
            client.call(DOUBLE, b"odd"),
            Err(CallError::NoReply { handler: DOUBLE })
        );
        assert_eq!(client.call_typed(&Double(21)), Ok(42));
        client.send(ECHO, b"not a call").expect("room");
        client.send(98, b"nobody").expect("room");
    });
    opened(&mut server);
    let Event::Closed { counters, .. } = next_event(&mut server) else {
        panic!("the client closes");
    };
    assert_eq!(counters.get(Counter::DropNoHandler), 3);
    assert_eq!(counters.get(Counter::DropMalformed), 1);
    assert_eq!(counters.get(Counter::CallUnanswered), 1);
    assert_eq!(counters.get(Counter::ReplyUnwanted), 1);
    assert_eq!(counters.get(Counter::Received), 7);
    client.join().expect("the client's asserts hold");
}

#[test]
fn a_full_ring_keeps_nothing_and_a_large_message_names_the_limit() {
    let scratch = Scratch::new("full");
    let mut server = server(&scratch.address());
    let mut client = Endpoint::builder()
        .depth(16)
        .connect(&scratch.address())
        .expect("open");
    opened(&mut server);
    let sent = (0..)
        .take_while(|_| client.try_send(COUNT, b"x").is_ok())
        .count();
    assert_eq!(sent, 16);
    assert_eq!(client.try_send(COUNT, b"x"), Err(SendError::Full));
    let channel = client.channels().next().expect("a channel");
    let late = client.send_to(channel, COUNT, b"x", Duration::from_millis(20));
    assert_eq!(late, Err(SendError::DeadlineExceeded));
    let refused = client.try_send_typed(Double(7)).expect_err("it is full");
    assert_eq!((refused.error, refused.message.0), (SendError::Full, 7));
    assert!(
        client
            .counters(channel)
            .expect("it lives")
            .get(Counter::Full)
            >= 3
    );
    patiently(|| (server.poll(64) > 0).then_some(()));
    assert_eq!(client.try_send(COUNT, b"x"), Ok(()));
    let error = client
        .try_send(COUNT, &[0; MAX_MESSAGE + 1])
        .expect_err("too large");
    assert_eq!(
        error,
        SendError::TooLarge {
            len: MAX_MESSAGE + 1,
            max: MAX_MESSAGE
        }
    );
    assert!(error.to_string().contains("1064"), "{error}");
}

/// Two endpoints that call each other at the same time do not lock up.
#[test]
fn calls_in_a_circle() {
    let scratch = Scratch::new("circle");
    let mut left = server(&scratch.address());
    let address = scratch.address();
    let right = std::thread::spawn(move || {
        let builder = Endpoint::builder()
            .state(Seen::default())
            .handlers(handlers());
        let mut right = builder.depth(2).connect(&address).expect("open");
        for n in 0..20_000u64 {
            assert_eq!(
                right.call(ECHO, &n.to_ne_bytes()).expect("an answer"),
                n.to_ne_bytes()
            );
        }
        // The other side may have calls left.
        while right.channels().next().is_some() {
            right.poll(64);
        }
    });
    opened(&mut left);
    for n in 0..20_000u64 {
        assert_eq!(
            left.call(ECHO, &n.to_ne_bytes()).expect("an answer"),
            n.to_ne_bytes()
        );
    }
    patiently(|| {
        left.poll(64);
        (left.state().messages == 20_000).then_some(())
    });
    drop(left);
    right.join().expect("the other side's asserts hold");
}

#[test]
fn a_parked_server_wakes_for_calls_and_for_new_clients() {
    let scratch = Scratch::new("park");
    let _child = Peer::start("serve parked", &scratch.address());
    for wait in [Wait::Park, Wait::Adaptive, Wait::Spin] {
        let mut client = patiently(|| {
            Endpoint::builder()
                .wait(wait)
                .connect(&scratch.address())
                .ok()
        });
        for n in 0..500u32 {
            assert_eq!(
                client.call(ECHO, &n.to_ne_bytes()).expect("awake"),
                n.to_ne_bytes()
            );
        }
    }
}

#[test]
fn a_stopper_ends_the_loop() {
    let scratch = Scratch::new("stopper");
    let mut server = server(&scratch.address());
    let stopper = server.stopper();
    let other = std::thread::spawn(move || stopper.stop());
    let start = Instant::now();
    server.run().expect("it listens");
    assert!(start.elapsed() < support::PATIENCE);
    other.join().expect("it only stops");
    assert!(
        Endpoint::builder().connect(&scratch.address()).is_ok(),
        "it still listens"
    );
}

#[test]
fn one_endpoint_holds_channels_to_several_servers() {
    let scratches = [Scratch::new("several-a"), Scratch::new("several-b")];
    let _children = scratches
        .each_ref()
        .map(|s| Peer::start("serve", &s.address()));
    let mut client = connect(&scratches[0].address());
    let first = client.channels().next().expect("a channel");
    let second = patiently(|| client.open(&scratches[1].address()).ok());
    for channel in [first, second, first] {
        let answer = client.call_to(channel, ECHO, b"to both", support::PATIENCE);
        assert_eq!(answer.expect("an answer"), b"to both");
    }
    assert!(client.close(first));
    assert!(!client.close(first));
    assert_eq!(
        client.call(ECHO, b"the other").expect("an answer"),
        b"the other"
    );
}

#[test]
fn trusted_channels_work_and_both_sides_must_agree() {
    let scratch = Scratch::new("trusted");
    let address = scratch.address();
    let builder = Endpoint::builder()
        .state(Seen::default())
        .handlers(handlers());
    let mut server = builder.trusted(true).listen(&address).expect("a free path");
    let stopper = server.stopper();
    let client = std::thread::spawn(move || {
        let refused = Endpoint::builder().connect(&address);
        let refused = refused.err().map(|error| error.to_string());
        let mut client = Endpoint::builder()
            .trusted(true)
            .connect(&address)
            .expect("both agree");
        let echoed = client.call(ECHO, b"trusted").expect("an answer").to_vec();
        stopper.stop();
        (refused, echoed)
    });
    server.run().expect("it listens");
    let (refused, echoed) = client.join().expect("no panic");
    assert!(refused.expect("refused").contains("trusted"));
    assert_eq!(echoed, b"trusted");
}

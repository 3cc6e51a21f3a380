//! Real processes on both sides of a channel: what they exchange, and how they wait. Children are this test binary again;
//! see `support`.

mod support;

use std::time::{Duration, Instant};
use support::{Ledger, PATIENCE, Peer, Scratch, connect, next_event, opened, patiently, role};
use tightbeam::{
    CallError, Counter, Endpoint, Event, Handle, Handlers, MAX_CALLS, MAX_INLINE, MAX_MESSAGE,
    Message, PAYLOAD_BYTES, Reply, SendError, TypedMessage, TypedReply, Wait,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const SILENT: u16 = 3;
const DOUBLE: u16 = 4;
const CHECK: u16 = 5;
const COUNT_LATE: u16 = 6;
const NOTE: u16 = 7;

/// What the serving side has seen.
#[derive(Default)]
struct Seen {
    messages: u64,
    torn: u64,
    wrong: u64,
    bytes: u64,
}

fn echo(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    seen.messages += 1;
    reply.send(message.bytes());
}

/// What byte `i` of a message of this length shall be.
fn expected(i: usize, len: usize) -> u8 {
    (i * 7 + len) as u8
}

/// As [`echo`], for messages filled with what is [`expected`].
fn check(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let bytes = message.bytes();
    let right = |(i, &byte): (usize, &u8)| byte == expected(i, bytes.len());
    seen.messages += 1;
    seen.wrong += u64::from(!bytes.iter().enumerate().all(right));
    reply.send(bytes);
}

const PATTERNS: [[u8; MAX_INLINE]; 2] = [[0x00; MAX_INLINE], [0xff; MAX_INLINE]];

/// Each message must be of one pattern.
fn count(seen: &mut Seen, message: Message<'_>, _reply: Reply<'_>) {
    let bytes = message.bytes();
    seen.messages += 1;
    seen.bytes += bytes.len() as u64;
    seen.torn += u64::from(!PATTERNS.iter().any(|p| *bytes == p[..bytes.len()]));
}

/// As [`count`], but what it sends first tells the sender that the message has been consumed, and gives it time to make
/// use of the slots; only then is it read.
fn count_late(seen: &mut Seen, message: Message<'_>, reply: Reply<'_>) {
    let _ = reply.try_send(NOTE, b"");
    (0..1000).for_each(|_| std::hint::spin_loop());
    count(seen, message, reply);
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
        .on(CHECK, check)
        .on(COUNT_LATE, count_late)
}

/// A listening endpoint that waits in a certain way, and for calls as long as it takes.
fn serving(address: &str, wait: Wait) -> Endpoint<Seen> {
    let builder = Endpoint::builder().state(Seen::default());
    let builder = builder.handlers(handlers()).wait(wait).deadline(PATIENCE);
    builder.listen(address).expect("a free path")
}

fn server(address: &str) -> Endpoint<Seen> {
    serving(address, Wait::default())
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    if let Some(number) = role.strip_prefix("count ") {
        return stream_counted(&address, number.parse().expect("a number"));
    }
    match role.as_str() {
        "serve" => server(&address).run().expect("it listens"),
        "serve parked" => serving(&address, Wait::Park).run().expect("it listens"),
        "serve spinning" => serving(&address, Wait::Spin).run().expect("it listens"),
        "echo all sizes" => echo_all_sizes(&address),
        "patterns through 2 slots" => stream_patterns(&address, COUNT, 2),
        "patterns through 64 slots" => stream_patterns(&address, COUNT, 64),
        "patterns through 1024 slots" => stream_patterns(&address, COUNT, 1024),
        "patterns read late" => stream_patterns(&address, COUNT_LATE, 64),
        other => panic!("no such role: {other}"),
    }
}

fn echo_all_sizes(address: &str) {
    let mut client = connect(address);
    for len in 0..=MAX_INLINE {
        let payload: Vec<u8> = (0..len).map(|i| expected(i, len)).collect();
        let answer = client.call(CHECK, &payload).expect("an answer");
        assert_eq!(answer, payload, "{len} bytes");
    }
}

/// Sends for a while, each message of one pattern, and writes down how many.
fn stream_patterns(address: &str, handler: u16, depth: usize) {
    const MOST: usize = 2_000_000;
    const DURATION: Duration = Duration::from_millis(700);
    const SIZES: [usize; 7] = [8, 56, 57, 112, 500, 1, MAX_INLINE];
    let notes: Handlers<u64> = Handlers::new().on(NOTE, |notes, _, _| *notes += 1);
    let builder = Endpoint::builder().state(0).handlers(notes);
    let builder = builder.depth(depth).deadline(PATIENCE).wait(Wait::Spin);
    let mut client = builder.connect(address).expect("the server is there");
    let end = Instant::now() + DURATION;
    let mut sent = 0;
    while sent < MOST && (sent % 256 != 0 || Instant::now() < end) {
        let len = match handler {
            // Shorter and shorter, so that one fits where a longer one was.
            COUNT_LATE => MAX_INLINE - PAYLOAD_BYTES * (sent / 2 % 12),
            _ => SIZES[sent % SIZES.len()],
        };
        // Those that are two apart differ, because they may lie in the same slots.
        let payload = &PATTERNS[(sent ^ sent >> 1) & 1][..len];
        client.send(handler, payload).expect("room");
        client.poll(4);
        sent += 1;
        // Of two messages into a ring that has drained, the second starts over at its first slot, where the one before the
        // two lies that is being handled.
        if handler == COUNT_LATE && sent % 2 == 0 {
            patiently(|| {
                client.poll(4);
                (*client.state() == sent as u64).then_some(())
            });
        }
    }
    Ledger::of(address).write(0, sent as u64);
}

const STREAM: usize = 30_000;

/// Sends one way, and writes down what the channel has counted.
fn stream_counted(address: &str, number: usize) {
    let mut client = connect(address);
    let mut bytes = 0;
    for n in 0..STREAM + number {
        let payload = &PATTERNS[0][..(n * 31) % (MAX_INLINE + 1)];
        client.send(COUNT, payload).expect("room");
        bytes += payload.len() as u64;
    }
    let channel = client.channels().next().expect("a channel");
    let counters = client.counters(channel).expect("it lives").clone();
    let ledger = Ledger::of(address);
    ledger.write(2 * number, counters.get(Counter::Sent));
    ledger.write(2 * number + 1, bytes);
    assert_eq!(counters.get(Counter::Received), 0);
}

#[test]
fn many_clients_exchange_all_sizes_with_one_listener() {
    let scratch = Scratch::new("sizes");
    let mut server = server(&scratch.address());
    let clients: Vec<Peer> = (0..8)
        .map(|_| Peer::start("echo all sizes", &scratch.address()))
        .collect();
    let (mut came, mut closed) = (0, 0);
    while closed < clients.len() {
        match next_event(&mut server) {
            Event::Opened { .. } => came += 1,
            Event::Closed { counters, .. } => {
                let handled = counters.get(Counter::Received);
                assert_eq!(handled, MAX_INLINE as u64 + 1);
                assert_eq!(counters.get(Counter::Sent), handled);
                closed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(came, clients.len());
    let messages = (clients.len() * (MAX_INLINE + 1)) as u64;
    assert_eq!(
        (server.state().messages, server.state().wrong),
        (messages, 0)
    );
    assert!(clients.into_iter().all(Peer::finish));
}

/// sent = received = handled, in messages and in bytes, for several streams at a time.
#[test]
fn streams_arrive_to_the_last_message() {
    const CLIENTS: usize = 3;
    let scratch = Scratch::new("stream");
    let ledger = Ledger::of(&scratch.address());
    let mut server = server(&scratch.address());
    let clients: Vec<Peer> = (0..CLIENTS)
        .map(|n| Peer::start(&format!("count {n}"), &scratch.address()))
        .collect();
    let mut received: Vec<u64> = Vec::new();
    while received.len() < CLIENTS {
        if let Event::Closed { counters, .. } = next_event(&mut server) {
            assert_eq!(counters.get(Counter::Sent), 0);
            received.push(counters.get(Counter::Received));
        }
    }
    received.sort_unstable();
    let sent: Vec<u64> = (0..CLIENTS).map(|n| ledger.read(2 * n)).collect();
    assert_eq!(sent, [0, 1, 2].map(|n| (STREAM + n) as u64));
    assert_eq!(received, sent);
    assert_eq!(server.state().messages, sent.iter().sum());
    let bytes = (0..CLIENTS).map(|n| ledger.read(2 * n + 1)).sum();
    assert_eq!(server.state().bytes, bytes);
    assert!(clients.into_iter().all(Peer::finish));
}

/// The sender's lap of the ring overtakes neither a slow reader nor one that reads after it has given the slot back.
#[test]
fn no_message_is_torn_under_load() {
    for role in [
        "patterns through 2 slots",
        "patterns through 64 slots",
        "patterns through 1024 slots",
        "patterns read late",
    ] {
        let scratch = Scratch::new("torn");
        let mut server = server(&scratch.address());
        let client = Peer::start(role, &scratch.address());
        opened(&mut server);
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Closed { .. }), "{role}: {end:?}");
        let sent = Ledger::of(&scratch.address()).read(0);
        assert!(sent > 0, "{role}");
        let seen = server.state();
        assert_eq!((seen.messages, seen.torn), (sent, 0), "{role}");
        assert!(client.finish(), "{role}");
    }
}

#[test]
fn calls_that_nobody_answers() {
    let scratch = Scratch::new("unanswered");
    let mut server = server(&scratch.address());
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let mut client = connect(&address);
        for handler in [99, u16::MAX] {
            let error = client.call(handler, b"?").expect_err("nobody is there");
            assert_eq!(error, CallError::NoHandler { handler });
            assert!(error.to_string().contains(&handler.to_string()), "{error}");
        }
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

/// A reply of another size than its type is the caller's to find.
#[test]
fn a_typed_reply_of_the_wrong_size() {
    let scratch = Scratch::new("malformed");
    let odd: Handlers<()> = Handlers::new().on(DOUBLE, |_, _, reply| reply.send(b"odd"));
    let mut server = Endpoint::listen(&scratch.address(), odd).expect("a free path");
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let error = connect(&address).call_typed(&Double(1)).expect_err("odd");
        assert_eq!(error, CallError::Malformed { len: 3 });
        assert!(error.to_string().contains("3 bytes"), "{error}");
    });
    opened(&mut server);
    assert!(matches!(next_event(&mut server), Event::Closed { .. }));
    client.join().expect("the client's asserts hold");
}

/// A server that does not poll costs each caller its deadline and no more; what it answers later is dropped and counted.
#[test]
fn calls_to_a_server_that_does_not_poll() {
    const SHORT: Duration = Duration::from_millis(10);
    let scratch = Scratch::new("late");
    let mut server = server(&scratch.address());
    let mut client = connect(&scratch.address());
    let channel = client.channels().next().expect("a channel");
    for _ in 0..MAX_CALLS {
        let late = client.call_to(channel, ECHO, b"late", SHORT);
        assert_eq!(late, Err(CallError::DeadlineExceeded));
    }
    // Those that were given up still count: nothing is sent that the server could not answer.
    let refused = client.call_to(channel, ECHO, b"one more", SHORT);
    assert_eq!(
        refused,
        Err(CallError::NotSent(SendError::DeadlineExceeded))
    );
    patiently(|| {
        server.poll(64);
        (server.state().messages == MAX_CALLS as u64).then_some(())
    });
    let late = |client: &Endpoint| {
        let counters = client.counters(channel).expect("the channel lives");
        counters.get(Counter::DropLateReply)
    };
    assert_eq!(late(&client), 0);
    client.poll(64);
    assert_eq!(late(&client), MAX_CALLS as u64);
    client.send(COUNT, b"\0").expect("room");
    let next = client.call_to(channel, ECHO, b"next", SHORT);
    assert_eq!(next, Err(CallError::DeadlineExceeded), "still nobody polls");
}

#[test]
fn a_full_ring_keeps_nothing_and_a_large_message_names_the_limit() {
    let scratch = Scratch::new("full");
    let mut server = server(&scratch.address());
    let builder = Endpoint::builder().depth(16);
    let mut client = builder.connect(&scratch.address()).expect("open");
    opened(&mut server);
    let sent = (0..)
        .take_while(|_| client.try_send(COUNT, b"x").is_ok())
        .count();
    assert_eq!(sent, 16);
    let mut payload = *b"still mine";
    assert_eq!(client.try_send(COUNT, &payload), Err(SendError::Full));
    payload[0] = b'S';
    let channel = client.channels().next().expect("a channel");
    let late = client.send_to(channel, COUNT, b"x", Duration::from_millis(20));
    assert_eq!(late, Err(SendError::DeadlineExceeded));
    let refused = client.try_send_typed(Double(7)).expect_err("it is full");
    assert_eq!((refused.error, refused.message.0), (SendError::Full, 7));
    let full = client.counters(channel).expect("it lives");
    assert!(full.get(Counter::Full) >= 3);
    patiently(|| (server.poll(64) > 0).then_some(()));
    assert_eq!(client.try_send(COUNT, &payload), Ok(()));
    let error = client
        .try_send(COUNT, &vec![0; MAX_MESSAGE + 1])
        .expect_err("too large");
    assert_eq!(
        error,
        SendError::TooLarge {
            len: MAX_MESSAGE + 1,
            max: MAX_MESSAGE
        }
    );
    for word in ["67108865", "67108864"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// Two endpoints that call each other at the same time do not lock up.
#[test]
fn calls_in_a_circle() {
    const CALLS: u64 = 20_000;
    let scratch = Scratch::new("circle");
    let mut left = server(&scratch.address());
    let address = scratch.address();
    let call = |endpoint: &mut Endpoint<Seen>| {
        for n in 0..CALLS {
            let answer = endpoint.call(ECHO, &n.to_ne_bytes()).expect("an answer");
            assert_eq!(answer, n.to_ne_bytes());
        }
    };
    let right = std::thread::spawn(move || {
        let builder = Endpoint::builder()
            .state(Seen::default())
            .handlers(handlers());
        let builder = builder.depth(2).deadline(PATIENCE);
        let mut right = builder.connect(&address).expect("open");
        call(&mut right);
        // The other side may have calls left.
        patiently(|| {
            right.poll(64);
            right.channels().next().is_none().then_some(())
        });
        assert_eq!(right.state().messages, CALLS);
    });
    opened(&mut left);
    call(&mut left);
    patiently(|| {
        left.poll(64);
        (left.state().messages == CALLS).then_some(())
    });
    drop(left);
    right.join().expect("the other side's asserts hold");
}

#[test]
fn each_way_of_waiting_answers_calls_and_new_clients() {
    for (role, parks) in [
        ("serve parked", true),
        ("serve", false),
        ("serve spinning", false),
    ] {
        let scratch = Scratch::new("wait");
        let _child = Peer::start(role, &scratch.address());
        for wait in [Wait::Park, Wait::Adaptive, Wait::Spin] {
            let builder = || Endpoint::builder().wait(wait).deadline(PATIENCE);
            let mut client = patiently(|| builder().connect(&scratch.address()).ok());
            for n in 0..200u32 {
                let answer = client.call(ECHO, &n.to_ne_bytes()).expect("awake");
                assert_eq!(answer, n.to_ne_bytes());
            }
            let channel = client.channels().next().expect("a channel");
            // A server that parks is asleep for some call or other, and has to be woken.
            patiently(|| {
                client.call(ECHO, b"asleep?").expect("an answer");
                let counters = client.counters(channel).expect("it lives");
                (!parks || counters.get(Counter::Wakes) > 0).then_some(())
            });
        }
    }
}

#[test]
fn a_stopper_ends_the_loop() {
    for wait in [Wait::Park, Wait::Adaptive, Wait::Spin] {
        let scratch = Scratch::new("stopper");
        let mut server = serving(&scratch.address(), wait);
        let (stopper, address) = (server.stopper(), scratch.address());
        let other = std::thread::spawn(move || {
            // An answer says that the loop runs.
            let mut client = connect(&address);
            assert_eq!(client.call(ECHO, b"x").expect("an answer"), b"x");
            stopper.stop();
        });
        server.run().expect("it listens");
        other.join().expect("it only stops");
        // Stopped before it begins: it ends at once.
        server.stopper().stop();
        server.run().expect("it listens");
        assert!(
            Endpoint::connect(&scratch.address()).is_ok(),
            "it still listens"
        );
    }
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
        let answer = client.call_to(channel, ECHO, b"to both", PATIENCE);
        assert_eq!(answer.expect("an answer"), b"to both");
    }
    assert!(client.close(first));
    assert!(!client.close(first));
    let gone = client.call_to(first, ECHO, b"nobody", PATIENCE);
    assert_eq!(gone, Err(CallError::NotSent(SendError::NoChannel)));
    assert_eq!(
        client.call(ECHO, b"the other").expect("an answer"),
        b"the other"
    );
}

/// The shortest circle: an endpoint that listens, and calls itself.
#[test]
fn an_endpoint_may_call_itself() {
    let scratch = Scratch::new("self");
    let mut both = server(&scratch.address());
    let out = both.open(&scratch.address()).expect("it listens");
    for n in 0..1000u32 {
        let answer = both.call_to(out, ECHO, &n.to_ne_bytes(), PATIENCE);
        assert_eq!(answer.expect("an answer"), n.to_ne_bytes());
    }
    assert!(matches!(both.next_event(), Some(Event::Opened { .. })));
    assert_eq!(both.channels().count(), 2);
    assert!(both.close(out));
    assert!(matches!(next_event(&mut both), Event::Closed { .. }));
}

/// Both halves of a channel, by default and with a shallow ring.
#[test]
fn a_channel_takes_little_memory() {
    let scratch = Scratch::new("memory");
    let _server = server(&scratch.address());
    for (depth, most) in [(tightbeam::DEFAULT_DEPTH, 512 << 10), (64, 32 << 10)] {
        let builder = Endpoint::builder().depth(depth);
        let client = builder.connect(&scratch.address()).expect("it listens");
        let channel = client.channels().next().expect("a channel");
        let bytes = 2 * client.memory(channel).expect("it lives").bytes;
        assert!(bytes <= most, "depth {depth}: {bytes} bytes");
    }
}

/// A peer that sends without end keeps no deadline from passing.
#[test]
fn a_flood_keeps_no_deadline_from_passing() {
    let scratch = Scratch::new("flood");
    let mut mute = server(&scratch.address());
    let address = scratch.address();
    let client = std::thread::spawn(move || {
        let builder = Endpoint::builder()
            .state(Seen::default())
            .handlers(handlers());
        let mut client = builder.connect(&address).expect("open");
        let channel = client.channels().next().expect("a channel");
        // Once the flood runs, the other side polls no more.
        patiently(|| {
            client.poll(16);
            (client.state().messages > 0).then_some(())
        });
        let answer = client.call_to(channel, ECHO, b"?", Duration::from_millis(100));
        let outcome = answer.map(<[u8]>::to_vec);
        (outcome, client.state().messages)
    });
    opened(&mut mute);
    // It never polls again, so it answers nothing.
    while !client.is_finished() {
        let _ = mute.try_send(COUNT, b"flood");
    }
    let (outcome, handled) = client.join().expect("no panic");
    assert_eq!(outcome, Err(CallError::DeadlineExceeded));
    assert!(handled > 0, "the flood was handled meanwhile");
}

//! Waiting on a descriptor: between real processes nothing is missed, however the sleep and what ends it fall together; peers
//! without manners on the connection end their own channel; many channels sleep this way, too.

mod support;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::os::fd::AsFd;
use std::time::Duration;
use support::opening::{HELLO, get_ready, greet, identity, opening, receive, segment, send};
use support::{Ledger, PATIENCE, Peer, Scratch, opened, patiently, role};
use tightbeam::{
    ChannelId, Counter, Endpoint, Event, Handlers, Message, PeerFault, Reply, SendError, Wait,
};

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const ROUNDS: u64 = 3_000;
/// More than are slept on by a word each.
const MANY: usize = 150;

/// Words of the ledger.
const GO: usize = 0;
const HANDLED: usize = 1;

fn handlers() -> Handlers<u64> {
    Handlers::new()
        .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes());
        })
        .on(COUNT, |count, _, _| *count += 1)
}

fn server(scratch: &Scratch) -> Endpoint<u64> {
    let builder = Endpoint::builder().state(0).handlers(handlers());
    let builder = builder.depth(64).deadline(PATIENCE).wait(Wait::Park);
    builder.listen(&scratch.address()).expect("a free path")
}

/// Sleeps until there is something to poll, and polls. Whether that was before [`PATIENCE`] was over.
fn step<S>(endpoint: &mut Endpoint<S>) -> bool {
    let woken = match endpoint.arm().expect("descriptors") {
        None => true,
        Some(sleeper) => {
            let fd = sleeper.as_fd();
            let timeout = Timespec::try_from(PATIENCE).expect("in range");
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("a descriptor") > 0
        }
    };
    endpoint.poll(16);
    woken
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    match role.as_str() {
        "call" => call(&address),
        "fill" => fill(&address),
        "call over many" => call_over_many(&address),
        other => panic!("no such role: {other}"),
    }
}

/// Calls, now and then after a rest in which the server falls asleep.
fn call(address: &str) {
    let builder = Endpoint::builder().depth(64).deadline(PATIENCE);
    let mut client = builder.connect(address).expect("it listens");
    for round in 0..ROUNDS {
        if round % 7 == 0 {
            // From nothing to well after the server has gone to sleep.
            std::thread::sleep(Duration::from_micros(round % 50));
        }
        let said = round.to_ne_bytes();
        assert_eq!(client.call(ECHO, &said), Ok(&said[..]));
    }
}

#[test]
fn calls_wake_who_waits_on_its_descriptor() {
    let scratch = Scratch::new("descriptor-calls");
    let mut server = server(&scratch);
    let peer = Peer::start("call", &scratch.address());
    let mut received = 0;
    loop {
        assert!(step(&mut server), "nobody wakes, after {received}");
        let channel = server.channels().next();
        if let Some(counters) = channel.and_then(|channel| server.counters(channel)) {
            received = counters.get(Counter::Received);
        }
        match server.next_event() {
            None | Some(Event::Opened { .. }) => {}
            Some(Event::Closed { counters, .. }) => {
                assert_eq!(counters.get(Counter::Received), ROUNDS);
                break;
            }
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(peer.finish());
}

/// Reads what comes in bursts, with rests in between.
fn fill(address: &str) {
    let ledger = Ledger::of(address);
    let builder = Endpoint::builder().state(0).handlers(handlers());
    let builder = builder.depth(64).deadline(PATIENCE);
    let mut client = builder.connect(address).expect("it listens");
    while *client.state() < ROUNDS {
        client.poll(usize::MAX);
        ledger.write(HANDLED, *client.state());
        if ledger.read(GO) == 0 {
            std::thread::sleep(Duration::from_micros(client.state() % 60));
        }
    }
}

#[test]
fn room_wakes_who_found_none() {
    let scratch = Scratch::new("descriptor-room");
    let mut server = server(&scratch);
    let peer = Peer::start("fill", &scratch.address());
    opened(&mut server);
    let (mut sent, mut full) = (0, 0);
    while sent < ROUNDS {
        match server.try_send(COUNT, &[7; 40]) {
            Ok(()) => sent += 1,
            Err(SendError::Full) => {
                full += 1;
                assert!(step(&mut server), "nobody wakes, after {sent}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(full > 0, "the ring was never full");
    let ledger = Ledger::of(&scratch.address());
    ledger.write(GO, 1);
    ledger.wait_for(HANDLED, ROUNDS);
    assert!(peer.finish());
}

#[test]
fn what_is_there_already_is_not_slept_over() {
    let scratch = Scratch::new("descriptor-news");
    let mut server = server(&scratch);
    let mut client = Endpoint::connect(&scratch.address()).expect("it listens");
    // That somebody has come is news, too.
    assert!(patiently(|| server
        .arm()
        .map(|armed| armed.is_none().then_some(true))
        .unwrap()));
    server.poll(1);
    assert!(server.arm().expect("armed").is_none(), "an event");
    assert!(matches!(server.next_event(), Some(Event::Opened { .. })));
    assert!(server.arm().expect("armed").is_some());
    client.try_send(COUNT, b"").expect("room");
    assert!(server.arm().expect("armed").is_none(), "a message");
    assert_eq!(server.poll(16), 1);
    let sleeper = server.arm().expect("armed").expect("nothing is there");
    drop(client);
    let fd = sleeper.as_fd();
    let timeout = Timespec::try_from(PATIENCE).expect("in range");
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
    assert_eq!(ready, Ok(1), "the end of a channel");
    drop(sleeper);
    let end = support::next_event(&mut server);
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    server.stopper().stop();
    assert!(server.arm().expect("armed").is_none(), "a wish to stop");
}

/// While both poll, nobody is told to wake anybody, and no byte goes over the connection.
#[test]
fn who_is_awake_is_not_woken() {
    let scratch = Scratch::new("descriptor-awake");
    let mut server = server(&scratch);
    let mut client = Endpoint::connect(&scratch.address()).expect("it listens");
    opened(&mut server);
    assert!(server.arm().expect("armed").is_some());
    for _ in 0..40 {
        client.try_send(COUNT, b"x").expect("room");
    }
    let channel = client.channels().next().expect("one");
    let wakes = client.counters(channel).expect("open").get(Counter::Wakes);
    assert_eq!(wakes, 0, "it was disarmed by dropping");
    server.poll(64);
    {
        let _sleeper = server.arm().expect("armed").expect("nothing is there");
        client.try_send(COUNT, b"x").expect("room");
    }
    let wakes = client.counters(channel).expect("open").get(Counter::Wakes);
    assert_eq!(wakes, 1);
    server.poll(64);
    assert_eq!(*server.state(), 41);
}

/// What comes over the connection and is no wake-up ends that channel; wake-ups for nothing end none.
#[test]
fn babble_instead_of_a_wake_up_is_a_fault() {
    let scratch = Scratch::new("descriptor-babble");
    let mut server = server(&scratch);
    let mut honest = Endpoint::connect(&scratch.address()).expect("it listens");
    opened(&mut server);
    // From now on it is the endpoint that looks at what comes over connections.
    assert!(server.arm().expect("armed").is_some());
    let babble = [(&[2][..], 0), (&[1, 1], 0), (&[1], 1), (b"hello", 0)];
    for (bytes, descriptors) in babble {
        let (_formatted, memory) = segment();
        let hello = opening(HELLO, identity());
        let babbler = greet(&scratch.path("sock"), &hello, &[memory.as_fd()]);
        let _seen = get_ready(&babbler);
        opened(&mut server);
        // More than are taken at a time.
        (0..40).for_each(|_| send(&babbler, &[1], &[]));
        for _ in 0..3 {
            assert!(step(&mut server));
            assert!(server.next_event().is_none(), "they are in order");
        }
        assert!(server.arm().expect("armed").is_some(), "all are taken");
        send(&babbler, bytes, &[memory.as_fd()][..descriptors]);
        assert!(step(&mut server));
        match server.next_event() {
            Some(Event::Faulted { fault, .. }) => assert_eq!(fault, PeerFault::Control),
            other => panic!("{other:?} for {bytes:?}"),
        }
        assert_eq!(receive(&babbler), None, "hung up on");
    }
    honest.try_send(COUNT, b"on").expect("room");
    assert_eq!(server.poll(16), 1);
    assert_eq!(server.channels().count(), 1);
}

fn call_over_many(address: &str) {
    let builder = Endpoint::builder().depth(64).deadline(PATIENCE);
    let mut client = builder
        .wait(Wait::Park)
        .connect(address)
        .expect("it listens");
    for _ in 1..MANY {
        client.open(address).expect("it listens");
    }
    let channels: Vec<ChannelId> = client.channels().collect();
    for round in 0..8u64 {
        for (number, channel) in channels.iter().enumerate() {
            let said = (round << 32 | number as u64).to_ne_bytes();
            assert_eq!(
                client.call_to(*channel, ECHO, &said, PATIENCE),
                Ok(&said[..])
            );
        }
    }
}

/// Both sides sleep whenever they can.
#[test]
fn many_channels_are_slept_on() {
    let scratch = Scratch::new("descriptor-many");
    let mut server = server(&scratch);
    let peer = Peer::start("call over many", &scratch.address());
    let mut closed = 0;
    patiently(|| {
        server.poll_for(64, PATIENCE);
        while let Some(event) = server.next_event() {
            match event {
                Event::Opened { .. } => {}
                Event::Closed { .. } => closed += 1,
                other => panic!("{other:?}"),
            }
        }
        (closed == MANY).then_some(())
    });
    assert!(peer.finish());
}

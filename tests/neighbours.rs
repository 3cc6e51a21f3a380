//! Both sides of a channel on one CPU: who waits gives way to the other, and nobody has to be woken.

mod support;

use std::time::{Duration, Instant};
use support::{PATIENCE, Peer, Scratch, patiently, role};
use tightbeam::{Counter, Endpoint, Event, Handlers, Wait};
use tightbeam_sys::cpu;

const ECHO: u16 = 1;
const CALLS: u64 = 200;

fn builder(wait: Wait) -> tightbeam::Builder<()> {
    let handlers = Handlers::new().on(ECHO, |_: &mut (), message, reply| {
        reply.send(message.bytes())
    });
    let builder = Endpoint::builder().state(()).handlers(handlers);
    builder.wait(wait).deadline(PATIENCE)
}

fn the_first_cpu() -> usize {
    cpu::allowed().expect("a list")[0]
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    let wait = match role.as_str() {
        "serve" => Wait::Adaptive,
        "serve and sleep" => Wait::Park,
        other => panic!("no such role: {other}"),
    };
    cpu::pin(the_first_cpu()).expect("allowed");
    let mut server = builder(wait).listen(&address).expect("a path");
    while !matches!(server.next_event(), Some(Event::Closed { .. })) {
        server.poll_for(16, PATIENCE);
    }
}

/// Wake-ups of the server in so many calls.
fn wakes(client: &mut Endpoint<()>) -> u64 {
    let channel = client.channels().next().expect("a channel");
    let count = |client: &Endpoint<()>| {
        let counters = client.counters(channel).expect("open");
        counters.get(Counter::Wakes)
    };
    let before = count(client);
    for number in 0..CALLS {
        let said = number.to_ne_bytes();
        assert_eq!(client.call(ECHO, &said), Ok(&said[..]));
    }
    count(client) - before
}

/// On a CPU that others want too they sleep instead, and wake each other for nearly each call: so a stretch without that is waited for.
#[test]
fn nobody_is_woken() {
    for (role, wait) in [("serve", Wait::Adaptive), ("serve and sleep", Wait::Park)] {
        let scratch = Scratch::new("neighbours");
        let address = scratch.address();
        let peer = Peer::start(role, &address);
        // Of this thread only; the test runner's other threads run where they like.
        cpu::pin(the_first_cpu()).expect("allowed");
        let mut client = patiently(|| builder(wait).connect(&address).ok());
        let deadline = Instant::now() + PATIENCE;
        while wakes(&mut client) > CALLS / 10 {
            assert!(Instant::now() < deadline, "they wake each other, {wait:?}");
        }
        drop(client);
        assert!(peer.finish());
    }
}

/// A peer that has moved elsewhere, or says nothing for a while, is waited for all the same.
#[test]
fn calls_go_on_wherever_the_peers_are() {
    let cpus = cpu::allowed().expect("a list");
    let scratch = Scratch::new("neighbours-move");
    let address = scratch.address();
    let peer = Peer::start("serve", &address);
    let mut client = patiently(|| builder(Wait::Adaptive).connect(&address).ok());
    for round in 0..50 {
        cpu::pin(cpus[round % cpus.len()]).expect("allowed");
        wakes(&mut client);
        std::thread::sleep(Duration::from_micros(300));
    }
    drop(client);
    assert!(peer.finish());
}

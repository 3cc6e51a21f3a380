//! Many channels of one endpoint: none is forgotten, none is preferred, and quiet ones are found again.
//!
//! The other side of all of them is one endpoint more in the same thread, so that what a poll finds does not depend on the
//! scheduler. That real processes are served is shown for a few channels by `processes.rs`; here a child calls over each.

mod support;

use std::collections::HashMap;
use support::{PATIENCE, Peer, Scratch, opened, patiently, role};
use tightbeam::{ChannelId, Endpoint, Event, Handlers, Message, Reply};

const COUNT: u16 = 1;
const ECHO: u16 = 2;

const CHANNELS: usize = 120;
const DEPTH: usize = 64;

/// Messages by channel.
type Counts = HashMap<ChannelId, u64>;

fn count(counts: &mut Counts, _: Message<'_>, reply: Reply<'_>) {
    *counts.entry(reply.channel()).or_default() += 1;
}

fn server(scratch: &Scratch) -> Endpoint<Counts> {
    let handlers = Handlers::new()
        .on(COUNT, count)
        .on(ECHO, |_, message, reply| reply.send(message.bytes()));
    let builder = Endpoint::builder().state(Counts::new()).handlers(handlers);
    let builder = builder.depth(DEPTH).deadline(PATIENCE);
    builder.listen(&scratch.address()).expect("a free path")
}

/// An endpoint with so many channels to the server, which has noticed them all.
fn client(scratch: &Scratch, server: &mut Endpoint<Counts>) -> (Endpoint, Vec<ChannelId>) {
    let builder = Endpoint::builder().depth(DEPTH).deadline(PATIENCE);
    let mut client = builder.connect(&scratch.address()).expect("it listens");
    for _ in 1..CHANNELS {
        client.open(&scratch.address()).expect("it listens");
    }
    (0..CHANNELS).for_each(|_| opened(server));
    let channels = client.channels().collect();
    (client, channels)
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    match role() {
        Some((role, address)) if role == "call over each" => call_over_each(&address),
        Some((role, _)) => panic!("no such role: {role}"),
        None => {}
    }
}

#[test]
fn the_budget_is_shared_and_nobody_waits_for_ever() {
    const BUDGET: usize = 64;
    const EACH: u64 = 48;
    let scratch = Scratch::new("many-fair");
    let mut server = server(&scratch);
    let (mut client, channels) = client(&scratch, &mut server);
    for channel in &channels {
        for number in 0..EACH {
            let sent = client.try_send_to(*channel, COUNT, &number.to_ne_bytes());
            sent.expect("there is room");
        }
    }
    let mut handled = 0;
    while handled < CHANNELS * EACH as usize {
        let found = server.poll(BUDGET);
        assert!(found > 0, "{handled} handled, and the rest is forgotten");
        // Four channels that count as idle may come on top, with a share each.
        assert!(found <= BUDGET + 4 * 32 + 32, "{found}");
        handled += found;
        let counts = server.state();
        let most = counts.values().max().copied().unwrap_or(0);
        let least = match counts.len() {
            CHANNELS => counts.values().min().copied().unwrap_or(0),
            _ => 0,
        };
        assert!(most - least <= 32, "{most} of one, {least} of another");
    }
    assert!(server.state().values().all(|&count| count == EACH));
    assert_eq!(server.state().len(), CHANNELS);
}

#[test]
fn a_channel_that_was_quiet_is_found() {
    let scratch = Scratch::new("many-quiet");
    let mut server = server(&scratch);
    let (mut client, channels) = client(&scratch, &mut server);
    // Until none of them counts as active any more.
    (0..2_000).for_each(|_| assert_eq!(server.poll(64), 0));
    for channel in &channels {
        client.try_send_to(*channel, COUNT, b"x").expect("room");
        // Four at a time.
        let polls = (1..10_000)
            .find(|_| server.poll(64) == 1)
            .expect("it is found");
        assert!(polls <= CHANNELS.div_ceil(4) + 1, "{polls} polls");
    }
    assert!(server.state().values().all(|&count| count == 1));
    assert_eq!(server.state().len(), CHANNELS);
}

#[test]
fn who_floods_does_not_hide_who_is_quiet() {
    let scratch = Scratch::new("many-flood");
    let mut server = server(&scratch);
    let (mut client, channels) = client(&scratch, &mut server);
    (0..2_000).for_each(|_| assert_eq!(server.poll(64), 0));
    let (quiet, floods) = channels.split_last().expect("some");
    let mut polls = 0;
    // All others have more than a budget each time.
    let flood = |client: &mut Endpoint| {
        for channel in floods {
            while client.try_send_to(*channel, COUNT, b"flood").is_ok() {}
        }
    };
    flood(&mut client);
    client.try_send_to(*quiet, COUNT, b"x").expect("room");
    let before = server.state().len();
    patiently(|| {
        flood(&mut client);
        server.poll(8);
        polls += 1;
        (server.state().len() == before + CHANNELS).then_some(())
    });
    assert!(polls <= 2 * CHANNELS, "{polls} polls");
}

fn call_over_each(address: &str) {
    let builder = Endpoint::builder().depth(DEPTH).deadline(PATIENCE);
    let mut client = builder.connect(address).expect("it listens");
    for _ in 1..CHANNELS {
        client.open(address).expect("it listens");
    }
    let channels: Vec<ChannelId> = client.channels().collect();
    for round in 0..20u64 {
        for (number, channel) in channels.iter().enumerate() {
            let said = (round << 32 | number as u64).to_ne_bytes();
            let answer = client.call_to(*channel, ECHO, &said, PATIENCE);
            assert_eq!(answer, Ok(&said[..]));
        }
    }
    // Every other one; the rest goes on.
    for (number, channel) in channels.iter().enumerate() {
        if number % 2 == 0 {
            assert!(client.close(*channel));
        } else {
            assert_eq!(
                client.call_to(*channel, ECHO, b"on", PATIENCE),
                Ok(&b"on"[..])
            );
        }
    }
}

#[test]
fn calls_over_many_channels_of_one_process_are_answered() {
    let scratch = Scratch::new("many-calls");
    let mut server = server(&scratch);
    let peer = Peer::start("call over each", &scratch.address());
    let (mut opened, mut closed) = (0, 0);
    patiently(|| {
        server.poll_for(64, std::time::Duration::from_millis(1));
        while let Some(event) = server.next_event() {
            match event {
                Event::Opened { .. } => opened += 1,
                Event::Closed { .. } => closed += 1,
                other => panic!("{other:?}"),
            }
        }
        (closed == CHANNELS).then_some(())
    });
    assert_eq!(opened, CHANNELS);
    assert!(peer.finish());
    assert_eq!(server.channels().count(), 0);
}

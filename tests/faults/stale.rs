//! Stale incarnations: an endpoint that starts again at the same path has nothing to do with who was there before.

use crate::board::{Random, fill, room, seed};
use crate::support::opening::{
    HELLO, READY, REFUSAL, greet, identity, map_next, opening, receive, segment_bytes, send,
};
use crate::support::{PATIENCE, Scratch, next_event, patiently};
use crate::traffic::{Books, NUMBERED, builder};
use std::os::fd::{AsFd, OwnedFd};
use tightbeam::{CallError, ChannelId, Endpoint, Event, SendError};
use tightbeam_segment::{Identity, Incarnation, Layout, OwnLines};
use tightbeam_sys::memory::{MemoryOptions, OwnMemory};

/// What no id of a channel that has ended may do any more.
fn assert_dead(endpoint: &mut Endpoint<Books>, old: ChannelId) {
    assert_eq!(
        endpoint.try_send_to(old, NUMBERED, b"stale"),
        Err(SendError::NoChannel)
    );
    let called = endpoint.call_to(old, NUMBERED, b"stale", PATIENCE);
    assert_eq!(called, Err(CallError::NotSent(SendError::NoChannel)));
    assert!(!endpoint.close(old));
    assert!(endpoint.counters(old).is_none() && endpoint.peer(old).is_none());
    assert!(endpoint.memory(old).is_none());
}

/// The only channel of an endpoint that has just been opened to.
fn opened(endpoint: &mut Endpoint<Books>) -> ChannelId {
    match next_event(endpoint) {
        Event::Opened { channel, .. } => channel,
        other => panic!("{other:?}"),
    }
}

/// Both sides start again in turn at the same path; the other stays, and keeps the ids that it had.
pub(crate) fn ids(rounds: u64) {
    let scratch = Scratch::new("stale-ids");
    let mut random = Random::new(seed());
    let mut room = room();
    let mut client = builder()
        .listen(&format!("{}.client", scratch.address()))
        .expect("a free path");
    let mut old: Vec<ChannelId> = Vec::new();
    for round in 1..=rounds {
        let mut server = builder().listen(&scratch.address()).expect("a free path");
        server.state_mut().expect(round);
        let channel = client.open(&scratch.address()).expect("it listens");
        let theirs = opened(&mut server);
        // The place of the old channel is used again, its id is not.
        assert!(!old.contains(&channel));
        for &old in old.iter().rev().take(16) {
            assert_dead(&mut client, old);
        }
        let count = random.below(20);
        for n in 1..=count {
            let payload = fill(&mut room, round, n);
            client
                .try_send_to(channel, NUMBERED, payload)
                .expect("room");
        }
        patiently(|| {
            server.poll(64);
            (server.state().count(round) == count).then_some(())
        });
        // Some messages are still on their way when the listener ends: they must not reach the next one.
        for n in 1..=random.below(20) {
            let payload = fill(&mut room, round, count + n);
            client
                .try_send_to(channel, NUMBERED, payload)
                .expect("room");
        }
        match random.once_in(2) {
            true => drop(server),
            false => {
                assert!(server.close(theirs));
                assert_dead(&mut server, theirs);
            }
        }
        let end = next_event(&mut client);
        assert!(
            matches!(end, Event::Closed { channel: ended, .. } if ended == channel),
            "{end:?}"
        );
        old.push(channel);
    }
    println!("{rounds} restarts: no old id reached a new channel");
}

/// A client speaks the opening by hand, honestly but for what it says of its segment.
fn formatted(says: Identity) -> OwnedFd {
    let memory = OwnMemory::create(segment_bytes(), &MemoryOptions::default()).expect("memory");
    let descriptor = memory.fd().try_clone_to_owned().expect("a descriptor");
    let layout = Layout::new(64).expect("a depth");
    drop(layout.format(OwnLines::new(memory), &says));
    descriptor
}

fn says(random: &mut Random) -> Identity {
    Identity {
        incarnation: Incarnation([random.next(), random.next()]),
        ..identity()
    }
}

/// The kind of what comes next, or that the other side has hung up.
fn answer(socket: &OwnedFd) -> Option<u32> {
    let bytes = receive(socket)?;
    Some(u32::from_ne_bytes(
        *bytes[8..].first_chunk().expect("a kind"),
    ))
}

/// A segment of another incarnation than the one that is named, fresh or in use before, is refused.
pub(crate) fn segments(rounds: u64) {
    let scratch = Scratch::new("stale-segments");
    let mut random = Random::new(seed());
    let mut server = builder().listen(&scratch.address()).expect("a free path");
    let path = scratch.path("sock");
    for _ in 0..rounds {
        let (now, before) = (says(&mut random), says(&mut random));
        let segment = formatted(before);
        let socket = greet(&path, &opening(HELLO, now), &[segment.as_fd()]);
        assert_eq!(answer(&socket), Some(REFUSAL));
        // Under its own name it is welcome, once.
        let segment = formatted(before);
        let first = greet(&path, &opening(HELLO, before), &[segment.as_fd()]);
        let mapped = map_next(&first);
        send(&first, &opening(READY, before), &[]);
        let channel = opened(&mut server);
        // Under the name of another it is refused, while it is in use and after that.
        for _ in 0..2 {
            let again = greet(&path, &opening(HELLO, now), &[segment.as_fd()]);
            assert_eq!(answer(&again), Some(REFUSAL));
            server.close(channel);
        }
        drop((mapped, first));
    }
    assert!(server.next_event().is_none());
    let openings = server.openings();
    assert_eq!(
        (openings.opened, openings.mismatched + openings.bad_segment),
        (rounds, 3 * rounds)
    );
    println!("{rounds} rounds of stale segments: {openings:?}");
}

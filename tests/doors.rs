//! Who gets a channel and who does not, what each is told, and what a server knows of it afterwards.

mod support;

use std::time::Duration;
use support::opening::{REFUSAL, receive};
use support::{PATIENCE, Scratch, assert_says, next_event, opened, patiently};
use tightbeam::{Endpoint, Event, MAX_EVENTS, OpenError};
use tightbeam_sys::control;

/// Polls the server until a client's attempt is over.
fn attempt(server: &mut Endpoint, address: &str) -> Result<(), OpenError> {
    let address = address.to_owned();
    let client = std::thread::spawn(move || {
        let builder = Endpoint::builder().open_within(PATIENCE);
        builder.connect(&address).map(drop)
    });
    patiently(|| {
        server.poll(16);
        client.is_finished().then_some(())
    });
    client.join().expect("it does not panic")
}

#[test]
fn one_channel_more_than_allowed_is_refused() {
    let scratch = Scratch::new("full");
    let address = scratch.address();
    let builder = Endpoint::builder().max_channels(2);
    let mut server = builder.listen(&address).expect("a free path");
    let first = support::connect(&address);
    let _second = support::connect(&address);
    opened(&mut server);
    opened(&mut server);
    let refused = attempt(&mut server, &address).expect_err("there are two");
    assert!(matches!(refused, OpenError::ListenerFull), "{refused:?}");
    assert_says(&refused, &["max_channels"]);
    assert!(server.next_event().is_none());
    // A channel that has ended makes room, once the server has noticed.
    drop(first);
    let end = next_event(&mut server);
    assert!(matches!(end, Event::Closed { .. }), "{end:?}");
    attempt(&mut server, &address).expect("there is room");
    // Its own channels do not count.
    let other = Scratch::new("full-other");
    let _listens = Endpoint::builder()
        .listen(&other.address())
        .expect("a free path");
    server.open(&other.address()).expect("not limited");
    let openings = server.openings();
    assert_eq!((openings.opened, openings.full), (3, 1), "{openings:?}");
}

/// Who is not admitted is told at once, is waited for by nobody, and takes no place.
#[test]
fn who_is_not_admitted_is_told_before_it_says_anything() {
    let scratch = Scratch::new("policy");
    let builder = Endpoint::builder()
        .admit(|_| false)
        .open_within(Duration::MAX / 4);
    let server = builder.listen(&scratch.address()).expect("a free path");
    // Many more than openings may be under way.
    for _ in 0..200 {
        let socket = patiently(|| control::connect(&scratch.path("sock")).ok());
        let told = receive(&socket).expect("a refusal");
        assert_eq!(told[8..12], REFUSAL.to_ne_bytes());
        assert_eq!(receive(&socket), None, "and hung up on");
    }
    let refused = Endpoint::connect(&scratch.address())
        .err()
        .expect("refused");
    assert!(
        matches!(refused, OpenError::NotAdmitted { .. }),
        "{refused:?}"
    );
    let openings = server.openings();
    assert_eq!(openings.not_admitted, 201, "{openings:?}");
}

/// The control thread survives it, and other endpoints with it.
#[test]
fn a_policy_that_panics_admits_nobody() {
    let scratch = Scratch::new("policy-panics");
    let builder = Endpoint::builder().admit(|_| panic!("on purpose"));
    let server = builder.listen(&scratch.address()).expect("a free path");
    for attempts in 1..=2 {
        let refused = Endpoint::connect(&scratch.address()).err().expect("no");
        assert!(
            matches!(refused, OpenError::NotAdmitted { .. }),
            "{refused:?}"
        );
        assert_eq!(server.openings().not_admitted, attempts);
    }
}

/// Between the client's last word and the listener's end there is no gap in which a channel is neither open nor closed.
#[test]
fn a_listener_that_ends_closes_the_channels_that_it_was_opening() {
    for round in 0..300 {
        let scratch = Scratch::new("ends");
        let server = Endpoint::builder()
            .listen(&scratch.address())
            .expect("a free path");
        let address = scratch.address();
        let client = std::thread::spawn(move || {
            let Ok(mut client) = Endpoint::connect(&address) else {
                return;
            };
            let end = next_event(&mut client);
            assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        });
        // Each time a little later, from before the hello to after the end of the opening.
        std::thread::sleep(Duration::from_micros(5 * round));
        drop(server);
        client.join().expect("closed, or never open");
    }
}

#[test]
fn whoever_breaks_off_is_counted() {
    let scratch = Scratch::new("broken-off");
    let builder = Endpoint::builder().open_within(Duration::from_millis(50));
    let server = builder.listen(&scratch.address()).expect("a free path");
    let silent = control::connect(&scratch.path("sock")).expect("it listens");
    assert_eq!(receive(&silent), None, "hung up on when its time is over");
    let babbling = control::connect(&scratch.path("sock")).expect("it listens");
    control::send(std::os::fd::AsFd::as_fd(&babbling), b"nonsense", None).expect("it takes it");
    assert_eq!(receive(&babbling), None, "hung up on");
    patiently(|| (server.openings().broken_off == 2).then_some(()));
    assert_eq!(server.openings().opened, 0);
}

/// Peers that come and go do not fill the memory of a server that takes no events.
#[test]
fn events_that_nobody_takes_are_bounded_and_counted() {
    const CLIENTS: usize = MAX_EVENTS / 2 + 30;
    let scratch = Scratch::new("events");
    let builder = Endpoint::builder().depth(2);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    for _ in 0..CLIENTS {
        attempt(&mut server, &scratch.address()).expect("let in");
    }
    patiently(|| {
        let all = server.openings().opened == CLIENTS as u64;
        server.poll(16);
        (all && server.channels().next().is_none()).then_some(())
    });
    let kept = std::iter::from_fn(|| server.next_event()).count();
    assert_eq!(kept, MAX_EVENTS);
    assert_eq!(server.lost_events(), (2 * CLIENTS - MAX_EVENTS) as u64);
}

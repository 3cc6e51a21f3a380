//! Frames between processes: of any size, moved, kept, given back, and taken back from the dead.

mod support;

use rustix::process::{Signal, getpid, kill_process};
use std::time::Duration;
use support::{Ledger, PATIENCE, Peer, Scratch, assert_says, next_event, opened, patiently, role};
use tightbeam::{
    CallError, ChannelId, Counter, Endpoint, Event, Frame, Handlers, MAX_INLINE, MAX_LOANS,
    MAX_MESSAGE, MAX_PARTS, Message, Received, Reply, SendError, Wait,
};

const ECHO: u16 = 1;
/// Keeps the message, and says in the ledger how many it has.
const KEEP: u16 = 2;
/// Gives back all that was kept.
const DROP: u16 = 3;
/// Answers with so many bytes as it is asked for, in a frame of its own making.
const MAKE: u16 = 4;
const DIE: u16 = 5;
/// Sums its bytes, read where they lie.
const SUM: u16 = 6;

const KEPT: usize = 0;
const GO: usize = 1;

#[derive(Default)]
struct Shelf {
    kept: Vec<Received>,
    ledger: Option<Ledger>,
}

impl Shelf {
    fn report(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.write(KEPT, self.kept.len() as u64);
        }
    }
}

fn keep(shelf: &mut Shelf, message: Message<'_>, _: Reply<'_>) {
    shelf.kept.extend(message.frames());
    shelf.report();
}

fn give_back(shelf: &mut Shelf, _: Message<'_>, reply: Reply<'_>) {
    shelf.kept.clear();
    shelf.report();
    reply.send(b"done");
}

fn make(_: &mut Shelf, message: Message<'_>, reply: Reply<'_>) {
    let len = u64::from_ne_bytes(message.bytes().try_into().expect("eight bytes")) as usize;
    let mut frame = reply.frame(len).expect("a frame");
    frame.copy_from_slice(&pattern(len, 9));
    reply.send_frame(frame);
}

fn sum(_: &mut Shelf, message: Message<'_>, reply: Reply<'_>) {
    let frames = message.frames().expect("in frames");
    let (mut sum, mut at, mut bytes) = (0u64, 0, [0; 1000]);
    while at < frames.len() {
        let count = frames.copy_to(at, &mut bytes);
        sum += bytes[..count]
            .iter()
            .map(|&byte| u64::from(byte))
            .sum::<u64>();
        at += count;
    }
    reply.send(&sum.to_ne_bytes());
}

fn handlers() -> Handlers<Shelf> {
    Handlers::new()
        .on(ECHO, |_, message, reply| reply.send(message.bytes()))
        .on(KEEP, keep)
        .on(DROP, give_back)
        .on(MAKE, make)
        .on(SUM, sum)
        .on(DIE, |_, _, _| {
            kill_process(getpid(), Signal::KILL).expect("this process");
        })
}

fn server(address: &str) -> Endpoint<Shelf> {
    let shelf = Shelf {
        kept: Vec::new(),
        ledger: Some(Ledger::of(address)),
    };
    let builder = Endpoint::builder().state(shelf).handlers(handlers());
    builder
        .deadline(PATIENCE)
        .listen(address)
        .expect("a free path")
}

/// A receiver of a server that publishes.
fn subscribe(address: &str) {
    let mut endpoint = patiently(|| {
        let shelf = Shelf {
            kept: Vec::new(),
            ledger: Some(Ledger::of(address)),
        };
        let builder = Endpoint::builder().state(shelf).handlers(handlers());
        builder.connect(address).ok()
    });
    // Until the publisher ends.
    let _ = endpoint.run();
}

/// Keeps one message and drops it when nothing is being handled; then waits to be told that its sender goes on.
fn give_back_outside(address: &str) {
    let mut server = server(address);
    patiently(|| {
        server.poll_for(1, Duration::from_millis(10));
        (server.state().kept.len() == MAX_LOANS).then_some(())
    });
    server.state_mut().kept.clear();
    let ledger = Ledger::of(address);
    patiently(|| {
        server.poll(1);
        (ledger.read(GO) == 1).then_some(())
    });
}

fn child(role: &str, address: &str) {
    match role {
        "serve" => server(address).run().expect("it listens"),
        "give back outside" => give_back_outside(address),
        "subscribe" => subscribe(address),
        other => panic!("no such role: {other}"),
    }
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    if let Some((role, address)) = role() {
        child(&role, &address);
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 251 + n + seed) as u8).collect()
}

fn client(address: &str) -> Endpoint {
    let builder = || Endpoint::builder().deadline(PATIENCE);
    patiently(|| builder().connect(address).ok())
}

fn only(endpoint: &Endpoint) -> ChannelId {
    endpoint.channels().next().expect("a channel")
}

/// Nothing is anywhere but where it ought to be, and nothing is lent.
fn all_came_back(endpoint: &mut Endpoint, channel: ChannelId) {
    patiently(|| {
        endpoint.poll(8);
        (endpoint.frames_lent(channel) == Some(0)).then_some(())
    });
    let audit = endpoint.frames(channel).expect("a channel");
    assert_eq!(
        (audit.astray.len(), audit.lent, audit.out),
        (0, 0, 0),
        "{audit:?}"
    );
    assert_eq!(audit.free, audit.frames);
}

#[test]
fn messages_of_any_size_go_there_and_back() {
    let scratch = Scratch::new("frames-sizes");
    let _server = Peer::start("serve", &scratch.address());
    let mut client = client(&scratch.address());
    let sizes = [
        0,
        1,
        8,
        56,
        57,
        1000,
        MAX_INLINE,
        MAX_INLINE + 1,
        4095,
        4096,
        4097,
        65_536,
        100_000,
        1 << 20,
        MAX_MESSAGE - 1,
        MAX_MESSAGE,
    ];
    for (seed, len) in sizes.into_iter().enumerate() {
        let payload = pattern(len, seed);
        let answer = client.call(ECHO, &payload).expect("an answer");
        assert!(answer == payload, "{len} bytes");
        let answer = client
            .call(MAKE, &(len as u64).to_ne_bytes())
            .expect("an answer");
        assert!(answer == pattern(len, 9), "{len} bytes made there");
    }
    let channel = only(&client);
    all_came_back(&mut client, channel);
    let error = client.send(ECHO, &vec![0; MAX_MESSAGE + 1]).unwrap_err();
    assert_eq!(
        error,
        SendError::TooLarge {
            len: MAX_MESSAGE + 1,
            max: MAX_MESSAGE
        }
    );
    assert_says(&error, &["67108865", "67108864"]);
    let error = client.frame(MAX_MESSAGE + 1).unwrap_err();
    assert_says(&error, &["67108865", "67108864"]);
}

#[test]
fn a_frame_is_written_once_and_read_in_place() {
    let scratch = Scratch::new("frames-moved");
    let _server = Peer::start("serve", &scratch.address());
    let mut client = client(&scratch.address());
    for len in [0, 1, 100, 5000, 300_000] {
        let mut frame = client.frame(len).expect("a frame");
        let bytes = pattern(len, len);
        frame.copy_from_slice(&bytes);
        frame.push(b"header").expect("there is headroom");
        let mut sum: u64 = bytes
            .iter()
            .chain(b"header")
            .map(|&byte| u64::from(byte))
            .sum();
        let answer = client.call_frame(SUM, frame).expect("an answer");
        assert_eq!(answer, sum.to_ne_bytes(), "{len} bytes");
        // A list of fragments is one message.
        let channel = only(&client);
        let frames: Vec<Frame> = (0..MAX_PARTS)
            .map(|n| {
                let mut frame = client.frame(n * 10).expect("a frame");
                frame.fill(n as u8);
                frame
            })
            .collect();
        sum = (0..MAX_PARTS as u64).map(|n| n * 10 * n).sum();
        let answer = client.call_frame_to(channel, SUM, frames, PATIENCE);
        assert_eq!(answer, Ok(&sum.to_ne_bytes()[..]));
    }
    let channel = only(&client);
    let too_many: Vec<Frame> = (0..=MAX_PARTS)
        .map(|_| client.frame(1).expect("a frame"))
        .collect();
    let refused = client
        .send_frame_to(channel, KEEP, too_many, PATIENCE)
        .unwrap_err();
    assert_eq!(refused.message.len(), MAX_PARTS + 1, "they come back");
    assert_says(&refused.error, &["33", "32"]);
    let none = client
        .send_frame_to(channel, KEEP, [], PATIENCE)
        .unwrap_err();
    assert_says(&none.error, &["0 frames"]);
    drop((refused, none));
    all_came_back(&mut client, channel);
}

#[test]
fn kept_frames_are_missing_until_they_come_back() {
    let scratch = Scratch::new("frames-kept");
    let _server = Peer::start("serve", &scratch.address());
    let ledger = Ledger::of(&scratch.address());
    let mut client = client(&scratch.address());
    let channel = only(&client);
    for n in 1..=MAX_LOANS {
        let frame = client.frame(2000).expect("a frame");
        client.send_frame(KEEP, frame).expect("room");
        ledger.wait_for(KEPT, n as u64);
    }
    assert_eq!(client.frames_lent(channel), Some(MAX_LOANS));
    // One more would be more than a peer may have.
    let frame = client.frame(2000).expect("a frame");
    let refused = client.try_send_frame_to(channel, KEEP, frame).unwrap_err();
    assert_eq!(refused.error, SendError::Full);
    let late = client.send_frame_to(channel, KEEP, refused.message, Duration::from_millis(20));
    assert_eq!(late.unwrap_err().error, SendError::DeadlineExceeded);
    let inline = client.call(DROP, b"still goes").expect("an answer");
    assert_eq!(inline, b"done");
    all_came_back(&mut client, channel);
}

#[test]
fn a_return_outside_of_a_handler_wakes_who_waits_for_it() {
    for wait in [Wait::Spin, Wait::Adaptive, Wait::Park] {
        let scratch = Scratch::new(&format!("frames-outside-{wait:?}"));
        let child = Peer::start("give back outside", &scratch.address());
        let builder = || Endpoint::builder().wait(wait).deadline(PATIENCE);
        let mut client = patiently(|| builder().connect(&scratch.address()).ok());
        for _ in 0..=MAX_LOANS {
            let frame = client.frame(2000).expect("a frame");
            // The last one has to wait for the first to come back.
            client.send_frame(KEEP, frame).expect("room in the end");
        }
        Ledger::of(&scratch.address()).write(GO, 1);
        assert!(child.finish());
    }
}

#[test]
fn who_dies_gives_everything_back() {
    let scratch = Scratch::new("frames-dead");
    let mut server = server(&scratch.address());
    let ledger = Ledger::of(&scratch.address());
    let mut shared = Vec::new();
    for round in 0..3 {
        let child = Peer::start("subscribe", &scratch.address());
        opened(&mut server);
        let channel = server.channels().next().expect("a channel");
        ledger.write(KEPT, 0);
        for n in 0..20 {
            let frame = match n % 2 {
                0 => server.try_frame_for(channel, 3000),
                _ => server.shared_frame(70_000),
            };
            let frame = frame.expect("a frame");
            server
                .send_frame_to(channel, KEEP, frame, PATIENCE)
                .expect("room");
        }
        ledger.wait_for(KEPT, 20);
        let audit = server.shared_frames();
        assert_eq!((audit.lent, audit.astray.len()), (10, 0), "{audit:?}");
        child.signal(Signal::KILL);
        let end = next_event(&mut server);
        assert!(matches!(end, Event::Dead { .. }), "{end:?}, round {round}");
        let audit = server.shared_frames();
        assert_eq!(
            (audit.lent, audit.out, audit.astray.len()),
            (0, 0, 0),
            "{audit:?}"
        );
        shared.push(audit.bytes);
    }
    assert_eq!(shared[0], shared[2], "no memory was lost with them");
}

/// A peer whose channel was closed lives on, and may read what it was lent: nobody else gets that memory to write.
#[test]
fn shared_frames_of_a_closed_channel_wait_for_the_end_of_their_reader() {
    let scratch = Scratch::new("frames-grave");
    let mut server = server(&scratch.address());
    let ledger = Ledger::of(&scratch.address());
    let child = Peer::start("subscribe", &scratch.address());
    opened(&mut server);
    let channel = server.channels().next().expect("a channel");
    for _ in 0..5 {
        let frame = server.shared_frame(3000).expect("a frame");
        server
            .send_frame_to(channel, KEEP, frame, PATIENCE)
            .expect("room");
    }
    ledger.wait_for(KEPT, 5);
    child.stop();
    server.close(channel);
    drop(server.shared_frame(1));
    assert_eq!(server.shared_frames().lent, 5);
    child.signal(Signal::KILL);
    patiently(|| {
        drop(server.shared_frame(1));
        (server.shared_frames().lent == 0).then_some(())
    });
    let audit = server.shared_frames();
    assert_eq!((audit.free, audit.astray.len()), (audit.frames, 0));
}

/// Though nobody asks for a shared frame, what is left of a reader that is gone keeps no other out.
#[test]
fn the_place_of_a_reader_that_is_gone_is_free() {
    let scratch = Scratch::new("frames-place");
    let ledger = Ledger::of(&scratch.address());
    let builder = Endpoint::builder().max_channels(1).deadline(PATIENCE);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let mut frame = server.shared_frame(3000).expect("a frame");
    frame.fill(1);
    let frame = frame.freeze();
    for _ in 0..3 {
        ledger.write(KEPT, 0);
        let child = Peer::start("subscribe", &scratch.address());
        opened(&mut server);
        let channel = only(&server);
        assert_eq!(server.try_publish_to(channel, KEEP, &frame), Ok(()));
        ledger.wait_for(KEPT, 1);
        child.stop();
        server.close(channel);
        child.signal(Signal::KILL);
        assert_eq!(child.killed_by(), Some(Signal::KILL.as_raw()));
    }
    drop(frame);
    patiently(|| {
        drop(server.shared_frame(1));
        (server.shared_frames().lent == 0).then_some(())
    });
}

#[test]
fn one_frame_for_many_readers() {
    const READERS: usize = 3;
    let scratch = Scratch::new("frames-many");
    let mut server = server(&scratch.address());
    let children: Vec<Peer> = (0..READERS)
        .map(|_| {
            let child = Peer::start("subscribe", &scratch.address());
            opened(&mut server);
            child
        })
        .collect();
    let channels: Vec<ChannelId> = server.channels().collect();
    children[0].stop();
    let mut full = [0; READERS];
    for n in 0..1000u32 {
        let mut frame = patiently(|| {
            server.poll(8);
            server.shared_frame(5000).ok()
        });
        frame.fill(n as u8);
        let frame = frame.freeze();
        for (full, &channel) in full.iter_mut().zip(&channels) {
            match server.try_publish_to(channel, 99, &frame) {
                Ok(()) => {}
                Err(SendError::Full) => *full += 1,
                Err(error) => panic!("{error}"),
            }
        }
        drop(frame);
        // The others take it before the next one comes: nobody waits for who is stopped.
        patiently(|| {
            server.poll(8);
            drop(server.shared_frame(1));
            let lent = channels[1..]
                .iter()
                .map(|&channel| server.frames_lent(channel));
            lent.sum::<Option<usize>>().filter(|&lent| lent == 0)
        });
    }
    assert_eq!(full, [1000 - MAX_LOANS, 0, 0]);
    let audit = server.shared_frames();
    assert_eq!(
        (audit.lent, audit.astray.len()),
        (MAX_LOANS, 0),
        "{audit:?}"
    );
    children[0].signal(Signal::CONT);
    patiently(|| {
        drop(server.shared_frame(1));
        (server.shared_frames().lent == 0).then_some(())
    });
}

#[test]
fn limits_are_named() {
    let scratch = Scratch::new("frames-limits");
    let _server = Peer::start("serve", &scratch.address());
    let builder = || {
        Endpoint::builder()
            .frame_limit(1 << 20)
            .deadline(Duration::from_millis(50))
    };
    let mut client = patiently(|| builder().connect(&scratch.address()).ok());
    let channel = only(&client);
    let error = client.frame(2 << 20).unwrap_err();
    assert_says(&error, &["2097152", "1048576", "Builder::frame_limit"]);
    let error = client.send(ECHO, &vec![0; 2 << 20]).unwrap_err();
    assert_says(&error, &["2097152", "1048576", "Builder::frame_limit"]);
    // All that the limit allows is in use.
    let mut frames = Vec::new();
    let full = loop {
        match client.try_frame_for(channel, 100_000) {
            Ok(frame) => frames.push(frame),
            Err(error) => break error,
        }
    };
    assert_eq!(full, SendError::Full);
    let waited = client.frame(100_000).unwrap_err();
    assert_eq!(waited, SendError::DeadlineExceeded);
    assert!(frames.len() >= 7, "{}", frames.len());
    assert_eq!(
        client.call(ECHO, &vec![7; 100_000]),
        Err(CallError::NotSent(SendError::DeadlineExceeded))
    );
    let audit = client.frames(channel).expect("a channel");
    assert!(
        audit.bytes <= 1 << 20 && audit.out == frames.len(),
        "{audit:?}"
    );
    drop(frames);
    assert!(client.call(ECHO, &vec![7; 100_000]).is_ok());
    let full = client
        .counters(channel)
        .map(|counters| counters.get(Counter::Full));
    assert!(full > Some(0));
    // A frame of one channel is not for another.
    let other = client.open(&scratch.address()).expect("it listens");
    let frame = client.try_frame_for(channel, 10).expect("a frame");
    let refused = client.try_send_frame_to(other, ECHO, frame).unwrap_err();
    assert_says(&refused.error, &["another channel"]);
    client
        .send_frame_to(channel, ECHO, refused.message, PATIENCE)
        .expect("its own");
}

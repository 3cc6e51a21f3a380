//! Paths of several processes, on which frames go on without being copied; and frames that are secured.

mod support;

use rustix::process::{Signal, getpid, kill_process};
use std::time::Duration;
use support::{PATIENCE, Peer, Scratch, connect, patiently, role};
use tightbeam::{
    ChannelId, Endpoint, Event, Frame, Handlers, Message, Received, Reply, SendError, Stage, Trust,
};

/// A frame of the owner.
const FRAME: u16 = 1;
/// "I am stage n."
const JOIN: u16 = 2;
/// "It is your turn": the ticket, and a sum.
const TURN: u16 = 3;

const STAGES: usize = 3;
const LEN: usize = 100_000;
/// Who looks at the frame with this ticket ends.
const DEADLY: u64 = 13;

fn word(bytes: &[u8], number: usize) -> u64 {
    u64::from_ne_bytes(bytes.as_chunks().0[number])
}

fn content(ticket: u64) -> Vec<u8> {
    (0..LEN as u64).map(|n| (n * 3 + ticket) as u8).collect()
}

struct Worker {
    number: usize,
    /// The stage before has ended: it will be nobody's turn any more.
    cut_off: bool,
    stage: Stage<u64>,
    due: Vec<(u64, u64, Received)>,
}

fn take_frame(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let frame = message.frames().expect("a frame");
    if worker.cut_off {
        return;
    }
    let mut ticket = [0; 8];
    assert_eq!(frame.copy_to(0, &mut ticket), 8);
    let ticket = u64::from_ne_bytes(ticket);
    let ready = match (worker.stage.arrived(ticket, frame), worker.number) {
        (None, 1) => worker.stage.called(ticket, 0),
        (ready, _) => ready,
    };
    worker
        .due
        .extend(ready.map(|(frame, sum)| (ticket, sum, frame)));
}

fn take_turn(worker: &mut Worker, message: Message<'_>, _: Reply<'_>) {
    let bytes = message.bytes();
    let (ticket, sum) = (word(bytes, 0), word(bytes, 1));
    let ready = worker.stage.called(ticket, sum);
    worker
        .due
        .extend(ready.map(|(frame, sum)| (ticket, sum, frame)));
}

fn stage(number: usize, address: &str) {
    let at = |number: usize| format!("{address}-{number}");
    let worker = Worker {
        number,
        cut_off: false,
        // More than are sent, however late a stage is: one too many would be given back at once.
        stage: Stage::new(128),
        due: Vec::new(),
    };
    let handlers = Handlers::new().on(FRAME, take_frame).on(TURN, take_turn);
    let builder = Endpoint::builder().state(worker).handlers(handlers);
    let mut endpoint = builder.connect(address).expect("the owner listens");
    let owner = endpoint.channels().next().expect("a channel");
    endpoint.accept_at(&at(number)).expect("a free path");
    let next = match number {
        STAGES => owner,
        _ => patiently(|| endpoint.open(&at(number + 1)).ok()),
    };
    let join = [number as u64, 0].map(u64::to_ne_bytes);
    endpoint
        .send_to(owner, JOIN, join.as_flattened(), PATIENCE)
        .expect("room");
    while endpoint.channels().any(|channel| channel == owner) {
        endpoint.poll_for(64, Duration::from_millis(10));
        while let Some(event) = endpoint.next_event() {
            if let Event::Dead { .. } = event {
                endpoint.state_mut().stage.clear();
                endpoint.state_mut().cut_off = true;
            }
        }
        for (ticket, sum, frame) in std::mem::take(&mut endpoint.state_mut().due) {
            if ticket == DEADLY && number == 2 {
                kill_process(getpid(), Signal::KILL).expect("this process");
            }
            assert!(frame.to_vec()[8..] == content(ticket), "ticket {ticket}");
            drop(frame);
            let said = [ticket, sum + number as u64].map(u64::to_ne_bytes);
            let sent = endpoint.send_to(next, TURN, said.as_flattened(), PATIENCE);
            // The next stage may be the one that has ended.
            assert!(sent.is_ok() || ticket >= DEADLY, "{sent:?}");
        }
    }
}

/// Reads a frame as a slice, and answers with its sum.
fn trusting(address: &str) {
    let handlers = Handlers::new().on(
        FRAME,
        |_: &mut (), message: Message<'_>, reply: Reply<'_>| {
            // SAFETY: the test does not write to frames that it has sent.
            let trust = unsafe { Trust::new() };
            let frame = message.frames().expect("a frame");
            let sum = match frame.as_slice(trust) {
                Some(bytes) => bytes.iter().map(|byte| u64::from(*byte)).sum(),
                None => u64::MAX,
            };
            reply.send(&sum.to_ne_bytes());
        },
    );
    let mut server = Endpoint::listen(address, handlers).expect("a free path");
    server.run().expect("it listens");
}

/// Writes to a frame that it has secured.
fn stray(address: &str) {
    let mut client = connect(address);
    let mut frame = client.frame(5000).expect("a frame");
    frame.fill(1);
    let place = frame.as_mut_ptr();
    let frame = frame.freeze().secure().expect("it can be secured");
    assert_eq!(frame[77], 1);
    // SAFETY: bounds: inside the frame. aliasing: nobody reads it meanwhile; the write ends the process anyway.
    unsafe { place.write_volatile(2) };
}

fn child(role: &str, address: &str) {
    match role {
        "trusting" => trusting(address),
        "stray" => stray(address),
        stage_of => stage(stage_of.parse().expect("a stage"), address),
    }
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    if let Some((role, address)) = role() {
        child(&role, &address);
    }
}

#[derive(Default)]
struct Owner {
    stages: [Option<ChannelId>; STAGES],
    /// Tickets that have come through, and what was said of them.
    done: Vec<(u64, u64)>,
}

/// The owner, its stages, and the path.
fn path(scratch: &Scratch) -> (Endpoint<Owner>, Vec<Peer>, Vec<ChannelId>) {
    let handlers = Handlers::new()
        .on(JOIN, |owner: &mut Owner, message, reply| {
            let number = word(message.bytes(), 0) as usize;
            owner.stages[number - 1] = Some(reply.channel());
        })
        .on(TURN, |owner: &mut Owner, message, _| {
            let bytes = message.bytes();
            owner.done.push((word(bytes, 0), word(bytes, 1)));
        });
    let mut owner = Endpoint::<Owner>::listen(&scratch.address(), handlers).expect("a free path");
    let start = |number: usize| Peer::start(&number.to_string(), &scratch.address());
    let peers = (1..=STAGES).map(start).collect();
    patiently(|| {
        owner.poll(64);
        owner
            .state()
            .stages
            .iter()
            .all(Option::is_some)
            .then_some(())
    });
    let stages = owner.state().stages;
    (owner, peers, stages.into_iter().flatten().collect())
}

fn ticketed(owner: &mut Endpoint<Owner>, ticket: u64) -> Frame {
    let mut frame = patiently(|| {
        owner.poll(64);
        owner.shared_frame(LEN).ok()
    });
    frame.copy_from_slice(&content(ticket));
    frame.push(&ticket.to_ne_bytes()).expect("headroom");
    frame
}

fn all_came_back(owner: &mut Endpoint<Owner>) {
    patiently(|| {
        owner.poll(64);
        // Looks for what has come back.
        drop(owner.shared_frame(LEN));
        let audit = owner.shared_frames();
        assert_eq!(audit.astray, [], "{audit:?}");
        (audit.free == audit.frames).then_some(())
    });
}

#[test]
fn frames_go_through_all_stages_in_order() {
    let scratch = Scratch::new("paths");
    let (mut owner, peers, path) = path(&scratch);
    for ticket in 100..200 {
        let frame = ticketed(&mut owner, ticket).freeze();
        patiently(|| {
            owner.poll(64);
            owner.try_send_along(&path, FRAME, &frame).ok()
        });
    }
    patiently(|| {
        owner.poll(64);
        (owner.state().done.len() == 100).then_some(())
    });
    let expected: Vec<(u64, u64)> = (100..200).map(|ticket| (ticket, 1 + 2 + 3)).collect();
    assert_eq!(owner.state().done, expected);
    all_came_back(&mut owner);
    drop(owner);
    assert!(peers.into_iter().all(Peer::finish));
}

#[test]
fn a_stage_that_dies_gives_everything_back() {
    let scratch = Scratch::new("paths-death");
    let (mut owner, peers, path) = path(&scratch);
    let mut lent = 0;
    for ticket in 0..40 {
        let frame = ticketed(&mut owner, ticket).freeze();
        match owner.try_send_along(&path, FRAME, &frame) {
            Ok(()) => lent += 1,
            // The second stage has ended meanwhile, as it shall.
            Err(error) => assert!(ticket > DEADLY, "{error:?}"),
        }
    }
    assert!(lent > DEADLY);
    let dead = patiently(|| {
        owner.poll(64);
        owner
            .next_event()
            .filter(|event| matches!(event, Event::Dead { .. }))
    });
    assert_eq!(dead.channel(), path[1]);
    all_came_back(&mut owner);
    assert!(
        owner
            .state()
            .done
            .iter()
            .all(|(ticket, sum)| *ticket < DEADLY && *sum == 6)
    );
    // Without that stage there is no path any more.
    let frame = ticketed(&mut owner, 50).freeze();
    let refused = owner.try_send_along(&path, FRAME, &frame);
    assert_eq!(refused, Err(SendError::NoChannel));
    drop((frame, owner));
    let ended: Vec<bool> = peers.into_iter().map(Peer::finish).collect();
    assert_eq!(ended, [true, false, true]);
}

#[test]
fn a_frame_is_lent_to_all_stages_or_to_none() {
    let scratch = Scratch::new("paths-room");
    let (mut owner, peers, path) = path(&scratch);
    let last = &peers[STAGES - 1];
    last.stop();
    // Until the last one's ring is full.
    let frame = ticketed(&mut owner, 1).freeze();
    let mut sent = 0u64;
    while owner
        .try_send_to(path[2], 99, b"not for any handler")
        .is_ok()
    {
        sent += 1;
    }
    assert!(sent >= 64);
    let refused = owner.try_send_along(&path, FRAME, &frame);
    assert_eq!(refused, Err(SendError::Full));
    let lent: Vec<_> = path.iter().map(|id| owner.frames_lent(*id)).collect();
    assert_eq!(lent, [Some(0); STAGES]);
    last.signal(Signal::CONT);
    patiently(|| {
        owner.poll(64);
        owner.try_send_along(&path, FRAME, &frame).ok()
    });
    drop(frame);
    patiently(|| {
        owner.poll(64);
        (owner.state().done == [(1, 6)]).then_some(())
    });
    all_came_back(&mut owner);
    drop(owner);
    assert!(peers.into_iter().all(Peer::finish));
}

#[test]
fn a_stage_keeps_no_more_than_it_was_told() {
    let mut stage: Stage<&str> = Stage::new(2);
    assert!(stage.called(1, "early").is_none() && stage.called(2, "too").is_none());
    assert_eq!(stage.refused(), 0);
    // One too many, and one again.
    assert!(stage.called(3, "many").is_none() && stage.called(1, "again").is_none());
    assert_eq!((stage.refused(), stage.waiting()), (2, 0));
    stage.clear();
    assert!(stage.called(3, "room").is_none());
    assert_eq!(stage.refused(), 2);
}

#[test]
fn who_trusts_reads_a_slice() {
    let scratch = Scratch::new("paths-trust");
    let _server = Peer::start("trusting", &scratch.address());
    let mut client = connect(&scratch.address());
    let mut frame = client.frame(10_000).expect("a frame");
    frame.fill(3);
    let sum = client.call_frame(FRAME, frame).expect("an answer");
    assert_eq!(sum, 30_000u64.to_ne_bytes());
    // Not if it lies in several places.
    let frames = [client.frame(10), client.frame(10)].map(|frame| frame.expect("a frame"));
    let sum = client.call_frame(FRAME, frames).expect("an answer");
    assert_eq!(sum, u64::MAX.to_ne_bytes());
}

#[test]
fn secured_frames_are_written_by_nobody_and_used_again() {
    let scratch = Scratch::new("paths-secured");
    let server = Peer::start("trusting", &scratch.address());
    let mut client = connect(&scratch.address());
    let channel = client.channels().next().expect("a channel");
    for round in 0..200u64 {
        let mut frame = client.frame(5000).expect("a frame");
        frame.fill(round as u8);
        let frame = frame.freeze().secure().expect("it can be secured");
        let sum = client.call_frame(FRAME, frame).expect("an answer");
        assert_eq!(sum, (round % 256 * 5000).to_ne_bytes());
    }
    let audit = client.frames(channel).expect("a channel");
    assert_eq!((audit.astray.len(), audit.out), (0, 0), "{audit:?}");
    assert!(audit.frames < 200, "used again: {audit:?}");
    let stray = Peer::start("stray", &scratch.address());
    assert_eq!(stray.killed_by(), Some(Signal::SEGV.as_raw()));
    drop(server);
}

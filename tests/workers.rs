//! Handlers on a pool of threads: the endpoint goes on meanwhile, and whatever becomes of the work, each caller is told.

mod support;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use support::{PATIENCE, Peer, Scratch, next_event, patiently, role};
use tightbeam::{
    CallError, ChannelId, Counter, Endpoint, Event, Handlers, Later, MAX_CALLS, Workers,
};

/// Inline.
const ECHO: u16 = 1;
const RELEASE: u16 = 2;
/// On the workers.
const WAIT: u16 = 10;
const QUEUED_ECHO: u16 = 11;
const PANIC: u16 = 12;
const SILENT: u16 = 13;
const LARGE: u16 = 14;

const LARGE_BYTES: usize = 300_000;
/// What a call is told for which there is no room.
const QUEUE_FULL: CallError = CallError::NoReply {
    handler: QUEUED_ECHO,
};

#[derive(Default)]
struct Shared {
    begun: AtomicU64,
    finished: AtomicU64,
    released: AtomicBool,
}

impl Shared {
    /// Works until it is released.
    fn wait(&self) {
        self.begun.fetch_add(1, Ordering::Release);
        while !self.released.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.finished.fetch_add(1, Ordering::Release);
    }
}

/// Releases who waits when its test is over, however it ends: an endpoint's end waits for its workers.
struct Guard(Arc<Shared>);

impl std::ops::Deref for Guard {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.released.store(true, Ordering::Release);
    }
}

type Server = Endpoint<Arc<Shared>>;

fn workers(shared: &Arc<Shared>) -> Workers<Arc<Shared>> {
    Workers::new(Arc::clone(shared))
        .on(WAIT, |shared, message, later: Later| {
            shared.wait();
            later.send(message);
        })
        .on(QUEUED_ECHO, |_, message, later: Later| later.send(message))
        .on(PANIC, |_, _, _| {
            panic!("a worker that does this on purpose")
        })
        .on(SILENT, |_, _, later: Later| assert!(later.wanted()))
        .on(LARGE, |_, _, later: Later| later.send(vec![7; LARGE_BYTES]))
}

fn serve(
    scratch: &Scratch,
    set: impl FnOnce(Workers<Arc<Shared>>) -> Workers<Arc<Shared>>,
) -> (Server, Guard) {
    serve_at(&scratch.address(), set)
}

fn serve_at(
    address: &str,
    set: impl FnOnce(Workers<Arc<Shared>>) -> Workers<Arc<Shared>>,
) -> (Server, Guard) {
    let shared = Arc::new(Shared::default());
    let handlers = Handlers::new()
        .on(ECHO, |_: &mut Arc<Shared>, message, reply| {
            reply.send(message.bytes());
        })
        .on(RELEASE, |shared, _, reply| {
            shared.released.store(true, Ordering::Release);
            reply.send(b"");
        });
    let builder = Endpoint::builder().state(Arc::clone(&shared));
    let builder = builder.handlers(handlers).workers(set(workers(&shared)));
    let server = builder.deadline(PATIENCE).listen(address);
    (server.expect("a free path"), Guard(shared))
}

/// Polls until a client has come.
fn arrived(server: &mut Server) -> ChannelId {
    match next_event(server) {
        Event::Opened { channel, .. } => channel,
        other => panic!("{other:?}"),
    }
}

/// Polls until this client has closed its channel, or its process is over.
fn until_gone(server: &mut Server, client: ChannelId) -> Event {
    patiently(|| {
        server.poll_for(64, Duration::from_millis(5));
        server
            .next_event()
            .filter(|event| event.channel() == client)
    })
}

/// Serves a client that does what its role says, until it has closed its channel; what was counted.
fn serve_client(server: &mut Server, scratch: &Scratch, role: &str) -> tightbeam::Counters {
    let peer = Peer::start(role, &scratch.address());
    let channel = arrived(server);
    let end = until_gone(server, channel);
    assert!(peer.finish(), "{role}");
    match end {
        Event::Closed { counters, .. } => counters,
        other => panic!("{other:?}"),
    }
}

fn connected(address: &str) -> Endpoint {
    let builder = || Endpoint::builder().deadline(PATIENCE);
    patiently(|| builder().connect(address).ok())
}

/// A call whose answer will come too late for it.
fn give_up(client: &mut Endpoint, index: u16) {
    let channel = client.channels().next().expect("a channel");
    let answer = client.call_to(channel, index, b"late", Duration::ZERO);
    assert_eq!(answer, Err(CallError::DeadlineExceeded));
}

/// Runs what a child is asked to be; in the test runner it does nothing.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    let mut client = connected(&address);
    let channel = client.channels().next().expect("a channel");
    match role.as_str() {
        "overtake" => overtake(&mut client, channel),
        "all kinds" => all_kinds(&mut client),
        "fill the queue" => {
            give_up(&mut client, WAIT);
            for _ in 0..3 {
                let refused = client.call(WAIT, b"");
                assert_eq!(refused, Err(CallError::NoReply { handler: WAIT }));
            }
            assert_eq!(client.call(RELEASE, b""), Ok(&b""[..]));
        }
        "fill the bytes" => fill_the_bytes(&mut client, channel),
        "wait" => drop(client.call(WAIT, b"for ever")),
        "wait with much" => drop(client.call(WAIT, &[1; LARGE_BYTES])),
        "much is refused" => {
            let refused = client.call(QUEUED_ECHO, &[2; LARGE_BYTES]);
            assert_eq!(refused, Err(QUEUE_FULL));
            assert_eq!(client.call(QUEUED_ECHO, b"little"), Ok(&b"little"[..]));
        }
        "much" => {
            let said = [3; LARGE_BYTES];
            assert_eq!(client.call(QUEUED_ECHO, &said), Ok(&said[..]));
        }
        "call" => assert_eq!(
            client.call(QUEUED_ECHO, b"still here"),
            Ok(&b"still here"[..])
        ),
        "one way" => {
            for _ in 0..10 {
                client.send(QUEUED_ECHO, b"not a call").expect("room");
            }
            // Behind them.
            assert_eq!(client.call(ECHO, b""), Ok(&b""[..]));
        }
        other => panic!("no such role: {other}"),
    }
}

/// One long message may wait whatever a channel's share is, but nothing beside it; and when it was handled, however that ended, there is room again.
fn fill_the_bytes(client: &mut Endpoint, channel: ChannelId) {
    let said = [5; LARGE_BYTES];
    let late = client.call_to(channel, WAIT, &said, Duration::ZERO);
    assert_eq!(late, Err(CallError::DeadlineExceeded));
    assert_eq!(client.call(QUEUED_ECHO, b"."), Err(QUEUE_FULL));
    assert_eq!(client.call(ECHO, b"."), Ok(&b"."[..]));
    assert_eq!(client.call(RELEASE, b""), Ok(&b""[..]));
    patiently(|| {
        client.poll(64);
        let counters = client.counters(channel).expect("open");
        (counters.get(Counter::DropLateReply) == 1).then_some(())
    });
    for _ in 0..3 {
        assert_eq!(client.call(QUEUED_ECHO, &said), Ok(&said[..]));
        for index in [PANIC, SILENT] {
            let none = client.call(index, &said);
            assert_eq!(none, Err(CallError::NoReply { handler: index }));
        }
    }
    // More than all of them may have.
    let refused = client.call(QUEUED_ECHO, &[5; 2 * LARGE_BYTES]);
    assert_eq!(refused, Err(QUEUE_FULL));
    assert_eq!(client.call(QUEUED_ECHO, &said), Ok(&said[..]));
}

/// While the first call is worked on others over the same channel are answered, inline and by the other worker.
fn overtake(client: &mut Endpoint, channel: ChannelId) {
    give_up(client, WAIT);
    for number in 0..1000u64 {
        let said = number.to_ne_bytes();
        let index = if number % 2 == 0 { ECHO } else { QUEUED_ECHO };
        assert_eq!(client.call(index, &said), Ok(&said[..]));
    }
    let late = |client: &Endpoint| {
        let counters = client.counters(channel).expect("open");
        counters.get(Counter::DropLateReply)
    };
    assert_eq!(late(client), 0, "it is not released yet");
    assert_eq!(client.call(RELEASE, b""), Ok(&b""[..]));
    patiently(|| {
        client.poll(64);
        (late(client) == 1).then_some(())
    });
}

fn all_kinds(client: &mut Endpoint) {
    for round in 0..20 {
        let none = client.call(PANIC, b"");
        assert_eq!(none, Err(CallError::NoReply { handler: PANIC }), "{round}");
        let none = client.call(SILENT, b"");
        assert_eq!(none, Err(CallError::NoReply { handler: SILENT }), "{round}");
        assert_eq!(client.call(LARGE, b""), Ok(&[7; LARGE_BYTES][..]));
        let said = vec![round as u8; round * 10_000];
        assert_eq!(client.call(QUEUED_ECHO, &said), Ok(&said[..]));
    }
}

#[test]
fn answers_come_as_the_work_is_done() {
    let scratch = Scratch::new("workers-order");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(2));
    let counters = serve_client(&mut server, &scratch, "overtake");
    assert_eq!(shared.finished.load(Ordering::Acquire), 1);
    assert_eq!(counters.get(Counter::CallUnanswered), 0);
}

/// Panics, no answers, and answers in frames: the caller is told, and the next message is handled.
#[test]
fn whatever_becomes_of_the_work_the_caller_is_told() {
    let scratch = Scratch::new("workers-kinds");
    let (mut server, _) = serve(&scratch, |workers| workers.threads(1));
    let counters = serve_client(&mut server, &scratch, "all kinds");
    assert_eq!(counters.get(Counter::CallUnanswered), 40);
    assert_eq!(server.worker_panics(), 20);
}

/// One channel has used up its share: it is refused at once, another one is not.
#[test]
fn a_queue_that_is_full_refuses() {
    let scratch = Scratch::new("workers-full");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(2).share(1));
    let counters = serve_client(&mut server, &scratch, "fill the queue");
    assert_eq!(counters.get(Counter::DropQueueFull), 3);
    assert_eq!(shared.begun.load(Ordering::Acquire), 1);
    serve_client(&mut server, &scratch, "call");
    // The same for a queue that has no room, whoever filled it: one is worked on, one waits, the third is told.
    let scratch = Scratch::new("workers-no-room");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(1).queue(1));
    let mut clients = Vec::new();
    for begun in 1..3 {
        clients.push(Peer::start("wait", &scratch.address()));
        let channel = arrived(&mut server);
        patiently(|| {
            server.poll(64);
            let counters = server.counters(channel).expect("it waits");
            assert_eq!(counters.get(Counter::DropQueueFull), 0);
            // The worker takes the first out of the queue.
            let begun = begun > 1 || shared.begun.load(Ordering::Acquire) == 1;
            (begun && counters.get(Counter::Received) == 1).then_some(())
        });
    }
    let counters = serve_client(&mut server, &scratch, "wait");
    assert_eq!(counters.get(Counter::DropQueueFull), 1);
    shared.released.store(true, Ordering::Release);
    let mut left = 0;
    patiently(|| {
        server.poll_for(64, Duration::from_millis(5));
        left += usize::from(server.next_event().is_some());
        (left == clients.len()).then_some(())
    });
    assert!(clients.into_iter().all(Peer::finish));
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    let scratch = Scratch::new("workers-bytes");
    let bytes = 2 * LARGE_BYTES - 1;
    let (mut server, _shared) = serve(&scratch, |workers| workers.threads(2).bytes(bytes));
    let counters = serve_client(&mut server, &scratch, "fill the bytes");
    assert_eq!(counters.get(Counter::DropQueueFull), 2);
    assert_eq!(server.worker_panics(), 3);
    // The same for what all channels have, also one that has ended while its message is worked on.
    let scratch = Scratch::new("workers-all-bytes");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(2).bytes(bytes));
    let peer = Peer::start("wait with much", &scratch.address());
    let channel = arrived(&mut server);
    patiently(|| {
        server.poll(64);
        (shared.begun.load(Ordering::Acquire) == 1).then_some(())
    });
    peer.signal(rustix::process::Signal::KILL);
    until_gone(&mut server, channel);
    let counters = serve_client(&mut server, &scratch, "much is refused");
    assert_eq!(counters.get(Counter::DropQueueFull), 1);
    shared.released.store(true, Ordering::Release);
    patiently(|| {
        server.poll_for(64, Duration::from_millis(5));
        (server.lost_answers() == 1).then_some(())
    });
    serve_client(&mut server, &scratch, "much");
}

/// The answer to somebody who is dead by then is dropped, and counted; the workers go on.
#[test]
fn a_client_that_is_killed_while_it_waits() {
    let scratch = Scratch::new("workers-killed");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(1));
    let peer = Peer::start("wait", &scratch.address());
    let channel = arrived(&mut server);
    patiently(|| {
        server.poll(64);
        (shared.begun.load(Ordering::Acquire) == 1).then_some(())
    });
    peer.signal(rustix::process::Signal::KILL);
    let end = until_gone(&mut server, channel);
    assert!(matches!(end, Event::Dead { .. }), "{end:?}");
    assert_eq!(server.lost_answers(), 0);
    shared.released.store(true, Ordering::Release);
    patiently(|| {
        server.poll_for(64, Duration::from_millis(5));
        (server.lost_answers() == 1).then_some(())
    });
    serve_client(&mut server, &scratch, "call");
}

/// Messages that nobody waits for are handled too; what is answered to them goes nowhere.
#[test]
fn one_way_messages_are_queued_too() {
    let scratch = Scratch::new("workers-one-way");
    let (mut server, _) = serve(&scratch, |workers| workers.share(20));
    let counters = serve_client(&mut server, &scratch, "one way");
    let dropped = counters.get(Counter::DropQueueFull);
    assert_eq!(dropped, 0);
    // Some may have been worked on when the channel was over already.
    let unwanted = counters.get(Counter::ReplyUnwanted);
    patiently(|| {
        server.poll(64);
        (unwanted + server.lost_answers() == 10).then_some(())
    });
}

/// Dropping the endpoint waits for what is worked on, and begins nothing more.
#[test]
fn the_end_waits_for_the_workers() {
    let scratch = Scratch::new("workers-end");
    let (mut server, shared) = serve(&scratch, |workers| workers.threads(1));
    let mut client = Endpoint::builder()
        .connect(&scratch.address())
        .expect("it listens");
    for _ in 0..MAX_CALLS {
        give_up(&mut client, WAIT);
    }
    patiently(|| {
        server.poll(64);
        (shared.begun.load(Ordering::Acquire) == 1).then_some(())
    });
    let releaser = Arc::clone(&shared.0);
    let releaser = std::thread::spawn(move || {
        // Until the endpoint is about to end: its listener is the first to go.
        patiently(|| (!scratch.path("sock").exists()).then_some(()));
        releaser.released.store(true, Ordering::Release);
    });
    drop(server);
    assert_eq!(shared.finished.load(Ordering::Acquire), 1);
    assert_eq!(shared.begun.load(Ordering::Acquire), 1);
    releaser.join().expect("it has released them");
}

/// The same right without a pool: a handler gives it to a thread of the application's own.
#[test]
fn an_answer_from_any_thread() {
    let scratch = Scratch::new("workers-later");
    let (sender, laters) = mpsc::channel::<Later>();
    let handlers = Handlers::new().on(QUEUED_ECHO, |sender: &mut mpsc::Sender<Later>, _, reply| {
        assert!(reply.wanted());
        sender.send(reply.later()).expect("somebody answers");
    });
    let answering = std::thread::spawn(move || {
        for later in laters {
            later.send("still here");
        }
    });
    let builder = Endpoint::builder().state(sender).handlers(handlers);
    let mut server = builder.listen(&scratch.address()).expect("a free path");
    let peer = Peer::start("call", &scratch.address());
    patiently(|| {
        server.poll_for(64, Duration::from_millis(5));
        matches!(server.next_event(), Some(Event::Closed { .. })).then_some(())
    });
    assert!(peer.finish());
    drop(server);
    answering.join().expect("it has answered");
}

/// Calls are known by the low half of their messages' numbers. One that is still open when its number comes again keeps it.
#[test]
fn an_old_answer_is_not_taken_for_that_to_a_later_call() {
    const BETWEEN: u64 = (1 << 16) - 1;
    let scratch = Scratch::new("old-answer");
    let free = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    let port = free.local_addr().expect("it has one");
    drop(free);
    for address in [scratch.address(), format!("udp:{port}")] {
        let (mut server, shared) = serve_at(&address, |workers| workers.threads(1));
        let client = std::thread::spawn(move || {
            let mut client = connected(&address);
            give_up(&mut client, WAIT);
            for n in 0..BETWEEN {
                match n % 256 {
                    // So that no more is under way than a socket holds.
                    0 => assert_eq!(client.call(ECHO, b"there?"), Ok(&b"there?"[..])),
                    _ => client.send(ECHO, b"between").expect("room"),
                }
            }
            // Its answer comes behind the late one.
            assert_eq!(client.call(QUEUED_ECHO, b"mine"), Ok(&b"mine"[..]));
            let channel = client.channels().next().expect("a channel");
            let counters = client.counters(channel).expect("it is open");
            counters.get(Counter::Sent)
        });
        let channel = arrived(&mut server);
        let received = |server: &Server| {
            let counters = server.counters(channel);
            counters.map_or(0, |counters| counters.get(Counter::Received))
        };
        patiently(|| {
            server.poll(64);
            (received(&server) == BETWEEN + 2).then_some(())
        });
        shared.released.store(true, Ordering::Release);
        until_gone(&mut server, channel);
        let sent = client.join().expect("the client's asserts hold");
        assert_eq!(sent, BETWEEN + 2);
    }
}

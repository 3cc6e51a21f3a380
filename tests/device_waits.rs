//! What an endpoint over a device does while it waits, told by the system calls that it counts: over UDP sockets on loopback.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use tightbeam::{ChannelId, Endpoint, Handlers, Wait};

const COUNT: u16 = 1;
/// Longer than the waits below, all of which end without a message.
const PAUSE: Duration = Duration::from_millis(10);
const SHORT: Duration = Duration::from_millis(1);

fn count<S>(endpoint: &Endpoint<S>, name: &str) -> u64 {
    let channel = endpoint.channels().next().expect("a channel");
    let status = endpoint.device_status(channel).expect("over a device");
    status.count(name).expect("it is counted")
}

/// System calls of a server's waits, in each of two waits after it has handled a message.
fn waits(address: &'static str, pause: Duration) -> [u64; 2] {
    let (listening, listens) = channel();
    let (handled, is_handled) = channel();
    let server = thread::spawn(move || {
        let handlers = Handlers::new().on(COUNT, |count: &mut u64, _, _| *count += 1);
        let builder = Endpoint::builder().state(0).handlers(handlers);
        let builder = builder.wait(Wait::Park).gather(pause);
        let mut server = builder.listen(address).expect("a free port");
        listening.send(()).unwrap();
        while *server.state() == 0 {
            server.poll_for(64, Duration::from_secs(1));
            while server.next_event().is_some() {}
        }
        let waits = [(); 2].map(|()| {
            let before = count(&server, "wait_calls");
            assert_eq!(server.poll_for(64, SHORT), 0);
            count(&server, "wait_calls") - before
        });
        handled.send(()).unwrap();
        waits
    });
    listens.recv().unwrap();
    let mut client = Endpoint::connect(address).expect("it listens");
    client.try_send(COUNT, b"one").expect("there is room");
    client.poll(0);
    // Its farewell would be something to wait for.
    let _ = is_handled.recv();
    server.join().unwrap()
}

#[test]
fn who_lets_messages_gather_is_not_to_be_woken_after_one() {
    let [first, second] = waits("udp:127.0.0.1:7461", PAUSE);
    assert_eq!(
        first, 0,
        "a pause waits for nothing that a device could say"
    );
    assert!(second > 0, "nothing came during the pause");
}

#[test]
fn who_does_not_can_be_woken_at_once() {
    let [first, second] = waits("udp:127.0.0.1:7462", Duration::ZERO);
    assert!(first > 0 && second > 0, "{first}, {second}");
}

/// Looks after which those that only send become rare, and how rare.
const OFTEN: u64 = 64;
const SELDOM: u64 = 16;

#[test]
fn who_only_sends_looks_seldom_and_who_looks_finds() {
    let address = "udp:127.0.0.1:7463";
    let (listening, listens) = channel();
    let server = thread::spawn(move || {
        let handlers = Handlers::new().on(COUNT, |count: &mut u64, _, reply| {
            *count += 1;
            reply.send(b"");
        });
        let mut server = Endpoint::builder()
            .state(0)
            .handlers(handlers)
            .wait(Wait::Park)
            .listen(address)
            .expect("a free port");
        listening.send(()).unwrap();
        while *server.state() <= 2 * OFTEN {
            server.poll_for(64, Duration::from_secs(1));
            while server.next_event().is_some() {}
        }
        // What was sent waits for this at most.
        server.poll(0);
    });
    listens.recv().unwrap();
    let mut client = Endpoint::connect(address).expect("it listens");
    for _ in 0..OFTEN + SELDOM {
        client.poll(0);
    }
    let before = count(&client, "receive_calls");
    for _ in 0..OFTEN - SELDOM {
        client.poll(0);
    }
    let looks = count(&client, "receive_calls") - before;
    assert_eq!(looks, (OFTEN - SELDOM) / SELDOM);
    let before = count(&client, "receive_calls");
    for _ in 0..OFTEN {
        client.poll(1);
    }
    assert_eq!(count(&client, "receive_calls") - before, OFTEN);
    for _ in 0..=2 * OFTEN {
        client.call(COUNT, b"").expect("it is answered");
    }
    server.join().unwrap();
}

/// Messages of a backlog, of which a poll handles so many.
const BACKLOG: u64 = 500;
const A_POLL: usize = 10;

#[test]
fn who_has_a_backlog_handles_it_before_it_looks_again_and_again() {
    let address = "udp:127.0.0.1:7464";
    let (listening, listens) = channel();
    let (sending, is_sent) = channel();
    let (taking, is_taken) = channel();
    let server = thread::spawn(move || {
        let handlers = Handlers::new().on(COUNT, |count: &mut u64, _, _| *count += 1);
        let builder = Endpoint::builder().state(0).handlers(handlers);
        let mut server = builder.listen(address).expect("a free port");
        listening.send(()).unwrap();
        while *server.state() == 0 {
            server.poll_for(A_POLL, SHORT);
            while server.next_event().is_some() {}
        }
        taking.send(()).unwrap();
        is_sent.recv().unwrap();
        let (before, mut polls) = (count(&server, "receive_calls"), 0);
        while *server.state() < 1 + BACKLOG {
            let handled = server.poll(A_POLL);
            polls += u64::from(handled > 0);
        }
        let looks = count(&server, "receive_calls") - before;
        assert!(polls >= BACKLOG / A_POLL as u64 / 2, "{polls}");
        assert!(looks < polls / 2, "{looks} looks of {polls} polls");
        taking.send(()).unwrap();
    });
    listens.recv().unwrap();
    let mut client = Endpoint::connect(address).expect("it listens");
    client.try_send(COUNT, b"one").expect("there is room");
    is_taken.recv().unwrap();
    for _ in 0..BACKLOG {
        client.try_send(COUNT, b"one more").expect("there is room");
    }
    client.poll(0);
    sending.send(()).unwrap();
    is_taken.recv().unwrap();
    server.join().unwrap();
}

/// Messages of each of three who send as much as they can at once, and how many of them a poll handles.
const FLOOD: u64 = 300;
const SHARE: usize = 8;

#[test]
fn a_process_and_two_devices_that_flood_share_each_poll() {
    let path = format!(
        "shm:{}/tightbeam-share-{}.sock",
        std::env::temp_dir().display(),
        std::process::id()
    );
    let addresses = [
        path,
        "udp:127.0.0.1:7465".into(),
        "udp:127.0.0.1:7466".into(),
    ];
    let handlers = Handlers::new().on(COUNT, |counts: &mut HashMap<ChannelId, u64>, _, reply| {
        *counts.entry(reply.channel()).or_default() += 1;
    });
    let builder = Endpoint::builder().state(HashMap::new()).handlers(handlers);
    let mut server = builder.listen(&addresses[0]).expect("a free path");
    for address in &addresses[1..] {
        server.accept_at(address).expect("a free port");
    }
    let (sending, is_sent) = channel();
    let (ending, is_over) = channel::<()>();
    let client = thread::spawn(move || {
        let mut client = Endpoint::connect(&addresses[0]).expect("it listens");
        for address in &addresses[1..] {
            client.open(address).expect("it listens");
        }
        let channels: Vec<_> = client.channels().collect();
        for channel in channels {
            for _ in 0..FLOOD {
                client
                    .try_send_to(channel, COUNT, b"")
                    .expect("there is room");
            }
        }
        client.poll(0);
        sending.send(()).unwrap();
        let _ = is_over.recv();
    });
    while is_sent.try_recv().is_err() && !client.is_finished() {
        // Nothing is handled while they send.
        if server.channels().count() < 3 {
            server.poll(0);
        }
    }
    let most = |counts: &HashMap<ChannelId, u64>| counts.values().copied().max().unwrap_or(0);
    while most(server.state()) < FLOOD {
        server.poll(SHARE);
    }
    let counts = server.state();
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(
        counts.values().all(|count| *count >= FLOOD / 6),
        "{counts:?}"
    );
    drop(ending);
    client.join().unwrap();
}

//! Channels to other hosts, over UDP sockets on loopback: the same handlers, calls and events as between processes.

#[path = "support/mod.rs"]
mod support;

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use support::{Peer, connect, patiently, role};
use tightbeam::{
    Builder, CallError, Counter, Endpoint, Event, Handlers, Message, OpenError, Reply, SendError,
    Stopper, Wait,
};
use tightbeam_proto::opening::{Client, Offer, Turn};
use tightbeam_proto::wire::message::{Cookie, Kind, Repr, seal};

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const TOTAL: u16 = 3;
const SILENT: u16 = 4;

#[derive(Default)]
struct State {
    messages: u64,
    bytes: u64,
}

fn handlers() -> Handlers<State> {
    Handlers::new()
        .on(ECHO, |_, message: Message<'_>, reply: Reply<'_>| {
            reply.send(message.bytes())
        })
        .on(COUNT, |state: &mut State, message, _| {
            state.messages += 1;
            state.bytes += message.len() as u64;
        })
        .on(TOTAL, |state, _, reply| {
            let total = [state.messages, state.bytes].map(u64::to_le_bytes);
            reply.send(total.as_flattened());
        })
        .on(SILENT, |_, _, _| {})
}

/// Serves until its only client has gone.
fn serve(address: &'static str, wait: Wait) -> thread::JoinHandle<Vec<Event>> {
    let (listening, listens) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut server = Endpoint::builder()
            .state(State::default())
            .handlers(handlers())
            .wait(wait)
            .listen(address)
            .expect("a free port");
        listening.send(()).unwrap();
        let mut events = Vec::new();
        while !events
            .iter()
            .any(|event| !matches!(event, Event::Opened { .. }))
        {
            server.poll_for(64, Duration::from_secs(1));
            events.extend(std::iter::from_fn(|| server.next_event()));
        }
        events
    });
    listens.recv().expect("a server");
    server
}

/// Runs a server with these settings until it is stopped, then asks it.
fn run<T: Send + 'static>(
    address: &'static str,
    settings: impl FnOnce(Builder<State>) -> Builder<State> + Send + 'static,
    ask: impl FnOnce(&mut Endpoint<State>) -> T + Send + 'static,
) -> (Stopper, thread::JoinHandle<T>) {
    let (listening, listens) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let builder = Endpoint::builder().state(State::default());
        let builder = settings(builder.handlers(handlers()));
        let mut server = builder.listen(address).expect("a free port");
        listening.send(server.stopper()).unwrap();
        server.run().unwrap();
        ask(&mut server)
    });
    (listens.recv().expect("a server"), server)
}

#[test]
fn calls_of_all_sizes_and_ways_to_wait() {
    for (address, wait) in [
        ("udp:127.0.0.1:47101", Wait::Spin),
        ("udp:127.0.0.1:47102", Wait::Park),
        ("udp:127.0.0.1:47103", Wait::Adaptive),
    ] {
        let server = serve(address, wait);
        let mut client = Endpoint::builder().wait(wait).connect(address).unwrap();
        for len in [0, 1, 56, 57, 1080, 1081, 1400, 8940] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let answer = client.call(ECHO, &payload).unwrap();
            assert!(answer == payload, "{len}");
        }
        drop(client);
        let events = server.join().unwrap();
        assert!(
            matches!(events[..], [Event::Opened { .. }, Event::Closed { .. }]),
            "{events:?}"
        );
    }
}

#[test]
fn what_is_too_long_for_a_packet_is_refused_and_others_go_on() {
    let address = "udp:127.0.0.1:47104";
    let server = serve(address, Wait::Adaptive);
    let mut client = Endpoint::connect(address).unwrap();
    let (len, max) = (8941, 8940);
    let refused = client.call(ECHO, &vec![0; len]).unwrap_err();
    assert_eq!(
        refused,
        CallError::NotSent(SendError::TooLarge { len, max })
    );
    assert_eq!(
        client.call(77, b"").unwrap_err(),
        CallError::NoHandler { handler: 77 }
    );
    assert_eq!(
        client.call(SILENT, b"").unwrap_err(),
        CallError::NoReply { handler: SILENT }
    );
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
    drop(client);
    server.join().unwrap();
}

/// What is sent is received, or counted as lost: on loopback only a receiver without room loses anything.
#[test]
fn a_stream_shares_packets_and_its_sum_is_right() {
    const MESSAGES: u64 = 100_000;
    let address = "udp:127.0.0.1:47105";
    let server = serve(address, Wait::Adaptive);
    let mut client = Endpoint::connect(address).unwrap();
    let channel = client.channels().next().unwrap();
    for _ in 0..MESSAGES {
        client.send(COUNT, &[7; 24]).unwrap();
    }
    let mut total = Vec::new();
    for _ in 0..100 {
        // The call itself may be lost behind a full buffer.
        if let Ok(reply) = client.call_to(channel, TOTAL, b"", Duration::from_millis(200)) {
            total = reply.to_vec();
            break;
        }
    }
    let word = |n: usize| u64::from_le_bytes(total[8 * n..8 * n + 8].try_into().unwrap());
    let status = client.device_status(channel).unwrap();
    let sent = status.count("channel_messages_sent").unwrap();
    let packets = status.count("channel_packets_sent").unwrap();
    assert!(sent > MESSAGES && packets < MESSAGES / 8, "{status:?}");
    assert!(word(0) <= MESSAGES && word(1) == 24 * word(0));
    assert!(word(0) > 0, "nothing at all arrived");
    assert_eq!(client.counters(channel).unwrap().get(Counter::Full), 0);
    drop(client);
    server.join().unwrap();
}

/// However many messages packets hold, the endpoint takes them as it has room, and loses none for want of it.
#[test]
fn packets_hold_more_messages_than_a_ring() {
    const MESSAGES: u64 = 20_000;
    let address = "udp:127.0.0.1:47113";
    let (listening, listens) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut server = Endpoint::builder()
            .state(State::default())
            .handlers(handlers())
            .depth(16)
            .listen(address)
            .unwrap();
        listening.send(()).unwrap();
        let mut no_room = None;
        while !matches!(server.next_event(), Some(Event::Closed { .. })) {
            // One at a time, so that the ring is full whenever a packet comes.
            server.poll_for(1, Duration::from_secs(1));
            if let Some(channel) = server.channels().next() {
                let status = server.device_status(channel).unwrap();
                no_room = status.count("channel_no_room");
            }
        }
        (no_room, server.state().messages)
    });
    listens.recv().unwrap();
    let mut client = Endpoint::connect(address).unwrap();
    let channel = client.channels().next().unwrap();
    for n in 0..MESSAGES {
        client.send(COUNT, &[]).unwrap();
        if n % 500 == 0 {
            let within = Duration::from_secs(20);
            client.call_to(channel, ECHO, b"wait", within).unwrap();
        }
    }
    drop(client);
    assert_eq!(server.join().unwrap(), (Some(0), MESSAGES));
}

#[test]
fn one_endpoint_serves_processes_and_hosts_with_one_table() {
    let path = format!(
        "shm:{}/tightbeam-mixed-{}.sock",
        std::env::temp_dir().display(),
        std::process::id()
    );
    let (local, remote) = (path.clone(), "udp:127.0.0.1:47106");
    let (listening, listens) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let mut server = Endpoint::builder()
            .state(State::default())
            .handlers(handlers())
            .listen(&local)
            .unwrap();
        server.accept_at(remote).unwrap();
        listening.send(server.stopper()).unwrap();
        server.run().unwrap();
        server.state().messages
    });
    let stopper = listens.recv().unwrap();
    let mut client = Endpoint::connect(&path).unwrap();
    let far = client.open(remote).unwrap();
    let near = client.channels().find(|id| *id != far).unwrap();
    let within = Duration::from_secs(5);
    for n in 0..1000u32 {
        for channel in [near, far] {
            let reply = client
                .call_to(channel, ECHO, &n.to_le_bytes(), within)
                .unwrap();
            assert_eq!(reply, n.to_le_bytes());
            client.send_to(channel, COUNT, b"", within).unwrap();
        }
    }
    assert!(client.peer(far).unwrap().host.is_some() && client.peer(near).unwrap().host.is_none());
    assert!(client.device_status(near).is_none() && client.device_status(far).is_some());
    let total = client.call_to(far, TOTAL, b"", within).unwrap().to_vec();
    assert_eq!(total[..8], 2000u64.to_le_bytes());
    stopper.stop();
    assert_eq!(server.join().unwrap(), 2000);
}

#[test]
fn a_call_that_gets_no_answer_gives_its_place_back() {
    let address = "udp:127.0.0.1:47107";
    let (done, until_done) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let mut server = Endpoint::listen(address, handlers()).unwrap();
        while server.channels().count() == 0 {
            server.poll(64);
        }
        // Nobody polls from here on.
        let _ = until_done.recv();
        server.poll(64);
    });
    let mut client = Endpoint::builder()
        .deadline(Duration::from_millis(1))
        .connect(address)
        .unwrap();
    // Many more than may be unanswered at a time.
    for _ in 0..50 {
        let gave_up = client.call(ECHO, b"hello").unwrap_err();
        assert_eq!(gave_up, CallError::DeadlineExceeded);
    }
    let channel = client.channels().next().unwrap();
    assert!(
        client
            .counters(channel)
            .unwrap()
            .get(Counter::DropLateReply)
            >= 40
    );
    drop(done);
    server.join().unwrap();
}

#[test]
fn nobody_there_is_said_in_time() {
    let within = Duration::from_millis(100);
    let opened = Endpoint::builder()
        .open_within(within)
        .connect("udp:127.0.0.1:9");
    let error = opened.err().expect("nobody is there");
    assert!(
        matches!(error, OpenError::TimedOut { after, .. } if after == within),
        "{error}"
    );
}

/// Somebody who sees none of the packets of others, and may send any.
struct Stranger {
    socket: UdpSocket,
    sent: usize,
    received: usize,
    seed: u64,
}

impl Stranger {
    fn at(port: u16) -> Stranger {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Stranger {
            socket,
            sent: 0,
            received: 0,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// xorshift (Marsaglia, 2003).
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.socket.send(bytes).is_ok() {
            self.sent += bytes.len();
        }
        let mut answer = [0; 9000];
        while let Ok(len) = self.socket.recv(&mut answer) {
            self.received += len;
        }
    }
}

fn rounds() -> u64 {
    match std::env::var_os("TIGHTBEAM_LONG") {
        None => 20_000,
        Some(_) => 1_000_000,
    }
}

/// An honest client goes on; nothing of a stranger is accepted, and he gets no more bytes than he has sent.
#[test]
fn blind_forgeries_reach_no_handler_and_are_not_amplified() {
    let address = "udp:127.0.0.1:47108";
    let server = serve(address, Wait::Adaptive);
    let mut client = Endpoint::connect(address).unwrap();
    let mut stranger = Stranger::at(47108);
    let mut packet = [0; 64];
    for n in 0..rounds() {
        // A message for COUNT that is right in all but what only the client knows.
        let cookie = Cookie::new((stranger.random() % 4) as u16, stranger.random());
        let header = Repr {
            handler: COUNT,
            seq: stranger.random() as u32 % 64,
            ..Repr::new(Kind::Data, cookie)
        };
        header.emit(&mut packet);
        seal(&mut packet);
        match n % 4 {
            0 => packet
                .iter_mut()
                .for_each(|byte| *byte = stranger.random() as u8),
            1 => packet[stranger.random() as usize % 64] ^= 1 << (n % 8),
            _ => {}
        }
        let len = if n % 16 == 5 {
            (stranger.random() % 64) as usize
        } else {
            64
        };
        stranger.send(&packet[..len]);
        if n % 1000 == 0 {
            assert_eq!(client.call(ECHO, b"honest").unwrap(), b"honest");
        }
    }
    let total = client.call(TOTAL, b"").unwrap();
    assert_eq!(total[..8], 0u64.to_le_bytes(), "a forgery was handled");
    assert!(stranger.received <= stranger.sent);
    drop(client);
    server.join().unwrap();
}

/// Who asks for channels and never shows that the address is his costs the server no memory, and others nothing.
#[test]
fn a_flood_of_hellos_keeps_nothing() {
    let address = "udp:127.0.0.1:47109";
    let server = Peer::start("server", address);
    let mut client = connect(address);
    let mut stranger = Stranger::at(47109);
    let mut hello = [0; 1472];
    let resident = || {
        let statm = format!("/proc/{}/statm", server.0.id());
        let statm = std::fs::read_to_string(statm).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let mut before = 0;
    for n in 0..rounds() {
        let (secret, incarnation) = (stranger.random(), [stranger.random(), stranger.random()]);
        let mut asking = Client::new(
            Offer::raw(1472),
            Cookie::new(0, secret),
            incarnation,
            1 << 40,
            0,
        );
        let Turn::Send(len) = asking.turn(0, &mut hello) else {
            panic!("the first turn is to send");
        };
        stranger.send(&hello[..len]);
        if n == rounds() / 10 {
            before = resident();
        }
        if n % 1000 == 0 {
            assert_eq!(client.call(ECHO, b"honest").unwrap(), b"honest");
        }
    }
    let after = resident();
    assert!(after < before + (1 << 18), "{} bytes more", after - before);
    assert!(stranger.received > 0 && stranger.received <= stranger.sent);
}

/// Not a test: what the child processes run.
#[test]
fn child_role() {
    let Some((role, address)) = role() else {
        return;
    };
    if role == "client" {
        let mut client = connect(&address);
        let mut payload = vec![0; 1440];
        loop {
            for len in [0, 8, 1080, 1440] {
                payload[..len].fill(len as u8);
                let _ = client.call(ECHO, &payload[..len]);
                let _ = client.send(COUNT, &payload[..len]);
            }
        }
    }
    let mut server = Endpoint::listen(&address, handlers()).expect("a free port");
    server.run().expect("it listens");
}

/// A server that was killed and started again does not know its clients any more, and says so: they learn it once.
#[test]
fn a_server_started_again_says_that_it_knows_nobody() {
    let address = "udp:127.0.0.1:47110";
    let first = Peer::start("server", address);
    let mut client = connect(address);
    assert_eq!(client.call(ECHO, b"first").unwrap(), b"first");
    let channel = client.channels().next().unwrap();
    drop(first);
    let within = Duration::from_millis(50);
    // Nobody is there: the call is lost, the channel stays.
    let lost = client.call_to(channel, ECHO, b"lost", within).unwrap_err();
    assert_eq!(lost, CallError::DeadlineExceeded);
    let _second = Peer::start("server", address);
    let mut again = connect(address);
    assert_eq!(again.call(ECHO, b"second").unwrap(), b"second");
    let event = patiently(|| {
        let _ = client.call_to(channel, ECHO, b"unknown", within);
        client.next_event()
    });
    assert!(
        matches!(event, Event::Dead { channel: dead, .. } if dead == channel),
        "{event:?}"
    );
    assert_eq!(client.next_event().map(|event| event.channel()), None);
    let gone = client.try_send(COUNT, b"").unwrap_err();
    assert_eq!(gone, SendError::NoChannel);
    assert_eq!(again.call(ECHO, b"on").unwrap(), b"on");
}

#[test]
fn hosts_that_are_not_admitted_and_channels_too_many_are_refused() {
    let address = "udp:127.0.0.1:47111";
    let settings = |builder: Builder<State>| {
        builder
            .max_channels(1)
            .admit_hosts(|host| host.ip().is_loopback() && host.port() != 47112)
    };
    let (stopper, server) = run(address, settings, |server| server.openings());
    let first = Endpoint::connect(address).unwrap();
    let full = Endpoint::connect(address)
        .err()
        .expect("one channel, no more");
    assert!(matches!(full, OpenError::Refused { .. }), "{full}");
    drop(first);
    let mut second = patiently(|| Endpoint::connect(address).ok());
    assert_eq!(second.call(ECHO, b"on").unwrap(), b"on");
    stopper.stop();
    let openings = server.join().unwrap();
    assert!(openings.opened == 2 && openings.full >= 1, "{openings:?}");
}

/// A client that has gone without a word is not told from one that is quiet: its place is another one's only when that is wanted.
#[test]
fn who_is_silent_gives_his_place_to_who_asks() {
    let address = "udp:127.0.0.1:47114";
    let settings = |builder: Builder<State>| {
        builder
            .max_channels(1)
            .idle_limit(Duration::from_millis(200))
    };
    let (stopper, server) = run(address, settings, |server| {
        std::iter::from_fn(|| server.next_event()).collect::<Vec<_>>()
    });
    let mut first = Endpoint::connect(address).unwrap();
    // Whoever talks keeps his place, however often others ask.
    for _ in 0..20 {
        assert_eq!(first.call(ECHO, b"here").unwrap(), b"here");
        let refused = Endpoint::connect(address)
            .err()
            .expect("one channel, no more");
        assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
    }
    // Gone without a word.
    std::mem::forget(first);
    let mut second = patiently(|| Endpoint::connect(address).ok());
    assert_eq!(second.call(ECHO, b"on").unwrap(), b"on");
    stopper.stop();
    let events = server.join().unwrap();
    let [
        Event::Opened { channel, .. },
        Event::Evicted {
            channel: evicted, ..
        },
        Event::Opened { .. },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(channel, evicted);
}

/// Clients that are killed while they call and send cost others nothing: a third party is answered all the while, and their places are
/// given to the next ones.
#[test]
fn clients_that_are_killed_cost_others_nothing() {
    const KILLS: usize = 30;
    let address = "udp:127.0.0.1:47115";
    let settings = |builder: Builder<State>| {
        builder
            .max_channels(3)
            .idle_limit(Duration::from_millis(100))
    };
    let (stopper, server) = run(address, settings, |server| {
        let channels = server.channels().count();
        (channels, server.openings().opened, server.state().messages)
    });
    let within = Duration::from_secs(20);
    let builder = Endpoint::builder().deadline(within);
    let mut third = builder.connect(address).unwrap();
    let mut seed = 7u64;
    for kill in 0..KILLS {
        let victim = Peer::start("client", address);
        let begin = std::time::Instant::now();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let life = Duration::from_micros(20_000 + (seed >> 33) % 20_000);
        while begin.elapsed() < life {
            let said = kill.to_le_bytes();
            assert_eq!(third.call(ECHO, &said).unwrap(), said);
        }
        victim.signal(rustix::process::Signal::KILL);
        assert_eq!(victim.killed_by(), Some(9));
    }
    stopper.stop();
    let (channels, opened, messages) = server.join().unwrap();
    assert!(
        channels <= 3 && opened > 4 && messages > 0,
        "{channels} {opened} {messages}"
    );
    assert_eq!(third.next_event().map(|event| event.channel()), None);
}

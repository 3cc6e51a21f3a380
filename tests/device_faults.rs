//! Channels over a device that does not do what it is asked for: its ring is full, its packets are lost, its path becomes narrow.

#[path = "support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, patiently};
use tightbeam::{
    Batch, CallError, Carrier, Devices, Event, Handlers, Location, Offered, OpenError, Policy,
    Purpose, SendError,
};
use tightbeam_proto::opening::{Client, Offer, Progress, SHORTEST, Turn};
use tightbeam_proto::wire::message::Cookie;
use tightbeam_segment::{Capabilities, Device, DeviceError, DeviceStatus, Packet, Route};
use tightbeam_udp::{Options, UdpDevice};

const ECHO: u16 = 1;
const COUNT: u16 = 2;
const WITHIN: Duration = Duration::from_millis(300);

/// What is wrong with the devices of a thread.
#[derive(Default)]
struct Faults {
    full: Cell<bool>,
    /// The kernel takes nothing.
    busy: Cell<bool>,
    /// What is sent arrives nowhere.
    lossy: Cell<bool>,
    longest: Cell<Option<usize>>,
    /// Nothing is received before somebody says so, or has taken his time.
    late: RefCell<Option<mpsc::Receiver<()>>>,
}

thread_local! {
    static FAULTS: Rc<Faults> = Rc::default();
}

fn faults() -> Rc<Faults> {
    FAULTS.with(Rc::clone)
}

struct Faulty {
    device: UdpDevice,
    faults: Rc<Faults>,
}

impl AsFd for Faulty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Device for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn route(&mut self, to: SocketAddrV4) -> Result<Route, DeviceError> {
        self.device.route(to)
    }

    fn transmit(
        &mut self,
        to: &Route,
        len: usize,
        write: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<(), DeviceError> {
        if self.faults.full.get() {
            return Err(DeviceError::Full);
        }
        if let Some(max) = self.faults.longest.get().filter(|max| len > *max) {
            return Err(DeviceError::TooLong { len, max });
        }
        if self.faults.lossy.get() {
            assert_ne!(write(&mut vec![0; len]), 0, "an empty packet");
            return Ok(());
        }
        let mut used = 0;
        let sent = self.device.transmit(to, len, &mut |out| {
            used = write(out);
            used
        });
        assert!(sent.is_err() || used > 0, "an empty packet");
        sent
    }

    fn kick(&mut self) -> Result<bool, DeviceError> {
        match self.faults.busy.get() {
            true => Ok(true),
            false => self.device.kick(),
        }
    }

    fn receive(
        &mut self,
        most: usize,
        take: &mut dyn FnMut(Packet<'_>),
    ) -> Result<usize, DeviceError> {
        if let Some(signal) = &*self.faults.late.borrow() {
            let _ = signal.recv_timeout(WITHIN);
        }
        self.device.receive(most, take)
    }

    fn provide(&mut self) {}

    fn reclaim(&mut self) -> usize {
        0
    }

    fn status(&self) -> DeviceStatus {
        self.device.status()
    }
}

/// One socket for all channels of an endpoint, as a queue of a NIC is.
struct One;

impl Devices for One {
    const FORMS: &'static [&'static str] = &["one:IP:PORT"];

    fn location(address: &str) -> Option<Result<Location, OpenError>> {
        let host = address.strip_prefix("one:")?.parse().expect("an address");
        let device = Some("one".into());
        Some(Ok(Location { host, device }))
    }

    fn open(address: &str, purpose: Purpose) -> Result<Box<dyn Carrier>, OpenError> {
        let at = match purpose {
            Purpose::Listen => address.strip_prefix("one:").unwrap().parse().unwrap(),
            Purpose::Connect => "127.0.0.1:0".parse().unwrap(),
        };
        let device = UdpDevice::listen(at, Options::default())?;
        let faults = faults();
        Ok(Box::new(Faulty { device, faults }))
    }
}

type Endpoint<S = ()> = tightbeam_endpoint::Endpoint<S, One>;

fn handlers() -> Handlers<u64> {
    Handlers::new()
        .on(ECHO, |_, message, reply| reply.send(message.bytes()))
        .on(COUNT, |count: &mut u64, _, _| *count += 1)
}

/// Serves, on a thread of its own, until it is told to stop; says how many messages it has counted.
struct Server {
    stopper: tightbeam::Stopper,
    thread: thread::JoinHandle<u64>,
}

impl Server {
    fn start(port: u16) -> (Server, String) {
        let (listening, listens) = mpsc::channel();
        let thread = thread::spawn(move || {
            let address = format!("udp:127.0.0.1:{port}");
            let mut server = tightbeam::Endpoint::listen(&address, handlers()).unwrap();
            listening.send(server.stopper()).unwrap();
            server.run().unwrap();
            *server.state()
        });
        let stopper = listens.recv().expect("a server");
        (Server { stopper, thread }, format!("one:127.0.0.1:{port}"))
    }

    fn stop(self) -> u64 {
        self.stopper.stop();
        self.thread.join().unwrap()
    }
}

/// Somebody who never answers.
fn silent() -> (UdpSocket, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("one:{}", socket.local_addr().unwrap());
    (socket, address)
}

#[test]
fn what_a_full_ring_has_kept_is_sent_when_there_is_room() {
    let (server, address) = Server::start(47201);
    let mut client = Endpoint::connect(&address).unwrap();
    for fault in [&faults().full, &faults().busy] {
        fault.set(true);
        for _ in 0..10 {
            client.try_send(COUNT, b"kept").unwrap();
        }
        client.poll(64);
        assert!(client.arm().unwrap().is_none(), "nobody would wake it");
        fault.set(false);
        // Nothing else is sent, and nothing arrives.
        client.poll(64);
        assert!(client.arm().unwrap().is_some());
    }
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
    assert_eq!(server.stop(), 20);
}

#[test]
fn calls_that_are_given_up_before_they_are_sent_give_their_places_back() {
    let (server, address) = Server::start(47202);
    let mut client = Endpoint::connect(&address).unwrap();
    let channel = client.channels().next().unwrap();
    let soon = Duration::from_millis(1);
    for _ in 0..5 {
        faults().full.set(true);
        for _ in 0..4 {
            let late = client.call_to(channel, ECHO, b"", soon).unwrap_err();
            assert_eq!(late, CallError::DeadlineExceeded);
        }
        faults().full.set(false);
        faults().lossy.set(true);
        client.poll(64);
        faults().lossy.set(false);
        assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
    }
    server.stop();
}

#[test]
fn a_device_that_becomes_narrow_loses_what_is_too_long_and_nothing_else() {
    let (server, address) = Server::start(47203);
    let mut client = Endpoint::connect(&address).unwrap();
    let other = client.open(&address).unwrap();
    let channel = client.channels().next().unwrap();
    faults().longest.set(Some(300));
    for len in [1000, 400, 290, 10] {
        client.try_send(COUNT, &vec![7; len]).unwrap();
        client.try_send_to(other, COUNT, b"short").unwrap();
    }
    let mut batch = Batch::new();
    for len in [10, 600, 260, 10] {
        assert!(batch.push(COUNT, &vec![8; len]));
    }
    client.try_send_batch(&mut batch).unwrap();
    for _ in 0..10 {
        let lost = client.call(ECHO, &[9; 500]).unwrap_err();
        assert_eq!(lost, CallError::NoReply { handler: ECHO });
    }
    for channel in [channel, other] {
        let short = client.call_to(channel, ECHO, b"on", PATIENCE).unwrap();
        assert_eq!(short, b"on");
    }
    let status = client.device_status(channel).unwrap();
    assert_eq!(status.count("channel_too_long"), Some(14), "{status:?}");
    assert_eq!(server.stop(), 1 + 4 + 3);
}

#[test]
fn what_was_taken_from_a_device_and_not_handled_keeps_its_endpoint_awake() {
    let address = "one:127.0.0.1:47204";
    let mut server = Endpoint::<u64>::listen(address, handlers()).unwrap();
    let (sent, is_sent) = mpsc::channel();
    let client = thread::spawn(move || {
        let mut client = tightbeam::Endpoint::connect("udp:127.0.0.1:47204").unwrap();
        for _ in 0..100 {
            client.try_send(COUNT, b"one of many").unwrap();
        }
        client.poll(64);
        sent.send(()).unwrap();
        client.poll_for(1, PATIENCE);
    });
    while is_sent.try_recv().is_err() {
        server.poll(0);
    }
    let deadline = Instant::now() + PATIENCE;
    while *server.state() < 100 {
        assert!(Instant::now() < deadline);
        let before = *server.state();
        server.poll(1);
        let _ = server.next_event();
        if (1..100).contains(&before) {
            let asleep = server.arm().unwrap().is_some();
            assert!(!asleep || *server.state() == 100, "asleep at {before}");
        }
    }
    drop(server);
    client.join().unwrap();
}

/// Opens a channel from a thread of its own; the endpoint is passed on when it is open, and says then how it ended.
fn client_of(port: u16) -> (mpsc::Receiver<()>, thread::JoinHandle<Option<Event>>) {
    let (opened, is_open) = mpsc::channel();
    let thread = thread::spawn(move || {
        let address = format!("udp:127.0.0.1:{port}");
        let mut client = tightbeam::Endpoint::connect(&address).unwrap();
        opened.send(()).unwrap();
        client.poll_for(1, PATIENCE);
        client.next_event()
    });
    (is_open, thread)
}

#[test]
fn who_is_admitted_while_another_channel_is_opened_is_noticed_and_told_of_the_end() {
    for port in [47205, 47206] {
        let mut server = tightbeam_endpoint::Endpoint::<(), One>::builder()
            .open_within(WITHIN)
            .listen(&format!("one:127.0.0.1:{port}"))
            .unwrap();
        let (is_open, client) = client_of(port);
        let (_socket, nobody) = silent();
        patiently(|| {
            // Looks at the device, but polls nothing.
            let failed = server.open(&nobody).unwrap_err();
            assert!(matches!(failed, OpenError::TimedOut { .. }), "{failed}");
            is_open.try_recv().ok()
        });
        if port == 47205 {
            let event = server.next_event();
            assert!(matches!(event, Some(Event::Opened { .. })), "{event:?}");
        }
        drop(server);
        let event = client.join().unwrap();
        assert!(matches!(event, Some(Event::Closed { .. })), "{event:?}");
    }
}

#[test]
fn the_end_of_a_channel_does_not_end_the_next_one_in_its_slot() {
    let (server, first) = Server::start(47207);
    let (other, second) = Server::start(47208);
    let mut client = tightbeam_endpoint::Endpoint::<(), One>::builder()
        .open_within(WITHIN)
        .connect(&first)
        .unwrap();
    let channel = client.channels().next().unwrap();
    assert_eq!(client.call(ECHO, b"first").unwrap(), b"first");
    server.stop();
    let (_socket, nobody) = silent();
    // That the first has ended is heard here.
    client.open(&nobody).unwrap_err();
    client.close(channel);
    client.open(&second).unwrap();
    for _ in 0..3 {
        client.poll(64);
        assert_eq!(client.call(ECHO, b"second").unwrap(), b"second");
    }
    assert_eq!(client.next_event().map(|event| event.channel()), None);
    other.stop();
}

/// What a server sends as soon as it has given a channel may come together with the word that it has, in whatever order.
#[test]
fn what_a_server_sends_at_once_finds_its_channel() {
    const AT_ONCE: u64 = 10;
    let address = "udp:127.0.0.1:47211";
    let (listening, listens) = mpsc::channel();
    let (sent, is_sent) = mpsc::channel();
    let server = thread::spawn(move || {
        let mut server = tightbeam::Endpoint::listen(address, handlers()).unwrap();
        listening.send(()).unwrap();
        let channel = loop {
            server.poll(64);
            if let Some(Event::Opened { channel, .. }) = server.next_event() {
                break channel;
            }
        };
        for _ in 0..AT_ONCE {
            server.try_send_to(channel, COUNT, b"welcome").unwrap();
            server.poll(64);
        }
        sent.send(()).unwrap();
        patiently(|| {
            server.poll(64);
            server.next_event()
        })
    });
    listens.recv().expect("a server");
    *faults().late.borrow_mut() = Some(is_sent);
    let builder = tightbeam_endpoint::Endpoint::<(), One>::builder().state(0);
    let mut client = builder
        .handlers(handlers())
        .connect("one:127.0.0.1:47211")
        .unwrap();
    *faults().late.borrow_mut() = None;
    patiently(|| {
        client.poll(64);
        (*client.state() == AT_ONCE).then_some(())
    });
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
    assert_eq!(client.next_event().map(|event| event.channel()), None);
    drop(client);
    let event = server.join().unwrap();
    assert!(matches!(event, Event::Closed { .. }), "{event:?}");
}

/// An endpoint that goes from one server to the next keeps nothing of the channels that are over, whoever ended them.
#[test]
fn channels_that_are_over_leave_no_socket() {
    let sockets = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let links = links.map(|link| link.display().to_string());
        links.filter(|link| link.starts_with("socket:")).count()
    };
    let (server, address) = Server::start(47210);
    let address = address.replace("one:", "udp:");
    let mut client = tightbeam::Endpoint::connect(&address).unwrap();
    // Other tests of this process have sockets, too, but never so many.
    let before = sockets();
    for _ in 0..200 {
        // As an application with an event loop of its own does.
        drop(client.arm().unwrap());
        let other = client.open(&address).unwrap();
        assert_eq!(client.call_to(other, ECHO, b"on", PATIENCE).unwrap(), b"on");
        assert!(client.close(other));
    }
    let after = sockets();
    assert!(after < before + 100, "{after} sockets, {before} before");
    server.stop();
    let event = patiently(|| {
        client.poll(64);
        client.next_event()
    });
    assert!(matches!(event, Event::Closed { .. }), "{event:?}");
    let (again, _) = Server::start(47210);
    let channel = client.open(&address).unwrap();
    assert_eq!(client.channels().collect::<Vec<_>>(), [channel]);
    assert_eq!(client.call(ECHO, b"on").unwrap(), b"on");
    again.stop();
}

/// Opens a channel with the shortest packets that there can be; its socket.
fn narrow_client(to: SocketAddr, mut poll: impl FnMut()) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_nonblocking(true).unwrap();
    let offer = Offer::raw(SHORTEST);
    let mut asking = Client::new(offer, Cookie::new(0, 77 << 16), [1, 2], 1 << 40, 0);
    let (start, mut buffer) = (Instant::now(), [0; 2000]);
    loop {
        assert!(start.elapsed() < PATIENCE);
        let now = start.elapsed().as_nanos() as u64;
        if let Turn::Send(len) = asking.turn(now, &mut buffer) {
            socket.send(&buffer[..len]).unwrap();
        }
        poll();
        if let Ok(len) = socket.recv(&mut buffer)
            && let Progress::Opened(agreed) = asking.handle(now, &buffer[..len])
        {
            assert_eq!(agreed.max_packet, SHORTEST);
            return socket;
        }
    }
}

#[test]
fn who_asks_for_short_packets_costs_others_nothing() {
    let address = "one:127.0.0.1:47209";
    let mut server = Endpoint::<u64>::listen(address, handlers()).unwrap();
    let to = "127.0.0.1:47209".parse().unwrap();
    let socket = narrow_client(to, || {
        server.poll(64);
    });
    let Some(Event::Opened { channel, .. }) = server.next_event() else {
        panic!("it is open");
    };
    let (len, max) = (200, SHORTEST - 32);
    let refused = server.try_send_to(channel, 3, &[0; 200]).unwrap_err();
    assert_eq!(refused, SendError::TooLarge { len, max });
    let mut batch = Batch::new();
    for len in [10, 200, 60, 61, 64, 65, 10] {
        assert!(batch.push(3, &vec![1; len]));
    }
    server.try_send_batch_to(channel, &mut batch).unwrap();
    for len in [56, 64, 56, 0] {
        server.try_send_to(channel, 3, &vec![1; len]).unwrap();
    }
    server.poll(64);
    let status = server.device_status(channel).unwrap();
    assert_eq!(status.count("channel_too_long"), Some(2), "{status:?}");
    assert_eq!(status.count("channel_messages_sent"), Some(9), "{status:?}");
    let mut packet = [0; 2000];
    let mut packets = 0;
    while let Ok(len) = socket.recv(&mut packet) {
        packets += 1;
        assert!((32..=SHORTEST).contains(&len), "{len} bytes");
    }
    assert!(packets >= 6, "{packets} packets");
    let (is_open, client) = client_of(47209);
    patiently(|| {
        server.poll(64);
        is_open.try_recv().ok()
    });
    drop(server);
    let event = client.join().unwrap();
    assert!(matches!(event, Some(Event::Closed { .. })), "{event:?}");
}

/// What waits in front of a message that can never be sent would wait for ever.
#[test]
fn no_queue_takes_what_is_too_long_for_its_path() {
    let builder = tightbeam_endpoint::Endpoint::<(), One>::builder().state(0);
    let builder = builder.handlers(handlers()).depth(16);
    let mut server = builder
        .policy(Policy::DropOldest)
        .listen("one:127.0.0.1:47212")
        .unwrap();
    let to = "127.0.0.1:47212".parse().unwrap();
    let _socket = narrow_client(to, || {
        server.poll(64);
    });
    let Some(Event::Opened { channel, .. }) = server.next_event() else {
        panic!("it is open");
    };
    while server.offer_to(channel, 3, b"short").unwrap() == Offered::Sent {}
    let (len, max) = (200, SHORTEST - 32);
    let refused = server.offer_to(channel, 3, &[0; 200]).unwrap_err();
    assert_eq!(refused, SendError::TooLarge { len, max });
    assert_eq!(
        server.offer_to(channel, 3, b"behind").unwrap(),
        Offered::Queued
    );
    patiently(|| {
        server.poll(64);
        (server.load(channel).unwrap().queued == 0).then_some(())
    });
}

/// What a server answers, and how often it did.
#[derive(Default)]
struct Answers {
    heard: u64,
    sent: u64,
    len: usize,
}

/// A device that has no room keeps what it was to send, whatever else comes and goes meanwhile.
#[test]
fn what_a_full_ring_has_kept_is_sent_before_what_came_later() {
    for (port, len) in (47230..).zip([8, 60, 120, 1000]) {
        let handlers = Handlers::new().on(ECHO, |answers: &mut Answers, _, reply| {
            answers.heard += 1;
            let mut message = vec![0; answers.len];
            message[..8].copy_from_slice(&answers.sent.to_le_bytes());
            answers.sent += u64::from(reply.try_send(COUNT, &message).is_ok());
        });
        let builder = tightbeam_endpoint::Endpoint::<(), One>::builder();
        let builder = builder.state(Answers {
            len,
            ..Answers::default()
        });
        let address = format!("one:127.0.0.1:{port}");
        let mut server = builder.handlers(handlers).listen(&address).unwrap();
        let (tell, tells) = mpsc::channel::<u64>();
        let client = thread::spawn(move || {
            let count =
                |next: &mut u64, message: tightbeam::Message<'_>, _: tightbeam::Reply<'_>| {
                    let bytes = message.bytes();
                    assert_eq!(bytes[..8], next.to_le_bytes(), "of {}", bytes.len());
                    *next += 1;
                };
            let builder = tightbeam::Endpoint::builder().state(0);
            let builder = builder.handlers(Handlers::new().on(COUNT, count));
            let mut client = builder.connect(&format!("udp:127.0.0.1:{port}")).unwrap();
            for wanted in tells {
                match wanted {
                    0 => client.try_send(ECHO, b"tell").unwrap(),
                    all => patiently(|| {
                        client.poll(64);
                        (*client.state() == all).then_some(())
                    }),
                }
                client.poll(0);
            }
        });
        let round = |server: &mut tightbeam_endpoint::Endpoint<Answers, One>| {
            let heard = server.state().heard;
            tell.send(0).unwrap();
            patiently(|| {
                server.poll(64);
                (server.state().heard > heard).then_some(())
            });
        };
        for before in 1..20 {
            for _ in 0..before {
                round(&mut server);
            }
            faults().full.set(true);
            let kept = server.state().sent;
            for _ in 0..10 {
                round(&mut server);
            }
            assert!(server.state().sent > kept + 1);
            faults().full.set(false);
            tell.send(server.state().sent).unwrap();
            server.poll(64);
        }
        drop(tell);
        client.join().unwrap();
    }
}

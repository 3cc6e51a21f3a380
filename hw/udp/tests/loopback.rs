//! What is particular to this device, over the loopback interface, in both ways of receiving. What every device does is in the
//! repository's `tests/conformance`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tightbeam_segment::{Device, DeviceError, DeviceStatus, Route};
use tightbeam_sys::control::wait_readable;
use tightbeam_udp::{Engine, Options, UdpDevice};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test with each engine that this host has.
fn each_engine(test: fn(Options)) {
    for engine in [Engine::Calls, Engine::Ring] {
        let options = Options {
            engine,
            ..Options::default()
        };
        match UdpDevice::listen(ANY, options) {
            Ok(_) => test(options),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

/// A listener, and one that talks to it.
fn pair(options: Options) -> (UdpDevice, UdpDevice, Route) {
    let listener = UdpDevice::listen(ANY, options).unwrap();
    let mut client = UdpDevice::connect(listener.capabilities().local, options).unwrap();
    let route = client.route(listener.capabilities().local).unwrap();
    (listener, client, route)
}

fn put(device: &mut UdpDevice, route: &Route, bytes: &[u8]) -> Result<(), DeviceError> {
    device.transmit(route, bytes.len(), &mut |frame| {
        frame.copy_from_slice(bytes);
        bytes.len()
    })
}

/// Receives until there are so many, or for a while.
fn take(device: &mut UdpDevice, count: usize) -> Vec<(Route, Vec<u8>)> {
    let (mut taken, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while taken.len() < count && Instant::now() < deadline {
        device
            .receive(count - taken.len(), &mut |packet| {
                taken.push((packet.from, packet.bytes.to_vec()));
            })
            .unwrap();
    }
    assert_eq!(taken.len(), count);
    taken
}

/// Everything that is known to be lost.
fn lost(status: &DeviceStatus) -> u64 {
    let lost = status
        .counts
        .iter()
        .filter(|(name, _)| name.starts_with("lost_"));
    lost.map(|(_, count)| count).sum()
}

#[test]
fn a_full_ring_leaves_in_one_call_and_is_answered() {
    each_engine(|options| {
        let (mut listener, mut client, route) = pair(options);
        let batch = client.capabilities().batch;
        for number in 0..batch {
            put(&mut client, &route, &[number as u8; 3]).unwrap();
        }
        assert_eq!(put(&mut client, &route, &[0]), Err(DeviceError::Full));
        client.kick().unwrap();
        assert_eq!(client.status().count("send_calls"), Some(1));
        assert_eq!(client.status().count("sent"), Some(batch as u64));
        let came = take(&mut listener, batch);
        let answer_to = came[0].0;
        for (number, (from, bytes)) in came.iter().enumerate() {
            assert_eq!(
                (from, bytes.as_slice()),
                (&answer_to, [number as u8; 3].as_slice())
            );
        }
        put(&mut listener, &answer_to, b"answer").unwrap();
        listener.kick().unwrap();
        assert_eq!(take(&mut client, 1), [(route, b"answer".to_vec())]);
    });
}

#[test]
fn an_idle_device_with_a_standing_request_makes_no_calls() {
    let options = Options {
        engine: Engine::Ring,
        ..Options::default()
    };
    let Ok(mut device) = UdpDevice::listen(ANY, options) else {
        eprintln!("skipped: no io_uring");
        return;
    };
    for _ in 0..100 {
        assert_eq!(device.receive(8, &mut |_| {}), Ok(0));
    }
    assert_eq!(device.status().count("receive_calls"), Some(1));
}

#[test]
fn its_descriptor_says_when_there_is_something() {
    each_engine(|options| {
        let (mut listener, mut client, route) = pair(options);
        assert_eq!(listener.receive(8, &mut |_| {}), Ok(0));
        assert!(!wait_readable(listener.as_fd(), Duration::ZERO));
        put(&mut client, &route, b"x").unwrap();
        client.kick().unwrap();
        assert!(wait_readable(listener.as_fd(), PATIENCE));
        take(&mut listener, 1);
        assert_eq!(listener.receive(8, &mut |_| {}), Ok(0));
        assert!(!wait_readable(listener.as_fd(), Duration::ZERO));
    });
}

#[test]
fn what_nobody_takes_in_time_is_counted() {
    each_engine(|options| {
        let options = Options {
            receive_buffer: Some(16 * 1024),
            ..options
        };
        let (mut listener, mut client, route) = pair(options);
        for _ in 0..100 {
            for _ in 0..client.capabilities().batch {
                put(&mut client, &route, &[7; 1000]).unwrap();
            }
            client.kick().unwrap();
        }
        let mut received = 0;
        loop {
            let got = listener.receive(64, &mut |packet| assert_eq!(packet.bytes, [7; 1000]));
            match got.unwrap() {
                0 => break,
                got => received += got as u64,
            }
        }
        let (near, far) = (client.status(), listener.status());
        assert!(far.count("lost_receive_buffer_full").unwrap() > 0);
        assert_eq!(far.count("received"), Some(received));
        assert_eq!(
            near.count("sent"),
            Some(received + lost(&near) + lost(&far))
        );
    });
}

#[test]
fn a_port_without_a_socket_is_counted_and_heals() {
    each_engine(|options| {
        let (listener, mut client, route) = pair(options);
        let at = listener.capabilities().local;
        drop(listener);
        for _ in 0..3 {
            put(&mut client, &route, b"into the void").unwrap();
            client.kick().unwrap();
            assert_eq!(client.receive(8, &mut |_| {}), Ok(0));
        }
        let lost = client.status().count("lost_port_unreachable");
        // The answers to some may be held back: a host sends only so many.
        assert!((1..=3).contains(&lost.unwrap()), "{lost:?}");
        // A ring may have been told of what is there no more.
        if wait_readable(client.as_fd(), Duration::ZERO) {
            assert_eq!(client.receive(8, &mut |_| {}), Ok(0));
        }
        assert!(!wait_readable(client.as_fd(), Duration::ZERO));
        let mut listener = UdpDevice::listen(at, options).unwrap();
        put(&mut client, &route, b"again").unwrap();
        client.kick().unwrap();
        assert_eq!(take(&mut listener, 1)[0].1, b"again");
    });
}

#[test]
fn a_listener_hears_that_its_peer_is_gone_and_loses_no_other_packet() {
    each_engine(|options| {
        let (mut listener, client, _) = pair(options);
        let mut other = UdpDevice::connect(listener.capabilities().local, options).unwrap();
        let gone = listener.route(client.local_of(&listener)).unwrap();
        let there = listener.route(other.local_of(&listener)).unwrap();
        drop(client);
        for number in 0..10u8 {
            put(&mut listener, &gone, b"nobody").unwrap();
            put(&mut listener, &there, &[number]).unwrap();
            listener.kick().unwrap();
        }
        let came = take(&mut other, 10);
        assert!(
            came.iter()
                .zip(0..)
                .all(|((_, bytes), number)| *bytes == [number])
        );
        assert_eq!(listener.receive(8, &mut |_| {}), Ok(0));
        let lost = listener.status().count("lost_port_unreachable");
        assert!((1..=10).contains(&lost.unwrap()), "{:?}", listener.status());
    });
}

#[test]
fn a_device_that_talks_to_one_host_talks_to_no_other() {
    let (listener, mut client, route) = pair(Options::default());
    let other = UdpDevice::listen(ANY, Options::default()).unwrap();
    let error = client.route(other.capabilities().local).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&listener.capabilities().local.to_string()),
        "{error}"
    );
    let wrong = Route {
        to: other.capabilities().local,
        ..route
    };
    let refused = put(&mut client, &wrong, b"x");
    assert!(
        matches!(refused, Err(DeviceError::NoRoute { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_cannot_be_opened_says_what_mends_it() {
    let (listener, _, _) = pair(Options::default());
    let at = |text: &str| text.parse::<SocketAddrV4>().unwrap();
    let cases = [
        (
            UdpDevice::listen(listener.capabilities().local, Options::default()),
            "ss -lunp",
        ),
        (
            UdpDevice::listen(at("192.0.2.1:7000"), Options::default()),
            "ip address",
        ),
        (
            UdpDevice::connect(at("127.0.0.1:0"), Options::default()),
            "name the address",
        ),
        (
            UdpDevice::connect(at("0.0.0.0:7000"), Options::default()),
            "name the address",
        ),
        (
            UdpDevice::connect(at("255.255.255.255:7"), Options::default()),
            "",
        ),
    ];
    for (opened, words) in cases {
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_status_says_how_it_is() {
    each_engine(|options| {
        let (listener, client, _) = pair(options);
        let status = client.status();
        assert_eq!(status.kind, "udp");
        assert_eq!(status.fact("engine"), Some(options.engine.name()));
        assert_eq!(status.fact("driver"), Some("loopback"));
        assert_eq!(status.fact("checksum"), Some("none"));
        assert_eq!(
            status.fact("peer"),
            Some(&*listener.capabilities().local.to_string())
        );
        assert!(
            status
                .fact("receive_buffer")
                .unwrap()
                .parse::<usize>()
                .unwrap()
                > 0
        );
        assert_eq!(status.count("sent"), Some(0));
    });
}

#[test]
fn it_may_move_to_another_thread_before_it_is_used() {
    fn sent<T: Send>() {}
    sent::<UdpDevice>();
}

/// For tests that answer somebody who has said nothing yet.
trait Local {
    fn local_of(&self, beside: &UdpDevice) -> SocketAddrV4;
}

impl Local for UdpDevice {
    /// A connected device is at the address from which it talks to `beside`.
    fn local_of(&self, beside: &UdpDevice) -> SocketAddrV4 {
        let port = self.capabilities().local.port();
        SocketAddrV4::new(*beside.capabilities().local.ip(), port)
    }
}

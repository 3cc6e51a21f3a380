//! A device on an interface with several queues: it has all of them, or one.

mod support;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use support::netns::{self, Namespace, Pair};
use support::{LEFT, MODES, PATIENCE, RIGHT, at, connect, listen, receive, route, send};
use tightbeam_segment::Device;

const QUEUES: u32 = 4;
const WITH_QUEUES: &str = "numrxqueues 4 numtxqueues 4";
/// Senders, whose ports spread their packets over the queues.
const SENDERS: usize = 64;
/// So that all of them together send more packets than the device has frames.
const ROUNDS: usize = 64;

/// From now on the packets that this thread sends arrive in the order in which it does: in generic mode each CPU has a queue of its own for them.
fn in_order() {
    let cpus = tightbeam_sys::cpu::allowed().expect("CPUs");
    tightbeam_sys::cpu::pin(cpus[0]).expect("a CPU of ours");
}

fn senders(namespace: &Namespace) -> Vec<UdpSocket> {
    let make = || {
        let socket = UdpSocket::bind((LEFT, 0)).expect("a port");
        socket.connect((RIGHT, 7000)).expect("a way");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        socket
    };
    namespace.run(|| (0..SENDERS).map(|_| make()).collect())
}

#[test]
fn packets_are_received_at_whichever_queue_they_arrive() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new(WITH_QUEUES);
        let mut device = listen(&pair.right, &at(RIGHT, 7000, mode)).unwrap();
        let status = device.status();
        assert_eq!(status.fact("queue"), Some("0 to 3"), "{mode}: {status:?}");
        assert_eq!(status.fact("queues"), Some("4"), "{mode}: {status:?}");
        let senders = senders(&pair.left);
        for round in 0..ROUNDS {
            for (n, sender) in senders.iter().enumerate() {
                sender.send(&[round as u8, n as u8]).unwrap();
            }
            for (from, bytes) in receive(&mut device, SENDERS) {
                send(&mut device, &from, &bytes);
            }
            // Each sender has its own packet back, and once: the next round's is the next.
            for (n, sender) in senders.iter().enumerate() {
                let mut buffer = [0; 16];
                let len = sender.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [round as u8, n as u8], "{mode}");
            }
        }
        let status = device.status();
        let all = (SENDERS * ROUNDS) as u64;
        assert_eq!(status.count("received"), Some(all), "{mode}: {status:?}");
        assert_eq!(status.losses().count(), 0, "{mode}: {status:?}");
    }
}

/// The others' packets go to the kernel, which drops those for which its socket has no room.
#[test]
fn one_queue_gets_its_own_packets_and_no_others() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new(WITH_QUEUES);
        in_order();
        let senders = senders(&pair.left);
        let mut received = 0;
        for queue in 0..QUEUES {
            let options = format!("{mode}&queue={queue}");
            let mut device = listen(&pair.right, &at(RIGHT, 7000, &options)).unwrap();
            for sender in &senders {
                sender.send(b"one of many").unwrap();
            }
            // A sender of whose queue it is known that it is this one sends the last packet. Generic mode counts from the second one on.
            let generic = mode.contains("generic");
            let other = if generic && queue > 0 {
                queue + 1
            } else {
                queue
            };
            if other < QUEUES {
                let last = at(RIGHT, 7000, &format!("queue={other}"));
                let mut client = connect(&pair.left, &last).unwrap();
                let to = route(&pair.left, &mut client, last.at);
                send(&mut client, &to, b"last");
                let is_last = |(_, bytes): &(_, Vec<u8>)| bytes == b"last";
                while !receive(&mut device, 1).iter().any(is_last) {}
            }
            let got = device.status().count("received").unwrap();
            assert!(got < SENDERS as u64, "{mode}: all at queue {queue}");
            received += got;
        }
        let lasts = u64::from(QUEUES) - u64::from(mode.contains("generic"));
        assert_eq!(
            received,
            SENDERS as u64 + lasts,
            "{mode}: each at one queue"
        );
    }
}

fn readable(device: &impl AsFd, bound: Duration) -> bool {
    let mut watched = [PollFd::new(device, PollFlags::IN)];
    let bound = Timespec::try_from(bound).expect("a short time");
    poll(&mut watched, Some(&bound)).expect("poll") == 1
}

#[test]
fn a_device_is_readable_when_one_of_its_queues_is() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new(WITH_QUEUES);
        let address = at(RIGHT, 7000, mode);
        let mut device = listen(&pair.right, &address).unwrap();
        for queue in 0..QUEUES {
            let through = at(RIGHT, 7000, &format!("{mode}&queue={queue}"));
            let mut client = connect(&pair.left, &through).unwrap();
            let to = route(&pair.left, &mut client, address.at);
            assert!(!readable(&device, Duration::ZERO), "{mode}, {queue}");
            send(&mut client, &to, &[queue as u8]);
            assert!(readable(&device, PATIENCE), "{mode}, {queue}");
            assert_eq!(receive(&mut device, 1)[0].1, [queue as u8], "{mode}");
        }
        assert!(!readable(&device, Duration::ZERO), "{mode}");
    }
}

/// A queue that is never empty does not keep the others waiting.
#[test]
fn each_queue_has_its_turn() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new(WITH_QUEUES);
        let address = at(RIGHT, 7000, mode);
        let mut device = listen(&pair.right, &address).unwrap();
        in_order();
        let mut sent = 0;
        for (queue, count) in [(3, 1), (0, 100)] {
            let through = at(RIGHT, 7000, &format!("{mode}&queue={queue}"));
            let mut client = connect(&pair.left, &through).unwrap();
            let to = route(&pair.left, &mut client, address.at);
            for _ in 0..count {
                send(&mut client, &to, &[queue as u8]);
                sent += 1;
            }
        }
        let end = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while heard.len() < sent {
            assert!(Instant::now() < end, "{mode}: {} of {sent}", heard.len());
            let mut take = |packet: tightbeam_segment::Packet<'_>| heard.push(packet.bytes[0]);
            device.receive(1, &mut take).unwrap();
        }
        let turn = heard.iter().position(|&queue| queue == 3);
        assert!(turn < Some(QUEUES as usize), "{mode}: heard as {turn:?}");
    }
}

//! Channels over a NIC through AF_XDP, between two hosts that are network namespaces, and to a host that has a UDP socket only.

#[path = "../hw/xdp/tests/support/netns.rs"]
mod netns;

use netns::{END, Pair, may};
use std::sync::mpsc::channel;
use std::time::Duration;
use tightbeam::{Endpoint, Event, Handlers, Message, Reply, Stopper, Wait};

const ECHO: u16 = 1;

fn handlers() -> Handlers<u64> {
    Handlers::new().on(
        ECHO,
        |count: &mut u64, message: Message<'_>, reply: Reply<'_>| {
            *count += 1;
            reply.send(message.bytes());
        },
    )
}

/// Ends a server whatever becomes of its client.
struct Stops(Stopper);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Listens at one address of the left host, calls from the right one over another.
fn echo(pair: &Pair, listen: &str, connect: &str, wait: Wait, longest: usize) {
    let (listening, listens) = channel();
    let builder = || {
        let patience = Duration::from_secs(20);
        Endpoint::builder()
            .wait(wait)
            .deadline(patience)
            .open_within(patience)
    };
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            pair.left.run(|| {
                let builder = builder().state(0).handlers(handlers());
                let mut server = builder.listen(listen).expect("an interface of ours");
                listening.send(server.stopper()).unwrap();
                server.run().expect("it listens");
                let events: Vec<Event> = std::iter::from_fn(|| server.next_event()).collect();
                (*server.state(), events)
            })
        });
        let stops = Stops(listens.recv().expect("a server"));
        pair.right.run(|| {
            let mut client = builder().connect(connect).expect("a server");
            for round in 0..200 {
                for len in [0, 56, 1080, 1081, longest] {
                    let payload: Vec<u8> = (0..len).map(|n| (n + round) as u8).collect();
                    assert!(
                        client.call(ECHO, &payload).expect("an answer") == payload,
                        "{len}"
                    );
                }
            }
            let channel = client.channels().next().unwrap();
            let status = client.device_status(channel).unwrap();
            assert_eq!(status.count("lost"), Some(0), "{status:?}");
            if status.kind == "xdp" {
                assert_eq!(status.count("frames_missing"), Some(0), "{status:?}");
                assert!(status.count("frames_receiving") > Some(0), "{status:?}");
            }
        });
        drop(stops);
        let (calls, events) = server.join().unwrap();
        assert_eq!(calls, 1000);
        assert!(
            matches!(events[..], [Event::Opened { .. }, Event::Closed { .. }]),
            "{events:?}"
        );
    });
}

#[test]
fn both_hosts_through_af_xdp_in_each_mode() {
    let Some(_alone) = may() else { return };
    let pair = Pair::new("");
    for mode in ["generic", "native"] {
        for wait in [Wait::Spin, Wait::Adaptive] {
            let listen = format!("xdp:{END}/10.77.0.1:7000?mode={mode}");
            let connect = format!("xdp:{END}/10.77.0.1:7000?mode={mode}");
            echo(&pair, &listen, &connect, wait, 1440);
        }
    }
}

#[test]
fn one_side_has_a_socket_only() {
    let Some(_alone) = may() else { return };
    let pair = Pair::new("");
    let (xdp, udp) = (format!("xdp:{END}/10.77.0.1:7001"), "udp:10.77.0.1:7001");
    echo(&pair, &xdp, udp, Wait::Adaptive, 1440);
    echo(&pair, udp, &xdp, Wait::Adaptive, 1440);
}

/// Whichever queue a client's port makes its packets arrive at, who spins hears of them, and who sleeps wakes.
#[test]
fn several_queues_are_one_device() {
    let Some(_alone) = may() else { return };
    let pair = Pair::new("numrxqueues 4 numtxqueues 4");
    let (xdp, udp) = (format!("xdp:{END}/10.77.0.1:7002"), "udp:10.77.0.1:7002");
    echo(&pair, &xdp, &xdp, Wait::Spin, 1440);
    for _ in 0..4 {
        echo(&pair, &xdp, udp, Wait::Adaptive, 1440);
    }
}

//! What stands in the way of a device, and what is left of one: errors that name what mends them, interfaces that go, processes that are
//! killed.

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use support::netns::{self, END, Namespace, Pair};
use support::{LEFT, MODES, PATIENCE, RIGHT, at, both, connect, listen, receive, send};
use tightbeam_segment::{Device, DeviceError};
use tightbeam_sys::Network;
use tightbeam_sys::bpf::{self, Attach};
use tightbeam_sys::link::AttachedProgram;
use tightbeam_sys::xdp::{Copying, Opening, RingSizes, Umem, Xsk};
use tightbeam_xdp::XdpDevice;

/// What a child process is to hold, and where.
const ROLE: &str = "TIGHTBEAM_XDP_TEST_HOLDS";

fn refused(namespace: &Namespace, address: &tightbeam_xdp::XdpAddress) -> String {
    match listen(namespace, address) {
        Ok(device) => panic!("it was opened: {:?}", device.status()),
        Err(error) => error.to_string(),
    }
}

fn program(namespace: &Namespace) -> Option<AttachedProgram> {
    let network = namespace.run(Network::open).expect("a network");
    network.link(END).expect("the interface").program
}

/// A bare socket on a queue of the end, with frames in its rings.
fn socket(namespace: &Namespace, queue: u32) -> Xsk {
    let sizes = RingSizes {
        fill: 64,
        completion: 64,
        receive: 64,
        transmit: 64,
    };
    namespace.run(|| {
        let (mut umem, mut frames) = Umem::create(64, 2048).expect("memory");
        let mut opening = Opening::new().expect("a socket");
        opening.register(&umem, 0).expect("registered memory");
        let mut socket = opening.map(sizes).expect("rings");
        socket.provide(&mut umem, &mut frames).expect("room");
        socket.publish_provided();
        let network = Network::open().expect("a network");
        let index = network.link(END).expect("the interface").index;
        socket
            .bind(index, queue, Copying::Copy)
            .expect("the queue is free");
        socket
    })
}

#[test]
fn a_second_socket_on_a_queue_is_told_whose_it_is() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for (options, queue) in [("", 0), ("numrxqueues 2 numtxqueues 2", 1)] {
        let pair = Pair::new(options);
        let other = socket(&pair.right, queue);
        let why = refused(&pair.right, &at(RIGHT, 7000, ""));
        assert!(
            why.contains(&format!("bind to queue {queue} of ve0")),
            "{why}"
        );
        assert!(
            why.contains("another AF_XDP socket has that queue"),
            "{why}"
        );
        assert!(why.contains("ethtool -l ve0"), "{why}");
        // Nothing is left of the attempt.
        assert_eq!(program(&pair.right), None);
        drop(other);
        drop(listen(&pair.right, &at(RIGHT, 7000, "")).unwrap());
        drop(listen(&pair.right, &at(RIGHT, 7000, "")).unwrap());
        assert_eq!(program(&pair.right), None);
    }
}

#[test]
fn a_queue_that_there_is_not_is_refused_with_those_there_are() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("numrxqueues 2 numtxqueues 2");
    let why = refused(&pair.right, &at(RIGHT, 7000, "queue=2"));
    assert!(
        why.contains("it has 2") && why.contains("queue=N with N < 2"),
        "{why}"
    );
    assert!(why.contains("ethtool -L ve0 combined 3"), "{why}");
    let device = listen(&pair.right, &at(RIGHT, 7000, "queue=1")).unwrap();
    let status = device.status();
    assert_eq!(status.fact("queue"), Some("1"));
    let queues = status.fact("queues").unwrap();
    assert!(
        queues.contains("ethtool -N ve0 flow-type udp4 dst-port 7000 action 1"),
        "{queues}"
    );
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let pass = tightbeam_xdp::program::steering(1, {
        let map = bpf::SocketMap::create(1).unwrap();
        std::os::fd::IntoRawFd::into_raw_fd(map.as_fd().try_clone_to_owned().unwrap())
    });
    let foreign = bpf::load_program(&pass).unwrap();
    let id = bpf::program_id(foreign.as_fd()).unwrap();
    for attach in [Attach::Generic, Attach::Native] {
        let network = pair.right.run(Network::open).unwrap();
        let index = network.link(END).unwrap().index;
        let held = pair
            .right
            .run(|| bpf::attach(foreign.as_fd(), index, attach))
            .unwrap();
        for mode in MODES {
            let why = refused(&pair.right, &at(RIGHT, 7000, mode));
            assert!(
                why.contains(&format!("the XDP program with id {id} has it")),
                "{why}"
            );
            assert!(why.contains(&format!("bpftool prog show id {id}")), "{why}");
        }
        assert_eq!(program(&pair.right).map(|p| p.id), Some(id));
        drop(held);
    }
}

#[test]
fn a_second_device_on_an_interface_finds_the_first_ones_program() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("numrxqueues 2 numtxqueues 2");
    let first = listen(&pair.right, &at(RIGHT, 7000, "queue=0")).unwrap();
    let why = refused(&pair.right, &at(RIGHT, 7001, "queue=1"));
    let id = first.status().fact("program").unwrap().to_owned();
    assert!(
        why.contains(&format!("the XDP program with id {id} has it")),
        "{why}"
    );
}

#[test]
fn an_mtu_that_is_too_large_is_refused_or_reported() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    for end in [&pair.left, &pair.right] {
        end.ip(&format!("link set {END} mtu 9000"));
    }
    let why = refused(&pair.right, &at(RIGHT, 7000, "mode=native&strict"));
    assert!(why.contains("ip link set dev ve0 mtu 3520"), "{why}");
    // Without `strict` it goes on in generic mode, and says so.
    let (mut server, mut client, to) = both(&pair, "mode=native");
    let status = server.status();
    assert_eq!(status.fact("mode"), Some("generic"));
    let why = status.fact("fell_back").unwrap();
    assert!(
        why.contains("not native copy") && why.contains("mtu 3520"),
        "{why}"
    );
    // A packet is as long as a frame allows, not as the link would.
    let most = client.capabilities().max_packet;
    assert_eq!(status.fact("mtu"), Some("9000"));
    assert_eq!(status.fact("mtu_ceiling"), Some(&*(most + 28).to_string()));
    let too_long = client.transmit(&to, most + 1, &mut |_| unreachable!("it is too long"));
    let wanted = DeviceError::TooLong {
        len: most + 1,
        max: most,
    };
    assert_eq!(too_long, Err(wanted));
    send(&mut client, &to, &vec![7; most]);
    assert_eq!(receive(&mut server, 1)[0].1.len(), most);
}

#[test]
fn an_interface_that_is_down_is_said_to_be_and_works_again_when_it_is_up() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        pair.left.ip(&format!("link set {END} down"));
        let why = refused(&pair.left, &at(LEFT, 7000, mode));
        assert!(why.contains("`ip link set dev ve0 up`"), "{why}");
        pair.left.ip(&format!("link set {END} up"));
        let (mut server, mut client, to) = both(&pair, mode);
        send(&mut client, &to, b"up");
        receive(&mut server, 1);

        pair.left.ip(&format!("link set {END} down"));
        client
            .transmit(&to, 4, &mut |frame| {
                frame.copy_from_slice(b"down");
                4
            })
            .unwrap();
        assert!(
            matches!(client.kick(), Err(DeviceError::Down { .. })),
            "{mode}"
        );
        assert_eq!(client.status().fact("state"), Some("down"));
        pair.left.ip(&format!("link set {END} up"));
        // What was in the ring is sent now.
        client.kick().unwrap();
        assert_eq!(receive(&mut server, 1)[0].1, b"down", "{mode}");
        send(&mut client, &to, b"again");
        assert_eq!(receive(&mut server, 1)[0].1, b"again", "{mode}");
    }
}

#[test]
fn the_other_end_of_the_link_that_is_down_takes_packets_that_are_counted() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let (_server, mut client, to) = both(&pair, "");
    pair.right.ip(&format!("link set {END} down"));
    for _ in 0..3 {
        send(&mut client, &to, b"nobody is there");
    }
    let status = client.status();
    assert_eq!(status.count("lost_queue_full"), Some(3), "{status:?}");
    assert_eq!(status.count("sent"), Some(3), "{status:?}");
}

#[test]
fn an_interface_that_is_removed_ends_the_device_with_all_counted() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let (mut server, mut client, to) = both(&pair, mode);
        send(&mut client, &to, b"before");
        receive(&mut server, 1);
        pair.left.ip(&format!("link del {END}"));
        // Before it is known, and after that.
        for packets in [2, 3] {
            for _ in 0..packets {
                client.transmit(&to, 4, &mut |_| 4).unwrap();
            }
            let down = client.kick();
            assert!(matches!(down, Err(DeviceError::Down { .. })), "{mode}");
        }
        let status = client.status();
        assert_eq!(status.fact("state"), Some("gone"), "{status:?}");
        assert_eq!(status.fact("program"), Some("detached"), "{status:?}");
        assert_eq!(status.count("lost_interface_down"), Some(5), "{status:?}");
        // Who only listens hears of it too.
        let end = Instant::now() + PATIENCE;
        let heard = pair.right.run(|| {
            loop {
                match server.receive(1, &mut |_| {}) {
                    Err(error) => return error,
                    Ok(_) => assert!(Instant::now() < end, "{mode}: never"),
                }
            }
        });
        assert!(matches!(heard, DeviceError::Down { .. }), "{heard}");
        // To be dropped is all that is left, and does no harm.
        drop((server, client));
    }
}

/// Not a test of its own: the process that [`a_process_that_is_killed_leaves_nothing`] kills.
#[test]
fn child_that_holds() {
    let Ok(mode) = std::env::var(ROLE) else {
        return;
    };
    // It was started in the namespace.
    let _device = XdpDevice::listen(&at(RIGHT, 7000, &mode)).expect("a device");
    println!("holds");
    loop {
        std::thread::park();
    }
}

fn held_by_a_child(namespace: &Namespace, mode: &str) -> Child {
    let this = std::env::current_exe().expect("this binary");
    let mut command = Command::new(this);
    command.args(["child_that_holds", "--exact", "--nocapture"]);
    command.env(ROLE, mode).stdout(Stdio::piped());
    let mut child = namespace.run(|| command.spawn()).expect("a child");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let held = output
        .lines()
        .any(|line| line.is_ok_and(|l| l.contains("holds")));
    assert!(held, "the child has no device");
    child
}

#[test]
fn a_process_that_is_killed_leaves_nothing() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let queues = ["", "numrxqueues 4 numtxqueues 4"];
    for (mode, options) in queues
        .iter()
        .flat_map(|queues| MODES.map(|mode| (mode, queues)))
    {
        let pair = Pair::new(options);
        let mut child = held_by_a_child(&pair.right, mode);
        assert!(program(&pair.right).is_some(), "{mode}");
        child.kill().unwrap();
        child.wait().unwrap();
        // Its queues and its port are free, and no program is attached, once the process is reaped.
        assert_eq!(program(&pair.right), None, "{mode}");
        let (mut server, mut client, to) = both(&pair, mode);
        send(&mut client, &to, b"as new");
        assert_eq!(receive(&mut server, 1)[0].1, b"as new");
    }
}

/// Tries to open a device with these capabilities alone, on a thread that has no others.
fn with_capabilities(namespace: &Namespace, held: CapabilitySet) -> String {
    let tried = namespace.run(|| {
        let sets = CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).expect("less is always allowed");
        XdpDevice::listen(&at(RIGHT, 7000, "")).map(drop)
    });
    tried
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn a_missing_capability_is_named() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let (raw, admin, bpf) = (
        CapabilitySet::NET_RAW,
        CapabilitySet::NET_ADMIN,
        CapabilitySet::BPF,
    );
    let none = CapabilitySet::empty();
    for (held, names) in [
        (none, "(here CAP_NET_RAW)"),
        (admin | bpf, "(here CAP_NET_RAW)"),
        (raw, "(here CAP_BPF and CAP_NET_ADMIN)"),
        (raw | admin, "(here CAP_BPF and CAP_NET_ADMIN)"),
    ] {
        let why = with_capabilities(&pair.right, held);
        assert!(
            why.contains(names) && why.contains("tightbeam xdp-open"),
            "{why}"
        );
    }
    assert_eq!(program(&pair.right), None);

    // With these three it works, but for the memory that may be pinned.
    let before = getrlimit(Resource::Memlock);
    let little = Rlimit {
        current: Some(1 << 20),
        ..before
    };
    setrlimit(Resource::Memlock, little).expect("less is always allowed");
    let why = with_capabilities(&pair.right, raw | admin | bpf);
    setrlimit(Resource::Memlock, before).expect("as before");
    assert!(
        why.contains("ulimit -l ") && why.contains("CAP_IPC_LOCK"),
        "{why}"
    );
    assert_eq!(with_capabilities(&pair.right, raw | admin | bpf), "");
}

/// A kernel without the option sends 32 packets a call: the others follow by further calls, within a bound.
#[test]
fn the_kernels_budget_does_not_stop_a_burst() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let (_server, mut client, to) = both(&pair, "");
    tightbeam_sys::xdp::set_transmit_budget(client.as_fd(), 32).expect("Linux 6.17 or later");
    let batch = client.capabilities().batch;
    for _ in 0..batch {
        client.transmit(&to, 8, &mut |_| 8).unwrap();
    }
    let mut kicks = 0;
    while client.status().count("sent") < Some(batch as u64) {
        client.kick().unwrap();
        kicks += 1;
        assert!(kicks <= batch / 32, "{:?}", client.status());
    }
    let calls = client.status().count("send_calls").unwrap();
    assert_eq!(calls, batch as u64 / 32);
}

#[test]
fn without_a_napi_instance_nothing_is_polled_busily() {
    let Some(_alone) = netns::may() else {
        return;
    };
    for mode in MODES {
        let pair = Pair::new("");
        let mut device = listen(&pair.right, &at(RIGHT, 7000, mode)).unwrap();
        for _ in 0..1000 {
            device.receive(1, &mut |_| {}).unwrap();
        }
        let status = device.status();
        assert_eq!(status.fact("napi_id"), Some("0"), "{mode}: {status:?}");
        assert_eq!(status.fact("busy_poll"), Some("no"), "{mode}: {status:?}");
        // So an empty look is no system call.
        assert_eq!(status.count("receive_calls"), Some(0), "{mode}: {status:?}");
    }
}

#[test]
fn a_client_takes_an_address_and_a_port_by_itself() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let client = connect(&pair.left, &at(RIGHT, 7000, "")).unwrap();
    let local = client.capabilities().local;
    assert_eq!(local.ip().to_string(), LEFT);
    assert_ne!(local.port(), 0);
    let why = refused(&pair.left, &at(RIGHT, 7000, ""));
    assert!(why.contains("ip address add 10.77.0.2/24 dev ve0"), "{why}");
    let why = refused(&pair.left, &"xdp:no-such/10.77.0.1:1".parse().unwrap());
    assert!(why.contains("`ip link` says"), "{why}");
}

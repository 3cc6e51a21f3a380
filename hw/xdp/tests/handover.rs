//! A device for a program without privilege: which it is, what it cannot do, and what is left when one of the two processes is killed.

mod support;

use rustix::io::Errno;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use support::netns::{self, END, Pair};
use support::{LEFT, MODES, PATIENCE, RIGHT, at, both, connect, receive, send};
use tightbeam_segment::Device;
use tightbeam_sys::Network;
use tightbeam_sys::bpf::SocketMap;
use tightbeam_sys::xdp::Opening;
use tightbeam_xdp::{HandOver, SYSTEM_CALLS, User, XdpDevice};

/// What a process of this binary is to do, and in which mode.
const ROLE: &str = "TIGHTBEAM_XDP_TEST_ROLE";
const MODE: &str = "TIGHTBEAM_XDP_TEST_MODE";

/// Ends the program that echoes.
const END_OF_TEST: &[u8] = b"the end";

/// The user `nobody`.
const NOBODY: User = User {
    user: 65534,
    group: 65534,
};

/// This binary, in a role of its own: the test `child` does what the role says.
fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, name);
    command
}

/// Not a test of its own, but the processes that the tests start.
#[test]
fn child() {
    match std::env::var(ROLE).as_deref() {
        Ok("echo") => echo(),
        Ok("opener") => opener(),
        _ => {}
    }
}

/// Opens a device, hands it to a program that echoes, and waits for that.
fn opener() {
    let mode = std::env::var(MODE).expect("a mode");
    let device = HandOver::open(&at(RIGHT, 7000, &mode)).expect("a device");
    let mut program = role("echo");
    // A test has a thread of its own, whose memory would be taken by `mprotect`; a program's first thread takes it by `brk`.
    program.env("MALLOC_ARENA_MAX", "1");
    let ended = device.run(program, Some(NOBODY)).expect("a program");
    assert!(ended.success(), "{ended}");
}

/// Checks that it has nothing but the device, gives up every system call but eight, and sends back what comes.
fn echo() {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let says = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.expect(name)
            .split_whitespace()
            .next()
            .expect(name)
            .to_owned()
    };
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(says(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (says("Uid:"), says("Gid:")),
        ("65534".into(), "65534".into())
    );
    // Only who has the capabilities can open one, and steer to it.
    assert!(Opening::new().is_err());
    assert!(SocketMap::create(1).is_err());
    let mut device = XdpDevice::inherited()
        .expect("it was handed over")
        .expect("it fits");
    assert!(
        XdpDevice::inherited().expect("it was handed over").is_err(),
        "taken twice"
    );
    let facts = device.status();
    // The socket is bound for good. One of several is not to be had by itself.
    let bound = match facts.fact("queue") {
        Some("0") => Errno::BUSY,
        _ => Errno::NOTSOCK,
    };
    let index = Network::open().unwrap().link("lo").unwrap().index;
    let elsewhere = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_COPY, index, 0);
    assert_eq!(rustix::net::bind(&device, &elsewhere), Err(bound));
    assert_eq!(facts.fact("program"), Some("held by the opener"));
    assert!(no_program_among_descriptors());
    assert!(opener_keeps_its_own());
    println!("holds");
    restrict();
    loop {
        let mut packets = Vec::with_capacity(64);
        let mut take = |packet: tightbeam_segment::Packet<'_>| {
            packets.push((packet.from, packet.bytes.to_vec()));
        };
        device.receive(64, &mut take).expect("the interface is up");
        for (from, bytes) in packets {
            send(&mut device, &from, &bytes);
            if bytes == END_OF_TEST {
                // A status, and a way, are asked for without a further call.
                assert!(device.status().count("sent") > Some(1));
                device.route(from.to).expect("a way");
                tightbeam_sys::process::exit_now(0);
            }
        }
    }
}

/// No descriptor of this process is of a program, a map or a link.
fn no_program_among_descriptors() -> bool {
    let all = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    let names = all
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let names: Vec<String> = names.map(|name| name.display().to_string()).collect();
    !names.iter().any(|name| name.contains("bpf"))
}

/// The process that has started this one, which is of the same user by now or of root, shows its descriptors to nobody.
fn opener_keeps_its_own() -> bool {
    let opener = rustix::process::getppid().expect("an opener");
    let opened = rustix::process::pidfd_open(opener, rustix::process::PidfdFlags::empty());
    let opened = opened.expect("it lives");
    let none = rustix::process::PidfdGetfdFlags::empty();
    (3..64).all(|number| rustix::process::pidfd_getfd(&opened, number, none).is_err())
        && std::fs::read_dir(format!("/proc/{}/fd", opener.as_raw_nonzero())).is_err()
}

/// From here on any other system call ends the process.
fn restrict() {
    let rules: BTreeMap<i64, Vec<_>> = SYSTEM_CALLS.map(|(_, number)| (number, Vec::new())).into();
    let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("x86-64 or AArch64");
    let filter = SeccompFilter::new(rules, kill, allow, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a filter");
    seccompiler::apply_filter(&program).expect("the filter is taken");
}

/// An opener at the right end that has handed its device over: the process, and what the two say.
fn opened(pair: &Pair, mode: &str) -> (Child, impl Iterator<Item = String> + Send + use<>) {
    let mut command = role("opener");
    command.env(MODE, mode).stdout(Stdio::piped());
    let mut child = pair.right.run(|| command.spawn()).expect("an opener");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut lines = output.lines().map_while(Result::ok);
    let holds = lines.any(|line| line.contains("holds"));
    assert!(holds, "the program has no device: {:?}", child.wait());
    (child, lines)
}

/// Nothing is attached, and a device can be opened as ever.
fn all_is_as_before(pair: &Pair, mode: &str) {
    let network = pair.right.run(Network::open).expect("a network");
    assert_eq!(network.link(END).expect("the interface").program, None);
    let (mut server, mut client, to) = both(pair, mode);
    send(&mut client, &to, b"as before");
    assert_eq!(receive(&mut server, 1)[0].1, b"as before");
}

#[test]
fn a_program_without_privilege_has_the_device() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let queues = ["", "numrxqueues 4 numtxqueues 4"];
    for (mode, options) in queues
        .iter()
        .flat_map(|queues| MODES.map(|mode| (mode, queues)))
    {
        let pair = Pair::new(options);
        let (mut child, _says) = opened(&pair, mode);
        let address = at(RIGHT, 7000, mode);
        let mut client = connect(&pair.left, &address).unwrap();
        let to = client.route(address.at).unwrap();
        for n in 0..500u32 {
            let bytes = vec![n as u8; 1 + n as usize % 1000];
            send(&mut client, &to, &bytes);
            assert_eq!(receive(&mut client, 1)[0].1, bytes, "{mode}");
        }
        // Packets from many ports arrive at all queues.
        for n in 0..64u8 {
            let sender = pair.left.run(|| UdpSocket::bind((LEFT, 0))).unwrap();
            sender.set_read_timeout(Some(PATIENCE)).unwrap();
            sender.send_to(&[n], address.at).unwrap();
            let mut buffer = [0; 16];
            let len = sender.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [n], "{mode}");
        }
        send(&mut client, &to, END_OF_TEST);
        let ended = child.wait().unwrap();
        assert!(ended.success(), "{mode}: {ended}");
        drop(client);
        all_is_as_before(&pair, mode);
    }
}

/// Whether a process is the other user, by its status.
fn without_privilege(status: &str) -> bool {
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    user.is_some_and(|user| user.split_whitespace().all(|id| id == "65534"))
}

#[test]
fn an_opener_that_is_killed_takes_the_program_with_it() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let (mut child, says) = opened(&pair, "");
    // By now it has given up its privilege, as the program's parent.
    let status = format!("/proc/{}/status", child.id());
    let end = Instant::now() + PATIENCE;
    while !without_privilege(&std::fs::read_to_string(&status).unwrap()) {
        assert!(Instant::now() < end, "the opener keeps its privilege");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The pipe's end: both processes are gone.
    let (ended, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(says.count()));
    assert_eq!(hears.recv_timeout(PATIENCE), Ok(0), "the program lives on");
    all_is_as_before(&pair, "");
}

#[test]
fn a_program_that_is_killed_ends_the_opener() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let pair = Pair::new("");
    let (mut child, _says) = opened(&pair, "");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let program = tasks.flatten().find_map(|task| {
        let of = std::fs::read_to_string(task.path().join("children")).ok()?;
        of.split_whitespace().next()?.parse::<i32>().ok()
    });
    let program = program
        .and_then(rustix::process::Pid::from_raw)
        .expect("the opener has a child");
    rustix::process::kill_process(program, rustix::process::Signal::KILL).unwrap();
    let ended = child.wait().unwrap();
    assert!(!ended.success(), "{ended}");
    all_is_as_before(&pair, "");
}

//! Rows L8 to L10: who is on the other side.

use crate::liar::{Liar, Opener, Side, liars_address, path, report};
use crate::segments::{become_nobody, not_root};
use crate::support::opening::{REFUSAL, receive, receive_all};
use crate::support::{Ledger, patiently};
use crate::victim::{FEED, GO, NUMBER, Stage};
use rustix::process::Signal;
use std::os::fd::AsFd;
use tightbeam::{Event, OpenError};
use tightbeam_segment::Outgoing;
use tightbeam_sys::control;

const NOBODY: u32 = 65_534;

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "listen as nobody" => listen_as_nobody(address),
        "connect as nobody" => connect_as_nobody(address),
        "stay" => stay(side, address),
        "never stop" => never_stop(address),
        "pass its connection on" => pass_on(address),
        "take a connection over" => take_over(address),
        _ => return false,
    }
    true
}

/// Listens where the victim expects somebody else.
fn listen_as_nobody(address: &str) {
    become_nobody();
    let listener = control::listen(&path(&liars_address(address))).expect("anybody may");
    report(address, 1);
    let socket = patiently(|| control::accept(listener.as_fd()).ok());
    assert!(receive_all(&socket).is_none(), "it is told nothing");
    Ledger::of(address).wait_for(GO, 1);
}

/// Whoever listens is asked who it is before it gets anything, and whoever takes a path first is not put aside in silence.
#[test]
fn l08_an_impostor_listens() {
    if not_root("l08") {
        return;
    }
    let mut stage = Stage::new("l08");
    stage.open_doors();
    let liar = stage.liar(Side::Server, "listen as nobody");
    stage.until_progress(1);
    let address = liars_address(&stage.address());
    let error = stage.victim.accept_at(&address).expect_err("it is taken");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    // That was a connection too, and is the one that the liar takes first.
    let error = stage.victim.open(&address).expect_err("an impostor");
    let untrusted = matches!(error, OpenError::Untrusted { uid: NOBODY, .. });
    assert!(untrusted, "{error}");
    stage.goes_on();
    stage.go(1);
    assert!(liar.finish());
    assert_eq!(stage.victim.channels().count(), 1);
    stage.end();
}

/// Wants a channel that is for others.
fn connect_as_nobody(address: &str) {
    become_nobody();
    let socket = patiently(|| control::connect(&path(address)).ok());
    let answer = receive(&socket).expect("a refusal, before it has said anything");
    assert_eq!(answer[8..12], REFUSAL.to_ne_bytes());
    assert_eq!(answer[48..52], 1u32.to_ne_bytes(), "for who it is");
    assert_eq!(receive(&socket), None, "and is hung up on");
}

#[test]
fn l08_a_stranger_connects() {
    if not_root("l08") {
        return;
    }
    let mut stage = Stage::new("l08-stranger");
    stage.open_doors();
    let liar = stage.liar(Side::Client, "connect as nobody");
    stage.until(|stage| (stage.victim.openings().not_admitted == 1).then_some(()));
    assert!(liar.finish());
    assert_eq!(stage.victim.channels().count(), 1);
    stage.end();
}

/// Opens a channel, and is there.
fn stay(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    liar.say(0..10);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

/// The next process gets the id behind this one, if nobody else starts one in between.
fn next_pid_is_behind(last: i32) -> std::io::Result<()> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string())
}

/// A process dies, and another has its id before the victim looks: the one is dead, and the other is somebody else.
#[test]
fn l09_the_id_of_a_dead_process_is_used_again() {
    let mut stage = Stage::new("l09");
    let first = stage.liar(Side::Client, "stay");
    let old = stage.meet(Side::Client);
    stage.until_noted(old, 10);
    let pid = stage.victim.peer(old).expect("open").pid;
    first.signal(Signal::KILL);
    assert_eq!(first.killed_by(), Some(Signal::KILL.as_raw()));
    let mut second = None;
    for _ in 0..1000 {
        if let Err(error) = next_pid_is_behind(pid - 1) {
            println!("skipped: l09: the next process id cannot be chosen: {error}");
            return;
        }
        let other = stage.liar(Side::Client, "stay");
        if other.pid().as_raw_nonzero().get() == pid {
            second = Some(other);
            break;
        }
    }
    let second = second.expect("nobody is always faster");
    // Whoever else was started meanwhile has been killed again; some may have come as far as a channel.
    let (mut new, mut dead) = (None, 0);
    while new.is_none() || dead == 0 {
        match stage.event() {
            Event::Opened { channel, peer } if peer.pid == pid => new = Some(channel),
            Event::Opened { .. } => {}
            Event::Dead { channel, .. } => dead += u32::from(channel == old),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(dead, 1);
    let new = new.expect("it was opened");
    assert_ne!(new, old);
    stage.quarantined(old);
    stage.until_noted(new, 10);
    stage.go(1);
    let end = stage.until(|stage| match stage.victim.next_event() {
        Some(Event::Opened { .. } | Event::Dead { .. }) => None,
        other => other,
    });
    assert!(matches!(end, Event::Closed { channel, .. } if channel == new));
    assert!(second.finish());
    stage.end();
}

/// Connects, and gives the connection to another process.
fn pass_on(address: &str) {
    let socket = patiently(|| control::connect(&path(address)).ok());
    let other = patiently(|| control::connect(&path(&liars_address(address))).ok());
    control::send(other.as_fd(), b"yours", Some(socket.as_fd())).expect("sent");
    Ledger::of(address).wait_for(GO, 1);
    std::process::exit(0);
}

/// Opens a channel over somebody else's connection, and uses it as long as it can.
fn take_over(address: &str) {
    let listener = control::listen(&path(&liars_address(address))).expect("a free path");
    let other = patiently(|| control::accept(listener.as_fd()).ok());
    let (_, mut descriptors) = receive_all(&other).expect("a connection");
    if control::own_uid() == 0 {
        become_nobody();
    }
    let socket = descriptors.pop().expect("a connection");
    let liar = Liar::greet(socket, |_, _| {});
    liar.say(0..10);
    let ledger = Ledger::of(address);
    ledger.wait_for(NUMBER, 1);
    liar.say(10..20);
    report(address, 1);
    liar.wait_for_hang_up();
}

/// The connection stands for who has made it: the kernel's word of that is taken, and with that process the channel ends.
#[test]
fn l10_a_connection_is_passed_on() {
    let mut stage = Stage::new("l10");
    stage.open_doors();
    let taker = stage.liar(Side::Server, "take a connection over");
    let maker = stage.liar(Side::Client, "pass its connection on");
    let channel = stage.meet(Side::Client);
    let peer = stage.victim.peer(channel).expect("open");
    let made = maker.pid().as_raw_nonzero().get();
    assert_eq!((peer.pid, peer.uid), (made, control::own_uid()));
    stage.until_noted(channel, 10);
    stage.goes_on();
    stage.go(1);
    assert!(maker.finish());
    let end = stage.event();
    assert!(matches!(end, Event::Dead { channel: of, .. } if of == channel));
    stage.ledger.write(NUMBER, 1);
    stage.until_progress(1);
    stage.quarantined(channel);
    assert_eq!(stage.log(channel).messages, 10);
    assert!(taker.finish());
    stage.end();
}

/// Takes the connection, and never stops sending.
fn never_stop(address: &str) {
    let listener = control::listen(&path(&liars_address(address))).expect("a free path");
    let other = patiently(|| control::accept(listener.as_fd()).ok());
    let (_, mut descriptors) = receive_all(&other).expect("a connection");
    let liar = Liar::greet(descriptors.pop().expect("a connection"), |_, _| {});
    let ledger = Ledger::of(address);
    let out = Outgoing::message(FEED);
    for number in 0u64.. {
        let sent = patiently(|| match liar.port.try_send(out, &number.to_ne_bytes()) {
            Ok(()) => Some(true),
            Err(_) => (ledger.read(GO) == 2).then_some(false),
        });
        if !sent {
            break;
        }
        ledger.write(NUMBER, number + 1);
    }
}

/// Who has the segment of a process that is dead cannot keep its channel alive, although the ring is never found empty.
#[test]
fn l10_somebody_goes_on_for_the_dead() {
    let mut stage = Stage::new("l10-on");
    let taker = stage.liar(Side::Server, "never stop");
    let maker = stage.liar(Side::Client, "pass its connection on");
    let channel = stage.meet(Side::Client);
    stage.go(1);
    assert!(maker.finish());
    let end = stage.event();
    assert!(matches!(end, Event::Dead { channel: of, .. } if of == channel));
    stage.go(2);
    assert!(taker.finish());
    stage.quarantined(channel);
    stage.end();
}

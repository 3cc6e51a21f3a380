//! Rows L1 to L6 for memory in which frames lie: what a peer may pass beside the rings, and what it can do to it afterwards.

use crate::lending::{STRIDE, framed, grant, pass, say_framed, whole_memory};
use crate::liar::{Liar, Opener, Side, report};
use crate::support::opening::{GRANT, receive_all};
use crate::support::{Ledger, patiently};
use crate::victim::{GO, NOTE, PROGRESS, Stage};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tightbeam::PeerFault;
use tightbeam_sys::block::SharedBlock;

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "pass bad memory" => pass_bad_memory(side, address),
        "change what was passed" => change_what_was_passed(side, address),
        "write to the victim's frames" => write_to_frames(side, address),
        "pass without end" => pass_without_end(side, address),
        "pass many" => pass_many(side, address),
        "pass much" => pass_much(side, address),
        "pass what lingers" => pass_what_lingers(side, address),
        _ => return false,
    }
    true
}

const BYTES: usize = 4 * STRIDE;

/// A memfd with these seals, of which so many bytes are there.
fn memory(size: usize, there: usize, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("a-liars-frames", flags).expect("memory");
    rustix::fs::ftruncate(&memory, size as u64).expect("its size");
    rustix::io::pwrite(&memory, &vec![7; there], 0).expect("written");
    rustix::fs::fcntl_add_seals(&memory, seals).expect("sealed");
    memory
}

/// What is wrong with what a liar passes: its name, what it says of it, the memory, and the fault.
type Bad = (&'static str, [u64; 4], OwnedFd, PeerFault);

fn bad_memory() -> Vec<Bad> {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    let good = || memory(BYTES, BYTES, all);
    let said = grant(0, STRIDE, BYTES);
    let control = PeerFault::Control;
    let nowhere = PeerFault::Frame {
        segment: 0,
        slot: 0,
    };
    let open = |path, flags| rustix::fs::open(path, flags, Mode::empty()).expect("it is there");
    let (pipe, _) = std::io::pipe().expect("a pipe");
    let behind = memory(BYTES, BYTES, SealFlags::empty());
    let keep = FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&behind, keep, BYTES as u64, 1 << 20).expect("room");
    rustix::fs::fcntl_add_seals(&behind, all).expect("sealed");
    let mut bad = vec![
        (
            "shorter than said",
            said,
            memory(BYTES - 4096, BYTES - 4096, all),
            control,
        ),
        (
            "longer than said",
            said,
            memory(BYTES + 4096, BYTES + 4096, all),
            control,
        ),
        ("more behind its end", said, behind, control),
        ("a hole", said, memory(BYTES, BYTES - 4096, all), control),
        ("all holes", said, memory(BYTES, 0, all), control),
        (
            "no seals",
            said,
            memory(BYTES, BYTES, SealFlags::empty()),
            control,
        ),
        ("a pipe", said, pipe.into(), control),
        (
            "a directory",
            said,
            open("/tmp", OFlags::DIRECTORY),
            control,
        ),
        ("a device", said, open("/dev/zero", OFlags::RDWR), control),
        ("another number", grant(1, STRIDE, BYTES), good(), control),
        ("no bytes", grant(0, STRIDE, 0), good(), control),
        ("frames of no length", grant(0, 0, BYTES), good(), control),
        (
            "more than may be",
            grant(0, STRIDE, tightbeam::MAX_GRANTED + 1),
            good(),
            control,
        ),
        (
            "more than is",
            grant(0, STRIDE, usize::MAX),
            good(),
            control,
        ),
        (
            "something else",
            [GRANT ^ 1, said[1], said[2], said[3]],
            good(),
            control,
        ),
        // That is no fault until somebody looks for the frame.
        (
            "frames longer than it",
            grant(0, BYTES + 1, BYTES),
            good(),
            nowhere,
        ),
        (
            "frames as long as numbers",
            grant(0, usize::MAX, BYTES),
            good(),
            nowhere,
        ),
    ];
    for missing in [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::FUTURE_WRITE,
        SealFlags::SEAL,
    ] {
        bad.push((
            "a seal is missing",
            said,
            memory(BYTES, BYTES, all.difference(missing)),
            control,
        ));
    }
    bad
}

/// Passes each over a channel of its own, and says that there is a message in it.
fn pass_bad_memory(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    for (_, said, memory, _) in bad_memory() {
        let liar = opener.open();
        pass(&liar.socket, &said, &[memory.as_fd()]);
        say_framed(&liar, 0, NOTE, &[framed(0, 0, 0, 100)]);
        liar.wait_for_hang_up();
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// Mappings of memory for frames that another process has made.
fn mapped_frames() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    maps.matches("a-liars-frames").count()
}

/// Nothing of what was refused stays, and nothing of it is read.
#[test]
fn l01_memory_for_frames_that_is_short_or_not_sealed() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l01-frames");
        let before = open_descriptors();
        let liar = stage.liar(side, "pass bad memory");
        for (name, _, _, fault) in bad_memory() {
            let channel = stage.meet(side);
            assert_eq!(stage.faulted(channel), fault, "{name}");
            assert_eq!(stage.log(channel).messages, 0, "{name}");
            stage.quarantined(channel);
        }
        assert!(liar.finish());
        patiently(|| (open_descriptors() <= before).then_some(()));
        patiently(|| (mapped_frames() == 0).then_some(()));
        stage.end();
    }
}

/// Passes memory by the rules, and then tries to take it away under its reader.
fn change_what_was_passed(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let (memory, words) = whole_memory(4);
    pass(&liar.socket, &grant(0, STRIDE, BYTES), &[memory.as_fd()]);
    say_framed(&liar, 0, NOTE, &[framed(0, 0, 0, 100)]);
    Ledger::of(address).wait_for(GO, 1);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for size in [0, 4096, 2 * BYTES as u64] {
        assert_eq!(rustix::fs::ftruncate(&memory, size), Err(Errno::PERM));
    }
    let punched = rustix::fs::fallocate(&memory, hole, 0, 4096);
    assert_eq!(punched, Err(Errno::PERM), "by descriptor");
    assert_eq!(words.remove(), Err(Errno::PERM), "through the mapping");
    say_framed(&liar, 1, NOTE, &[framed(0, 0, 0, 100)]);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 2);
    liar.leave();
}

/// The victim has it mapped read-only, and as it was.
#[test]
fn l02_holes_in_memory_for_frames() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l02-frames");
        let liar = stage.liar(side, "change what was passed");
        let channel = stage.meet(side);
        stage.until_noted(channel, 1);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let mut lines = maps.lines().filter(|line| line.contains("a-liars-frames"));
        let line = lines.next().expect("it is mapped");
        assert_eq!(line.split_whitespace().nth(1), Some("r--s"), "{line}");
        stage.step(1);
        stage.until_noted(channel, 2);
        assert_eq!(stage.log(channel).lengths, [100, 100]);
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, tightbeam::Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        patiently(|| (mapped_frames() == 0).then_some(()));
        stage.end();
    }
}

/// Waits for memory that the victim passes, and tries to write it in every way that there is.
fn write_to_frames(side: Side, address: &str) {
    let liar: Liar = Opener::new(side, address).open();
    let (said, mut descriptors) = receive_all(&liar.socket).expect("memory for frames");
    assert_eq!(said[..8], GRANT.to_ne_bytes());
    let memory = descriptors.pop().expect("a descriptor");
    assert_eq!(rustix::io::pwrite(&memory, b"x", 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&memory, 0), Err(Errno::PERM));
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let punched = rustix::fs::fallocate(&memory, hole, 0, 4096);
    assert_eq!(punched, Err(Errno::PERM));
    let copy = || memory.try_clone().expect("a descriptor");
    assert_eq!(SharedBlock::open(copy(), 8).err(), Some(Errno::PERM));
    // Of the same user it may be opened again: that is no way to write it either.
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let again = rustix::fs::open(&again, OFlags::RDWR, Mode::empty()).expect("of the same user");
    assert_eq!(rustix::io::pwrite(&again, b"x", 0), Err(Errno::PERM));
    assert_eq!(SharedBlock::open(again, 8).err(), Some(Errno::PERM));
    // What it is for: to be read.
    let mut seen = vec![0; 4096];
    assert_eq!(rustix::io::pread(&memory, &mut seen, 0), Ok(4096));
    assert_eq!(seen.iter().filter(|byte| **byte == b'v').count(), 2000);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.leave();
}

#[test]
fn l03_frames_are_written_by_who_may_only_read_them() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l03-frames");
        let liar = stage.liar(side, "write to the victim's frames");
        let channel = stage.meet(side);
        assert_eq!(
            stage.victim.try_send_to(channel, NOTE, &[b'v'; 2000]),
            Ok(())
        );
        stage.until_progress(1);
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, tightbeam::Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Pieces of memory that a channel may pass (`MAX_SEGMENTS` in `runtime/segment/src/layout.rs`).
const PIECES: u64 = 64;

/// Passes more pieces than may be, and names one of the last.
fn pass_many(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let (memory, _words) = whole_memory(4);
    for number in 0..=PIECES {
        pass(
            &liar.socket,
            &grant(number, STRIDE, BYTES),
            &[memory.as_fd()],
        );
        // That there is a message in it makes the victim take it.
        say_framed(
            &liar,
            number as usize,
            NOTE,
            &[framed(number as u16, 0, 0, 8)],
        );
    }
    liar.wait_for_hang_up();
}

/// Passes memory without a word about it, until the connection takes no more.
fn pass_without_end(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let (memory, _words) = whole_memory(4);
    Ledger::of(address).wait_for(GO, 1);
    for number in 0.. {
        let said = grant(number, STRIDE, BYTES);
        if crate::lending::try_pass(&liar.socket, &said, &[memory.as_fd()]).is_err() {
            break;
        }
    }
    liar.wait_for_hang_up();
}

/// Memory without end ends the channel; none of it stays.
#[test]
fn l06_memory_for_frames_without_end() {
    for act in ["pass many", "pass without end"] {
        for side in Side::BOTH {
            let mut stage = Stage::new("l06-frames");
            let before = open_descriptors();
            let liar = stage.liar(side, act);
            let channel = stage.meet(side);
            stage.go(1);
            assert_eq!(stage.faulted(channel), PeerFault::Control, "{act}");
            let noted = stage.log(channel).messages;
            assert!(noted <= PIECES, "{act}: {noted}");
            stage.quarantined(channel);
            assert!(liar.finish());
            patiently(|| (open_descriptors() <= before).then_some(()));
            patiently(|| (mapped_frames() == 0).then_some(()));
            stage.end();
        }
    }
}

/// Pieces of this size, of which all are the same memory: together less than may be passed.
const LARGE: usize = 16 << 20;
const LARGE_PIECES: u64 = 32;

/// Passes large pieces, and says one message in a frame of the last.
fn pass_much(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let (memory, _words) = whole_memory(LARGE / STRIDE);
    Ledger::of(address).wait_for(GO, 1);
    for number in 0..LARGE_PIECES {
        let said = grant(number, STRIDE, LARGE);
        pass(&liar.socket, &said, &[memory.as_fd()]);
    }
    let last = LARGE_PIECES as u16 - 1;
    say_framed(&liar, 0, NOTE, &[framed(last, 1, 0, 100)]);
    Ledger::of(address).wait_for(GO, 2);
    liar.leave();
}

/// It is made ready beside the polls; the message waits for it.
#[test]
fn l06_large_memory_for_frames_is_waited_for() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l06-large");
        let liar = stage.liar(side, "pass much");
        let channel = stage.meet(side);
        stage.go(1);
        stage.until_noted(channel, 1);
        assert_eq!(mapped_frames() as u64, LARGE_PIECES);
        assert_eq!(stage.log(channel).last, [7; 100]);
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, tightbeam::Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        // It is unmapped by another thread.
        patiently(|| (mapped_frames() == 0).then_some(()));
        stage.end();
    }
}

/// A socket that whoever is the last to close it waits for, a quarter of an hour, because nobody reads what is in it; and who does not.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has one");
    let mut writer = TcpStream::connect(address).expect("it listens");
    let (reader, _) = listener.accept().expect("it has come");
    let linger = Duration::from_secs(900);
    rustix::net::sockopt::set_socket_linger(&writer, Some(linger)).expect("a socket");
    writer.set_nonblocking(true).expect("a socket");
    while writer.write(&[0; 1 << 16]).is_ok() {}
    (writer.into(), reader)
}

/// Where it lies: as memory, among more than there may be, and behind what ends the channel.
const WAYS: u64 = 3;

fn pass_what_lingers(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    let said = grant(0, STRIDE, BYTES);
    for way in 0..WAYS {
        let liar = opener.open();
        Ledger::of(address).wait_for(GO, 2 * way + 1);
        let (socket, _reader) = lingering();
        let with = socket.as_fd();
        match way {
            0 => pass(&liar.socket, &said, &[with]),
            1 => pass(&liar.socket, &said, &[with; 4]),
            _ => {
                pass(
                    &liar.socket,
                    &grant(7, 7, 7),
                    &[liar.own_descriptor.as_fd()],
                );
                pass(&liar.socket, &said, &[with]);
            }
        }
        // The victim has not looked yet, so this is not the last.
        drop(socket);
        report(address, way + 1);
        Ledger::of(address).wait_for(GO, 2 * way + 2);
    }
}

/// To close what a peer has passed is not waited for, neither by who polls nor by who watches.
#[test]
fn l05_descriptors_whose_closing_takes_for_ever() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l05-lingers");
        let before = open_descriptors();
        let liar = stage.liar(side, "pass what lingers");
        for way in 0..WAYS {
            let channel = stage.meet(side);
            stage.go(2 * way + 1);
            // Without a poll: what has come stays where it is.
            patiently(|| (stage.ledger.read(PROGRESS) > way).then_some(()));
            assert_eq!(stage.faulted(channel), PeerFault::Control, "{way}");
            stage.quarantined(channel);
            stage.goes_on();
            patiently(|| (open_descriptors() <= before).then_some(()));
            stage.go(2 * way + 2);
        }
        assert!(liar.finish());
        stage.end();
    }
}

/// Who waits on descriptors maps what comes before any message names it; no more than may be.
#[test]
fn l06_memory_for_frames_for_who_waits_on_descriptors() {
    for side in Side::BOTH {
        let mut stage = Stage::new("l06-arm");
        let before = open_descriptors();
        let liar = stage.liar(side, "pass without end");
        let channel = stage.meet(side);
        stage.go(1);
        let mut most = 0;
        let end = stage.until(|stage| {
            drop(stage.victim.arm().expect("a descriptor to wait on"));
            most = most.max(mapped_frames() as u64);
            stage.victim.next_event()
        });
        let fault = PeerFault::Control;
        assert!(
            matches!(&end, tightbeam::Event::Faulted { channel: of, fault: is, .. } if *of == channel && *is == fault),
            "{end:?}"
        );
        assert!(most <= PIECES, "{most}");
        assert!(liar.finish());
        // Two more than before: what it waits on.
        patiently(|| (open_descriptors() <= before + 2).then_some(()));
        patiently(|| (mapped_frames() == 0).then_some(()));
        stage.end();
    }
}

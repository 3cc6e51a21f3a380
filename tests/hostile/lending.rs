//! Rows S4, S5, S8 to S10 and S15 for frames: parts that name what is not there, frames given back that nobody has, frames that never
//! come back, and what lies in them.

use crate::liar::{
    CURSOR_LINE, Liar, MULTI, Opener, RING_LINE, Side, Words, length, report, target,
};
use crate::lies::{HONEST, honest};
use crate::support::opening::GRANT;
use crate::support::{Ledger, patiently};
use crate::victim::{ECHO, GO, NOTE, NUMBER, Stage};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tightbeam::{
    CallError, ChannelId, Event, MAX_CALLS, MAX_LOANS, MAX_MESSAGE, PeerFault, PoolAudit, SendError,
};

/// What the liar does.
pub(crate) fn act(side: Side, act: &str, address: &str) -> bool {
    match act {
        "name parts" => name_parts(side, address),
        "return frames" => return_frames(side, address),
        "keep frames" => keep_frames(side, address),
        "keep answers" => keep_answers(side, address),
        "write on" => write_on(side, address),
        "look around" => look_around(side, address),
        _ => return false,
    }
    true
}

/// Of a header: the payload is a list of parts (`runtime/segment/src/descriptor.rs`).
const FRAMED: u64 = 1 << 15;
/// Where frames are given back in a segment, and how many words there are (`runtime/segment/src/layout.rs`).
const RETURNS_LINE: usize = 8;
const RETURNS: usize = MAX_LOANS + MAX_CALLS;

/// Bytes from one frame of a liar to the next.
pub(crate) const STRIDE: usize = 8192;
const FRAMES: usize = 4;

/// What is said of memory that is passed.
pub(crate) fn grant(number: u64, stride: usize, bytes: usize) -> [u64; 4] {
    [GRANT, number, stride as u64, bytes as u64]
}

pub(crate) fn try_pass(
    socket: &OwnedFd,
    said: &[u64; 4],
    with: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let bytes: Vec<u8> = said.iter().flat_map(|word| word.to_ne_bytes()).collect();
    crate::support::opening::try_send(socket, &bytes, with)
}

pub(crate) fn pass(socket: &OwnedFd, said: &[u64; 4], with: &[BorrowedFd<'_>]) {
    try_pass(socket, said, with).expect("passed");
}

/// Memory for so many frames by the rules, and the liar's own mapping of it.
pub(crate) fn whole_memory(frames: usize) -> (OwnedFd, Words) {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("a-liars-frames", flags).expect("memory");
    rustix::io::pwrite(&memory, &vec![7; frames * STRIDE], 0).expect("written");
    let words = Words::map(&memory);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).expect("sealed");
    (memory, words)
}

/// A part of a message: which memory, which frame of it, from where on, and how many bytes.
pub(crate) fn framed(segment: u16, slot: u16, begin: u32, len: u32) -> [u64; 2] {
    let name = u64::from(segment) | u64::from(slot) << 16 | 1 << 32;
    [name, u64::from(begin) | u64::from(len) << 32]
}

/// The header of a message whose payload has so many bytes: a list of parts.
fn header(bytes: usize, handler: u16) -> u64 {
    let long = if bytes > 56 { MULTI } else { 0 };
    1 | FRAMED | long | length(bytes as u64) | target(handler)
}

/// Says in a slot that a message lies in these parts.
pub(crate) fn say_framed(liar: &Liar, slot: usize, handler: u16, parts: &[[u64; 2]]) {
    let header = header(16 * parts.len(), handler);
    liar.own.slot(slot, header, parts.as_flattened());
}

/// Passes memory by the rules, as number 0.
fn equip(liar: &Liar) -> Words {
    let (memory, words) = whole_memory(FRAMES);
    let said = grant(0, STRIDE, FRAMES * STRIDE);
    pass(&liar.socket, &said, &[memory.as_fd()]);
    words
}

/// Payloads of messages in frames, and what their victim calls them.
fn lies_about_parts() -> Vec<(Vec<[u64; 2]>, usize, PeerFault)> {
    let (stride, most) = (STRIDE as u32, u32::MAX);
    let outside = |segment, slot, begin, len| {
        let part = framed(segment, slot, begin, len);
        (vec![part], 16, PeerFault::Frame { segment, slot })
    };
    let mut lies: Vec<_> = [
        (1, 0, 0, 8),
        (u16::MAX, 0, 0, 8),
        (0, FRAMES as u16, 0, 8),
        (0, u16::MAX, 0, 8),
        (0, 0, 0, stride + 1),
        (0, 0, 1, stride),
        (0, 3, stride, 1),
        (0, 0, most, 1),
        (0, 0, most, most),
        (0, 0, 1, most),
        (0, 3, 0, most),
    ]
    .map(|(segment, slot, begin, len)| outside(segment, slot, begin, len))
    .into();
    // The second of two is not there.
    let (good, bad) = (framed(0, 0, 0, 8), framed(0, 9, 0, 8));
    let fault = PeerFault::Frame {
        segment: 0,
        slot: 9,
    };
    lies.push((vec![good, bad], 32, fault));
    // No list of whole parts, or of none, or of more than there may be.
    for bytes in [0, 8, 15, 17, 24, 40, 33 * 16, 1080] {
        lies.push((vec![good; 40], bytes, PeerFault::Length { len: bytes }));
    }
    lies
}

/// Tells each over a channel of its own, behind honest messages.
fn name_parts(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    for (parts, bytes, _) in lies_about_parts() {
        let liar = opener.open();
        let _words = equip(&liar);
        liar.say(0..HONEST);
        let slot = HONEST as usize;
        let words = parts.as_flattened();
        let words = &words[..words.len().min(bytes.div_ceil(8).max(2))];
        liar.own.slot(slot, header(bytes, NOTE), words);
        liar.wait_for_hang_up();
        // Nobody listens any more.
        liar.own.slot(slot, honest(), &[0]);
    }
    // Longer together than any message may be: the same frame, over and over.
    let liar = opener.open();
    let (long, frames) = (TOGETHER / 31, TOGETHER / 31 / STRIDE + 1);
    let memory = whole_memory(frames).0;
    let said = grant(0, long, frames * STRIDE);
    pass(&liar.socket, &said, &[memory.as_fd()]);
    say_framed(&liar, 0, NOTE, &[framed(0, 0, 0, long as u32); 32]);
    liar.wait_for_hang_up();
}

/// The least that is too much, near enough.
const TOGETHER: usize = MAX_MESSAGE;

#[test]
fn s04_parts_point_outside_of_what_was_passed() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s04-frames");
        let liar = stage.liar(side, "name parts");
        for (parts, bytes, fault) in lies_about_parts() {
            let channel = stage.meet(side);
            let found = stage.faulted(channel);
            assert_eq!(found, fault, "{:x?}, {bytes} bytes", parts[0]);
            assert_eq!(stage.log(channel).messages, HONEST, "{fault:?}");
            stage.quarantined(channel);
        }
        let channel = stage.meet(side);
        let len = TOGETHER / 31 * 32;
        assert_eq!(stage.faulted(channel), PeerFault::Length { len });
        stage.quarantined(channel);
        assert!(liar.finish());
        stage.end();
    }
}

/// What is said when a frame is given back: as the victim has named it in the slot of its message, with the tag of the first lap.
fn return_of(liar: &Liar, slot: usize) -> u64 {
    let name = liar.seen.read(RING_LINE + slot, 1);
    (name & 0xffff) << 8 | (name >> 16 & 0xffff) << 24 | (name >> 32 & 0xff_ffff) << 40 | 1
}

fn give_back(liar: &Liar, place: usize, word: u64) {
    liar.own.write(RETURNS_LINE + place / 8, place % 8, word);
}

/// Ways to give back what one does not have. The frame was given back once already, by the rules.
const RETURNS_OF_NOTHING: [fn(u64) -> u64; 6] = [
    |again| again,
    |word| word + (1 << 40),
    |word| word ^ (1 << 24),
    |word| word ^ (1 << 8),
    |_| 1,
    |_| u64::MAX << 8 | 1,
];

/// Gets a frame over each channel, gives it back, and then something else.
fn return_frames(side: Side, address: &str) {
    let opener = Opener::new(side, address);
    let ledger = Ledger::of(address);
    for (round, lie) in (1..).zip(RETURNS_OF_NOTHING) {
        let liar = opener.open();
        patiently(|| (liar.seen.read(RING_LINE, 0) & 0xff == 1).then_some(()));
        let word = return_of(&liar, 0);
        give_back(&liar, 0, word);
        report(address, 2 * round);
        ledger.wait_for(GO, 2 * round + 1);
        give_back(&liar, 1, lie(word));
        report(address, 2 * round + 1);
        liar.wait_for_hang_up();
    }
}

fn is_back(frames: &PoolAudit) -> bool {
    assert_eq!(frames.astray, [], "{frames:?}");
    frames.free == frames.frames
}

#[test]
fn s09_a_frame_is_given_back_twice() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s09-frames");
        let liar = stage.liar(side, "return frames");
        for round in (1..).take(RETURNS_OF_NOTHING.len()) {
            let channel = stage.meet(side);
            let sent = stage.victim.try_send_to(channel, NOTE, &[1; 2000]);
            assert_eq!(sent, Ok(()));
            stage.until_progress(2 * round);
            let frames = stage.victim.frames(channel).expect("open");
            assert!(is_back(&frames), "{frames:?}");
            stage.step(2 * round + 1);
            // Whoever looks for frames finds it, or the next send of one.
            let _ = stage.victim.frames(channel);
            let found = stage.faulted(channel);
            assert!(matches!(found, PeerFault::Return { .. }), "{found:?}");
            stage.quarantined(channel);
        }
        assert!(liar.finish());
        stage.end();
    }
}

/// Takes messages, so that there is room in the ring, and gives no frame back.
fn keep_frames(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let ledger = Ledger::of(address);
    while ledger.read(GO) == 0 {
        liar.own.write(CURSOR_LINE, 0, ledger.read(NUMBER));
        std::thread::yield_now();
    }
    liar.wait_for_hang_up();
}

/// Sends frames until that has been refused for long enough, telling the liar how many messages it may take.
fn send_all(stage: &mut Stage, mut send: impl FnMut(&mut Stage) -> Result<(), SendError>) -> u64 {
    /// How long a liar may take to say that there is room, on a machine on which as many others run as there are tests.
    const LONG: Duration = Duration::from_millis(500);
    let (mut sent, mut last) = (0, Instant::now());
    // The room in the ring comes when the liar says so.
    while last.elapsed() < LONG {
        match send(stage) {
            Ok(()) => {
                sent += 1;
                last = Instant::now();
                stage.ledger.write(NUMBER, sent);
            }
            Err(SendError::Full) => {}
            Err(error) => panic!("{error}"),
        }
        stage.poll();
        std::thread::yield_now();
    }
    sent
}

/// That is no fault: it costs its victim so many frames, until the channel ends. Others have their own.
#[test]
fn s10_frames_are_never_given_back() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s10-frames");
        let liar = stage.liar(side, "keep frames");
        let channel = stage.meet(side);
        let own = send_all(&mut stage, |stage| {
            stage.victim.try_send_to(channel, NOTE, &[1; 2000])
        });
        assert_eq!(own, MAX_LOANS as u64);
        assert_eq!(stage.victim.frames_lent(channel), Some(MAX_LOANS));
        let frames = stage.victim.frames(channel).expect("open");
        assert_eq!(
            (frames.lent, frames.astray.len()),
            (MAX_LOANS, 0),
            "{frames:?}"
        );
        let soon = Duration::from_millis(20);
        let refused = stage.victim.send_to(channel, NOTE, &[1; 2000], soon);
        assert_eq!(refused, Err(SendError::DeadlineExceeded));
        let refused = stage.victim.call_to(channel, ECHO, &[1; 2000], soon);
        assert_eq!(
            refused.err(),
            Some(CallError::NotSent(SendError::DeadlineExceeded))
        );
        // What needs no frame goes on, and so do frames to others.
        assert_eq!(stage.victim.try_send_to(channel, NOTE, b"short"), Ok(()));
        let third = stage.third_channel();
        for _ in 0..2 * MAX_LOANS {
            stage.until(|stage| stage.victim.try_send_to(third, NOTE, &[2; 2000]).ok());
        }
        stage.goes_on();
        assert!(stage.victim.next_event().is_none());
        assert!(stage.victim.close(channel));
        stage.go(1);
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Shared ones stay with it as long as its process lives, whatever becomes of the channel; then they are back.
#[test]
fn s10_shared_frames_are_never_given_back() {
    for end in ["closed", "killed"] {
        let mut stage = Stage::new("s10-shared");
        let liar = stage.liar(Side::Client, "keep frames");
        let channel = stage.meet(Side::Client);
        let third = stage.third_channel();
        let shared = send_all(&mut stage, |stage| {
            let frame = stage.victim.shared_frame(2000)?.freeze();
            let _ = stage.victim.try_publish_to(third, NOTE, &frame);
            stage.victim.try_publish_to(channel, NOTE, &frame)
        });
        assert_eq!(shared, MAX_LOANS as u64);
        let lent = |stage: &mut Stage| {
            drop(stage.victim.shared_frame(1));
            let frames = stage.victim.shared_frames();
            assert_eq!((frames.astray.len(), frames.out), (0, 0), "{frames:?}");
            frames.lent
        };
        // The third party has read its own.
        stage.until(|stage| (lent(stage) == MAX_LOANS).then_some(()));
        if end == "closed" {
            assert!(stage.victim.close(channel));
            stage.goes_on();
            assert_eq!(lent(&mut stage), MAX_LOANS);
            stage.quarantined(channel);
        }
        drop(liar);
        if end == "killed" {
            let end = stage.event();
            assert!(matches!(end, Event::Dead { .. }), "{end:?}");
            stage.quarantined(channel);
        }
        stage.until(|stage| (lent(stage) == 0).then_some(()));
        stage.end();
    }
}

/// Calls, takes the answers, and keeps the frames in which they are.
fn keep_answers(side: Side, address: &str) {
    let mut liar = Opener::new(side, address).open();
    let _words = equip(&liar);
    let (mut answers, mut refusals) = (0, 0);
    while refusals == 0 {
        let number = answers as usize;
        let call = header(16, ECHO) | crate::liar::WANTED;
        liar.own.slot(number, call, &framed(0, 0, 0, 2000));
        patiently(|| {
            let found = liar.seen.read(RING_LINE + number, 0);
            (found & 0xff == 1).then_some(())
        });
        // A refusal names no frame.
        match liar.seen.read(RING_LINE + number, 0) & FRAMED {
            0 => refusals += 1,
            _ => answers += 1,
        }
        // Its headers give no credit: who takes that from here is not to believe the next one.
        liar.own.write(CURSOR_LINE, 1, number as u64 + 2);
        liar.own.write(CURSOR_LINE, 0, number as u64 + 1);
        assert!(answers as usize <= RETURNS, "never refused");
    }
    Ledger::of(address).write(NUMBER, answers);
    report(address, 1);
    Ledger::of(address).wait_for(GO, 1);
    liar.port.close();
    let _ = &mut liar;
}

/// No fault either: whoever keeps all that it was answered is told that there is no answer.
#[test]
fn s10_answers_are_never_given_back() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s10-answers");
        let liar = stage.liar(side, "keep answers");
        let channel = stage.meet(side);
        stage.until_progress(1);
        assert_eq!(stage.ledger.read(NUMBER), RETURNS as u64);
        assert_eq!(stage.victim.frames_lent(channel), Some(RETURNS));
        stage.goes_on();
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Messages in frames that change while they are read.
const CHANGING: usize = 40;

fn write_on(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let words = equip(&liar);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (words, over) = (&words, &over);
        scope.spawn(move || {
            let mut number = 0u64;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                (0..STRIDE / 64).for_each(|line| words.write(line, number as usize % 8, number));
            }
        });
        for slot in 0..CHANGING {
            say_framed(&liar, slot, NOTE, &[framed(0, 0, 0, 4000)]);
            std::thread::sleep(Duration::from_micros(200));
        }
        Ledger::of(address).wait_for(GO, 1);
        over.store(true, Ordering::Relaxed);
    });
    liar.leave();
}

/// The handler's bytes are a copy: what it looked at stays.
#[test]
fn s08_a_frame_changes_while_it_is_handled() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s08-frames");
        let liar = stage.liar(side, "write on");
        let channel = stage.meet(side);
        stage.until_noted(channel, CHANGING as u64);
        let log = stage.log(channel);
        assert_eq!((log.unstable, log.lengths), (0, vec![4000; CHANGING]));
        stage.go(1);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

/// Reads all of the memory that its victim passes, and says how many bytes of whose messages are there.
fn look_around(side: Side, address: &str) {
    let liar = Opener::new(side, address).open();
    let ledger = Ledger::of(address);
    ledger.wait_for(GO, 1);
    let mut found = [0; 2];
    while let Some((_, descriptors)) = take_granted(&liar) {
        for memory in descriptors {
            let bytes = rustix::fs::fstat(&memory).expect("a memfd").st_size as usize;
            let mut seen = vec![0; bytes];
            assert_eq!(rustix::io::pread(&memory, &mut seen, 0), Ok(bytes));
            for (of, found) in [MINE, THEIRS].into_iter().zip(&mut found) {
                *found += seen.iter().filter(|byte| **byte == of).count();
            }
        }
    }
    ledger.write(NUMBER, found[0] as u64);
    report(address, 1 + found[1] as u64);
    ledger.wait_for(GO, 2);
    liar.leave();
}

/// What has come over the connection, if anything.
fn take_granted(liar: &Liar) -> Option<(usize, Vec<OwnedFd>)> {
    let received = tightbeam_sys::control::receive(liar.socket.as_fd(), &mut [0; 64]).ok()?;
    let descriptors = received.descriptors.iter();
    let descriptors: Result<Vec<_>, _> = descriptors.map(|passed| passed.duplicate()).collect();
    Some((received.bytes, descriptors.ok()?)).filter(|(bytes, _)| *bytes > 0)
}

const MINE: u8 = 0x5a;
const THEIRS: u8 = 0xa5;

/// What goes to one peer in frames of its channel no other peer can read, before or after.
#[test]
fn s15_frames_of_another_peer() {
    for side in Side::BOTH {
        let mut stage = Stage::new("s15-frames");
        let third = stage.third_channel();
        let tell = |stage: &mut Stage, to: ChannelId, what: u8| {
            stage.until(|stage| stage.victim.try_send_to(to, NOTE, &[what; 3000]).ok());
        };
        (0..10).for_each(|_| tell(&mut stage, third, THEIRS));
        let liar = stage.liar(side, "look around");
        let channel = stage.meet(side);
        tell(&mut stage, channel, MINE);
        (0..10).for_each(|_| tell(&mut stage, third, THEIRS));
        stage.go(1);
        stage.until_progress(1);
        assert_eq!(stage.ledger.read(NUMBER), 3000, "its own message");
        assert_eq!(stage.ledger.read(crate::victim::PROGRESS), 1, "another's");
        stage.go(2);
        let end = stage.event();
        assert!(matches!(end, Event::Closed { .. }), "{end:?}");
        assert!(liar.finish());
        stage.quarantined(channel);
        stage.end();
    }
}

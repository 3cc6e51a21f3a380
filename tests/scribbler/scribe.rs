//! The hostile process: opens a channel by the rules, scribbles over everything that it may write until the victim has had
//! enough, and opens the next.

use crate::acts;
use crate::board::{Board, IDLE, REST, Random, SCRIBBLE, STOP, Word, pin};
use crate::pen::{Pen, STATE_LINE};
use crate::support::opening::{
    HELLO, READY, WELCOME, identity, map_whole, opening, receive_all, segment, try_send,
};
use crate::support::patiently;
use crate::words::Words;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::SendFlags;
use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use tightbeam_segment::Formatted;
use tightbeam_sys::control;
use tightbeam_sys::memory::PeerMemory;

/// Stores between two looks at whether the channel is still open.
const STRETCH: u64 = 256;

/// Frames that the victim is told of, and bytes of each.
pub(crate) const FRAMES: usize = 4;
pub(crate) const STRIDE: usize = 8192;
/// Memory of which it tells as if it were many pieces, as many and as much as may be, over one channel in so many: so much costs a
/// scribbler nothing, and its victim is to map all of it.
const LARGE: usize = 16 << 20;
const PIECES: usize = 64;
const ONCE_IN: usize = 16;

/// A channel as the scribbler holds it.
pub(crate) struct Scribe<'a> {
    pub(crate) board: &'a Board,
    pub(crate) random: Random,
    pub(crate) pen: Pen,
    /// What it has passed for frames: the victim reads it, only this process writes it.
    pub(crate) frames: Words,
    pub(crate) socket: OwnedFd,
    /// What the victim calls this channel.
    number: u64,
    unreported: u64,
    /// One act in so many is a lie.
    pub(crate) lies: usize,
    /// It is done with this channel, whatever the victim thinks.
    pub(crate) left: bool,
    /// Acts since the victim last consumed something.
    pub(crate) stuck: usize,
    _kept: (Formatted, PeerMemory),
}

pub(crate) fn run(board: &Board, address: &str) {
    pin(1);
    let mut random = Random::new(board.get(Word::Seed));
    let large = sealed_memory(LARGE).0;
    let mut number = 0;
    loop {
        let mode = board.get(Word::Mode);
        match mode {
            REST => rest(board, REST),
            STOP => return,
            _ => {
                number += 1;
                match open(board, address, &mut random, number) {
                    Some(mut scribe) if mode == SCRIBBLE => {
                        scribe.pass_much(&large);
                        scribe.scribble();
                    }
                    Some(scribe) => {
                        rest(board, IDLE);
                        scribe.pen.own.publish(STATE_LINE, 1, 1);
                    }
                    None => {
                        number -= 1;
                        board.add(Word::Refused, 1);
                    }
                }
            }
        }
    }
}

/// Spins beside the victim and the client: what the rate is compared with.
fn rest(board: &Board, mode: u64) {
    board.set(Word::Resting, mode + 1);
    let word = AtomicU64::new(0);
    while board.get(Word::Mode) == mode {
        for n in 0..STRETCH {
            black_box(&word).store(n, std::sync::atomic::Ordering::Relaxed);
        }
    }
    board.set(Word::Resting, 0);
}

/// Opens a channel by the rules, and keeps what the rules say that it can write.
fn open<'a>(
    board: &'a Board,
    address: &str,
    random: &mut Random,
    number: u64,
) -> Option<Scribe<'a>> {
    let path = Path::new(address.strip_prefix("shm:").expect("a shm address"));
    let (formatted, descriptor) = segment();
    let own = Words::map(&descriptor);
    let socket = patiently(|| control::connect(path).ok());
    // The victim gives up whom this machine leaves waiting for too long.
    try_send(&socket, &opening(HELLO, identity()), &[descriptor.as_fd()]).ok()?;
    let (answer, mut descriptors) = receive_all(&socket)?;
    if answer[8..12] != WELCOME.to_ne_bytes() {
        return None;
    }
    let theirs = descriptors.pop().expect("a segment with it");
    // Mapped before the last seals, as a reader's own mapping is.
    let seen = Words::map(&theirs);
    let memory = map_whole(theirs);
    try_send(&socket, &opening(READY, identity()), &[]).ok()?;
    patiently(|| (board.get(Word::Opened) >= number).then_some(()));
    let frames = pass_frames(&socket)?;
    let lies = 1 << (4 + random.below(7));
    Some(Scribe {
        board,
        random: Random::new(random.next()),
        pen: Pen::new(own, seen),
        frames,
        socket,
        number,
        unreported: 0,
        lies,
        left: false,
        stuck: 0,
        _kept: (formatted, memory),
    })
}

/// Memory for frames by the rules of `runtime/endpoint/src/connection.rs`, and its owner's mapping of it.
fn sealed_memory(bytes: usize) -> (OwnedFd, Words) {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("scribbled-frames", flags).expect("memory");
    rustix::io::pwrite(&memory, &vec![7; bytes], 0).expect("written");
    let words = Words::map(&memory);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).expect("sealed");
    (memory, words)
}

/// Passes it as number so-and-so.
fn pass(socket: &OwnedFd, number: usize, memory: &OwnedFd, bytes: usize) -> Option<()> {
    let magic = u64::from_le_bytes(*b"tb-mem\x9d\xff");
    let grant = [magic, number as u64, STRIDE as u64, bytes as u64];
    let grant: Vec<u8> = grant.iter().flat_map(|word| word.to_ne_bytes()).collect();
    try_send(socket, &grant, &[memory.as_fd()]).ok()?;
    Some(())
}

fn pass_frames(socket: &OwnedFd) -> Option<Words> {
    let (memory, words) = sealed_memory(FRAMES * STRIDE);
    pass(socket, 0, &memory, FRAMES * STRIDE)?;
    Some(words)
}

impl Scribe<'_> {
    /// At times, as much as the connection takes.
    fn pass_much(&mut self, large: &OwnedFd) {
        if self.random.once_in(ONCE_IN) {
            let pieces = self.random.below(PIECES);
            let _ = (1..=pieces).try_for_each(|number| pass(&self.socket, number, large, LARGE));
        }
    }

    fn scribble(&mut self) {
        while self.goes_on() {
            acts::act(self);
        }
        // It may write on when the channel is over, to memory that nobody looks at any more.
        if self.random.once_in(8) {
            acts::anything(self, 1000);
        }
        self.report();
    }

    fn goes_on(&self) -> bool {
        !self.left && self.is_open() && self.board.get(Word::Mode) == SCRIBBLE
    }

    /// Whether the victim still polls this channel.
    pub(crate) fn is_open(&self) -> bool {
        self.board.get(Word::Current) == self.number
    }

    /// To be called after each store that no honest peer would make.
    #[inline]
    pub(crate) fn count(&mut self) {
        self.unreported += 1;
        if self.unreported == STRETCH {
            self.report();
        }
    }

    fn report(&mut self) {
        let count = std::mem::take(&mut self.unreported);
        self.board.add(Word::Mutations, count);
        if self.is_open() {
            self.board.add(Word::OnOpen, count);
        }
    }

    /// Says something over the control socket, where nothing belongs any more.
    pub(crate) fn babble(&mut self, bytes: &[u8]) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if rustix::net::send(&self.socket, bytes, flags).is_ok() {
            self.board.add(Word::Babbles, 1);
        }
    }
}

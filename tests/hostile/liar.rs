//! A peer without manners, in a process of its own: it opens a channel by the rules, on either side, and then has its hands on
//! every word that such a peer can reach.

use crate::support::opening::{GRANT, HELLO, READY, WELCOME, get_segment, opening, receive, send};
use crate::support::{Ledger, PATIENCE, patiently};
use crate::victim::{NOTE, PROGRESS};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tightbeam_segment::{
    Formatted, Identity, Incarnation, LAYOUT_HASH, Layout, OwnLines, PeerLines, Port,
};
use tightbeam_sys::block::SharedBlock;
use tightbeam_sys::control;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, PeerMemory, page_size};

/// Ring depth of a liar's segment, and how many slots a message may start in there (`runtime/segment/src/layout.rs`).
pub(crate) const DEPTH: usize = 64;
pub(crate) const STARTS: usize = DEPTH + 4 * 17 + 3 * 17;
/// Where things are in a segment.
pub(crate) const CURSOR_LINE: usize = 2;
pub(crate) const STATE_LINE: usize = 4;
pub(crate) const RING_LINE: usize = 24;
pub(crate) const ASLEEP: usize = 0;
pub(crate) const CLOSED: usize = 1;
pub(crate) const WAKE: usize = 2;
/// Where it says that it runs, counted from 1.
pub(crate) const CPU: usize = 3;

/// Parts of a header word (`runtime/segment/src/descriptor.rs`).
pub(crate) const MULTI: u64 = 1 << 11;
pub(crate) const RESTART: u64 = 1 << 12;
pub(crate) const WANTED: u64 = 1 << 47;
pub(crate) const REPLY: u64 = 1;
pub(crate) const BATCH: u64 = 4;
pub(crate) const JUMP: u64 = 5;

pub(crate) const fn kind(kind: u64) -> u64 {
    kind << 8
}

pub(crate) const fn length(len: u64) -> u64 {
    len << 16
}

pub(crate) const fn credit(slots: u64) -> u64 {
    (slots & 0x7_ffff) << 28
}

pub(crate) const fn target(index: u16) -> u64 {
    (index as u64) << 48
}

/// The numbers above are those of this layout; another hash means that they must be looked up again.
#[test]
fn the_layout_is_the_one_that_liars_know() {
    assert_eq!(LAYOUT_HASH, 0x1d9b_b42a_f342_d3c9);
}

/// Whether the liar connects to its victim or is connected to by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Client, Side::Server];
}

/// Every word of a segment, mapped writable before the last seals were on it.
pub(crate) struct Words(SharedBlock);

impl Words {
    pub(crate) fn map(segment: impl AsFd) -> Words {
        Words::try_map(segment).expect("mapped")
    }

    fn try_map(segment: impl AsFd) -> Result<Words, Errno> {
        let bytes = rustix::fs::fstat(&segment).expect("a memfd").st_size as usize;
        let segment = segment.as_fd().try_clone_to_owned().expect("a descriptor");
        SharedBlock::open(segment, bytes / 8).map(Words)
    }

    pub(crate) fn lines(&self) -> usize {
        self.0.words().len() / 8
    }

    pub(crate) fn word(&self, line: usize, word: usize) -> &std::sync::atomic::AtomicU64 {
        &self.0.words()[line * 8 + word]
    }

    pub(crate) fn write(&self, line: usize, word: usize, value: u64) {
        self.word(line, word).store(value, Ordering::Release);
    }

    pub(crate) fn read(&self, line: usize, word: usize) -> u64 {
        self.word(line, word).load(Ordering::Acquire)
    }

    /// Tries to punch a hole through the mapping.
    pub(crate) fn remove(&self) -> Result<(), Errno> {
        use rustix::mm::{Advice, madvise};
        let words = self.0.words();
        let start = words.as_ptr().cast_mut().cast();
        // SAFETY: bounds: the range is that of the mapping, and holes in it read as zeros.
        unsafe { madvise(start, words.len() * 8, Advice::LinuxRemove) }
    }

    /// Writes the header of a slot, behind its payload.
    pub(crate) fn slot(&self, slot: usize, header: u64, payload: &[u64]) {
        for (n, word) in payload.iter().enumerate() {
            self.write(RING_LINE + slot, 1 + n, *word);
        }
        self.write(RING_LINE + slot, 0, header);
    }
}

/// The liar's own segment, as an honest peer would have made it.
pub(crate) struct OwnSegment {
    pub(crate) descriptor: OwnedFd,
    pub(crate) words: Words,
    pub(crate) identity: Identity,
    formatted: Formatted,
}

impl OwnSegment {
    pub(crate) fn new() -> OwnSegment {
        let layout = Layout::new(DEPTH).expect("a depth");
        let page = page_size();
        let identity = Identity::ours(layout, page as u32, Incarnation([7, 8]));
        let options = MemoryOptions::default();
        let memory = OwnMemory::create(layout.bytes(page), &options).expect("memory");
        let descriptor = memory.fd().try_clone_to_owned().expect("a descriptor");
        OwnSegment {
            words: Words::map(&descriptor),
            descriptor,
            identity,
            formatted: layout.format(OwnLines::new(memory), &identity),
        }
    }
}

/// A channel as the liar holds it.
pub(crate) struct Liar {
    /// With which it keeps its manners where it wants to.
    pub(crate) port: Port,
    pub(crate) own: Words,
    pub(crate) own_descriptor: OwnedFd,
    /// The victim's segment.
    pub(crate) seen: Words,
    pub(crate) seen_descriptor: OwnedFd,
    pub(crate) socket: OwnedFd,
}

/// What a liar does with its own segment and the victim's, before the last seals are on the latter.
pub(crate) type Before = fn(&OwnedFd, &OwnedFd);

impl Liar {
    /// Connects to the victim.
    pub(crate) fn connect(address: &str) -> Liar {
        Liar::connect_and(address, |_, _| {})
    }

    pub(crate) fn connect_and(address: &str, before: Before) -> Liar {
        let socket = patiently(|| control::connect(&path(address)).ok());
        Liar::greet(socket, before)
    }

    /// Opens a channel over a connection to the victim.
    pub(crate) fn greet(socket: OwnedFd, before: Before) -> Liar {
        let own = OwnSegment::new();
        let hello = opening(HELLO, own.identity);
        send(&socket, &hello, &[own.descriptor.as_fd()]);
        let (theirs, segment) = get_segment(&socket);
        Liar::join(own, theirs, segment, socket, before, READY)
    }

    /// Takes the victim's connection.
    pub(crate) fn accept(listener: &OwnedFd) -> Liar {
        Liar::accept_and(listener, |_, _| {})
    }

    pub(crate) fn accept_and(listener: &OwnedFd, before: Before) -> Liar {
        let socket = patiently(|| control::accept(listener.as_fd()).ok());
        let own = OwnSegment::new();
        let (theirs, segment) = get_segment(&socket);
        let liar = Liar::join(own, theirs, segment, socket, before, WELCOME);
        receive(&liar.socket).expect("it is ready");
        liar
    }

    fn join(
        own: OwnSegment,
        theirs: Identity,
        segment: OwnedFd,
        socket: OwnedFd,
        before: Before,
        says: u32,
    ) -> Liar {
        let page = page_size();
        // In huge pages nobody may: then there is nothing of the victim's that the liar could write.
        let seen = Words::try_map(&segment).unwrap_or_else(|errno| {
            assert_eq!(errno, Errno::PERM);
            Words(SharedBlock::create(own.words.lines() * 8).expect("memory"))
        });
        before(&own.descriptor, &segment);
        let layout = theirs.check(page as u32).expect("the victim is honest");
        let map = || {
            let copy = segment.try_clone().expect("a descriptor");
            PeerMemory::map(copy, layout.bytes(page)).ok()
        };
        // Puts the last seals on it, also if it then finds holes: those its owner fills once it has heard of us.
        let mapped = map();
        let message = opening(says, own.identity);
        match says {
            WELCOME => send(&socket, &message, &[own.descriptor.as_fd()]),
            _ => send(&socket, &message, &[]),
        }
        let memory = mapped.unwrap_or_else(|| patiently(map));
        let lines = PeerLines::new(memory);
        let attached = Layout::attach(lines, &theirs, page as u32).expect("as it said");
        Liar {
            port: Port::new(own.formatted, attached, 0),
            own: own.words,
            own_descriptor: own.descriptor,
            seen,
            seen_descriptor: segment,
            socket,
        }
    }

    /// Sends as many messages by the rules, each with its number.
    pub(crate) fn say(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let out = tightbeam_segment::Outgoing::message(NOTE);
            patiently(|| self.port.try_send(out, &number.to_ne_bytes()).ok());
        }
    }

    /// Closes the channel by the rules, and waits until the victim has noticed.
    pub(crate) fn leave(self) {
        self.port.close();
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).expect("connected");
        self.wait_for_hang_up();
    }

    /// Waits until the victim has had enough.
    pub(crate) fn wait_for_hang_up(&self) {
        control::wait_readable(self.socket.as_fd(), PATIENCE);
        while let Some(said) = receive(&self.socket) {
            assert_eq!(said[..8], GRANT.to_ne_bytes(), "memory, and nothing else");
        }
    }
}

/// Where a liar listens whose victim listens at this address.
pub(crate) fn liars_address(address: &str) -> String {
    format!("{address}.liar")
}

pub(crate) fn path(address: &str) -> PathBuf {
    Path::new(address.strip_prefix("shm:").expect("a shm address")).to_path_buf()
}

/// Opens one channel after the other, on one side.
pub(crate) struct Opener {
    address: String,
    listener: Option<OwnedFd>,
}

impl Opener {
    pub(crate) fn new(side: Side, address: &str) -> Opener {
        let listen = || control::listen(&path(&liars_address(address))).expect("a free path");
        Opener {
            address: address.to_owned(),
            listener: (side == Side::Server).then(listen),
        }
    }

    pub(crate) fn open(&self) -> Liar {
        match &self.listener {
            Some(listener) => Liar::accept(listener),
            None => Liar::connect(&self.address),
        }
    }
}

/// Tells the test how far it is.
pub(crate) fn report(address: &str, progress: u64) {
    Ledger::of(address).write(PROGRESS, progress);
}

//! What a receiver has of a frame: the right to read it until it is given back.

use crate::copy;
use crate::frames::Granted;
use crate::layout::{RETURNS, RETURNS_LINE, SLOT_BYTES};
use crate::lines::{LINE_WORDS, OwnLines};
use crate::scratch::LineWords;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell};

/// The receiving side of the free ring: says in my segment which of the peer's frames I have done with.
pub(crate) struct Returns {
    own: OwnLines,
    /// How many words were written.
    count: Cell<u64>,
    /// How many frames have come.
    taken: Cell<u64>,
    /// Something was given back since somebody asked.
    fresh: Cell<bool>,
    /// Called when a message that was kept is given back.
    tell: OnceCell<Box<dyn Fn()>>,
}

/// The tag of the lap in which the free ring's word of this number is: 1 to 255.
pub(crate) fn lap_tag(number: u64) -> u64 {
    number / RETURNS as u64 % 255 + 1
}

/// Line and word of the free ring's word of this number.
pub(crate) fn place(number: u64) -> (usize, usize) {
    let word = (number % RETURNS as u64) as usize;
    (RETURNS_LINE + word / LINE_WORDS, word % LINE_WORDS)
}

impl Returns {
    pub(crate) fn new(own: OwnLines) -> Returns {
        Returns {
            own,
            count: Cell::new(0),
            taken: Cell::new(0),
            fresh: Cell::new(false),
            tell: OnceCell::new(),
        }
    }

    /// Never fails: there are as many words as frames that the peer may lend. (One that lends more overwrites its own.)
    pub(crate) fn give_back(&self, word: u64) {
        let count = self.count.get();
        let (line, place) = place(count);
        // Release: pairs with the acquire in `Port::collect`; what was read of the frame was read before this.
        self.own.line(line).publish(place, word | lap_tag(count));
        self.count.set(count + 1);
        self.fresh.set(true);
    }

    /// So many frames have come.
    pub(crate) fn took(&self, frames: usize) {
        self.taken.set(self.taken.get() + frames as u64);
    }

    /// Frames that have come and were not given back yet.
    pub(crate) fn held(&self) -> usize {
        self.taken.get().saturating_sub(self.count.get()) as usize
    }

    pub(crate) fn set_tell(&self, tell: impl Fn() + 'static) {
        // A port has one owner.
        let _ = self.tell.set(Box::new(tell));
    }

    pub(crate) fn take_fresh(&self) -> bool {
        self.fresh.take()
    }
}

/// A part of a message that has been looked up: bytes of the peer's memory, which it may write at any time.
pub(crate) struct Held {
    memory: Rc<Granted>,
    offset: usize,
    len: usize,
    /// What is to be said when it is given back.
    word: u64,
}

impl Held {
    /// `None` unless all of it lies in the memory.
    pub(crate) fn new(
        memory: &Rc<Granted>,
        slot: usize,
        (begin, len): (usize, usize),
        word: u64,
    ) -> Option<Held> {
        let bytes = memory.memory.lines() * crate::SLOT_BYTES;
        let inside = begin.checked_add(len)? <= memory.stride;
        let offset = slot.checked_mul(memory.stride)?;
        let whole = offset.checked_add(memory.stride)? <= bytes;
        (inside && whole).then(|| Held {
            memory: Rc::clone(memory),
            offset: offset + begin,
            len,
            word,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn word(&self) -> u64 {
        self.word
    }

    /// Calls with each line from this byte on, as far as they are whole; how many bytes these are.
    #[inline(always)]
    fn for_each_line(&self, from: usize, each: impl FnMut(LineWords)) -> usize {
        let lines = self.len.saturating_sub(from) / SLOT_BYTES;
        let base = self.memory.memory.base().as_ptr();
        let at = base.wrapping_add(self.offset.wrapping_add(from));
        // SAFETY:
        // 1. bounds: offset + from + lines * 64 <= offset + len, which `new` found inside the memory's lines; or there are no lines.
        // 2. aliasing: the mapping is accessed in no other way. lifetime: `memory` keeps it.
        unsafe { copy::for_each_line(at, lines, each) };
        lines * SLOT_BYTES
    }

    /// Copies from this byte on; at most as many as there are, and are wanted. Says how many.
    fn copy(&self, from: usize, to: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(from).min(to.len());
        if count == 0 {
            return 0;
        }
        // SAFETY: bounds: offset + from + count <= offset + len, which `new` found inside the memory's lines.
        let at = unsafe { self.memory.memory.base().add(self.offset + from) };
        // SAFETY:
        // 1. bounds: as above, and `to` has at least `count` bytes; it is private memory, no part of what is mapped.
        // 2. aliasing: the mapping is accessed in no other way. lifetime: `memory` keeps it.
        unsafe { copy::copy_bytes(at.as_ptr(), to.as_mut_ptr(), count) };
        count
    }
}

/// Copies from byte `from` of what these parts are together, as much as there is room for; how many bytes that were.
pub(crate) fn copy_parts<'a>(
    parts: impl Iterator<Item = &'a Held>,
    mut from: usize,
    mut to: &mut [u8],
) -> usize {
    let mut copied = 0;
    for part in parts {
        if from >= part.len {
            from -= part.len;
            continue;
        }
        let count = part.copy(from, to);
        from = 0;
        copied += count;
        to = &mut to[count..];
        if to.is_empty() {
            break;
        }
    }
    copied
}

/// The promise that senders may be trusted: with it a message is read as a slice of the sender's own memory.
#[derive(Debug, Clone, Copy)]
pub struct Trust(());

impl Trust {
    /// Promises it.
    ///
    /// # Safety
    ///
    /// No process whose frames are read with this value writes to a frame that it has sent, until it has come back. This library
    /// does not; so the promise is about what else those processes do, stray pointers and malice included.
    pub const unsafe fn new() -> Trust {
        Trust(())
    }
}

/// A message that came in frames: its bytes stay where the sender wrote them, and are read there. Dropped, the frames go back.
///
/// The sender cannot use the frames until then. Nothing but its honesty keeps it from writing to them all the same, so nothing
/// here gives out a reference to them (D4): bytes are copied out, as many at a time as you like.
pub struct Received {
    first: Held,
    rest: Vec<Held>,
    len: usize,
    returns: Rc<Returns>,
}

impl Received {
    /// `None` if there are no parts.
    pub(crate) fn new(parts: &mut Vec<Held>, returns: &Rc<Returns>) -> Option<Received> {
        let len = parts.iter().map(Held::len).sum();
        let mut parts = parts.drain(..);
        Some(Received {
            first: parts.next()?,
            rest: parts.collect(),
            len,
            returns: Rc::clone(returns),
        })
    }

    /// Bytes of the message.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many frames it came in.
    pub fn parts(&self) -> usize {
        1 + self.rest.len()
    }

    /// Copies bytes from `offset` on, as many as there are and fit; says how many that were. What is copied is yours, and stays
    /// as it is.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        let parts = core::iter::once(&self.first).chain(&self.rest);
        copy_parts(parts, offset, to)
    }

    /// Calls `each` with every 64 bytes of the message, in their order, as eight words in this machine's byte order, read where they lie,
    /// each once. Says how many bytes that were; of what is left, 0 to 63 bytes, [`copy_to`](Self::copy_to) makes a copy.
    ///
    /// What `each` gets is a value: what the sender writes meanwhile is seen or not, as by `copy_to`. Of a message that no cache of this
    /// CPU holds this takes as long as a slice does, and two thirds of the time that copying takes.
    #[inline(always)]
    pub fn for_each_line(&self, mut each: impl FnMut([u64; 8])) -> usize {
        // How far it has been read, and where the part begins.
        let (mut at, mut begin) = (0, 0);
        for part in core::iter::once(&self.first).chain(&self.rest) {
            at += part.for_each_line(at - begin, &mut each);
            begin += part.len;
            // One that begins in a part and ends in another.
            if at < begin {
                let mut line = [[0; 8]; 8];
                if self.copy_to(at, line.as_flattened_mut()) < SLOT_BYTES {
                    break;
                }
                each(line.map(u64::from_ne_bytes));
                at += SLOT_BYTES;
            }
        }
        at
    }

    /// The bytes where they lie, if they are in one frame: for who trusts the sender ([`Trust`]).
    pub fn as_slice(&self, _: Trust) -> Option<&[u8]> {
        if !self.rest.is_empty() {
            return None;
        }
        let base = self.first.memory.memory.base().as_ptr();
        let at = base.wrapping_add(self.first.offset);
        // SAFETY:
        // bounds: offset + len lie inside the memory's lines, which `Held::new` has looked at. alignment: u8 needs none.
        // initialised: the memory is mapped, and all of its file is there. aliasing: who made the Trust has promised that the sender does not write
        // while this value lives. lifetime: `memory` keeps the mapping, and the slice borrows self.
        Some(unsafe { core::slice::from_raw_parts(at, self.first.len) })
    }

    /// All bytes, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; self.len];
        self.copy_to(0, &mut bytes);
        bytes
    }
}

impl core::fmt::Debug for Received {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Received({} bytes, {} frames)", self.len, self.parts())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.returns.give_back(self.first.word);
        for part in &self.rest {
            self.returns.give_back(part.word);
        }
        if let Some(tell) = self.returns.tell.get() {
            tell();
        }
    }
}

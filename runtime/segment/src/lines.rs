//! Shared memory as an array of 64-byte lines of eight atomic words.
//!
//! [`OwnLines`] can be stored to, [`PeerLines`] only loaded from; neither gives out a reference to anything but atomics
//! (I2). All access is by whole aligned words (D3), which is sound whatever the other side does and avoids the
//! store-forwarding stalls of overlapping vector copies; or through `copy.rs`, where many lines go at once.

use crate::copy;
use crate::layout::{RING_LINE, SLOT_BYTES};
use crate::scratch::{Chunk, LineWords};
use crate::sync::{AtomicU64, Ordering, fence};
use alloc::sync::Arc;
use core::ptr::NonNull;

/// Words in a line.
pub(crate) const LINE_WORDS: usize = 8;

/// One cache line of shared memory.
#[repr(C, align(64))]
pub(crate) struct Line([AtomicU64; LINE_WORDS]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Line>() == 64 && align_of::<Line>() == 64);

impl Line {
    pub(crate) fn zeroed() -> Self {
        Line(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// A number of 64-byte lines.
pub type LineCount = usize;

/// A mapping, or any other memory, that lines can live in.
///
/// # Safety
///
/// The implementer promises, for as long as the value lives and even when it is moved:
/// 1. `base()` is the same address at each call, aligned to 64 bytes;
/// 2. `lines() * 64` bytes from it are mapped and readable;
/// 3. touching them raises no fault: the memory has been populated, and no other process can shrink it or punch holes;
/// 4. nobody in this process reads or writes them but through atomics of 8 bytes.
pub unsafe trait Backing {
    /// Address of the first line.
    fn base(&self) -> NonNull<u8>;
    /// How many whole lines the memory holds.
    fn lines(&self) -> LineCount;
}

/// Memory of ours that we write.
///
/// # Safety
///
/// As for [`Backing`], and the bytes are writable too.
pub unsafe trait WritableBacking: Backing {}

#[derive(Clone)]
struct RawLines {
    base: NonNull<Line>,
    count: LineCount,
    /// Keeps the memory mapped; never looked at again.
    _backing: Arc<dyn Backing + Send + Sync>,
}

// SAFETY: aliasing: the backing is Send and Sync, and what lies at the address are atomics; nothing about them belongs to a thread.
unsafe impl Send for RawLines {}

impl RawLines {
    fn new(backing: Arc<dyn Backing + Send + Sync>) -> Self {
        assert!(
            backing.lines() >= RING_LINE,
            "smaller than a segment's head"
        );
        RawLines {
            base: backing.base().cast(),
            count: backing.lines(),
            _backing: backing,
        }
    }

    /// A line of the segment's head, whose number is known when compiling.
    #[inline(always)]
    fn head<const INDEX: usize>(&self) -> &Line {
        const { assert!(INDEX < RING_LINE) };
        // SAFETY: bounds: INDEX < RING_LINE, checked when compiling, and RING_LINE <= count, checked in `new`.
        let line = unsafe { self.base.add(INDEX) };
        // SAFETY: alignment, initialised, aliasing, lifetime: as in `line`.
        unsafe { line.as_ref() }
    }

    /// Where so many lines lie from this one on, all of them within the memory.
    fn range(&self, first: usize, lines: usize) -> *mut u8 {
        match first.checked_add(lines) {
            Some(end) if end <= self.count => {}
            _ => outside(first, self.count),
        }
        // SAFETY: bounds: first <= count, checked above, and Backing's promise 2 makes count lines readable.
        unsafe { self.base.add(first) }.as_ptr().cast()
    }

    #[inline(always)]
    fn line(&self, index: usize) -> &Line {
        if index >= self.count {
            outside(index, self.count);
        }
        // SAFETY:
        // bounds: index < count, checked above, and Backing's promise 2 makes count lines readable.
        let line = unsafe { self.base.add(index) };
        // SAFETY:
        // alignment: base is aligned to 64 by Backing's promise 1, and a line is 64 bytes.
        // initialised: any bit pattern is a valid AtomicU64.
        // aliasing: a Line is atomics only, so writers in this or another process are no data race; promise 4 excludes others.
        // lifetime: the reference borrows self, which owns the backing.
        unsafe { line.as_ref() }
    }
}

#[cold]
#[inline(never)]
fn outside(index: usize, count: usize) -> ! {
    panic!("line {index} of {count}: an index of our own went astray");
}

/// The lines of my segment: I am the only writer that anybody relies on. There is no way to read them back, so whatever the
/// peer does to its mapping of them changes nothing for me.
pub struct OwnLines(RawLines);

impl OwnLines {
    /// The same lines, for another part of the same port. Each word keeps its one writer.
    pub(crate) fn share(&self) -> OwnLines {
        OwnLines(self.0.clone())
    }
}

impl OwnLines {
    /// Takes memory that this process may write.
    pub fn new(backing: impl WritableBacking + Send + Sync + 'static) -> Self {
        OwnLines(RawLines::new(Arc::new(backing)))
    }

    /// How many lines there are.
    pub fn count(&self) -> LineCount {
        self.0.count
    }

    #[inline(always)]
    pub(crate) fn head<const INDEX: usize>(&self) -> OwnLine<'_> {
        OwnLine(self.0.head::<INDEX>())
    }

    #[inline(always)]
    pub(crate) fn line(&self, index: usize) -> OwnLine<'_> {
        OwnLine(self.0.line(index))
    }

    /// Fills lines from `first` on; they become visible with the next [`publish`](OwnLine::publish).
    pub(crate) fn store_lines(&self, first: usize, lines: &[[u8; SLOT_BYTES]]) {
        if copy::worthwhile(lines.len()) {
            let to = self.0.range(first, lines.len());
            // SAFETY:
            // 1. bounds: `range` checked that so many lines are there, and WritableBacking says that they are writable;
            //    `lines` is a slice, which is private memory and so no part of them.
            // 2. aliasing: everything else here goes through atomics. 3. asked above.
            unsafe { copy::copy_lines(lines.as_ptr().cast(), to, lines.len()) };
            return;
        }
        for (n, bytes) in lines.iter().enumerate() {
            let (words, _) = bytes.as_chunks::<8>();
            let line = self.line(first + n);
            for (word, value) in words.iter().enumerate() {
                line.store(word, u64::from_ne_bytes(*value));
            }
        }
    }
}

/// A line that I may write.
#[derive(Clone, Copy)]
pub(crate) struct OwnLine<'a>(&'a Line);

impl<'a> OwnLine<'a> {
    /// Writes a word; it becomes visible with the next [`publish`](Self::publish).
    #[inline(always)]
    pub(crate) fn store(self, word: usize, value: u64) {
        // Relaxed: published by the Release store of a header, a cursor or a state word.
        self.0.0[word].store(value, Ordering::Relaxed);
    }

    /// Writes a word after everything that was written before it.
    #[inline(always)]
    pub(crate) fn publish(self, word: usize, value: u64) {
        // Release: pairs with the fence(Acquire) in `PeerLine::load_acquire` and `PeerLine::acquire`.
        self.0.0[word].store(value, Ordering::Release);
    }

    /// Writes the payload words; they become visible with the next [`publish`](Self::publish).
    #[inline(always)]
    pub(crate) fn store_chunk(self, chunk: &Chunk) {
        for (n, word) in chunk.iter().enumerate() {
            self.store(1 + n, *word);
        }
    }

    pub(crate) fn address(self, word: usize) -> WordAddress<'a> {
        WordAddress(&self.0.0[word])
    }
}

/// The lines of the peer's segment: it may change them at any moment, I can only read.
pub struct PeerLines(RawLines);

impl PeerLines {
    /// Takes memory that the peer writes and this process has mapped; nothing is ever stored to it.
    pub fn new(backing: impl Backing + Send + Sync + 'static) -> Self {
        PeerLines(RawLines::new(Arc::new(backing)))
    }

    /// How many lines there are.
    pub fn count(&self) -> LineCount {
        self.0.count
    }

    #[inline(always)]
    pub(crate) fn head<const INDEX: usize>(&self) -> PeerLine<'_> {
        PeerLine(self.0.head::<INDEX>())
    }

    #[inline(always)]
    pub(crate) fn line(&self, index: usize) -> PeerLine<'_> {
        PeerLine(self.0.line(index))
    }

    /// One load of each word of the lines from `first` on; or of larger pieces, some of which may then be torn.
    pub(crate) fn load_lines(&self, first: usize, lines: &mut [LineWords]) {
        if copy::worthwhile(lines.len()) {
            let from = self.0.range(first, lines.len());
            // SAFETY:
            // 1. bounds: `range` checked that so many lines are there, and Backing's promise 2 makes them readable; `lines` is
            //    an exclusive slice, which is private memory and so no part of them.
            // 2. aliasing: everything else here goes through atomics. 3. asked above.
            unsafe { copy::copy_lines(from, lines.as_mut_ptr().cast(), lines.len()) };
            return;
        }
        for (n, words) in lines.iter_mut().enumerate() {
            let line = self.line(first + n);
            *words = core::array::from_fn(|word| line.load(word));
        }
    }
}

/// A line that the peer may change at any moment.
#[derive(Clone, Copy)]
pub(crate) struct PeerLine<'a>(&'a Line);

impl<'a> PeerLine<'a> {
    /// One load; the value is an allegation (I4).
    ///
    /// Relaxed, because only relaxed loads are defined on memory that is mapped read-only; [`acquire`](Self::acquire)
    /// follows once the value says that there is something to read.
    #[inline(always)]
    pub(crate) fn load(self, word: usize) -> u64 {
        self.0.0[word].load(Ordering::Relaxed)
    }

    /// One load of each payload word.
    #[inline(always)]
    pub(crate) fn load_chunk(self) -> Chunk {
        core::array::from_fn(|n| self.load(1 + n))
    }

    /// Makes what the peer wrote before the word just loaded visible.
    #[inline(always)]
    pub(crate) fn acquire() {
        // Acquire: pairs with the Release store in `OwnLine::publish`.
        fence(Ordering::Acquire);
    }

    /// One load, and everything that the peer wrote before it.
    #[inline(always)]
    pub(crate) fn load_acquire(self, word: usize) -> u64 {
        let value = self.load(word);
        Self::acquire();
        value
    }

    pub(crate) fn address(self, word: usize) -> WordAddress<'a> {
        WordAddress(&self.0.0[word])
    }
}

/// Where a word lies that the kernel shall watch or wake.
#[derive(Clone, Copy)]
pub struct WordAddress<'a>(&'a AtomicU64);

impl<'a> From<&'a AtomicU64> for WordAddress<'a> {
    fn from(word: &'a AtomicU64) -> Self {
        WordAddress(word)
    }
}

impl WordAddress<'_> {
    /// The address of its 8 bytes: mapped while this is borrowed, perhaps read-only.
    pub fn as_ptr(self) -> *const u64 {
        core::ptr::from_ref(self.0).cast()
    }
}

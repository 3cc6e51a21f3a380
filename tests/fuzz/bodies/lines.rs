//! A segment on the heap, of which any word can be read and written: what a peer can do to its own.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tightbeam_segment::{
    Backing, Identity, Incarnation, Layout, OwnLines, PeerLines, Port, SLOT_BYTES, WritableBacking,
    testing,
};

/// Words in a line.
pub(crate) const WORDS: usize = SLOT_BYTES / 8;
/// Where `runtime/segment/src/layout.rs` puts the parts of a segment, in lines.
pub(crate) const CURSOR: usize = 2;
pub(crate) const STATE: usize = 4;
pub(crate) const RING: usize = 24;

/// Page size that both sides claim.
pub(crate) const PAGE: u32 = 4096;

#[repr(C, align(64))]
#[derive(Default)]
struct Line([AtomicU64; WORDS]);

/// Zeroed lines, exactly as many as the layout needs, so that one further is outside of the allocation.
#[derive(Clone)]
pub(crate) struct Lines(Arc<[Line]>);

impl Lines {
    pub(crate) fn new(layout: Layout) -> Lines {
        Lines::of(layout.lines())
    }

    pub(crate) fn of(lines: usize) -> Lines {
        Lines((0..lines).map(|_| Line::default()).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn load(&self, line: usize, word: usize) -> u64 {
        self.0[line].0[word].load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, line: usize, word: usize, value: u64) {
        self.0[line].0[word].store(value, Ordering::Relaxed);
    }

    /// Every word of some lines.
    pub(crate) fn image(&self, lines: std::ops::Range<usize>) -> Vec<u64> {
        lines
            .flat_map(|line| (0..WORDS).map(move |word| (line, word)))
            .map(|(line, word)| self.load(line, word))
            .collect()
    }

    /// The bytes of a message whose first slot is this one.
    pub(crate) fn payload(&self, slot: usize, len: usize) -> Vec<u8> {
        (1..=len.div_ceil(8))
            .flat_map(|word| {
                self.load(RING + slot + word / WORDS, word % WORDS)
                    .to_ne_bytes()
            })
            .take(len)
            .collect()
    }

    /// Writes the bytes of a message, as far as there are lines.
    pub(crate) fn store_payload(&self, slot: usize, bytes: &[u8]) {
        for (n, bytes) in bytes.chunks(8).enumerate() {
            let (line, word) = (RING + slot + (n + 1) / WORDS, (n + 1) % WORDS);
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            if line < self.len() {
                self.store(line, word, u64::from_ne_bytes(whole));
            }
        }
    }
}

// SAFETY:
// 1. the slice lives in the Arc and is never moved; Line is aligned to 64 bytes;
// 2. it has as many lines as it has elements;
// 3. heap memory does not fault;
// 4. the elements are atomics, and nothing else gives them out.
unsafe impl Backing for Lines {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }

    fn lines(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: bounds: all of the slice is on the heap, which is writable.
unsafe impl WritableBacking for Lines {}

/// A new port of the segment of ours, and of the peer's as it is.
pub(crate) fn port(ours: &Lines, theirs: &Lines, layout: Layout, tag: u8) -> Port {
    let identity = |seed| Identity::ours(layout, PAGE, Incarnation([seed, 7]));
    let own = layout.format(OwnLines::new(ours.clone()), &identity(1));
    // Whose identity is written anew, so that there is one.
    let _ = layout.format(OwnLines::new(theirs.clone()), &identity(2));
    let peer = Layout::attach(PeerLines::new(theirs.clone()), &identity(2), PAGE);
    testing::join_at(own, peer.expect("just formatted"), 0, tag)
}

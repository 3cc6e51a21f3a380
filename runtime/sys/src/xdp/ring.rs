//! The kernel's rings: one side produces, the other consumes, each writes its own index.
//!
//! ```text
//!             consumer            producer
//!                |                   |
//!   +---+---+----v---+---+---+---+---v---+---+
//!   |   |   | taken by | published  |  room  |     index modulo size; both run on through u32::MAX
//!   +---+---+----------+------------+--------+
//! ```
//!
//! The four rings of an AF_XDP socket have this shape. We produce into FILL and TX and consume from RX and COMPLETION. An entry is published
//! by a store of the producer's index (Release) that pairs with the other side's load of it (Acquire), and given back by a store of
//! the consumer's index (Release) that pairs with the other side's load of that. What the kernel has written is checked like a peer's word:
//! an index that says more than the ring can hold is a [`RingFault`].
//!
//! Nothing here knows the kernel: the memory may be a mapping of a socket's ring or plain memory, as in the tests.

use crate::mapping::Mapping;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The kernel has set this bit of a ring's flags: it sleeps, and wants a system call.
const NEED_WAKEUP: u32 = 1;

/// The other side of a ring has written an index that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel's {ring} ring says {found} where between {from} and {to} can be; close the socket"
)]
pub struct RingFault {
    /// Which ring: `fill`, `completion`, `receive`, `transmit`.
    pub ring: &'static str,
    /// What it says: an index, or a frame's address.
    pub found: u64,
    /// The least that can be.
    pub from: u64,
    /// The most that can be.
    pub to: u64,
}

/// A packet in a frame: an entry of RX and TX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Where its first byte is, from the start of the frames' memory.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Flags of the kernel's; 0 for a whole packet.
    pub options: u32,
}

/// What a ring can hold: so many 64-bit words.
pub(crate) trait Entry: Copy {
    const WORDS: usize;
    fn to_words(self) -> [u64; 2];
    fn from_words(words: [u64; 2]) -> Self;
}

/// An entry of FILL and COMPLETION: a frame's address.
impl Entry for u64 {
    const WORDS: usize = 1;

    fn to_words(self) -> [u64; 2] {
        [self, 0]
    }

    fn from_words(words: [u64; 2]) -> u64 {
        words[0]
    }
}

impl Entry for Descriptor {
    const WORDS: usize = 2;

    #[inline]
    fn to_words(self) -> [u64; 2] {
        let mut second = [0; 8];
        second[..4].copy_from_slice(&self.len.to_ne_bytes());
        second[4..].copy_from_slice(&self.options.to_ne_bytes());
        [self.address, u64::from_ne_bytes(second)]
    }

    #[inline]
    fn from_words(words: [u64; 2]) -> Descriptor {
        let [a, b, c, d, e, f, g, h] = words[1].to_ne_bytes();
        Descriptor {
            address: words[0],
            len: u32::from_ne_bytes([a, b, c, d]),
            options: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Where the parts of a ring are in its memory, in bytes from its start, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) producer: u64,
    pub(crate) consumer: u64,
    pub(crate) flags: u64,
    pub(crate) entries: u64,
}

/// What keeps a ring's memory there.
#[allow(dead_code, reason = "held for its drop")]
enum Keeper {
    Mapped(Mapping),
    #[cfg(test)]
    Plain(std::sync::Arc<[AtomicU64]>),
}

/// A ring's memory: three indices and the entries.
struct Memory {
    name: &'static str,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<AtomicU64>,
    /// Entries; a power of two.
    size: u32,
    _keeper: Keeper,
}

// SAFETY: aliasing: the memory is reached through atomics alone, from whatever thread; the keeper is Send.
unsafe impl Send for Memory {}

impl Memory {
    /// Takes a ring that is at `base` in `bytes` bytes; `None` if a part would not lie in them, or is not aligned.
    fn at(
        name: &'static str,
        base: NonNull<u8>,
        bytes: usize,
        places: Places,
        size: u32,
        words: usize,
        keeper: Keeper,
    ) -> Option<Memory> {
        if !size.is_power_of_two() || !base.addr().get().is_multiple_of(8) {
            return None;
        }
        let part = |at: u64, len: usize, align: usize| {
            let at = usize::try_from(at).ok()?;
            let fits = at.checked_add(len)? <= bytes && at.is_multiple_of(align);
            // SAFETY: bounds: `at + len` is within `bytes`, which the caller's keeper holds.
            fits.then(|| unsafe { base.byte_add(at) })
        };
        Some(Memory {
            name,
            producer: part(places.producer, 4, 4)?.cast(),
            consumer: part(places.consumer, 4, 4)?.cast(),
            flags: part(places.flags, 4, 4)?.cast(),
            entries: part(places.entries, size as usize * words * 8, 8)?.cast(),
            size,
            _keeper: keeper,
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: bounds, alignment: `at` has checked both. lifetime: the keeper lives as long as self. aliasing: atomics only.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: bounds, alignment: `at` has checked both. lifetime: the keeper lives as long as self. aliasing: atomics only.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: bounds, alignment: `at` has checked both. lifetime: the keeper lives as long as self. aliasing: atomics only.
        unsafe { self.flags.as_ref() }
    }

    /// A word of an entry.
    #[inline]
    fn word<E: Entry>(&self, index: u32, word: usize) -> &AtomicU64 {
        debug_assert!(word < E::WORDS);
        let at = (index & (self.size - 1)) as usize * E::WORDS + word;
        // SAFETY: bounds: the masked index is less than `size`, and `at` has checked `size * WORDS` words.
        let word = unsafe { self.entries.add(at) };
        // SAFETY: bounds: as above. alignment: `at` has checked it. lifetime: the keeper lives as long as self. aliasing: atomics only.
        unsafe { word.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.flags().load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    #[cold]
    fn fault(&self, found: u32, from: u32, to: u32) -> RingFault {
        RingFault {
            ring: self.name,
            found: found.into(),
            from: from.into(),
            to: to.into(),
        }
    }
}

/// Our side of FILL and TX.
pub(crate) struct Producer<E> {
    memory: Memory,
    /// The next entry that we write.
    next: u32,
    /// Up to here the other side can see.
    published: u32,
    /// Up to here the other side has taken, when last looked.
    taken: u32,
    _entry: PhantomData<E>,
}

impl<E: Entry> Producer<E> {
    /// Takes a mapped ring as it stands: it may have been used before, by whoever passed it on. `None` if its parts do not fit.
    pub(crate) fn mapped(
        name: &'static str,
        mapping: Mapping,
        places: Places,
        size: u32,
    ) -> Option<Producer<E>> {
        let (base, bytes) = (mapping.base.cast(), mapping.bytes);
        let keeper = Keeper::Mapped(mapping);
        let memory = Memory::at(name, base, bytes, places, size, E::WORDS, keeper)?;
        Some(Producer::over(memory))
    }

    fn over(memory: Memory) -> Producer<E> {
        let next = memory.producer().load(Ordering::Relaxed);
        // The first look at the other side's index may say anything from a ring ago on.
        let taken = next.wrapping_sub(memory.size);
        Producer {
            memory,
            next,
            published: next,
            taken,
            _entry: PhantomData,
        }
    }

    /// How many entries can be written; looks at the other side's index if they are less than `wanted`.
    #[inline]
    pub(crate) fn room(&mut self, wanted: u32) -> Result<u32, RingFault> {
        let size = self.memory.size;
        let known = size - self.next.wrapping_sub(self.taken);
        if known >= wanted {
            return Ok(known);
        }
        // Acquire: pairs with the consumer's Release store. What it has read of the entries it read before we overwrite them.
        let taken = self.memory.consumer().load(Ordering::Acquire);
        let most = self.published.wrapping_sub(self.taken);
        if taken.wrapping_sub(self.taken) > most {
            return Err(self.memory.fault(taken, self.taken, self.published));
        }
        self.taken = taken;
        Ok(size - self.next.wrapping_sub(taken))
    }

    /// Writes the next entry, which nobody sees before [`publish`](Self::publish). Needs [`room`](Self::room) for it.
    #[inline]
    pub(crate) fn write(&mut self, entry: E) {
        let used = self.next.wrapping_sub(self.taken);
        assert!(used < self.memory.size, "no room was asked for");
        let words = entry.to_words();
        for (n, word) in words.iter().enumerate().take(E::WORDS) {
            let slot = self.memory.word::<E>(self.next, n);
            slot.store(*word, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Lets the other side see what was written.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published != self.next {
            self.published = self.next;
            // Release: pairs with the consumer's Acquire load. It sees the entries when it sees the index.
            self.memory.producer().store(self.next, Ordering::Release);
        }
    }

    /// Entries that the other side has not taken yet, published or not; looks at its index.
    pub(crate) fn outstanding(&self) -> Result<u32, RingFault> {
        // Acquire: pairs with the consumer's Release store, as in `room`.
        let taken = self.memory.consumer().load(Ordering::Acquire);
        let most = self.published.wrapping_sub(self.taken);
        if taken.wrapping_sub(self.taken) > most {
            return Err(self.memory.fault(taken, self.taken, self.published));
        }
        Ok(self.next.wrapping_sub(taken))
    }

    /// Whether the other side sleeps, and wants a system call.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.memory.needs_wakeup()
    }

    pub(crate) fn size(&self) -> u32 {
        self.memory.size
    }
}

/// Our side of RX and COMPLETION.
pub(crate) struct Consumer<E> {
    memory: Memory,
    /// The next entry that we read.
    next: u32,
    /// Up to here the other side knows that we have read.
    released: u32,
    /// Up to here the other side has published, when last looked.
    seen: u32,
    _entry: PhantomData<E>,
}

impl<E: Entry> Consumer<E> {
    /// Takes a mapped ring as it stands, as [`Producer::mapped`] does.
    pub(crate) fn mapped(
        name: &'static str,
        mapping: Mapping,
        places: Places,
        size: u32,
    ) -> Option<Consumer<E>> {
        let (base, bytes) = (mapping.base.cast(), mapping.bytes);
        let keeper = Keeper::Mapped(mapping);
        let memory = Memory::at(name, base, bytes, places, size, E::WORDS, keeper)?;
        Some(Consumer::over(memory))
    }

    fn over(memory: Memory) -> Consumer<E> {
        let next = memory.consumer().load(Ordering::Relaxed);
        Consumer {
            memory,
            next,
            released: next,
            seen: next,
            _entry: PhantomData,
        }
    }

    /// The next entry, if one is there.
    #[inline]
    pub(crate) fn read(&mut self) -> Result<Option<E>, RingFault> {
        if self.next == self.seen && !self.look()? {
            return Ok(None);
        }
        let mut words = [0; 2];
        for (n, word) in words.iter_mut().enumerate().take(E::WORDS) {
            *word = self.memory.word::<E>(self.next, n).load(Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
        Ok(Some(E::from_words(words)))
    }

    /// Looks whether the other side has published more.
    #[inline]
    fn look(&mut self) -> Result<bool, RingFault> {
        // Acquire: pairs with the producer's Release store. The entries up to this index are written.
        let seen = self.memory.producer().load(Ordering::Acquire);
        let size = self.memory.size;
        let before = self.seen.wrapping_sub(self.released);
        let now = seen.wrapping_sub(self.released);
        if now > size || now < before {
            let most = self.released.wrapping_add(size);
            return Err(self.memory.fault(seen, self.seen, most));
        }
        self.seen = seen;
        Ok(seen != self.next)
    }

    /// Gives what was read back to the other side, to be written over.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            // Release: pairs with the producer's Acquire load. We have read the entries before it writes over them.
            self.memory.consumer().store(self.next, Ordering::Release);
        }
    }

    pub(crate) fn size(&self) -> u32 {
        self.memory.size
    }
}

#[cfg(test)]
mod tests;

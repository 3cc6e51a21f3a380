//! A segment as its scribbler has it: every word, to read and to write.

use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const LINE_WORDS: usize = 8;

pub(crate) struct Words {
    base: NonNull<AtomicU64>,
    count: usize,
}

impl Words {
    /// Maps the whole of it, which must be possible still: before the last seals.
    pub(crate) fn map(segment: &OwnedFd) -> Words {
        let bytes = rustix::fs::fstat(segment).expect("a memfd").st_size as usize;
        let (both, null) = (ProtFlags::READ | ProtFlags::WRITE, std::ptr::null_mut());
        // SAFETY: bounds: a null hint lets the kernel choose an address range that nothing else uses.
        let base = unsafe { rustix::mm::mmap(null, bytes, both, MapFlags::SHARED, segment, 0) };
        Words {
            base: NonNull::new(base.expect("mapped").cast()).expect("an address"),
            count: bytes / size_of::<AtomicU64>(),
        }
    }

    /// How many lines there are.
    pub(crate) fn lines(&self) -> usize {
        self.count / LINE_WORDS
    }

    pub(crate) fn word(&self, line: usize, word: usize) -> &AtomicU64 {
        let index = line * LINE_WORDS + word;
        assert!(index < self.count);
        // SAFETY: bounds: index < count, and so many words are mapped.
        let word = unsafe { self.base.add(index) };
        // SAFETY:
        // alignment: the base is aligned to a page. initialised: any bits are an AtomicU64.
        // aliasing: the memory is accessed through atomics only. lifetime: the reference borrows self, which keeps it mapped.
        unsafe { word.as_ref() }
    }

    pub(crate) fn put(&self, line: usize, word: usize, value: u64) {
        self.word(line, word).store(value, Ordering::Relaxed);
    }

    /// After everything that was put before.
    pub(crate) fn publish(&self, line: usize, word: usize, value: u64) {
        self.word(line, word).store(value, Ordering::Release);
    }

    pub(crate) fn get(&self, line: usize, word: usize) -> u64 {
        self.word(line, word).load(Ordering::Acquire)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: lifetime: the range is this value's own, and whoever has a reference into it borrows it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
        unmapped.expect("it was mapped");
    }
}

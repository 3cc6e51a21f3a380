//! Words side by side that two processes both write: the bare exchange that the bench compares a channel with.
//!
//! A channel never uses this: there, each side writes its own segment only. Both processes must be trusted.

use crate::Errno;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A run of words in shared memory.
pub struct SharedBlock {
    base: NonNull<c_void>,
    bytes: usize,
    words: usize,
    fd: OwnedFd,
}

// SAFETY: aliasing: the memory is reached through atomics only, so it may be used from any thread.
unsafe impl Send for SharedBlock {}
// SAFETY: aliasing: as above.
unsafe impl Sync for SharedBlock {}

impl SharedBlock {
    /// Makes zeroed words, at least one.
    pub fn create(words: usize) -> Result<SharedBlock, Errno> {
        let fd = rustix::fs::memfd_create("tightbeam-block", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, Self::footprint(words) as u64)?;
        Self::open(fd, words)
    }

    /// Maps the words that another process of ours has made.
    pub fn open(fd: OwnedFd, words: usize) -> Result<SharedBlock, Errno> {
        let bytes = Self::footprint(words);
        if rustix::fs::fstat(&fd)?.st_size.unsigned_abs() < bytes as u64 {
            return Err(Errno::INVAL);
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: bounds: a null hint lets the kernel choose an address range that nothing else uses.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, &fd, 0)
        }?;
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        let block = SharedBlock {
            base,
            bytes,
            words: words.max(1),
            fd,
        };
        // SAFETY: bounds: the range is this mapping's own; populating changes no contents.
        unsafe { rustix::mm::madvise(block.base.as_ptr(), bytes, Advice::LinuxPopulateWrite) }?;
        Ok(block)
    }

    fn footprint(words: usize) -> usize {
        (words.max(1) * size_of::<AtomicU64>()).next_multiple_of(crate::memory::page_size())
    }

    /// The descriptor for the other process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The words; the first one starts a page.
    #[inline(always)]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY:
        // bounds: `words * 8` bytes are mapped.
        // alignment: the base is aligned to a page.
        // initialised, aliasing: any bits are an AtomicU64, and the memory is accessed through these atomics only.
        // lifetime: the slice borrows self, which owns the mapping.
        unsafe { std::slice::from_raw_parts(self.base.cast::<AtomicU64>().as_ptr(), self.words) }
    }
}

impl Drop for SharedBlock {
    fn drop(&mut self) {
        // SAFETY: lifetime: the range is this mapping's own, and whoever has its words borrows self.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own range: {unmapped:?}");
    }
}

/// Maps `bytes` of a descriptor for reading, reads the first word of them, and unmaps them again; with all their pages if `populated`,
/// otherwise with the one that is read: what mapping every message by itself costs at the least. For measuring only.
pub fn map_and_unmap(fd: BorrowedFd<'_>, bytes: usize, populated: bool) -> Result<u64, Errno> {
    let flags = match populated {
        true => MapFlags::SHARED | MapFlags::POPULATE,
        false => MapFlags::SHARED,
    };
    // SAFETY: bounds: a null hint lets the kernel choose an address range that nothing else uses.
    let base =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, flags, fd, 0) }?;
    // SAFETY: bounds: a mapping has at least a page. alignment: of a page. initialised: any bits are a word; memory that the file
    // does not have ends this process by a signal. aliasing: read once, volatile, and no reference is made.
    let first = unsafe { base.cast::<u64>().read_volatile() };
    // SAFETY: lifetime: the range was mapped just now, and its address is known here only; nothing refers into it.
    unsafe { rustix::mm::munmap(base, bytes) }?;
    Ok(first)
}

/// Sleeps until `word` is woken or its low half is no longer that of `value`, without a bound.
///
/// For measuring only, so that the bare futex does not pay for a timer; somebody must watch the process that should wake.
pub fn wait_unbounded(word: &AtomicU64, value: u64) {
    let half = if cfg!(target_endian = "little") { 0 } else { 1 };
    let address = word.as_ptr().cast::<u32>().wrapping_add(half);
    let no_timeout = std::ptr::null::<libc::timespec>();
    // SAFETY: lifetime: the word is borrowed for the call, which only reads it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            address,
            libc::FUTEX_WAIT,
            value as u32,
            no_timeout,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn both_mappings_are_the_same_memory() {
        let left = SharedBlock::create(3).unwrap();
        let right = SharedBlock::open(left.fd().try_clone_to_owned().unwrap(), 3).unwrap();
        left.words()[2].store(7, Ordering::Relaxed);
        assert_eq!(right.words()[2].load(Ordering::Relaxed), 7);
        assert_eq!(right.words().len(), 3);
        // Returns at once, for the value differs.
        wait_unbounded(&right.words()[2], 8);
    }

    #[test]
    fn what_is_mapped_and_unmapped_leaves_nothing() {
        let block = SharedBlock::create(1 << 20).unwrap();
        let ranges = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.matches("tightbeam-block").count()
        };
        // Other tests map such blocks too, but not a hundred.
        for _ in 0..100 {
            map_and_unmap(block.fd(), 8 << 20, false).unwrap();
            map_and_unmap(block.fd(), 8 << 20, true).unwrap();
        }
        assert!(ranges() < 100);
        assert!(map_and_unmap(block.fd(), 0, false).is_err());
    }

    #[test]
    fn a_short_descriptor_is_refused() {
        let block = SharedBlock::create(1).unwrap();
        let fd = block.fd().try_clone_to_owned().unwrap();
        assert_eq!(SharedBlock::open(fd, 1 << 20).err(), Some(Errno::INVAL));
    }
}

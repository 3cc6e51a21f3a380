//! A mapping of shared memory between guard pages.

use crate::Errno;
use crate::memory::page_size;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::Pid;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A shared mapping between two guard pages, unmapped on drop.
///
/// An access beside it ends the process that makes it, instead of finding whatever the kernel put there.
pub(crate) struct Mapping {
    pub(crate) base: NonNull<c_void>,
    pub(crate) bytes: usize,
    /// The range with its guards.
    _reserved: Reserved,
}

/// Addresses in which nothing can be accessed, until something is mapped over them. Given back on drop.
struct Reserved {
    base: NonNull<c_void>,
    bytes: usize,
    /// A fork does not have the range, and the kernel may have put something else there.
    owner: Pid,
}

impl Reserved {
    fn new(bytes: usize) -> Result<Reserved, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let null = std::ptr::null_mut();
        // SAFETY:
        // bounds: a null hint lets the kernel choose an address range that nothing else uses.
        // lifetime: the range is unmapped by Reserved's drop only.
        let base = unsafe { rustix::mm::mmap_anonymous(null, bytes, ProtFlags::empty(), flags) }?;
        Ok(Reserved {
            base: NonNull::new(base).ok_or(Errno::NOMEM)?,
            bytes,
            owner: rustix::process::getpid(),
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.owner != rustix::process::getpid() {
            return;
        }
        // SAFETY: lifetime: the range was reserved by this process for this value alone, with all that was mapped over it,
        // and whoever has an address in it borrows or owns the Mapping.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own range: {unmapped:?}");
    }
}

impl Mapping {
    /// Maps `bytes`, a multiple of `block`, at an address that is one too. A block is a page, small or huge.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        bytes: usize,
        block: usize,
        prot: ProtFlags,
    ) -> Result<Mapping, Errno> {
        Mapping::from_offset(fd, 0, bytes, block, prot)
    }

    /// The same from an offset in the file, which for some files says what to map.
    pub(crate) fn from_offset(
        fd: BorrowedFd<'_>,
        offset: u64,
        bytes: usize,
        block: usize,
        prot: ProtFlags,
    ) -> Result<Mapping, Errno> {
        let guard = page_size();
        let block = block.max(guard);
        let whole = bytes.checked_add(guard + block).ok_or(Errno::NOMEM)?;
        // A guard in front, up to a block of which the rest aligns what follows; and at least a guard behind.
        let reserved = Reserved::new(whole.checked_add(guard).ok_or(Errno::NOMEM)?)?;
        let front = reserved.base.addr().get() + guard;
        let shift = guard + (front.next_multiple_of(block) - front);
        // SAFETY: bounds: shift <= guard + block - 1, and `bytes` and a guard more were reserved behind that.
        let base = unsafe { reserved.base.byte_add(shift) };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY:
        // bounds, aliasing: the range is inside what was reserved above, which nothing else uses.
        // lifetime: it is unmapped with what was reserved.
        let mapped = unsafe { rustix::mm::mmap(base.as_ptr(), bytes, prot, flags, fd, offset) }?;
        debug_assert_eq!(mapped, base.as_ptr());
        let mapping = Mapping {
            base,
            bytes,
            _reserved: reserved,
        };
        // A fork would otherwise share a writable mapping.
        mapping.advise(Advice::LinuxDontFork)?;
        Ok(mapping)
    }

    /// A mapping for reading and writing, with all its pages.
    pub(crate) fn populated(
        fd: BorrowedFd<'_>,
        bytes: usize,
        block: usize,
    ) -> Result<Mapping, Errno> {
        let mapping = Mapping::new(fd, bytes, block, ProtFlags::READ | ProtFlags::WRITE)?;
        mapping.advise(Advice::LinuxPopulateWrite)?;
        Ok(mapping)
    }

    pub(crate) fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: bounds: the range is this mapping's own. The advices used populate it or set its fork flag; neither
        // changes its contents.
        unsafe { rustix::mm::madvise(self.base.as_ptr(), self.bytes, advice) }
    }

    /// Makes a range of whole pages read-only, or writable again.
    pub(crate) fn protect(&self, from: usize, bytes: usize, writable: bool) -> Result<(), Errno> {
        let inside = from.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if !inside || !from.is_multiple_of(page_size()) {
            return Err(Errno::INVAL);
        }
        let flags = match writable {
            true => MprotectFlags::READ | MprotectFlags::WRITE,
            false => MprotectFlags::READ,
        };
        let at = self.base.as_ptr().wrapping_byte_add(from);
        // SAFETY: bounds: the range lies in this mapping, as was just looked at; its contents do not change.
        unsafe { rustix::mm::mprotect(at, bytes, flags) }
    }

    pub(crate) fn lock(&self) -> Result<(), Errno> {
        // SAFETY: bounds: the range is this mapping's own; locking changes no contents.
        unsafe { rustix::mm::mlock(self.base.as_ptr(), self.bytes) }
    }
}

// SAFETY: aliasing: a Mapping is an address range that it alone unmaps; nothing about it belongs to a thread. What is shared
// through it is accessed by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: aliasing: as above; what can be done with a shared reference are system calls on the range, from any thread.
unsafe impl Sync for Mapping {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// The line of `/proc/self/maps` in which an address is: first and last address, and what may be done there.
    fn mapped_at(address: usize) -> Option<(usize, usize, String)> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let [from, to] = [from, to].map(|word| usize::from_str_radix(word, 16).unwrap());
            (from..to)
                .contains(&address)
                .then(|| (from, to, rest[..4].to_owned()))
        })
    }

    #[test]
    fn nothing_can_be_accessed_beside_a_mapping() {
        let fd = rustix::fs::memfd_create("guarded", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 1 << 21).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let page = page_size();
        for (bytes, block) in [(page, page), (3 * page, 0), (1 << 21, 1 << 21)] {
            let mapping = Mapping::new(fd.as_fd(), bytes, block, both).unwrap();
            let base = mapping.base.addr().get();
            assert!(base.is_multiple_of(block.max(page)));
            let here = mapped_at(base).unwrap();
            assert_eq!(here, (base, base + bytes, "rw-s".into()));
            assert_eq!(mapped_at(base - 1).unwrap().2, "---p");
            assert_eq!(mapped_at(base + bytes).unwrap().2, "---p");
        }
    }
}

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

/// Whether this process may have so many addresses more now, in one piece.
pub(crate) fn has_room(bytes: usize) -> bool {
    Reserved::new(bytes).is_ok()
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

impl Reserved {
    /// Gives the range back, of which a part could not be mapped over. The kernel may have taken that part away before it failed, as it does
    /// where there are no huge pages: then another thread may have it by now, and it is not ours to unmap.
    fn give_up(self, from: usize, bytes: usize) {
        let part = self.base.as_ptr().wrapping_byte_add(from);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY:
        // bounds: the part was inside what was reserved. aliasing: nothing is replaced: it fails where anything is mapped.
        // lifetime: if it succeeds the whole range is this value's again, and unmapped with it.
        let again = unsafe { rustix::mm::mmap_anonymous(part, bytes, ProtFlags::empty(), flags) };
        match again {
            Ok(_) => drop(self),
            // It is ours still, or somebody else's: nobody knows. Addresses without memory stay reserved then.
            Err(_) => self.leave(from, from + bytes),
        }
    }

    /// Gives back all but a part, of which it is not known whose it is.
    fn leave(self, from: usize, to: usize) {
        let behind = self.base.as_ptr().wrapping_byte_add(to);
        let ends = [
            (self.base.as_ptr(), from),
            (behind, self.bytes.saturating_sub(to)),
        ];
        for (base, bytes) in ends {
            // SAFETY: bounds: in front of the part, and behind it. lifetime: as in `drop`, which does not run any more.
            let _ = unsafe { rustix::mm::munmap(base, bytes) };
        }
        std::mem::forget(self);
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
        let mapped = unsafe { rustix::mm::mmap(base.as_ptr(), bytes, prot, flags, fd, offset) };
        let mapped = match mapped {
            Ok(mapped) => mapped,
            Err(errno) => {
                reserved.give_up(shift, bytes);
                return Err(errno);
            }
        };
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

    /// Populates it for reading, a part at a time: meanwhile no other thread of the process can map or unmap anything.
    pub(crate) fn populate_for_reading(&self) -> Result<(), Errno> {
        const PART: usize = 1 << 20;
        for from in (0..self.bytes).step_by(PART) {
            let bytes = PART.min(self.bytes - from);
            let at = self.base.as_ptr().wrapping_byte_add(from);
            // SAFETY: bounds: the range lies in this mapping. It is populated, which does not change its contents.
            unsafe { rustix::mm::madvise(at, bytes, Advice::LinuxPopulateRead) }?;
        }
        Ok(())
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

    /// Where there are no huge pages the kernel takes the reserved range away before it says so. Another thread may have it by then.
    #[test]
    fn a_mapping_that_fails_takes_nothing_from_others() {
        const ROUNDS: usize = 10_000;
        let free = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
        if free.trim() != "0" {
            println!("skipped: huge pages are reserved on this machine");
            return;
        }
        let both = ProtFlags::READ | ProtFlags::WRITE;
        std::thread::scope(|scope| {
            let failing = scope.spawn(|| {
                let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
                let huge = rustix::fs::memfd_create("huge", flags).unwrap();
                let block = 2 << 20;
                rustix::fs::ftruncate(&huge, block as u64).unwrap();
                for _ in 0..ROUNDS {
                    let failed = Mapping::new(huge.as_fd(), block, block, both);
                    assert_eq!(failed.err(), Some(Errno::NOMEM));
                }
            });
            let fd = rustix::fs::memfd_create("small", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&fd, 1 << 16).unwrap();
            while !failing.is_finished() {
                // What is not mapped cannot be populated.
                let mapping = Mapping::populated(fd.as_fd(), 1 << 16, 0).unwrap();
                for _ in 0..10 {
                    mapping.advise(Advice::LinuxPopulateWrite).unwrap();
                }
            }
        });
    }
}

//! Memory for frames: memfds that only their owner can write, and that readers map once.
//!
//! ```text
//!   owner:   memfd_create -> ftruncate -> mmap -> populate -> all four seals -> fd to each reader
//!   reader:  fd -> all seals? -> size? -> all pages there? -> mmap read-only -> populate
//! ```
//!
//! Unlike a segment (`memory`) such memory is read back by its owner, and may be read by several processes. So it is sealed
//! with everything before anybody else has it; a reader can do nothing to it, and maps it read-only.

use crate::Errno;
use crate::apart::{self, Apart};
use crate::control::Passed;
use crate::mapping::Mapping;
use crate::memory::{
    ALL_SEALS, LINE, PeerMemoryError, check_pages, check_seals, page_size, sealable,
};
use rustix::fs::MemfdFlags;
use rustix::mm::ProtFlags;
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use tightbeam_segment::{Backing, FrameError, FrameMemory, MakeFrames};

/// Makes [`OwnFrames`].
#[derive(Debug, Clone, Copy, Default)]
pub struct FrameMaker;

/// Of this size the next memory is made ahead: most channels need it once, and where the kernel, or the host below it, has to find pages first
/// it takes 0.15 ms, and above 1 ms once in 4,500 times. That is not for a poll to wait for.
const SPARE: usize = 256 << 10;

/// It, and the process whose it is.
static NEXT: Mutex<Option<(u32, OwnFrames)>> = Mutex::new(None);

/// The one that was made ahead, if it is ready. Has another one made.
fn next() -> Option<OwnFrames> {
    // Who finds it locked does not wait.
    let next = NEXT.try_lock().ok()?.take();
    apart::run(|| {
        if let Ok(made) = OwnFrames::create(SPARE)
            && let Ok(mut next) = NEXT.lock()
        {
            next.get_or_insert((std::process::id(), made));
        }
    });
    // A fork does not have its parent's memory.
    next.filter(|(owner, _)| *owner == std::process::id())
        .map(|(_, next)| next)
}

impl MakeFrames for FrameMaker {
    fn make(&self, bytes: usize) -> Result<Box<dyn FrameMemory>, FrameError> {
        if bytes == SPARE
            && let Some(next) = next()
        {
            return Ok(Box::new(next));
        }
        let made = OwnFrames::create(bytes).map_err(|(call, errno)| FrameError::System {
            call,
            bytes,
            errno: errno.raw_os_error(),
        })?;
        Ok(Box::new(made))
    }
}

/// Memory of mine, in which frames lie: mapped writable, populated, sealed.
pub struct OwnFrames {
    /// In front of the mapping: whoever drops the last of both frees the pages.
    fd: OwnedFd,
    mapping: Apart<Mapping>,
}

impl OwnFrames {
    fn create(bytes: usize) -> Result<OwnFrames, (&'static str, Errno)> {
        let fd = sealable("tightbeam-frames", MemfdFlags::empty())?;
        let bytes = bytes.next_multiple_of(page_size());
        rustix::fs::ftruncate(&fd, bytes as u64).map_err(|e| ("size", e))?;
        let mapping = Mapping::populated(fd.as_fd(), bytes, page_size());
        let mapping = mapping.map_err(|e| ("map and populate", e))?;
        rustix::fs::fcntl_add_seals(&fd, ALL_SEALS).map_err(|e| ("seal", e))?;
        let mapping = mapping.into();
        Ok(OwnFrames { fd, mapping })
    }

    /// The descriptor to pass to readers.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped for reading and writing, but for what `protect` was asked for; all pages were populated, and the seals
//    forbid shrinking and holes;
// 3. the address is given to nobody else in this crate. FUTURE_WRITE was put on before the descriptor was passed to anybody: so
//    no other process can map the pages writable, or write them through a descriptor.
unsafe impl FrameMemory for OwnFrames {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base.cast()
    }

    fn bytes(&self) -> usize {
        self.mapping.bytes
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn protect(&self, from: usize, bytes: usize, writable: bool) -> Result<(), FrameError> {
        let done = self.mapping.protect(from, bytes, writable);
        done.map_err(|errno| FrameError::System {
            call: "protect",
            bytes,
            errno: errno.raw_os_error(),
        })
    }
}

/// A peer's memory with frames: checked, mapped read-only, populated.
pub struct PeerFrames {
    /// It is the peer who decides how much it is.
    mapping: Apart<Mapping>,
}

impl PeerFrames {
    /// Maps `bytes` of what a peer has passed: a memfd with all seals, of that size, of which every page is there; and populates it. Takes
    /// some 80 us a MiB.
    pub fn map(fd: impl Into<Apart<Passed>>, bytes: usize) -> Result<PeerFrames, PeerMemoryError> {
        // What is no memfd is not closed here, nor what is refused.
        let fd = fd.into();
        // Seals first: once they are there, size and pages cannot change any more.
        let seals = rustix::fs::fcntl_get_seals(&*fd).map_err(PeerMemoryError::NotMemfd)?;
        check_seals(seals, ALL_SEALS)?;
        // Nobody passes huge pages for frames. Of those it cannot be asked where holes are, and who reads one gets SIGBUS if none is left.
        let system = rustix::fs::fstatfs(&*fd).map_err(PeerMemoryError::NotMemfd)?;
        if system.f_type == libc::HUGETLBFS_MAGIC {
            return Err(PeerMemoryError::NotMemfd(Errno::OPNOTSUPP));
        }
        let stat = rustix::fs::fstat(&*fd).map_err(PeerMemoryError::NotMemfd)?;
        let whole = usize::try_from(stat.st_blksize)
            .unwrap_or(0)
            .max(page_size());
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        let short = PeerMemoryError::Short {
            found,
            needed: bytes,
        };
        // Of a file that could have huge pages, but has small ones, the block size says more than there is.
        let most = bytes.checked_next_multiple_of(whole).ok_or(short)?;
        if found > most as u64 {
            return Err(PeerMemoryError::Long { found, most });
        }
        let (block, mapped) = match most as u64 == found {
            true => (whole, most),
            false => (page_size(), bytes.next_multiple_of(page_size())),
        };
        if found < mapped as u64 || bytes == 0 {
            return Err(short);
        }
        check_pages(fd.as_fd(), mapped, most)?;
        let mapping = Mapping::new(fd.as_fd(), mapped, block, ProtFlags::READ);
        let mapping = mapping.map_err(PeerMemoryError::Map)?;
        mapping
            .populate_for_reading()
            .map_err(PeerMemoryError::Map)?;
        // Not the last reference.
        drop(fd.into_inner());
        let mapping = mapping.into();
        Ok(PeerFrames { mapping })
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped readable;
// 3. size and pages were checked after the seals, which forbid to shrink it and to punch holes;
// 4. the address is given to nobody else in this crate.
unsafe impl Backing for PeerFrames {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base.cast()
    }

    fn lines(&self) -> usize {
        self.mapping.bytes / LINE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, SealFlags};

    fn duplicate(frames: &OwnFrames) -> OwnedFd {
        frames.fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn a_reader_sees_what_the_owner_writes_and_cannot_change_it() {
        let frames = OwnFrames::create(10_000).unwrap();
        assert_eq!(frames.bytes(), 12_288);
        let seen = PeerFrames::map(duplicate(&frames), 12_288).unwrap();
        assert_eq!(seen.lines() * LINE, 12_288);
        let written = FrameMemory::base(&frames).as_ptr().wrapping_add(9_999);
        let read = Backing::base(&seen).as_ptr().wrapping_add(9_999);
        // SAFETY: bounds: the mapping has this byte. aliasing: nobody else accesses it.
        unsafe { written.write(7) };
        // SAFETY: bounds, aliasing: as above. initialised: it was written through the other mapping.
        let read = unsafe { read.read_volatile() };
        assert_eq!(read, 7);
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let mapped = Mapping::new(frames.fd(), 4096, 4096, both);
        assert!(matches!(mapped, Err(Errno::PERM)));
        let written = rustix::io::pwrite(frames.fd(), b"no", 0);
        assert_eq!(written, Err(Errno::PERM));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = rustix::fs::fallocate(frames.fd(), hole, 0, 4096);
        assert_eq!(punched, Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(frames.fd(), 0), Err(Errno::PERM));
    }

    #[test]
    fn what_is_protected_can_be_read_and_written_again_later() {
        let frames = OwnFrames::create(3 * 4096).unwrap();
        let base = FrameMemory::base(&frames).addr().get();
        let rights = |page: usize| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let address = base + page * 4096;
            let line = maps.lines().find(|line| {
                let range = line.split(' ').next().unwrap();
                let ends: Vec<usize> = range
                    .split('-')
                    .map(|end| usize::from_str_radix(end, 16).unwrap())
                    .collect();
                (ends[0]..ends[1]).contains(&address)
            });
            line.unwrap().split(' ').nth(1).unwrap()[..2].to_owned()
        };
        frames.protect(4096, 4096, false).unwrap();
        assert_eq!([0, 1, 2].map(rights), ["rw", "r-", "rw"]);
        frames.protect(0, 3 * 4096, true).unwrap();
        assert_eq!([0, 1, 2].map(rights), ["rw", "rw", "rw"]);
        // Neither between pages nor beside the memory.
        for (from, bytes) in [(1, 4096), (4096, 3 * 4096), (0, usize::MAX)] {
            assert!(frames.protect(from, bytes, false).is_err());
        }
        assert_eq!([0, 1, 2].map(rights), ["rw", "rw", "rw"]);
    }

    #[test]
    fn what_could_change_under_its_reader_is_refused() {
        let frames = OwnFrames::create(8192).unwrap();
        let refused = |fd: OwnedFd, bytes| PeerFrames::map(fd, bytes).err();
        assert!(matches!(
            refused(duplicate(&frames), 8193),
            Some(PeerMemoryError::Short { found: 8192, .. })
        ));
        assert!(refused(duplicate(&frames), 0).is_some());
        assert!(refused(duplicate(&frames), usize::MAX).is_some());
        // Of the right size, with all seals, and a hole.
        let holed = sealable("holed", MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&holed, 8192).unwrap();
        rustix::io::pwrite(&holed, b"one page", 0).unwrap();
        rustix::fs::fcntl_add_seals(&holed, ALL_SEALS).unwrap();
        assert!(matches!(
            refused(holed, 8192),
            Some(PeerMemoryError::Short { found: 4096, .. })
        ));
        for missing in [
            SealFlags::SHRINK,
            SealFlags::GROW,
            SealFlags::SEAL,
            SealFlags::FUTURE_WRITE,
        ] {
            let unsealed = sealable("unsealed", MemfdFlags::empty()).unwrap();
            rustix::fs::ftruncate(&unsealed, 8192).unwrap();
            rustix::io::pwrite(&unsealed, &[1; 8192], 0).unwrap();
            rustix::fs::fcntl_add_seals(&unsealed, ALL_SEALS.difference(missing)).unwrap();
            assert!(matches!(
                refused(unsealed, 8192),
                Some(PeerMemoryError::Seals { .. })
            ));
        }
        // As many pages as there should be, behind its end.
        let elsewhere = sealable("elsewhere", MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&elsewhere, 8192).unwrap();
        rustix::fs::fallocate(&elsewhere, FallocateFlags::KEEP_SIZE, 8192, 8192).unwrap();
        rustix::fs::fcntl_add_seals(&elsewhere, ALL_SEALS).unwrap();
        assert!(matches!(
            refused(elsewhere, 8192),
            Some(PeerMemoryError::Short { found: 0, .. })
        ));
        let huge = rustix::fs::memfd_create(
            "huge",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB,
        )
        .unwrap();
        rustix::fs::ftruncate(&huge, 2 << 20).unwrap();
        rustix::fs::fcntl_add_seals(&huge, ALL_SEALS).unwrap();
        let unsupported = Some(PeerMemoryError::NotMemfd(Errno::OPNOTSUPP));
        assert_eq!(refused(huge, 8192), unsupported);
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(
            refused(reader.into(), 64),
            Some(PeerMemoryError::NotMemfd(_))
        ));
    }
}

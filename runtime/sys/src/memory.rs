//! Segments: memfds that their owner makes, both sides map, and then nobody can change the shape of (D1).
//!
//! ```text
//!   owner:  memfd_create -> ftruncate -> mmap -> populate -> mlock? -> seals SHRINK | GROW -> fd to the peer
//!   peer:   fd -> seals? -> size? -> mmap -> seals FUTURE_WRITE | SEAL -> all pages there? -> populate
//!   owner:  all four seals? -> fill holes -> the channel is open
//! ```
//!
//! The four seals mean: nobody can truncate, punch holes, write through a descriptor, or map it writable any more. What
//! writes are mappings that were there before: the owner's, and what the one process that reads made or let others make.
//!
//! # Why the reader's mapping is writable
//!
//! A line that another CPU writes reaches its reader later through a read-only page than through a writable one: a round trip
//! takes 1.35 to 1.6x instead of 1.0x of a bare cache line's on the build machine (AMD EPYC 9004), whatever else is the
//! same: address, page age, populated or not, mapped so or made so by `mprotect`, private or shared.
//!
//! And it hurts nobody but the reader: a segment holds only what its owner writes for this one reader and *never reads back*
//! (`OwnLines` has no load). A reader that writes there changes what it will itself read, and nothing else. Memory that
//! others read too, or that its owner reads, must be sealed with all four seals before it is passed; then the reader maps it
//! read-only. So does a segment in huge pages: a hole that a peer punches before the last seals would kill its owner by
//! SIGBUS there, where small pages come back zeroed.

use crate::Errno;
use crate::apart::Apart;
use crate::control::Passed;
use crate::mapping::Mapping;
use rustix::fs::{MemfdFlags, Mode, SealFlags, SeekFrom};
use rustix::mm::{Advice, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use tightbeam_segment::{Backing, WritableBacking};

/// What a segment is sealed with before it is passed on: its size stays.
pub(crate) const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// What its reader adds once it has mapped it: no holes, no further writable mapping, no further seal.
const LAST_SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SEAL);
pub(crate) const ALL_SEALS: SealFlags = SIZE_SEALS.union(LAST_SEALS);

pub(crate) const LINE: usize = 64;

/// How much something is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Want {
    /// Do not ask for it.
    #[default]
    No,
    /// Ask for it, go on without it, and report which it was.
    Try,
    /// Fail without it.
    Require,
}

/// What kind of memory a segment shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryOptions {
    /// Lock it into RAM (`mlock`).
    pub lock: Want,
    /// Take it from the reserved huge pages (`MFD_HUGETLB`, the default huge page size).
    pub huge_pages: Want,
}

/// What kind of memory a segment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReport {
    /// Bytes mapped.
    pub bytes: usize,
    /// Locked into RAM.
    pub locked: bool,
    /// In huge pages.
    pub huge_pages: bool,
    /// The peer's segment is mapped read-only, because it came with all seals (as one in huge pages does): what it says
    /// arrives later.
    pub peer_read_only: bool,
}

/// Why there is no segment. Each says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A system call failed for want of memory or descriptors.
    #[error("cannot {call} a segment of {bytes} bytes: {errno}")]
    System {
        /// The step that failed.
        call: &'static str,
        /// Size of the segment in bytes.
        bytes: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Huge pages are required, but none are free.
    #[error(
        "no free huge pages for {bytes} bytes ({errno}); reserve some with `sysctl vm.nr_hugepages=N`, or do not require them"
    )]
    NoHugePages {
        /// Size of the segment in bytes.
        bytes: usize,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Locking is required, but `RLIMIT_MEMLOCK` is too small.
    #[error(
        "cannot lock {bytes} bytes: the limit is {limit} bytes (`ulimit -l` shows it in KiB); raise RLIMIT_MEMLOCK, or do not require locking"
    )]
    LockLimit {
        /// Size of the segment in bytes.
        bytes: usize,
        /// The soft limit in bytes.
        limit: u64,
    },
}

/// Why a peer's descriptor is not mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMemoryError {
    /// Not a memfd.
    #[error("the descriptor is no memfd ({0})")]
    NotMemfd(Errno),
    /// A seal is missing, so the peer could take the memory away under the reader.
    #[error("the segment lacks seals: it has {found:#x}, needed are {needed:#x}")]
    Seals {
        /// Seals found, as `F_SEAL_*` bits.
        found: u32,
        /// Seals needed.
        needed: u32,
    },
    /// Smaller than was said, or with holes.
    #[error("the segment has {found} bytes, {needed} are needed")]
    Short {
        /// Its size in bytes, or what of it is there.
        found: u64,
        /// The size needed in bytes.
        needed: usize,
    },
    /// Larger than was said: whoever has the last of it would free all of that.
    #[error("the segment has {found} bytes, there may be {most}")]
    Long {
        /// Its size in bytes, or what is there.
        found: u64,
        /// The most that there may be.
        most: usize,
    },
    /// It cannot be mapped.
    #[error("cannot map the segment: {0}")]
    Map(Errno),
}

/// Page size in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// 128 bits from the kernel's random number generator.
pub fn random_words() -> Result<[u64; 2], Errno> {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let (words, _) = bytes.as_chunks::<8>();
    Ok([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])])
}

/// An empty memfd that other users cannot open, and that can be sealed.
pub(crate) fn sealable(name: &str, flags: MemfdFlags) -> Result<OwnedFd, (&'static str, Errno)> {
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let fd = rustix::fs::memfd_create(name, flags).map_err(|e| ("create", e))?;
    // The default mode would let another user reopen it through /proc.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|e| ("chmod", e))?;
    Ok(fd)
}

/// A segment of mine: mapped writable, populated, sealed.
pub struct OwnMemory {
    mapping: Mapping,
    fd: OwnedFd,
    report: MemoryReport,
}

impl OwnMemory {
    /// Makes a zeroed segment of at least `bytes`.
    pub fn create(bytes: usize, options: &MemoryOptions) -> Result<OwnMemory, MemoryError> {
        let mut huge = None;
        if options.huge_pages != Want::No {
            match Self::mapped(bytes, MemfdFlags::HUGETLB) {
                Ok(found) => huge = Some(found),
                Err((_, errno)) if options.huge_pages == Want::Require => {
                    return Err(MemoryError::NoHugePages { bytes, errno });
                }
                Err(_) => {}
            }
        }
        let huge_pages = huge.is_some();
        let (fd, mapping) = match huge {
            Some(found) => found,
            None => Self::mapped(bytes, MemfdFlags::empty())
                .map_err(|(call, errno)| MemoryError::System { call, bytes, errno })?,
        };
        let mut locked = false;
        if options.lock != Want::No {
            locked = mapping.lock().is_ok();
            if !locked && options.lock == Want::Require {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
                return Err(MemoryError::LockLimit {
                    bytes: mapping.bytes,
                    limit: limit.current.unwrap_or(u64::MAX),
                });
            }
        }
        let seals = if huge_pages { ALL_SEALS } else { SIZE_SEALS };
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|errno| MemoryError::System {
            call: "seal",
            bytes,
            errno,
        })?;
        let report = MemoryReport {
            bytes: mapping.bytes,
            locked,
            huge_pages,
            peer_read_only: false,
        };
        Ok(OwnMemory {
            mapping,
            fd,
            report,
        })
    }

    fn mapped(
        bytes: usize,
        flags: MemfdFlags,
    ) -> Result<(OwnedFd, Mapping), (&'static str, Errno)> {
        let fd = sealable("tightbeam", flags)?;
        let block = rustix::fs::fstat(&fd).map_err(|e| ("stat", e))?.st_blksize as usize;
        let bytes = bytes.next_multiple_of(block.max(1));
        rustix::fs::ftruncate(&fd, bytes as u64).map_err(|e| ("size", e))?;
        let mapping =
            Mapping::populated(fd.as_fd(), bytes, block).map_err(|e| ("map and populate", e))?;
        Ok((fd, mapping))
    }

    /// What it got.
    pub fn report(&self) -> MemoryReport {
        self.report
    }

    /// The descriptor to pass to the peer, and to ask [`is_settled`] of afterwards.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped readable;
// 3. all pages were populated, and the seals forbid shrinking. Holes can be punched until the peer has put the last seals on
//    it, but not in huge pages, and `is_settled` has small ones filled before anything is stored;
// 4. the address is given to nobody else in this crate.
unsafe impl Backing for OwnMemory {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base.cast()
    }

    fn lines(&self) -> usize {
        self.mapping.bytes / LINE
    }
}

// SAFETY: bounds: all of the mapping is writable, for as long as it lives.
unsafe impl WritableBacking for OwnMemory {}

/// Whether the peer has put the last seals on a segment of mine, as it does once it has mapped it. If so all pages are there.
///
/// Holes that it punched before are filled; where the kernel has no page or address left (strict overcommit, a full control
/// group, a limit) that is the error. To find it out at the first store would be fatal.
pub fn is_settled(segment: BorrowedFd<'_>) -> Result<bool, Errno> {
    let sealed = rustix::fs::fcntl_get_seals(segment).is_ok_and(|seals| seals.contains(ALL_SEALS));
    if sealed {
        fill_holes(segment)?;
    }
    Ok(sealed)
}

/// Has the kernel put a page wherever there is none, through a mapping of its own.
fn fill_holes(segment: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(segment)?;
    let [bytes, block] = [stat.st_size, stat.st_blksize].map(|n| usize::try_from(n).unwrap_or(0));
    let mapping = Mapping::new(segment, bytes, block, ProtFlags::READ)?;
    mapping.advise(Advice::LinuxPopulateRead)
}

/// A peer's segment: checked, mapped, sealed, populated.
pub struct PeerMemory {
    /// Its owner may leave it to us to free the pages, and there may be more of them than we have mapped.
    mapping: Apart<Mapping>,
    read_only: bool,
}

impl PeerMemory {
    /// Maps what a peer has passed, which must be a memfd of `bytes` in whole pages, all of them there, whose size is sealed; and
    /// puts the last seals on it. If they are there already it is mapped read-only.
    pub fn map(fd: impl Into<Apart<Passed>>, bytes: usize) -> Result<PeerMemory, PeerMemoryError> {
        // What is no memfd is not closed here, nor what is refused.
        let fd = fd.into();
        // Seals first: once they are there, the size cannot change any more.
        let seals = rustix::fs::fcntl_get_seals(&*fd).map_err(PeerMemoryError::NotMemfd)?;
        let read_only = seals.contains(SealFlags::FUTURE_WRITE);
        check_seals(seals, if read_only { ALL_SEALS } else { SIZE_SEALS })?;
        let stat = rustix::fs::fstat(&*fd).map_err(PeerMemoryError::NotMemfd)?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found < bytes as u64 {
            return Err(PeerMemoryError::Short {
                found,
                needed: bytes,
            });
        }
        let whole = usize::try_from(stat.st_blksize).unwrap_or(0).max(1);
        let most = bytes.next_multiple_of(whole.max(page_size()));
        if found > most as u64 {
            return Err(PeerMemoryError::Long { found, most });
        }
        // Of a file that could have huge pages, but has small ones, the block size says more than there is.
        let (block, mapped) = match most as u64 == found {
            true => (whole, most),
            false => (page_size(), bytes.next_multiple_of(page_size())),
        };
        let prot = match read_only {
            true => ProtFlags::READ,
            false => ProtFlags::READ | ProtFlags::WRITE,
        };
        let mapping =
            Mapping::new(fd.as_fd(), mapped, block, prot).map_err(PeerMemoryError::Map)?;
        if !read_only {
            // A descriptor that its owner opened for reading only cannot be sealed; then the check says what is missing.
            let _ = rustix::fs::fcntl_add_seals(&*fd, LAST_SEALS);
            let seals = rustix::fs::fcntl_get_seals(&*fd).map_err(PeerMemoryError::NotMemfd)?;
            check_seals(seals, ALL_SEALS)?;
        }
        // Only now: there can be no further hole.
        check_pages(fd.as_fd(), mapped, most)?;
        let populate = match read_only {
            true => Advice::LinuxPopulateRead,
            false => Advice::LinuxPopulateWrite,
        };
        mapping.advise(populate).map_err(PeerMemoryError::Map)?;
        // Not the last reference.
        drop(fd.into_inner());
        let mapping = mapping.into();
        Ok(PeerMemory { mapping, read_only })
    }

    /// Whether it is mapped read-only: then what the peer writes arrives later.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// That all of what is mapped is there, and little more. Its owner has populated it; a hole would be filled at our expense.
pub(crate) fn check_pages(
    fd: BorrowedFd<'_>,
    needed: usize,
    most: usize,
) -> Result<(), PeerMemoryError> {
    let stat = rustix::fs::fstat(fd).map_err(PeerMemoryError::NotMemfd)?;
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    let there = blocks.saturating_mul(512);
    if there > most as u64 {
        return Err(PeerMemoryError::Long { found: there, most });
    }
    // What was put behind the end before the size was sealed is counted, too, and could make up for a hole. Huge pages cannot be asked.
    let hole = rustix::fs::seek(fd, SeekFrom::Hole(0)).unwrap_or(there);
    match there.min(hole) {
        found if found < needed as u64 => Err(PeerMemoryError::Short { found, needed }),
        _ => Ok(()),
    }
}

pub(crate) fn check_seals(found: SealFlags, needed: SealFlags) -> Result<(), PeerMemoryError> {
    match found.contains(needed) {
        true => Ok(()),
        false => Err(PeerMemoryError::Seals {
            found: found.bits(),
            needed: needed.bits(),
        }),
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped readable;
// 3. its size and pages were checked after its seals, which forbid shrinking and holes, and then all of it was populated;
// 4. the address is given to nobody else in this crate.
unsafe impl Backing for PeerMemory {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base.cast()
    }

    fn lines(&self) -> usize {
        self.mapping.bytes / LINE
    }
}

/// A few words that two processes both write: for measuring the hardware floor, never for a channel.
pub struct SharedWords {
    mapping: Mapping,
    fd: OwnedFd,
    words: usize,
}

/// Each word has a pair of cache lines for itself.
const WORD_STRIDE: usize = 128;

impl SharedWords {
    /// Makes `words` zeroed words, at least one.
    pub fn create(words: usize) -> std::io::Result<SharedWords> {
        let fd = rustix::fs::memfd_create("tightbeam-words", MemfdFlags::CLOEXEC)?;
        let bytes = (words.max(1) * WORD_STRIDE).next_multiple_of(page_size());
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        Self::open(fd, words)
    }

    /// Maps the words that another process of ours has made. Both must be trusted.
    pub fn open(fd: OwnedFd, words: usize) -> std::io::Result<SharedWords> {
        let bytes = (words.max(1) * WORD_STRIDE).next_multiple_of(page_size());
        if rustix::fs::fstat(&fd)?.st_size < bytes as i64 {
            return Err(Errno::INVAL.into());
        }
        let mapping = Mapping::populated(fd.as_fd(), bytes, page_size())?;
        Ok(SharedWords { mapping, fd, words })
    }

    /// The descriptor for the other process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The word with this index.
    ///
    /// # Panics
    ///
    /// If there are fewer words.
    #[inline(always)]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words);
        // SAFETY: bounds: index < words, and `words * WORD_STRIDE` bytes are mapped.
        let word = unsafe { self.mapping.base.cast::<u8>().add(index * WORD_STRIDE) };
        // SAFETY:
        // alignment: the base is aligned to a page and the stride is a multiple of 8.
        // initialised, aliasing: any bits are an AtomicU64, and the memory is accessed through these atomics only.
        // lifetime: the reference borrows self, which owns the mapping.
        unsafe { word.cast::<AtomicU64>().as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn duplicate(memory: &OwnMemory) -> OwnedFd {
        memory.fd().try_clone_to_owned().unwrap()
    }

    /// What a hostile holder of the descriptor may try, and what the kernel says.
    fn tries(fd: BorrowedFd<'_>) -> [Result<(), Errno>; 5] {
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        [
            rustix::fs::ftruncate(fd, 4096),
            rustix::fs::ftruncate(fd, 1 << 20),
            rustix::fs::fallocate(fd, hole, 0, 4096),
            rustix::io::pwrite(fd, b"x", 0).map(|_| ()),
            Mapping::new(fd, 4096, 4096, both).map(|_| ()),
        ]
    }

    #[test]
    fn once_its_reader_has_mapped_it_nobody_can_change_it_through_its_descriptor() {
        let memory = OwnMemory::create(8192, &MemoryOptions::default()).unwrap();
        assert_eq!(is_settled(memory.fd()), Ok(false));
        let shape = &tries(memory.fd())[..2];
        assert_eq!(shape, [Err(Errno::PERM); 2]);
        let seen = PeerMemory::map(duplicate(&memory), 8192).unwrap();
        assert_eq!(is_settled(memory.fd()), Ok(true));
        assert!(!seen.is_read_only());
        assert_eq!(tries(memory.fd()), [Err(Errno::PERM); 5]);
        // Nor through a mapping: holes are refused there as well.
        let address = seen.mapping.base.as_ptr();
        // SAFETY: bounds: the range is the mapping's own; the kernel is expected to refuse.
        let done = unsafe { libc::madvise(address, 4096, libc::MADV_REMOVE) };
        assert_eq!(done, -1);
        let refused = std::io::Error::last_os_error().raw_os_error();
        assert_eq!(refused, Some(libc::EPERM));
        // And a second reader only reads.
        let second = PeerMemory::map(duplicate(&memory), 8192).unwrap();
        assert!(second.is_read_only());
    }

    /// What its reader does before the last seals does no harm: the owner finds new pages where there were holes.
    #[test]
    fn a_hole_punched_before_the_last_seals_is_filled() {
        let memory = OwnMemory::create(8192, &MemoryOptions::default()).unwrap();
        let words = SharedWords::open(duplicate(&memory), 64).unwrap();
        words.word(1).store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(tries(memory.fd())[2], Ok(()));
        assert_eq!(words.word(1).load(std::sync::atomic::Ordering::Relaxed), 0);
        // A reader that has brought that about does not map it by the rules, but seals it.
        rustix::fs::fcntl_add_seals(memory.fd(), LAST_SEALS).unwrap();
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(
            rustix::fs::fallocate(memory.fd(), hole, 4096, 4096),
            Err(Errno::PERM)
        );
        assert_eq!(is_settled(memory.fd()), Ok(true));
        let pages = rustix::fs::fstat(memory.fd()).unwrap().st_blocks * 512;
        assert_eq!(pages, 8192, "both are there");
    }

    /// A memfd with the first seals of which so much is there, and so much more behind its end.
    fn partly(size: u64, there: usize, behind: u64) -> OwnedFd {
        let fd = sealable("partly", MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        rustix::io::pwrite(&fd, &vec![1; there], 0).unwrap();
        if behind > 0 {
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&fd, keep, size, behind).unwrap();
        }
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS).unwrap();
        fd
    }

    #[test]
    fn pages_that_are_not_there_or_too_many_are_refused() {
        let map = |size, there, behind| PeerMemory::map(partly(size, there, behind), 8192).err();
        assert_eq!(map(8192, 8192, 0), None);
        let short = |found| {
            let needed = 8192;
            Some(PeerMemoryError::Short { found, needed })
        };
        assert_eq!(map(8192, 0, 0), short(0));
        assert_eq!(map(8192, 4096, 0), short(4096));
        // As many as there must be, but elsewhere.
        assert_eq!(map(8192, 4096, 4096), short(4096));
        let long = |found| Some(PeerMemoryError::Long { found, most: 8192 });
        assert_eq!(map(12_288, 12_288, 0), long(12_288));
        assert_eq!(map(12_288, 0, 0), long(12_288));
        assert_eq!(map(8192, 8192, 1 << 20), long(8192 + (1 << 20)));
    }

    #[test]
    fn a_wrong_descriptor_is_refused() {
        let memory = OwnMemory::create(8192, &MemoryOptions::default()).unwrap();
        let short = PeerMemory::map(duplicate(&memory), 8193);
        assert!(matches!(
            short,
            Err(PeerMemoryError::Short {
                found: 8192,
                needed: 8193
            })
        ));
        let unsealed = SharedWords::create(1).unwrap();
        let unsealed = PeerMemory::map(unsealed.fd().try_clone_to_owned().unwrap(), 64);
        assert!(matches!(unsealed, Err(PeerMemoryError::Seals { .. })));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(
            PeerMemory::map(OwnedFd::from(reader), 64),
            Err(PeerMemoryError::NotMemfd(_))
        ));
        // Sealed against nothing but writing: holes and shrinking are left.
        let half = SharedWords::create(1).unwrap();
        let sealed = rustix::fs::fcntl_add_seals(half.fd(), SealFlags::FUTURE_WRITE);
        assert_eq!(sealed, Err(Errno::PERM), "made without leave to seal");
        // Opened for reading only: it can be neither mapped writable nor sealed.
        let path = format!("/proc/self/fd/{}", memory.fd().as_raw_fd());
        let reading = std::fs::File::open(path).unwrap();
        let refused = PeerMemory::map(OwnedFd::from(reading), 8192);
        assert!(matches!(refused, Err(PeerMemoryError::Map(Errno::ACCESS))));
    }

    #[test]
    fn the_mode_keeps_other_users_out() {
        let memory = OwnMemory::create(1, &MemoryOptions::default()).unwrap();
        let mode = rustix::fs::fstat(memory.fd()).unwrap().st_mode & 0o777;
        assert_eq!(mode, 0o600, "fd {}", memory.fd().as_raw_fd());
        assert_eq!(memory.report().bytes, page_size());
    }

    #[test]
    fn what_is_tried_is_reported() {
        let options = MemoryOptions {
            lock: Want::Try,
            huge_pages: Want::Try,
        };
        let report = OwnMemory::create(4096, &options).unwrap().report();
        assert!(report.bytes >= 4096);
    }
}

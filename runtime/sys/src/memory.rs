//! Segments: sealed memfds, mapped for their owner to write and for the peer to read (D1).
//!
//! ```text
//!   owner:  memfd_create -> ftruncate -> mmap read-write -> populate -> mlock? -> four seals -> fd to the peer
//!   peer:   fd -> seals? -> size? -> mmap read-only -> populate
//! ```
//!
//! The four seals (`SHRINK | GROW | FUTURE_WRITE | SEAL`) mean: nobody can truncate, punch holes or map it writable any
//! more, the owner's older mapping alone still writes. A peer that could punch a hole in a huge-page segment would kill
//! its reader by SIGBUS.

use crate::Errno;
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use tightbeam_segment::Backing;

/// The seals without which no memory of a peer is mapped.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

const LINE: usize = 64;

/// Whether the other process may map a segment writable too.
///
/// A line that is read through a read-only mapping reaches its reader later than through a writable one: 1.4 to 1.6x of a
/// round trip over a bare cache line instead of 1.0x on the build machine (AMD EPYC 9004, two hardware threads), whatever
/// else is the same: address, page age, populated or not, mapped so or made so by `mprotect`, private or shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Only its owner may: the page tables keep a peer from writing what is not its own.
    #[default]
    OneWriter,
    /// Both may: nothing but good behaviour keeps the peer from it.
    Trusted,
}

impl Sharing {
    /// The seals that a segment must have. Those of a trusted one still keep it from being shrunk.
    fn seals(self) -> SealFlags {
        match self {
            Sharing::OneWriter => SEALS,
            Sharing::Trusted => SEALS.difference(SealFlags::FUTURE_WRITE),
        }
    }
}

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
    /// Who may map it writable.
    pub sharing: Sharing,
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
    /// Smaller than was said.
    #[error("the segment has {found} bytes, {needed} are needed")]
    Short {
        /// Its size in bytes.
        found: u64,
        /// The size needed in bytes.
        needed: usize,
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

/// A shared mapping that is unmapped on drop.
struct Mapping {
    base: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, prot: ProtFlags) -> Result<Mapping, Errno> {
        // SAFETY:
        // bounds: a null hint lets the kernel choose an address range that nothing else uses.
        // lifetime: the range is unmapped by Mapping's drop only.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, 0)
        }?;
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        let mapping = Mapping { base, bytes };
        let populate = match prot.contains(ProtFlags::WRITE) {
            true => Advice::LinuxPopulateWrite,
            false => Advice::LinuxPopulateRead,
        };
        mapping.advise(populate)?;
        // A fork would otherwise share the owner's writable mapping.
        mapping.advise(Advice::LinuxDontFork)?;
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: bounds: the range is this mapping's own. The advices used populate it or set its fork flag; neither
        // changes its contents.
        unsafe { rustix::mm::madvise(self.base.as_ptr(), self.bytes, advice) }
    }

    fn lock(&self) -> Result<(), Errno> {
        // SAFETY: bounds: the range is this mapping's own; locking changes no contents.
        unsafe { rustix::mm::mlock(self.base.as_ptr(), self.bytes) }
    }
}

// SAFETY: aliasing: a Mapping is an address range that it alone unmaps; nothing about it belongs to a thread. What is shared
// through it is accessed by atomics only.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: lifetime: the range is this mapping's own, and whoever has its address borrows or owns the Mapping.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of our own range: {unmapped:?}");
    }
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
        rustix::fs::fcntl_add_seals(&fd, options.sharing.seals()).map_err(|errno| {
            MemoryError::System {
                call: "seal",
                bytes,
                errno,
            }
        })?;
        let report = MemoryReport {
            bytes: mapping.bytes,
            locked,
            huge_pages,
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
        let flags =
            flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let fd = rustix::fs::memfd_create("tightbeam", flags).map_err(|e| ("create", e))?;
        // The default mode would let another user reopen it through /proc.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|e| ("chmod", e))?;
        let block = rustix::fs::fstat(&fd).map_err(|e| ("stat", e))?.st_blksize as usize;
        let bytes = bytes.next_multiple_of(block.max(1));
        rustix::fs::ftruncate(&fd, bytes as u64).map_err(|e| ("size", e))?;
        let mapping = Mapping::new(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)
            .map_err(|e| ("map and populate", e))?;
        Ok((fd, mapping))
    }

    /// What it got.
    pub fn report(&self) -> MemoryReport {
        self.report
    }

    /// The descriptor to pass to the peer, which can only read through it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped readable and writable;
// 3. all pages were populated, and the seals forbid shrinking and holes;
// 4. the address is given to nobody else in this crate.
unsafe impl Backing for OwnMemory {
    fn base(&self) -> NonNull<u8> {
        self.mapping.base.cast()
    }

    fn lines(&self) -> usize {
        self.mapping.bytes / LINE
    }
}

/// A peer's segment: checked, mapped read-only, populated.
pub struct PeerMemory {
    mapping: Mapping,
}

impl PeerMemory {
    /// Maps what a peer has passed, which must be a sealed memfd of at least `bytes`: read-only unless both sides trust each
    /// other.
    pub fn map(fd: OwnedFd, bytes: usize, sharing: Sharing) -> Result<PeerMemory, PeerMemoryError> {
        // Seals first: once they are there, the size cannot change any more.
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(PeerMemoryError::NotMemfd)?;
        let needed = sharing.seals();
        if !seals.contains(needed) {
            return Err(PeerMemoryError::Seals {
                found: seals.bits(),
                needed: needed.bits(),
            });
        }
        let stat = rustix::fs::fstat(&fd).map_err(PeerMemoryError::NotMemfd)?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found < bytes as u64 {
            return Err(PeerMemoryError::Short {
                found,
                needed: bytes,
            });
        }
        let block = usize::try_from(stat.st_blksize).unwrap_or(0).max(1);
        let mapped = bytes.next_multiple_of(block);
        let prot = match sharing {
            Sharing::OneWriter => ProtFlags::READ,
            Sharing::Trusted => ProtFlags::READ | ProtFlags::WRITE,
        };
        let mapping = Mapping::new(fd.as_fd(), mapped, prot).map_err(PeerMemoryError::Map)?;
        Ok(PeerMemory { mapping })
    }
}

// SAFETY:
// 1. the mapping's address never changes, and mmap aligns it to a page;
// 2. `bytes` are mapped readable; it is given to `PeerLines` only, which never writes;
// 3. its size was checked after its seals, which forbid shrinking and holes, and all pages were populated;
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
        let mapping = Mapping::new(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
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

    #[test]
    fn a_segment_can_be_neither_changed_nor_resized_through_its_descriptor() {
        let memory = OwnMemory::create(8192, &MemoryOptions::default()).unwrap();
        let fd = memory.fd();
        assert_eq!(rustix::fs::ftruncate(fd, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(fd, 1 << 20), Err(Errno::PERM));
        assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert!(Mapping::new(fd, 4096, ProtFlags::READ | ProtFlags::WRITE).is_err());
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(fd, hole, 0, 4096), Err(Errno::PERM));
    }

    #[test]
    fn a_peer_maps_it_and_a_wrong_descriptor_is_refused() {
        let memory = OwnMemory::create(8192, &MemoryOptions::default()).unwrap();
        assert!(PeerMemory::map(duplicate(&memory), 8192, Sharing::OneWriter).is_ok());
        let short = PeerMemory::map(duplicate(&memory), 8193, Sharing::OneWriter);
        assert!(matches!(
            short,
            Err(PeerMemoryError::Short {
                found: 8192,
                needed: 8193
            })
        ));
        let unsealed = SharedWords::create(1).unwrap();
        let unsealed = PeerMemory::map(
            unsealed.fd().try_clone_to_owned().unwrap(),
            64,
            Sharing::OneWriter,
        );
        assert!(matches!(unsealed, Err(PeerMemoryError::Seals { .. })));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(
            PeerMemory::map(reader.into(), 64, Sharing::OneWriter),
            Err(PeerMemoryError::NotMemfd(_))
        ));
    }

    #[test]
    fn a_trusted_segment_is_not_taken_for_one_with_one_writer() {
        let options = MemoryOptions {
            sharing: Sharing::Trusted,
            ..MemoryOptions::default()
        };
        let memory = OwnMemory::create(8192, &options).unwrap();
        assert_eq!(rustix::fs::ftruncate(memory.fd(), 4096), Err(Errno::PERM));
        assert!(PeerMemory::map(duplicate(&memory), 8192, Sharing::Trusted).is_ok());
        let refused = PeerMemory::map(duplicate(&memory), 8192, Sharing::OneWriter);
        assert!(matches!(refused, Err(PeerMemoryError::Seals { .. })));
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
            ..MemoryOptions::default()
        };
        let report = OwnMemory::create(4096, &options).unwrap().report();
        assert!(report.bytes >= 4096);
    }
}

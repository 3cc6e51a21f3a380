//! Where frames come from: memory in a few size classes, and the ledger that says where each frame is.

use crate::frames::audit::StrayFrame;
use crate::frames::classes::stride_of;
use crate::frames::{FrameError, PoolAudit};
use crate::layout::{HEADROOM, MAX_MESSAGE, MAX_SEGMENTS, SLOT_BYTES};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Memory of ours in which frames lie.
///
/// # Safety
///
/// The implementer promises, for as long as the value lives and even when it is moved:
/// 1. `base()` is the same address at each call, aligned to 64 bytes;
/// 2. `bytes()` bytes from it are mapped, initialised, readable and writable, and touching them raises no fault;
/// 3. nobody in this process touches them but through the [`Pool`] that owns the value, and no other process can write them.
pub unsafe trait FrameMemory: Any {
    /// Address of the first byte.
    fn base(&self) -> NonNull<u8>;
    /// How many bytes there are.
    fn bytes(&self) -> usize;
    /// For who made it.
    fn as_any(&self) -> &dyn Any;
    /// Takes from this process the right to write a range of whole pages, or gives it back; then promise 2 is short of that.
    fn protect(&self, from: usize, bytes: usize, writable: bool) -> Result<(), FrameError>;
}

/// Makes memory for frames when a [`Pool`] needs more.
pub trait MakeFrames {
    /// Makes at least so many bytes.
    fn make(&self, bytes: usize) -> Result<Box<dyn FrameMemory>, FrameError>;
}

#[derive(Clone, Copy, Default)]
struct Entry {
    generation: u32,
    /// To how many it is lent: by each channel as often as that lends frames.
    lent: u32,
    /// How many values of ours stand for it: the one who writes it, or those who keep it complete.
    out: u32,
    free: bool,
    /// This process cannot write it.
    secured: bool,
}

struct Slab {
    memory: Rc<dyn FrameMemory>,
    base: NonNull<u8>,
    stride: usize,
    entries: Vec<Entry>,
    /// Those that are free; what came back last goes first, because caches know it.
    free: Vec<u16>,
    /// Those that are free and cannot be written: made writable together, when they are needed.
    secured: Vec<u16>,
}

/// Memory for frames, which grows up to a limit. It belongs to one thread.
pub struct Pool {
    slabs: RefCell<Vec<Slab>>,
    maker: Box<dyn MakeFrames>,
    limit: usize,
    bytes: Cell<usize>,
    shared: bool,
    /// The last two slabs of which frames were handed out.
    last: Cell<[usize; 2]>,
    /// The last frame that was done with is large, and somebody here has written it.
    wrote_large: Cell<bool>,
}

/// Which frame of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) slab: u16,
    pub(crate) slot: u16,
}

/// Slabs of small frames are at least so large.
const LEAST_SLAB: usize = 256 << 10;
/// A channel's own pool grows by at most this part of its limit at a time, or by so many bytes if that is more: by 8 MiB at a time if nothing else
/// is said.
///
/// A peer that keeps what it is sent has its victim make memory while it replies, and to zero and map a MiB takes 0.1 to 0.6 ms. Not less,
/// because slabs are few: all of the limit is 31 of that size, and 33 are left in which 29 size classes begin. So 120 frames of 2 MiB and 32
/// each of the ten shortest sizes are 62 slabs. Two frames or a MiB at a time were all 64 for 126 frames of 2 MiB, or for 62 MiB of 4 KiB ones.
const STEPS: usize = 32;
const LEAST_STEP: usize = 1 << 20;
/// Two frames of this length that are written in turn are more than caches hold.
const LARGE: usize = 4 << 20;

/// Notes what was used last, and keeps what was before.
pub(super) fn note_last(last: &Cell<[usize; 2]>, used: usize) {
    let [latest, _] = last.get();
    if latest != used {
        last.set([used, latest]);
    }
}

impl Slab {
    /// Makes what was secured, and is free, writable again: neighbours together, because each call costs about a microsecond.
    #[cold]
    fn restore(&mut self) -> Result<(), FrameError> {
        self.secured.sort_unstable();
        while let Some(&last) = self.secured.last() {
            let slots = self.secured.iter().rev().zip((0..=last).rev());
            let run = slots.take_while(|(slot, wanted)| **slot == *wanted).count();
            let first = usize::from(last) + 1 - run;
            self.memory
                .protect(first * self.stride, run * self.stride, true)?;
            for slot in self.secured.drain(self.secured.len() - run..) {
                self.entries[usize::from(slot)].secured = false;
                self.free.push(slot);
            }
        }
        Ok(())
    }
}

impl Pool {
    /// Has no memory yet; all of it together will not be more than `limit` bytes.
    pub fn new(maker: impl MakeFrames + 'static, limit: usize) -> Rc<Pool> {
        Pool::of(maker, limit, false)
    }

    /// A pool of which frames may be sent over any channel. Whoever got one of them can read all of its size.
    pub fn shared(maker: impl MakeFrames + 'static, limit: usize) -> Rc<Pool> {
        Pool::of(maker, limit, true)
    }

    fn of(maker: impl MakeFrames + 'static, limit: usize, shared: bool) -> Rc<Pool> {
        Rc::new(Pool {
            slabs: RefCell::default(),
            maker: Box::new(maker),
            limit,
            bytes: Cell::new(0),
            shared,
            last: Cell::default(),
            wrote_large: Cell::new(false),
        })
    }

    /// Whether its frames may be sent over any channel.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether the caches would rather see a frame of so many bytes again that has come back than a second one: two that are written in turn
    /// do not fit any, and one may. (16 MiB written and read both ways went at 0.73-0.78 of the rate of plain memory with two, CPUs that
    /// share a cache of 32 MiB. What nobody writes is in no cache: to look for it would only take a line from the peer.)
    pub(crate) fn prefers_returned(&self, len: usize) -> bool {
        len > LARGE && self.wrote_large.get()
    }

    /// How often this frame has been handed out.
    pub(crate) fn generation(&self, name: Name) -> u32 {
        let slabs = self.slabs.borrow();
        slabs[usize::from(name.slab)].entries[usize::from(name.slot)].generation
    }

    /// A frame of `len` bytes. What is in it is left from an earlier use, or zeros.
    ///
    /// Takes one that came back if there is one that is large enough; makes memory otherwise, up to the limit.
    pub fn frame(self: &Rc<Self>, len: usize) -> Result<Frame, FrameError> {
        if len > MAX_MESSAGE {
            return Err(FrameError::TooLarge {
                len,
                max: MAX_MESSAGE,
            });
        }
        let stride = stride_of(len);
        let mut slabs = self.slabs.borrow_mut();
        let found = match self.with_free(&mut slabs, stride)? {
            Some(found) => found,
            None => match self.grow(&mut slabs, stride) {
                Ok(grown) => grown,
                Err(grown) => Self::larger(&slabs, stride).ok_or(match grown {
                    Some(error) => error,
                    None if stride > self.limit => FrameError::Limit {
                        len,
                        limit: self.limit,
                    },
                    None => FrameError::InUse { len },
                })?,
            },
        };
        self.hand_out(&mut slabs[found], found, len)
            .ok_or(FrameError::InUse { len })
    }

    /// A frame of `len` bytes if there is one of that size class that is free; or if there is only one at all, and there may be
    /// a second: who has two need not wait for the one to come back.
    pub(crate) fn ready_frame(self: &Rc<Self>, len: usize) -> Option<Frame> {
        if len > MAX_MESSAGE {
            return None;
        }
        let stride = stride_of(len);
        let mut slabs = self.slabs.borrow_mut();
        let found = match self.with_free(&mut slabs, stride).ok()? {
            Some(found) => found,
            None => {
                let of_class = slabs.iter().filter(|slab| slab.stride == stride);
                let frames: usize = of_class.map(|slab| slab.entries.len()).sum();
                let grown = (frames == 1).then(|| self.grow(&mut slabs, stride));
                grown?.ok()?
            }
        };
        self.hand_out(&mut slabs[found], found, len)
    }

    /// Fetches the lines of the frame that is handed out next for so many bytes, `most` of these bytes, of which its last reader has the
    /// latest copy.
    ///
    /// Writes a word of zeros to each, as the ring does when it clears slots ahead: a round trip of 17 lines took 1.4x of one of a single
    /// line then, not 2.8x (bare loop in C over mappings that the reader cannot write). `prefetchw` gained nothing.
    ///
    /// Stops when there is something else to do: what nobody has read meanwhile is fetched for nothing.
    pub(crate) fn fetch_next(&self, len: usize, most: usize, stop: impl Fn() -> bool) {
        /// Lines between two looks at that.
        const LOOK: usize = 4;
        let stride = stride_of(len);
        let slabs = self.slabs.borrow();
        let next = self.next(&slabs, stride).and_then(|next| slabs.get(next));
        let Some((slab, &slot)) = next.and_then(|slab| Some((slab, slab.free.last()?))) else {
            return;
        };
        for line in 0..len.min(most).div_ceil(SLOT_BYTES) {
            if line % LOOK == LOOK - 1 && stop() {
                return;
            }
            let at = usize::from(slot) * stride + HEADROOM + line * SLOT_BYTES;
            // SAFETY: bounds: slot < entries.len() and HEADROOM + len <= stride, by `grow` and `stride_of`; the slab has
            // `entries.len() * stride` bytes, and a line begins in front of `len`.
            let word = unsafe { slab.base.add(at) }.cast::<u64>();
            // SAFETY: bounds: a line that begins in front of `len` ends at most at a stride, which is a multiple of 64. alignment: `base` and
            // `at` are multiples of 64. aliasing: the frame is free, so no value of ours stands for it and it is lent to nobody; it is in
            // `free`, not in `secured`, so it can be written; FrameMemory's promises 2 and 3. lifetime: the slab is borrowed.
            unsafe { word.write_volatile(0) };
        }
    }

    /// The slab of this size class from which a frame is handed out next, if one is free: mostly that of the last one, or, where a slab has
    /// one frame only, the one before.
    fn next(&self, slabs: &[Slab], stride: usize) -> Option<usize> {
        let of_size = |slab: &Slab| slab.stride == stride && !slab.free.is_empty();
        let mut last = self.last.get().into_iter();
        let last = last.find(|last| slabs.get(*last).is_some_and(of_size));
        last.or_else(|| slabs.iter().position(of_size))
    }

    /// A slab of this size class in which something is free.
    fn with_free(&self, slabs: &mut [Slab], stride: usize) -> Result<Option<usize>, FrameError> {
        if let Some(next) = self.next(slabs, stride) {
            return Ok(Some(next));
        }
        let secured = |slab: &Slab| slab.stride == stride && !slab.secured.is_empty();
        let found = slabs.iter().position(secured);
        found.map_or(Ok(()), |found| slabs[found].restore())?;
        Ok(found)
    }

    fn hand_out(self: &Rc<Self>, slab: &mut Slab, number: usize, len: usize) -> Option<Frame> {
        let slot = slab.free.pop()?;
        note_last(&self.last, number);
        let entry = &mut slab.entries[usize::from(slot)];
        *entry = Entry {
            generation: entry.generation.wrapping_add(1),
            lent: 0,
            out: 1,
            free: false,
            secured: false,
        };
        // SAFETY: bounds: the slab has `entries.len() * stride` bytes, and slot < entries.len(), by `grow`.
        let base = unsafe { slab.base.add(usize::from(slot) * slab.stride) };
        Some(Frame {
            name: Name {
                slab: number as u16,
                slot,
            },
            base,
            stride: slab.stride,
            begin: HEADROOM,
            len,
            written: false,
            pool: Rc::clone(self),
        })
    }

    /// Of the slabs with larger frames that has the smallest which are free.
    fn larger(slabs: &[Slab], stride: usize) -> Option<usize> {
        let large = |&(_, slab): &(usize, &Slab)| slab.stride > stride && !slab.free.is_empty();
        let slabs = slabs.iter().enumerate().filter(large);
        slabs.min_by_key(|(_, slab)| slab.stride).map(|(n, _)| n)
    }

    /// Makes a slab: as many frames as there are of this size, so that few slabs suffice; fewer if that takes long, or the limit says so.
    #[cold]
    fn grow(&self, slabs: &mut Vec<Slab>, stride: usize) -> Result<usize, Option<FrameError>> {
        let there = slabs.iter().filter(|slab| slab.stride == stride);
        let frames: usize = there.map(|slab| slab.entries.len()).sum();
        let left = (self.limit - self.bytes.get()) / stride;
        let wanted = frames.max(LEAST_SLAB / stride).max(1);
        let count = wanted
            .min(self.step(stride))
            .min(left)
            .min(usize::from(u16::MAX));
        if count == 0 || slabs.len() >= MAX_SEGMENTS {
            return Err(None);
        }
        let bytes = count * stride;
        let memory = self.maker.make(bytes).map_err(Some)?;
        assert!(memory.bytes() >= bytes, "memory of our own making");
        let entry = Entry {
            free: true,
            ..Entry::default()
        };
        slabs.push(Slab {
            base: memory.base(),
            memory: memory.into(),
            stride,
            entries: alloc::vec![entry; count],
            free: (0..count as u16).rev().collect(),
            secured: Vec::new(),
        });
        self.bytes.set(self.bytes.get() + bytes);
        Ok(slabs.len() - 1)
    }

    /// By how many frames of this size it may grow at a time. One that is shared by any number: no handler takes frames of it, so no peer has it
    /// grow while it is polled; and its slabs and those of a channel's own pool have to be few enough together to be passed to a peer.
    fn step(&self, stride: usize) -> usize {
        match self.shared {
            true => usize::MAX,
            false => (self.limit / STEPS).max(LEAST_STEP).div_ceil(stride),
        }
    }

    /// Memory of a slab, and how its frames lie there.
    pub(crate) fn slab(&self, slab: u16) -> Option<(Rc<dyn FrameMemory>, usize)> {
        let slabs = self.slabs.borrow();
        let slab = slabs.get(usize::from(slab))?;
        Some((Rc::clone(&slab.memory), slab.stride))
    }

    /// Takes from this process the right to write a frame, until it is handed out again.
    fn secure(&self, name: Name) -> Result<(), FrameError> {
        let mut slabs = self.slabs.borrow_mut();
        let slab = &mut slabs[usize::from(name.slab)];
        let (slot, stride) = (usize::from(name.slot), slab.stride);
        slab.memory.protect(slot * stride, stride, false)?;
        slab.entries[slot].secured = true;
        Ok(())
    }

    /// Notes that a frame is lent to one more.
    pub(crate) fn lend(&self, name: Name) {
        let mut slabs = self.slabs.borrow_mut();
        let entry = &mut slabs[usize::from(name.slab)].entries[usize::from(name.slot)];
        entry.lent = entry.lent.checked_add(1).expect("fewer than 2^32 loans");
    }

    /// Notes that one of those to whom it was lent has given it back.
    pub(crate) fn take_back(&self, name: Name) {
        self.settle(name, |entry| entry.lent -= 1);
    }

    fn settle(&self, name: Name, change: impl FnOnce(&mut Entry)) {
        let mut slabs = self.slabs.borrow_mut();
        let slab = &mut slabs[usize::from(name.slab)];
        let entry = &mut slab.entries[usize::from(name.slot)];
        change(entry);
        if entry.out == 0 && entry.lent == 0 {
            entry.free = true;
            match entry.secured {
                false => slab.free.push(name.slot),
                true => slab.secured.push(name.slot),
            }
        }
    }

    /// Counts the frames where they are. Takes as long as looking at each.
    pub fn audit(&self) -> PoolAudit {
        let mut audit = PoolAudit {
            bytes: self.bytes.get(),
            ..PoolAudit::default()
        };
        for (number, slab) in self.slabs.borrow().iter().enumerate() {
            let mut listed = alloc::vec![0; slab.entries.len()];
            for &slot in slab.free.iter().chain(&slab.secured) {
                listed[usize::from(slot)] += 1;
            }
            for (slot, (entry, listed)) in slab.entries.iter().zip(listed).enumerate() {
                audit.note(StrayFrame {
                    slab: number,
                    slot,
                    listed,
                    free: entry.free,
                    out: entry.out as usize,
                    lent: entry.lent as usize,
                });
            }
        }
        audit
    }
}

/// A buffer to write a message in, which is then moved to its receiver without being copied. Dropped, it goes back to its pool.
///
/// It derefs to its bytes, which lie on a line of 64 bytes unless something was [pushed](Self::push) of another length. In front
/// of them there is room for [`HEADROOM`](crate::HEADROOM) bytes of headers.
pub struct Frame {
    pool: Rc<Pool>,
    name: Name,
    base: NonNull<u8>,
    stride: usize,
    begin: usize,
    len: usize,
    written: bool,
}

impl Frame {
    /// How long it may become without moving its beginning.
    pub fn capacity(&self) -> usize {
        self.stride - self.begin
    }

    /// Bytes that may still be pushed.
    pub fn headroom(&self) -> usize {
        self.begin
    }

    /// Changes the length; the beginning stays where it is.
    pub fn set_len(&mut self, len: usize) -> Result<(), FrameError> {
        if len > self.capacity() {
            return Err(FrameError::Room {
                wanted: len,
                room: self.capacity(),
            });
        }
        self.len = len;
        Ok(())
    }

    /// Puts a header in front. What is there already is not moved.
    pub fn push(&mut self, header: &[u8]) -> Result<(), FrameError> {
        let (wanted, room) = (header.len(), self.begin);
        if wanted > room {
            return Err(FrameError::Room { wanted, room });
        }
        self.begin -= wanted;
        self.len += wanted;
        self[..wanted].copy_from_slice(header);
        Ok(())
    }

    /// Takes so many bytes off the front; they become headroom. `None` if there are not as many.
    pub fn pop(&mut self, bytes: usize) -> Option<&[u8]> {
        if bytes > self.len {
            return None;
        }
        self.begin += bytes;
        self.len -= bytes;
        let at = self.at(self.begin - bytes).as_ptr();
        // SAFETY: bounds: begin - bytes .. begin was inside the frame until now. alignment, initialised, aliasing, lifetime: as in
        // `deref`.
        Some(unsafe { core::slice::from_raw_parts(at, bytes) })
    }

    /// Nobody writes it any more: now it may be lent to any number of receivers.
    pub fn freeze(self) -> Frozen {
        Frozen(self)
    }

    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    /// Bytes of memory that it takes.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn name(&self) -> Name {
        self.name
    }

    /// Where this byte of the frame is.
    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset <= self.stride);
        // SAFETY: bounds: begin <= stride, kept by `frame`, `push` and `pop`; the frame has `stride` bytes.
        unsafe { self.base.add(offset) }
    }

    pub(crate) fn place(&self) -> (u32, u32) {
        (self.begin as u32, self.len as u32)
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY:
        // bounds: begin + len <= stride, kept by `frame`, `set_len`, `push` and `pop`; the frame has `stride` bytes.
        // alignment: u8 needs none. initialised: FrameMemory's promise 2.
        // aliasing: the ledger gives a frame that is out to one `Frame` only, or to clones of a `Frozen`, none of which writes;
        // promise 3 excludes other processes.
        // lifetime: a pool keeps its memory while it lives, and this holds the pool.
        unsafe { core::slice::from_raw_parts(self.at(self.begin).as_ptr(), self.len) }
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.written = true;
        // SAFETY: bounds, alignment, initialised, aliasing, lifetime: as in `deref`, and self is borrowed exclusively: it is in no
        // `Frozen`, which never gives out its frame to be written, so there is no clone of it.
        unsafe { core::slice::from_raw_parts_mut(self.at(self.begin).as_ptr(), self.len) }
    }
}

impl AsRef<Frame> for Frame {
    fn as_ref(&self) -> &Frame {
        self
    }
}

impl core::fmt::Debug for Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Frame({} bytes)", self.len)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let wrote_large = self.written && self.len > LARGE;
        self.pool.wrote_large.set(wrote_large);
        self.pool.settle(self.name, |entry| entry.out -= 1);
    }
}

/// A frame that is complete: it can be read, and lent to several receivers, one after the other.
///
/// A clone is the same frame once more, not a copy of its bytes. When all of them were dropped it goes back to its pool as soon as the
/// last receiver has given it back.
#[derive(Debug)]
pub struct Frozen(pub(crate) Frame);

impl Frozen {
    /// Secures it: from now on until it is handed out again not even this process can write it; to try ends it (SIGSEGV). That is
    /// what fbufs call enforced immutability: a stray pointer of the sender changes nothing that a receiver reads.
    ///
    /// Costs an `mprotect` call, and another one for all that came back when they are needed again: about a microsecond each, and
    /// more for each page. Peers cannot see that it was done, and trust nothing because of it. Doing it twice does it once.
    pub fn secure(self) -> Result<Frozen, (FrameError, Frozen)> {
        match self.0.pool.secure(self.0.name) {
            Ok(()) => Ok(self),
            Err(error) => Err((error, self)),
        }
    }
}

impl Clone for Frozen {
    fn clone(&self) -> Frozen {
        let Frame { pool, name, .. } = &self.0;
        pool.settle(*name, |entry| {
            entry.out = entry.out.checked_add(1).expect("fewer than 2^32 clones");
        });
        Frozen(Frame {
            pool: Rc::clone(pool),
            ..self.0
        })
    }
}

impl AsRef<Frame> for Frozen {
    fn as_ref(&self) -> &Frame {
        &self.0
    }
}

impl Deref for Frozen {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

const _: () = assert!(HEADROOM.is_multiple_of(SLOT_BYTES));
const _: () = assert!(MAX_MESSAGE + HEADROOM <= u32::MAX as usize / 2);

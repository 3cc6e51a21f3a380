//! The memory of frames that AF_XDP sockets use, and who holds each frame.
//!
//! ```text
//!             +-------- Frame: a token of ours, exactly one a frame --------+
//!             |                                                             |
//!       provide (FILL)                                                queue (TX)
//!             v                                                             v
//!      the kernel writes  --- receive (RX) ---> Frame <--- reclaim ---  the kernel reads
//! ```
//!
//! Bytes of a frame can be reached through its token alone, and the token is given away with the frame. So there is never a
//! reference to bytes that the kernel writes. What the kernel says it gives back is checked against what it was given.

use super::ring::RingFault;
use crate::Errno;
use crate::mapping::Mapping;
use crate::memory::{ALL_SEALS, SIZE_SEALS, page_size, sealable};
use rustix::fs::MemfdFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Sizes of frames that the kernel takes, in bytes.
pub const FRAME_SIZES: [u32; 2] = [2048, 4096];

/// Tells the tokens of one memory from those of another.
static NEXT_IDENTITY: AtomicU64 = AtomicU64::new(1);

/// Who holds a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Whoever has the token.
    Us,
    /// The kernel, which writes a packet into it.
    Fill,
    /// The kernel, which sends it.
    Transmit,
}

/// A frame that is ours: the right to read and write its bytes. There is one of it, or the kernel has the frame.
#[derive(Debug)]
pub struct Frame {
    index: u32,
    memory: u64,
}

/// Memory in which frames lie: a memfd, mapped writable.
pub struct Umem {
    mapping: Mapping,
    fd: OwnedFd,
    frame_bytes: u32,
    holders: Box<[Holder]>,
    identity: u64,
}

impl Umem {
    /// Makes zeroed memory for `count` frames of `frame_bytes`, one of [`FRAME_SIZES`]; with it the tokens of all of them.
    ///
    /// [`Errno::INVAL`] for another size, or no frame at all.
    pub fn create(count: u32, frame_bytes: u32) -> Result<(Umem, Vec<Frame>), Errno> {
        let bytes = Umem::bytes_of(count, frame_bytes)?;
        let fd = sealable("tightbeam-umem", MemfdFlags::empty()).map_err(|(_, errno)| errno)?;
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS)?;
        let umem = Umem::over(fd, count, frame_bytes, bytes)?;
        let frames = (0..count).map(|index| umem.token(index)).collect();
        Ok((umem, frames))
    }

    /// Takes memory that another process has made with [`create`](Self::create) and passed on: the first `filled` frames are the
    /// kernel's, which receives into them, the others ours. Seals it, so that nobody else maps it writable from now on.
    ///
    /// [`Errno::INVAL`] if size or seals are not those.
    pub fn adopt(
        fd: OwnedFd,
        count: u32,
        frame_bytes: u32,
        filled: u32,
    ) -> Result<(Umem, Vec<Frame>), Errno> {
        let bytes = Umem::bytes_of(count, frame_bytes)?;
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        let size = rustix::fs::fstat(&fd)?.st_size;
        if !seals.contains(SIZE_SEALS) || u64::try_from(size) != Ok(bytes as u64) || filled > count
        {
            return Err(Errno::INVAL);
        }
        let mut umem = Umem::over(fd, count, frame_bytes, bytes)?;
        umem.seal()?;
        umem.holders[..filled as usize].fill(Holder::Fill);
        let frames = (filled..count).map(|index| umem.token(index)).collect();
        Ok((umem, frames))
    }

    fn bytes_of(count: u32, frame_bytes: u32) -> Result<usize, Errno> {
        let bytes = (count as usize).checked_mul(frame_bytes as usize);
        let bytes = bytes.filter(|&b| b > 0 && FRAME_SIZES.contains(&frame_bytes));
        let bytes = bytes.ok_or(Errno::INVAL)?;
        // Whole pages are mapped and registered.
        match bytes.is_multiple_of(page_size()) {
            true => Ok(bytes),
            false => Err(Errno::INVAL),
        }
    }

    fn over(fd: OwnedFd, count: u32, frame_bytes: u32, bytes: usize) -> Result<Umem, Errno> {
        Ok(Umem {
            mapping: Mapping::populated(fd.as_fd(), bytes, page_size())?,
            fd,
            frame_bytes,
            holders: vec![Holder::Us; count as usize].into_boxed_slice(),
            identity: NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Puts the last seals on: nobody can map it writable any more, but whoever has done so before.
    pub fn seal(&self) -> Result<(), Errno> {
        rustix::fs::fcntl_add_seals(&self.fd, ALL_SEALS)
    }

    /// Gives up the mapping, and with it every right to the bytes; what is left is the memfd, to be passed on.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// How many frames there are.
    pub fn count(&self) -> u32 {
        self.holders.len() as u32
    }

    /// How many frames the kernel has: to receive into, and to send.
    pub fn with_kernel(&self) -> (u32, u32) {
        let count = |by: Holder| self.holders.iter().filter(|holder| **holder == by).count() as u32;
        (count(Holder::Fill), count(Holder::Transmit))
    }

    /// Bytes of a frame.
    pub fn frame_bytes(&self) -> u32 {
        self.frame_bytes
    }

    /// What its tokens, and the sockets over it, know it by.
    #[inline]
    pub(super) fn identity(&self) -> u64 {
        self.identity
    }

    /// Address and size in bytes, for the kernel.
    pub(super) fn area(&self) -> (u64, u64) {
        let base = self.mapping.base.as_ptr() as u64;
        (base, self.mapping.bytes as u64)
    }

    fn token(&self, index: u32) -> Frame {
        Frame {
            index,
            memory: self.identity,
        }
    }

    /// The bytes of a frame of ours.
    ///
    /// # Panics
    ///
    /// If the frame is of another memory.
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = self.start(frame);
        // SAFETY:
        // bounds: the token is of this memory, so its index is less than the count, and each frame has `frame_bytes` in the mapping.
        // initialised: a memfd is zeroed. lifetime: both self and the token are borrowed for as long.
        // aliasing: there is one token a frame and none while the kernel has it; it is borrowed, so nobody has the bytes mutably.
        unsafe { std::slice::from_raw_parts(start, self.frame_bytes as usize) }
    }

    /// The bytes of a frame of ours, to write to.
    ///
    /// # Panics
    ///
    /// If the frame is of another memory.
    #[inline]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.start(frame);
        // SAFETY:
        // bounds: the token is of this memory, so its index is less than the count, and each frame has `frame_bytes` in the mapping.
        // initialised: a memfd is zeroed. lifetime: both self and the token are borrowed for as long.
        // aliasing: there is one token a frame and none while the kernel has it; it is borrowed mutably, so nobody else has the bytes.
        unsafe { std::slice::from_raw_parts_mut(start, self.frame_bytes as usize) }
    }

    #[inline]
    fn start(&self, frame: &Frame) -> *mut u8 {
        assert_eq!(frame.memory, self.identity, "a frame of another memory");
        let offset = frame.index as usize * self.frame_bytes as usize;
        self.mapping.base.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    /// Gives a frame to the kernel to receive into: its address.
    #[inline]
    pub(super) fn give_to_fill(&mut self, frame: Frame) -> u64 {
        self.give(frame, Holder::Fill)
    }

    /// Gives a frame to the kernel to send: its address.
    #[inline]
    pub(super) fn give_to_transmit(&mut self, frame: Frame) -> u64 {
        self.give(frame, Holder::Transmit)
    }

    fn give(&mut self, frame: Frame, to: Holder) -> u64 {
        assert_eq!(frame.memory, self.identity, "a frame of another memory");
        self.holders[frame.index as usize] = to;
        u64::from(frame.index) * u64::from(self.frame_bytes)
    }

    /// Takes the frame back in which a packet is, as the kernel says: the token and where in the frame it starts.
    #[inline]
    pub(super) fn take_received(
        &mut self,
        address: u64,
        len: u32,
    ) -> Result<(Frame, usize), RingFault> {
        let at = address % u64::from(self.frame_bytes);
        if at + u64::from(len) > u64::from(self.frame_bytes) {
            return Err(self.fault("receive", address));
        }
        let frame = self.take("receive", address, Holder::Fill)?;
        Ok((frame, at as usize))
    }

    /// Takes a frame back whose packet has left, as the kernel says.
    #[inline]
    pub(super) fn take_sent(&mut self, address: u64) -> Result<Frame, RingFault> {
        self.take("completion", address, Holder::Transmit)
    }

    fn take(&mut self, ring: &'static str, address: u64, from: Holder) -> Result<Frame, RingFault> {
        let index = address / u64::from(self.frame_bytes);
        let known = usize::try_from(index).ok();
        let holder = known.and_then(|index| self.holders.get_mut(index));
        match holder {
            Some(holder) if *holder == from => *holder = Holder::Us,
            _ => return Err(self.fault(ring, address)),
        }
        Ok(self.token(index as u32))
    }

    #[cold]
    fn fault(&self, ring: &'static str, found: u64) -> RingFault {
        RingFault {
            ring,
            found,
            from: 0,
            to: self.area().1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_reached_through_its_token_alone() {
        let (umem, mut frames) = Umem::create(4, 2048).unwrap();
        assert_eq!((umem.count(), frames.len()), (4, 4));
        assert_eq!(umem.with_kernel(), (0, 0));
        for (n, frame) in frames.iter_mut().enumerate() {
            umem.bytes_mut(frame).fill(n as u8 + 1);
        }
        for (n, frame) in frames.iter().enumerate() {
            assert_eq!(umem.bytes(frame), [n as u8 + 1; 2048]);
        }
    }

    #[test]
    #[should_panic(expected = "a frame of another memory")]
    fn a_token_of_another_memory_opens_nothing() {
        let (_, frames) = Umem::create(2, 2048).unwrap();
        let (umem, _) = Umem::create(2, 2048).unwrap();
        umem.bytes(&frames[0]);
    }

    #[test]
    fn the_kernel_gives_back_what_it_was_given_and_nothing_else() {
        let (mut umem, mut frames) = Umem::create(4, 2048).unwrap();
        // Nothing was given.
        assert!(umem.take_received(0, 60).is_err());
        assert!(umem.take_sent(0).is_err());
        let address = umem.give_to_fill(frames.pop().unwrap());
        assert_eq!(address, 3 * 2048);
        assert!(umem.take_sent(address).is_err(), "it was not sent");
        assert!(umem.take_received(address + 2000, 49).is_err());
        let (frame, at) = umem.take_received(address + 2000, 48).unwrap();
        assert_eq!((frame.index, at), (3, 2000));
        assert!(umem.take_received(address, 60).is_err(), "twice");
        let address = umem.give_to_transmit(frame);
        assert!(umem.take_received(address, 60).is_err());
        // The kernel may name any byte of the frame, as it does with a headroom.
        assert_eq!(umem.take_sent(address + 22).unwrap().index, 3);
        for beside in [4 * 2048, u64::MAX, u64::MAX - 2047] {
            assert!(umem.take_received(beside, 0).is_err());
            assert!(umem.take_sent(beside).is_err());
        }
    }

    #[test]
    fn memory_that_was_passed_on_is_taken_over_as_it_is() {
        let (umem, _) = Umem::create(4, 4096).unwrap();
        let fd = umem.into_fd();
        let other = || fd.try_clone().unwrap();
        for (count, bytes, filled) in [(8, 4096, 0), (4, 2048, 0), (4, 4096, 5)] {
            let refused = Umem::adopt(other(), count, bytes, filled).err();
            assert_eq!(refused, Some(Errno::INVAL));
        }
        let (mut umem, frames) = Umem::adopt(other(), 4, 4096, 3).unwrap();
        assert_eq!(frames.len(), 1);
        assert!(umem.take_received(2 * 4096, 60).is_ok());
        // Now nobody else can map it.
        let again = Umem::adopt(other(), 4, 4096, 3).err();
        assert_eq!(again, Some(Errno::PERM));
    }

    #[test]
    fn sizes_that_the_kernel_does_not_take_are_refused() {
        for (count, bytes) in [(4, 1024), (4, 8192), (4, 3000), (0, 2048), (1, 2048)] {
            assert_eq!(Umem::create(count, bytes).err(), Some(Errno::INVAL));
        }
    }
}

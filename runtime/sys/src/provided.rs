//! Buffers from which the kernel takes one for each datagram that it receives on its own (`io_uring`'s provided rings).

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The most buffers that a provided ring can have.
const MOST: u16 = 1 << 15;
/// Alignment that the kernel demands of a provided ring.
const RING_ALIGN: usize = 4096;

/// The provided ring and its buffers.
pub(crate) struct Provided {
    /// `count` entries that the kernel reads.
    entries: NonNull<BufRingEntry>,
    /// The buffers, which the kernel writes between `provide` and the completion that names them.
    buffers: NonNull<u8>,
    count: u16,
    size: usize,
    stride: usize,
    /// The published tail, which only this side writes.
    tail: u16,
    /// Do not free: the kernel may still write.
    leak: bool,
}

// SAFETY:
// aliasing: the pointers are to allocations that this value alone owns; the kernel writes what was provided, whoever owns that.
// lifetime: none is bound to a thread.
unsafe impl Send for Provided {}

impl Provided {
    /// Whether a ring can have so many buffers.
    pub(crate) fn may_be(count: u16) -> bool {
        count.is_power_of_two() && count <= MOST
    }

    /// `count` buffers, which [may be](Self::may_be), of `size` bytes each.
    pub(crate) fn new(count: u16, size: usize) -> Provided {
        let stride = size.next_multiple_of(64);
        let mut provided = Provided {
            entries: NonNull::dangling(),
            buffers: NonNull::dangling(),
            count,
            size,
            stride,
            tail: 0,
            leak: false,
        };
        provided.entries = zeroed(provided.ring_layout()).cast();
        provided.buffers = zeroed(provided.buffer_layout());
        provided
    }

    /// Makes this the ring's buffers of `group`, none of which is provided yet. The owner of both frees neither before the kernel
    /// has given the group back, or calls [`leak`](Self::leak).
    pub(crate) fn register(&self, ring: &IoUring, group: u16) -> io::Result<()> {
        // SAFETY: lifetime: the memory lives in self, which is freed after the group was unregistered and all requests were
        // cancelled, or not at all.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                self.entries.as_ptr() as u64,
                self.count,
                group,
                0,
            )
        }
    }

    /// The memory is never freed: the kernel might still write there, so that memory that is never reused is the only safe place.
    pub(crate) fn leak(&mut self) {
        self.leak = true;
    }

    fn ring_layout(&self) -> Layout {
        layout(usize::from(self.count) * size_of::<BufRingEntry>())
    }

    fn buffer_layout(&self) -> Layout {
        layout(usize::from(self.count) * self.stride)
    }

    /// The start of a buffer; outside the allocation, so never dereferenced, if there is no such buffer.
    fn start(&self, buffer: u16) -> *mut u8 {
        self.buffers
            .as_ptr()
            .wrapping_add(usize::from(buffer) * self.stride)
    }

    /// What the kernel has put into a buffer that a completion named.
    #[inline(always)]
    pub(crate) fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(buffer < self.count);
        // SAFETY:
        // bounds: buffer < count, and size <= stride.
        // initialised: the allocation was zeroed.
        // aliasing: the completion gave the buffer to us, and the kernel writes it only after `provide`, which borrows mutably.
        // lifetime: the allocation lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start(buffer), length.min(self.size)) }
    }

    /// Gives a buffer to the kernel.
    #[inline(always)]
    pub(crate) fn provide(&mut self, buffer: u16) {
        assert!(buffer < self.count);
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: bounds: `at` < count, a power of two.
        let mut entry = unsafe { self.entries.add(at) };
        // SAFETY:
        // alignment, initialised: the ring is aligned to a page and was zeroed, which is a valid entry.
        // aliasing: the kernel reads entries up to the published tail, which this one is beyond. The tail itself overlays the
        // last two bytes of entry 0, which no setter of BufRingEntry writes.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(self.start(buffer) as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.publish();
    }

    /// Gives all buffers to the kernel, once after the ring was registered.
    pub(crate) fn provide_all(&mut self) {
        for buffer in 0..self.count {
            self.provide(buffer);
        }
    }

    #[inline(always)]
    fn publish(&self) {
        // SAFETY: initialised: the argument is the first entry of the ring, which was zeroed.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY:
        // alignment: the field is a u16 of a repr(C) struct.
        // aliasing: the kernel reads it atomically, and nobody else here has a reference to it.
        // lifetime: the ring lives as long as self.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: pairs with the kernel's acquire load of the tail; the entry is complete before it can be seen.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        if self.leak {
            return;
        }
        // SAFETY: lifetime: allocated in `new` with this layout; the kernel has given it back, or `leak` would be set.
        unsafe { std::alloc::dealloc(self.entries.as_ptr().cast(), self.ring_layout()) };
        // SAFETY: lifetime: as above.
        unsafe { std::alloc::dealloc(self.buffers.as_ptr(), self.buffer_layout()) };
    }
}

/// Whole pages for so many bytes.
fn layout(bytes: usize) -> Layout {
    let bytes = bytes.max(1).next_multiple_of(RING_ALIGN);
    Layout::from_size_align(bytes, RING_ALIGN).expect("at most 2^15 buffers of a datagram's size")
}

fn zeroed(layout: Layout) -> NonNull<u8> {
    // SAFETY: bounds: `layout` makes no empty layouts.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
}

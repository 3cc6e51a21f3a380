//! AF_XDP sockets: rings that a socket shares with the kernel, over frames in memory of ours.
//!
//! [`Opening`] makes a socket step by step, [`Xsk`] is one whose rings are mapped, over a [`Umem`]. Several sockets, each on a queue of its own,
//! may be over one memory: one of them has registered it, the others share it. A verb takes the memory beside the socket, and panics if it is
//! another one: so a frame that goes into a ring is of the memory that the kernel knows, and it writes and reads what was given to it and nothing
//! else.
//!
//! | ring | who fills it | verb |
//! |---|---|---|
//! | FILL | we: frames to receive into | [`provide`](Xsk::provide), [`publish_provided`](Xsk::publish_provided) |
//! | RX | the kernel: packets | [`receive`](Xsk::receive), [`release_received`](Xsk::release_received) |
//! | TX | we: packets | [`queue`](Xsk::queue), [`publish_queued`](Xsk::publish_queued), then [`kick_transmit`] |
//! | COMPLETION | the kernel: frames whose packets have left | [`reclaim`](Xsk::reclaim) |
//!
//! Nothing here decides anything: which frames go where, and what an error means, is the device's.

mod ring;
mod umem;

pub use ring::{Descriptor, RingFault};
pub use rustix::net::xdp::XdpStatistics as Statistics;
pub use umem::{FRAME_SIZES, Frame, Umem};

use crate::Errno;
use crate::mapping::Mapping;
use crate::memory::page_size;
use ring::{Consumer, Places, Producer};
use rustix::mm::{Advice, ProtFlags};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags,
    XdpRingOffset, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The most packets that one call sends, of a socket (Linux 6.17).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Of a descriptor: the packet goes on in the next one.
const XDP_PKT_CONTD: u32 = 1;

/// Entries of each ring; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// Frames to receive into.
    pub fill: u32,
    /// Frames whose packets have left.
    pub completion: u32,
    /// Packets that have arrived.
    pub receive: u32,
    /// Packets to be sent.
    pub transmit: u32,
}

/// Whether the kernel copies packets between its memory and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It does.
    Copy,
    /// The NIC reads and writes our frames.
    ZeroCopy,
}

impl Copying {
    fn flag(self) -> SocketAddrXdpFlags {
        match self {
            Copying::Copy => SocketAddrXdpFlags::XDP_COPY,
            Copying::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
        }
    }
}

/// A socket whose rings are not there yet.
pub struct Opening {
    fd: OwnedFd,
    /// The memory that it is over, once it is known.
    memory: Option<u64>,
}

impl Opening {
    /// Makes a socket, in the network namespace of the calling thread. [`Errno::PERM`] without `CAP_NET_RAW`.
    pub fn new() -> Result<Opening, Errno> {
        let (family, kind) = (AddressFamily::XDP, SocketType::RAW);
        let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Opening { fd, memory: None })
    }

    /// Registers the frames' memory, which the kernel pins. Packets that arrive leave `headroom` bytes free, besides the kernel's own 256.
    ///
    /// [`Errno::NOBUFS`] or [`Errno::NOMEM`] if that is more than `RLIMIT_MEMLOCK` and there is no `CAP_IPC_LOCK`.
    pub fn register(&mut self, umem: &Umem, headroom: u32) -> Result<(), Errno> {
        let (addr, len) = umem.area();
        // Every field is named, and the struct has no padding: a kernel reads what it knows of it.
        let registration = XdpUmemReg {
            addr,
            len,
            chunk_size: umem.frame_bytes(),
            headroom,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&self.fd, registration)?;
        self.memory = Some(umem.identity());
        Ok(())
    }

    /// Instead: says that it is over memory that another socket has registered. It is to be bound by [`Xsk::bind_shared`].
    pub fn share(&mut self, umem: &Umem) {
        self.memory = Some(umem.identity());
    }

    /// Has the kernel make the rings, and maps them.
    ///
    /// [`Errno::INVAL`] if it is over no memory yet, or a size is no power of two.
    pub fn map(self, sizes: RingSizes) -> Result<Xsk, Errno> {
        let memory = self.memory.ok_or(Errno::INVAL)?;
        sockopt::set_xdp_umem_fill_ring_size(&self.fd, sizes.fill)?;
        sockopt::set_xdp_umem_completion_ring_size(&self.fd, sizes.completion)?;
        sockopt::set_xdp_rx_ring_size(&self.fd, sizes.receive)?;
        sockopt::set_xdp_tx_ring_size(&self.fd, sizes.transmit)?;
        Xsk::over(self.fd, memory, sizes)
    }
}

/// A packet that has arrived: the frame in which it is, ours again, and where.
#[derive(Debug)]
pub struct Received {
    /// The frame.
    pub frame: Frame,
    /// Where in the frame its first byte is.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// The kernel's flags; 0 for a whole packet.
    pub options: u32,
}

impl Received {
    /// The packet goes on in the next frame.
    pub fn goes_on(&self) -> bool {
        self.options & XDP_PKT_CONTD != 0
    }
}

/// A socket with its four rings.
///
/// A socket that is closed while its rings are mapped keeps its queue: the fields are dropped in this order.
pub struct Xsk {
    fill: Producer<u64>,
    transmit: Producer<Descriptor>,
    receive: Consumer<Descriptor>,
    completion: Consumer<u64>,
    fd: OwnedFd,
    /// Which memory its frames are of.
    memory: u64,
}

impl Xsk {
    fn over(fd: OwnedFd, memory: u64, sizes: RingSizes) -> Result<Xsk, Errno> {
        let offsets = sockopt::xdp_mmap_offsets(&fd)?;
        let [fill, completion] = [(sizes.fill, offsets.fr), (sizes.completion, offsets.cr)];
        let [receive, transmit] = [(sizes.receive, offsets.rx), (sizes.transmit, offsets.tx)];
        let map = |offset, (size, places), words| map_ring(fd.as_fd(), offset, size, places, words);
        let (mapping, places) = map(XDP_UMEM_PGOFF_FILL_RING, fill, 1)?;
        let fill = Producer::mapped("fill", mapping, places, sizes.fill);
        let (mapping, places) = map(XDP_UMEM_PGOFF_COMPLETION_RING, completion, 1)?;
        let completion = Consumer::mapped("completion", mapping, places, sizes.completion);
        let (mapping, places) = map(XDP_PGOFF_RX_RING, receive, 2)?;
        let receive = Consumer::mapped("receive", mapping, places, sizes.receive);
        let (mapping, places) = map(XDP_PGOFF_TX_RING, transmit, 2)?;
        let transmit = Producer::mapped("transmit", mapping, places, sizes.transmit);
        Ok(Xsk {
            fill: fill.ok_or(Errno::INVAL)?,
            transmit: transmit.ok_or(Errno::INVAL)?,
            receive: receive.ok_or(Errno::INVAL)?,
            completion: completion.ok_or(Errno::INVAL)?,
            fd,
            memory,
        })
    }

    /// Takes a socket that another process has opened over this memory.
    ///
    /// Not for everybody: that it is over this memory cannot be seen from it.
    pub(crate) fn adopt(fd: OwnedFd, umem: &Umem, sizes: RingSizes) -> Result<Xsk, Errno> {
        Xsk::over(fd, umem.identity(), sizes)
    }

    /// Unmaps the rings. What is left is the socket, to be handed over.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Binds it to a queue of an interface. Frames must have been provided before.
    ///
    /// [`Errno::BUSY`]: another socket has the queue; [`Errno::INVAL`]: there is no such queue; [`Errno::OPNOTSUPP`]: the driver has
    /// no zero-copy; [`Errno::NETDOWN`]: the interface is down; [`Errno::NODEV`]: there is none.
    pub fn bind(&self, interface: u32, queue: u32, copying: Copying) -> Result<(), Errno> {
        let flags = copying.flag() | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        rustix::net::bind(&self.fd, &SocketAddrXdp::new(flags, interface, queue))
    }

    /// As [`bind`](Self::bind), and a packet that is longer than a frame arrives in several, if the interface's program knows of such packets
    /// ([`bpf::load_program_for_parts`](crate::bpf::load_program_for_parts)); else it is dropped. [`Errno::INVAL`] before Linux 6.6.
    pub fn bind_for_parts(
        &self,
        interface: u32,
        queue: u32,
        copying: Copying,
    ) -> Result<(), Errno> {
        let flags = copying.flag() | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        let flags = flags | SocketAddrXdpFlags::XDP_USE_SG;
        rustix::net::bind(&self.fd, &SocketAddrXdp::new(flags, interface, queue))
    }

    /// Binds it to a queue of an interface, with what `owner` is bound with, which has registered their memory. Each has its own rings, so it is
    /// another queue, or another interface.
    ///
    /// As [`bind`](Self::bind), and [`Errno::INVAL`] if the memories are not the same or the queue is the owner's, [`Errno::BADF`] if that is
    /// not bound.
    pub fn bind_shared(&self, interface: u32, queue: u32, owner: &Xsk) -> Result<(), Errno> {
        if self.memory != owner.memory {
            return Err(Errno::INVAL);
        }
        // No other flag may stand beside this one: the owner's are in force.
        let flags = SocketAddrXdpFlags::XDP_SHARED_UMEM;
        let place = SocketAddrXdpWithSharedUmem {
            addr: SocketAddrXdp::new(flags, interface, queue),
            shared_umem_fd: owner.as_fd(),
        };
        rustix::net::bind(&self.fd, &place)
    }

    #[inline]
    fn is_over(&self, umem: &Umem) {
        assert_eq!(self.memory, umem.identity(), "a socket over another memory");
    }

    /// Puts frames into FILL as long as there is room, from the end of `frames` on; how many that were. Not seen by the kernel before
    /// [`publish_provided`](Self::publish_provided).
    ///
    /// # Panics
    ///
    /// If the socket, or a frame, is of another memory; so do the other verbs.
    #[inline]
    pub fn provide(&mut self, umem: &mut Umem, frames: &mut Vec<Frame>) -> Result<u32, RingFault> {
        self.is_over(umem);
        let wanted = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let room = self.fill.room(wanted)?.min(wanted);
        for frame in frames.drain(frames.len() - room as usize..) {
            self.fill.write(umem.give_to_fill(frame));
        }
        Ok(room)
    }

    /// Lets the kernel receive into the frames that were provided.
    #[inline]
    pub fn publish_provided(&mut self) {
        self.fill.publish();
    }

    /// The next packet that has arrived.
    #[inline]
    pub fn receive(&mut self, umem: &mut Umem) -> Result<Option<Received>, RingFault> {
        self.is_over(umem);
        let Some(Descriptor {
            address,
            len,
            options,
        }) = self.receive.read()?
        else {
            return Ok(None);
        };
        let (frame, at) = umem.take_received(address, len)?;
        Ok(Some(Received {
            frame,
            at,
            len: len as usize,
            options,
        }))
    }

    /// Lets the kernel use the entries of RX again from which packets were taken.
    #[inline]
    pub fn release_received(&mut self) {
        self.receive.release();
    }

    /// How many packets fit into TX; looks at the kernel's index if they are less than `wanted`.
    #[inline]
    pub fn transmit_room(&mut self, wanted: u32) -> Result<u32, RingFault> {
        self.transmit.room(wanted)
    }

    /// Puts a packet into TX: `len` bytes of a frame, from `at` on. Not seen by the kernel before
    /// [`publish_queued`](Self::publish_queued).
    ///
    /// # Panics
    ///
    /// If there is no [`transmit_room`](Self::transmit_room), the bytes are not all in the frame, or it is of another memory.
    #[inline]
    pub fn queue(&mut self, umem: &mut Umem, frame: Frame, at: usize, len: usize) {
        self.put(umem, (frame, at, len), 0);
    }

    /// Puts a part of a packet into TX, as [`queue`](Self::queue) does: the packet goes on in the next frame that is queued. The kernel takes
    /// 18 frames a packet at most, and drops a packet that has more, as a whole.
    ///
    /// # Panics
    ///
    /// As [`queue`](Self::queue).
    #[inline]
    pub fn queue_part(&mut self, umem: &mut Umem, frame: Frame, at: usize, len: usize) {
        self.put(umem, (frame, at, len), XDP_PKT_CONTD);
    }

    #[inline]
    fn put(&mut self, umem: &mut Umem, (frame, at, len): (Frame, usize, usize), options: u32) {
        self.is_over(umem);
        let most = umem.frame_bytes() as usize;
        assert!(at <= most && len <= most - at, "beside the frame");
        let address = umem.give_to_transmit(frame) + at as u64;
        self.transmit.write(Descriptor {
            address,
            len: len as u32,
            options,
        });
    }

    /// Lets the kernel see the packets that were queued.
    #[inline]
    pub fn publish_queued(&mut self) {
        self.transmit.publish();
    }

    /// Packets in TX that the kernel has not taken yet, published or not.
    pub fn transmit_outstanding(&self) -> Result<u32, RingFault> {
        self.transmit.outstanding()
    }

    /// Takes back frames whose packets have left, as many as there are, to the end of `frames`; how many that were.
    #[inline]
    pub fn reclaim(&mut self, umem: &mut Umem, frames: &mut Vec<Frame>) -> Result<u32, RingFault> {
        self.is_over(umem);
        let mut count = 0;
        // A constant bound: what the ring can hold.
        while count < self.completion.size()
            && let Some(address) = self.completion.read()?
        {
            frames.push(umem.take_sent(address)?);
            count += 1;
        }
        self.completion.release();
        Ok(count)
    }

    /// The kernel wants a call to send what is in TX.
    #[inline]
    pub fn transmit_needs_wakeup(&self) -> bool {
        self.transmit.needs_wakeup()
    }

    /// The kernel wants a call to receive into what is in FILL.
    #[inline]
    pub fn fill_needs_wakeup(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Entries of FILL and TX.
    pub fn sizes(&self) -> (u32, u32) {
        (self.fill.size(), self.transmit.size())
    }
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Maps one ring, whole pages of it; says where its parts are.
fn map_ring(
    fd: BorrowedFd<'_>,
    offset: u64,
    size: u32,
    places: XdpRingOffset,
    words: usize,
) -> Result<(Mapping, Places), Errno> {
    let entries = (size as usize).checked_mul(words * 8);
    let start = usize::try_from(places.desc).ok();
    let bytes = entries.zip(start).and_then(|(e, s)| e.checked_add(s));
    let bytes = bytes.and_then(|b| b.checked_next_multiple_of(page_size()));
    let bytes = bytes.ok_or(Errno::INVAL)?;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let mapping = Mapping::from_offset(fd, offset, bytes, page_size(), both)?;
    mapping.advise(Advice::LinuxPopulateWrite)?;
    let places = Places {
        producer: places.producer,
        consumer: places.consumer,
        // Kernels before 5.4 have no flags, and are older than anything else here can do with.
        flags: places.flags.ok_or(Errno::NOSYS)?,
        entries: places.desc,
    };
    Ok((mapping, places))
}

/// Has the kernel send what is in TX: one `sendto` that never blocks.
///
/// [`Errno::AGAIN`], [`Errno::BUSY`], [`Errno::NOBUFS`]: it has not sent all of it, call again. [`Errno::NETDOWN`],
/// [`Errno::NXIO`]: the interface is down or gone.
#[inline]
pub fn kick_transmit(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::send(socket, &[], SendFlags::DONTWAIT).map(|_| ())
}

/// Has the kernel look for packets: one `recvfrom` that never blocks. A step of busy polling, where that is in force.
#[inline]
pub fn kick_receive(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::recv(socket, &mut [0u8; 0][..], RecvFlags::DONTWAIT).map(|_| ())
}

/// What the kernel has counted of a socket.
pub fn statistics(socket: BorrowedFd<'_>) -> Result<Statistics, Errno> {
    sockopt::xdp_statistics(socket)
}

/// Whether a bound socket is served without a copy.
pub fn is_zero_copy(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let options = sockopt::xdp_options(socket)?;
    Ok(options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
}

/// The NAPI instance that serves a socket's queue; 0 if there is none, and then busy polling does nothing.
pub fn napi_id(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    get_option(socket, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID)
}

/// How many packets one call sends at most: 32, if the kernel has no such option.
pub fn set_transmit_budget(socket: BorrowedFd<'_>, packets: u32) -> Result<(), Errno> {
    set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, packets)
}

/// Bytes of packets that may be on their way at once; as many as the host's limit allows, without `CAP_NET_ADMIN`.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
    match sockopt::set_socket_send_buffer_size_force(socket, bytes) {
        Ok(()) => Ok(()),
        Err(_) => sockopt::set_socket_send_buffer_size(socket, bytes),
    }
}

/// Prefers busy polling to interrupts: for `micros` at most a call, `packets` at most a turn.
pub fn set_busy_poll(socket: BorrowedFd<'_>, micros: u32, packets: u32) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, micros)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, packets)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: u32,
) -> Result<(), Errno> {
    // SAFETY: bounds: the kernel reads the four bytes of `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            4,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(crate::last_errno()),
    }
}

fn get_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Result<u32, Errno> {
    let mut value = 0u32;
    let mut len: libc::socklen_t = 4;
    // SAFETY: bounds: the kernel writes at most `len` = 4 bytes to `value`, and the length to `len`; both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(value),
        _ => Err(crate::last_errno()),
    }
}

#[cfg(test)]
mod tests;

//! Opening a socket: frames, rings, bind; what it got.

use crate::fix;
use crate::mode::Attempt;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tightbeam_segment::DeviceError;
use tightbeam_sys::Errno;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::{self, Copying, Frame, Opening, RingFault, RingSizes, Umem, Xsk};

/// Entries of each ring. FILL holds more than there are frames to receive into, and COMPLETION all that are sent: neither is ever full.
pub(crate) const SIZES: RingSizes = RingSizes {
    fill: 2048,
    completion: 512,
    receive: 1024,
    transmit: 512,
};
/// Frames to receive into; the others are for sending.
pub(crate) const TO_RECEIVE: u32 = 1024;
pub(crate) const TO_SEND: u32 = SIZES.transmit;
/// What the kernel keeps free in front of a packet, besides our headroom.
const KERNEL_HEADROOM: u32 = 256;
pub(crate) const ETHERNET: u32 = 14;
/// How long, and for how many packets, a call polls the NIC.
const BUSY_MICROS: u32 = 20;
const BUSY_PACKETS: u32 = 64;
/// How long the kernel may take to clean up behind a socket that was closed; some milliseconds are usual, more on a busy host.
const CLEANED_UP: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// An open socket and the frames that are ours.
pub(crate) struct Socket {
    pub(crate) xsk: Xsk,
    pub(crate) umem: Umem,
    pub(crate) to_send: Vec<Frame>,
    pub(crate) to_fill: Vec<Frame>,
    pub(crate) got: Got,
}

/// What a socket got, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Got {
    pub(crate) zero_copy: bool,
    pub(crate) headroom: u32,
    /// The NAPI instance of the queue; 0 if there is none.
    pub(crate) napi: u32,
    /// Calls poll the NIC.
    pub(crate) busy_poll: bool,
    /// Packets that one call sends at most.
    pub(crate) budget: u32,
}

/// The size of frames for IP packets of so many bytes: the smallest that does, or the largest there is.
pub(crate) fn frame_bytes(mtu: u32) -> u32 {
    let [small, large] = xdp::FRAME_SIZES;
    match mtu <= room(small, crate::mode::HEADROOM) {
        true => small,
        false => large,
    }
}

/// The longest IP packet that a frame can receive.
pub(crate) fn room(frame_bytes: u32, headroom: u32) -> u32 {
    frame_bytes - KERNEL_HEADROOM - headroom - ETHERNET
}

impl Socket {
    /// Opens one on a queue: frames are in FILL before it is bound, as zero-copy drivers want.
    pub(crate) fn open(link: &Link, queue: u32, attempt: &Attempt) -> Result<Socket, DeviceError> {
        let bytes = frame_bytes(link.mtu);
        let count = TO_RECEIVE + TO_SEND;
        let whole = u64::from(count) * u64::from(bytes);
        let mut opening = Opening::new().map_err(fix::socket)?;
        let (umem, frames) = Umem::create(count, bytes).map_err(|e| fix::memory(whole, e))?;
        let registered = opening.register(&umem, attempt.headroom);
        registered.map_err(|e| fix::memory(whole, e))?;
        let xsk = opening.map(SIZES).map_err(fix::rings)?;
        let mut socket = Socket::with_frames(xsk, umem, frames)?;
        let bound = bind(&socket.xsk, link.index, queue, attempt.copying);
        bound.map_err(|e| fix::bind(link, queue, e))?;
        socket.got.headroom = attempt.headroom;
        socket.ask();
        Ok(socket)
    }

    /// Shares the frames out: the first ones to FILL, the rest to be sent.
    fn with_frames(xsk: Xsk, umem: Umem, mut frames: Vec<Frame>) -> Result<Socket, DeviceError> {
        let to_send = frames.split_off(TO_RECEIVE as usize);
        let got = Got {
            zero_copy: false,
            headroom: 0,
            napi: 0,
            busy_poll: false,
            budget: 32,
        };
        let mut socket = Socket {
            xsk,
            umem,
            to_send,
            to_fill: frames,
            got,
        };
        socket.provide().map_err(fix::ring)?;
        Ok(socket)
    }

    /// Gives the kernel the frames that are free to receive into.
    #[inline]
    pub(crate) fn provide(&mut self) -> Result<(), RingFault> {
        self.xsk.provide(&mut self.umem, &mut self.to_fill)?;
        self.xsk.publish_provided();
        Ok(())
    }

    /// Takes back the frames whose packets have left; how many that were.
    #[inline]
    pub(crate) fn reclaim(&mut self) -> Result<u32, RingFault> {
        self.xsk.reclaim(&mut self.umem, &mut self.to_send)
    }

    /// Asks for what makes a bound socket fast, and for what came of it.
    fn ask(&mut self) {
        let fd = self.xsk.as_fd();
        if xdp::set_transmit_budget(fd, SIZES.transmit).is_ok() {
            self.got.budget = SIZES.transmit;
        }
        // In copy mode a packet takes a buffer of the kernel's; more than the usual limit of bytes may be under way. The default does too.
        let each = (self.umem.frame_bytes() + 1024) as usize;
        let _ = xdp::set_send_buffer(fd, TO_SEND as usize * each);
        self.look();
        // Without a NAPI instance polling would cost calls and do nothing.
        self.got.busy_poll = self.got.napi != 0 && self.poll_busily().is_ok();
    }

    /// Asks what a bound socket is like.
    pub(crate) fn look(&mut self) {
        let fd = self.xsk.as_fd();
        self.got.zero_copy = xdp::is_zero_copy(fd).unwrap_or(false);
        self.got.napi = xdp::napi_id(fd).unwrap_or(0);
    }

    fn poll_busily(&self) -> Result<(), Errno> {
        xdp::set_busy_poll(self.xsk.as_fd(), BUSY_MICROS, BUSY_PACKETS)
    }
}

/// Binds a socket; if another one has the queue, again and again for a while: one that was closed, by whomever, has it until the kernel has
/// come to clean up behind it.
fn bind(xsk: &Xsk, interface: u32, queue: u32, copying: Copying) -> Result<(), Errno> {
    let end = Instant::now() + CLEANED_UP;
    loop {
        match xsk.bind(interface, queue, copying) {
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_large_as_the_mtu_wants() {
        assert_eq!(frame_bytes(1500), 2048);
        assert_eq!(frame_bytes(room(2048, 22)), 2048);
        assert_eq!(frame_bytes(room(2048, 22) + 1), 4096);
        assert_eq!(frame_bytes(65536), 4096);
        assert_eq!(room(4096, 22), 3804);
    }
}

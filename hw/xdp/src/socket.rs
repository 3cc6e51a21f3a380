//! Opening sockets, one a queue, over one memory: frames, rings, bind; what they got.

use crate::fix;
use crate::mode::Attempt;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tightbeam_segment::DeviceError;
use tightbeam_sys::Errno;
use tightbeam_sys::link::Link;
use tightbeam_sys::xdp::{self, Frame, Opening, Received, RingFault, RingSizes, Umem, Xsk};

/// Entries of each ring. FILL holds more than there are frames to receive into, and COMPLETION all that are sent: neither is ever full.
pub(crate) const SIZES: RingSizes = RingSizes {
    fill: 2048,
    completion: 512,
    receive: 1024,
    transmit: 512,
};
/// Frames to receive into, of all queues together, unless a queue had more or less then than one may have. A NIC puts a burst of one sender into
/// one queue, so each can take one; and with up to eight queues and an MTU of 1500 it all fits into the 8 MiB that a process may usually pin.
const TO_RECEIVE: u32 = 2048;
const OF_A_QUEUE: [u32; 2] = [256, 1024];
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

/// A socket on a queue.
pub(crate) struct Queue {
    pub(crate) xsk: Xsk,
    /// Frames that go back to the kernel, to receive into at this queue.
    pub(crate) to_fill: Vec<Frame>,
    /// The NAPI instance of the queue; 0 if there is none.
    pub(crate) napi: u32,
    /// Calls poll the NIC.
    pub(crate) busy_poll: bool,
}

/// Open sockets and the frames that are ours.
pub(crate) struct Sockets {
    /// One a queue, one at least. All receive, the first one sends.
    pub(crate) queues: Vec<Queue>,
    pub(crate) umem: Umem,
    pub(crate) to_send: Vec<Frame>,
    pub(crate) got: Got,
}

/// What the sockets got, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Got {
    pub(crate) zero_copy: bool,
    pub(crate) headroom: u32,
    /// Packets that one call sends at most.
    pub(crate) budget: u32,
}

/// How many frames each of so many queues has to receive into.
fn to_receive(queues: u32) -> u32 {
    let [least, most] = OF_A_QUEUE;
    (TO_RECEIVE / queues.max(1)).clamp(least, most)
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

impl Queue {
    pub(crate) fn new(xsk: Xsk) -> Queue {
        Queue {
            xsk,
            to_fill: Vec::new(),
            napi: 0,
            busy_poll: false,
        }
    }

    /// Gives the kernel the frames that are free to receive into.
    #[inline]
    pub(crate) fn provide(&mut self, umem: &mut Umem) -> Result<(), RingFault> {
        self.xsk.provide(umem, &mut self.to_fill)?;
        self.xsk.publish_provided();
        Ok(())
    }

    fn poll_busily(&self) -> Result<(), Errno> {
        xdp::set_busy_poll(self.xsk.as_fd(), BUSY_MICROS, BUSY_PACKETS)
    }
}

impl Sockets {
    /// Opens one on each queue: frames are in FILL before it is bound, as zero-copy drivers want. The first one has the memory registered, the
    /// others share it.
    pub(crate) fn open(
        link: &Link,
        bound: Range<u32>,
        attempt: &Attempt,
    ) -> Result<Sockets, DeviceError> {
        let bytes = frame_bytes(link.mtu);
        let count = bound.len() as u32;
        let each = to_receive(count);
        let frames = count.saturating_mul(each).saturating_add(TO_SEND);
        let whole = u64::from(frames) * u64::from(bytes);
        let made = Umem::create(frames, bytes);
        let (umem, mut to_fill) = made.map_err(|e| fix::memory(whole, e))?;
        let to_send = to_fill.split_off(to_fill.len() - TO_SEND as usize);
        let mut sockets = Sockets::over(umem, to_send, attempt.headroom);
        for queue in bound {
            let mut opening = Opening::new().map_err(fix::socket)?;
            let owner = sockets.queues.first();
            match owner {
                None => opening
                    .register(&sockets.umem, attempt.headroom)
                    .map_err(|e| fix::memory(whole, e))?,
                Some(_) => opening.share(&sockets.umem),
            }
            let mut new = Queue::new(opening.map(SIZES).map_err(fix::rings)?);
            new.to_fill = to_fill.split_off(to_fill.len() - each as usize);
            new.provide(&mut sockets.umem).map_err(fix::ring)?;
            let bound = when_free(|| match owner {
                None => new.xsk.bind(link.index, queue, attempt.copying),
                Some(owner) => new.xsk.bind_shared(link.index, queue, &owner.xsk),
            });
            bound.map_err(|e| fix::bind(link, queue, e))?;
            sockets.queues.push(new);
        }
        sockets.ask();
        Ok(sockets)
    }

    /// None yet, over a memory.
    pub(crate) fn over(umem: Umem, to_send: Vec<Frame>, headroom: u32) -> Sockets {
        Sockets {
            queues: Vec::new(),
            umem,
            to_send,
            got: Got {
                zero_copy: false,
                headroom,
                budget: 32,
            },
        }
    }

    /// The one that sends.
    #[inline]
    pub(crate) fn sender(&self) -> &Xsk {
        &self.queues[0].xsk
    }

    /// The one that sends, and the memory.
    #[inline]
    pub(crate) fn sending(&mut self) -> (&mut Xsk, &mut Umem) {
        (&mut self.queues[0].xsk, &mut self.umem)
    }

    /// The next packet that has arrived at a queue, by its place among ours.
    #[inline]
    pub(crate) fn receive(&mut self, place: usize) -> Result<Option<Received>, RingFault> {
        self.queues[place].xsk.receive(&mut self.umem)
    }

    /// Frames of which nobody has the token, nor the kernel the frame: none, if none was dropped.
    pub(crate) fn missing(&self) -> u64 {
        let (receiving, sending) = self.umem.with_kernel();
        let free = self.queues.iter().map(|queue| queue.to_fill.len());
        let free = free.sum::<usize>() + self.to_send.len();
        let whole = u64::from(self.umem.count());
        whole - u64::from(receiving) - u64::from(sending) - free as u64
    }

    /// Takes back the frames whose packets have left; how many that were.
    #[inline]
    pub(crate) fn reclaim(&mut self) -> Result<u32, RingFault> {
        let sender = &mut self.queues[0].xsk;
        sender.reclaim(&mut self.umem, &mut self.to_send)
    }

    /// Asks for what makes bound sockets fast, and for what came of it.
    fn ask(&mut self) {
        let fd = self.sender().as_fd();
        let raised = xdp::set_transmit_budget(fd, SIZES.transmit).is_ok();
        // In copy mode a packet takes a buffer of the kernel's; more than the usual limit of bytes may be under way. The default does too.
        let each = (self.umem.frame_bytes() + 1024) as usize;
        let _ = xdp::set_send_buffer(fd, TO_SEND as usize * each);
        if raised {
            self.got.budget = SIZES.transmit;
        }
        self.look();
        for queue in &mut self.queues {
            // Without a NAPI instance polling would cost calls and do nothing.
            queue.busy_poll = queue.napi != 0 && queue.poll_busily().is_ok();
        }
    }

    /// Asks what bound sockets are like.
    pub(crate) fn look(&mut self) {
        // The memory is one, and all of them are served as the one is that has registered it.
        self.got.zero_copy = xdp::is_zero_copy(self.sender().as_fd()).unwrap_or(false);
        for queue in &mut self.queues {
            queue.napi = xdp::napi_id(queue.xsk.as_fd()).unwrap_or(0);
        }
    }
}

/// Binds a socket; if another one has the queue, again and again for a while: one that was closed, by whomever, has it until the kernel has
/// come to clean up behind it.
fn when_free(bind: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let end = Instant::now() + CLEANED_UP;
    loop {
        match bind() {
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
    #[test]
    fn queues_share_the_frames_and_none_has_too_few() {
        let each = [1, 2, 4, 8, 16, 64].map(to_receive);
        assert_eq!(each, [1024, 1024, 512, 256, 256, 256]);
        // FILL holds all that a queue may have.
        assert!(OF_A_QUEUE[1] <= SIZES.fill);
        // What a process may usually pin.
        for queues in 1..=8 {
            let bytes = (queues * to_receive(queues) + TO_SEND) * 2048;
            assert!(bytes < 8 << 20, "{queues} queues pin {bytes} bytes");
        }
    }
}

//! The bare loop over the rings of a device's first queue, with nothing in it that a program over AF_XDP could leave out: what the device is
//! compared with.
//!
//! It sends one packet again and again, headers and all made before, and looks at the first eight bytes of what comes. It uses the same socket, in
//! the same mode, with the same settings, so a bench can let the two alternate.

use crate::device::{AT, MORE_CALLS, XdpDevice};
use crate::fix;
use crate::socket::{SIZES, Sockets};
use rustix::io::Errno;
use std::os::fd::AsFd;
use tightbeam_proto::wire::ENVELOPE;
use tightbeam_segment::{DeviceError, Route};
use tightbeam_sys::xdp;

/// Bytes of the number in each packet.
const NUMBER: usize = 8;

/// The bare loop; the device is as it was when this is dropped.
pub struct Floor<'a> {
    device: &'a mut XdpDevice,
    /// The packet, from its Ethernet header on.
    packet: Vec<u8>,
}

impl XdpDevice {
    /// The bare loop over the rings of this device's first queue, with packets of `len` bytes to a host, 8 at least.
    pub fn floor(&mut self, to: &Route, len: usize) -> Floor<'_> {
        let len = len.clamp(NUMBER, self.max_packet);
        let mut packet = vec![0; ENVELOPE + len];
        self.envelopes.to(to).seal(&mut packet, len, self.sum);
        Floor {
            device: self,
            packet,
        }
    }
}

impl Floor<'_> {
    /// Sends a packet for each number, all by one call; how many found room.
    #[inline]
    pub fn send(&mut self, numbers: impl IntoIterator<Item = u64>) -> Result<usize, DeviceError> {
        let sockets = &mut self.device.sockets;
        let mut sent = 0;
        for number in numbers {
            if sockets.to_send.is_empty() {
                sockets.reclaim().map_err(fix::ring)?;
            }
            if sockets.sending().0.transmit_room(1).map_err(fix::ring)? == 0 {
                break;
            }
            let Some(mut frame) = sockets.to_send.pop() else {
                break;
            };
            let (sender, umem) = sockets.sending();
            let bytes = &mut umem.bytes_mut(&mut frame)[AT..][..self.packet.len()];
            bytes.copy_from_slice(&self.packet);
            bytes[ENVELOPE..][..NUMBER].copy_from_slice(&number.to_ne_bytes());
            sender.queue(umem, frame, AT, self.packet.len());
            sent += 1;
        }
        let calls = SIZES.transmit / sockets.got.budget + MORE_CALLS;
        let (sender, _) = sockets.sending();
        sender.publish_queued();
        if sender.transmit_needs_wakeup() {
            // A call sends no more than its budget. What these do not send the next ones do.
            for _ in 0..calls {
                match xdp::kick_transmit(sender.as_fd()) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    _ => break,
                }
            }
        }
        // The frame that came back last is the one in the cache.
        sockets.reclaim().map_err(fix::ring)?;
        self.device.stats.queued += sent as u64;
        Ok(sent)
    }

    /// The number of the next packet that has arrived, and its frame back to the kernel.
    #[inline]
    pub fn take(&mut self) -> Result<Option<u64>, DeviceError> {
        let Sockets { queues, umem, .. } = &mut self.device.sockets;
        let queue = &mut queues[0];
        let Some(received) = queue.xsk.receive(umem).map_err(fix::ring)? else {
            return Ok(None);
        };
        let bytes = &umem.bytes(&received.frame)[received.at..][..received.len];
        let number = bytes.get(ENVELOPE..ENVELOPE + NUMBER);
        let number = number.and_then(|bytes| bytes.try_into().ok());
        queue.xsk.release_received();
        queue.to_fill.push(received.frame);
        queue.provide(umem).map_err(fix::ring)?;
        Ok(Some(number.map_or(0, u64::from_ne_bytes)))
    }
}

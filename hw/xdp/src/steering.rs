//! Map, program and link of an interface: what steers packets to sockets, for as long as this lives.
//!
//! The program is attached by a link, which the kernel drops with its last descriptor: a process that is killed leaves nothing behind. It
//! is never attached by netlink, which would.

use crate::device::Place;
use crate::fix;
use crate::mode::Attempt;
use crate::program::{self, SLOTS};
use crate::socket::Queue;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tightbeam_segment::DeviceError;
use tightbeam_sys::Errno;
use tightbeam_sys::bpf::{self, SocketMap};

/// Packets to one port go to the socket of the queue at which they arrive.
pub(crate) struct Steering {
    map: SocketMap,
    queues: Range<u32>,
    /// Attached, while this is open. The link keeps the program, and that the map.
    link: OwnedFd,
    /// The kernel's number of the program.
    pub(crate) program: u32,
    /// The map is also that of a fork.
    owner: u32,
}

impl Steering {
    /// Steers UDP packets to `port` that arrive at a queue of the place's to its socket. All slots are this one's.
    ///
    /// The map has the sockets before the program is attached: no packet finds it empty.
    pub(crate) fn start(
        place: &Place,
        attempt: &Attempt,
        port: u16,
        sockets: &[Queue],
    ) -> Result<Steering, DeviceError> {
        let queues = place.bound.clone();
        let map = SocketMap::create(program::key(queues.end, 0)).map_err(fix::map)?;
        for (queue, socket) in queues.clone().zip(sockets) {
            for slot in 0..SLOTS {
                let key = program::key(queue, slot);
                map.insert(key, socket.xsk.as_fd()).map_err(fix::map)?;
            }
        }
        let code = program::steering(port, map.as_fd().as_raw_fd());
        let program = bpf::load_program(&code).map_err(fix::load)?;
        let attached = bpf::attach(program.as_fd(), place.link.index, attempt.attach);
        let attached = attached.map_err(|errno| not_attached(place, attempt, errno))?;
        Ok(Steering {
            map,
            queues,
            link: attached,
            program: bpf::program_id(program.as_fd()).unwrap_or(0),
            owner: std::process::id(),
        })
    }

    /// Whether it is attached still: not if the interface is gone.
    pub(crate) fn is_attached(&self) -> bool {
        bpf::link_info(self.link.as_fd()).is_ok_and(|info| info.interface != 0)
    }
}

impl Drop for Steering {
    /// Takes the sockets out of the map, so that nothing goes to them any more when they are closed.
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        for queue in self.queues.clone() {
            for slot in 0..SLOTS {
                // It is not there if the interface has gone.
                let _ = self.map.remove(program::key(queue, slot));
            }
        }
    }
}

fn not_attached(place: &Place, attempt: &Attempt, errno: Errno) -> DeviceError {
    if matches!(errno, Errno::BUSY | Errno::EXIST) {
        // Somebody was faster. Who is asked for; if it has gone again, trying again may do.
        let unknown = || fix::foreign(&place.link.name, None, errno);
        return place.is_free().err().unwrap_or_else(unknown);
    }
    fix::attach(&place.link, &place.driver, attempt.mode(), errno)
}

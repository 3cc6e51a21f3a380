//! Map, program and link of an interface: what steers packets to a socket, for as long as this lives.
//!
//! The program is attached by a link, which the kernel drops with its last descriptor: a process that is killed leaves nothing behind. It
//! is never attached by netlink, which would.

use crate::device::Place;
use crate::fix;
use crate::mode::Attempt;
use crate::program::{self, SLOTS};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tightbeam_segment::DeviceError;
use tightbeam_sys::Errno;
use tightbeam_sys::bpf::{self, SocketMap};

/// Packets to one port of one queue go to a socket.
pub(crate) struct Steering {
    map: SocketMap,
    queue: u32,
    /// Attached, while this is open. The link keeps the program, and that the map.
    link: OwnedFd,
    /// The kernel's number of the program.
    pub(crate) program: u32,
    /// The map is also that of a fork.
    owner: u32,
}

impl Steering {
    /// Steers UDP packets to `port` that arrive at a queue to its socket. All slots are this one's.
    ///
    /// The map has the socket before the program is attached: no packet finds it empty.
    pub(crate) fn start(
        place: &Place,
        attempt: &Attempt,
        (queue, port): (u32, u16),
        socket: BorrowedFd<'_>,
    ) -> Result<Steering, DeviceError> {
        let map = SocketMap::create(program::key(queue + 1, 0)).map_err(fix::map)?;
        for slot in 0..SLOTS {
            let key = program::key(queue, slot);
            map.insert(key, socket).map_err(fix::map)?;
        }
        let code = program::steering(port, map.as_fd().as_raw_fd());
        let program = bpf::load_program(&code).map_err(fix::load)?;
        let attached = bpf::attach(program.as_fd(), place.link.index, attempt.attach);
        let attached = attached.map_err(|errno| not_attached(place, attempt, errno))?;
        Ok(Steering {
            map,
            queue,
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
    /// Takes the socket out of the map, so that nothing goes to it any more when it is closed.
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        for slot in 0..SLOTS {
            // It is not there if the interface has gone.
            let _ = self.map.remove(program::key(self.queue, slot));
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

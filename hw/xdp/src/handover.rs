//! Devices for programs without privilege: one process opens, another one uses.
//!
//! The opener keeps what steers packets (program, map, link) and waits, without any capability, for the program to end. The program gets the bound
//! sockets, one a queue, the memory of their frames and the UDP socket that has the port, and a variable of its environment that says which is
//! which. It needs no capability for anything that a device does.
//!
//! What the program *can* do with an AF_XDP socket: send frames with any source address on those queues, and receive what is steered to it.
//! It cannot bind another queue, steer anything, or detach the program.

use crate::address::XdpAddress;
use crate::device::{Place, XdpDevice};
use crate::fix::{refused, system};
use crate::mode::Attempt;
use crate::socket::{Queue, SIZES, Sockets, TO_SEND};
use crate::steering::Steering;
use rustix::io::Errno;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitStatus};
use tightbeam_segment::DeviceError;
use tightbeam_sys::Network;
use tightbeam_sys::bpf::Attach;
use tightbeam_sys::handover::{
    Inherited, User, forbid_debuggers, give_up_privilege, spawn_unprivileged, take_inherited,
};
use tightbeam_sys::xdp::{Copying, RingSizes};

/// The variable that says what was handed over.
pub const VARIABLE: &str = "TIGHTBEAM_XDP";

/// A device that is open and not ours to use.
pub struct HandOver {
    /// Ours still: it ends with this.
    _steering: Option<Steering>,
    sockets: Vec<OwnedFd>,
    memory: OwnedFd,
    port: UdpSocket,
    says: String,
}

impl HandOver {
    /// Opens a device to which others send, to hand it over. Needs the capabilities that [`XdpDevice::listen`] needs.
    pub fn open(address: &XdpAddress) -> Result<HandOver, DeviceError> {
        let device = XdpDevice::listen_unsealed(address)?;
        let says = describe(&device);
        let (steering, Sockets { queues, umem, .. }, port) = device.into_parts();
        // The rings are unmapped here: whoever maps them has the socket.
        let sockets = queues.into_iter().map(|queue| queue.xsk.into_fd());
        let (sockets, memory): (Vec<OwnedFd>, OwnedFd) = (sockets.collect(), umem.into_fd());
        let descriptors = format!(
            "socket={} memory={} port={}",
            listed(sockets.iter().map(AsRawFd::as_raw_fd)),
            memory.as_raw_fd(),
            port.as_raw_fd()
        );
        Ok(HandOver {
            _steering: steering,
            sockets,
            memory,
            port,
            says: format!("{says} {descriptors}"),
        })
    }

    /// Starts the program, which has no capability, as another user if one is given; becomes that user too, and drops the calling thread's
    /// capabilities, for good; waits until the program has ended. Then nothing is steered to its sockets any more.
    ///
    /// The program cannot take descriptors from this process as a debugger could.
    ///
    /// If this process is killed the program is, and the kernel takes the steering program off.
    pub fn run(self, mut command: Command, user: Option<User>) -> io::Result<ExitStatus> {
        command.env(VARIABLE, &self.says);
        forbid_debuggers()?;
        let mut descriptors = vec![self.memory.as_fd(), self.port.as_fd()];
        descriptors.extend(self.sockets.iter().map(AsFd::as_fd));
        let mut child = spawn_unprivileged(&mut command, &descriptors, user)?;
        let HandOver {
            _steering,
            sockets,
            memory,
            port,
            ..
        } = self;
        // The program has them.
        drop((sockets, memory, port));
        give_up_privilege(user)?;
        child.wait()
    }
}

/// Numbers with commas between them.
fn listed<T: ToString>(numbers: impl Iterator<Item = T>) -> String {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    numbers.join(",")
}

fn describe(device: &XdpDevice) -> String {
    let Sockets {
        queues, umem, got, ..
    } = &device.sockets;
    let place = &device.place;
    let filled = umem.count() - TO_SEND;
    let RingSizes {
        fill,
        completion,
        receive,
        transmit,
    } = SIZES;
    format!(
        "interface={} queue={} mode={} copy={} headroom={} budget={} busy={} frames={} bytes={} filled={filled} \
         fill={fill} completion={completion} receive={receive} transmit={transmit}",
        place.link.name,
        place.bound.start,
        device.attempt.mode(),
        device.attempt.copy(),
        got.headroom,
        got.budget,
        listed(queues.iter().map(|queue| u32::from(queue.busy_poll))),
        umem.count(),
        umem.frame_bytes(),
    )
}

/// What the variable says, field by field.
struct Said<'a>(&'a str);

impl Said<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        let fields = self.0.split(' ').filter_map(|field| field.split_once('='));
        let mut found = fields.filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| value)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    fn numbers<T: std::str::FromStr>(&self, name: &str) -> Option<Vec<T>> {
        let numbers = self.text(name)?.split(',');
        numbers.map(|number| number.parse().ok()).collect()
    }

    fn attempt(&self) -> Option<Attempt> {
        Some(Attempt {
            attach: match self.text("mode")? {
                "native" => Attach::Native,
                "generic" => Attach::Generic,
                _ => return None,
            },
            copying: match self.text("copy")? {
                "copy" => Copying::Copy,
                "zerocopy" => Copying::ZeroCopy,
                _ => return None,
            },
            headroom: self.number("headroom")?,
        })
    }

    fn inherited(&self) -> Option<Inherited> {
        Some(Inherited {
            sockets: self.numbers("socket")?,
            memory: self.number("memory")?,
            port: self.number("port")?,
            frames: self.number("frames")?,
            frame_bytes: self.number("bytes")?,
            filled: self.number("filled")?,
            sizes: RingSizes {
                fill: self.number("fill")?,
                completion: self.number("completion")?,
                receive: self.number("receive")?,
                transmit: self.number("transmit")?,
            },
        })
    }
}

impl XdpDevice {
    /// The device that was handed over to this process by [`HandOver::run`], if one was. Can be taken once, and needs no capability.
    pub fn inherited() -> Option<Result<XdpDevice, DeviceError>> {
        let says = std::env::var(VARIABLE).ok()?;
        Some(adopt(&Said(&says)))
    }
}

fn adopt(said: &Said<'_>) -> Result<XdpDevice, DeviceError> {
    let fix = "start the program by `tightbeam xdp-open`, of the same version";
    let unreadable = || refused(format!("understand {VARIABLE}={}", said.0), fix);
    let (attempt, inherited) = said
        .attempt()
        .zip(said.inherited())
        .ok_or_else(unreadable)?;
    let name = said.text("interface").ok_or_else(unreadable)?;
    let first: u32 = said.number("queue").ok_or_else(unreadable)?;
    let polls: Vec<u32> = said.numbers("busy").ok_or_else(unreadable)?;
    let budget = said.number("budget").ok_or_else(unreadable)?;
    let end = first.checked_add(inherited.sockets.len() as u32);
    let end = end.filter(|_| polls.len() == inherited.sockets.len());
    let end = end.ok_or_else(unreadable)?;
    let failed = |errno| system("take over an AF_XDP socket", errno, fix);
    let network = Network::open().map_err(failed)?;
    let link = network.link(name);
    let link = link.map_err(|errno| crate::fix::no_link(name, errno))?;
    let (opened, umem, frames, port) = take_inherited(&inherited).map_err(failed)?;
    let port = UdpSocket::from(port);
    let Ok(SocketAddr::V4(local)) = port.local_addr() else {
        return Err(failed(Errno::NOTCONN));
    };
    let mut sockets = Sockets::over(umem, frames, attempt.headroom);
    sockets.got.budget = budget;
    for (xsk, polls) in opened.into_iter().zip(polls) {
        let mut queue = Queue::new(xsk);
        queue.busy_poll = polls == 1;
        sockets.queues.push(queue);
    }
    sockets.look();
    let place = Place::of(network, link, first..end);
    XdpDevice::over(place, (sockets, None, attempt), (port, local), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_or_refused() {
        let said = "interface=eth0 queue=1 mode=native copy=copy headroom=22 budget=32 busy=0,0 frames=8 bytes=2048 filled=4 \
                    fill=8 completion=4 receive=4 transmit=4 socket=5,8 memory=6 port=7";
        let whole = Said(said);
        assert_eq!(whole.attempt().unwrap().mode(), "native");
        let inherited = whole.inherited().unwrap();
        assert_eq!((inherited.sockets, inherited.port), (vec![5, 8], 7));
        assert_eq!(inherited.sizes.completion, 4);
        for missing in said.split(' ') {
            let less = said.replace(missing, "");
            let less = Said(&less);
            let known = less.attempt().is_some() && less.inherited().is_some();
            let elsewhere = ["interface", "queue", "budget", "busy"];
            let elsewhere = elsewhere.iter().any(|name| missing.starts_with(name));
            assert_eq!(known, elsewhere, "{missing}");
        }
        for (right, wrong) in [
            ("mode=native", "mode=magic"),
            ("socket=5,8", "socket=5,"),
            ("socket=5,8", "socket=5,8,9"),
            ("queue=1", "queue=4294967295"),
        ] {
            let wrong = said.replace(right, wrong);
            let refused = adopt(&Said(&wrong)).err().unwrap().to_string();
            assert!(refused.contains("tightbeam xdp-open"), "{refused}");
        }
    }
}

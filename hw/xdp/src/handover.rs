//! Devices for programs without privilege: one process opens, another one uses.
//!
//! The opener keeps what steers packets (program, map, link) and waits, without any capability, for the program to end. The program gets the bound
//! socket, the memory of its frames and the UDP socket that has the port, and a variable of its environment that says which is which. It
//! needs no capability for anything that a device does.
//!
//! What the program *can* do with an AF_XDP socket: send frames with any source address on that queue, and receive what is steered to it.
//! It cannot bind another queue, steer anything, or detach the program.

use crate::address::XdpAddress;
use crate::device::{Place, XdpDevice};
use crate::fix::{refused, system};
use crate::mode::Attempt;
use crate::socket::{Got, SIZES, Socket, TO_RECEIVE};
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
    socket: OwnedFd,
    memory: OwnedFd,
    port: UdpSocket,
    says: String,
}

impl HandOver {
    /// Opens a device to which others send, to hand it over. Needs the capabilities that [`XdpDevice::listen`] needs.
    pub fn open(address: &XdpAddress) -> Result<HandOver, DeviceError> {
        let device = XdpDevice::listen_unsealed(address)?;
        let says = describe(&device);
        let (steering, socket, port) = device.into_parts();
        // The rings are unmapped here: whoever maps them has the socket.
        let (socket, memory) = (socket.xsk.into_fd(), socket.umem.into_fd());
        let descriptors = format!(
            "socket={} memory={} port={}",
            socket.as_raw_fd(),
            memory.as_raw_fd(),
            port.as_raw_fd()
        );
        Ok(HandOver {
            _steering: steering,
            socket,
            memory,
            port,
            says: format!("{says} {descriptors}"),
        })
    }

    /// Starts the program, which has no capability, as another user if one is given; becomes that user too, and drops the calling thread's
    /// capabilities, for good; waits until the program has ended. Then nothing is steered to its socket any more.
    ///
    /// The program cannot take descriptors from this process as a debugger could.
    ///
    /// If this process is killed the program is, and the kernel takes the steering program off.
    pub fn run(self, mut command: Command, user: Option<User>) -> io::Result<ExitStatus> {
        command.env(VARIABLE, &self.says);
        forbid_debuggers()?;
        let descriptors = [self.socket.as_fd(), self.memory.as_fd(), self.port.as_fd()];
        let mut child = spawn_unprivileged(&mut command, &descriptors, user)?;
        let HandOver {
            _steering,
            socket,
            memory,
            port,
            ..
        } = self;
        // The program has them.
        drop((socket, memory, port));
        give_up_privilege(user)?;
        child.wait()
    }
}

fn describe(device: &XdpDevice) -> String {
    let (place, got) = (&device.place, &device.socket.got);
    let umem = &device.socket.umem;
    let RingSizes {
        fill,
        completion,
        receive,
        transmit,
    } = SIZES;
    format!(
        "interface={} queue={} mode={} copy={} headroom={} budget={} busy={} frames={} bytes={} filled={TO_RECEIVE} \
         fill={fill} completion={completion} receive={receive} transmit={transmit}",
        place.link.name,
        place.queue,
        device.attempt.mode(),
        device.attempt.copy(),
        got.headroom,
        got.budget,
        u32::from(got.busy_poll),
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
            socket: self.number("socket")?,
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
    let queue = said.number("queue").ok_or_else(unreadable)?;
    let failed = |errno| system("take over an AF_XDP socket", errno, fix);
    let network = Network::open().map_err(failed)?;
    let link = network.link(name);
    let link = link.map_err(|errno| crate::fix::no_link(name, errno))?;
    let (xsk, umem, frames, port) = take_inherited(&inherited).map_err(failed)?;
    let port = UdpSocket::from(port);
    let Ok(SocketAddr::V4(local)) = port.local_addr() else {
        return Err(failed(Errno::NOTCONN));
    };
    let mut socket = Socket {
        xsk,
        umem,
        to_send: frames,
        to_fill: Vec::new(),
        got: Got {
            zero_copy: false,
            headroom: attempt.headroom,
            napi: 0,
            busy_poll: said.number::<u32>("busy") == Some(1),
            budget: said.number("budget").ok_or_else(unreadable)?,
        },
    };
    socket.look();
    let place = Place::of(network, link, queue);
    let opened = (socket, None, attempt);
    Ok(XdpDevice::over(place, opened, (port, local), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_or_refused() {
        let said = "interface=eth0 queue=1 mode=native copy=copy headroom=22 budget=32 busy=0 frames=8 bytes=2048 filled=4 \
                    fill=8 completion=4 receive=4 transmit=4 socket=5 memory=6 port=7";
        let whole = Said(said);
        assert_eq!(whole.attempt().unwrap().mode(), "native");
        let inherited = whole.inherited().unwrap();
        assert_eq!((inherited.socket, inherited.port), (5, 7));
        assert_eq!(inherited.sizes.completion, 4);
        for missing in said.split(' ') {
            let less = said.replace(missing, "");
            let less = Said(&less);
            let known = less.attempt().is_some() && less.inherited().is_some();
            let elsewhere = ["interface", "queue", "budget", "busy"];
            let elsewhere = elsewhere.iter().any(|name| missing.starts_with(name));
            assert_eq!(known, elsewhere, "{missing}");
        }
        let wrong = said.replace("mode=native", "mode=magic");
        let refused = adopt(&Said(&wrong)).err().unwrap().to_string();
        assert!(refused.contains("tightbeam xdp-open"), "{refused}");
    }
}

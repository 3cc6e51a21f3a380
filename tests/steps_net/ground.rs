//! Where it takes place: the survivor's host and the victim's, and a way between them.

use crate::netns::{self, END, Pair};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;

/// Tell a child where its host is, where the survivor listens, and where itself may listen.
const SPACE: &str = "TIGHTBEAM_STEPS_SPACE";
const THERE: &str = "TIGHTBEAM_STEPS_THERE";
const OWN: &str = "TIGHTBEAM_STEPS_OWN";

/// Addresses of one way between two hosts.
pub(crate) struct Ground {
    pub(crate) name: &'static str,
    /// Where the survivor listens.
    pub(crate) listens: String,
    /// The same address, as the victim says it and as the third party does.
    there: String,
    pub(crate) there_by_socket: String,
    /// Where a victim listens, and the same as the survivor says it.
    own: String,
    pub(crate) victim: String,
    /// The victim's namespace, if it has one.
    space: Option<String>,
    /// Victims of an operation where there shall be few of them: to attach a program to an interface takes some 100 ms.
    pub(crate) few: u64,
}

impl Ground {
    /// Two sockets of one host.
    fn udp(port: u16) -> Ground {
        let address = |port| format!("udp:127.0.0.1:{port}");
        let (here, there) = (address(port), address(port + 1));
        Ground {
            name: "udp",
            listens: here.clone(),
            there: here.clone(),
            there_by_socket: here,
            own: there.clone(),
            victim: there,
            space: None,
            few: if cfg!(debug_assertions) { 16 } else { 60 },
        }
    }

    /// Two namespaces, on either side of a `veth` pair.
    fn xdp(name: &'static str, mode: &str, pair: &Pair) -> Ground {
        let address = |host| format!("xdp:{END}/{host}?mode={mode}");
        let (here, there) = ("10.77.0.1:7400", "10.77.0.2:7401");
        Ground {
            name,
            listens: address(here),
            there: address(here),
            there_by_socket: format!("udp:{here}"),
            own: address(there),
            victim: address(there),
            space: Some(format!("/run/netns/{}", pair.right.name())),
            few: if cfg!(debug_assertions) { 4 } else { 8 },
        }
    }

    /// Does something on each of them that there is, as the survivor's host. The sockets of one host have this port and the next.
    pub(crate) fn each(port: u16, mut job: impl FnMut(&Ground) + Send) {
        job(&Ground::udp(port));
        let Some(_alone) = netns::may() else { return };
        for (name, mode) in [("xdp, generic", "generic"), ("xdp, native", "native")] {
            let pair = Pair::new("");
            let ground = Ground::xdp(name, mode, &pair);
            pair.left.run(|| job(&ground));
        }
    }

    /// What a child must know.
    pub(crate) fn tell(&self, child: &mut std::process::Command) {
        child.env(THERE, &self.there).env(OWN, &self.own);
        if let Some(space) = &self.space {
            child.env(SPACE, space);
        }
    }
}

fn told(name: &str) -> String {
    std::env::var(name).expect("what the parent tells")
}

/// In a child: the survivor's address.
pub(crate) fn there() -> String {
    told(THERE)
}

/// In a victim: its own address.
pub(crate) fn own() -> String {
    told(OWN)
}

/// In a child: goes to its host.
pub(crate) fn enter() {
    if let Ok(space) = std::env::var(SPACE) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let space = rustix::fs::open(space, flags, Mode::empty()).expect("a namespace");
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(space.as_fd(), kind).expect("root may enter a namespace");
    }
}

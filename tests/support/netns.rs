//! Network namespaces of a test's own, joined by a virtual cable; gone when this is dropped. Only root can have them.

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> Result<(), String> {
    let done = Command::new("ip").args(words.split_whitespace()).output();
    let done = done.map_err(|error| format!("ip: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {words}: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        )),
    }
}

/// Two hosts on one cable, `10.77.0.1` and `10.77.0.2`, each with an interface of the name `eth`.
pub(crate) struct Cable {
    names: [String; 2],
}

impl Cable {
    pub(crate) const ADDRESSES: [Ipv4Addr; 2] =
        [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

    /// Lays it. An error is the reason to skip: this process is not root, or `ip` is missing.
    pub(crate) fn lay() -> Result<Cable, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root: network namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN".into());
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("tbt-{}-{count}-{end}", std::process::id());
        let cable = Cable {
            names: [name('a'), name('b')],
        };
        for name in &cable.names {
            ip(&format!("netns add {name}"))?;
        }
        let [a, b] = &cable.names;
        ip(&format!(
            "link add eth netns {a} type veth peer name eth netns {b}"
        ))?;
        for (name, address) in cable.names.iter().zip(Cable::ADDRESSES) {
            ip(&format!("-n {name} address add {address}/24 dev eth"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set eth up"))?;
        }
        Ok(cable)
    }

    /// Name of the namespace at this end, for `ip -n`.
    pub(crate) fn name(&self, end: usize) -> &str {
        &self.names[end]
    }

    /// Does something as the host at this end: sockets stay there that are made so.
    pub(crate) fn at<T>(&self, end: usize, act: impl FnOnce() -> T) -> T {
        let _there = Visit::to(&format!("/run/netns/{}", self.names[end]));
        act()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            // It may never have been made.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

/// The calling thread is in another namespace until this is dropped.
struct Visit(OwnedFd);

impl Visit {
    fn to(path: &str) -> Visit {
        let home = open("/proc/thread-self/ns/net");
        enter(&open(path));
        Visit(home)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        enter(&self.0);
    }
}

fn open(path: &str) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).expect("a namespace")
}

fn enter(namespace: &OwnedFd) {
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).expect("root may enter a namespace");
}

//! Network namespaces of a test's own, joined by `veth` pairs, and removed with it. Needs root and `ip`; installs nothing.
//!
//! A thread enters a namespace for good, so what is to happen in one is run on a thread of its own: [`Namespace::run`]. Sockets keep the
//! namespace in which they were made, wherever they go then.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Capabilities by their numbers: CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_BPF.
const WANTED: [u32; 4] = [12, 13, 21, 39];

/// Held by a test that uses namespaces: one at a time. Another one's `ip`, between its fork and its exec, would have a copy of each descriptor
/// that this one closes, and so keep ports and queues.
pub(crate) type Alone = MutexGuard<'static, ()>;

static ALONE: Mutex<()> = Mutex::new(());

/// Whether this process may make namespaces and open AF_XDP sockets, and then the turn to do it; prints why not.
pub(crate) fn may() -> Option<Alone> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let has = |n: &u32| effective.is_some_and(|bits| bits & 1 << n != 0);
    if !WANTED.iter().all(has) {
        println!("skipped: needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: needs `ip` (Debian's package iproute2)");
        return None;
    }
    // What a test that failed has left is removed with it.
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `ip`.
///
/// # Panics
///
/// If it fails, with what it says.
pub(crate) fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output();
    let done = done.expect("ip runs");
    let says = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {says}");
}

/// A network namespace, removed on drop with the interfaces in it.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, in which `lo` is up.
    pub(crate) fn new() -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tb{}n{number}", std::process::id());
        ip(&format!("netns add {name}"));
        let namespace = Namespace { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Its name, for `ip netns exec`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Does something in it, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let door = File::open(format!("/run/netns/{}", self.name)).expect("a namespace of ours");
        let inside = move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(door.as_fd(), kind).expect("a thread may move");
            job()
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let gone = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        debug_assert!(gone.is_ok_and(|status| status.success()));
    }
}

/// Two hosts on one link: `ve0` with 10.77.0.1 and `ve0` with 10.77.0.2, each in a namespace of its own.
pub(crate) struct Pair {
    /// 10.77.0.1
    pub(crate) left: Namespace,
    /// 10.77.0.2
    pub(crate) right: Namespace,
}

/// The interface at each end.
pub(crate) const END: &str = "ve0";

impl Pair {
    /// A new pair, up; `options` as `ip link add` takes them, as `numrxqueues 2`.
    pub(crate) fn new(options: &str) -> Pair {
        let (left, right) = (Namespace::new(), Namespace::new());
        let space = if options.is_empty() { "" } else { " " };
        let (a, b) = (left.name(), right.name());
        ip(&format!(
            "link add {END} netns {a}{space}{options} type veth peer name {END} netns {b}{space}{options}"
        ));
        for (end, address) in [(&left, "10.77.0.1/24"), (&right, "10.77.0.2/24")] {
            end.ip(&format!("addr add {address} dev {END}"));
            end.ip(&format!("link set {END} up"));
        }
        Pair { left, right }
    }
}

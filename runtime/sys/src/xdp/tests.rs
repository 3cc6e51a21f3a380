//! Sockets on the loopback interface of a namespace of the test's own; as root.

use super::*;
use crate::Network;
use std::process::Command;
use std::time::{Duration, Instant};

const SIZES: RingSizes = RingSizes {
    fill: 8,
    completion: 8,
    receive: 8,
    transmit: 8,
};

/// Does something on a thread that has a network namespace to itself, if this process may.
fn alone(job: impl FnOnce(u32) + Send) {
    let apart = || {
        // SAFETY: aliasing: only the network namespace is left, which no memory and no descriptor of other threads depends on.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if left != 0 || Opening::new().is_err() {
            println!("skipped: needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW");
            return;
        }
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        if !up.is_ok_and(|status| status.success()) {
            println!("skipped: needs `ip` (Debian's package iproute2)");
            return;
        }
        job(Network::open().unwrap().link("lo").unwrap().index);
    };
    let done = std::thread::scope(|scope| scope.spawn(apart).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn socket() -> (Xsk, Umem) {
    let (mut umem, mut frames) = Umem::create(16, 2048).unwrap();
    let mut opening = Opening::new().unwrap();
    opening.register(&umem, 0).unwrap();
    let mut socket = opening.map(SIZES).unwrap();
    socket.provide(&mut umem, &mut frames).unwrap();
    socket.publish_provided();
    (socket, umem)
}

/// Binds a socket as soon as the kernel has cleaned up behind the one before.
fn bound_in_time(socket: &Xsk, interface: u32, bound: Duration) -> Result<(), Errno> {
    let end = Instant::now() + bound;
    loop {
        match socket.bind(interface, 0, Copying::Copy) {
            Err(Errno::BUSY) if Instant::now() < end => std::thread::yield_now(),
            done => return done,
        }
    }
}

#[test]
fn a_socket_that_is_closed_keeps_its_queue_until_its_rings_are_unmapped() {
    alone(|lo| {
        let (first, umem) = socket();
        first.bind(lo, 0, Copying::Copy).unwrap();
        let Xsk {
            fill,
            transmit,
            receive,
            completion,
            fd,
            memory: _,
        } = first;
        drop(fd);
        let (second, _umem) = socket();
        let rings_mapped = bound_in_time(&second, lo, Duration::from_millis(300));
        assert_eq!(rings_mapped, Err(Errno::BUSY));
        drop((fill, transmit, receive, completion));
        assert_eq!(bound_in_time(&second, lo, Duration::from_secs(10)), Ok(()));
        drop(umem);
    });
}

#[test]
fn memory_and_rings_belong_together() {
    alone(|_| {
        let (umem, _) = Umem::create(16, 2048).unwrap();
        let (mut other, mut frames) = Umem::create(16, 2048).unwrap();
        let mut opening = Opening::new().unwrap();
        opening.register(&umem, 0).unwrap();
        // Once is all.
        assert_eq!(opening.register(&other, 0), Err(Errno::BUSY));
        let mut socket = opening.map(SIZES).unwrap();
        let beside = std::panic::AssertUnwindSafe(|| socket.provide(&mut other, &mut frames));
        assert!(std::panic::catch_unwind(beside).is_err());
        let nothing = Opening::new().unwrap();
        assert_eq!(nothing.map(SIZES).err(), Some(Errno::INVAL));
    });
}

/// A socket that shares the memory of another one has rings of its own, so another queue; and the other one is bound first.
#[test]
fn what_the_kernel_refuses_to_share_is_said() {
    alone(|lo| {
        let (first, umem) = socket();
        let mut opening = Opening::new().unwrap();
        opening.share(&umem);
        let second = opening.map(SIZES).unwrap();
        assert_eq!(second.bind_shared(lo, 0, &first), Err(Errno::BADF));
        first.bind(lo, 0, Copying::Copy).unwrap();
        assert_eq!(second.bind_shared(lo, 0, &first), Err(Errno::INVAL));
        assert_eq!(second.bind_shared(lo, 1, &first), Err(Errno::INVAL));
        let (other, _umem) = socket();
        assert_eq!(other.bind_shared(lo, 0, &first), Err(Errno::INVAL));
    });
}

#[test]
fn what_the_kernel_refuses_to_bind_is_said() {
    alone(|lo| {
        let (socket, _umem) = socket();
        assert_eq!(socket.bind(lo, 1, Copying::Copy), Err(Errno::INVAL));
        assert_eq!(
            socket.bind(0x7fff_0000, 0, Copying::Copy),
            Err(Errno::NODEV)
        );
        let zero_copy = socket.bind(lo, 0, Copying::ZeroCopy);
        assert_eq!(zero_copy, Err(Errno::OPNOTSUPP));
        socket.bind(lo, 0, Copying::Copy).unwrap();
        assert_eq!(is_zero_copy(socket.as_fd()), Ok(false));
        assert_eq!(napi_id(socket.as_fd()), Ok(0));
    });
}

/// Without a NAPI instance, as here, they do nothing; that they are taken can be seen all the same.
#[test]
fn the_options_of_busy_polling_are_those_of_the_kernel() {
    alone(|lo| {
        let (socket, _umem) = socket();
        socket.bind(lo, 0, Copying::Copy).unwrap();
        let says = |option| get_option(socket.as_fd(), libc::SOL_SOCKET, option);
        assert_eq!(says(libc::SO_PREFER_BUSY_POLL), Ok(0));
        set_busy_poll(socket.as_fd(), 21, 63).unwrap();
        assert_eq!(says(libc::SO_PREFER_BUSY_POLL), Ok(1));
        assert_eq!(says(libc::SO_BUSY_POLL), Ok(21));
    });
}

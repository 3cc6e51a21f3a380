//! Network namespaces without names: each lasts as long as a descriptor of it, or a process in it, so nothing is left behind however
//! a process ends. Making one needs `CAP_SYS_ADMIN`.

use crate::{Errno, last_errno};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{BorrowedFd, OwnedFd};

/// Makes a namespace with nothing in it but a loopback interface that is down. Nobody is in it.
pub fn create() -> Result<OwnedFd, Errno> {
    let make = || {
        // SAFETY: aliasing: this flag changes only where the calling thread's network calls go, and the thread does nothing else.
        match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
            0 => current(),
            _ => Err(last_errno()),
        }
    };
    // A thread that is in no other namespace for long.
    let made = std::thread::Builder::new().spawn(make);
    let made = made.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
    made.join().unwrap_or(Err(Errno::CANCELED))
}

/// The calling thread's namespace.
pub fn current() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
}

/// Moves the calling thread into a namespace: sockets that it makes, and processes that it starts, are there.
pub fn enter(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_done_in_a_namespace_stays_there() {
        let other = match create() {
            Ok(other) => other,
            Err(Errno::PERM) => return eprintln!("skipped: not root"),
            Err(errno) => panic!("{errno}"),
        };
        let home = current().unwrap();
        enter(other.as_fd()).unwrap();
        let network = crate::Network::open().unwrap();
        let there = network.link("lo").unwrap();
        let alone = network.link_by_index(there.index + 1);
        enter(home.as_fd()).unwrap();
        assert!(!there.up);
        assert_eq!(alone, Err(Errno::NODEV));
        let [inside, outside] = [&other, &home].map(|fd| rustix::fs::fstat(fd).unwrap().st_ino);
        assert_ne!(inside, outside);
    }
}

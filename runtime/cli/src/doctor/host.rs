//! What messages between processes of this host need of its kernel.

use super::capabilities::Effective;
use super::finding::Finding;
use rustix::process::{Resource, getrlimit};
use std::os::fd::AsFd;
use tightbeam_sys::control;
use tightbeam_sys::memory::{MemoryOptions, OwnMemory, PeerMemory, is_settled, page_size};
use tightbeam_sys::wake;

/// The oldest kernel that has all that is needed.
const OLDEST: (u32, u32) = (6, 5);
/// The frames of an AF_XDP device on one queue, with an MTU for which they are large; and on up to eight.
const FRAMES: u64 = 6 << 20;
const MORE_FRAMES: u64 = 10 << 20;
const SANDBOX: &str = "have the container's or unit's seccomp filter allow";

/// Looks at everything that does not depend on an interface.
pub(super) fn look() -> Vec<Finding> {
    let release = rustix::system::uname();
    vec![
        kernel(&release.release().to_string_lossy()),
        peer_pidfd(),
        barrier(),
        seals(),
        futex(),
        locked_memory(),
    ]
}

fn kernel(release: &str) -> Finding {
    let mut parts = release.split(['.', '-']).map(str::parse::<u32>);
    let version = match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let says = format!(
        "Linux {release}; {}.{} or later is needed",
        OLDEST.0, OLDEST.1
    );
    match version {
        Some(version) if version >= OLDEST => Finding::ok("kernel", says),
        Some(_) => Finding::problem("kernel", says, "boot a newer kernel"),
        None => Finding::note("kernel", says),
    }
}

/// Whether the end of a peer can be told.
fn peer_pidfd() -> Finding {
    let asked = control::pair().and_then(|(here, _there)| control::peer_pidfd(here.as_fd()));
    match asked {
        Ok(_) => Finding::ok(
            "SO_PEERPIDFD",
            "the kernel tells when a peer's process ends",
        ),
        Err(errno) => Finding::problem(
            "SO_PEERPIDFD",
            format!("the kernel cannot tell when a peer's process ends: {errno}"),
            "boot Linux 6.5 or later",
        ),
    }
}

/// Whether who goes to sleep can be seen without a fence in each send.
fn barrier() -> Finding {
    match wake::register_barrier().and_then(|()| wake::barrier()) {
        Ok(()) => Finding::ok("membarrier", "senders need no fence"),
        Err(errno) => Finding::problem(
            "membarrier",
            format!("the system call fails: {errno}"),
            format!("{SANDBOX} membarrier"),
        ),
    }
}

/// Makes a segment, and maps it as its peer does.
fn seals() -> Finding {
    let made = || -> Result<bool, String> {
        let own = OwnMemory::create(page_size(), &MemoryOptions::default());
        let own = own.map_err(|error| error.to_string())?;
        let fd = own.fd().try_clone_to_owned();
        let fd = fd.map_err(|error| error.to_string())?;
        let _peer = PeerMemory::map(fd, page_size()).map_err(|error| error.to_string())?;
        is_settled(own.fd()).map_err(|errno| errno.to_string())
    };
    match made() {
        Ok(true) => Finding::ok(
            "memfd seals",
            "a segment stays as it is once two have mapped it",
        ),
        Ok(false) => Finding::problem("memfd seals", "they have no effect", "boot another kernel"),
        Err(why) => Finding::problem(
            "memfd seals",
            why,
            format!("{SANDBOX} memfd_create, fchmod and fcntl"),
        ),
    }
}

fn futex() -> Finding {
    match wake::can_wait_any() {
        Ok(()) => Finding::ok(
            "futex_waitv",
            "an endpoint sleeps on all its channels at once",
        ),
        Err(errno) => Finding::problem(
            "futex_waitv",
            format!("the system call fails: {errno}"),
            format!("{SANDBOX} futex_waitv"),
        ),
    }
}

fn locked_memory() -> Finding {
    const NAME: &str = "memlock";
    if Effective::read().may_lock() {
        return Finding::ok(NAME, "no limit: this process has CAP_IPC_LOCK");
    }
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        None => Finding::ok(NAME, "no limit"),
        Some(bytes) => {
            let says = format!(
                "{} KiB may be locked; an AF_XDP device takes up to {} of them on one queue, up to {} on eight",
                bytes / 1024,
                FRAMES / 1024,
                MORE_FRAMES / 1024
            );
            match bytes >= FRAMES {
                true => Finding::ok(NAME, says),
                false => {
                    Finding::note(NAME, says).mended_by(format!("ulimit -l {}", 2 * FRAMES / 1024))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn kernels_are_compared_by_their_numbers() {
        for (release, verdict) in [
            ("6.5.0", Verdict::Ok),
            ("6.18.44-fc-v595", Verdict::Ok),
            ("10.0-rc1", Verdict::Ok),
            ("6.4.16", Verdict::Problem),
            ("5.15.0-91-generic", Verdict::Problem),
            ("unheard-of", Verdict::Note),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }
}

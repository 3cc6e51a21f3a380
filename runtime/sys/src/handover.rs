//! Handing descriptors over to a program that has no privilege, and taking them.
//!
//! ```text
//!   opener                                       program
//!   opens, binds, steers                         starts: nothing but its arguments, a variable, and the descriptors
//!   fork -> descriptors stay open over exec
//!           no capability, no way to get one
//!           killed when the opener ends
//!           exec ----------------------------->  take_inherited: AF_XDP sockets, memory, UDP socket
//! ```
//!
//! What is not handed over is what gives power over others: the program that steers packets, its map and its link.

use crate::Errno;
use crate::memory::SIZE_SEALS;
use crate::xdp::{Frame, RingSizes, Umem, Xsk};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, sockopt};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Numbers of capabilities end before this one.
const LAST_CAPABILITY: libc::c_ulong = 64;

/// The system calls that a program needs once it has its device, for a filter (seccomp): name and number. To send; to busy-poll and to hear the
/// kernel's answers about routes; to ask a socket how it stands; to wait; those with which any program takes and gives memory; and to end.
pub const SYSTEM_CALLS: [(&str, i64); 8] = [
    ("sendto", libc::SYS_sendto),
    ("recvfrom", libc::SYS_recvfrom),
    ("getsockopt", libc::SYS_getsockopt),
    ("ppoll", libc::SYS_ppoll),
    ("brk", libc::SYS_brk),
    ("mmap", libc::SYS_mmap),
    ("munmap", libc::SYS_munmap),
    ("exit_group", libc::SYS_exit_group),
];

/// Another user, and its group, for a program to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub user: u32,
    /// Group number; it has no others.
    pub group: u32,
}

/// Nothing that is executed from now on has a capability. Only who has CAP_SETPCAP can lower the bound; who has not gets no more by exec than it
/// holds, once [`drop_held`] has run.
fn lower_bound() {
    for capability in 0..LAST_CAPABILITY {
        // SAFETY: bounds: the call takes plain numbers. A number that is no capability is an error, which is no harm.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            break;
        }
    }
}

/// Drops every capability of the calling thread, in all sets, and the ways to get one again: a program that it becomes has none, whoever it is and
/// whatever its file says.
fn drop_held() -> io::Result<()> {
    // SAFETY: bounds: the call takes plain numbers.
    let cleared = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    check(cleared)?;
    // SAFETY: bounds: the call takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let header: [u32; 2] = [CAPABILITY_VERSION, 0];
    let none = [0u32; 6];
    // SAFETY: bounds: with this version the kernel reads 8 bytes of the header and 24 of the sets; both outlive the call.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps this process' descriptors and memory from others of its user, who could otherwise take them as a debugger does.
pub fn forbid_debuggers() -> io::Result<()> {
    // SAFETY: bounds: the call takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Becomes another user for good, if one is given, and drops every capability.
///
/// A process whose program runs as another user must be that user too: the kernel kills it in our name when we end, and without a capability we
/// may kill our own alone.
pub fn give_up_privilege(user: Option<User>) -> io::Result<()> {
    // Before the change of user, which takes the right to do it.
    lower_bound();
    if let Some(user) = user {
        become_user(user)?;
        // It is so by the change of user; it shall not depend on a setting of the host.
        forbid_debuggers()?;
    }
    drop_held()
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes another user for good.
fn become_user(user: User) -> io::Result<()> {
    // SAFETY: bounds: no groups are passed, so none are read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: bounds: the call takes plain numbers.
    check(unsafe { libc::setresgid(user.group, user.group, user.group) })?;
    // SAFETY: bounds: the call takes plain numbers.
    check(unsafe { libc::setresuid(user.user, user.user, user.user) })
}

/// Starts a program that has these descriptors, under the numbers that they have here, and no capability; as another user, if one is given.
///
/// It is killed when the calling thread ends, if that is of the same user then, or has `CAP_KILL`. No other descriptor of ours is passed on, if all are close-on-exec, as this crate's are.
pub fn spawn_unprivileged(
    command: &mut Command,
    descriptors: &[BorrowedFd<'_>],
    user: Option<User>,
) -> io::Result<Child> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: bounds: the call takes nothing.
    let opener = unsafe { libc::getpid() };
    let prepare = move || {
        for &number in &numbers {
            // SAFETY: bounds: the call takes plain numbers.
            check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
        }
        give_up_privilege(user)?;
        // Behind the change of user, which would take it back.
        // SAFETY: bounds: the call takes plain numbers.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
        // SAFETY: bounds: the call takes nothing.
        match unsafe { libc::getppid() } == opener {
            true => Ok(()),
            // It has ended before that.
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: 1. between fork and exec it makes system calls alone: it allocates nothing, takes no lock, and touches no memory of other threads
    // but `numbers`, which is moved into it.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Descriptors that were handed over to this process, by their numbers, and what is known of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// AF_XDP sockets that are bound, one at least.
    pub sockets: Vec<RawFd>,
    /// The memory of their frames.
    pub memory: RawFd,
    /// A UDP socket that has their port.
    pub port: RawFd,
    /// Frames.
    pub frames: u32,
    /// Bytes of each.
    pub frame_bytes: u32,
    /// The first so many frames are in FILL, or beyond.
    pub filled: u32,
    /// Entries of each one's rings.
    pub sizes: RingSizes,
}

/// Takes what was handed over to this process when it was started: at most once, before anything else might have got the same numbers.
///
/// [`Errno::EXIST`] if it was taken before; [`Errno::BADF`] if a descriptor is not open, or is of another kind; [`Errno::INVAL`] if sizes do not
/// fit.
pub fn take_inherited(said: &Inherited) -> Result<(Vec<Xsk>, Umem, Vec<Frame>, OwnedFd), Errno> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut numbers = vec![said.memory, said.port];
    numbers.extend(&said.sockets);
    let distinct = numbers.iter().collect::<BTreeSet<_>>().len() == numbers.len();
    let standard = numbers.iter().any(|&number| number <= libc::STDERR_FILENO);
    if !distinct || standard || said.sockets.is_empty() {
        return Err(Errno::BADF);
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Errno::EXIST);
    }
    for &number in &numbers {
        // SAFETY: bounds: the call takes plain numbers; of one that is not open it is an error.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        // What is close-on-exec was not handed over: this process has opened it itself.
        if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
            return Err(Errno::BADF);
        }
    }
    let own = |number| {
        // SAFETY: aliasing: the descriptor is open and was so at the start of the process, because it is not close-on-exec, which what Rust opens is;
        // no standard one; and taken by nobody else, because that happens once.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let [memory, port] = [said.memory, said.port].map(own);
    let sockets: Vec<OwnedFd> = said.sockets.iter().copied().map(own).collect();
    for descriptor in sockets.iter().chain([&memory, &port]) {
        rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    let of = |socket, family| sockopt::socket_domain(socket).is_ok_and(|found| found == family);
    let seals = rustix::fs::fcntl_get_seals(&memory);
    let all_xdp = sockets.iter().all(|fd| of(fd, AddressFamily::XDP));
    let kinds = all_xdp && of(&port, AddressFamily::INET);
    if !kinds || !seals.is_ok_and(|seals| seals.contains(SIZE_SEALS)) {
        return Err(Errno::BADF);
    }
    let (umem, frames) = Umem::adopt(memory, said.frames, said.frame_bytes, said.filled)?;
    let adopt = |socket| Xsk::adopt(socket, &umem, said.sizes);
    let sockets: Result<Vec<Xsk>, Errno> = sockets.into_iter().map(adopt).collect();
    Ok((sockets?, umem, frames, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn says(field: &str) -> impl Fn(&str) -> Option<String> {
        let field = format!("{field}:");
        move |status| {
            let line = status.lines().find_map(|l| l.strip_prefix(&field))?;
            Some(line.trim().to_owned())
        }
    }

    #[test]
    fn a_program_is_started_without_any_capability_and_with_the_descriptors() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (_, other) = std::io::pipe().unwrap();
        // A number that the shell has no use for. (It takes no number of more than one digit behind `>&`.)
        let other = rustix::io::fcntl_dupfd_cloexec(&other, 100).unwrap();
        let number = writer.as_raw_fd();
        let mut command = Command::new("sh");
        let script = format!(
            "cat /proc/self/status >/dev/fd/{number}; echo other: $(test -e /proc/self/fd/{} && echo open) >/dev/fd/{number}",
            other.as_raw_fd()
        );
        command.args(["-c", &script]);
        let mut child = spawn_unprivileged(&mut command, &[writer.as_fd()], None).unwrap();
        drop(writer);
        let mut status = String::new();
        std::io::Read::read_to_string(&mut reader, &mut status).unwrap();
        assert!(child.wait().unwrap().success());
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(says(set)(&status).unwrap(), "0000000000000000", "{set}");
        }
        assert_eq!(says("NoNewPrivs")(&status).unwrap(), "1");
        assert_eq!(says("other")(&status).unwrap(), "");
    }

    #[test]
    fn what_was_not_handed_over_is_not_taken() {
        let said = Inherited {
            sockets: vec![1],
            memory: 700,
            port: 701,
            frames: 4,
            frame_bytes: 2048,
            filled: 2,
            sizes: RingSizes {
                fill: 4,
                completion: 4,
                receive: 4,
                transmit: 4,
            },
        };
        assert_eq!(take_inherited(&said).err(), Some(Errno::BADF));
        let of = |sockets| Inherited {
            sockets,
            ..said.clone()
        };
        assert_eq!(take_inherited(&of(vec![])).err(), Some(Errno::BADF));
        let twice = of(vec![702, 700]);
        assert_eq!(take_inherited(&twice).err(), Some(Errno::BADF));
        let closed = of(vec![702, 703]);
        assert_eq!(take_inherited(&closed).err(), Some(Errno::BADF));
        assert_eq!(take_inherited(&closed).err(), Some(Errno::EXIST));
    }
}

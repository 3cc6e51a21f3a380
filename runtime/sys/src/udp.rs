//! What the kernel does with a UDP socket and knows about it, beyond what `rustix` asks for.

use crate::Errno;
use crate::last_errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Leaves the UDP checksum out of what is sent (`SO_NO_CHECK`): it is 0, which says so. Over a virtual interface the kernel would
/// leave half of it there for hardware that is not, and who looks at the packet before another kernel does takes it for wrong.
pub fn set_no_checksum(socket: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, on)
}

/// Lets the kernel queue what it learns about packets that did not arrive (`IP_RECVERR`), for [`take_report`]; and makes a full
/// queue of the interface an error instead of silence.
pub fn report_errors(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, true)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    on: bool,
) -> Result<(), Errno> {
    let value = libc::c_int::from(on);
    // SAFETY: bounds: the length is that of `value`, which lives on this stack during the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// How many packets the kernel has dropped at this socket since it was made, nearly always because nobody took them and its
/// receive buffer was full (`SO_MEMINFO`). Wraps at 2^32.
///
/// The same count would come with each packet (`SO_RXQ_OVFL`), which costs each packet something, and does not say what was
/// dropped after the last one.
pub fn dropped(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut values = [0u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut length = size_of_val(&values) as libc::socklen_t;
    // SAFETY: bounds: the length is that of `values`, and both live on this stack during the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match failed {
        0 => Ok(values[libc::SK_MEMINFO_DROPS as usize]),
        _ => Err(last_errno()),
    }
}

/// What became of a packet, as the network has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The error that it would be, if it were one of a call.
    pub errno: Errno,
    /// This host's own kernel says so, and the call that sent the packet has said it already.
    pub local: bool,
}

/// Takes one report about a packet that did not arrive, if there is one. Needs [`report_errors`].
pub fn take_report(socket: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    /// More than a control message with an error and the address of who reported it.
    const SPACE: usize = 128;
    let mut space = [0u64; SPACE / 8];
    // SAFETY: initialised: all zero bytes are a valid msghdr, with null pointers and no lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = SPACE as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: bounds: the header points to no bytes, and to a control buffer of the length that it says; both live on this stack.
    let failed = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) } < 0;
    if failed {
        return match last_errno() {
            Errno::AGAIN => Ok(None),
            errno => Err(errno),
        };
    }
    Ok(Some(first_report(&header)))
}

/// The report in a header that the kernel has filled; one without words is a report of nothing that is known.
fn first_report(header: &libc::msghdr) -> Report {
    // SAFETY: bounds: the header's control buffer and its length are as the kernel left them after `recvmsg`.
    let message = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: bounds, initialised: null, or a whole control header in that buffer, says CMSG_FIRSTHDR.
    let known = unsafe { message.as_ref() }.filter(|message| {
        message.cmsg_level == libc::IPPROTO_IP
            && message.cmsg_type == libc::IP_RECVERR
            && message.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<Extended>()
    });
    let Some(_) = known else {
        return Report {
            errno: Errno::IO,
            local: false,
        };
    };
    // SAFETY: bounds: the message was checked to be long enough for an `Extended` behind its header.
    let data = unsafe { libc::CMSG_DATA(message) };
    // SAFETY: bounds: as above. alignment: read as if there were none. initialised: the kernel wrote it.
    let extended = unsafe { data.cast::<Extended>().read_unaligned() };
    Report {
        errno: Errno::from_raw_os_error(extended.ee_errno as i32),
        local: extended.ee_origin == libc::SO_EE_ORIGIN_LOCAL,
    }
}

type Extended = libc::sock_extended_err;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::os::fd::AsFd;

    fn socket() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[test]
    fn a_port_without_a_socket_is_reported_and_drops_are_counted() {
        let (near, far) = (socket(), socket());
        report_errors(near.as_fd()).unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        assert_eq!(take_report(near.as_fd()).unwrap(), None);
        assert_eq!(dropped(far.as_fd()).unwrap(), 0);
        let full = (0..100_000).find(|_| {
            near.send(&[0; 1400]).unwrap();
            dropped(far.as_fd()).unwrap() > 0
        });
        assert!(full.is_some());
        drop(far);
        // Over the loopback interface the answer is there when the call returns.
        near.send(b"x").unwrap();
        let report = take_report(near.as_fd()).unwrap();
        let expected = Report {
            errno: Errno::CONNREFUSED,
            local: false,
        };
        assert_eq!(report, Some(expected));
    }
}

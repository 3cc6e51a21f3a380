//! The control connection: a Unix `SOCK_SEQPACKET` socket that carries small messages and descriptors.

use crate::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The longest path that a Unix socket takes, in bytes (`sun_path` less its end).
pub const MAX_PATH_BYTES: usize = 107;
/// Descriptors taken from one message; a message with more is reported as [`Received::too_many`].
pub const MAX_DESCRIPTORS: usize = 2;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
}

/// Binds a new socket to `path`, which must not exist, and listens.
pub fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Connects to `path` without blocking: [`Errno::AGAIN`] means that the listener's backlog is full.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Takes one connection from the backlog.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, FLAGS)
}

/// Two connected sockets, for tests.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)
}

/// Sends one message, never blocking and never raising SIGPIPE.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

/// What one message was.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes put into the buffer; 0 is the end of the connection.
    pub bytes: usize,
    /// Descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The message was longer than the buffer.
    pub truncated: bool,
    /// More than [`MAX_DESCRIPTORS`] came; the kernel has closed the rest.
    pub too_many: bool,
}

/// Receives one message, never blocking.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut received = Received {
        bytes: message.bytes.min(buffer.len()),
        truncated: message.flags.contains(ReturnFlags::TRUNC),
        too_many: message.flags.contains(ReturnFlags::CTRUNC),
        descriptors: Vec::new(),
    };
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
            received.descriptors.extend(descriptors);
        }
    }
    Ok(received)
}

/// Who is on the other side of a connection, as the kernel vouched when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id, for logs only: ids are reused.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// The peer's credentials (`SO_PEERCRED`).
pub fn credentials(socket: BorrowedFd<'_>) -> Result<Credentials, Errno> {
    let cred = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Credentials {
        pid: cred.pid.as_raw_nonzero().get(),
        uid: cred.uid.as_raw(),
        gid: cred.gid.as_raw(),
    })
}

/// My effective user id.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// My process id.
pub fn own_pid() -> u32 {
    std::process::id()
}

/// A descriptor of the peer's process (`SO_PEERPIDFD`), readable once it has ended; it cannot be confused by id reuse.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    /// From `asm-generic/socket.h`, Linux 6.5.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: bounds: `len` is the size of `fd`, and both live on this stack during the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if failed != 0 {
        let errno = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&errno).unwrap_or(Errno::INVAL));
    }
    // SAFETY: lifetime: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends the connection in both directions; the other side sees a hang-up even if a fork still holds the socket.
pub fn shut(socket: BorrowedFd<'_>) {
    // A connection that the peer has ended already has nothing left to shut.
    let _ = rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both);
}

/// What a waiter is told.
pub use rustix::event::epoll;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_brings_its_descriptor() {
        let (left, right) = pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        send(left.as_fd(), b"hello", Some(reader.as_fd())).unwrap();
        let mut buffer = [0; 16];
        let received = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..received.bytes], b"hello");
        assert_eq!(received.descriptors.len(), 1);
        assert!(!received.truncated && !received.too_many);
    }

    #[test]
    fn too_many_descriptors_are_reported_and_closed() {
        let (left, right) = pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let many = [reader.as_fd(); 20];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        rustix::net::sendmsg(&left, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())
            .unwrap();
        let received = receive(right.as_fd(), &mut [0; 4]).unwrap();
        assert!(received.too_many);
        assert!(received.descriptors.len() <= MAX_DESCRIPTORS);
    }

    #[test]
    fn the_peer_is_this_process() {
        let (left, _right) = pair().unwrap();
        let credentials = credentials(left.as_fd()).unwrap();
        assert_eq!(credentials.pid as u32, own_pid());
        assert_eq!(credentials.uid, own_uid());
        peer_pidfd(left.as_fd()).unwrap();
    }
}

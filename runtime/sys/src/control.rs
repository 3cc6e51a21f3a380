//! The control connection: a Unix `SOCK_SEQPACKET` socket that carries small messages and descriptors.

use crate::Errno;
use crate::apart::Apart;
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::time::Timespec;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The longest path that a Unix socket takes, in bytes (`sun_path` less its end).
pub const MAX_PATH_BYTES: usize = 107;
/// Descriptors that may come in one message; one with more is reported as [`Received::too_many`].
pub const MAX_DESCRIPTORS: usize = 2;
/// As many as a message can have (`SCM_MAX_FD`). There is room for all of them: what has no room the kernel closes while it receives, which
/// may take as long as the sender wants.
const SENT_AT_MOST: usize = 253;

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

/// A descriptor that came from a peer: of anything.
#[derive(Debug)]
pub struct Passed(OwnedFd);

impl Passed {
    /// Another descriptor of the same, for who knows what it is.
    pub fn duplicate(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0)
    }
}

impl AsFd for Passed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Apart<Passed> {
    fn from(descriptor: OwnedFd) -> Self {
        Passed(descriptor).into()
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        // Of a socket: it is not for us to wait until what its owner has written into it is read. Of anything else this fails.
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, None);
    }
}

/// What one message was.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes put into the buffer; 0 is the end of the connection, unless the message was [`empty`](Self::empty).
    pub bytes: usize,
    /// There was a message without bytes.
    pub empty: bool,
    /// Descriptors that came with it, close-on-exec: of whatever kind, so to close them may take as long as the sender wants.
    pub descriptors: Vec<Apart<Passed>>,
    /// The message was longer than the buffer.
    pub truncated: bool,
    /// More than [`MAX_DESCRIPTORS`] came.
    pub too_many: bool,
    /// This process may have no more descriptors, and the message was not taken: whoever is told this drops the connection.
    pub no_room: bool,
}

/// Receives one message, never blocking.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let first = match receive_once(socket, buffer) {
        // That the peer left something unread is told once, before what it has sent itself.
        Err(Errno::CONNRESET) => receive_once(socket, buffer)?,
        first => first?,
    };
    if first.bytes > 0 {
        return Ok(first);
    }
    // The kernel finds the queue empty, then looks whether the peer has hung up: what was sent in between, and nothing
    // after it, is still there.
    match receive_once(socket, buffer) {
        // Of a connection that is over the second is as empty as the first.
        Err(Errno::AGAIN) => Ok(Received {
            empty: true,
            ..first
        }),
        second => second,
    }
}

/// Looks before it takes: the descriptors that it has then are further ones of what lies in the message, so that none of those that the
/// kernel closes here, because this process may have no more, or when the message goes, is the last.
fn receive_once(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut looked = receive_with(socket, buffer, RecvFlags::PEEK)?;
    if looked.bytes == 0 && looked.descriptors.is_empty() && !looked.no_room {
        // A message without bytes, or the end: what was sent just before that is there now, and nothing comes behind it.
        looked = receive_with(socket, buffer, RecvFlags::PEEK)?;
    }
    if !looked.no_room {
        rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT)?;
    }
    // All of them lived until now; whoever closes the rest is the last.
    looked.descriptors.truncate(MAX_DESCRIPTORS);
    Ok(looked)
}

/// With all of the message's descriptors.
fn receive_with(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_AT_MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut received = Received {
        bytes: message.bytes.min(buffer.len()),
        truncated: message.flags.contains(ReturnFlags::TRUNC),
        ..Received::default()
    };
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
            let passed = descriptors.map(|descriptor| Apart::from(Passed(descriptor)));
            received.descriptors.extend(passed);
        }
    }
    // The buffer had room for all, so if some are missing it was the process that had none.
    received.no_room = message.flags.contains(ReturnFlags::CTRUNC);
    received.too_many = received.descriptors.len() > MAX_DESCRIPTORS;
    Ok(received)
}

/// Who is on the other side of a connection, as the kernel vouched when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id, for logs only: ids are reused; 0 if the peer is of a process namespace that we do not see.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// The peer's credentials (`SO_PEERCRED`).
///
/// Called directly: a process id of 0 (a peer of another process namespace) is no value of `rustix`'s type.
pub fn credentials(socket: BorrowedFd<'_>) -> Result<Credentials, Errno> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: bounds: `len` is the size of `cred`, and both live on this stack during the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    match failed {
        0 => Ok(Credentials {
            pid: cred.pid,
            uid: cred.uid,
            gid: cred.gid,
        }),
        _ => Err(last_error()),
    }
}

pub(crate) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
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
        return Err(last_error());
    }
    // SAFETY: lifetime: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ends the connection in both directions; the other side sees a hang-up even if a fork still holds the socket.
pub fn shut(socket: BorrowedFd<'_>) {
    // A connection that the peer has ended already has nothing left to shut.
    let _ = rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both);
}

/// Waits until a descriptor is readable (a socket has something to receive, the process of a pidfd has ended), or `bound` is
/// over. Whether it is.
pub fn wait_readable(descriptor: BorrowedFd<'_>, bound: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let timeout = timespec(bound);
    // A caller that is interrupted tries again and looks at its own deadline.
    poll(
        &mut [PollFd::new(&descriptor, PollFlags::IN)],
        Some(&timeout),
    )
    .is_ok_and(|ready| ready > 0)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Holds an advisory lock on a directory until the descriptor is dropped. [`Errno::AGAIN`] if somebody holds it now.
pub fn lock_directory(path: &Path) -> Result<OwnedFd, Errno> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory)
}

/// What a watched descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The number given when it was added.
    pub token: u64,
    /// Something can be read or accepted; of a pidfd: the process has ended.
    pub readable: bool,
    /// The other side has hung up.
    pub hung_up: bool,
}

/// Watches descriptors (`epoll`, level-triggered).
pub struct Watcher(OwnedFd);

impl Watcher {
    /// The most that one [`wait`](Self::wait) returns; who is left out comes first in the next.
    pub const AT_ONCE: usize = 32;

    /// Watches nothing yet.
    pub fn new() -> Result<Watcher, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Watcher)
    }

    /// Watches a descriptor for something to read and for a hang-up.
    pub fn add(&self, descriptor: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        epoll::add(&self.0, descriptor, epoll::EventData::new_u64(token), flags)
    }

    /// Watches a descriptor for a hang-up only.
    pub fn add_end(&self, descriptor: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
        let flags = epoll::EventFlags::RDHUP;
        epoll::add(&self.0, descriptor, epoll::EventData::new_u64(token), flags)
    }

    /// Watches a descriptor that is watched already for something to read, too.
    pub fn keep_all(&self, descriptor: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        epoll::modify(&self.0, descriptor, epoll::EventData::new_u64(token), flags)
    }

    /// Watches a descriptor that is watched already for a hang-up only.
    pub fn keep_end(&self, descriptor: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
        let flags = epoll::EventFlags::RDHUP;
        epoll::modify(&self.0, descriptor, epoll::EventData::new_u64(token), flags)
    }

    /// Stops watching a descriptor.
    pub fn remove(&self, descriptor: BorrowedFd<'_>) {
        // A descriptor that is not watched needs no removing.
        let _ = epoll::delete(&self.0, descriptor);
    }

    /// Sleeps until something is ready or `bound` is over (`None`: for as long as it takes).
    pub fn wait(&self, bound: Option<Duration>) -> Result<Vec<Ready>, Errno> {
        self.wait_for(bound, Self::AT_ONCE)
    }

    /// Some of what is ready now; who is left out comes first in the next.
    pub fn ready(&self, most: usize) -> Result<Vec<Ready>, Errno> {
        self.wait_for(Some(Duration::ZERO), most)
    }

    fn wait_for(&self, bound: Option<Duration>, most: usize) -> Result<Vec<Ready>, Errno> {
        let timeout = bound.map(timespec);
        let mut events = Vec::with_capacity(most);
        let space = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.0, space, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(events.iter().map(Ready::from).collect())
    }
}

impl AsFd for Watcher {
    /// Readable while something that is watched is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<&epoll::Event> for Ready {
    fn from(event: &epoll::Event) -> Ready {
        use epoll::EventFlags as Flags;
        let flags = event.flags;
        Ready {
            token: event.data.u64(),
            readable: flags.contains(Flags::IN),
            hung_up: flags.intersects(Flags::RDHUP | Flags::HUP | Flags::ERR),
        }
    }
}

/// A descriptor that one thread makes readable to wake another that sleeps in [`Watcher::wait`].
pub struct Alarm(OwnedFd);

impl Alarm {
    /// Not readable yet.
    pub fn new() -> Result<Alarm, Errno> {
        use rustix::event::{EventfdFlags, eventfd};
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Alarm)
    }

    /// Makes it readable.
    pub fn raise(&self) {
        // The only failure is a counter that is full, and then it is readable.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        // Nothing to read means that it is clear.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// For [`Watcher::add`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

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
        rustix::net::sendmsg(
            &left,
            &[IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        let received = receive(right.as_fd(), &mut [0; 4]).unwrap();
        assert!(received.too_many);
        assert!(received.descriptors.len() <= MAX_DESCRIPTORS);
    }

    #[test]
    fn the_last_words_come_though_the_peer_left_some_of_ours_unread() {
        let (left, right) = pair().unwrap();
        send(right.as_fd(), b"unread", None).unwrap();
        for words in [b"good", b"bye!"] {
            send(left.as_fd(), words, None).unwrap();
        }
        drop(left);
        let mut buffer = [0; 8];
        for words in [b"good", b"bye!"] {
            let received = receive(right.as_fd(), &mut buffer).unwrap();
            assert_eq!(&buffer[..received.bytes], words);
        }
        let end = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!(end.bytes, 0);
    }

    #[test]
    fn the_last_words_come_before_the_end() {
        let mut buffer = [0; 8];
        for _ in 0..2_000 {
            let (left, right) = pair().unwrap();
            let speaker = std::sync::atomic::AtomicBool::new(false);
            let speaks = &speaker;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    speaks.store(true, std::sync::atomic::Ordering::Release);
                    send(left.as_fd(), b"bye", None).unwrap();
                    drop(left);
                });
                while !speaker.load(std::sync::atomic::Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                let received = loop {
                    match receive(right.as_fd(), &mut buffer) {
                        Err(Errno::AGAIN) => {}
                        other => break other.unwrap(),
                    }
                };
                assert_eq!(&buffer[..received.bytes], b"bye");
            });
        }
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

//! The control connection between the two processes: orders one way, answers the other, with descriptors where needed.
//!
//! A `SOCK_SEQPACKET` pair whose far end is the second process's standard input. Never used while a batch runs.

use super::paths::Calls;
use super::spec::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The most descriptors with one message.
const MAX_FDS: usize = 4;
/// The longest message.
const MAX_BYTES: usize = 16 * 1024;

/// What the first process tells the second one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first one, with the shared words: run on this CPU.
    Start { cpu: usize, shared_cpu: bool },
    /// Open your half of a cell, with descriptors as the path needs.
    Open {
        cell: u8,
        spec: Spec,
        address: Option<PathBuf>,
    },
    /// Obey the command word until it says Quit, then close all cells.
    Run,
}

/// What the second process answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is done.
    Ready,
    /// The cells are closed; what those that count have counted of their system calls.
    Over { calls: Vec<(u8, Calls)> },
    /// It cannot be done, for this reason.
    Refused(String),
    /// A cell broke while it ran; the second process ends after saying so.
    Failed { cell: u8, reason: String },
}

/// One end.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> Result<(Channel, OwnedFd), Errno> {
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Channel(near), far))
    }

    /// The second process's end, which is its standard input. An error if that is no such socket.
    pub(crate) fn from_stdin() -> io::Result<Channel> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        match rustix::net::sockopt::socket_type(&stdin) {
            Ok(SocketType::SEQPACKET) => Ok(Channel(stdin)),
            _ => Err(io::Error::other(
                "standard input is no connection to a bench",
            )),
        }
    }

    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    /// The next message; an error of kind `UnexpectedEof` when the other end is closed, `TimedOut` after `bound`.
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
        bound: Option<Duration>,
    ) -> io::Result<(T, Vec<OwnedFd>)> {
        self.wait(bound)?;
        let mut bytes = [0; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.0, &mut vectors, &mut control, flags)?;
        let mut fds = Vec::new();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                fds.extend(rights);
            }
        }
        match bytes.get(..received.bytes) {
            Some([]) | None => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(text) => Ok((serde_json::from_slice(text)?, fds)),
        }
    }

    fn wait(&self, bound: Option<Duration>) -> io::Result<()> {
        let deadline = bound.map(|bound| Instant::now() + bound);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

//! Unix sockets: `SOCK_STREAM` and `SOCK_SEQPACKET`, as a pair made by the first process. Their stream half serves TCP too.

use super::datagram::{self, Datagram, DatagramSocket};
use super::wire::{Half, Sink, Source, Stream, transfer};
use super::{Answering, Class, Lane, Offer, Path, Station, take};
use crate::bench::fault::Broken;
use crate::bench::spec::{Job, Pause, Spec, Wait};
use crate::bench::watch::Release;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path as FilePath;

pub(crate) struct UnixStream {
    pub(crate) coalesced: bool,
}

pub(crate) struct UnixSeqpacket;

/// A connected stream socket.
pub(super) struct StreamSocket {
    socket: OwnedFd,
    spinning: Option<Pause>,
    send: SendFlags,
    recv: RecvFlags,
    /// After the last write of a burst: what makes the kernel send what it holds back.
    push: fn(&OwnedFd) -> rustix::io::Result<()>,
}

impl StreamSocket {
    pub(super) fn new(socket: OwnedFd, spec: &Spec) -> StreamSocket {
        // A flag with each call is as fast as a non-blocking socket, and leaves the description alone that both may share.
        let spin = spec.wait == Wait::Spin;
        StreamSocket {
            socket,
            spinning: spin.then_some(spec.pause()),
            send: SendFlags::NOSIGNAL
                | if spin {
                    SendFlags::DONTWAIT
                } else {
                    SendFlags::empty()
                },
            recv: if spin {
                RecvFlags::DONTWAIT
            } else {
                RecvFlags::empty()
            },
            push: |_| Ok(()),
        }
    }

    pub(super) fn pushed_by(self, push: fn(&OwnedFd) -> rustix::io::Result<()>) -> StreamSocket {
        StreamSocket { push, ..self }
    }

    /// The first process's half of any stream socket.
    pub(super) fn lane(self, spec: &Spec, coalesced: bool) -> Result<(Lane, Release), Broken> {
        let release = Release::socket(self.socket.as_fd())?;
        let lane = match spec.job {
            Job::Rate => Lane::Pour(Box::new(Source::new(self, spec.size, coalesced))),
            _ => Lane::Exchange(Box::new(Half::new(self, spec.size))),
        };
        Ok((lane, release))
    }

    /// The second process's half of any stream socket.
    pub(super) fn station(self, spec: &Spec) -> Box<dyn Station> {
        match spec.job {
            Job::Rate => Box::new(Sink::new(self, spec.size)),
            _ => Box::new(Answering(Half::new(self, spec.size))),
        }
    }
}

impl Stream for StreamSocket {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        transfer(self.spinning, || {
            rustix::net::send(&self.socket, bytes, self.send)
        })
    }

    #[inline(always)]
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Broken> {
        transfer(self.spinning, || {
            rustix::net::recv(&self.socket, &mut *bytes, self.recv).map(|(_, count)| count)
        })
    }

    fn flush(&mut self) -> Result<(), Broken> {
        Ok((self.push)(&self.socket)?)
    }
}

impl Path for UnixStream {
    fn name(&self) -> &'static str {
        if self.coalesced {
            "unix-stream-coalesced"
        } else {
            "unix-stream"
        }
    }

    fn family(&self) -> &'static str {
        "unix-stream"
    }

    fn class(&self) -> Class {
        if self.coalesced {
            Class::Packed
        } else {
            Class::Socket
        }
    }

    fn does(&self, job: Job, _wait: Wait) -> bool {
        !self.coalesced || job == Job::Rate
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (spec, coalesced) = (spec.clone(), self.coalesced);
        Ok(Offer::new([far], move || {
            StreamSocket::new(near, &spec).lane(&spec, coalesced)
        }))
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        _: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        Ok(StreamSocket::new(take(&mut fds)?, spec).station(spec))
    }
}

impl Path for UnixSeqpacket {
    fn name(&self) -> &'static str {
        "unix-seqpacket"
    }

    fn does(&self, _job: Job, _wait: Wait) -> bool {
        true
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let spec = spec.clone();
        Ok(Offer::new([far], move || {
            let socket = DatagramSocket::new(near, &spec);
            let release = Release::socket(socket.fd())?;
            let lane = match spec.job {
                Job::Rate => Lane::Pour(Box::new(datagram::Source::new(socket, spec.size, None))),
                _ => Lane::Exchange(Box::new(Half::new(socket, spec.size))),
            };
            Ok((lane, release))
        }))
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        _: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        let socket = DatagramSocket::new(take(&mut fds)?, spec);
        Ok(match spec.job {
            Job::Rate => Box::new(datagram::Sink::new(socket, spec.size, None)),
            _ => Box::new(Answering(Half::new(socket, spec.size))),
        })
    }
}

//! TCP over the loopback interface.
//!
//! Exchanges have `TCP_NODELAY`. A one-way stream of small messages is faster with Nagle's algorithm, which is off for exchanges
//! only; the end of a burst is pushed out by switching `TCP_NODELAY` on and off again, so that no acknowledgement is waited for.

use super::unix::StreamSocket;
use super::{Class, Offer, Path, Station, take};
use crate::bench::fault::Broken;
use crate::bench::spec::{Job, Spec, Wait};
use rustix::net::sockopt::set_tcp_nodelay;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;

pub(crate) struct Tcp {
    pub(crate) coalesced: bool,
}

/// Two connected sockets. Nobody else can have come in between: the one accepted is checked to be ours.
fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, from) = listener.accept()?;
    match from == near.local_addr()? {
        true => Ok((near, far)),
        false => Err(std::io::Error::other(
            "a stranger has connected to the loopback listener",
        )),
    }
}

fn push(socket: &OwnedFd) -> rustix::io::Result<()> {
    set_tcp_nodelay(socket, true)?;
    set_tcp_nodelay(socket, false)
}

impl Path for Tcp {
    fn name(&self) -> &'static str {
        if self.coalesced {
            "tcp-coalesced"
        } else {
            "tcp"
        }
    }

    fn family(&self) -> &'static str {
        "tcp"
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
        let (near, far) = pair()?;
        let exchange = spec.job != Job::Rate;
        near.set_nodelay(exchange)?;
        far.set_nodelay(exchange)?;
        let (spec, coalesced) = (spec.clone(), self.coalesced);
        Ok(Offer::new([OwnedFd::from(far)], move || {
            let socket = StreamSocket::new(near.into(), &spec);
            let socket = if exchange {
                socket
            } else {
                socket.pushed_by(push)
            };
            socket.lane(&spec, coalesced)
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

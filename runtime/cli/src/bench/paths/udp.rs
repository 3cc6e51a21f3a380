//! UDP over the loopback interface, both sockets connected. Rates have a window, so that nothing is lost; what is lost all the
//! same is reported.

use super::datagram::{DatagramSocket, Single, Sink, Source, Window};
use super::ours::GATHER;
use super::wire::Half;
use super::{Answering, Lane, Offer, Path, Station, take};
use crate::bench::fault::Broken;
use crate::bench::net::cable;
use crate::bench::spec::{Job, Spec, Wait};
use crate::bench::watch::Release;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path as FilePath;

pub(crate) struct Udp {
    pub(super) over: Over,
    /// Who waits lets messages gather.
    pub(super) gather: bool,
}

/// What is between the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The loopback interface.
    Loopback,
    /// The virtual cable between the hosts of `bench net`.
    Cable,
}

impl Over {
    /// Two sockets, each of which takes datagrams from the other one only.
    pub(super) fn pair(self) -> std::io::Result<(OwnedFd, OwnedFd)> {
        let (near, far) = match self {
            Over::Loopback => (bind(Ipv4Addr::LOCALHOST)?, bind(Ipv4Addr::LOCALHOST)?),
            Over::Cable => {
                let bind = |host| {
                    let bound = cable::shared(|cable| cable.at(host, || bind(cable.address(host))));
                    bound.flatten().map_err(std::io::Error::other)?
                };
                (bind(0)?, bind(1)?)
            }
        };
        near.connect(far.local_addr()?)?;
        far.connect(near.local_addr()?)?;
        Ok((near.into(), far.into()))
    }
}

fn bind(address: Ipv4Addr) -> std::io::Result<UdpSocket> {
    UdpSocket::bind((address, 0))
}

impl Path for Udp {
    fn name(&self) -> &'static str {
        match (self.over, self.gather) {
            (Over::Loopback, _) => "udp",
            (Over::Cable, false) => "udp-veth",
            (Over::Cable, true) => "udp-veth-gather",
        }
    }

    fn does(&self, job: Job, wait: Wait) -> bool {
        !self.gather || (job, wait) == (Job::Load, Wait::Block)
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let (near, far) = self.over.pair()?;
        let spec = spec.clone();
        Ok(Offer::new([far], move || {
            let release = Release::socket(near.as_fd())?;
            let lane = match spec.job {
                Job::Rate => {
                    let window = Window::open(near.as_fd(), spec.size)?;
                    let socket = DatagramSocket::new(near, &spec);
                    Lane::Pour(Box::new(Source::new(socket, spec.size, Some(window))))
                }
                Job::Load => {
                    let socket = DatagramSocket::new(near, &spec);
                    Lane::Pace(Box::new(Single::new(socket, spec.size, None)))
                }
                Job::PingPong | Job::Call => Lane::Exchange(Box::new(Half::new(
                    DatagramSocket::new(near, &spec),
                    spec.size,
                ))),
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
        let socket = take(&mut fds)?;
        Ok(match spec.job {
            Job::Rate => {
                let window = Window::open(socket.as_fd(), spec.size)?;
                Box::new(Sink::new(
                    DatagramSocket::new(socket, spec),
                    spec.size,
                    Some(window),
                ))
            }
            Job::Load => {
                // For its buffers and the bound of its waits.
                Window::open(socket.as_fd(), spec.size)?;
                Box::new(Single::new(
                    DatagramSocket::new(socket, spec),
                    spec.size,
                    self.gather.then_some(GATHER),
                ))
            }
            Job::PingPong | Job::Call => Box::new(Answering(Half::new(
                DatagramSocket::new(socket, spec),
                spec.size,
            ))),
        })
    }
}

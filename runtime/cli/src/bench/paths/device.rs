//! The AF_XDP device alone: its rings and its kick, packets of bare payload, no endpoint, no handlers, no protocol. What those cost is
//! the distance between this path and `xdp-generic` or `xdp-native`.

use super::ours::place_strand;
use super::{Answering, Initiator, Lane, Offer, Path, Responder, Station, shm, take};
use crate::bench::fault::Broken;
use crate::bench::net::cable;
use crate::bench::payload::Sequence;
use crate::bench::spec::{Job, Pause, Spec, Wait};
use crate::bench::watch::{Release, spin};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path as FilePath, PathBuf};
use tightbeam_segment::{Device, Route};
use tightbeam_sys::netns;
use tightbeam_xdp::{XdpAddress, XdpDevice};

/// Behind the driver, or in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bare {
    Generic,
    Native,
}

/// One half of an exchange.
struct Half {
    device: XdpDevice,
    /// The other side, as soon as it is known.
    to: Option<Route>,
    size: usize,
    pause: Pause,
    outgoing: Sequence,
    incoming: Sequence,
}

impl Half {
    fn new(device: XdpDevice, to: Option<Route>, spec: &Spec) -> Half {
        Half {
            device,
            to,
            size: spec.size,
            pause: spec.pause(),
            outgoing: Sequence::new(),
            incoming: Sequence::new(),
        }
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Broken> {
        let (size, outgoing) = (self.size, &mut self.outgoing);
        let to = self.to.ok_or(Broken::Closed)?;
        let put = self.device.transmit(&to, size, &mut |packet| {
            outgoing.write(packet);
            size
        });
        put.map_err(shm::endpoint)?;
        self.device.kick().map(drop).map_err(shm::endpoint)
    }

    #[inline(always)]
    fn recv(&mut self) -> Result<(), Broken> {
        let Half {
            device,
            to,
            incoming,
            ..
        } = self;
        let mut checked = Ok(());
        spin(self.pause, || {
            let came = device.receive(1, &mut |packet| {
                *to = Some(packet.from);
                checked = incoming.check(packet.bytes);
            });
            Ok((came.map_err(shm::endpoint)? > 0).then_some(()))
        })?;
        checked
    }
}

impl Initiator for Half {
    #[inline(always)]
    fn round_trip(&mut self) -> Result<(), Broken> {
        self.send()?;
        self.recv()
    }
}

impl Responder for Half {
    #[inline(always)]
    fn answer(&mut self) -> Result<(), Broken> {
        self.recv()?;
        self.send()
    }
}

fn parse(address: &str) -> Result<XdpAddress, Broken> {
    address.parse().map_err(shm::endpoint)
}

impl Path for Bare {
    fn name(&self) -> &'static str {
        match self {
            Bare::Generic => "xdp-device-generic",
            Bare::Native => "xdp-device-native",
        }
    }

    fn class(&self) -> super::Class {
        super::Class::Other
    }

    fn does(&self, job: Job, wait: Wait) -> bool {
        job == Job::PingPong && wait == Wait::Spin
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let mode = match self {
            Bare::Generic => "generic",
            Bare::Native => "native",
        };
        let address = place_strand(mode)?;
        let there = cable::shared(|cable| cable.host(1).try_clone_to_owned());
        let there = there.map_err(shm::endpoint)??;
        let (spec, connect) = (spec.clone(), address.clone());
        let mut offer = Offer::new([there], move || {
            let address = parse(&connect)?;
            let mut device = XdpDevice::connect(&address).map_err(shm::endpoint)?;
            let to = device.route(address.at).map_err(shm::endpoint)?;
            let half = Half::new(device, Some(to), &spec);
            // Spinning, it sees by itself that the measurement was called off.
            Ok((Lane::Exchange(Box::new(half)), Release::ByItself))
        });
        offer.address = Some(PathBuf::from(address));
        Ok(offer)
    }

    fn join(
        &self,
        spec: &Spec,
        mut fds: Vec<OwnedFd>,
        place: Option<&FilePath>,
    ) -> Result<Box<dyn Station>, Broken> {
        netns::enter(take(&mut fds)?.as_fd())?;
        let address = place.and_then(FilePath::to_str).ok_or(Broken::Closed)?;
        let device = XdpDevice::listen(&parse(address)?).map_err(shm::endpoint)?;
        Ok(Box::new(Answering(Half::new(device, None, spec))))
    }
}

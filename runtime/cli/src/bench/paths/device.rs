//! The AF_XDP device without what stands on it: no endpoint, no handlers, no protocol; and the bare loop over the same rings, without even
//! the device. From `xdp-floor-*` to `xdp-device-*` is what the device costs, from there to `xdp-generic` or `xdp-native` the rest.
//!
//! One way each message is a packet by itself, as an application over bare rings sends it. An endpoint puts several into a packet: the rate
//! of its messages is no rate of packets.

use super::ours::place_strand;
use super::rings::End;
use super::{Lane, Offer, Path, Station, shm, take};
use crate::bench::fault::Broken;
use crate::bench::net::cable;
use crate::bench::spec::{Job, Spec, Wait};
use crate::bench::watch::Release;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path as FilePath, PathBuf};
use tightbeam_segment::Device;
use tightbeam_sys::netns;
use tightbeam_xdp::{XdpAddress, XdpDevice};

/// The bare loops over an AF_XDP socket behind the driver, and in it.
pub(crate) const FLOOR_GENERIC: &str = "xdp-floor-generic";
pub(crate) const FLOOR_NATIVE: &str = "xdp-floor-native";

/// Behind the driver, or in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Generic,
    Native,
}

/// A device by itself.
pub(crate) struct Bare {
    pub(super) mode: Mode,
    /// Only its rings.
    pub(super) floor: bool,
}

fn parse(address: &str) -> Result<XdpAddress, Broken> {
    address.parse().map_err(shm::endpoint)
}

impl Path for Bare {
    fn name(&self) -> &'static str {
        match (self.floor, self.mode) {
            (true, Mode::Generic) => FLOOR_GENERIC,
            (true, Mode::Native) => FLOOR_NATIVE,
            (false, Mode::Generic) => "xdp-device-generic",
            (false, Mode::Native) => "xdp-device-native",
        }
    }

    fn class(&self) -> super::Class {
        super::Class::Other
    }

    fn floor(&self) -> Option<&'static str> {
        Some(match self.mode {
            Mode::Generic => FLOOR_GENERIC,
            Mode::Native => FLOOR_NATIVE,
        })
    }

    fn does(&self, job: Job, wait: Wait) -> bool {
        matches!(job, Job::PingPong | Job::Rate) && wait == Wait::Spin
    }

    fn offer(&self, spec: &Spec) -> Result<Offer, Broken> {
        let mode = match self.mode {
            Mode::Generic => "generic",
            Mode::Native => "native",
        };
        let address = place_strand(mode)?;
        let there = cable::shared(|cable| cable.host(1).try_clone_to_owned());
        let there = there.map_err(shm::endpoint)??;
        let (spec, connect, floor) = (spec.clone(), address.clone(), self.floor);
        let mut offer = Offer::new([there], move || {
            let address = parse(&connect)?;
            let mut device = XdpDevice::connect(&address).map_err(shm::endpoint)?;
            let to = device.route(address.at).map_err(shm::endpoint)?;
            let mut end = End::new(device, Some(to), floor, &spec);
            end.greet()?;
            let lane = match spec.job {
                Job::Rate => Lane::Pour(Box::new(end)),
                _ => Lane::Exchange(Box::new(end)),
            };
            // Spinning, it sees by itself that the measurement was called off.
            Ok((lane, Release::ByItself))
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
        Ok(Box::new(End::new(device, None, self.floor, spec)))
    }
}

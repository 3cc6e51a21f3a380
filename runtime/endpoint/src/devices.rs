//! Where devices come from: the one thing that an endpoint does not know by itself.
//!
//! The endpoint names no device, and no device the endpoint; the façade knows both, and says so by the type that it gives to
//! [`Endpoint`](crate::Endpoint) as `D`.

use crate::OpenError;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use tightbeam_segment::Device;

/// A device that can be waited for: its descriptor is readable when something may have arrived.
pub trait Carrier: Device + AsFd {}

impl<T: Device + AsFd> Carrier for T {}

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be found: the address is the own one.
    Listen,
    /// To reach another host: the address is that one's.
    Connect,
}

/// What an address says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The host and port that it names.
    pub host: SocketAddrV4,
    /// Names the device. An endpoint that has a device of this name uses it, and opens no other; with `None` each is another one.
    pub device: Option<String>,
}

/// Opens devices by their addresses.
pub trait Devices {
    /// How the addresses look that [`location`](Self::location) can read, for who mistypes one.
    const FORMS: &'static [&'static str];

    /// Reads an address, scheme and all. `None` if it has no scheme, or one that is unknown here.
    fn location(address: &str) -> Option<Result<Location, OpenError>>;

    /// Opens the device of an address that [`location`](Self::location) has read.
    fn open(address: &str, purpose: Purpose) -> Result<Box<dyn Carrier>, OpenError>;
}

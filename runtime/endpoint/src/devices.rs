//! Where devices come from: the one thing that an endpoint does not know by itself.
//!
//! The endpoint names no device, and no device the endpoint; the façade knows both, and says so by the type that it gives to
//! [`Endpoint`](crate::Endpoint) as `D`.

use crate::OpenError;
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

/// Opens devices by their addresses.
pub trait Devices {
    /// The schemes that [`open`](Self::open) knows, for who mistypes one.
    const SCHEMES: &'static [&'static str];

    /// Opens a device of a scheme, which stands before the colon of an address; the rest is behind it. `None` if the scheme is unknown.
    fn open(
        scheme: &str,
        rest: &str,
        purpose: Purpose,
    ) -> Option<Result<Box<dyn Carrier>, OpenError>>;
}

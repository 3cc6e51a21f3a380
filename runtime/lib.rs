#![doc = include_str!("ARCHITECTURE.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod devices;

pub use devices::AllDevices;
pub use tightbeam_endpoint::*;

/// Sends and receives messages over any number of channels, on one thread: [`tightbeam_endpoint::Endpoint`] with all devices.
pub type Endpoint<S = ()> = tightbeam_endpoint::Endpoint<S, AllDevices>;
/// Collects settings, then listens or connects: [`tightbeam_endpoint::Builder`] with all devices.
pub type Builder<S = ()> = tightbeam_endpoint::Builder<S, AllDevices>;
/// An endpoint that may go to sleep: [`tightbeam_endpoint::Sleeper`] with all devices.
pub type Sleeper<'a, S = ()> = tightbeam_endpoint::Sleeper<'a, S, AllDevices>;

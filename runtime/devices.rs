//! The devices that an endpoint of this crate can open.

use tightbeam_endpoint::{AddressError, Carrier, Devices, Location, OpenError, Purpose};
use tightbeam_udp::{UdpAddress, UdpDevice};
use tightbeam_xdp::{XdpAddress, XdpDevice};

/// All devices of this crate: `udp`, a kernel socket, and `xdp`, a NIC through AF_XDP.
#[derive(Debug, Clone, Copy)]
pub struct AllDevices;

impl Devices for AllDevices {
    const FORMS: &'static [&'static str] = &["udp:IP:PORT", "xdp:INTERFACE/IP:PORT"];

    fn location(address: &str) -> Option<Result<Location, OpenError>> {
        let (scheme, _) = address.split_once(':')?;
        match scheme {
            "udp" => Some(udp(address).map(|udp| Location {
                host: udp.at,
                device: None,
            })),
            // A queue of an interface has one socket, over which all channels of an endpoint go.
            "xdp" => Some(xdp(address).map(|xdp| Location {
                host: xdp.at,
                device: Some(format!("{}, queue {}", xdp.interface, xdp.options.queue)),
            })),
            _ => None,
        }
    }

    fn open(address: &str, purpose: Purpose) -> Result<Box<dyn Carrier>, OpenError> {
        if address.starts_with("xdp:") {
            let address = xdp(address)?;
            let device = match purpose {
                Purpose::Listen => XdpDevice::listen(&address)?,
                Purpose::Connect => XdpDevice::connect(&address)?,
            };
            return Ok(Box::new(device));
        }
        let UdpAddress { at, options } = udp(address)?;
        let device = match purpose {
            Purpose::Listen => UdpDevice::listen(at, options)?,
            Purpose::Connect => UdpDevice::connect(at, options)?,
        };
        Ok(Box::new(device))
    }
}

fn udp(address: &str) -> Result<UdpAddress, OpenError> {
    address.parse().map_err(|error| malformed(address, error))
}

fn xdp(address: &str) -> Result<XdpAddress, OpenError> {
    address.parse().map_err(|error| malformed(address, error))
}

fn malformed(address: &str, why: impl std::fmt::Display) -> OpenError {
    OpenError::Address(AddressError::Malformed {
        text: address.into(),
        why: why.to_string(),
    })
}

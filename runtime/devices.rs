//! The devices that an endpoint of this crate can open.

use tightbeam_endpoint::{AddressError, Carrier, Devices, Location, OpenError, Purpose};
use tightbeam_udp::{UdpAddress, UdpDevice};

/// All devices of this crate: `udp`.
#[derive(Debug, Clone, Copy)]
pub struct AllDevices;

impl Devices for AllDevices {
    const FORMS: &'static [&'static str] = &["udp:IP:PORT"];

    fn location(address: &str) -> Option<Result<Location, OpenError>> {
        let (scheme, _) = address.split_once(':')?;
        match scheme {
            "udp" => Some(udp(address).map(|udp| Location {
                host: udp.at,
                device: None,
            })),
            _ => None,
        }
    }

    fn open(address: &str, purpose: Purpose) -> Result<Box<dyn Carrier>, OpenError> {
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

fn malformed(address: &str, why: impl std::fmt::Display) -> OpenError {
    OpenError::Address(AddressError::Malformed {
        text: address.into(),
        why: why.to_string(),
    })
}

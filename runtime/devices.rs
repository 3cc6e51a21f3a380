//! The devices that an endpoint of this crate can open.

use std::net::{Ipv4Addr, SocketAddrV4};
use tightbeam_endpoint::{
    AddressError, Carrier, DeviceError, Devices, Location, OpenError, Purpose,
};
use tightbeam_udp::{UdpAddress, UdpDevice};
use tightbeam_xdp::{XdpAddress, XdpDevice};

/// All devices of this crate: `udp`, a kernel socket, and `xdp`, a NIC through AF_XDP.
#[derive(Debug, Clone, Copy)]
pub struct AllDevices;

impl Devices for AllDevices {
    const FORMS: &'static [&'static str] = &["udp:IP:PORT", "xdp:INTERFACE/IP:PORT"];

    fn location(address: &str) -> Option<Result<Location, OpenError>> {
        let (scheme, rest) = address.split_once(':')?;
        if scheme == "xdp"
            && let Some(host) = inherited(rest)
        {
            return Some(host.map(|host| Location {
                host,
                device: Some("inherited".into()),
            }));
        }
        match scheme {
            "udp" => Some(udp(address).map(|udp| Location {
                host: udp.at,
                device: None,
            })),
            // A queue of an interface has one socket, over which all channels of an endpoint go.
            "xdp" => Some(xdp(address).map(|xdp| Location {
                host: xdp.at,
                device: Some(match xdp.options.queue {
                    None => xdp.interface,
                    Some(queue) => format!("{}, queue {queue}", xdp.interface),
                }),
            })),
            _ => None,
        }
    }

    fn open(address: &str, purpose: Purpose) -> Result<Box<dyn Carrier>, OpenError> {
        if let Some(rest) = address.strip_prefix("xdp:") {
            if inherited(rest).is_some() {
                let device = XdpDevice::inherited();
                return Ok(Box::new(device.unwrap_or_else(|| Err(not_inherited()))?));
            }
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

/// `xdp:inherited` to listen, `xdp:inherited/IP:PORT` to reach another host: the device that `tightbeam xdp-open` has opened for this process.
fn inherited(rest: &str) -> Option<Result<SocketAddrV4, OpenError>> {
    let host = rest.strip_prefix("inherited")?;
    match host.strip_prefix('/') {
        _ if host.is_empty() => Some(Ok(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))),
        None => None,
        Some(host) => {
            let why = "after `xdp:inherited/` stands the IPv4 address and port of the other host";
            let host = host.parse();
            Some(host.map_err(|_| malformed(&format!("xdp:{rest}"), why)))
        }
    }
}

fn not_inherited() -> DeviceError {
    DeviceError::System {
        what: "take over an AF_XDP device: none was handed to this process".into(),
        errno: 0,
        fix: "start it by `tightbeam xdp-open --dev INTERFACE --port PORT -- PROGRAM`".into(),
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

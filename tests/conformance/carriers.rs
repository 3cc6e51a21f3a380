//! The carriers: each makes a pair of devices, or says why it cannot here.

use crate::netns::Cable;
use crate::queues;
use crate::suite::Pair;
use std::any::Any;
use std::net::{Ipv4Addr, SocketAddrV4};
use tightbeam_segment::{Device, DeviceError};
use tightbeam_udp::{Engine, Options, UdpDevice};

/// So few packets fit into a receive buffer of this size that a case overruns it soon, and a burst that it does not.
const RECEIVE_BUFFER: usize = 256 * 1024;

pub(crate) fn local() -> Result<Pair, String> {
    Ok(queues::pair())
}

fn options(engine: Engine) -> Options {
    Options {
        engine,
        receive_buffer: Some(RECEIVE_BUFFER),
        ..Options::default()
    }
}

fn udp_over_lo(engine: Engine) -> Result<Pair, String> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let far = UdpDevice::listen(address, options(engine)).map_err(skip)?;
    let to = far.capabilities().local;
    let near = UdpDevice::connect(to, options(engine)).map_err(skip)?;
    Ok(pair(near, far, to, ()))
}

fn udp_over_veth(engine: Engine) -> Result<Pair, String> {
    let cable = Cable::lay()?;
    let address = SocketAddrV4::new(Cable::ADDRESSES[1], 7000);
    let far = cable.at(1, || UdpDevice::listen(address, options(engine)));
    let near = cable.at(0, || UdpDevice::connect(address, options(engine)));
    Ok(pair(
        near.map_err(skip)?,
        far.map_err(skip)?,
        address,
        cable,
    ))
}

fn pair(near: UdpDevice, far: UdpDevice, to: SocketAddrV4, around: impl Any) -> Pair {
    let mut near = near;
    let there = near.route(to).expect("a way to the other device");
    Pair {
        near: Box::new(near),
        far: Box::new(far),
        there,
        _around: Box::new(around),
    }
}

/// A device that cannot be opened here is one that cannot be tested here; that it says why is tested elsewhere.
fn skip(error: DeviceError) -> String {
    error.to_string()
}

pub(crate) fn udp_lo() -> Result<Pair, String> {
    udp_over_lo(Engine::Calls)
}

pub(crate) fn udp_lo_ring() -> Result<Pair, String> {
    udp_over_lo(Engine::Ring)
}

pub(crate) fn udp_veth() -> Result<Pair, String> {
    udp_over_veth(Engine::Calls)
}

pub(crate) fn udp_veth_ring() -> Result<Pair, String> {
    udp_over_veth(Engine::Ring)
}

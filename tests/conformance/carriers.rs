//! The carriers: each makes a pair of devices, or says why it cannot here.

use crate::netns::Cable;
use crate::queues;
use crate::suite::Pair;
use std::any::Any;
use std::net::{Ipv4Addr, SocketAddrV4};
use tightbeam_segment::{Device, DeviceError, Route};
use tightbeam_udp::{Engine, Options, UdpDevice};
use tightbeam_xdp::{ModeChoice, XdpAddress, XdpDevice};

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

/// AF_XDP on both ends, or a UDP socket on one of them.
fn xdp_over_veth(mode: ModeChoice, ends: [bool; 2]) -> Result<Pair, String> {
    let cable = Cable::lay()?;
    let at = SocketAddrV4::new(Cable::ADDRESSES[1], 7000);
    let address = XdpAddress {
        interface: "eth".into(),
        at,
        options: tightbeam_xdp::Options {
            mode,
            ..tightbeam_xdp::Options::default()
        },
    };
    // The way is found before the other device is there: to find it, something may be sent that is not ours.
    let (near, there) = cable.at(0, || match ends[0] {
        true => on_its_way(XdpDevice::connect(&address), at),
        false => on_its_way(UdpDevice::connect(at, options(Engine::Calls)), at),
    })?;
    let far = cable.at(1, || match ends[1] {
        true => boxed(XdpDevice::listen(&address)),
        false => boxed(UdpDevice::listen(at, options(Engine::Calls))),
    })?;
    Ok(Pair {
        near,
        far,
        there,
        _around: Box::new(cable),
    })
}

fn boxed(device: Result<impl Device + 'static, DeviceError>) -> Result<Box<dyn Device>, String> {
    Ok(Box::new(device.map_err(skip)?))
}

/// A device that knows the way.
fn on_its_way(
    device: Result<impl Device + 'static, DeviceError>,
    to: SocketAddrV4,
) -> Result<(Box<dyn Device>, Route), String> {
    let mut device = boxed(device)?;
    let there = device.route(to).expect("a way to the other device");
    Ok((device, there))
}

fn pair(mut near: UdpDevice, far: UdpDevice, to: SocketAddrV4, around: impl Any) -> Pair {
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

pub(crate) fn xdp_generic() -> Result<Pair, String> {
    xdp_over_veth(ModeChoice::Generic, [true, true])
}

pub(crate) fn xdp_native() -> Result<Pair, String> {
    xdp_over_veth(ModeChoice::Native, [true, true])
}

pub(crate) fn xdp_to_udp() -> Result<Pair, String> {
    xdp_over_veth(ModeChoice::Generic, [true, false])
}

pub(crate) fn udp_to_xdp() -> Result<Pair, String> {
    xdp_over_veth(ModeChoice::Generic, [false, true])
}

//! A packet from an interface to itself.
//!
//! Over `lo` it comes back to the device that sent it. From a NIC, or one end of a `veth` pair, it leaves: that the kernel took it is all that
//! can be seen here, so the packet has the interface's own Ethernet address and nobody else takes it for his.

use super::capabilities::Effective;
use super::finding::Finding;
use std::time::{Duration, Instant};
use tightbeam::{Device, DeviceError, DeviceStatus, Route};
use tightbeam_xdp::{Interface, ModeChoice, Options, XdpAddress, XdpDevice};

const NAME: &str = "self-test";
const BYTES: usize = 64;
/// How long the packet may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens the interface, and sends.
pub(super) fn run(interface: &Interface) -> Vec<Finding> {
    let missing = Effective::read().missing_for_xdp();
    if !missing.is_empty() {
        return vec![Finding::skipped(
            NAME,
            format!("needs {}", missing.join(", ")),
        )];
    }
    let Some(&ip) = interface.addresses.first() else {
        return vec![Finding::skipped(
            NAME,
            "needs an IPv4 address on the interface",
        )];
    };
    let address = XdpAddress {
        interface: interface.link.name.clone(),
        at: std::net::SocketAddrV4::new(ip, 0),
        options: Options {
            mode: ModeChoice::Generic,
            ..Options::default()
        },
    };
    let ended = XdpDevice::listen(&address).and_then(|mut device| send(&mut device, interface));
    match ended {
        Ok(findings) => findings,
        Err(DeviceError::System { what, errno, fix }) => {
            let says = format!("cannot {what} (errno {errno})");
            vec![Finding::problem(NAME, says, fix)]
        }
        Err(error) => vec![Finding::problem(NAME, error.to_string(), hint(interface))],
    }
}

/// What became of a packet.
struct Seen {
    /// It came back as it was.
    back: bool,
    /// It came back as something else.
    changed: bool,
    /// The kernel has taken it, and did not drop it at once.
    left: bool,
}

fn has_left(status: &DeviceStatus) -> bool {
    let count = |name| status.count(name).unwrap_or(0);
    count("sent") > count("lost_queue_full")
}

fn send(device: &mut XdpDevice, interface: &Interface) -> Result<Vec<Finding>, DeviceError> {
    let local = device.capabilities().local;
    let payload = payload();
    let to = Route {
        to: local,
        link: interface.link.address,
    };
    let mut write = |frame: &mut [u8]| {
        frame[..BYTES].copy_from_slice(&payload);
        BYTES
    };
    device.transmit(&to, BYTES, &mut write)?;
    device.kick()?;
    let seen = watch(device, &payload, interface.link.loopback)?;
    Ok(judge(&seen, &device.status(), interface))
}

/// No two runs send the same.
fn payload() -> [u8; BYTES] {
    let words = tightbeam_sys::memory::random_words().unwrap_or_default();
    let mut bytes = [0x5a; BYTES];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes
}

/// Waits until the packet has come back, over `lo`, or has left.
fn watch(device: &mut XdpDevice, payload: &[u8], loopback: bool) -> Result<Seen, DeviceError> {
    let mut seen = Seen {
        back: false,
        changed: false,
        left: false,
    };
    let end = Instant::now() + PATIENCE;
    loop {
        device.receive(64, &mut |packet| {
            seen.back |= packet.bytes == payload;
            seen.changed |= packet.bytes.len() == payload.len() && packet.bytes != payload;
        })?;
        seen.left |= has_left(&device.status());
        let done = if loopback {
            seen.back || seen.changed
        } else {
            seen.left
        };
        if done || Instant::now() > end {
            return Ok(seen);
        }
        std::thread::yield_now();
    }
}

fn judge(seen: &Seen, status: &DeviceStatus, interface: &Interface) -> Vec<Finding> {
    let fact = |name| status.fact(name).unwrap_or("unknown");
    let how = format!(
        "in force: mode {}, {}, NAPI {}, busy polling {}, {} packets a call",
        fact("mode"),
        fact("copy"),
        fact("napi_id"),
        fact("busy_poll"),
        fact("transmit_budget")
    );
    let losses: Vec<String> = status
        .losses()
        .map(|(cause, count)| format!("{cause} {count}"))
        .collect();
    let lost = match losses.is_empty() {
        true => "nothing is counted as lost".to_owned(),
        false => losses.join(", "),
    };
    let loopback = interface.link.loopback;
    match (seen.back, seen.changed, seen.left) {
        (_, true, _) => vec![Finding::problem(
            NAME,
            format!("a packet of {BYTES} bytes came back with other bytes; {how}"),
            hint(interface),
        )],
        (true, ..) => vec![Finding::ok(
            NAME,
            format!("a packet of {BYTES} bytes came back as it was; {how}"),
        )],
        (_, _, true) if !loopback => vec![
            Finding::ok(NAME, format!("a packet of {BYTES} bytes has left; {how}")),
            arrival(interface),
        ],
        _ => vec![Finding::problem(
            NAME,
            format!("a packet of {BYTES} bytes is nowhere to be seen; {lost}; {how}"),
            hint(interface),
        )],
    }
}

fn arrival(interface: &Interface) -> Finding {
    let name = &interface.link.name;
    let ip = interface.addresses.first();
    let ip = ip.map_or_else(|| "IP".into(), ToString::to_string);
    let says = format!(
        "whether packets arrive another host has to say, with `tightbeam ping udp:{ip}:7000`, while this runs here:"
    );
    Finding::note("arrival", says).mended_by(format!("tightbeam pong xdp:{name}/{ip}:7000"))
}

/// Where to look when a packet is lost and nothing says why.
fn hint(interface: &Interface) -> String {
    format!("ip -statistics link show dev {}", interface.link.name)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn judged(name: &str, back: bool, changed: bool, left: bool) -> Vec<Verdict> {
        let mut interface = Interface::find("lo").unwrap();
        interface.link.loopback = name == "lo";
        let seen = Seen {
            back,
            changed,
            left,
        };
        let findings = judge(&seen, &DeviceStatus::new("xdp"), &interface);
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn only_what_comes_back_unchanged_is_well_on_lo() {
        assert_eq!(judged("lo", true, false, true), [Verdict::Ok]);
        assert_eq!(judged("lo", false, true, true), [Verdict::Problem]);
        assert_eq!(judged("lo", false, false, true), [Verdict::Problem]);
    }

    #[test]
    fn from_a_nic_it_has_to_leave() {
        let left = judged("eth0", false, false, true);
        assert_eq!(left, [Verdict::Ok, Verdict::Note]);
        assert_eq!(judged("eth0", false, false, false), [Verdict::Problem]);
    }
}

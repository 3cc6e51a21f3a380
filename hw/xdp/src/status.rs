//! How a device stands: what the kernel says, not what was asked for.

use crate::device::XdpDevice;
use crate::fix;
use crate::interface;
use std::os::fd::AsFd;
use tightbeam_segment::DeviceStatus;
use tightbeam_sys::xdp;

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}

/// The offloads of the interface that are in the way, and the command that turns them off.
fn offloads(device: &XdpDevice) -> String {
    let place = &device.place;
    match interface::in_the_way(&place.network, place.link.index) {
        Ok(names) if names.is_empty() => "none".into(),
        Ok(names) => format!("`{}`", interface::turn_off(&place.link.name, &names)),
        Err(_) => "unknown".into(),
    }
}

/// Queues of the interface, and what to do when packets may arrive at another one.
fn queues(device: &XdpDevice) -> String {
    let place = &device.place;
    if place.queues <= 1 {
        return place.queues.to_string();
    }
    let (name, port, queue) = (&place.link.name, device.local.port(), place.queue);
    format!(
        "{}: packets that arrive at another one go to the kernel; `ethtool -L {name} combined 1`, or \
         `ethtool -N {name} flow-type udp4 dst-port {port} action {queue}`",
        place.queues
    )
}

pub(crate) fn status(device: &XdpDevice) -> DeviceStatus {
    let mut status = DeviceStatus::new("xdp");
    let (place, got) = (&device.place, &device.socket.got);
    let now = place.network.link_by_index(place.link.index);
    let state = match &now {
        Ok(link) if link.up => "up",
        Ok(_) => "down",
        Err(_) => "gone",
    };
    let mtu = now.map_or(0, |link| link.mtu);
    let native = device.attempt.mode() == "native";
    let ceiling = fix::ceiling(&place.driver).filter(|_| native);
    let ceiling = ceiling.map_or(device.room(), |most| most.min(device.room()));
    let steering = match &device.steering {
        Some(steering) if steering.is_attached() => steering.program.to_string(),
        Some(_) => "detached".into(),
        None => "held by the opener".into(),
    };
    status.facts = vec![
        ("local", device.local.to_string()),
        ("interface", place.link.name.clone()),
        ("state", state.into()),
        ("driver", place.driver.clone()),
        (
            "driver_note",
            fix::note(&place.driver).unwrap_or("none").into(),
        ),
        ("mode", device.attempt.mode().into()),
        (
            "copy",
            if got.zero_copy { "zerocopy" } else { "copy" }.into(),
        ),
        (
            "fell_back",
            device.fell_back.clone().unwrap_or_else(|| "no".into()),
        ),
        ("program", steering),
        ("queue", place.queue.to_string()),
        ("queues", queues(device)),
        ("mtu", mtu.to_string()),
        ("mtu_ceiling", ceiling.to_string()),
        ("max_packet", device.max_packet.to_string()),
        ("napi_id", got.napi.to_string()),
        ("busy_poll", yes_no(got.busy_poll)),
        (
            "need_wakeup",
            yes_no(device.socket.xsk.transmit_needs_wakeup()),
        ),
        ("headroom", got.headroom.to_string()),
        ("transmit_budget", got.budget.to_string()),
        (
            "frames",
            format!(
                "{} of {} bytes",
                device.socket.umem.count(),
                device.socket.umem.frame_bytes()
            ),
        ),
        ("checksum", device.checksum().into()),
        ("offloads_in_the_way", offloads(device)),
    ];
    status.counts = counts(device);
    status
}

fn counts(device: &XdpDevice) -> Vec<(&'static str, u64)> {
    let stats = &device.stats;
    // What is in the send ring still has not been sent.
    let waiting = device
        .socket
        .xsk
        .transmit_outstanding()
        .map_or(0, u64::from);
    let waiting = if device.gone { 0 } else { waiting };
    let mut counts = vec![
        ("sent", stats.queued - waiting),
        ("received", stats.received),
        ("send_calls", stats.send_calls),
        ("receive_calls", stats.receive_calls),
        ("send_buffer_full", stats.busy),
        ("lost_queue_full", stats.refused),
        ("lost_interface_down", stats.down),
        ("lost_malformed", stats.malformed),
        ("lost_other_address", stats.misaddressed),
    ];
    // A socket whose interface is gone still tells.
    if let Ok(kernel) = xdp::statistics(device.socket.xsk.as_fd()) {
        counts.extend([
            // Without a free frame, or longer than one.
            ("lost_rx_dropped", kernel.rx_dropped),
            ("lost_rx_ring_full", kernel.rx_ring_full.unwrap_or(0)),
            ("rx_invalid_descs", kernel.rx_invalid_descs),
            ("tx_invalid_descs", kernel.tx_invalid_descs),
            (
                "rx_fill_ring_empty_descs",
                kernel.rx_fill_ring_empty_descs.unwrap_or(0),
            ),
            (
                "tx_ring_empty_descs",
                kernel.tx_ring_empty_descs.unwrap_or(0),
            ),
        ]);
    }
    counts
}

//! How a device stands: what the kernel says, not what was asked for.

use crate::device::{Place, XdpDevice};
use crate::fix;
use crate::interface;
use crate::socket::Queue;
use std::ops::Range;
use std::os::fd::AsFd;
use tightbeam_segment::DeviceStatus;
use tightbeam_sys::xdp::{self, Statistics};

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

/// The queues that are ours.
fn ours(device: &XdpDevice) -> String {
    let Range { start, end } = device.place.bound;
    match end - start {
        1 => start.to_string(),
        _ => format!("{start} to {}", end - 1),
    }
}

/// Queues of the interface, and what to do when packets may arrive at one that is not ours.
fn queues(device: &XdpDevice) -> String {
    let Place { link, bound, .. } = &device.place;
    // There may be more or less by now.
    let queues = interface::queues(&device.place.network, link);
    if bound.len() as u32 >= queues {
        return queues.to_string();
    }
    let (name, port, queue) = (&link.name, device.local.port(), bound.start);
    format!(
        "{queues}: packets that arrive at another one go to the kernel; open the device without queue=, or `ethtool -L {name} combined {}`, or \
         `ethtool -N {name} flow-type udp4 dst-port {port} action {queue}`",
        bound.end
    )
}

/// What there is of each queue: once, if it is the same of all of them.
fn of_each(device: &XdpDevice, fact: impl Fn(&Queue) -> String) -> String {
    let mut facts: Vec<String> = device.sockets.queues.iter().map(fact).collect();
    facts.dedup();
    facts.join(", ")
}

pub(crate) fn status(device: &XdpDevice) -> DeviceStatus {
    let mut status = DeviceStatus::new("xdp");
    let (place, got) = (&device.place, &device.sockets.got);
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
        ("queue", ours(device)),
        ("queues", queues(device)),
        ("mtu", mtu.to_string()),
        ("mtu_ceiling", ceiling.to_string()),
        ("max_packet", device.max_packet.to_string()),
        ("napi_id", of_each(device, |queue| queue.napi.to_string())),
        (
            "busy_poll",
            of_each(device, |queue| yes_no(queue.busy_poll)),
        ),
        (
            "need_wakeup",
            yes_no(device.sockets.sender().transmit_needs_wakeup()),
        ),
        ("headroom", got.headroom.to_string()),
        ("transmit_budget", got.budget.to_string()),
        (
            "frames",
            format!(
                "{} of {} bytes",
                device.sockets.umem.count(),
                device.sockets.umem.frame_bytes()
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
    let waiting = device.sockets.sender().transmit_outstanding();
    let waiting = waiting.map_or(0, u64::from);
    let waiting = if device.gone { 0 } else { waiting };
    let (receiving, sending) = device.sockets.umem.with_kernel();
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
        // Each frame is in one place (I7): the rest is free.
        ("frames_receiving", receiving.into()),
        ("frames_sending", sending.into()),
        ("frames_missing", device.sockets.missing()),
    ];
    // A socket whose interface is gone still tells.
    let queues = device.sockets.queues.iter();
    let kernel = queues.map_while(|queue| xdp::statistics(queue.xsk.as_fd()).ok());
    let kernel: Vec<Statistics> = kernel.collect();
    let sum = |count: fn(&Statistics) -> u64| kernel.iter().map(count).sum();
    counts.extend([
        // Without a free frame, or longer than one.
        ("lost_rx_dropped", sum(|of| of.rx_dropped)),
        ("lost_rx_ring_full", sum(|of| of.rx_ring_full.unwrap_or(0))),
        ("rx_invalid_descs", sum(|of| of.rx_invalid_descs)),
        ("tx_invalid_descs", sum(|of| of.tx_invalid_descs)),
        (
            "rx_fill_ring_empty_descs",
            sum(|of| of.rx_fill_ring_empty_descs.unwrap_or(0)),
        ),
        (
            "tx_ring_empty_descs",
            sum(|of| of.tx_ring_empty_descs.unwrap_or(0)),
        ),
    ]);
    counts
}

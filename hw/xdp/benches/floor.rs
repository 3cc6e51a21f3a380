//! The device beside the bare loop over the same rings: round trips of 56 bytes, and packets of 64 bytes one way. Both ends over `veth`, each
//! on a CPU of its own, spinning. The two alternate in short batches; the figures are the median of paired ratios, p10 and p90.
//!
//! `cargo bench -p tightbeam-xdp --bench floor` as root; `cargo test` only looks whether it runs.

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Barrier;
use std::time::{Duration, Instant};
use support::netns::{self, Pair};
use support::{MODES, both};
use tightbeam_segment::{Device, Route};
use tightbeam_sys::cpu;
use tightbeam_xdp::XdpDevice;

const BYTES: usize = 56;
const ONE_WAY_BYTES: usize = 64;
/// Packets that one call sends.
const BATCH: usize = 64;

fn send(device: &mut XdpDevice, to: &Route, len: usize, numbers: std::ops::Range<u64>) -> u64 {
    let mut sent = 0;
    for number in numbers {
        let mut write = |frame: &mut [u8]| {
            frame[8..].fill(number as u8);
            frame[..8].copy_from_slice(&number.to_ne_bytes());
            len
        };
        if device.transmit(to, len, &mut write).is_err() {
            break;
        }
        sent += 1;
    }
    device.kick().expect("the interface is up");
    sent
}

/// Waits for a packet: its number, and who sent it.
fn wait(device: &mut XdpDevice) -> (u64, Route) {
    let mut got = None;
    while got.is_none() {
        let mut take = |packet: tightbeam_segment::Packet<'_>| {
            // The payload is read, all of it.
            let sum: u64 = packet.bytes[8..].iter().map(|&b| u64::from(b)).sum();
            std::hint::black_box(sum);
            let number = packet.bytes[..8].try_into().expect("eight bytes");
            got = Some((u64::from_ne_bytes(number), packet.from));
        };
        device.receive(1, &mut take).expect("the interface is up");
        std::hint::spin_loop();
    }
    got.expect("it has come")
}

fn device_echo(device: &mut XdpDevice, count: u64) {
    for _ in 0..count {
        let (number, from) = wait(device);
        send(device, &from, BYTES, number..number + 1);
    }
}

fn device_round_trips(device: &mut XdpDevice, to: &Route, count: u64) {
    for number in 0..count {
        send(device, to, BYTES, number..number + 1);
        assert_eq!(wait(device).0, number);
    }
}

fn floor_echo(device: &mut XdpDevice, to: &Route, count: u64) {
    let mut floor = device.floor(to, BYTES);
    for _ in 0..count {
        let number = loop {
            if let Some(number) = floor.take().expect("rings") {
                break number;
            }
            std::hint::spin_loop();
        };
        floor.send([number]).expect("rings");
    }
}

fn floor_round_trips(device: &mut XdpDevice, to: &Route, count: u64) {
    let mut floor = device.floor(to, BYTES);
    for number in 0..count {
        floor.send([number]).expect("rings");
        let back = loop {
            if let Some(back) = floor.take().expect("rings") {
                break back;
            }
            std::hint::spin_loop();
        };
        assert_eq!(back, number);
    }
}

fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 5, 9].map(|tenth| values[values.len() * tenth / 10])
}

fn report(what: &str, unit: &str, floor: Vec<f64>, device: Vec<f64>) {
    let ratios = device.iter().zip(&floor).map(|(d, f)| d / f).collect();
    let ([_, floor, _], [_, device, _]) = (spread(floor), spread(device));
    let [low, ratio, high] = spread(ratios);
    println!(
        "{what}: bare loop {floor:.2} {unit}, device {device:.2} {unit}, ratio {ratio:.2} ({low:.2} to {high:.2})"
    );
}

/// Both ends run, on a CPU each, until the left one is done.
fn at_both_ends(left: impl FnOnce() + Send, right: impl FnOnce() + Send) {
    let cpus = cpu::allowed().unwrap_or_default();
    let pin = |n: usize| cpus.get(n).map(|&cpu| cpu::pin(cpu));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            right();
        });
        scope.spawn(move || {
            pin(0);
            left();
        });
    });
}

fn round_trips(mode: &str, link: &str, rounds: usize, count: u64) {
    let pair = Pair::new(link);
    let (mut server, mut client, to) = both(&pair, mode);
    let back = server.route(client.capabilities().local);
    let back = back.expect("a way back");
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let turn = Barrier::new(2);
    let left = || {
        let mut timed = |bare: bool| {
            turn.wait();
            let start = Instant::now();
            match bare {
                true => floor_round_trips(&mut client, &to, count),
                false => device_round_trips(&mut client, &to, count),
            }
            start.elapsed().as_secs_f64() * 1e6 / count as f64
        };
        for _ in 0..rounds {
            bare.push(timed(true));
            ours.push(timed(false));
        }
    };
    let right = || {
        for _ in 0..rounds {
            turn.wait();
            floor_echo(&mut server, &back, count);
            turn.wait();
            device_echo(&mut server, count);
        }
    };
    at_both_ends(left, right);
    let queues = server.status().fact("queues").unwrap_or("?").to_owned();
    let what = format!("{mode}, queues {queues}, round trip {BYTES} B");
    report(&what, "us", bare, ours);
    for (name, device) in [("client", &client), ("server", &server)] {
        let lost = device.status().count("lost_rx_dropped");
        assert_eq!(lost, Some(0), "{name}");
    }
}

/// How many packets the left end sends in a while, in millions a second; the right one takes what comes.
fn one_way(mode: &str, rounds: usize, long: Duration) {
    let pair = Pair::new("");
    let (mut server, mut client, to) = both(&pair, mode);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let over = std::sync::atomic::AtomicBool::new(false);
    let left = || {
        for _ in 0..rounds {
            let timed = |step: &mut dyn FnMut(u64) -> u64| {
                let (start, mut sent) = (Instant::now(), 0);
                while start.elapsed() < long {
                    sent += step(sent);
                }
                sent as f64 / start.elapsed().as_secs_f64() / 1e6
            };
            let mut floor = client.floor(&to, ONE_WAY_BYTES);
            bare.push(timed(&mut |n| {
                floor.send(n..n + BATCH as u64).expect("rings") as u64
            }));
            ours.push(timed(&mut |n| {
                send(&mut client, &to, ONE_WAY_BYTES, n..n + BATCH as u64)
            }));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let right = || {
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            server
                .receive(64, &mut |_| {})
                .expect("the interface is up");
        }
    };
    at_both_ends(left, right);
    let what = format!("{mode}, one way {ONE_WAY_BYTES} B, {BATCH} a call");
    report(&what, "M/s", bare, ours);
    let status = client.status();
    let (sent, calls) = (status.count("sent"), status.count("send_calls"));
    let received = server.status().count("received");
    println!("    sent {sent:?} by the device's {calls:?} calls, received {received:?}");
}

fn main() {
    let Some(_alone) = netns::may() else {
        return;
    };
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let (rounds, count) = if measuring { (40, 1000) } else { (2, 10) };
    for mode in MODES {
        for link in ["", "numrxqueues 4 numtxqueues 4"] {
            round_trips(mode, link, rounds, count);
        }
        one_way(
            mode,
            rounds / 2,
            Duration::from_millis(if measuring { 50 } else { 1 }),
        );
    }
}

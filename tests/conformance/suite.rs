//! The behaviours. Each case has a pair of devices to itself, over a link that loses nothing by itself.

use std::any::Any;
use std::time::{Duration, Instant};
use tightbeam_segment::{Device, DeviceError, DeviceStatus, Route};

/// No case waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two devices, and the way from the first to the second.
pub(crate) struct Pair {
    pub(crate) near: Box<dyn Device>,
    pub(crate) far: Box<dyn Device>,
    pub(crate) there: Route,
    /// What must outlive the devices.
    pub(crate) _around: Box<dyn Any>,
}

/// Puts a packet into the send ring.
fn put(device: &mut dyn Device, to: &Route, bytes: &[u8]) -> Result<(), DeviceError> {
    device.transmit(to, bytes.len(), &mut |frame| {
        frame[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    })
}

/// Puts a packet into the send ring, and makes room if there is none.
fn put_patiently(device: &mut dyn Device, to: &Route, bytes: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match put(device, to, bytes) {
            Ok(()) => return,
            Err(DeviceError::Full) => {
                device.kick().expect("a kick");
                device.reclaim();
            }
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "the send ring does not drain");
    }
}

/// Takes packets until there are so many; fails when they do not come.
fn take(device: &mut dyn Device, count: usize) -> Vec<(Route, Vec<u8>)> {
    let (mut taken, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while taken.len() < count {
        let more = device.receive(count - taken.len(), &mut |packet| {
            taken.push((packet.from, packet.bytes.to_vec()));
        });
        more.expect("a look into the receive ring");
        let status = (Instant::now() > deadline).then(|| device.status());
        assert!(
            status.is_none(),
            "{} of {count} came: {status:?}",
            taken.len()
        );
    }
    taken
}

/// What a device knows to be lost.
fn lost(status: &DeviceStatus) -> u64 {
    let lost = status
        .counts
        .iter()
        .filter(|(name, _)| name.starts_with("lost_"));
    lost.map(|(_, count)| count).sum()
}

fn count(status: &DeviceStatus, name: &str) -> u64 {
    status
        .count(name)
        .unwrap_or_else(|| panic!("{} does not count `{name}`", status.kind))
}

/// Bytes of packet `number`: its number, then bytes that depend on it.
fn packet(number: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length)
        .map(|index| (index as u64 ^ number.rotate_left(3)) as u8)
        .collect();
    let head = number.to_le_bytes();
    let known = head.len().min(length);
    bytes[..known].copy_from_slice(&head[..known]);
    bytes
}

fn number_of(bytes: &[u8]) -> u64 {
    let head = bytes.first_chunk().expect("a packet of at least 8 bytes");
    u64::from_le_bytes(*head)
}

pub(crate) fn a_burst_arrives_whole_and_in_order(pair: &mut Pair) {
    let burst = pair.near.capabilities().batch.min(64) as u64;
    for round in 0..8 {
        for number in 0..burst {
            put_patiently(
                &mut *pair.near,
                &pair.there,
                &packet(round * burst + number, 64),
            );
        }
        pair.near.kick().unwrap();
        let taken = take(&mut *pair.far, burst as usize);
        for ((_, bytes), number) in taken.iter().zip(round * burst..) {
            assert_eq!(*bytes, packet(number, 64));
        }
    }
}

pub(crate) fn every_length_arrives(pair: &mut Pair) {
    let most = pair.near.capabilities().max_packet;
    assert!(most >= 1_200, "{most} bytes are too few to be of use");
    let small = 0..=130;
    let around = [255, 256, 257, 511, 512, 1_023, 1_024, 1_025, 1_199, 1_200];
    let large = [most / 2, most - 1, most];
    for length in small.chain(around).chain(large).filter(|&l| l <= most) {
        let sent = packet(length as u64, length);
        put(&mut *pair.near, &pair.there, &sent).unwrap();
        pair.near.kick().unwrap();
        let taken = take(&mut *pair.far, 1);
        assert_eq!(taken[0].1, sent, "{length} bytes");
        pair.near.reclaim();
    }
}

pub(crate) fn a_packet_may_become_shorter_while_it_is_written(pair: &mut Pair) {
    let (near, there) = (&mut pair.near, &pair.there);
    for used in [100, 99, 8, 1, 0] {
        let mut given = 0;
        near.transmit(there, 100, &mut |frame| {
            given = frame.len();
            frame[..used].copy_from_slice(&packet(7, used));
            used
        })
        .unwrap();
        near.kick().unwrap();
        assert_eq!(given, 100);
        assert_eq!(take(&mut *pair.far, 1)[0].1, packet(7, used));
    }
}

pub(crate) fn what_is_too_long_is_refused_and_nothing_else_happens(pair: &mut Pair) {
    let max = pair.near.capabilities().max_packet;
    let before = count(&pair.near.status(), "sent");
    for len in [max + 1, max + 1_000, usize::MAX] {
        let refused = pair.near.transmit(&pair.there, len, &mut |_| {
            panic!("a packet was written that is too long")
        });
        assert_eq!(refused, Err(DeviceError::TooLong { len, max }));
    }
    pair.near.kick().unwrap();
    assert_eq!(count(&pair.near.status(), "sent"), before);
    put(&mut *pair.near, &pair.there, b"fits").unwrap();
    pair.near.kick().unwrap();
    assert_eq!(take(&mut *pair.far, 1)[0].1, b"fits");
}

pub(crate) fn a_full_ring_says_so_and_drains(pair: &mut Pair) {
    let batch = pair.near.capabilities().batch;
    for _ in 0..3 {
        let mut put_in = 0u64;
        let full = loop {
            let mut written = false;
            let put = pair.near.transmit(&pair.there, 8, &mut |frame| {
                written = true;
                frame.copy_from_slice(&put_in.to_le_bytes());
                8
            });
            match put {
                Ok(()) => put_in += 1,
                Err(error) => {
                    assert!(!written, "a packet was written that has no room");
                    break error;
                }
            }
            assert!(put_in <= 1 << 20, "a ring without an end");
        };
        assert_eq!(full, DeviceError::Full);
        assert!(
            put_in >= batch as u64,
            "{put_in} fit, {batch} were promised"
        );
        let mut came = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while came.len() < put_in as usize {
            pair.near.kick().unwrap();
            pair.near.reclaim();
            let took = pair
                .far
                .receive(64, &mut |packet| came.push(number_of(packet.bytes)));
            took.unwrap();
            assert!(Instant::now() < deadline, "{} of {put_in} came", came.len());
        }
        assert_eq!(came, (0..put_in).collect::<Vec<_>>());
    }
}

pub(crate) fn a_receiver_takes_no_more_than_it_asked_for(pair: &mut Pair) {
    for number in 0..20 {
        put_patiently(&mut *pair.near, &pair.there, &packet(number, 16));
    }
    pair.near.kick().unwrap();
    assert_eq!(
        pair.far.receive(0, &mut |_| panic!("none was asked for")),
        Ok(0)
    );
    let (mut came, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while came.len() < 20 {
        let before = came.len();
        let said = pair
            .far
            .receive(3, &mut |packet| came.push(number_of(packet.bytes)))
            .unwrap();
        assert_eq!(came.len() - before, said);
        assert!(said <= 3);
        assert!(Instant::now() < deadline);
    }
    assert_eq!(came, (0..20).collect::<Vec<_>>());
}

pub(crate) fn nothing_arrives_twice_and_counts_add_up(pair: &mut Pair) {
    const PACKETS: u64 = 20_000;
    let mut seen = vec![false; PACKETS as usize];
    let mut look = |far: &mut dyn Device| {
        let looked = far.receive(64, &mut |arrived| {
            let number = number_of(arrived.bytes);
            assert_eq!(arrived.bytes, packet(number, 8 + number as usize % 200));
            let again = std::mem::replace(&mut seen[number as usize], true);
            assert!(!again, "packet {number} has come twice");
        });
        looked.unwrap()
    };
    for number in 0..PACKETS {
        let bytes = packet(number, 8 + number as usize % 200);
        put_patiently(&mut *pair.near, &pair.there, &bytes);
        if number % 32 == 31 {
            pair.near.kick().unwrap();
            while look(&mut *pair.far) > 0 {}
        }
    }
    settle(pair, PACKETS, &mut look);
}

/// Looks until everything that was sent is received or counted as lost.
fn settle(pair: &mut Pair, sent: u64, look: &mut dyn FnMut(&mut dyn Device) -> usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        pair.near.kick().unwrap();
        pair.near.reclaim();
        while look(&mut *pair.far) > 0 {}
        let (near, far) = (pair.near.status(), pair.far.status());
        let received = count(&far, "received");
        if count(&near, "sent") == sent && sent == received + lost(&near) + lost(&far) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{sent} put in: {near:?}, {far:?}"
        );
    }
}

pub(crate) fn what_overruns_a_receiver_is_counted(pair: &mut Pair) {
    const PACKETS: u64 = 20_000;
    for number in 0..PACKETS {
        put_patiently(&mut *pair.near, &pair.there, &packet(number, 600));
    }
    let mut last = None;
    settle(pair, PACKETS, &mut |far| {
        let looked = far.receive(64, &mut |arrived| {
            let number = number_of(arrived.bytes);
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
        });
        looked.unwrap()
    });
    assert!(lost(&pair.far.status()) > 0, "nothing was overrun");
    // It goes on as before.
    put(&mut *pair.near, &pair.there, b"and now").unwrap();
    pair.near.kick().unwrap();
    assert_eq!(take(&mut *pair.far, 1)[0].1, b"and now");
}

pub(crate) fn who_has_sent_can_be_answered(pair: &mut Pair) {
    for number in 0..100 {
        put(&mut *pair.near, &pair.there, &packet(number, 40)).unwrap();
        pair.near.kick().unwrap();
        let (back, bytes) = take(&mut *pair.far, 1).remove(0);
        put(&mut *pair.far, &back, &bytes).unwrap();
        pair.far.kick().unwrap();
        let (from, answer) = take(&mut *pair.near, 1).remove(0);
        assert_eq!(answer, bytes);
        assert_eq!(from.to, pair.there.to);
        pair.near.reclaim();
        pair.far.reclaim();
    }
}

pub(crate) fn idle_devices_do_nothing(pair: &mut Pair) {
    for device in [&mut pair.near, &mut pair.far] {
        for _ in 0..100 {
            device.kick().unwrap();
            device.provide();
            device.reclaim();
            let nothing = device.receive(64, &mut |packet| panic!("{packet:?} was never sent"));
            assert_eq!(nothing, Ok(0));
        }
        let status = device.status();
        assert_eq!((count(&status, "sent"), count(&status, "received")), (0, 0));
        assert_eq!(lost(&status), 0, "{status:?}");
    }
}

pub(crate) fn a_status_says_what_it_is(pair: &mut Pair) {
    for device in [&pair.near, &pair.far] {
        let (status, can) = (device.status(), device.capabilities());
        assert!(!status.kind.is_empty());
        assert!(
            status.facts.iter().all(|(_, value)| !value.is_empty()),
            "{status:?}"
        );
        let mut names: Vec<_> = status.counts.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), status.counts.len(), "{status:?}");
        assert!(can.batch > 0 && can.local.port() > 0, "{can:?}");
        assert_eq!(can, device.capabilities());
    }
}

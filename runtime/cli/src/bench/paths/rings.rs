//! Numbered packets over an AF_XDP device's rings, in the two ways that are compared: through the device, and by the bare loop.
//!
//! | | device | bare loop |
//! |---|---|---|
//! | sends | packets whose payload is written, each behind a header of its own | copies of one packet with another number |
//! | receives | checks the header, reads all of the payload | reads the number |
//!
//! All else is the same: socket, mode, settings, packets of a call, window. A rate has one because a packet for which there is no room is
//! lost: the receiver says in packets of its own how far it is.

use super::datagram::silent;
use super::{Exchange, Pour, Station, shm};
use crate::bench::fault::Broken;
use crate::bench::spec::{Job, Pause, Spec};
use crate::bench::watch::{called_off, spin};
use std::ops::Range;
use std::time::{Duration, Instant};
use tightbeam_segment::{Device, Route};
use tightbeam_sys::clock::TickClock;
use tightbeam_xdp::{Floor, XdpDevice};

/// Packets of one call, one way.
const BATCH: u64 = 64;
/// Packets under way at most: half of what a receive ring holds. After how many the receiver says how far it is.
const WINDOW: u64 = 512;
const STRIDE: u64 = 128;
/// The number of the packets by which the two ends find each other.
const HELLO: u64 = u64::MAX;
/// How long that may take, and after how long it is tried again.
const OPENING: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(10);

/// One of the two ways.
trait Packets {
    /// Sends a packet for each number by one call; how many found room.
    fn send(&mut self, numbers: Range<u64>) -> Result<u64, Broken>;
    /// Takes packets, at most so many; how many came.
    fn take(&mut self, most: usize, each: impl FnMut(u64)) -> Result<usize, Broken>;
}

impl Packets for Floor<'_> {
    #[inline(always)]
    fn send(&mut self, numbers: Range<u64>) -> Result<u64, Broken> {
        let sent = Floor::send(self, numbers).map_err(shm::endpoint)?;
        Ok(sent as u64)
    }

    #[inline(always)]
    fn take(&mut self, most: usize, mut each: impl FnMut(u64)) -> Result<usize, Broken> {
        let mut came = 0;
        while came < most
            && let Some(number) = Floor::take(self).map_err(shm::endpoint)?
        {
            each(number);
            came += 1;
        }
        Ok(came)
    }
}

/// Through the device.
struct Whole<'a> {
    device: &'a mut XdpDevice,
    to: Route,
    size: usize,
}

impl Packets for Whole<'_> {
    #[inline(always)]
    fn send(&mut self, numbers: Range<u64>) -> Result<u64, Broken> {
        let (mut sent, size) = (0, self.size);
        for number in numbers {
            let put = self.device.transmit(&self.to, size, &mut |packet| {
                write(packet, number);
                size
            });
            match put {
                Ok(()) => sent += 1,
                Err(tightbeam_segment::DeviceError::Full) => break,
                Err(error) => return Err(shm::endpoint(error)),
            }
        }
        self.device.kick().map_err(shm::endpoint)?;
        Ok(sent)
    }

    #[inline(always)]
    fn take(&mut self, most: usize, mut each: impl FnMut(u64)) -> Result<usize, Broken> {
        let (mut came, mut damaged) = (0, false);
        let taken = self.device.receive(most, &mut |packet| {
            match read(packet.bytes) {
                Some(number) => each(number),
                None => damaged = true,
            }
            came += 1;
        });
        taken.map_err(shm::endpoint)?;
        match damaged {
            true => Err(shm::endpoint("a packet is not what was sent")),
            false => Ok(came),
        }
    }
}

/// Writes all of a packet's payload: its number, and numbers that follow from that.
#[inline(always)]
fn write(payload: &mut [u8], number: u64) {
    let mut word = number;
    for chunk in payload.as_chunks_mut::<8>().0 {
        *chunk = word.to_le_bytes();
        word = word.wrapping_add(1);
    }
}

/// Reads all of it; `None` if it is not what was written.
#[inline(always)]
fn read(payload: &[u8]) -> Option<u64> {
    let words = payload.as_chunks::<8>().0;
    let number = u64::from_le_bytes(*words.first()?);
    let mut wrong = 0;
    for (chunk, word) in words.iter().zip(0u64..) {
        wrong |= u64::from_le_bytes(*chunk) ^ number.wrapping_add(word);
    }
    (wrong == 0).then_some(number)
}

/// One end.
pub(super) struct End {
    device: XdpDevice,
    /// The other end, as soon as it is known.
    to: Option<Route>,
    /// By the bare loop.
    bare: bool,
    job: Job,
    size: usize,
    pause: Pause,
    /// Packets sent or received in all, and those that the other end is known to have received, or that are lost.
    count: u64,
    settled: u64,
}

/// Does something with the packets of an end in the way that it is for.
macro_rules! with_packets {
    ($end:expr, |$packets:ident, $account:ident| $act:expr) => {{
        let (to, size) = ($end.to.ok_or(Broken::Closed)?, $end.size);
        let mut $account = Account {
            pause: $end.pause,
            count: &mut $end.count,
            settled: &mut $end.settled,
        };
        match $end.bare {
            true => {
                let mut $packets = $end.device.floor(&to, size);
                $act
            }
            false => {
                let device = &mut $end.device;
                let mut $packets = Whole { device, to, size };
                $act
            }
        }
    }};
}

impl End {
    pub(super) fn new(device: XdpDevice, to: Option<Route>, bare: bool, spec: &Spec) -> End {
        End {
            device,
            to,
            bare,
            job: spec.job,
            size: spec.size,
            pause: spec.pause(),
            count: 0,
            settled: 0,
        }
    }

    /// The end that connects: is heard of, and hears.
    pub(super) fn greet(&mut self) -> Result<(), Broken> {
        let deadline = Instant::now() + OPENING;
        let to = self.to.ok_or(Broken::Closed)?;
        while Instant::now() < deadline {
            self.say_hello(to)?;
            let again = Instant::now() + AGAIN;
            while Instant::now() < again {
                if self.hello()?.is_some() {
                    return Ok(());
                }
            }
        }
        Err(shm::endpoint("no packet comes back"))
    }

    fn say_hello(&mut self, to: Route) -> Result<(), Broken> {
        let (device, size) = (&mut self.device, self.size);
        let put = device.transmit(&to, size, &mut |packet| {
            write(packet, HELLO);
            size
        });
        put.map_err(shm::endpoint)?;
        device.kick().map(drop).map_err(shm::endpoint)
    }

    /// Who has said hello, if anybody.
    fn hello(&mut self) -> Result<Option<Route>, Broken> {
        let mut from = None;
        let came = self.device.receive(1, &mut |packet| {
            from = (read(packet.bytes) == Some(HELLO)).then_some(packet.from);
        });
        came.map_err(shm::endpoint)?;
        Ok(from)
    }
}

/// What an end has sent or received.
struct Account<'a> {
    pause: Pause,
    count: &'a mut u64,
    settled: &'a mut u64,
}

impl Account<'_> {
    #[inline(always)]
    fn round_trip(&mut self, packets: &mut impl Packets) -> Result<(), Broken> {
        let number = *self.count;
        *self.count += 1;
        if packets.send(number..number + 1)? == 0 {
            return Err(shm::endpoint("no room for one packet"));
        }
        while wait(self.pause, packets)? != number {}
        Ok(())
    }

    #[inline(always)]
    fn answer(&mut self, packets: &mut impl Packets) -> Result<(), Broken> {
        let number = loop {
            match wait(self.pause, packets)? {
                HELLO => {}
                number => break number,
            }
        };
        packets.send(number..number + 1).map(drop)
    }

    /// Sends so many packets, as the window allows.
    fn pour(&mut self, packets: &mut impl Packets, count: u32) -> Result<(), Broken> {
        let until = *self.count + u64::from(count);
        while *self.count < until {
            self.hear(packets)?;
            let mut since = None;
            while *self.count - *self.settled > WINDOW - BATCH {
                if called_off() {
                    return Err(Broken::CalledOff);
                }
                if self.hear(packets)? == 0 && silent(&mut since) {
                    *self.settled = *self.count;
                }
            }
            let end = until.min(*self.count + BATCH);
            *self.count += packets.send(*self.count..end)?;
        }
        Ok(())
    }

    /// What the receiver says of how far it is.
    fn hear(&mut self, packets: &mut impl Packets) -> Result<usize, Broken> {
        let (count, settled) = (*self.count, &mut *self.settled);
        packets.take(BATCH as usize, |number| {
            if number <= count {
                *settled = number.max(*settled);
            }
        })
    }

    /// Takes so many packets, or what of them comes.
    fn take(&mut self, packets: &mut impl Packets, count: u32) -> Result<u32, Broken> {
        let (mut came, mut since) = (0, None);
        while came < count {
            let next = &mut *self.count;
            let taken = packets.take(BATCH as usize, |number| {
                if number != HELLO {
                    came += 1;
                    *next = number + 1;
                }
            })?;
            match taken {
                0 if called_off() => return Err(Broken::CalledOff),
                0 if silent(&mut since) => break,
                0 => self.pause.once(),
                _ => since = None,
            }
            if *self.count - *self.settled >= STRIDE || came >= count {
                *self.settled = *self.count;
                packets.send(*self.count..*self.count + 1)?;
            }
        }
        Ok(came)
    }
}

/// The number of the next packet.
#[inline(always)]
fn wait(pause: Pause, packets: &mut impl Packets) -> Result<u64, Broken> {
    spin(pause, || {
        let mut number = None;
        packets.take(1, |taken| number = Some(taken))?;
        Ok(number)
    })
}

impl Exchange for End {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        with_packets!(self, |packets, account| {
            for _ in 0..count {
                account.round_trip(&mut packets)?;
            }
        });
        Ok(())
    }

    fn stamped(&mut self, clock: &TickClock, ends: &mut [u64]) -> Result<u64, Broken> {
        let start = clock.now();
        with_packets!(self, |packets, account| {
            for end in ends {
                account.round_trip(&mut packets)?;
                *end = clock.now();
            }
        });
        Ok(start)
    }
}

impl Pour for End {
    fn run(&mut self, count: u32) -> Result<(), Broken> {
        with_packets!(self, |packets, account| account.pour(&mut packets, count))
    }
}

impl Station for End {
    fn serve(&mut self, count: u32) -> Result<u32, Broken> {
        let pours = self.job == Job::Rate;
        with_packets!(self, |packets, account| {
            if pours {
                return account.take(&mut packets, count);
            }
            for _ in 0..count {
                account.answer(&mut packets)?;
            }
        });
        Ok(count)
    }

    /// Until the other end is heard of. If it is not, that one says why.
    fn settle(&mut self) {
        let deadline = Instant::now() + OPENING;
        while self.to.is_none() && Instant::now() < deadline {
            let heard = self.hello().ok().flatten();
            if let Some(from) = heard
                && self.say_hello(from).is_ok()
            {
                self.to = Some(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_damage_is_seen() {
        for number in [0, 7, HELLO] {
            let mut payload = [0; 56];
            write(&mut payload, number);
            assert_eq!(read(&payload), Some(number));
            for at in [8, 31, 55] {
                payload[at] ^= 1;
                assert_eq!(read(&payload), None);
                payload[at] ^= 1;
            }
        }
        assert_eq!(read(&[0; 7]), None);
    }
}

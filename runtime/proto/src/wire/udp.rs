//! UDP over IPv4, with a full checksum or none.

use super::checksum::{finish, sum};
use super::{Malformed, at_least, be16, ipv4};
use core::net::Ipv4Addr;

/// Bytes of the header.
pub const HEADER: usize = 8;

const SOURCE: usize = 0;
const DESTINATION: usize = 2;
pub(super) const LENGTH: usize = 4;
pub(super) const CHECKSUM: usize = 6;

/// A packet, as a view of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes bytes for a packet if they are as long as it says. Its own length is the truth: what follows is padding.
    pub fn new_checked(bytes: T) -> Result<Self, Malformed> {
        let all = bytes.as_ref();
        at_least(all, HEADER)?;
        let len = usize::from(be16(all, LENGTH));
        if len < HEADER {
            return Err(Malformed::Short {
                len,
                needed: HEADER,
            });
        }
        at_least(all, len)?;
        Ok(Packet(bytes))
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The sender's port, as it says.
    pub fn source(&self) -> u16 {
        be16(self.bytes(), SOURCE)
    }

    /// The port that it is for.
    pub fn destination(&self) -> u16 {
        be16(self.bytes(), DESTINATION)
    }

    /// Header and payload in bytes.
    pub fn total_len(&self) -> usize {
        usize::from(be16(self.bytes(), LENGTH))
    }

    /// The checksum field; 0 if the sender has made none.
    pub fn checksum(&self) -> u16 {
        be16(self.bytes(), CHECKSUM)
    }

    /// Whether there is no checksum, or a right one, between these addresses.
    ///
    /// A frame that a kernel socket has sent over `veth` or `lo` carries the sum of the addresses alone, to be finished by
    /// hardware that never sees it; only sockets with `SO_NO_CHECK` are read right there.
    pub fn checksum_holds(&self, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        let whole = self.bytes().get(..self.total_len()).unwrap_or_default();
        self.checksum() == 0 || checksum(source, destination, whole) == 0
    }

    /// What follows the header, without padding.
    pub fn payload(&self) -> &[u8] {
        let range = HEADER..self.total_len();
        self.bytes().get(range).unwrap_or_default()
    }
}

/// The header, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// The sender's port.
    pub source: u16,
    /// The port that it is for.
    pub destination: u16,
    /// Bytes that follow the header, at most 65,507 over IPv4.
    pub payload_len: u16,
    /// The checksum field; 0 is none. [`seal`] puts the right one in.
    pub checksum: u16,
}

impl Repr {
    /// Reads a header. Does not look at the checksum: see [`Packet::checksum_holds`].
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        Repr {
            source: packet.source(),
            destination: packet.destination(),
            payload_len: packet.total_len().saturating_sub(HEADER) as u16,
            checksum: packet.checksum(),
        }
    }

    /// Writes the header over the first [`HEADER`] bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer, or the payload is longer than 65,527 bytes: the caller's mistake.
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..HEADER];
        let len = HEADER as u16 + self.payload_len;
        out[SOURCE..DESTINATION].copy_from_slice(&self.source.to_be_bytes());
        out[DESTINATION..LENGTH].copy_from_slice(&self.destination.to_be_bytes());
        out[LENGTH..CHECKSUM].copy_from_slice(&len.to_be_bytes());
        out[CHECKSUM..].copy_from_slice(&self.checksum.to_be_bytes());
    }
}

/// Puts the checksum into a packet, header and payload, between these addresses. Never 0, which would mean none.
///
/// # Panics
///
/// If it is shorter than a header: the caller's mistake.
pub fn seal(packet: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr) {
    packet[CHECKSUM..HEADER].fill(0);
    let checksum = match checksum(source, destination, packet) {
        0 => 0xffff,
        other => other,
    };
    packet[CHECKSUM..HEADER].copy_from_slice(&checksum.to_be_bytes());
}

/// Over the pseudo header and all of these bytes, whose length is the UDP length.
fn checksum(source: Ipv4Addr, destination: Ipv4Addr, whole: &[u8]) -> u16 {
    let pseudo = ipv4::Repr::pseudo_sum(source, destination, whole.len() as u16);
    finish(sum(whole, pseudo))
}

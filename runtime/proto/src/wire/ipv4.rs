//! IPv4 without options and fragments, which stay the kernel's.

use super::checksum::{finish, sum};
use super::{Malformed, array, at_least, be16};
use core::net::Ipv4Addr;

/// Bytes of the header: there are no options.
pub const HEADER: usize = 20;
/// The protocol number of UDP.
pub const UDP: u8 = 17;

const VERSION_AND_LENGTH: u8 = 0x45;
pub(super) const TOTAL_LENGTH: usize = 2;
const IDENT: usize = 4;
const FRAGMENT: usize = 6;
const TTL: usize = 8;
const PROTOCOL: usize = 9;
pub(super) const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const DONT_FRAGMENT: u16 = 0x4000;

/// A packet, as a view of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes bytes for a packet if it has a header without options, is whole, and is as long as it says. Bytes behind its end are
    /// padding.
    pub fn new_checked(bytes: T) -> Result<Self, Malformed> {
        let all = bytes.as_ref();
        at_least(all, HEADER)?;
        if all[0] != VERSION_AND_LENGTH {
            return Err(Malformed::Foreign {
                what: "IP options, or not IPv4",
            });
        }
        // More fragments, an offset, or the bit that must be zero.
        if be16(all, FRAGMENT) & !DONT_FRAGMENT != 0 {
            return Err(Malformed::Foreign { what: "a fragment" });
        }
        let total = usize::from(be16(all, TOTAL_LENGTH));
        at_least(all, total.max(HEADER))?;
        if total < HEADER {
            return Err(Malformed::Short {
                len: total,
                needed: HEADER,
            });
        }
        Ok(Packet(bytes))
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Header and payload in bytes, without padding.
    pub fn total_len(&self) -> usize {
        usize::from(be16(self.bytes(), TOTAL_LENGTH))
    }

    /// The protocol of the payload; [`UDP`] if it is for us.
    pub fn protocol(&self) -> u8 {
        array::<1>(self.bytes(), PROTOCOL)[0]
    }

    /// Who sent it, as it says.
    pub fn source(&self) -> Ipv4Addr {
        array(self.bytes(), SOURCE).into()
    }

    /// Who is to have it.
    pub fn destination(&self) -> Ipv4Addr {
        array(self.bytes(), DESTINATION).into()
    }

    /// Whether the header's checksum is that of the header.
    pub fn checksum_holds(&self) -> bool {
        let header = self.bytes().get(..HEADER).unwrap_or_default();
        finish(sum(header, 0)) == 0
    }

    /// What follows the header, without padding.
    pub fn payload(&self) -> &[u8] {
        let range = HEADER..self.total_len();
        self.bytes().get(range).unwrap_or_default()
    }
}

/// The header of a packet that carries UDP, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// Who sends it.
    pub source: Ipv4Addr,
    /// Who is to have it.
    pub destination: Ipv4Addr,
    /// Bytes that follow the header.
    pub payload_len: u16,
    /// Class of service and congestion marks; 0 if nothing is asked for.
    pub service: u8,
    /// Names a packet among its fragments; 0 where there are none.
    pub ident: u16,
    /// Whether routers must drop it rather than cut it up. What we send always says so.
    pub dont_fragment: bool,
    /// Routers that it may pass.
    pub ttl: u8,
}

impl Repr {
    /// What we send: never cut up, and past 64 routers at most.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, payload_len: u16) -> Repr {
        Repr {
            source,
            destination,
            payload_len,
            service: 0,
            ident: 0,
            dont_fragment: true,
            ttl: 64,
        }
    }

    /// Reads a header. Refuses another protocol than UDP, and a wrong checksum.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        if packet.protocol() != UDP {
            return Err(Malformed::Foreign { what: "not UDP" });
        }
        if !packet.checksum_holds() {
            return Err(Malformed::Checksum { of: "IPv4" });
        }
        let bytes = packet.bytes();
        let [_, service] = array(bytes, 0);
        let [ttl] = array(bytes, TTL);
        Ok(Repr {
            source: packet.source(),
            destination: packet.destination(),
            payload_len: (packet.total_len() - HEADER) as u16,
            service,
            ident: be16(bytes, IDENT),
            dont_fragment: be16(bytes, FRAGMENT) & DONT_FRAGMENT != 0,
            ttl,
        })
    }

    /// Writes the header, with its checksum, over the first [`HEADER`] bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer, or the payload is longer than 65,515 bytes: the caller's mistake.
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..HEADER];
        let total = HEADER as u16 + self.payload_len;
        let fragment = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        out[0] = VERSION_AND_LENGTH;
        out[1] = self.service;
        out[TOTAL_LENGTH..IDENT].copy_from_slice(&total.to_be_bytes());
        out[IDENT..FRAGMENT].copy_from_slice(&self.ident.to_be_bytes());
        out[FRAGMENT..TTL].copy_from_slice(&fragment.to_be_bytes());
        out[TTL] = self.ttl;
        out[PROTOCOL] = UDP;
        out[CHECKSUM..SOURCE].fill(0);
        out[SOURCE..DESTINATION].copy_from_slice(&self.source.octets());
        out[DESTINATION..].copy_from_slice(&self.destination.octets());
        let checksum = finish(sum(out, 0));
        out[CHECKSUM..SOURCE].copy_from_slice(&checksum.to_be_bytes());
    }

    /// The sum of what a UDP checksum covers outside its packet: both addresses, the protocol, and a UDP length in bytes.
    pub(super) fn pseudo_sum(source: Ipv4Addr, destination: Ipv4Addr, udp_len: u16) -> u32 {
        let [high, low] = udp_len.to_be_bytes();
        let tail = sum(&[0, UDP, high, low], 0);
        sum(&source.octets(), sum(&destination.octets(), tail))
    }
}

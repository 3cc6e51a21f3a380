//! Ethernet II without VLAN tags.

use super::{Malformed, array, at_least, be16};

/// Bytes of the header.
pub const HEADER: usize = 14;
/// The Ethernet type of IPv4.
pub const IPV4: u16 = 0x0800;

const DESTINATION: usize = 0;
const SOURCE: usize = 6;
const TYPE: usize = 12;

/// A frame, as a view of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes bytes for a frame if they are long enough. Any Ethernet type: [`Repr::parse`] looks at that.
    pub fn new_checked(bytes: T) -> Result<Self, Malformed> {
        at_least(bytes.as_ref(), HEADER)?;
        Ok(Packet(bytes))
    }

    /// The hardware address that it is for.
    pub fn destination(&self) -> [u8; 6] {
        array(self.0.as_ref(), DESTINATION)
    }

    /// The hardware address that it says it is from.
    pub fn source(&self) -> [u8; 6] {
        array(self.0.as_ref(), SOURCE)
    }

    /// What is in it; [`IPV4`] if it is for us.
    pub fn ethernet_type(&self) -> u16 {
        be16(self.0.as_ref(), TYPE)
    }

    /// What follows the header, with the padding of short frames.
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(HEADER..).unwrap_or_default()
    }
}

/// The header of a frame that carries IPv4, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// The hardware address that it is for.
    pub destination: [u8; 6],
    /// The hardware address that it is from.
    pub source: [u8; 6],
}

impl Repr {
    /// Reads a header. [`Malformed::Foreign`] if it carries anything but IPv4.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        if packet.ethernet_type() != IPV4 {
            return Err(Malformed::Foreign { what: "not IPv4" });
        }
        Ok(Repr {
            destination: packet.destination(),
            source: packet.source(),
        })
    }

    /// Writes the header over the first [`HEADER`] bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer: the caller's mistake.
    pub fn emit(&self, out: &mut [u8]) {
        out[DESTINATION..SOURCE].copy_from_slice(&self.destination);
        out[SOURCE..TYPE].copy_from_slice(&self.source);
        out[TYPE..HEADER].copy_from_slice(&IPV4.to_be_bytes());
    }
}

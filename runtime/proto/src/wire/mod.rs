//! Headers: each as a view of bytes (`Packet`) and as a value (`Repr`), as smoltcp has them.
//!
//! ```text
//!   0          14      34     42                  74
//!   | Ethernet | IPv4  | UDP  | message or control | payload ...
//!     14 bytes   20      8      32
//! ```
//!
//! A view is made by `new_checked`, which looks at every length once; after that its accessors cannot fail. A value is made by
//! `Repr::parse`, and `emit` writes the bytes that it was parsed from. Nothing here panics, whatever the bytes: only `emit`
//! does, when its own caller gives it a buffer that is too short.

pub mod checksum;
pub mod control;
mod envelope;
pub mod ethernet;
pub mod ipv4;
pub mod message;
pub mod packed;
pub mod udp;

pub use envelope::{Datagram, ENVELOPE, Envelope, UdpSum};

/// Why bytes are not the packet that they were taken for. Drop it: none of these is an answer's worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than its header, or than its header says.
    #[error("{len} bytes, but its header needs {needed}")]
    Short {
        /// Bytes that are there.
        len: usize,
        /// Bytes that would be needed.
        needed: usize,
    },
    /// Another protocol, or a form of it that we leave to the kernel: VLAN tags, IP options, fragments.
    #[error("not for us: {what}")]
    Foreign {
        /// What it has that we do not read.
        what: &'static str,
    },
    /// A checksum is not that of the bytes.
    #[error("the {of} checksum is wrong")]
    Checksum {
        /// Whose checksum.
        of: &'static str,
    },
    /// Another version of our header.
    #[error("version {version} of the wire format, ours is {}", message::VERSION)]
    Version {
        /// The version found.
        version: u8,
    },
    /// A kind, or flags, that this version does not have.
    #[error("unknown kind or flags: {kind}, {flags:#04x}")]
    Kind {
        /// The kind, a number below 16.
        kind: u8,
        /// The flags.
        flags: u8,
    },
}

/// As many bytes from there, or zeros where there are none: how accessors stay total.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}

/// A number in network order.
#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// Refuses what is shorter than its header.
#[inline(always)]
fn at_least(bytes: &[u8], needed: usize) -> Result<(), Malformed> {
    match bytes.len() {
        len if len < needed => Err(Malformed::Short { len, needed }),
        _ => Ok(()),
    }
}

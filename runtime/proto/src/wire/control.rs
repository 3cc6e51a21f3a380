//! What the two sides say of themselves when a channel opens: the payload of HELLO, HELLO_ACK and RETRY, 64 bytes, little-endian.
//!
//! ```text
//!    0  u8   lowest version that the sender speaks
//!    1  u8   highest
//!    2  u8   class of the channel: 0 raw, 1 reliable
//!    3  u8   refusal; 0 is none
//!    4  u32  longest packet that the sender takes, in bytes of what UDP carries
//!    8  u32  longest message that it takes, in bytes
//!   12  u32  packets that it has room for (reliable channels)
//!   16  u64  hash of its handler table; 0 says nothing
//!   24  u64  the cookie that packets to it are to carry
//!   32  2 x u64  its incarnation: random, new for each channel that it opens
//!   48  16 bytes  token: empty in the first HELLO, then as RETRY gave it
//! ```
//!
//! What follows is padding. It shows that packets of that length arrive; and because a first HELLO has as many bytes as a RETRY, and
//! every other one as many as its answer, nobody is answered with more bytes than he has sent. The shape is the same in all versions.

use super::{Malformed, array, at_least};
use crate::wire::message::Cookie;

/// Bytes of it.
pub const CONTROL: usize = 64;
/// Bytes of a token.
pub const TOKEN: usize = 16;

const MAX_PACKET: usize = 4;
const MAX_MESSAGE: usize = 8;
const CREDIT: usize = 12;
const TABLE: usize = 16;
const COOKIE: usize = 24;
const INCARNATION: usize = 32;
const TOKEN_AT: usize = 48;

/// A channel's class: what becomes of what the network loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It is lost, and counted.
    Raw,
    /// It is sent again.
    Reliable,
    /// A class that this version does not have.
    Other(u8),
}

/// Why a server gives no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The two sides have no version in common: build the older one anew.
    #[error("the two sides have no version of the wire format in common")]
    Version,
    /// It has no room for another channel: try later.
    #[error("the server has no room for another channel")]
    Full,
    /// It does not admit who asks.
    #[error("the server does not admit this client")]
    NotAdmitted,
    /// It has no channels of that class: ask for another one.
    #[error("the server has no channels of that class")]
    Class,
    /// A reason that this version does not know.
    #[error("the server refuses, with the unknown reason {0}")]
    Other(u8),
}

/// It, as a view of its bytes and of the padding behind.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes a payload if it is long enough. Any values: they are allegations.
    pub fn new_checked(bytes: T) -> Result<Self, Malformed> {
        at_least(bytes.as_ref(), CONTROL)?;
        Ok(Packet(bytes))
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(array(self.0.as_ref(), at))
    }

    fn half(&self, at: usize) -> u32 {
        u32::from_le_bytes(array(self.0.as_ref(), at))
    }
}

/// It, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// The lowest and the highest version that the sender speaks; in an answer that gives a channel, both are the one to speak.
    pub versions: (u8, u8),
    /// The class of the channel.
    pub class: Class,
    /// In an answer: why there is no channel.
    pub refusal: Option<Refusal>,
    /// The longest packet that the sender takes, in bytes; in an answer, that both are to take.
    pub max_packet: u32,
    /// The longest message that it takes, in bytes.
    pub max_message: u32,
    /// Packets that it has room for.
    pub credit: u32,
    /// A hash of its handler table; 0 says nothing.
    pub table: u64,
    /// The cookie that packets to it are to carry.
    pub cookie: Cookie,
    /// Its incarnation.
    pub incarnation: [u64; 2],
    /// The token.
    pub token: [u8; TOKEN],
}

impl Repr {
    /// Reads it. Any bytes say something.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Repr {
        let [lowest, highest, class, refusal] = array(packet.0.as_ref(), 0);
        Repr {
            versions: (lowest, highest),
            class: Class::from_number(class),
            refusal: Refusal::from_number(refusal),
            max_packet: packet.half(MAX_PACKET),
            max_message: packet.half(MAX_MESSAGE),
            credit: packet.half(CREDIT),
            table: packet.word(TABLE),
            cookie: Cookie::from_wire(packet.word(COOKIE)),
            incarnation: [packet.word(INCARNATION), packet.word(INCARNATION + 8)],
            token: array(packet.0.as_ref(), TOKEN_AT),
        }
    }

    /// Writes it over the first [`CONTROL`] bytes, and zeros over those behind.
    ///
    /// # Panics
    ///
    /// If there are fewer: the caller's mistake.
    pub fn emit(&self, out: &mut [u8]) {
        let (out, padding) = out.split_at_mut(CONTROL);
        padding.fill(0);
        let (lowest, highest) = self.versions;
        let refusal = self.refusal.map_or(0, Refusal::number);
        out[..MAX_PACKET].copy_from_slice(&[lowest, highest, self.class.number(), refusal]);
        out[MAX_PACKET..MAX_MESSAGE].copy_from_slice(&self.max_packet.to_le_bytes());
        out[MAX_MESSAGE..CREDIT].copy_from_slice(&self.max_message.to_le_bytes());
        out[CREDIT..TABLE].copy_from_slice(&self.credit.to_le_bytes());
        out[TABLE..COOKIE].copy_from_slice(&self.table.to_le_bytes());
        out[COOKIE..INCARNATION].copy_from_slice(&self.cookie.to_wire().to_le_bytes());
        let [first, second] = self.incarnation.map(u64::to_le_bytes);
        out[INCARNATION..INCARNATION + 8].copy_from_slice(&first);
        out[INCARNATION + 8..TOKEN_AT].copy_from_slice(&second);
        out[TOKEN_AT..].copy_from_slice(&self.token);
    }
}

impl Class {
    const fn from_number(number: u8) -> Class {
        match number {
            0 => Class::Raw,
            1 => Class::Reliable,
            other => Class::Other(other),
        }
    }

    const fn number(self) -> u8 {
        match self {
            Class::Raw => 0,
            Class::Reliable => 1,
            Class::Other(other) => other,
        }
    }
}

impl Refusal {
    const fn from_number(number: u8) -> Option<Refusal> {
        Some(match number {
            0 => return None,
            1 => Refusal::Version,
            2 => Refusal::Full,
            3 => Refusal::NotAdmitted,
            4 => Refusal::Class,
            other => Refusal::Other(other),
        })
    }

    const fn number(self) -> u8 {
        match self {
            Refusal::Version => 1,
            Refusal::Full => 2,
            Refusal::NotAdmitted => 3,
            Refusal::Class => 4,
            Refusal::Other(other) => other,
        }
    }
}

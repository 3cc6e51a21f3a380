//! Our header: 32 bytes in front of every payload, little-endian, at fixed offsets.
//!
//! ```text
//!    0  u8   version, 4 high bits | kind, 4 low bits
//!    1  u8   flags: what they mean depends on the kind
//!    2  u16  handler index; in a packed packet the number of its messages
//!    4  u32  CRC32C over header, with this field zero, and payload
//!    8  u64  cookie, chosen by the receiver: low 16 bits its slot, high 48 bits random
//!   16  u32  sequence number of the packet
//!   20  u32  number of the call that is answered (Raw); cumulative acknowledgement (Reliable)
//!   24  u32  credit limit (Reliable)
//!   28  u32  selective acknowledgement (Reliable)
//! ```
//!
//! The payload is as long as UDP says, less this header. Four classes of field, after the Horus protocol accelerator (van Renesse,
//! 1996), and when each is written:
//!
//! | class | fields | when |
//! |---|---|---|
//! | what never changes: addresses, versions, limits, handler tables | none: the cookie stands for them | said once, in the opening |
//! | what can be predicted | version, kind, cookie, sequence number | after the packet before it has left |
//! | what is of the message | flags, handler, answered call, CRC | when it is sent |
//! | gossip: as good late as never | acknowledgements, credit | with whatever leaves next |
//!
//! # Example
//!
//! ```
//! use tightbeam_proto::wire::message::{Cookie, HEADER, Kind, Packet, Repr, seal};
//!
//! let header = Repr { handler: 7, seq: 1, ..Repr::new(Kind::Data, Cookie::new(3, 0x1234)) };
//! let mut bytes = [0; HEADER + 5];
//! header.emit(&mut bytes);
//! bytes[HEADER..].copy_from_slice(b"hello");
//! seal(&mut bytes);
//!
//! let packet = Packet::new_checked(&bytes[..])?;
//! assert_eq!(Repr::parse(&packet)?, header);
//! assert_eq!(packet.payload(), b"hello");
//! # Ok::<(), tightbeam_proto::wire::Malformed>(())
//! ```

use super::checksum::{crc, crc_append};
use super::{Malformed, array, at_least};

/// Version of the wire format. The opening exchange is spoken in version 1 by all that will follow.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER: usize = 32;

pub(crate) const FLAGS: usize = 1;
pub(crate) const HANDLER: usize = 2;
pub(crate) const CRC: usize = 4;
pub(crate) const COOKIE: usize = 8;
pub(crate) const SEQ: usize = 16;
pub(crate) const ACK: usize = 20;
const CREDIT: usize = 24;
const SACK: usize = 28;

/// The bits of [`Kind::Data`]'s flags that hold the [`Role`].
pub const ROLE: u8 = 0x07;
/// A flag of [`Kind::Data`]: the payload is messages.
pub const PACKED: u8 = 0x08;
/// A flag of [`Kind::Close`]: not a wish, but the answer to one.
pub const CLOSE_ACK: u8 = 0x01;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A message, a call, an answer, or several messages.
    Data = 1,
    /// Opening: the client wants a channel.
    Hello = 2,
    /// Opening: the server gives one, or says why not.
    HelloAck = 3,
    /// Opening: say it again with this token, so that your address is shown to be yours.
    Retry = 4,
    /// The channel ends.
    Close = 5,
    /// Nobody here knows the cookie of the packet that this answers.
    Unknown = 6,
    /// Reserved for reliable channels: acknowledgements alone.
    Ack = 7,
    /// Reserved for reliable channels: credit alone.
    Credit = 8,
    /// Reserved for reliable channels: alive, but without room.
    Busy = 9,
    /// Reserved for reliable channels: is anybody there?
    Probe = 10,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Kind> {
        Some(match number {
            1 => Kind::Data,
            2 => Kind::Hello,
            3 => Kind::HelloAck,
            4 => Kind::Retry,
            5 => Kind::Close,
            6 => Kind::Unknown,
            7 => Kind::Ack,
            8 => Kind::Credit,
            9 => Kind::Busy,
            10 => Kind::Probe,
            _ => return None,
        })
    }

    /// Whether packets of this kind may have these flags.
    pub const fn allows(self, flags: u8) -> bool {
        match self {
            Kind::Data if flags == PACKED => true,
            Kind::Data => Role::from_flags(flags).is_some() && flags & !ROLE == 0,
            Kind::Close => flags & !CLOSE_ACK == 0,
            _ => flags == 0,
        }
    }
}

/// What a packet of [`Kind::Data`] is to the calls of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Nothing: a message, to which no answer is wanted.
    Message = 0,
    /// A call. Its sequence number is the call's number.
    Call = 1,
    /// What a handler answered to a call of the receiver.
    Reply = 2,
    /// The call named a handler that nobody has registered.
    NoHandler = 3,
    /// The call's handler returned without an answer.
    NoReply = 4,
}

impl Role {
    /// The role that these flags say.
    pub const fn from_flags(flags: u8) -> Option<Role> {
        Some(match flags & ROLE {
            0 => Role::Message,
            1 => Role::Call,
            2 => Role::Reply,
            3 => Role::NoHandler,
            4 => Role::NoReply,
            _ => return None,
        })
    }
}

/// What a side has chosen, at random, to be named by in packets to it: a slot in its own table, and 48 bits that nobody can guess who
/// was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(u64);

impl Cookie {
    /// No channel's: what packets carry that open one.
    pub const NONE: Cookie = Cookie(0);

    /// The cookie of this slot. `random` is from the kernel, new for each channel; its high 48 bits are used, and are never all zero.
    pub const fn new(slot: u16, random: u64) -> Cookie {
        let random = random & !0xffff;
        let random = if random == 0 { 1 << 16 } else { random };
        Cookie(random | slot as u64)
    }

    /// The cookie as it stands in a packet: an allegation until it is compared.
    pub const fn from_wire(word: u64) -> Cookie {
        Cookie(word)
    }

    /// As it stands in a packet.
    pub const fn to_wire(self) -> u64 {
        self.0
    }

    /// The slot in the table of whoever chose it; of a peer's cookie, or one that has not been compared, any value.
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }
}

/// A packet, as a view of its bytes: what UDP carries.
#[derive(Debug, Clone, Copy)]
pub struct Packet<T>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// Takes bytes for a packet if they hold a header of our version, with a kind and flags that it has. Does not look at the CRC.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Malformed> {
        let all = bytes.as_ref();
        at_least(all, HEADER)?;
        let (version, kind, flags) = (all[0] >> 4, all[0] & 0xf, all[FLAGS]);
        if version != VERSION {
            return Err(Malformed::Version { version });
        }
        match Kind::from_number(kind) {
            Some(known) if known.allows(flags) => Ok(Packet(bytes)),
            _ => Err(Malformed::Kind { kind, flags }),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// What the packet is.
    #[inline]
    pub fn kind(&self) -> Kind {
        // The check has seen a known one; a buffer that changes by itself is not heard.
        Kind::from_number(array::<1>(self.bytes(), 0)[0] & 0xf).unwrap_or(Kind::Probe)
    }

    /// Its flags.
    #[inline]
    pub fn flags(&self) -> u8 {
        array::<1>(self.bytes(), FLAGS)[0]
    }

    /// The handler's index, or the number of messages: any value.
    #[inline]
    pub fn handler(&self) -> u16 {
        u16::from_le_bytes(array(self.bytes(), HANDLER))
    }

    /// The cookie: an allegation until it is compared.
    #[inline]
    pub fn cookie(&self) -> Cookie {
        Cookie(u64::from_le_bytes(array(self.bytes(), COOKIE)))
    }

    /// The sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        u32::from_le_bytes(array(self.bytes(), SEQ))
    }

    /// The call that is answered, or the cumulative acknowledgement.
    #[inline]
    pub fn ack(&self) -> u32 {
        u32::from_le_bytes(array(self.bytes(), ACK))
    }

    /// Whether the CRC is that of the header and the payload.
    #[inline]
    pub fn crc_holds(&self) -> bool {
        self.crc_holds_after(&mut Begun::default())
    }

    /// The same, where the last packet may have begun as this one does.
    #[inline]
    pub(crate) fn crc_holds_after(&self, begun: &mut Begun) -> bool {
        let bytes = self.bytes();
        let crc = begun.crc_of(array(bytes, 0));
        let computed = crc_append(crc, bytes.get(COOKIE..).unwrap_or_default());
        u32::from_le_bytes(array(bytes, CRC)) == computed
    }

    /// What follows the header.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.bytes().get(HEADER..).unwrap_or_default()
    }
}

impl<'a> Packet<&'a [u8]> {
    /// What follows the header, for as long as the bytes are there.
    #[inline]
    pub fn into_payload(self) -> &'a [u8] {
        self.0.get(HEADER..).unwrap_or_default()
    }
}

/// The header, as a value. The CRC is no part of it: it belongs to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Repr {
    /// What the packet is.
    pub kind: Kind,
    /// Its flags, among those that [`Kind::allows`].
    pub flags: u8,
    /// The handler's index, or the number of messages.
    pub handler: u16,
    /// The receiver's cookie.
    pub cookie: Cookie,
    /// The sequence number.
    pub seq: u32,
    /// The call that is answered, or the cumulative acknowledgement.
    pub ack: u32,
    /// The credit limit.
    pub credit: u32,
    /// The selective acknowledgement.
    pub sack: u32,
}

impl Repr {
    /// A header of this kind to whoever chose the cookie; everything else is zero.
    pub const fn new(kind: Kind, cookie: Cookie) -> Repr {
        Repr {
            kind,
            flags: 0,
            handler: 0,
            cookie,
            seq: 0,
            ack: 0,
            credit: 0,
            sack: 0,
        }
    }

    /// Reads a header. Refuses a wrong CRC.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Repr, Malformed> {
        if !packet.crc_holds() {
            return Err(Malformed::Checksum { of: "message" });
        }
        let bytes = packet.bytes();
        Ok(Repr {
            kind: packet.kind(),
            flags: packet.flags(),
            handler: packet.handler(),
            cookie: packet.cookie(),
            seq: packet.seq(),
            ack: packet.ack(),
            credit: u32::from_le_bytes(array(bytes, CREDIT)),
            sack: u32::from_le_bytes(array(bytes, SACK)),
        })
    }

    /// Writes the header over the first [`HEADER`] bytes, with a CRC of zero: [`seal`] the packet when the payload is there.
    ///
    /// # Panics
    ///
    /// If there are fewer: the caller's mistake.
    pub fn emit(&self, out: &mut [u8]) {
        let out = &mut out[..HEADER];
        out[0] = VERSION << 4 | self.kind as u8;
        out[FLAGS] = self.flags;
        out[HANDLER..CRC].copy_from_slice(&self.handler.to_le_bytes());
        out[CRC..COOKIE].fill(0);
        out[COOKIE..SEQ].copy_from_slice(&self.cookie.0.to_le_bytes());
        out[SEQ..ACK].copy_from_slice(&self.seq.to_le_bytes());
        out[ACK..CREDIT].copy_from_slice(&self.ack.to_le_bytes());
        out[CREDIT..SACK].copy_from_slice(&self.credit.to_le_bytes());
        out[SACK..].copy_from_slice(&self.sack.to_le_bytes());
    }
}

/// Puts the CRC into a packet, all of whose other bytes are there.
///
/// # Panics
///
/// If it is shorter than a header: the caller's mistake.
#[inline]
pub fn seal(packet: &mut [u8]) {
    packet[CRC..COOKIE].fill(0);
    let crc = crc(packet);
    packet[CRC..COOKIE].copy_from_slice(&crc.to_le_bytes());
}

/// How the last packet began, up to its CRC, and the CRC of that and of a CRC field of zero: most packets of a channel begin alike, and one
/// more call for eight bytes takes 100 instructions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Begun(Option<([u8; CRC], u32)>);

impl Begun {
    #[inline]
    fn crc_of(&mut self, begin: [u8; CRC]) -> u32 {
        match self.0 {
            Some((known, crc)) if known == begin => crc,
            _ => {
                let mut head = [0; COOKIE];
                head[..CRC].copy_from_slice(&begin);
                let crc = crc(&head);
                self.0 = Some((begin, crc));
                crc
            }
        }
    }
}

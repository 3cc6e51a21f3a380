//! How a channel opens and ends, as functions of packets and time.
//!
//! ```text
//!   client                                                  server
//!     | -- HELLO    who I am ------------------------------> |  keeps nothing
//!     | <------------------------------ RETRY    a token --- |
//!     | -- HELLO    who I am, token, padding --------------> |  the address is the client's: asks whoever owns it,
//!     | <------------------ HELLO_ACK    who I am, padding - |  and opens the channel
//!     |                                                      |
//!     | -- CLOSE    with the server's cookie --------------> |
//!     | <------------------- CLOSE    with the client's, ACK |
//!     | -- anything with a cookie that is not known here --> |
//!     | <------------------------------------ UNKNOWN    it  |
//! ```
//!
//! What is said once, here, is never said again: from then on the cookie that each side has chosen for the other stands for
//! addresses, versions, limits and tables (van Renesse's connection identification, 1996).
//!
//! - **Nothing is kept of who has not shown his address.** The token is a keyed hash over address, cookie and time; the server makes it
//!   again instead of remembering it. A flood of HELLOs costs hashes, no memory.
//! - **No answer has more bytes than what it answers**, so the server is nobody's amplifier.
//! - **A HELLO that comes again** is answered again, in the same words, and opens no second channel.
//! - **The padding is as long as the longest packet**, both ways, so a path that loses long packets shows itself now and not later: the
//!   client tries shorter ones, and both sides keep to what has arrived.
//! - **CLOSE and UNKNOWN** are believed only with the cookie that they are about. A CLOSE is repeated until it is answered, by a
//!   CLOSE or, from who knows the channel no more, by an UNKNOWN: see [`Backoff`].
//!
//! A late duplicate of a HELLO, whose channel has ended and whose token has not, opens a channel of which the client knows nothing: what
//! the server sends over it is answered with UNKNOWN. Nothing of the first channel is ever taken for a message of the second: the
//! cookies differ.
//!
//! # Example
//!
//! ```
//! use tightbeam_proto::opening::{Client, Heard, Offer, Progress, Server, Turn};
//! use tightbeam_proto::wire::message::Cookie;
//!
//! // Random numbers come from the kernel; here they are made up. Times are nanoseconds of any clock.
//! let mut client = Client::new(Offer::raw(1472), Cookie::new(0, 0xc11e_0000), [1, 2], 1_000_000_000, 0);
//! let mut server = Server::new(Offer::raw(1472), [3, 4]);
//! let from = "10.0.0.1:7000".parse().unwrap();
//! let (mut hello, mut answer) = ([0; 1472], [0; 1472]);
//!
//! let Turn::Send(len) = client.turn(0, &mut hello) else { panic!() };
//! let Heard::Answer(len) = server.handle(5, from, &hello[..len], &mut answer) else { panic!() };
//! assert_eq!(client.handle(10, &answer[..len]), Progress::Again);
//!
//! let Turn::Send(len) = client.turn(10, &mut hello) else { panic!() };
//! let Heard::Wish(wish) = server.handle(15, from, &hello[..len], &mut answer) else { panic!() };
//! let (len, agreed) = server.accept(&wish, Cookie::new(3, 0x5e7e_0000), [5, 6], &mut answer);
//! let Progress::Opened(opened) = client.handle(20, &answer[..len]) else { panic!() };
//! assert_eq!((opened.theirs, agreed.theirs), (agreed.ours, opened.ours));
//! assert_eq!(opened.max_packet, 1472);
//! ```

mod backoff;
mod client;
mod server;
mod token;
mod unknown;

pub use crate::wire::control::{Class, Refusal};
pub use backoff::{Backoff, Turn};
pub use client::{Client, Progress};
pub use server::{Counter, Counters, Heard, Ignored, Server, Wish};
pub use token::TOKEN_LIFE;
pub use unknown::{Unknown, unknown_cookie};

use crate::wire::control;
use crate::wire::message::{self, Cookie, Kind};

/// Bytes of the shortest packet of the opening: header and control.
pub const SHORTEST: usize = message::HEADER + control::CONTROL;
/// Bytes of the longest packet that UDP over IPv4 carries.
pub const LONGEST: usize = 65_507;

/// What a side says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The lowest and the highest version that it speaks.
    pub versions: (u8, u8),
    /// The class of channel that a client wants; of a server, without meaning.
    pub class: Class,
    /// The longest packet that it sends and takes, in bytes of what UDP carries: [`SHORTEST`] to [`LONGEST`].
    pub max_packet: usize,
    /// The longest message that it takes, in bytes.
    pub max_message: u32,
    /// Packets that it has room for; 0 for raw channels.
    pub credit: u32,
    /// A hash of its handler table; 0 says nothing.
    pub table: u64,
}

impl Offer {
    /// For raw channels, with packets of so many bytes at most, of a side that says nothing of its handlers.
    pub fn raw(max_packet: usize) -> Offer {
        let max_packet = max_packet.clamp(SHORTEST, LONGEST);
        Offer {
            versions: (message::VERSION, message::VERSION),
            class: Class::Raw,
            max_packet,
            max_message: (max_packet - message::HEADER) as u32,
            credit: 0,
            table: 0,
        }
    }

    /// As it is said, without a token.
    fn said(&self, cookie: Cookie, incarnation: [u64; 2]) -> control::Repr {
        control::Repr {
            versions: self.versions,
            class: self.class,
            refusal: None,
            max_packet: self.max_packet.clamp(SHORTEST, LONGEST) as u32,
            max_message: self.max_message,
            credit: self.credit,
            table: self.table,
            cookie,
            incarnation,
            token: [0; control::TOKEN],
        }
    }
}

/// A channel that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Our cookie: packets to us carry it.
    pub ours: Cookie,
    /// The peer's: packets to it carry it.
    pub theirs: Cookie,
    /// The peer's incarnation.
    pub incarnation: [u64; 2],
    /// The version to speak.
    pub version: u8,
    /// The class of the channel.
    pub class: Class,
    /// The longest packet in bytes: both sides take it, and one of that length has arrived.
    pub max_packet: usize,
    /// The longest message that the peer takes, in bytes; of a raw channel, also no longer than a packet holds.
    pub max_message: usize,
    /// Packets that the peer has room for.
    pub credit: u32,
    /// Whether both sides have named their handler tables, and they differ.
    pub tables_differ: bool,
}

impl Agreed {
    /// What follows from what the peer has said; `said.max_packet` is what both take.
    fn new(ours: Cookie, offer: &Offer, version: u8, said: &control::Repr) -> Agreed {
        let max_packet = said.max_packet as usize;
        let fits = match said.class {
            Class::Raw => max_packet.saturating_sub(message::HEADER),
            _ => usize::MAX,
        };
        Agreed {
            ours,
            theirs: said.cookie,
            incarnation: said.incarnation,
            version,
            class: said.class,
            max_packet,
            max_message: fits.min(said.max_message as usize),
            credit: said.credit,
            tables_differ: offer.table != 0 && said.table != 0 && offer.table != said.table,
        }
    }
}

/// Reads a packet of the opening: its header's cookie, and what it says. `None` if it is none of that kind, or damaged.
fn read(packet: &[u8], kinds: &[Kind]) -> Option<(Kind, Cookie, control::Repr)> {
    let packet = message::Packet::new_checked(packet).ok()?;
    let header = message::Repr::parse(&packet).ok()?;
    let said = control::Packet::new_checked(packet.payload()).ok()?;
    let said = control::Repr::parse(&said);
    let known = kinds.contains(&header.kind) && said.max_packet as usize >= SHORTEST;
    known.then_some((header.kind, header.cookie, said))
}

/// Writes a packet of the opening of so many bytes, padded; how many it has.
fn write(out: &mut [u8], len: usize, kind: Kind, to: Cookie, said: &control::Repr) -> usize {
    let out = &mut out[..len];
    message::Repr::new(kind, to).emit(out);
    said.emit(&mut out[message::HEADER..]);
    message::seal(out);
    len
}

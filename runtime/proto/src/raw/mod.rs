//! Raw channels: datagrams that may be lost, of which every loss is counted, and which no handler sees twice.
//!
//! A [`Sender`] writes packets to one peer, a [`Receiver`] judges what comes from it. What a link loses is lost: nobody waits for it
//! and nobody sends it again. But a packet that the link duplicates is handled once: a call must not be executed twice because a
//! switch flooded it. The receiver remembers the last 64 sequence numbers, as IPsec does against replays (RFC 4303), and refuses
//! what it has seen, or is too old to know.
//!
//! ```
//! use tightbeam_proto::raw::{Accepted, Outgoing, Receiver, Sender};
//! use tightbeam_proto::wire::message::Cookie;
//!
//! // The receiver has chosen the cookie, and said it in the opening exchange.
//! let cookie = Cookie::new(3, 0x0123_4567_89ab_cdef);
//! let (mut sender, mut receiver) = (Sender::new(cookie, 1472), Receiver::new(cookie));
//!
//! let mut packet = [0; 1472];
//! let written = sender.write(&mut packet, Outgoing::Call, 7, b"hello")?;
//! let packet = &packet[..written.len];
//!
//! let call = Accepted::Call { handler: 7, call: written.seq, bytes: b"hello" };
//! assert_eq!(receiver.accept(packet), Ok(call));
//! assert!(receiver.accept(packet).is_err(), "the second of two");
//! # Ok::<(), tightbeam_proto::raw::TooLarge>(())
//! ```
//!
//! # What is counted
//!
//! Of the packets that arrived, each is in exactly one of [`Counter::Accepted`] and the counters of [`Refused`] (I8). Of those that
//! were sent, up to the last one that arrived, each is accepted or in [`Counter::Lost`]; a [`Sender::close`] says how many there
//! were, so that the last ones are counted too. A packet that came damaged is in both: refused when it came, and lost as a number.

mod counters;
mod receiver;
mod sender;
mod window;

pub use counters::{Counter, Counters};
pub use receiver::{Accepted, Receiver, Refused};
pub use sender::{Outgoing, Pack, Sender, TooLarge, Written};
pub use window::{Seen, WINDOW, Window};

/// How a call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// By its handler.
    Reply,
    /// No handler is registered for the index.
    NoHandler,
    /// The handler returned without a reply.
    NoReply,
}

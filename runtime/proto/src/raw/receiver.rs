//! The receiving half: whether a packet is ours, whole and new.

use super::{Answer, Counter, Counters, Seen, Window};
use crate::wire::Malformed;
use crate::wire::message::{Begun, CLOSE_ACK, Cookie, Kind, PACKED, Packet, Role};
use crate::wire::packed::Packed;

/// What a packet brought.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Accepted<'a> {
    /// A message for the handler with this index.
    Message {
        /// The index as the peer gave it: any value.
        handler: u16,
        /// The message.
        bytes: &'a [u8],
    },
    /// A call: answer it with [`Outgoing::Answer`](super::Outgoing::Answer) and its number.
    Call {
        /// The handler's index as the peer gave it: any value.
        handler: u16,
        /// The call's number.
        call: u32,
        /// The message.
        bytes: &'a [u8],
    },
    /// An answer to a call of ours, if it says the truth.
    Answer {
        /// The number of the call: any value, until it is looked up.
        call: u32,
        /// How it was answered.
        answer: Answer,
        /// What the handler replied; empty if it did not.
        bytes: &'a [u8],
    },
    /// Messages for handlers, at least one.
    Packed(Packed<'a>),
    /// The peer has closed the channel.
    Close {
        /// Whether this answers our own close. If not, answer it with [`Sender::close`](super::Sender::close).
        answers: bool,
    },
}

/// Why a packet is not heard. It has been counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Shorter than a header.
    #[error("shorter than a header")]
    Short,
    /// Another version of the wire format.
    #[error("another version of the wire format")]
    Version,
    /// A kind, or flags, that do not belong on a Raw channel.
    #[error("not a packet of a Raw channel")]
    Kind,
    /// Not the channel's cookie: someone guesses, or the peer means an earlier channel.
    #[error("not this channel's cookie")]
    Cookie,
    /// Damaged on the way.
    #[error("the CRC is wrong")]
    Crc,
    /// The peer packed messages so that they are not whole: its mistake, since the CRC is right.
    #[error("packed messages that are not whole")]
    Packed,
    /// Accepted once before.
    #[error("a duplicate")]
    Duplicate,
    /// More than 64 numbers behind the last one: too late to know whether it was accepted before.
    #[error("too late to know whether it is a duplicate")]
    Late,
}

impl Refused {
    /// Where it has been counted.
    pub const fn counter(self) -> Counter {
        match self {
            Refused::Short => Counter::Short,
            Refused::Version => Counter::Version,
            Refused::Kind => Counter::Kind,
            Refused::Cookie => Counter::Cookie,
            Refused::Crc => Counter::Crc,
            Refused::Packed => Counter::Packed,
            Refused::Duplicate => Counter::Duplicate,
            Refused::Late => Counter::Late,
        }
    }
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Refused {
        match malformed {
            Malformed::Short { .. } => Refused::Short,
            Malformed::Version { .. } => Refused::Version,
            Malformed::Checksum { .. } => Refused::Crc,
            Malformed::Kind { .. } | Malformed::Foreign { .. } => Refused::Kind,
        }
    }
}

/// Judges the packets of one peer.
#[derive(Debug, Clone)]
pub struct Receiver {
    cookie: Cookie,
    window: Window,
    begun: Begun,
    counters: Counters,
}

impl Receiver {
    /// For the channel whose cookie we have chosen.
    pub fn new(cookie: Cookie) -> Receiver {
        Receiver::starting_at(cookie, 0)
    }

    /// The same with another first sequence number than 0, for tests: both sides must say the same.
    pub fn starting_at(cookie: Cookie, first: u32) -> Receiver {
        Receiver {
            cookie,
            window: Window::new(first),
            begun: Begun::default(),
            counters: Counters::default(),
        }
    }

    /// Our cookie.
    pub fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// What has been counted since the channel was opened.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Judges a packet: what UDP carried. The caller has compared the address that it came from.
    #[inline]
    pub fn accept<'a>(&mut self, packet: &'a [u8]) -> Result<Accepted<'a>, Refused> {
        match Packet::new_checked(packet) {
            Ok(packet) => self.accept_packet(packet),
            Err(malformed) => Err(self.refuse(malformed.into())),
        }
    }

    /// The same, of a packet whose header has been looked at, as it must be to find the channel by [`Packet::cookie`].
    #[inline]
    pub fn accept_packet<'a>(&mut self, packet: Packet<&'a [u8]>) -> Result<Accepted<'a>, Refused> {
        match self.judge(packet) {
            Ok(accepted) => Ok(accepted),
            Err(refused) => Err(self.refuse(refused)),
        }
    }

    #[inline]
    fn judge<'a>(&mut self, packet: Packet<&'a [u8]>) -> Result<Accepted<'a>, Refused> {
        if packet.cookie() != self.cookie {
            return Err(Refused::Cookie);
        }
        if !packet.crc_holds_after(&mut self.begun) {
            return Err(Refused::Crc);
        }
        match packet.kind() {
            Kind::Data => {
                let accepted = read(packet)?;
                self.see(packet.seq())?;
                Ok(accepted)
            }
            Kind::Close => {
                let lost = self.window.sent_below(packet.seq());
                self.counters.add_many(Counter::Lost, u64::from(lost));
                self.counters.add(Counter::Closes);
                Ok(Accepted::Close {
                    answers: packet.flags() & CLOSE_ACK != 0,
                })
            }
            _ => Err(Refused::Kind),
        }
    }

    #[inline]
    fn see(&mut self, seq: u32) -> Result<(), Refused> {
        match self.window.see(seq) {
            Seen::New { skipped: 0 } => {}
            Seen::New { skipped } => self.counters.add_many(Counter::Lost, u64::from(skipped)),
            Seen::Reordered => self.counters.found(),
            Seen::Duplicate => return Err(Refused::Duplicate),
            Seen::Late => return Err(Refused::Late),
        }
        self.counters.add(Counter::Accepted);
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, refused: Refused) -> Refused {
        self.counters.add(refused.counter());
        refused
    }
}

/// What a packet of data says. Its flags are among those that [`Kind::allows`].
#[inline]
fn read(packet: Packet<&[u8]>) -> Result<Accepted<'_>, Refused> {
    let (handler, call, bytes) = (packet.handler(), packet.ack(), packet.into_payload());
    let answer = |answer| Accepted::Answer {
        call,
        answer,
        bytes,
    };
    if packet.flags() & PACKED != 0 {
        let packed = Packed::new_checked(bytes, handler);
        return packed.map(Accepted::Packed).map_err(|_| Refused::Packed);
    }
    Ok(match Role::from_flags(packet.flags()) {
        Some(Role::Message) => Accepted::Message { handler, bytes },
        Some(Role::Call) => Accepted::Call {
            handler,
            call: packet.seq(),
            bytes,
        },
        Some(Role::Reply) => answer(Answer::Reply),
        Some(Role::NoHandler) => answer(Answer::NoHandler),
        Some(Role::NoReply) => answer(Answer::NoReply),
        None => return Err(Refused::Kind),
    })
}

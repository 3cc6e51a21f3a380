//! The sending half: the next packet's header is there before the message is.

use super::Answer;
use crate::wire::checksum;
use crate::wire::message::{
    ACK, CLOSE_ACK, COOKIE, CRC, Cookie, FLAGS, HANDLER, HEADER, Kind, PACKED, Repr, Role, SEQ,
    seal,
};
use crate::wire::packed;

/// What a message is to the calls of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outgoing {
    /// Nothing: no answer is wanted.
    Message,
    /// A call: [`Written::seq`] is its number.
    Call,
    /// The answer to a call of the peer.
    Answer {
        /// The number that came with the call.
        call: u32,
        /// How it was answered.
        answer: Answer,
    },
}

/// A message does not fit into a packet. Nothing was written; shorten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {len} bytes; the most that a packet to this peer holds is {max}")]
pub struct TooLarge {
    /// Its length in bytes.
    pub len: usize,
    /// The longest in bytes.
    pub max: usize,
}

/// A packet that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its bytes, from the first one of the buffer on.
    pub len: usize,
    /// Its sequence number; of a call, the call's number.
    pub seq: u32,
}

/// Writes packets to one peer.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The whole header of the next packet, as a message without handler.
    ready: [u8; HEADER],
    seq: u32,
    max_packet: usize,
}

impl Sender {
    /// To the peer that has chosen this cookie, in packets of so many bytes at most (what UDP carries: our header and the payload).
    pub fn new(peer: Cookie, max_packet: usize) -> Sender {
        Sender::starting_at(peer, max_packet, 0)
    }

    /// The same with another first sequence number than 0, for tests: both sides must say the same.
    pub fn starting_at(peer: Cookie, max_packet: usize, first: u32) -> Sender {
        let mut ready = [0; HEADER];
        let header = Repr {
            seq: first,
            ..Repr::new(Kind::Data, peer)
        };
        header.emit(&mut ready);
        Sender {
            ready,
            seq: first,
            max_packet,
        }
    }

    /// The peer's cookie.
    pub fn peer(&self) -> Cookie {
        let [_, _, _, _, _, _, _, _, cookie @ ..] = self.ready;
        let word = cookie.first_chunk().copied().unwrap_or_default();
        Cookie::from_wire(u64::from_le_bytes(word))
    }

    /// The longest message in bytes.
    pub fn max_message(&self) -> usize {
        self.max_packet.saturating_sub(HEADER)
    }

    /// From now on packets have so many bytes at most: the path has become narrower.
    pub fn set_max_packet(&mut self, max_packet: usize) {
        self.max_packet = max_packet;
    }

    /// The sequence number of the next packet; of the next call its number.
    pub fn next_seq(&self) -> u32 {
        self.seq
    }

    /// Writes a packet with one message to the front of `out`, CRC and all.
    #[inline]
    pub fn write(
        &mut self,
        out: &mut [u8],
        outgoing: Outgoing,
        handler: u16,
        message: &[u8],
    ) -> Result<Written, TooLarge> {
        let len = HEADER + message.len();
        let room = self.max_packet.min(out.len());
        let Some(packet) = out.get_mut(..len).filter(|_| len <= room) else {
            return Err(TooLarge {
                len: message.len(),
                max: room.saturating_sub(HEADER),
            });
        };
        let (role, call) = outgoing.on_the_wire();
        packet[HEADER..].copy_from_slice(message);
        Ok(self.finish(packet, role as u8, handler, call))
    }

    /// Begins a packet with several messages at the front of `out`: for a backlog, of which as much leaves as fits.
    pub fn pack<'a>(&'a mut self, out: &'a mut [u8]) -> Pack<'a> {
        let room = self.max_packet.min(out.len());
        Pack {
            sender: self,
            out: &mut out[..room],
            used: 0,
            count: 0,
        }
    }

    /// Writes a packet that closes the channel, or answers one that does; how many bytes it has. It says how many packets there were,
    /// takes no number, and may be written again.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than [`HEADER`]: the caller's mistake.
    pub fn close(&self, out: &mut [u8], answers: bool) -> usize {
        let header = Repr {
            flags: if answers { CLOSE_ACK } else { 0 },
            seq: self.seq,
            ..Repr::new(Kind::Close, self.peer())
        };
        header.emit(out);
        seal(&mut out[..HEADER]);
        HEADER
    }

    /// Puts the header in front of a payload that is there, and makes the next header ready.
    #[inline]
    fn finish(&mut self, packet: &mut [u8], flags: u8, handler: u16, call: u32) -> Written {
        packet[..HEADER].copy_from_slice(&self.ready);
        packet[FLAGS] = flags;
        packet[HANDLER..CRC].copy_from_slice(&handler.to_le_bytes());
        packet[ACK..ACK + 4].copy_from_slice(&call.to_le_bytes());
        let crc = checksum::crc(packet);
        packet[CRC..COOKIE].copy_from_slice(&crc.to_le_bytes());
        let seq = self.seq;
        self.seq = seq.wrapping_add(1);
        self.ready[SEQ..ACK].copy_from_slice(&self.seq.to_le_bytes());
        Written {
            len: packet.len(),
            seq,
        }
    }
}

impl Outgoing {
    #[inline(always)]
    fn on_the_wire(self) -> (Role, u32) {
        match self {
            Outgoing::Message => (Role::Message, 0),
            Outgoing::Call => (Role::Call, 0),
            Outgoing::Answer { call, answer } => match answer {
                Answer::Reply => (Role::Reply, call),
                Answer::NoHandler => (Role::NoHandler, call),
                Answer::NoReply => (Role::NoReply, call),
            },
        }
    }
}

/// A packet into which messages are put until it is full. Dropped without [`finish`](Self::finish), it was never there.
///
/// ```
/// use tightbeam_proto::raw::{Accepted, Receiver, Sender};
/// use tightbeam_proto::wire::message::Cookie;
///
/// let cookie = Cookie::new(0, 0xfeed_0000);
/// let mut sender = Sender::new(cookie, 1472);
/// let mut out = [0; 1472];
/// let mut pack = sender.pack(&mut out);
/// assert!(pack.push(1, b"tick") && pack.push(2, b"tock"));
/// let written = pack.finish().expect("two messages");
///
/// let mut receiver = Receiver::new(cookie);
/// let Ok(Accepted::Packed(messages)) = receiver.accept(&out[..written.len]) else { panic!() };
/// assert!(messages.eq([(1, &b"tick"[..]), (2, b"tock")]));
/// ```
#[derive(Debug)]
pub struct Pack<'a> {
    sender: &'a mut Sender,
    out: &'a mut [u8],
    used: usize,
    count: u16,
}

impl Pack<'_> {
    /// Puts a message behind the others. `false` if it does not fit: finish this packet, and begin another.
    #[inline]
    pub fn push(&mut self, handler: u16, message: &[u8]) -> bool {
        let Some(payload) = self.out.get_mut(HEADER..) else {
            return false;
        };
        let more = self.count.checked_add(1);
        match (more, packed::push(payload, self.used, handler, message)) {
            (Some(count), Some(used)) => {
                (self.count, self.used) = (count, used);
                true
            }
            _ => false,
        }
    }

    /// Messages so far.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Makes it a packet; `None` if there are no messages in it.
    pub fn finish(self) -> Option<Written> {
        if self.count == 0 {
            return None;
        }
        let packet = &mut self.out[..HEADER + self.used];
        Some(self.sender.finish(packet, PACKED, self.count, 0))
    }
}

//! UNKNOWN: what a side says that finds a cookie in a packet which names no channel of its own, because it has ended or restarted.
//!
//! Who is told so believes it only if the cookie is the one that he sends: someone who does not see the packets cannot guess it.

use crate::wire::message::{CLOSE_ACK, Cookie, HEADER, Kind, Packet, Repr, seal};

const SECOND: u64 = 1_000_000_000;

/// Answers packets whose cookie is not known, at a limited rate: a token bucket in the caller's time.
///
/// ```
/// use tightbeam_proto::opening::{Unknown, unknown_cookie};
/// use tightbeam_proto::raw::{Outgoing, Sender};
/// use tightbeam_proto::wire::message::{Cookie, Packet};
///
/// let cookie = Cookie::new(3, 0x1234_5678_0000);
/// let (mut packet, mut answer) = ([0; 64], [0; 64]);
/// let written = Sender::new(cookie, 64).write(&mut packet, Outgoing::Message, 1, b"anybody?").unwrap();
/// let packet = Packet::new_checked(&packet[..written.len]).unwrap();
///
/// let len = Unknown::new(100, 10).answer(0, &packet, &mut answer).unwrap();
/// assert_eq!(unknown_cookie(&Packet::new_checked(&answer[..len]).unwrap()), Some(cookie));
/// ```
#[derive(Debug, Clone)]
pub struct Unknown {
    per_second: u64,
    burst: u64,
    /// What may be said now, in answers times [`SECOND`].
    saved: u64,
    last: u64,
}

impl Unknown {
    /// At most so many answers a second, and so many at once.
    pub fn new(per_second: u32, burst: u32) -> Unknown {
        Unknown {
            per_second: per_second.into(),
            burst: burst.into(),
            saved: u64::from(burst) * SECOND,
            last: 0,
        }
    }

    /// The answer to a packet with a cookie that names no channel here: so many bytes of `out`, never more than it has. `None` if the
    /// rate is used up, or it is no packet of a channel: an UNKNOWN, above all, is not answered.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than [`HEADER`]: the caller's mistake.
    pub fn answer(&mut self, now: u64, packet: &Packet<&[u8]>, out: &mut [u8]) -> Option<usize> {
        let is_wanted = match packet.kind() {
            Kind::Data => true,
            Kind::Close => packet.flags() & CLOSE_ACK == 0,
            _ => false,
        };
        self.save(now);
        if !is_wanted || self.saved < SECOND || !packet.crc_holds() {
            return None;
        }
        self.saved -= SECOND;
        let cookie = packet.cookie().to_wire();
        let header = Repr {
            seq: cookie as u32,
            ack: (cookie >> 32) as u32,
            ..Repr::new(Kind::Unknown, Cookie::NONE)
        };
        header.emit(out);
        seal(&mut out[..HEADER]);
        Some(HEADER)
    }

    fn save(&mut self, now: u64) {
        // A time before the last one earns nothing.
        let passed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        let earned = passed.saturating_mul(self.per_second);
        self.saved = self.saved.saturating_add(earned).min(self.burst * SECOND);
    }
}

/// The cookie that the sender of an UNKNOWN says it does not know. Compare it with those that are sent to its address: the channel whose
/// it is has ended there. `None` if it is no UNKNOWN, or damaged.
pub fn unknown_cookie(packet: &Packet<&[u8]>) -> Option<Cookie> {
    let header = Repr::parse(packet).ok()?;
    let is_unknown = header.kind == Kind::Unknown && header.cookie == Cookie::NONE;
    let word = u64::from(header.ack) << 32 | u64::from(header.seq);
    is_unknown.then_some(Cookie::from_wire(word))
}

//! Several messages in one packet's payload, for a backlog.
//!
//! ```text
//!   u16 length | u16 handler | bytes ...
//! ```
//!
//! Little-endian, one behind the other, as many as the header's handler field says and nothing behind them. Not aligned: who receives them copies
//! them anyway, and in a full packet zeros between them would take the place of others (a third, of messages of 8 bytes).

use super::{Malformed, array};

const HEADER: usize = 4;

/// Bytes that a message of so many takes among others.
pub const fn room(len: usize) -> usize {
    HEADER + len
}

/// Puts a message behind the first `used` bytes; how many are used then. `None`, and nothing is written, if it does not fit, or is
/// longer than 65,535 bytes.
pub fn push(out: &mut [u8], used: usize, handler: u16, message: &[u8]) -> Option<usize> {
    let len = u16::try_from(message.len()).ok()?;
    let end = used.checked_add(room(message.len()))?;
    let place = out.get_mut(used..end)?;
    let (header, body) = place.split_first_chunk_mut::<HEADER>()?;
    let ([a, b], [c, d]) = (len.to_le_bytes(), handler.to_le_bytes());
    *header = [a, b, c, d];
    body.copy_from_slice(message);
    Some(end)
}

/// The messages of a packed packet, each with its handler's index. All of them have been looked at: what is handed out is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Takes a payload for so many messages, if it is exactly that, and at least one.
    pub fn new_checked(payload: &'a [u8], count: u16) -> Result<Packed<'a>, Malformed> {
        let whole = Packed {
            left: count,
            rest: payload,
        };
        let mut rest = payload;
        for _ in 0..count {
            let len = payload.len();
            let (_, _, behind) = split(rest).ok_or(Malformed::Short {
                len,
                needed: len + 1,
            })?;
            rest = behind;
        }
        match rest {
            [] if count > 0 => Ok(whole),
            _ => Err(Malformed::Foreign {
                what: "bytes behind the last message",
            }),
        }
    }
}

/// The first message, and what is behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::from(u16::from_le_bytes(array(bytes, 0)));
    let handler = u16::from_le_bytes(array(bytes, 2));
    let (message, behind) = bytes.split_at_checked(room(len))?;
    Some((handler, message.get(HEADER..HEADER + len)?, behind))
}

impl<'a> Iterator for Packed<'a> {
    type Item = (u16, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (handler, message, behind) = split(self.rest)?;
        self.rest = behind;
        Some((handler, message))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Packed<'_> {}

//! What the messages say: every byte is written by the sender, differs from message to message, and is read by the receiver.
//!
//! A message is words `w, w+1, w+2, …`, where `w` moves by a large odd step from one message to the next; what is left over
//! below a word is the low bytes of the next one. Writing that and summing it up is a few instructions for a small message and
//! vector code for a large one, on both sides of every path alike.

use super::fault::Broken;

/// Between the first words of neighbouring messages: odd, so that the low bytes differ too.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One direction's sequence of messages, at the sender or at the receiver.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    first: u64,
    count: u64,
}

impl Sequence {
    pub(crate) fn new() -> Sequence {
        Sequence {
            first: STEP,
            count: 0,
        }
    }

    /// Messages written or checked so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Writes the next message into all of `message`.
    #[inline(always)]
    pub(crate) fn write(&mut self, message: &mut [u8]) {
        let mut word = self.next();
        let (words, rest) = message.as_chunks_mut::<8>();
        for chunk in words {
            *chunk = word.to_le_bytes();
            word = word.wrapping_add(1);
        }
        let tail = word.to_le_bytes();
        for (to, from) in rest.iter_mut().zip(tail) {
            *to = from;
        }
    }

    /// Reads all of `message` and compares it with the next one.
    #[inline(always)]
    pub(crate) fn check(&mut self, message: &[u8]) -> Result<(), Broken> {
        let first = self.next();
        let (words, rest) = message.as_chunks::<8>();
        let sum = words.iter().fold(0u64, |sum, chunk| {
            sum.wrapping_add(u64::from_le_bytes(*chunk))
        });
        let count = words.len() as u64;
        let expected = first
            .wrapping_mul(count)
            .wrapping_add(count.wrapping_mul(count.wrapping_sub(1)) / 2);
        let tail = first.wrapping_add(count).to_le_bytes();
        let same_tail = rest
            .iter()
            .zip(tail)
            .all(|(found, expected)| *found == expected);
        match sum == expected && same_tail {
            true => Ok(()),
            false => Err(Broken::Payload {
                message: self.count,
                size: message.len(),
            }),
        }
    }

    /// Goes on to the next message without reading it, for words that come one by one; returns its first word.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> u64 {
        self.first = self.first.wrapping_add(STEP);
        self.count += 1;
        self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_read() {
        let (mut out, mut back) = (Sequence::new(), Sequence::new());
        for size in (0..80).chain([255, 256, 1024]) {
            let mut message = vec![0; size];
            out.write(&mut message);
            back.check(&message).unwrap();
        }
    }

    #[test]
    fn a_changed_byte_a_stale_message_and_a_lost_one_are_noticed() {
        for size in [1usize, 8, 13, 56, 256] {
            let mut out = Sequence::new();
            let mut message = vec![0; size];
            out.write(&mut message);
            for index in 0..size {
                let mut broken = message.clone();
                broken[index] ^= 0x10;
                assert!(
                    Sequence::new().check(&broken).is_err(),
                    "byte {index} of {size}"
                );
            }
            let mut back = Sequence::new();
            back.check(&message).unwrap();
            assert!(back.check(&message).is_err(), "stale message of {size}");
            let mut ahead = Sequence::new();
            ahead.next();
            assert!(ahead.check(&message).is_err(), "lost message of {size}");
        }
    }
}

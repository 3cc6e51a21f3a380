//! The bytes of a message: how they are written and how they are checked.
//!
//! A message is words `w, w+1, w+2, …`, as in `tightbeam bench`; what is left
//! over below a word is the low bytes of the next one. Every path fills each
//! message before it sends it and checks it after it received it, on both
//! sides, so that each byte of each message has been written by one CPU and
//! read by the other. Nobody may send a message whose payload was not touched.

use crate::fault::Fault;

/// Between the first words of neighbouring messages: odd, so that the low
/// bytes differ too, and wide, so that a message torn between two others does
/// not add up.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The first word of message number `number`.
#[inline(always)]
pub(crate) fn seed(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(STEP)
}

/// The first word of the answer to a message whose first word is `seed`.
#[inline(always)]
pub(crate) fn answer(seed: u64) -> u64 {
    !seed
}

/// A whole message.
#[inline(always)]
pub(crate) fn fill<const N: usize>(seed: u64) -> [u8; N] {
    let mut bytes = [0; N];
    fill_into(&mut bytes, seed);
    bytes
}

/// Writes every byte of `bytes`.
#[inline(always)]
pub(crate) fn fill_into(bytes: &mut [u8], seed: u64) {
    let mut word = seed;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = word.to_le_bytes();
        word = word.wrapping_add(1);
    }
    for (to, from) in rest.iter_mut().zip(word.to_le_bytes()) {
        *to = from;
    }
}

/// Reads every byte of `bytes`, and refuses what does not add up.
#[inline(always)]
pub(crate) fn check(bytes: &[u8], number: u64, seed: u64) -> Result<(), Fault> {
    let (words, rest) = bytes.as_chunks::<8>();
    let found = words.iter().fold(0_u64, |sum, chunk| {
        sum.wrapping_add(u64::from_le_bytes(*chunk))
    });
    let count = words.len() as u64;
    let steps = count * count.saturating_sub(1) / 2;
    let expected = seed.wrapping_mul(count).wrapping_add(steps);
    let tail = seed.wrapping_add(count).to_le_bytes();
    let same = rest.iter().zip(tail).all(|(byte, right)| *byte == right);
    if found == expected && same {
        Ok(())
    } else {
        Err(damaged(bytes.len(), number))
    }
}

#[cold]
#[inline(never)]
fn damaged(size: usize, number: u64) -> Fault {
    Fault::Damaged { number, size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_accepted_at_every_size() {
        for size in 0..200 {
            let mut bytes = vec![0; size];
            for number in [0, 1, 77, u64::MAX] {
                fill_into(&mut bytes, seed(number));
                assert!(check(&bytes, number, seed(number)).is_ok(), "{size} bytes");
            }
        }
    }

    #[test]
    fn one_changed_byte_is_refused() {
        let mut bytes = fill::<56>(seed(5));
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(check(&bytes, 5, seed(5)).is_err(), "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn the_message_before_is_refused() {
        for size in [1, 8, 32, 56, 64, 1024] {
            let mut bytes = vec![0; size];
            fill_into(&mut bytes, seed(8));
            assert!(check(&bytes, 9, seed(9)).is_err(), "{size} bytes");
            assert!(check(&bytes, 8, answer(seed(8))).is_err(), "{size} bytes");
        }
    }
}

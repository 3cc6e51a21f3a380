//! Payload bytes as the words that shared memory is written in (D3).

use crate::layout::PAYLOAD_BYTES;
use crate::lines::OwnLine;
use crate::scratch::Chunk;

/// The payload of one slot as words.
#[inline(always)]
pub(crate) fn words(chunk: &[u8; PAYLOAD_BYTES]) -> Chunk {
    let (words, _) = chunk.as_chunks::<8>();
    core::array::from_fn(|n| u64::from_ne_bytes(words[n]))
}

/// Writes less than a line's payload from this word on, the last word filled up with zeros.
#[inline(always)]
pub(crate) fn store_words(line: OwnLine<'_>, first: usize, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        line.store(first + n, u64::from_ne_bytes(*word));
    }
    if !rest.is_empty() {
        line.store(first + words.len(), last_word(rest));
    }
}

/// One to seven bytes as a word, filled up with zeros.
///
/// Put together in registers: a word that is written to memory in pieces and then read as a whole waits until the pieces have
/// left the store buffer, and so for every line before it. That halved the rate of 1-byte messages.
#[inline(always)]
pub(crate) fn last_word(bytes: &[u8]) -> u64 {
    let len = bytes.len();
    match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(low), Some(high)) => {
            let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
            u64::from(low) | u64::from(high) << ((len - 4) * 8)
        }
        _ => {
            let byte = |n: usize| u64::from(bytes[n]) << (n * 8);
            byte(0) | byte(len / 2) | byte(len - 1)
        }
    }
    .to_le()
}

#[cfg(test)]
mod tests {
    use super::last_word;

    #[test]
    fn the_last_bytes_are_those_of_the_payload_and_then_zeros() {
        let payload = [0x81u8, 0x72, 0x63, 0x54, 0x45, 0x36, 0x27];
        for len in 1..=payload.len() {
            let mut wanted = [0; 8];
            wanted[..len].copy_from_slice(&payload[..len]);
            assert_eq!(last_word(&payload[..len]).to_ne_bytes(), wanted);
        }
    }
}

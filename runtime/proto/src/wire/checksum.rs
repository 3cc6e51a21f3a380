//! Checksums: the ones' complement sum of IP and UDP (RFC 1071), and the CRC32C of our own header.
//!
//! The sum finds what a link breaks; the CRC also finds two bytes that changed places, and travels from end to end.

/// The ones' complement sum of these bytes, in network order, on top of an earlier sum. A last odd byte counts as if a zero followed,
/// so only the last piece may have an odd length.
pub fn sum(bytes: &[u8], before: u32) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    // Eight bytes at a time: the sum of 32-bit halves is, folded, that of 16-bit words.
    let mut wide = u64::from(before);
    for word in words {
        let word = u64::from_be_bytes(*word);
        wide += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_be_bytes(last);
    wide += (last >> 32) + (last & 0xffff_ffff);
    // Below 2^32 again, with the carries added back.
    let wide = (wide >> 32) + (wide & 0xffff_ffff);
    ((wide >> 32) + (wide & 0xffff_ffff)) as u32
}

/// The checksum field that goes with such a sum.
pub fn finish(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    let twice = (once >> 16) + (once & 0xffff);
    !(twice as u16)
}

/// The checksum after one 16-bit field that it covers has changed (RFC 1624): no need to see the other bytes.
///
/// ```
/// use tightbeam_proto::wire::checksum::{finish, patched, sum};
///
/// let before = finish(sum(&[0x45, 0, 0, 20], 0));
/// let after = finish(sum(&[0x45, 0, 5, 220], 0));
/// assert_eq!(patched(before, 20, 1500), after);
/// ```
pub fn patched(checksum: u16, before: u16, after: u16) -> u16 {
    finish(u32::from(!checksum) + u32::from(!before) + u32::from(after))
}

/// The CRC32C (Castagnoli) of these bytes.
#[inline]
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The CRC32C of what came before and of these bytes.
#[inline]
pub fn crc_append(before: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(before, bytes)
}

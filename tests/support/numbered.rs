//! Messages with a number, each of which can be told from all that are near it by every byte.

/// The longest of them in bytes.
pub(crate) const LONGEST: usize = 1440;

/// What fills them.
static FILLS: [[u8; LONGEST]; 64] = {
    let mut fills = [[0; LONGEST]; 64];
    let mut number = 0;
    while number < fills.len() {
        fills[number] = [number as u8 + 1; LONGEST];
        number += 1;
    }
    fills
};

fn head(number: u64, len: usize) -> [u8; 8] {
    (number | (len as u64) << 48).to_le_bytes()
}

fn fill(number: u64, len: usize) -> &'static [u8] {
    &FILLS[(number % 64) as usize][..len - 8]
}

/// The message with this number.
pub(crate) fn payload(number: u64, len: usize) -> Vec<u8> {
    [&head(number, len), fill(number, len)].concat()
}

/// Whether it is that message, whole.
pub(crate) fn is_payload(bytes: &[u8], number: u64) -> bool {
    let len = bytes.len();
    (8..=LONGEST).contains(&len)
        && bytes[..8] == head(number, len)
        && bytes[8..] == *fill(number, len)
}

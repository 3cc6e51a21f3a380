//! A message of the opening exchange, any bytes: no message, or one that says again what it said.

use super::input::Input;

#[path = "../../../runtime/endpoint/src/control/wire.rs"]
mod wire;

use wire::{BYTES, Opening};

const MAGIC: &[u8] = b"tb-open\x9d";
const KINDS: [u32; 4] = [1, 2, 3, 4];
const REFUSAL: u32 = 3;
const REASONS: u32 = 5;
/// Where the fields lie.
const KIND: usize = 8;
const IDENTITY: std::ops::Range<usize> = 12..48;
const REASON: usize = 48;

pub(crate) fn opening(input: &[u8]) {
    parse(input);
    // The same near the truth: a good message, and the rest of the bytes somewhere over it.
    let mut input = Input::new(input);
    let mut near = [0; BYTES];
    near[..MAGIC.len()].copy_from_slice(MAGIC);
    near[KIND] = input.one_of(&[1, 2, 3, 3, 4]);
    near[REASON] = input.byte() % 6;
    let cut = match input.one_in(8) {
        true => input.below(BYTES + 1),
        false => BYTES,
    };
    while !input.is_over() {
        let at = match input.one_in(16) {
            true => input.below(MAGIC.len()),
            false => KIND + input.below(BYTES),
        };
        let bytes = input.take(1 + at % 8);
        if let Some(over) = near.get_mut(at..at + bytes.len()) {
            over.copy_from_slice(bytes);
        }
    }
    parse(&near[..cut]);
}

fn parse(bytes: &[u8]) {
    let number = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    };
    let kind = number(KIND).filter(|kind| KINDS.contains(kind));
    let is_message = bytes.len() == BYTES
        && bytes.starts_with(MAGIC)
        && kind.is_some_and(|kind| kind != REFUSAL || number(REASON) < Some(REASONS));
    let said = Opening::parse(bytes);
    assert_eq!(said.is_some(), is_message, "{bytes:02x?}");
    let Some(said) = said else { return };
    let again = said.to_bytes();
    assert_eq!(Opening::parse(&again), Some(said));
    assert_eq!(again[..KIND + 4], bytes[..KIND + 4]);
    assert_eq!(again[IDENTITY], bytes[IDENTITY]);
    let reason = if kind == Some(REFUSAL) {
        number(REASON)
    } else {
        Some(0)
    };
    assert_eq!(
        again[REASON..REASON + 4],
        reason.expect("it is long enough").to_ne_bytes()
    );
    // Whatever it says of itself can be judged.
    let (Opening::Hello(identity)
    | Opening::Welcome(identity)
    | Opening::Ready(identity)
    | Opening::Refusal(identity, _)) = said;
    let _ = identity.check(4096);
}

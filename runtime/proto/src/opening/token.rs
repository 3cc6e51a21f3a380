//! Tokens: what shows that packets to an address arrive there, without anything being remembered.
//!
//! A keyed hash over address, cookie, incarnation and time. Who presents it has received it, or knows the key. SYN cookies (Bernstein,
//! 1996) and QUIC's address validation do the same.

use crate::wire::control::{Repr, TOKEN};
use core::hash::Hasher;
use core::net::SocketAddrV4;
use siphasher::sip128::{Hasher128, SipHasher24};

/// Nanoseconds for which a token is good at least; at most twice as long.
pub const TOKEN_LIFE: u64 = 10_000_000_000;

/// The keys in use: the present one, and the one before, whose tokens are still under way.
#[derive(Debug, Clone)]
pub(super) struct Keys([[u64; 2]; 2]);

impl Keys {
    pub(super) fn new(key: [u64; 2]) -> Keys {
        Keys([key, key])
    }

    pub(super) fn change(&mut self, key: [u64; 2]) {
        let [present, _] = self.0;
        self.0 = [key, present];
    }

    /// The token for who says this, from there, now.
    pub(super) fn make(&self, now: u64, from: SocketAddrV4, said: &Repr) -> [u8; TOKEN] {
        token(self.0[0], now / TOKEN_LIFE, from, said)
    }

    /// Whether the token that it carries was made for it, not long ago.
    pub(super) fn holds(&self, now: u64, from: SocketAddrV4, said: &Repr) -> bool {
        if said.token == [0; TOKEN] {
            return false;
        }
        let period = now / TOKEN_LIFE;
        let periods = [Some(period), period.checked_sub(1)];
        self.0.iter().any(|&key| {
            let made = |period| token(key, period, from, said);
            periods.iter().flatten().any(|&p| made(p) == said.token)
        })
    }
}

fn token(key: [u64; 2], period: u64, from: SocketAddrV4, said: &Repr) -> [u8; TOKEN] {
    let mut hasher = SipHasher24::new_with_keys(key[0], key[1]);
    hasher.write(&from.ip().octets());
    hasher.write(&from.port().to_le_bytes());
    let [first, second] = said.incarnation;
    for word in [said.cookie.to_wire(), first, second, period] {
        hasher.write(&word.to_le_bytes());
    }
    hasher.finish128().as_bytes()
}

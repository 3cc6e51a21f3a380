//! Random numbers from a seed, and a link that loses, duplicates, reorders, delays and damages.
#![allow(dead_code, reason = "each test uses its part")]

use std::hash::{BuildHasher, RandomState};

/// The seed of a test, printed so that a failure can be played again with `TIGHTBEAM_SEED`.
pub(crate) fn seed(name: &str) -> u64 {
    let seed = match std::env::var("TIGHTBEAM_SEED") {
        Ok(seed) => seed.parse().expect("TIGHTBEAM_SEED is a number"),
        Err(_) => RandomState::new().hash_one(name),
    };
    println!("{name}: TIGHTBEAM_SEED={seed}");
    seed
}

/// How many times more a long run does.
pub(crate) fn long(factor: usize) -> usize {
    match std::env::var_os("TIGHTBEAM_LONG") {
        Some(_) => factor,
        None => 1,
    }
}

/// A counter through a mixer (Steele, Lea and Flood, 2014): good enough to choose by.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ a >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ b >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
}

/// What a link does to packets, each in percent of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) duplicate: u64,
    pub(crate) damage: u64,
    /// Nanoseconds that a packet takes, and up to how many more.
    pub(crate) delay: u64,
    pub(crate) jitter: u64,
    /// Packets longer than this are lost.
    pub(crate) widest: Option<usize>,
}

/// Packets on their way, in the order in which they arrive.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) faults: Faults,
    on_the_way: Vec<(u64, Vec<u8>)>,
}

impl Link {
    pub(crate) fn new(faults: Faults) -> Link {
        Link {
            faults,
            on_the_way: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, now: u64, packet: &[u8], rng: &mut Rng) {
        let copies = 1 + u64::from(rng.percent(self.faults.duplicate));
        for _ in 0..copies {
            let too_wide = self.faults.widest.is_some_and(|most| packet.len() > most);
            if too_wide || rng.percent(self.faults.lose) {
                continue;
            }
            let mut packet = packet.to_vec();
            if rng.percent(self.faults.damage) {
                let at = rng.below(packet.len() as u64) as usize;
                packet[at] ^= 1 << rng.below(8);
            }
            let at = now + self.faults.delay + rng.below(self.faults.jitter + 1);
            let place = self.on_the_way.partition_point(|(other, _)| *other <= at);
            self.on_the_way.insert(place, (at, packet));
        }
    }

    /// The next packet that has arrived by now.
    pub(crate) fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        let first = self.on_the_way.first()?.0;
        (first <= now).then(|| self.on_the_way.remove(0).1)
    }

    /// When the next one arrives.
    pub(crate) fn next_arrival(&self) -> Option<u64> {
        self.on_the_way.first().map(|(at, _)| *at)
    }
}

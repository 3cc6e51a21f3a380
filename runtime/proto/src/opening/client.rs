//! The side that wants a channel.

use super::{Agreed, Backoff, Offer, Refusal, SHORTEST, Turn, read, write};
use crate::wire::control;
use crate::wire::message::{Cookie, Kind};

/// Longest packets to fall back to when longer ones get no answer: Ethernet, IPv6's least, IPv4's least, all less IPv4 and UDP.
const NARROWER: [usize; 3] = [1472, 1252, 548];
/// The HELLO with a token from which on every second one is narrower.
const NARROW_FROM: u32 = 3;

/// What a packet has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing: it is not for this client, damaged, or old.
    Nothing,
    /// There is something to send at once: take a [`Client::turn`].
    Again,
    /// The channel is open.
    Opened(Agreed),
    /// There will be no channel.
    Refused {
        /// Why.
        why: Refusal,
        /// The lowest and the highest version that the server speaks.
        versions: (u8, u8),
    },
}

/// Asks one server for one channel. After [`Progress::Opened`] or [`Progress::Refused`], and when its turn is to give up, it is of no
/// more use.
#[derive(Debug, Clone)]
pub struct Client {
    offer: Offer,
    said: control::Repr,
    backoff: Backoff,
}

impl Client {
    /// Begins now, and gives up after so many nanoseconds. `cookie` names the slot in which the channel will be; it and `incarnation` are
    /// random, from the kernel, and new for each client.
    pub fn new(
        offer: Offer,
        cookie: Cookie,
        incarnation: [u64; 2],
        patience: u64,
        now: u64,
    ) -> Client {
        Client {
            offer,
            said: offer.said(cookie, incarnation),
            backoff: Backoff::new(patience, now),
        }
    }

    /// Our cookie: what is for this client carries it.
    pub fn cookie(&self) -> Cookie {
        self.said.cookie
    }

    /// What it is time for: to send what it has just written to `out`, to wait, or to give up.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than the offer's longest packet: the caller's mistake.
    pub fn turn(&mut self, now: u64, out: &mut [u8]) -> Turn {
        match self.backoff.turn(now) {
            Turn::Send(_) => {
                let len = self.packet_len();
                let len = write(out, len, Kind::Hello, Cookie::NONE, &self.said);
                Turn::Send(len)
            }
            other => other,
        }
    }

    /// Takes a packet that has come from the server's address.
    pub fn handle(&mut self, now: u64, packet: &[u8]) -> Progress {
        let kinds = [Kind::Retry, Kind::HelloAck];
        match read(packet, &kinds) {
            Some((kind, cookie, said)) if cookie == self.said.cookie => match kind {
                Kind::Retry => self.retry(now, &said),
                _ => self.answered(now, &said, packet.len()),
            },
            _ => Progress::Nothing,
        }
    }

    fn retry(&mut self, now: u64, said: &control::Repr) -> Progress {
        if said.token == self.said.token {
            return Progress::Nothing;
        }
        // A second token is for a first one that was too old: the path is as wide as it was.
        match self.has_token() {
            true => self.backoff.at_once(now),
            false => self.backoff.start_over(now),
        }
        self.said.token = said.token;
        Progress::Again
    }

    fn answered(&mut self, now: u64, said: &control::Repr, came: usize) -> Progress {
        if let Some(why) = said.refusal {
            let versions = said.versions;
            return Progress::Refused { why, versions };
        }
        let (version, (lowest, highest)) = (said.versions.0, self.offer.versions);
        let is_ours = (lowest..=highest).contains(&version)
            && said.max_packet <= self.said.max_packet
            && said.class == self.said.class
            && said.cookie != Cookie::NONE;
        if !is_ours {
            return Progress::Nothing;
        }
        // The server believes in a wider path than its answer shows, because a longer HELLO has come: it is told so in so many words.
        if came < said.max_packet as usize {
            self.said.max_packet = came as u32;
            self.backoff.start_over(now);
            return Progress::Again;
        }
        Progress::Opened(Agreed::new(self.cookie(), &self.offer, version, said))
    }

    fn has_token(&self) -> bool {
        self.said.token != [0; control::TOKEN]
    }

    /// The first HELLO asks for a token, no more. Those with one are as long as packets shall be; the third and every second one from
    /// there tries a narrower path, in case longer ones do not arrive.
    fn packet_len(&self) -> usize {
        let widest = self.said.max_packet as usize;
        let tries = self.backoff.tries();
        if !self.has_token() {
            return SHORTEST;
        }
        if tries < NARROW_FROM || tries.is_multiple_of(2) {
            return widest;
        }
        let mut narrower = NARROWER.into_iter().filter(|&n| n < widest);
        let step = (tries - NARROW_FROM) as usize / 2;
        let narrowest = narrower.clone().next_back();
        narrower.nth(step).or(narrowest).unwrap_or(widest)
    }
}

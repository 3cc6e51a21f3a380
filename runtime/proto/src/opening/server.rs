//! The side that gives channels: forgets everything of who has not shown his address, and nothing of who has.

use super::token::Keys;
use super::{Agreed, Offer, Refusal, read, write};
use crate::wire::control;
use crate::wire::message::{Cookie, Kind};
use alloc::collections::BTreeMap;
use core::net::SocketAddrV4;

/// Someone who wants a channel, and whose address is his.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// His address.
    pub from: SocketAddrV4,
    /// Whether both sides have named their handler tables, and they differ.
    pub tables_differ: bool,
    said: control::Repr,
    version: u8,
    len: usize,
}

impl Wish {
    /// The class of channel that is wanted.
    pub fn class(&self) -> super::Class {
        self.said.class
    }

    /// The client's incarnation: random, new for each channel that it opens.
    pub fn incarnation(&self) -> [u64; 2] {
        self.said.incarnation
    }
}

/// What a packet has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// Nothing; it has been counted.
    Ignored(Ignored),
    /// So many bytes of `out` are to be sent to where the packet came from.
    Answer(usize),
    /// The same; and the channel with this cookie of ours is open to packets of so many bytes at most, perhaps fewer than before.
    Again {
        /// Bytes of the answer.
        len: usize,
        /// Our cookie.
        ours: Cookie,
        /// The longest packet in bytes.
        max_packet: usize,
    },
    /// Somebody wants a channel: [`Server::accept`] or [`Server::refuse`].
    Wish(Wish),
}

/// Why a packet is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// It is no HELLO, or damaged.
    NotHello,
    /// Its answer would not fit into `out`: it is longer than our own longest packet.
    TooLong,
}

crate::counters! {
    /// What a server counts. Each packet that it is given adds one to exactly one of those before `Accepted`.
    Counter, Counters {
        /// Packets that are no HELLO, or damaged, or too long.
        Ignored = "ignored",
        /// HELLOs without a token that holds, each answered with RETRY.
        Retries = "retries",
        /// HELLOs of a channel that is open, each answered as the first one was.
        Again = "hello_again",
        /// HELLOs refused because of their version.
        Version = "refused_version",
        /// HELLOs that were handed out as wishes.
        Wishes = "wishes",
        /// Wishes that were accepted.
        Accepted = "accepted",
        /// Wishes that were refused.
        Refused = "refused",
    }
}

#[derive(Debug, Clone, Copy)]
struct Open {
    ours: Cookie,
    incarnation: [u64; 2],
    version: u8,
    max_packet: u32,
}

type Who = (SocketAddrV4, Cookie, [u64; 2]);

/// Answers HELLOs.
#[derive(Debug, Clone)]
pub struct Server {
    offer: Offer,
    keys: Keys,
    open: BTreeMap<Who, Open>,
    /// The same by our cookies.
    who: BTreeMap<Cookie, Who>,
    counters: Counters,
}

impl Server {
    /// `key` is random, from the kernel, and secret: with it, tokens are made.
    pub fn new(offer: Offer, key: [u64; 2]) -> Server {
        Server {
            offer,
            keys: Keys::new(key),
            open: BTreeMap::new(),
            who: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// Makes tokens with another key from now on: every some minutes, and when the machine may have been cloned. Tokens of the key
    /// before are good until the next change.
    pub fn change_key(&mut self, key: [u64; 2]) {
        self.keys.change(key);
    }

    /// Takes a packet of [`Kind::Hello`] that has come from an address. An answer, never longer than the packet, is in `out`.
    pub fn handle(&mut self, now: u64, from: SocketAddrV4, packet: &[u8], out: &mut [u8]) -> Heard {
        let (heard, counter) = self.judge(now, from, packet, out);
        self.counters.add(counter);
        heard
    }

    fn judge(
        &mut self,
        now: u64,
        from: SocketAddrV4,
        packet: &[u8],
        out: &mut [u8],
    ) -> (Heard, Counter) {
        let Some((_, Cookie::NONE, said)) = read(packet, &[Kind::Hello]) else {
            return (Heard::Ignored(Ignored::NotHello), Counter::Ignored);
        };
        if packet.len() > out.len() {
            return (Heard::Ignored(Ignored::TooLong), Counter::Ignored);
        }
        if !self.keys.holds(now, from, &said) {
            let token = self.keys.make(now, from, &said);
            let retry = control::Repr {
                token,
                ..self.offer.said(Cookie::NONE, [0; 2])
            };
            let len = write(out, super::SHORTEST, Kind::Retry, said.cookie, &retry);
            return (Heard::Answer(len), Counter::Retries);
        }
        let len = self.widest(&said, packet.len());
        let who = (from, said.cookie, said.incarnation);
        if let Some(open) = self.open.get_mut(&who) {
            // What the client says counts, not how much of it has come: narrower ones may have been waiting here behind wider ones.
            open.max_packet = open.max_packet.min(said.max_packet);
            let open = *open;
            let len = self.give(&open, len.min(open.max_packet as usize), &said, out);
            let heard = Heard::Again {
                len,
                ours: open.ours,
                max_packet: open.max_packet as usize,
            };
            return (heard, Counter::Again);
        }
        let Some(version) = common(self.offer.versions, said.versions) else {
            let len = self.no(&said, Refusal::Version, out);
            return (Heard::Answer(len), Counter::Version);
        };
        let tables = (self.offer.table, said.table);
        let wish = Wish {
            from,
            tables_differ: tables.0 != 0 && tables.1 != 0 && tables.0 != tables.1,
            said,
            version,
            len,
        };
        (Heard::Wish(wish), Counter::Wishes)
    }

    /// Opens the channel; to be called before the next packet is handled. `ours` names the slot in which it will be; it and `incarnation` are random, from the kernel, and new for each
    /// channel. So many bytes of `out` are to be sent to [`Wish::from`].
    ///
    /// # Panics
    ///
    /// If `out` is shorter than the packet that brought the wish, or the cookie is [`Cookie::NONE`]: the caller's mistake.
    pub fn accept(
        &mut self,
        wish: &Wish,
        ours: Cookie,
        incarnation: [u64; 2],
        out: &mut [u8],
    ) -> (usize, Agreed) {
        assert_ne!(ours, Cookie::NONE, "a channel has a cookie");
        let said = control::Repr {
            max_packet: wish.len as u32,
            ..wish.said
        };
        let open = Open {
            ours,
            incarnation,
            version: wish.version,
            max_packet: said.max_packet,
        };
        let who = (wish.from, said.cookie, said.incarnation);
        self.open.insert(who, open);
        self.who.insert(ours, who);
        self.counters.add(Counter::Accepted);
        let len = self.give(&open, wish.len, &said, out);
        let agreed = Agreed::new(ours, &self.offer, wish.version, &said);
        (len, agreed)
    }

    /// Says that there will be no channel, and why. Keeps nothing: the next HELLO is a new wish.
    ///
    /// # Panics
    ///
    /// If `out` is shorter than the packet that brought the wish: the caller's mistake.
    pub fn refuse(&mut self, wish: &Wish, why: Refusal, out: &mut [u8]) -> usize {
        self.counters.add(Counter::Refused);
        self.no(&wish.said, why, out)
    }

    /// Forgets a channel that has ended, by our cookie.
    pub fn closed(&mut self, ours: Cookie) {
        if let Some(who) = self.who.remove(&ours) {
            self.open.remove(&who);
        }
    }

    /// Channels that are open, as far as this server has been told.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The longest packet that both sides take, and that has come.
    fn widest(&self, said: &control::Repr, came: usize) -> usize {
        let theirs = (said.max_packet as usize).min(came);
        theirs.min(self.offer.max_packet).max(super::SHORTEST)
    }

    /// Says that the channel is open, and to packets of what length, in so many bytes.
    fn give(&self, open: &Open, len: usize, said: &control::Repr, out: &mut [u8]) -> usize {
        let answer = control::Repr {
            versions: (open.version, open.version),
            class: said.class,
            max_packet: open.max_packet,
            ..self.offer.said(open.ours, open.incarnation)
        };
        write(out, len, Kind::HelloAck, said.cookie, &answer)
    }

    fn no(&self, said: &control::Repr, why: Refusal, out: &mut [u8]) -> usize {
        let answer = control::Repr {
            refusal: Some(why),
            ..self.offer.said(Cookie::NONE, [0; 2])
        };
        write(out, super::SHORTEST, Kind::HelloAck, said.cookie, &answer)
    }
}

/// The highest version that both speak.
fn common(ours: (u8, u8), theirs: (u8, u8)) -> Option<u8> {
    let (lowest, highest) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (lowest <= highest).then_some(highest)
}

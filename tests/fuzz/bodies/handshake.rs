//! The opening exchange between hosts: HELLOs, true and not, to one server, and answers, true and not, to one client.
//!
//! Whatever comes: no answer is longer than what it answers, nothing is kept of who has not been given a token for his address, and
//! the client opens no channel but one that was given to it.

use super::input::Input;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use tightbeam_proto::opening::{
    Agreed, Client, Heard, Offer, Progress, Refusal, SHORTEST, Server, TOKEN_LIFE, Turn, Wish,
};
use tightbeam_proto::wire::control;
use tightbeam_proto::wire::message::{Cookie, HEADER, Kind, Repr, seal};

const MOST_STEPS: usize = 40;
const LONGEST: usize = 300;
const TOKEN: std::ops::Range<usize> = HEADER + 48..SHORTEST;

type Who = (SocketAddrV4, Cookie, [u64; 2]);

struct Handshake {
    now: u64,
    server: Server,
    client: Client,
    /// The tokens that the server has given, to whom, and when last.
    given: HashMap<(Who, Vec<u8>), u64>,
    open: HashMap<Who, Agreed>,
    /// Cookies that the server has chosen, ever, and told to the client.
    told: HashSet<Cookie>,
    opened: Option<Agreed>,
    next: u64,
}

pub(crate) fn handshake(input: &[u8]) {
    let mut input = Input::new(input);
    let cookie = Cookie::new(0, 0xc11e_0000);
    let mut world = Handshake {
        now: 0,
        server: Server::new(Offer::raw(LONGEST - input.below(99)), [1, 2]),
        client: Client::new(Offer::raw(LONGEST), cookie, [3, 4], u64::MAX, 0),
        given: HashMap::new(),
        open: HashMap::new(),
        told: HashSet::new(),
        opened: None,
        next: 0,
    };
    for _ in 0..MOST_STEPS {
        if input.is_over() {
            break;
        }
        world.step(&mut input);
        assert_eq!(world.server.open(), world.open.len());
    }
}

impl Handshake {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                self.now +=
                    input.one_of(&[1, 20_000_000, TOKEN_LIFE / 2, TOKEN_LIFE, 2 * TOKEN_LIFE])
            }
            1 => {
                let bytes = input.take(120).to_vec();
                let _ = self.hear(address(input), &bytes, input);
                self.client_hears(&bytes, false);
            }
            2 => self.close(input),
            3 | 4 => self.client_speaks(input),
            _ => {
                let from = address(input);
                let packet = self.hello(from, input);
                let _ = self.hear(from, &packet, input);
            }
        }
    }

    fn client_speaks(&mut self, input: &mut Input<'_>) {
        let mut out = [0; LONGEST];
        let len = match self.client.turn(self.now, &mut out) {
            Turn::Send(len) => len,
            Turn::Wait(until) => return self.now = until,
            Turn::GiveUp => unreachable!("its patience has no end"),
        };
        let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 999);
        if let Some(mut answer) = self.hear(from, &out[..len], input) {
            if input.one_in(4) {
                let at = input.below(answer.len().min(100));
                answer[at] ^= input.byte() | 1;
                let is_sealed = input.one_in(2);
                if is_sealed {
                    seal(&mut answer);
                }
                return self.client_hears(&answer, is_sealed);
            }
            self.client_hears(&answer, true);
        }
    }

    /// `near`: it may be from the server, changed and sealed by somebody who has seen it, who can say what he likes.
    fn client_hears(&mut self, packet: &[u8], near: bool) {
        if self.opened.is_some() {
            return;
        }
        if let Progress::Opened(agreed) = self.client.handle(self.now, packet) {
            assert!(near && packet[8..16] == self.client.cookie().to_wire().to_le_bytes());
            assert!((SHORTEST..=LONGEST).contains(&agreed.max_packet));
            assert_ne!(agreed.theirs, Cookie::NONE);
            self.opened = Some(agreed);
        }
    }

    /// A HELLO with a token that was given to its sender, to somebody else, or to nobody.
    fn hello(&self, from: SocketAddrV4, input: &mut Input<'_>) -> Vec<u8> {
        let cookie = Cookie::new(u16::from(input.byte() % 2), 0x7777_0000);
        let incarnation = [u64::from(input.byte() % 2), 0];
        let mut given: Vec<_> = self.given.keys().collect();
        given.sort();
        let own = given
            .iter()
            .rfind(|(who, _)| *who == (from, cookie, incarnation));
        let token = match input.below(4) {
            0 => None,
            1 if !given.is_empty() => Some(given[input.below(given.len())]),
            _ => own.copied(),
        };
        let said = control::Repr {
            versions: input.one_of(&[(1, 1), (1, 1), (0, 9), (2, 3), (3, 0)]),
            class: control::Class::Raw,
            refusal: None,
            max_packet: input.one_of(&[300, 300, 200, SHORTEST as u32, 95, u32::MAX]),
            max_message: 100,
            credit: 0,
            table: u64::from(input.byte() % 3),
            cookie,
            incarnation,
            token: token.map_or([0; 16], |(_, token)| token[..].try_into().expect("sixteen")),
        };
        let mut packet = vec![0; input.one_of(&[SHORTEST, 150, LONGEST])];
        Repr::new(Kind::Hello, Cookie::NONE).emit(&mut packet);
        said.emit(&mut packet[HEADER..]);
        if input.one_in(8) {
            let at = input.below(SHORTEST);
            packet[at] ^= input.byte();
        }
        seal(&mut packet);
        packet
    }

    /// What the server answers.
    fn hear(
        &mut self,
        from: SocketAddrV4,
        packet: &[u8],
        input: &mut Input<'_>,
    ) -> Option<Vec<u8>> {
        let mut out = [0; LONGEST];
        let heard = self.server.handle(self.now, from, packet, &mut out);
        if matches!(heard, Heard::Ignored(_)) {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(packet[at..at + 8].try_into().expect("eight"));
        let who = (
            from,
            Cookie::from_wire(word(HEADER + 24)),
            [word(HEADER + 32), word(HEADER + 40)],
        );
        let given = self.given.get(&(who, packet[TOKEN].to_vec())).copied();
        let is_young = |given: u64| self.now / TOKEN_LIFE <= given / TOKEN_LIFE + 1;
        let proved = given.is_some_and(is_young);
        let len = match heard {
            Heard::Ignored(_) => return None,
            Heard::Answer(len) => len,
            Heard::Again {
                len,
                ours,
                max_packet,
            } => {
                let open = self.open.get(&who).expect("it is open");
                assert!(proved && open.ours == ours && max_packet <= open.max_packet);
                len
            }
            Heard::Wish(wish) => {
                assert!(proved && wish.from == from && !self.open.contains_key(&who));
                match input.below(4) {
                    0 => self.server.refuse(&wish, Refusal::Full, &mut out),
                    _ => self.accept(who, &wish, &mut out),
                }
            }
        };
        assert!(len <= packet.len(), "{len} bytes for {}", packet.len());
        if !proved {
            let token = out[TOKEN].to_vec();
            assert_eq!((out[0], len), (0x14, SHORTEST), "a RETRY");
            self.given.insert((who, token), self.now);
        }
        Some(out[..len].to_vec())
    }

    fn accept(&mut self, who: Who, wish: &Wish, out: &mut [u8]) -> usize {
        self.next += 1;
        let ours = Cookie::new(0, self.next << 16);
        let (len, agreed) = self.server.accept(wish, ours, [9, self.next], out);
        assert_eq!(
            (agreed.ours, agreed.theirs, agreed.incarnation),
            (ours, who.1, who.2)
        );
        self.told.insert(ours);
        self.open.insert(who, agreed);
        len
    }

    fn close(&mut self, input: &mut Input<'_>) {
        let mut open: Vec<_> = self.open.keys().copied().collect();
        open.sort();
        if !open.is_empty() {
            let who = open[input.below(open.len())];
            let agreed = self.open.remove(&who).expect("it is there");
            self.server.closed(agreed.ours);
        }
    }
}

fn address(input: &mut Input<'_>) -> SocketAddrV4 {
    let byte = input.byte();
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, byte % 2), u16::from(byte / 2 % 2))
}

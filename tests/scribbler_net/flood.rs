//! What the hostile one sends.

use crate::support::{Ledger, PATIENCE};
use crate::{ECHO, HOSTILE, NUMBERED, OPENED, SEED, SENT, STOP, ground, numbered};
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use tightbeam_proto::opening::{Agreed, Client, Offer, Progress, Turn};
use tightbeam_proto::raw::{Answer, Outgoing, Sender};
use tightbeam_proto::wire::message::{Cookie, HEADER, Kind, PACKED, Repr, seal};

/// Packets that it remembers, to say them again.
const REMEMBERED: usize = 200;
const LONGEST: usize = 1472;
/// Packets between two looks at whether it shall stop, and at what it is sent.
const STRETCH: u64 = 64;
/// How long it asks for a channel before it floods on without.
const ASKS: Duration = Duration::from_millis(300);

struct Hostile {
    socket: UdpSocket,
    seed: u64,
    /// Its channel: the victim's cookie and its own.
    channel: Option<(Agreed, Sender)>,
    memory: Vec<Vec<u8>>,
    /// What it says honestly, each number once.
    number: u64,
    sent: u64,
    opened: u64,
}

pub(crate) fn run(board: &Ledger, host: &str) {
    ground::enter();
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.connect(host).expect("an address");
    socket.set_nonblocking(true).expect("a socket");
    let mut hostile = Hostile {
        socket,
        seed: board.read(SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        channel: None,
        memory: Vec::new(),
        number: 0,
        sent: 0,
        opened: 0,
    };
    let begin = Instant::now();
    while board.read(STOP) < HOSTILE {
        if hostile.channel.is_none() {
            hostile.open();
            board.write(OPENED, hostile.opened);
            assert!(
                hostile.opened > 0 || begin.elapsed() < PATIENCE,
                "no channel"
            );
        }
        for _ in 0..STRETCH {
            let packet = hostile.packet();
            hostile.send(&packet);
        }
        let mut answer = [0; 2048];
        while hostile.socket.recv(&mut answer).is_ok() {}
        board.write(SENT, hostile.sent);
    }
}

impl Hostile {
    /// xorshift (Marsaglia, 2003).
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn below(&mut self, end: usize) -> usize {
        (self.random() >> 16) as usize % end
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most);
        let words = std::iter::repeat_with(|| self.random().to_le_bytes());
        let mut bytes = words.take(len / 8 + 1).collect::<Vec<_>>().concat();
        bytes.truncate(len);
        bytes
    }

    fn send(&mut self, packet: &[u8]) {
        // What the kernel has no room for was not sent.
        self.sent += u64::from(self.socket.send(packet).is_ok());
    }

    /// By the rules; or not at all, if the victim does not want it.
    fn open(&mut self) {
        let (cookie, incarnation) = (self.random(), [self.random(), self.random()]);
        let offer = Offer::raw(LONGEST);
        let mut asking = Client::new(offer, Cookie::new(0, cookie), incarnation, 1 << 40, 0);
        let (begin, mut buffer) = (Instant::now(), [0; 2048]);
        while begin.elapsed() < ASKS {
            let now = begin.elapsed().as_nanos() as u64;
            if let Turn::Send(len) = asking.turn(now, &mut buffer) {
                self.send(&buffer[..len]);
            }
            let Ok(len) = self.socket.recv(&mut buffer) else {
                std::thread::yield_now();
                continue;
            };
            match asking.handle(now, &buffer[..len]) {
                Progress::Opened(agreed) => {
                    let sender = Sender::new(agreed.theirs, agreed.max_packet);
                    self.channel = Some((agreed, sender));
                    self.opened += 1;
                    return;
                }
                Progress::Refused { .. } => return,
                _ => {}
            }
        }
    }

    /// The cookie of its own channel, or one that nobody has.
    fn cookie(&mut self) -> Cookie {
        match &self.channel {
            Some((agreed, _)) => agreed.theirs,
            None => Cookie::from_wire(self.random()),
        }
    }

    /// A packet that is right, and remembered.
    fn honest(&mut self) -> Vec<u8> {
        let mut out = vec![0; LONGEST];
        let call = self.below(8) == 0;
        let most = if call { LONGEST - HEADER } else { 8 };
        let filler = self.bytes(most);
        let message = numbered(self.number);
        let Some((_, sender)) = &mut self.channel else {
            return filler;
        };
        self.number += 1;
        let written = match call {
            true => sender.write(&mut out, Outgoing::Call, ECHO, &filler),
            false => sender.write(&mut out, Outgoing::Message, NUMBERED, &message),
        };
        out.truncate(written.map_or(0, |written| written.len));
        match self.memory.len() {
            0..REMEMBERED => self.memory.push(out.clone()),
            _ => {
                let place = self.below(REMEMBERED);
                self.memory[place].clone_from(&out);
            }
        }
        out
    }

    /// A header with what it may not say, and a CRC that holds.
    fn lie(&mut self) -> Vec<u8> {
        let kinds = [Kind::Data, Kind::Ack, Kind::Credit, Kind::Busy, Kind::Probe];
        let kind = kinds[self.below(kinds.len())];
        let flags = match kind {
            Kind::Data => [0, 1, 2, 3, 4, PACKED][self.below(6)],
            _ => 0,
        };
        let near = self.channel.as_ref();
        let near = near.map_or(0, |(_, sender)| sender.next_seq());
        let far = self.below(1000) == 0;
        let header = Repr {
            flags,
            handler: [ECHO, NUMBERED, 0, u16::MAX, self.random() as u16][self.below(5)],
            seq: match far {
                true => near.wrapping_add(1000 + self.below(1 << 20) as u32),
                false => near.wrapping_add(self.below(80) as u32).wrapping_sub(40),
            },
            ack: [near, self.random() as u32][self.below(2)],
            credit: self.random() as u32,
            sack: self.random() as u32,
            ..Repr::new(kind, self.cookie())
        };
        let mut packet = vec![0; HEADER];
        header.emit(&mut packet);
        packet.extend(self.bytes(LONGEST - HEADER));
        seal(&mut packet);
        if far {
            // Whoever is so far ahead of himself is too late with all that he says then.
            self.channel = None;
        }
        packet
    }

    /// Of the opening, the end, or about who knows whom.
    fn control(&mut self) -> Vec<u8> {
        let mut out = vec![0; LONGEST];
        let kinds = [
            Kind::Hello,
            Kind::Retry,
            Kind::HelloAck,
            Kind::Close,
            Kind::Unknown,
        ];
        let kind = kinds[self.below(kinds.len())];
        if kind == Kind::Hello && self.below(2) == 0 {
            let (cookie, incarnation) = (self.random(), [self.random(), self.random()]);
            let offer = Offer::raw(LONGEST);
            let mut asking = Client::new(offer, Cookie::new(0, cookie), incarnation, 1 << 40, 0);
            if let Turn::Send(len) = asking.turn(0, &mut out) {
                out.truncate(len);
            }
            return out;
        }
        let own = self.below(2000) == 0;
        let cookie = match own {
            true => self.cookie(),
            false => Cookie::from_wire(self.random()),
        };
        if kind == Kind::Close && own {
            // The next one is another channel; of this one it remembers some packets.
            self.channel = None;
        }
        let header = Repr {
            seq: self.random() as u32,
            ack: self.random() as u32,
            ..Repr::new(kind, cookie)
        };
        out.truncate(HEADER);
        header.emit(&mut out);
        out.extend(self.bytes(200));
        seal(&mut out);
        out
    }

    fn packet(&mut self) -> Vec<u8> {
        match self.below(10) {
            0 => self.bytes(LONGEST),
            1 => {
                let mut packet = self.honest();
                for _ in 0..=self.below(4) {
                    if !packet.is_empty() {
                        let (byte, bit) = (self.below(packet.len()), self.below(8));
                        packet[byte] ^= 1 << bit;
                    }
                }
                packet
            }
            2 if !self.memory.is_empty() => {
                let place = self.below(self.memory.len());
                self.memory[place].clone()
            }
            3 => {
                // Right but for the cookie: of a neighbour's slot, or with another secret.
                let mut packet = self.honest();
                if packet.len() >= HEADER {
                    let byte = 8 + self.below(8);
                    packet[byte] ^= 1 << self.below(8);
                    seal(&mut packet);
                }
                packet
            }
            4 => {
                let mut packet = self.honest();
                packet.truncate(self.below(packet.len().max(1)));
                packet
            }
            5 => {
                // Whole and sealed, but longer or shorter than it says.
                let mut packet = self.honest();
                let len = HEADER + self.below(LONGEST - HEADER);
                packet.resize(len, 0x5a);
                packet[1] = PACKED;
                seal(&mut packet);
                packet
            }
            6 => self.lie(),
            7 => self.control(),
            8 => {
                let answer = [Answer::Reply, Answer::NoReply, Answer::NoHandler][self.below(3)];
                let (call, bytes) = (self.random() as u32, self.bytes(300));
                let mut out = vec![0; LONGEST];
                let Some((_, sender)) = &mut self.channel else {
                    return bytes;
                };
                let answer = Outgoing::Answer { call, answer };
                let written = sender.write(&mut out, answer, 0, &bytes);
                out.truncate(written.map_or(0, |written| written.len));
                out
            }
            _ => self.honest(),
        }
    }
}

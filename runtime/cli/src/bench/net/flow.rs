//! One-way messages with numbers, at a given rate or as many as go, to a second process on another host, which says what it has heard.
//!
//! ```text
//!   first process, on the first host                  second process, on the last host
//!   order-N: by what, where; ORDER = N -------------> listens, ACK = N
//!   messages 0, 1, 2, …              =============>  notes which have come
//!   SENT = how many, and one ----------------------> waits for the last ones
//!   result-N                        <--------------- DONE = N
//! ```

use super::cable::Cable;
use super::source::{self, Source};
use crate::bench::second::{self, Board, PATIENCE, other};
use crate::cleanup::{Child, PrivateDir};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Bytes of a message's number.
pub(super) const NUMBER: usize = 8;
/// Messages between two looks at the clock and at the endpoint; and if as many are sent as go.
const BURST: u64 = 32;
const FLOOD: u64 = 256;
/// Run lengths are counted by powers of two: 1, 2-3, 4-7, and so on; the last has all that are longer.
pub(super) const LENGTHS: usize = 10;

/// By what messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum By {
    /// A kernel UDP socket, a call a message.
    Udp,
    /// The same, 64 messages a call.
    UdpMmsg,
    /// A kernel TCP socket, a call a message.
    Tcp,
    /// Tightbeam over a UDP socket.
    TightbeamUdp,
    /// Tightbeam over AF_XDP, behind the driver.
    #[serde(rename = "xdp-generic")]
    Xdp,
    /// Tightbeam through shared memory, on this host.
    Shm,
}

impl By {
    pub(super) fn name(self) -> &'static str {
        match self {
            By::Udp => "udp",
            By::UdpMmsg => "udp-mmsg",
            By::Tcp => "tcp",
            By::TightbeamUdp => "tightbeam-udp",
            By::Xdp => "xdp-generic",
            By::Shm => "shm",
        }
    }
}

/// What the second process shall listen to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) by: By,
    pub(super) size: usize,
    /// Of an endpoint; else the port of a socket.
    pub(super) address: String,
    pub(super) host: Ipv4Addr,
    pub(super) port: u16,
    /// What the receiver does with each message besides reading it: nothing, for so long.
    pub(super) work_ns: u64,
}

/// What the second process has heard.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Heard {
    pub(super) received: u64,
    pub(super) bytes: u64,
    /// From the first message to the last.
    pub(super) nanoseconds: u64,
    /// Messages that never came, in runs: how many runs, how many messages, how many runs by their lengths.
    pub(super) runs: u64,
    pub(super) lost: u64,
    pub(super) lengths: [u64; LENGTHS],
    /// Losses that its side has counted, by cause.
    pub(super) causes: Vec<(String, u64)>,
    /// The number that is expected next.
    #[serde(skip)]
    next: u64,
}

impl Heard {
    /// A message has come. One that is late was counted as lost, and stays so.
    pub(super) fn note(&mut self, message: &[u8]) {
        self.received += 1;
        self.bytes += message.len() as u64;
        if let Some(number) = message.first_chunk() {
            self.miss(u64::from_le_bytes(*number));
            self.next = self.next.max(u64::from_le_bytes(*number) + 1);
        }
    }

    /// The next message is this one: what is missing before it is lost.
    pub(super) fn miss(&mut self, number: u64) {
        if let Some(run @ 1..) = number.checked_sub(self.next) {
            self.runs += 1;
            self.lost += run;
            self.lengths[(run.ilog2() as usize).min(LENGTHS - 1)] += 1;
        }
    }
}

/// How many messages are offered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    PerSecond(f64),
    AsManyAsGo,
}

/// What the first process has done.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// Sent, or refused by an error that says so at once.
    pub(super) offered: u64,
    pub(super) sent: u64,
    pub(super) refused: u64,
    /// Losses that its side has counted, by cause.
    pub(super) causes: Vec<(String, u64)>,
}

/// Words of both processes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    Order,
    Sent,
    Ack,
    Done,
}

pub(super) const WORDS: usize = 4;

/// The second process, and the way to it.
pub(super) struct Flow {
    board: Board,
    directory: PrivateDir,
    _child: Child,
    number: u64,
    far: Ipv4Addr,
    /// Of the first host.
    interface: String,
    /// Of the last one.
    far_interface: String,
}

impl Flow {
    /// Starts the second process on the last of `hosts`, and goes to the first.
    pub(super) fn start(cable: &Cable, hosts: usize, cpus: [usize; 2]) -> io::Result<Flow> {
        let directory = PrivateDir::create()?;
        let board = Board::open(directory.path(), WORDS)?;
        let cpu = [("--cpu", cpus[1].to_string())];
        let start = || second::start("bench-net-peer", directory.path(), &cpu);
        let child = cable.at(hosts - 1, start).map_err(other)??;
        cable.move_to(Some(0)).map_err(other)?;
        tightbeam_sys::cpu::pin(cpus[0])?;
        Ok(Flow {
            board,
            directory,
            _child: child,
            number: 0,
            far: cable.address(hosts - 1),
            interface: "eth1".into(),
            far_interface: format!("eth{}", hosts - 2),
        })
    }

    /// Sends messages of this size for a while, and waits for what the other side says.
    pub(super) fn run(
        &mut self,
        (by, size, work_ns): (By, usize, u64),
        pace: Pace,
        time: Duration,
    ) -> io::Result<(Said, Heard)> {
        self.number += 1;
        // A port that was just used may still be somebody's.
        let port = 7200 + (self.number % 20_000) as u16;
        let (order, connect) = self.order(by, size, work_ns, port);
        let path = |what: &str| {
            self.directory
                .path()
                .join(format!("{what}-{}", self.number))
        };
        self.board.set(Word::Sent as usize, 0);
        std::fs::write(path("order"), serde_json::to_vec(&order)?)?;
        self.board.set(Word::Order as usize, self.number);
        self.board.wait_for(Word::Ack as usize, self.number)?;
        let mut source = source::open(&order, &connect)?;
        let mut said = offer(&mut *source, size, pace, time)?;
        source.finish()?;
        said.causes = source.causes();
        self.board.set(Word::Sent as usize, said.sent + 1);
        self.board.wait_for(Word::Done as usize, self.number)?;
        let heard = serde_json::from_slice(&std::fs::read(path("result"))?)?;
        Ok((said, heard))
    }

    fn order(&self, by: By, size: usize, work_ns: u64, port: u16) -> (Order, String) {
        let far = self.far;
        let at = |interface: &str| match by {
            By::Xdp => format!("xdp:{interface}/{far}:{port}?mode=generic"),
            By::Shm => format!(
                "shm:{}",
                self.directory.path().join(port.to_string()).display()
            ),
            _ => format!("udp:{far}:{port}"),
        };
        let order = Order {
            by,
            size,
            address: at(&self.far_interface),
            host: far,
            port,
            work_ns,
        };
        (order, at(&self.interface))
    }
}

/// Offers messages.
fn offer(source: &mut dyn Source, size: usize, pace: Pace, time: Duration) -> io::Result<Said> {
    let (mut said, mut message) = (Said::default(), vec![0x5a; size.max(NUMBER)]);
    let start = Instant::now();
    loop {
        let gone = start.elapsed();
        if gone >= time {
            return Ok(said);
        }
        let burst = match pace {
            Pace::PerSecond(rate) => {
                let due = (gone.as_secs_f64() * rate) as u64;
                BURST.min(due.saturating_sub(said.offered))
            }
            Pace::AsManyAsGo => FLOOD,
        };
        for _ in 0..burst {
            said.offered += 1;
            message[..NUMBER].copy_from_slice(&said.sent.to_le_bytes());
            match source.send(&message)? {
                true => said.sent += 1,
                false => said.refused += 1,
            }
        }
        source.turn()?;
    }
}

/// Waits until a word is no longer `last`.
pub(super) fn next_order(board: &Board, last: u64) -> io::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let order = board.get(Word::Order as usize);
        if order != last {
            return Ok(order);
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_counted_in_runs() {
        let mut heard = Heard::default();
        for number in [0u64, 1, 3, 7, 6, 8, 30] {
            heard.note(&number.to_le_bytes());
        }
        heard.miss(32);
        assert_eq!(
            (heard.received, heard.runs, heard.lost),
            (7, 4, 1 + 3 + 21 + 1)
        );
        assert_eq!(heard.lengths[..5], [2, 1, 0, 0, 1]);
    }
}
